"""Finite-time Lyapunov exponents, ln sigma_i(Y_t) / t: the product of all tangent maps as Y = Q diag(e^l) U.

``factors`` multiplies triangular factors in log scales, ``product`` drives them along a run, ``readout`` and ``jacobi``
read singular values to full relative accuracy, ``extremes`` follows the largest and the smallest in between.
"""
