r"""The functions :math:`\varphi_k` of exponential integrators."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from typing import Any

from torch import Tensor

#: n! as floats, computed once, since most of the time of writing a table goes into phi.
_FACTORIALS = [float(math.factorial(n)) for n in range(40)]
#: Number of terms of the Taylor series for |z| < 1; the first that is left out is below 1/20!.
_TERMS = 20
#: The exponents of its powers, as the floats that ``**`` makes of them, and the factorials below these for each k.
_EXPONENTS = [float(j) for j in range(_TERMS)]
_DIVISORS = [_FACTORIALS[k : k + _TERMS] for k in range(len(_FACTORIALS) - _TERMS + 1)]


def phi(k: int, z: Any) -> Any:
    r""":math:`\varphi_k(z) = (e^z - \sum_{j<k} z^j/j!)/z^k`, to full precision for every real z (a float or a tensor).

    The recursion :math:`\varphi_{k+1} = (\varphi_k - 1/k!)/z` loses about k digits' worth of 1/|z| near zero, where the
    Taylor series is used instead.

    >>> phi(1, 0.0), phi(2, 0.0)
    (1.0, 0.5)
    """
    if isinstance(z, Tensor):
        return _of_tensor(k, z)
    return _of_number(k, z)


# Rows of a step, such as a predictor and its corrector, ask for the same ones.
@functools.lru_cache(maxsize=256, typed=True)
def _of_number(k: int, z: float) -> float:
    if k == 0:
        return math.exp(z)
    if abs(z) < 1:
        powers = map(operator.pow, itertools.repeat(z, _TERMS), _EXPONENTS)
        return math.fsum(map(operator.truediv, powers, _DIVISORS[k]))
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / _FACTORIALS[j]) / z
    return value


def _of_tensor(k: int, z: Tensor) -> Any:
    if k == 0:
        return z.exp()
    near = sum(z**j * (1 / _FACTORIALS[j + k]) for j in range(_TERMS))
    far = z.where(z.abs() >= 1, z.new_ones(()))
    value = far.expm1() / far
    for j in range(1, k):
        value = (value - 1 / _FACTORIALS[j]) / far
    return value.where(z.abs() >= 1, near)
