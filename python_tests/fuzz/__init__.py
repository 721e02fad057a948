"""A fuzzer of the native operators: valid calls of random sizes, changed at random, and what must not come of them.

``calls`` makes valid calls, ``mutations`` changes their arguments, ``judge`` runs one and says what is wrong,
``supervisor`` runs them in a process of their own that may crash. The script is ``python_tests/fuzz_operators.py``.
"""
