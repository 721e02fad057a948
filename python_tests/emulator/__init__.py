"""The CUDA kernels of csrc on the CPU: the same sources, compiled by g++ behind a stand-in for cuda_runtime.h.

``build`` compiles and loads the Python module of the kernels, ``ops`` gives them the signatures of the operators.
"""
