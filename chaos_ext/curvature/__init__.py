"""From a program and a batch to the Hessian: products, dense, compressed.

tape -> sweep -> plan -> {dense, basis -> compressed} -> layerwise | functional -> engine -> hessian.
"""
