"""FouT: the last window of time in sines and cosines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.hippo.arguments import number_of
from diffode.hippo.measure import Array, Measure


@dataclass(frozen=True)
class FouT(Measure):
    """Fourier memory of the last window, real: a mean, and a cosine and a sine of each whole frequency (arXiv 2206.12037).

    A Fourier series gives (u(t) + u(t - w))/2 at the ends of the window. The closure solves that for u(t - w), which doubles
    the feedback and B of the systems that take it for u(t - w) itself; those don't reconstruct signals that are not periodic.

    Args:
        window: w, in units of time; > 0.
    """

    name: ClassVar[str] = "fout"
    closed: ClassVar[bool] = False
    window: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", number_of(self.window, "window of measure 'fout'", 0.0))

    @override
    def check_order(self, order: int) -> None:
        if order % 2 == 0:
            raise ArgumentError(
                f"order of measure 'fout' must be odd (a mean and pairs of cosine and sine), got {order}; "
                f"take {order - 1 or 1} or {order + 1}"
            )

    @override
    def matrix(self, order: int) -> Array:
        b = _edge(order)
        return np.asarray((self._rotation(order) - 2 * np.outer(b, b)) / self.window)

    @override
    def input(self, order: int) -> Array:
        return 2 * _edge(order) / self.window

    def _rotation(self, order: int) -> Array:
        """Pairs (cosine, sine) that turn once, twice, ... in a window."""
        turning = np.zeros((order, order))
        cosines = np.arange(1, order, 2)
        turning[cosines, cosines + 1] = -math.pi * (cosines + 1)
        turning[cosines + 1, cosines] = math.pi * (cosines + 1)
        return turning

    @override
    def projection_kernel(self, order: int, lag: Array) -> Array:
        return self.dual(order, lag) / self.window

    @override
    def dual(self, order: int, lag: Array) -> Array:
        place = np.asarray(lag) / self.window
        found = np.empty((order, *place.shape))
        found[0] = 1
        angle = 2 * np.pi * np.arange(1, order // 2 + 1).reshape(-1, *(1,) * place.ndim) * place
        found[1::2], found[2::2] = math.sqrt(2) * np.cos(angle), math.sqrt(2) * np.sin(angle)
        return found * ((place >= 0) & (place <= 1))

    @override
    def reach(self, order: int) -> float:
        return self.window

    @override
    def of_exponential(self, order: int, mu: complex, now: float) -> Array:
        # The integrals of e^{-z x} with e^{2 pi i m x} over [0, 1]; z = mu w may be near one of the frequencies.
        z = complex(mu) * self.window
        m = np.arange(order // 2 + 1)
        up, down = (_mean_of_exponential(sign * 2j * np.pi * m - z) for sign in (1, -1))
        found = np.empty(order, complex)
        found[0] = up[0]
        found[1::2] = (up[1:] + down[1:]) / math.sqrt(2)
        found[2::2] = (up[1:] - down[1:]) / (1j * math.sqrt(2))
        return np.asarray(np.exp(mu * now) * found)

    @override
    def normal_form(self, order: int) -> tuple[Array, Array]:
        return self._rotation(order) / self.window, _edge(order)[:, None] * math.sqrt(2 / self.window)


def _edge(order: int) -> Array:
    """The values of the basis functions at the ends of the window."""
    found = np.zeros(order)
    found[0] = 1
    found[1::2] = math.sqrt(2)
    return found


def _mean_of_exponential(z: Array) -> Array:
    """(e^z - 1)/z, the integral of e^{zx} over [0, 1]."""
    safe = np.where(z == 0, 1, z)
    # expm1 of a complex number: NumPy's keeps the digits near 0.
    return np.where(z == 0, 1, np.expm1(safe) / safe)
