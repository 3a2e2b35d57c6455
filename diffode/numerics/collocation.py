"""Collocation methods: implicit Runge-Kutta methods that are given by their nodes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from diffode.errors import ArgumentError
from diffode.numerics.polynomials import lagrange

#: Largest residual of a quadrature condition that rounding explains.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Collocation:
    """The method whose polynomial of degree s meets y' = f(t, y) at s nodes of the step.

    a_ij is the integral of the j-th Lagrange polynomial from 0 to c_i, b_j that from 0 to 1 (Hairer, Norsett, Wanner, II.7,
    theorem 7.7).

    Attributes:
        nodes: c, increasing, in [0, 1].
    """

    nodes: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.nodes or list(self.nodes) != sorted(set(self.nodes)) or not 0 <= self.nodes[0] <= self.nodes[-1] <= 1:
            raise ArgumentError(f"nodes must increase between 0 and 1, got {self.nodes}")

    @functools.cached_property
    def stages(self) -> list[list[float]]:
        """a, (s, s)."""
        return [self._integrals(node) for node in self.nodes]

    @functools.cached_property
    def weights(self) -> list[float]:
        """b, (s,)."""
        return self._integrals(1.0)

    @functools.cached_property
    def ends(self) -> list[float]:
        """d = b a^-1, with which y_new = y + sum d_i (y_i - y), for a whose first node is not 0.

        >>> [round(d, 6) for d in radau(2).ends]
        [0.0, 1.0]
        """
        return [float(d) for d in np.linalg.solve(np.array(self.stages).T, np.array(self.weights))]

    @property
    def order(self) -> int:
        """The number of powers 1, t, t^2, ... that b integrates exactly, which is the order of convergence (theorem 7.9).

        >>> gauss(2).order, radau(2).order, radau(1).weights
        (4, 3, [1.0])
        """
        order = 0
        while order < 2 * len(self.nodes):
            missed = math.fsum(b * c**order for b, c in zip(self.weights, self.nodes, strict=True)) - 1 / (order + 1)
            if abs(missed) > _ROUNDING:
                break
            order += 1
        return order

    def _integrals(self, end: float) -> list[float]:
        return [float(np.polynomial.polynomial.polyval(end, np.polynomial.polynomial.polyint(c))) for c in lagrange(self.nodes)]


@functools.cache
def gauss(stages: int) -> Collocation:
    """Gauss-Legendre nodes: order 2 s; one stage is the implicit midpoint rule.

    >>> [round(c, 4) for c in gauss(2).nodes]
    [0.2113, 0.7887]
    """
    nodes, _ = np.polynomial.legendre.leggauss(stages)
    return Collocation(tuple(((1 + nodes) / 2).tolist()))


@functools.cache
def radau(stages: int) -> Collocation:
    """Radau IIA nodes, whose last is 1: order 2 s - 1, L-stable; one stage is the backward Euler method.

    The nodes are the zeros of P_s - P_(s-1), the Legendre polynomials in 2 c - 1 (Hairer and Wanner, IV.5).

    >>> [round(c, 4) for c in radau(2).nodes]
    [0.3333, 1.0]
    """
    difference = np.zeros(stages + 1)
    difference[stages], difference[stages - 1] = 1.0, -1.0
    zeros = np.sort(np.polynomial.legendre.legroots(difference).real)
    return Collocation((*((1 + zeros[:-1]) / 2).tolist(), 1.0))
