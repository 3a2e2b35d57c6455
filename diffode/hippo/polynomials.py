"""Orthonormal Legendre polynomials, Laguerre functions, Gauss nodes and spherical Bessel functions, as memories need them."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray[Any, Any]

#: Size beyond which the recurrence of Laguerre functions takes a factor out, so that it neither overflows nor underflows.
_LARGE = 1e100


def legendre(count: int, r: Any) -> Array:
    r"""The polynomials :math:`\varphi_n(r) = \sqrt{2n+1} P_n(2r - 1)`, n < count, orthonormal on [0, 1]: (count, \*r.shape).

    >>> legendre(3, 1.0).round(12).tolist() == [1.0, round(3**0.5, 12), round(5**0.5, 12)]
    True
    """
    x = 2 * np.asarray(r, dtype=np.float64) - 1
    values = np.empty((count, *x.shape))
    values[0] = 1
    if count > 1:
        values[1] = x
    for n in range(1, count - 1):
        # P_{n+1} = x P_n + n/(n+1) (x P_n - P_{n-1}).
        rise = x * values[n]
        values[n + 1] = rise + (n / (n + 1)) * (rise - values[n - 1])
    values *= norms(count).reshape(-1, *(1,) * x.ndim)
    return values


@functools.lru_cache(maxsize=64)
def norms(count: int) -> Array:
    """sqrt(2n + 1) for n < count."""
    return _kept(np.sqrt(2 * np.arange(count) + 1.0))


@functools.lru_cache(maxsize=64)
def signs(count: int) -> Array:
    """(-1)^n for n < count."""
    return _kept((-1.0) ** np.arange(count))


@functools.lru_cache(maxsize=64)
def gauss(count: int) -> tuple[Array, Array]:
    """Nodes and weights of Gauss quadrature on [0, 1], exact for polynomials of degree 2 count - 1."""
    x, w = special.roots_legendre(count)
    return _kept((x + 1) / 2), _kept(w / 2)


def laguerre(count: int, alpha: float, rate: float, x: Any) -> Array:
    r"""The functions :math:`e^{-\mathrm{rate}\,x} L_n^{(\alpha)}(x)`, n < count, for x >= 0: (count, \*x.shape).

    Powers of e are kept apart where the exponential alone would underflow.

    >>> laguerre(2, 0.0, 0.5, 0.0).tolist()
    [1.0, 1.0]
    """
    x = np.asarray(x, dtype=np.float64)
    values = np.empty((count, *x.shape))
    exponent = -rate * x
    before, now = np.zeros_like(x), np.ones_like(x)
    for n in range(count):
        with np.errstate(under="ignore", over="ignore", invalid="ignore"):
            values[n] = now * np.exp(exponent)
            before, now = now, ((2 * n + 1 + alpha - x) * now - (n + alpha) * before) / (n + 1)
        large = np.abs(now) > _LARGE
        if large.any():
            shrink = np.where(large, 1 / _LARGE, 1.0)
            before, now = before * shrink, now * shrink
            exponent = exponent + np.where(large, math.log(_LARGE), 0.0)
    return values


def legendre_of_exponential(count: int, z: Any) -> Array:
    r"""The integrals of :math:`\varphi_n(r) e^{zr}` over [0, 1], for complex z: (count, \*z.shape).

    They are sqrt(2n+1) e^{z/2} i_n(z/2), with the modified spherical Bessel functions i_n.
    """
    z = np.asarray(z, dtype=np.complex128)
    # The half plane Re z >= 0 serves both: reflecting r gives (-1)^n e^z times the integral for -z.
    left = z.real < 0
    half = np.where(left, -z, z) / 2
    order = np.arange(count).reshape(-1, *(1,) * z.ndim)
    with np.errstate(all="ignore"):
        # The scaled function lacks the factor e^{|Re|}, and Re half >= 0 here.
        bessel = np.sqrt(np.pi / (2 * half)) * special.ive(order + 0.5, half)
        bessel = np.where(half == 0, order == 0, bessel)
        growth = z.real.clip(min=0) + 1j * z.imag / 2
        values = norms(count).reshape(order.shape) * bessel * np.exp(growth)
    return np.asarray(np.where(left, signs(count).reshape(order.shape) * values, values))


def _kept(values: Array) -> Array:
    """The array, protected: it is shared by all who ask."""
    values.setflags(write=False)
    return values
