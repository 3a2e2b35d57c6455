"""LegS: all the past since time 0, each part of it alike; a memory in the clock ln t."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import lapack
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.hippo.measure import Array, Measure, sorted_eigenvalues
from diffode.hippo.polynomials import gauss, legendre, legendre_of_exponential, norms, signs

#: Number of Gauss nodes of a part that is so short that N^2 times its relative length is at most 1, for a constant input.
_NODES_OF_SHORT_PARTS = 10
#: Bytes of the values of polynomials that are held at once.
_AT_ONCE = 2**25


@dataclass(frozen=True)
class LegS(Measure):
    """Scaled Legendre memory: c_n = int_0^1 phi_n(r) u(r t) dr, all the past since time 0 alike (Gu et al., arXiv 2008.07669).

    It has no option and no unit of time: c(t) depends on the ratios of times alone. Without closure; its propagator is a
    projection, M(r) = r int phi(r x) phi(x)^T dx for r = t/t', which Gauss nodes give exactly.
    """

    name: ClassVar[str] = "legs"
    logarithmic: ClassVar[bool] = True

    @property
    @override
    def window(self) -> float:
        return np.inf

    @override
    def matrix(self, order: int) -> Array:
        q = norms(order)
        return np.asarray(np.diag(np.arange(order, dtype=float)) - np.tril(np.outer(q, q)))

    @override
    def input(self, order: int) -> Array:
        return norms(order).copy()

    @override
    def kernel(self, order: int, lag: Array) -> Array:
        return self.projection_kernel(order, lag)

    @override
    def projection_kernel(self, order: int, lag: Array) -> Array:
        r = np.exp(-np.asarray(lag))
        return np.asarray(r * legendre(order, r))

    @override
    def dual(self, order: int, lag: Array) -> Array:
        return legendre(order, np.exp(-np.asarray(lag)))

    @override
    def reach(self, order: int) -> float:
        return 80.0

    @override
    def propagator(self, order: int, step: float) -> Array:
        return np.asarray(self._propagators(order, np.array([step]))[0])

    def _propagators(self, order: int, steps: Array) -> Array:
        """The matrices M(r), (steps, N, N)."""
        x, w = gauss(order)
        there = legendre(order, x)
        found = np.empty((len(steps), order, order))
        many = max(1, _AT_ONCE // (8 * order * order))
        for k in range(0, len(steps), many):
            r = steps[k : k + many, None]
            # The rounding of nodes and weights shows in what a step of no length does, and is taken off.
            change = (legendre(order, r * x) - there[:, None]).transpose(1, 0, 2)
            found[k : k + many] = np.tril(r[..., None] * ((change * w) @ there.T), -1)
        found[:, np.arange(order), np.arange(order)] = steps[:, None] ** np.arange(1.0, order + 1)
        return found

    @override
    def cell(self, order: int, step: float, degree: int) -> tuple[Array, Array]:
        moved, inputs = self.cells(order, np.array([step]), degree)
        return moved[0], inputs[0]

    @override
    def cells(self, order: int, steps: Array, degree: int) -> tuple[Array, Array]:
        return self._propagators(order, steps), parts(order, steps, 1 - steps, degree)

    @override
    def walked(self, steps: Array, a: Array, state: Array) -> Iterator[Array]:
        order, degree = state.shape[1], a.shape[2] - 1
        x, w = gauss(order)
        there = legendre(order, x)
        out = there * w
        many = max(1, _AT_ONCE // (8 * order * order))
        for k in range(0, len(steps), many):
            r = steps[k : k + many]
            inputs = parts(order, r, 1 - r, degree)
            # The reconstruction is projected anew on the longer interval, less what its projection on the old one gives: so
            # the rounding of nodes and weights does not add up.
            change = np.ascontiguousarray((r[:, None] * legendre(order, r[:, None] * x) - there[:, None]).transpose(1, 0, 2))
            for i, own in enumerate(a[k : k + many]):
                state = state + (state @ out) @ change[i].T + own @ inputs[i].T
                yield state

    @override
    def transfer(self, order: int, s: Array) -> Array:
        s = np.asarray(s, dtype=complex)
        found = np.empty((order, *s.shape), complex)
        chain = 1 / (s + 1)
        for n in range(order):
            found[n] = norms(order)[n] * chain
            chain = chain * (s - n) / (s + n + 2)
        return found

    @override
    def of_exponential(self, order: int, mu: complex, now: float) -> Array:
        return legendre_of_exponential(order, mu * now)

    def of_power(self, order: int, power: float, now: float) -> Array:
        """The coefficients at time ``now`` of s^p, p > -1/2: sqrt(2n+1) t^p prod_{j<n} (p-j) / prod_{j<=n} (p+j+1)."""
        n = np.arange(order)
        factors = np.concatenate(([1 / (power + 1)], (power - n[:-1]) / (power + n[:-1] + 2)))
        return np.asarray(norms(order) * np.cumprod(factors) * np.float64(now) ** power)

    @override
    def normal_form(self, order: int) -> tuple[Array, Array]:
        p = np.sqrt(np.arange(order) + 0.5)
        half = np.tril(np.outer(p, p), -1)
        return half.T - half - np.eye(order) / 2, p[:, None]

    @override
    def applied(self, order: int, vectors: Array) -> Array:
        q, n = (along(values, vectors) for values in (norms(order), np.arange(order)))
        return np.asarray(n * vectors - q * np.cumsum(q * vectors, axis=0))

    @override
    def solved(self, order: int, factor: float, vectors: Array) -> Array:
        # The sums S_n = sum_{k<=n} q_k z_k obey one recurrence: a bidiagonal system.
        q, n = norms(order), np.arange(order)
        diagonal = 1 + factor * (n + 1)
        if not diagonal.all():
            raise ArgumentError(f"a step of {factor:g} makes the matrix of the step singular; take another step")
        sides = (vectors.reshape(order, -1).T * (q / diagonal)).T
        band = np.ones((2, order))
        band[1, :-1] = -(1 - factor * n[1:]) / diagonal[1:]
        sums, _ = lapack.dtbtrs(band, sides, uplo="L")
        before = np.concatenate((np.zeros_like(sums[:1]), sums[:-1]))
        found = (vectors.reshape(order, -1) - factor * q[:, None] * before) / diagonal[:, None]
        return np.asarray(found.reshape(vectors.shape))

    @override
    def eigenvalues(self, order: int) -> Array:
        return sorted_eigenvalues(-1.0 - np.arange(order))


def parts(order: int, low: Array, width: Array, degree: int) -> Array:
    """The integrals of phi_n(low + width x) x^i over x from 0 to 1, times the width: (cells, N, degree + 1).

    They are exact; in parts as short as 1/N^2 to rounding, with fewer nodes.
    """
    nodes = (order + degree) // 2 + 1
    if width.max(initial=0.0) * order**2 <= 1:
        nodes = min(nodes, _NODES_OF_SHORT_PARTS + degree // 2)
    x, w = gauss(nodes)
    weights = w[:, None] * x[:, None] ** np.arange(degree + 1)
    found = np.empty((len(low), order, degree + 1))
    many = max(1, _AT_ONCE // (8 * order * nodes))
    for k in range(0, len(low), many):
        values = legendre(order, low[k : k + many, None] + width[k : k + many, None] * x)
        found[k : k + many] = (values @ weights).transpose(1, 0, 2) * width[k : k + many, None, None]
    return found


def joined(order: int, ratios: Array, early: Array, late: Array) -> Array:
    """The memories of histories that follow each other: the early one up to r t, the late one from there to t.

    This is the associative law of the memory. Each costs N^2, and no product of matrices.

    Args:
        order: N.
        ratios: r, (n,), from 0 to 1.
        early: coefficients on [0, r t], (n, channels, N).
        late: coefficients on [r t, t], of functions phi_n of the place there, likewise.
    """
    x, w = gauss(order)
    values = legendre(order, x)
    found = np.zeros_like(early)
    many = max(1, _AT_ONCE // (8 * order * order))
    for k in range(0, len(ratios), many):
        r = ratios[k : k + many, None]
        for width, there, own in ((r, legendre(order, r * x), early), (1 - r, legendre(order, r + (1 - r) * x), late)):
            # The function of each part at its nodes, projected on the whole.
            held = (own[k : k + many] @ values) * w
            found[k : k + many] += width[..., None] * (held @ there.transpose(1, 2, 0))
    return found


def join(order: int, ratio: float) -> tuple[Array, Array]:
    """The matrices that :func:`joined` applies at one ratio, to the early and to the late coefficients: (N, N) each."""
    early, late = (LegS().propagator(order, r) for r in (ratio, 1 - ratio))
    return early, signs(order)[:, None] * late * signs(order)


def along(values: Array, vectors: Array) -> Array:
    """Numbers for the first axis of an array, shaped to be multiplied with it."""
    return values.reshape(-1, *(1,) * (vectors.ndim - 1))
