"""LegT: the last window of time, each part of it alike."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import mpmath
import numpy as np
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.hippo.arguments import number_of
from diffode.hippo.measure import Array, Measure, sorted_eigenvalues
from diffode.hippo.polynomials import legendre, legendre_of_exponential, norms, signs

#: Largest order whose eigenvalues float64 gives to many digits.
_EXACT_IN_FLOAT64 = 16
#: Largest order whose eigenvalues are computed, which takes minutes there.
_MOST_EIGENVALUES = 256
#: Bits of the numbers that find the eigenvalues: so many, and so many more for each of the order.
_BITS = (80, 5)
#: Most steps that these need; about ten are usual.
_MOST_STEPS = 100
#: Relative size of the last step.
_LAST_STEP = 1e-20


@dataclass(frozen=True)
class LegT(Measure):
    """Translated Legendre memory, the LMU's: c_n ~ (1/w) int_0^w phi_n(1 - x/w) u(t - x) dx (Gu et al., arXiv 2008.07669).

    What leaves the window, u(t - w), is taken from the memory itself. The transfer function from u to that estimate is the
    [N-1/N] Pade approximant of e^{-ws}.

    Args:
        window: w, in units of time; > 0.
    """

    name: ClassVar[str] = "legt"
    closed: ClassVar[bool] = False
    window: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", number_of(self.window, "window of measure 'legt'", 0.0))

    @override
    def matrix(self, order: int) -> Array:
        q, n = norms(order), np.arange(order)
        above = signs(order)[:, None] * signs(order)
        return np.asarray(-np.outer(q, q) * np.where(n[:, None] > n, 1.0, above) / self.window)

    @override
    def input(self, order: int) -> Array:
        return norms(order) / self.window

    @override
    def projection_kernel(self, order: int, lag: Array) -> Array:
        return self.dual(order, lag) / self.window

    @override
    def dual(self, order: int, lag: Array) -> Array:
        place = 1 - np.asarray(lag) / self.window
        return legendre(order, place.clip(0, 1)) * ((place >= 0) & (place <= 1))

    @override
    def reach(self, order: int) -> float:
        return self.window

    @override
    def of_exponential(self, order: int, mu: complex, now: float) -> Array:
        return np.asarray(np.exp(mu * (now - self.window)) * legendre_of_exponential(order, mu * self.window))

    @override
    def normal_form(self, order: int) -> tuple[Array, Array]:
        q, odd = norms(order), np.arange(order) % 2
        factor = np.stack([q * (1 - odd), q * odd], axis=1) / math.sqrt(self.window)
        # Entries of one parity cancel exactly; those of two are alike but for the sign above the diagonal.
        n = np.arange(order)
        sides = np.where((n[:, None] + n) % 2 == 0, 0.0, np.sign(n - n[:, None]))
        return np.outer(q, q) * sides / self.window, factor

    @override
    def eigenvalues(self, order: int) -> Array:
        return sorted_eigenvalues(_poles(order) / self.window)


@functools.lru_cache(maxsize=16)
def _poles(order: int) -> Array:
    """The poles of the [N-1/N] Pade approximant of e^{-s}, which are the eigenvalues for window 1.

    The matrix is so far from normal that its eigenvalues in float64 are rounding from order 64 on: the roots of the
    approximant's denominator are found in more digits instead, by Aberth's method.
    """
    if order > _MOST_EIGENVALUES:
        raise ArgumentError(
            f"eigenvalues of measure 'legt' need numbers of many digits: order must be at most {_MOST_EIGENVALUES}, got {order}"
        )
    if order <= _EXACT_IN_FLOAT64:
        start = np.linalg.eigvals(LegT().matrix(order))
    else:
        start = _stretched(_poles(max(_EXACT_IN_FLOAT64, order // 2)), order)
    with mpmath.workprec(_BITS[0] + _BITS[1] * order):
        # Coefficients of s^j, each from the one before.
        coefficients = [mpmath.mpf(1)]
        for j in range(order):
            coefficients.append(coefficients[-1] * (order - j) / ((2 * order - 1 - j) * (j + 1)))
        roots = [mpmath.mpc(value) for value in start if value.imag > -1e-9]
        for _ in range(_MOST_STEPS):
            largest = 0.0
            for i, root in enumerate(roots):
                value, slope = mpmath.polyval(coefficients[::-1], root, derivative=True)
                newton = value / slope
                # Of every pair of conjugate roots one is followed.
                others = [r for j, r in enumerate(roots) if j != i] + [r.conjugate() for r in roots if abs(r.imag) > 1e-9]
                step = newton / (1 - newton * mpmath.fsum(1 / (root - other) for other in others))
                roots[i] = root - step
                largest = max(largest, float(abs(step / root)))
            if largest < _LAST_STEP:
                break
    found = np.array([complex(r) for r in roots])
    poles = np.concatenate([found, found[np.abs(found.imag) > 1e-9].conj()])
    poles.setflags(write=False)
    return poles


def _stretched(poles: Array, order: int) -> Array:
    """A guess at the poles of an order from those of another: the curve on which they lie grows with the order."""
    known = poles[np.argsort(poles.imag)]
    place = (np.arange(len(known)) + 0.5) / len(known)
    wanted = (np.arange(order) + 0.5) / order
    grown = known * order / len(known)
    guess = np.interp(wanted, place, grown.real) + 1j * np.interp(wanted, place, grown.imag)
    # The curve is symmetric, and the middle one of an odd number is real.
    return np.asarray((guess + guess[::-1].conj()) / 2)
