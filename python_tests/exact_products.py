"""Singular values of products of float64 matrices in integer arithmetic and mpmath: the oracle of finite-time spectra.

``python exact_products.py`` makes exact_products.json anew (a quarter of a minute): ln sigma_i of ``maps()``.
"""

import json
import math
import random
from pathlib import Path

import mpmath
import numpy as np

COMMITTED = Path(__file__).with_suffix(".json")
_FACTOR_BITS = 120  # a float64 of at least 2^-67 is exact in these; less is far below the rounding of its matrix


def maps(steps: int = 36480, n: int = 8) -> np.ndarray:
    """I + a drift apart + noise, in multiples of 2^-10: the same matrices [steps, n, n] everywhere."""
    raw = np.frombuffer(random.Random(1).randbytes(2 * steps * n * n), dtype="<i2").reshape(steps, n, n)
    return np.eye(n) + np.diag(np.round(np.linspace(62, -62, n)) / 1024) + np.trunc(raw / 2**15 * 154) / 1024


def product_logs(factors, spread: float) -> list[float]:
    """ln of the singular values, descending, of ... factors[1] factors[0].

    Args:
        factors: float64 matrices [n, n].
        spread: an upper bound of |ln sigma_i|, from which the digits follow.
    """
    bits = int(2 * spread / math.log(2)) + 200
    n = len(factors[0])
    Y = np.array([[(1 << bits) * (i == j) for j in range(n)] for i in range(n)], dtype=object)
    for J in factors:
        Y = np.dot(_integers(J), Y) >> _FACTOR_BITS
    with mpmath.workprec(bits + 100):
        M = mpmath.matrix(n, n)
        for i, j in np.ndindex(n, n):
            M[i, j] = mpmath.ldexp(mpmath.mpf(int(Y[i, j])), -bits)
        values = mpmath.svd_r(M, compute_uv=False)
        return sorted((float(mpmath.log(s)) for s in values), reverse=True)


def _integers(J) -> np.ndarray:
    mantissas, exponents = np.frexp(np.asarray(J, dtype=np.float64))
    whole = (mantissas * 2.0**53).astype(np.int64).astype(object)
    shifts = (exponents + (_FACTOR_BITS - 53)).astype(object)
    shifted = [m << e if e >= 0 else m >> -e for m, e in zip(whole.flat, shifts.flat, strict=True)]
    return np.array(shifted, dtype=object).reshape(J.shape)


def committed() -> list[float]:
    """ln sigma_i of the product of ``maps()``."""
    return json.loads(COMMITTED.read_text())["logs"]


if __name__ == "__main__":
    COMMITTED.write_text(json.dumps({"steps": 36480, "logs": product_logs(maps(), 4000)}, indent=1) + "\n")
