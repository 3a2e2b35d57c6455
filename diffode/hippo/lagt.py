"""LagT: all the past with a weight that decays, in Laguerre functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import linalg, special
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.hippo.arguments import number_of
from diffode.hippo.measure import Array, Measure, bounded
from diffode.hippo.polynomials import gauss, laguerre

#: Largest alpha; the functions of larger ones leave float64.
_MOST_ALPHA = 100.0
#: Decays over which the kernel and its polynomials are integrated in one piece.
_PIECE = 4.0
#: Numbers of the kernel that are held at once.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class LagT(Measure):
    """Generalised Laguerre memory: K_n(x) = e^{-(1+beta)x/2} L_n^(alpha)(x), x in units of the scale (arXiv 2008.07669).

    alpha = 0, beta = 0 are the orthonormal Laguerre functions, the best conditioned; beta = 1 is the weight e^{-x}. Without
    closure.

    Args:
        alpha: > -1.
        beta: > -1; the kernel decays as e^{-(1+beta)x/2}, and what is reconstructed from it grows the more for that.
        scale: the unit of the lag, in time; > 0.
    """

    name: ClassVar[str] = "lagt"
    alpha: float = 0.0
    beta: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        for key, above in (("alpha", -1.0), ("beta", -1.0), ("scale", 0.0)):
            object.__setattr__(self, key, number_of(getattr(self, key), f"{key} of measure 'lagt'", above))
        if self.alpha > _MOST_ALPHA:
            raise ArgumentError(f"alpha of measure 'lagt' must be at most {_MOST_ALPHA:g}, got {self.alpha:g}")

    @property
    def rate(self) -> float:
        """The rate of decay in units of the scale, (1 + beta)/2."""
        return (1 + self.beta) / 2

    @property
    @override
    def window(self) -> float:
        return math.inf

    @override
    def matrix(self, order: int) -> Array:
        return (-self.rate * np.eye(order) - np.tri(order, k=-1)) / self.scale

    @override
    def input(self, order: int) -> Array:
        return self._binomials(order) / self.scale

    def _binomials(self, order: int) -> Array:
        """binom(alpha + n, n) for n < N."""
        n = np.arange(1, order)
        return np.cumprod(np.concatenate(([1.0], (self.alpha + n) / n)))

    @override
    def kernel(self, order: int, lag: Array) -> Array:
        return self.projection_kernel(order, lag)

    @override
    def projection_kernel(self, order: int, lag: Array) -> Array:
        return laguerre(order, self.alpha, self.rate, np.asarray(lag) / self.scale) / self.scale

    @override
    def dual(self, order: int, lag: Array) -> Array:
        x = np.asarray(lag) / self.scale
        n = np.arange(order).reshape(-1, *(1,) * x.ndim)
        weight = special.gamma(self.alpha + 1) * self._binomials(order).reshape(n.shape)
        with np.errstate(all="ignore"):
            values = laguerre(order, self.alpha, (1 - self.beta) / 2, x) / weight
            return bounded(values * x**self.alpha if self.alpha else values, "the reconstruction of measure 'lagt'")

    @override
    def reach(self, order: int) -> float:
        # The last zero of L_n lies below 4n + 2 alpha + 2; then the exponential takes over.
        return self.scale * (4 * order + 2 * abs(self.alpha) + 80 / min(self.rate, 1.0))

    @override
    def propagator(self, order: int, step: float) -> Array:
        column = laguerre(order, -1.0, self.rate, step / self.scale)
        return np.asarray(linalg.toeplitz(column, np.zeros(order)))

    @override
    def cell(self, order: int, step: float, degree: int) -> tuple[Array, Array]:
        # G_i = int_0^h K(x) (1 - x/h)^i dx over pieces, in each of which Gauss nodes are exact to rounding: the phase of the
        # kernel grows as 2 sqrt(N x). What lies beyond its reach is nothing.
        end = min(step, self.reach(order))
        pieces = max(1, math.ceil(end / self.scale * max(self.rate, 1.0) / _PIECE))
        x, w = gauss(min((order + degree) // 2 + 12, 4 * math.isqrt(order) + degree + 32))
        powers = np.arange(degree + 1)
        found = np.zeros((order, degree + 1))
        many = max(1, _AT_ONCE // (order * len(x)))
        for k in range(0, pieces, many):
            lag = (end * (np.arange(k, min(k + many, pieces))[:, None] + x) / pieces).ravel()
            weights = np.tile(w * end / pieces, len(lag) // len(x))
            place = (1 - lag / step if step else lag)[:, None] ** powers
            found += (self.projection_kernel(order, lag) * weights) @ place
        return self.propagator(order, step), found

    @override
    def transfer(self, order: int, s: Array) -> Array:
        s = np.asarray(s, dtype=complex) * self.scale + self.rate
        b = self._binomials(order)
        found = np.empty((order, *s.shape), complex)
        found[0] = 1 / s
        for n in range(1, order):
            found[n] = ((s - 1) * found[n - 1] + (b[n] - b[n - 1])) / s
        return found

    @override
    def of_exponential(self, order: int, mu: complex, now: float) -> Array:
        if not complex(mu).real * self.scale > -self.rate:
            raise ArgumentError(
                f"mu of measure 'lagt' must have a real part above {-self.rate / self.scale:g}, since the past of e^(mu s) "
                f"outgrows the kernel; got {mu}"
            )
        return np.asarray(np.exp(mu * now) * self.transfer(order, np.asarray(mu)))

    @override
    def normal_form(self, order: int) -> tuple[Array, Array]:
        half = np.tri(order, k=-1) / 2
        normal = (half.T - half - (self.beta / 2) * np.eye(order)) / self.scale
        return normal, np.full((order, 1), math.sqrt(0.5 / self.scale))

    @override
    def applied(self, order: int, vectors: Array) -> Array:
        return np.asarray(((1 - self.rate) * vectors - np.cumsum(vectors, axis=0)) / self.scale)

    @override
    def solved(self, order: int, factor: float, vectors: Array) -> Array:
        # S_n = sum_{k<=n} z_k obeys S_n = (d - f)/d S_{n-1} + v_n/d, d = 1 + f rate, f = factor/scale.
        f = factor / self.scale
        d = 1 + f * self.rate
        band = np.ones((2, order))
        band[1, :-1] = -(d - f) / d
        sums, _ = linalg.lapack.dtbtrs(band, vectors.reshape(order, -1) / d, uplo="L")
        found = np.diff(sums, axis=0, prepend=0.0)
        return np.asarray(found.reshape(vectors.shape))

    @override
    def eigenvalues(self, order: int) -> Array:
        return np.full(order, -self.rate / self.scale, dtype=complex)
