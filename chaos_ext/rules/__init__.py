"""The calculus of layers and losses, a rule a file: forward, backward, and the tangents of both.

``rule`` is the protocol, ``table`` says which torch module or setting gets which rule.
"""
