"""Deviations whose columns are spread over the ranks of a process group: each has S x k / ranks numbers, none has all.

Sweeps are local. ``columns`` says who has which; ``frame`` makes them orthonormal, by way of ``rows`` where k is small
against S / ranks and of ``panels`` elsewhere; ``together`` keeps ranks in step; ``storage`` is their checkpoints.
"""
