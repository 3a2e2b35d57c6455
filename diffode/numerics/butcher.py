"""Explicit Runge-Kutta methods as Butcher tableaux that check their own order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffode.errors import ArgumentError

#: Largest residual of an order condition, whose terms are below 1, that rounding explains.
_ROUNDING = 1e-13
#: A rooted tree is the tuple of the trees that hang on its root.
Tree = tuple["Tree", ...]


@dataclass(frozen=True)
class Butcher:
    """A method y_i = y + h sum_j a_ij k_j, k_i = f(t + c_i h, y_i), y_new = y + h sum_j b_j k_j, with c_i = sum_j a_ij.

    Attributes:
        stages: rows of a, with i numbers in row i; the empty row of the first stage, which is y itself, is left out.
        weights: b, a number for each stage.
        order: order of convergence; all its conditions are checked (Hairer, Norsett, Wanner, II.2, theorem 2.13).
        source: publication of the method.
        error_weights: b minus the weights of an embedded method of the next lower order, or empty. If there is one number
            more than in ``weights``, the last belongs to the slope at the new point.

    Raises:
        ArgumentError: if the shape is not that of an explicit method, or a condition of the order is not met.

    >>> Butcher(((0.5,),), (0.0, 1.0), 2, "the midpoint rule").nodes
    (0.0, 0.5)
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int
    source: str
    error_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "stages", tuple(tuple(map(float, row)) for row in self.stages))
            for name in ("weights", "error_weights"):
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"stages must be rows of numbers, weights and error_weights numbers: {error}") from None
        count = len(self.weights)
        if [len(row) for row in self.stages] != list(range(1, count)):
            raise ArgumentError(
                f"stages must have rows of 1, 2, ... numbers, one row less than weights has numbers, got {self.stages}"
            )
        if isinstance(self.order, bool) or not isinstance(self.order, int) or self.order < 1:
            raise ArgumentError(f"order must be an integer >= 1, got {self.order!r}")
        if not all(map(math.isfinite, itertools.chain(self.weights, self.error_weights, *self.stages))):
            raise ArgumentError(f"stages and weights of {self.source} must be finite")
        for tree in itertools.chain.from_iterable(trees(size) for size in range(1, self.order + 1)):
            missed = self.elementary_weight(tree) - 1 / density(tree)
            if abs(missed) > _ROUNDING:
                raise ArgumentError(
                    f"{self.source} is not of order {self.order}: tree {tree} misses its condition by {missed:.1e}"
                )
        if len(self.error_weights) not in (0, count, count + 1) or abs(math.fsum(self.error_weights)) > _ROUNDING:
            raise ArgumentError(
                f"error_weights of {self.source} must be {count} or {count + 1} numbers that sum to 0, "
                "since both methods are consistent"
            )

    @property
    def nodes(self) -> tuple[float, ...]:
        """c: the place of each stage in the step."""
        return (0.0, *(sum(row) for row in self.stages))

    def elementary_weight(self, tree: Tree) -> float:
        """The method's coefficient of a tree's elementary differential, which is 1/:func:`density` for the flow."""
        count = len(self.weights)
        a = np.zeros((count, count))
        for i, row in enumerate(self.stages, start=1):
            a[i, : len(row)] = row

        def stagewise(of: Tree) -> np.ndarray:
            return math.prod((a @ stagewise(branch) for branch in of), start=np.ones(count))

        return float(np.dot(self.weights, stagewise(tree)))

    def step(self, rate: Callable[[Any, Any], Any], y: Any, t: Any, h: Any) -> Any:
        """y after a step h of dy/dt = rate(y, t), for numbers, arrays and tensors.

        >>> KUTTA.step(lambda y, t: y, 1.0, 0.0, 0.1) - math.exp(0.1) < 1e-7
        True
        """
        slopes = [rate(y, t)]
        for node, row in zip(self.nodes[1:], self.stages, strict=True):
            slopes.append(rate(y + h * combined(row, slopes), t + node * h))
        return y + h * combined(self.weights, slopes)


def combined(weights: Sequence[float], slopes: Sequence[Any]) -> Any:
    """The weighted sum of slopes, without those of weight 0."""
    first, *others = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return sum(others, start=first)


def trees(size: int, most: int | None = None) -> Iterator[Tree]:
    """All rooted trees of ``size`` nodes, each once. Their numbers are 1, 1, 2, 4, 9, 20, ...

    >>> [len(list(trees(size))) for size in range(1, 7)]
    [1, 1, 2, 4, 9, 20]
    """
    return iter(dict.fromkeys(tuple(sorted(branches)) for branches in _forests(size - 1, size - 1)))


def _forests(size: int, largest: int) -> Iterator[tuple[Tree, ...]]:
    """Multisets of trees with ``size`` nodes together, none with more than ``largest``."""
    if size == 0:
        yield ()
    for first in range(min(size, largest), 0, -1):
        for tree in trees(first):
            yield from ((tree, *others) for others in _forests(size - first, first))


def nodes_of(tree: Tree) -> int:
    """Number of nodes of a tree, its root included."""
    return 1 + sum(map(nodes_of, tree))


def density(tree: Tree) -> int:
    """gamma: the product of the sizes of all its subtrees."""
    return nodes_of(tree) * math.prod(map(density, tree))


EULER = Butcher((), (1.0,), 1, "L. Euler 1768")
MIDPOINT = Butcher(((0.5,),), (0.0, 1.0), 2, "Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.1")
HEUN = Butcher(((1.0,),), (0.5, 0.5), 2, "Heun's second-order method, the trapezoidal predictor-corrector")
RALSTON = Butcher(((2 / 3,),), (0.25, 0.75), 2, "A. Ralston, Math. Comp. 16 (1962), 431-437")
KUTTA = Butcher(
    ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, "W. Kutta 1901; Hairer, Norsett, Wanner, II.1"
)
KUTTA_3 = Butcher(((0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3, "W. Kutta 1901; Hairer, Norsett, Wanner, II.1, table 1.1")
BOGACKI_SHAMPINE = Butcher(
    ((1 / 2,), (0.0, 3 / 4)),
    (2 / 9, 1 / 3, 4 / 9),
    3,
    "Bogacki and Shampine, Appl. Math. Lett. 2 (1989)",
    (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
DORMAND_PRINCE = Butcher(
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    5,
    "Dormand and Prince, J. Comput. Appl. Math. 6 (1980)",
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
