"""What everything stands on: the parameter vector, snapshots of it, memory, files, and what of torch is private.

Imports nothing of the package but errors and the native operators.
"""
