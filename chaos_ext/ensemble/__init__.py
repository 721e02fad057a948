"""Many members of one architecture, trained together: twins, seeds, grids.

``ensemble`` is what users see. ``layout`` says how members lie in memory, ``options`` and ``recurrence`` are the
optimizer, ``layered`` and ``functional`` the two ways to all gradients at once, of which ``choice`` takes the one that
is right; ``checkpoint`` and ``stream`` keep what came out. ``pruner`` is what CGD adds, with directions from ``single``
(any model, one member after the other) or ``compressed`` (Linear layers: ``forms``, on ``tangents``), by ``directing``.
"""
