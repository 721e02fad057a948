"""Formulas of elementwise functions: z -> (phi, phi', phi'') for ``Elementwise``.

At a kink, phi' is what torch's backward takes there and phi'' is 0. Hardsigmoid's slope is 1/6 also in float64, where
torch's backward takes 1/6 rounded to float32, which is not the derivative of its own forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn import functional as F

from .elementwise import Derivatives, Elementwise


def _hardsigmoid(z: Tensor) -> Derivatives:
    inside = ((z > -3) & (z < 3)).to(z.dtype)
    return F.hardsigmoid(z), inside / 6, None


def _hardswish(z: Tensor) -> Derivatives:
    inside = ((z > -3) & (z < 3)).to(z.dtype)
    slope = torch.where(z < 3, inside * (z / 3 + 0.5), 1.0)
    return F.hardswish(z), slope, inside / 3


def _mish(z: Tensor) -> Derivatives:
    """z t with t = tanh(log(1 + e^z)) = w / (w + 2), w = e^z (e^z + 2); of e^-|z|, never by subtraction from 1."""
    low, e = z < 0, torch.exp(-z.abs())
    # (w + 2), t, w'/(w + 2) and w''/w' with w' = 2 e^z (e^z + 1); above 0 both sides of each quotient times e^-2z.
    whole = torch.where(low, 2 + 2 * e + e.square(), 1 + 2 * e + 2 * e.square())
    t = torch.where(low, e * (e + 2), 1 + 2 * e) / whole
    slope = torch.where(low, 2 * e * (1 + e), 2 * (1 + e)) / whole
    dt = slope * torch.where(low, 2.0, 2 * e.square()) / whole
    bend = torch.where(low, 1 + 2 * e, 2 + e) / (1 + e) - 2 * slope
    return F.mish(z), t + z * dt, dt * (2 + z * bend)


def _logsigmoid(z: Tensor) -> Derivatives:
    down = torch.sigmoid(-z)
    return F.logsigmoid(z), down, -down * torch.sigmoid(z)


def _softsign(z: Tensor) -> Derivatives:
    r = 1 / (1 + z.abs())
    return z * r, r.square(), -2 * z.sign() * r.pow(3)


def _tanhshrink(z: Tensor) -> Derivatives:
    t, sech = torch.tanh(z), 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z)  # its square
    return z - t, t.square(), 2 * t * sech


def _linear_pieces(function: Callable[..., Tensor]) -> Callable[..., Derivatives]:
    """A piecewise linear function, its slope as torch takes it."""

    def phi(z: Tensor, **settings: object) -> Derivatives:
        a, back, *_ = vjp(partial(function, **settings), z)
        return a, back(torch.ones_like(a))[0], None

    return phi


def _exp(z: Tensor) -> Derivatives:
    e = z.exp()
    return e, e, e


def _expm1(z: Tensor) -> Derivatives:
    e = z.exp()
    return z.expm1(), e, e


def _log(z: Tensor) -> Derivatives:
    r = 1 / z
    return z.log(), r, -r.square()


def _log1p(z: Tensor) -> Derivatives:
    r = 1 / (1 + z)
    return z.log1p(), r, -r.square()


def _sin(z: Tensor) -> Derivatives:
    s = z.sin()
    return s, z.cos(), -s


def _cos(z: Tensor) -> Derivatives:
    c = z.cos()
    return c, -z.sin(), -c


def _erf(z: Tensor) -> Derivatives:
    d1 = (2 / math.sqrt(math.pi)) * (-z.square()).exp()
    return z.erf(), d1, -2 * z * d1


def _square(z: Tensor) -> Derivatives:
    return z.square(), 2 * z, torch.full_like(z, 2.0)


def _sqrt(z: Tensor) -> Derivatives:
    root = z.sqrt()
    return root, 0.5 / root, -0.25 / (z * root)


def _rsqrt(z: Tensor) -> Derivatives:
    r = z.rsqrt()
    return r, -0.5 * r.pow(3), 0.75 * r.pow(5)


def _reciprocal(z: Tensor) -> Derivatives:
    r = z.reciprocal()
    return r, -r.square(), 2 * r.pow(3)


def _power(z: Tensor, exponent: float) -> Derivatives:
    """A coefficient of 0 makes 0 of 0 * inf, as in z^1 at z = 0."""

    def times(factor: float, power: float) -> Tensor:
        return factor * z.pow(power) if factor else torch.zeros_like(z)

    return z.pow(exponent), times(exponent, exponent - 1), times(exponent * (exponent - 1), exponent - 2)


def _of(phi: Callable[..., Derivatives]) -> Callable[..., Elementwise]:
    """The maker of a function's rule from its settings."""
    return lambda **settings: Elementwise(partial(phi, **settings))


hardsigmoid, hardswish, mish, logsigmoid = _of(_hardsigmoid), _of(_hardswish), _of(_mish), _of(_logsigmoid)
softsign, tanhshrink, power = _of(_softsign), _of(_tanhshrink), _of(_power)
hardshrink, softshrink = (_of(_linear_pieces(f)) for f in (F.hardshrink, F.softshrink))
threshold, clamp, absolute = (_of(_linear_pieces(f)) for f in (F.threshold, torch.clamp, torch.abs))
exp, expm1, log, log1p, sin, cos, erf = _of(_exp), _of(_expm1), _of(_log), _of(_log1p), _of(_sin), _of(_cos), _of(_erf)
square, sqrt, rsqrt, reciprocal = _of(_square), _of(_sqrt), _of(_rsqrt), _of(_reciprocal)
