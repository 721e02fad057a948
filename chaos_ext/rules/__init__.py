"""The calculus of layers and losses, a rule a file: forward, backward, and the tangents of both.

``rule`` is the protocol. Layers: ``linear``, ``embedding``, ``conv`` with ``padding``, ``norm``, ``elementwise``,
``pooling``; what connects them: ``joints``; any other: ``automatic``, by torch's derivatives; at the end: ``losses``.
One derivative more, for third ones: ``jets``, in the arithmetic of ``jet``, with ``activation_jets``.
``table`` says which torch module with which settings gets which rule (functions: ``graph.functions``).
"""
