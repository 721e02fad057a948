"""From a torch.nn.Module to a program: its forward as layer rules in topological order.

capture -> builder (with the handlers of ``functions``) -> program; a ``region`` is what torch differentiates alone.
"""
