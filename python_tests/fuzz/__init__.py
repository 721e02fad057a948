"""A fuzzer of the native operators: valid calls of random sizes, changed at random, and what must not come of them.

``calls`` makes valid calls, ``mutations`` and ``tensor_changes`` change their arguments, ``judge`` runs one and says
what is wrong by what ``oracles`` know, ``supervisor`` runs them in a process of their own that may crash. The script is
``python_tests/fuzz_operators.py``.
"""
