"""From a torch.nn.Module to a program: its forward as layer rules in topological order.

``capture`` traces the module with torch.fx and remembers the result; ``builder`` turns each node into rules, modules by
``rules.table``, functions and methods by ``functions``, the rest as a ``region`` that torch differentiates alone;
``program`` is what comes out.
"""
