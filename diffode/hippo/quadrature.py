"""The coefficients of any function, by Gauss quadrature on panels that are halved until two answers agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffode.errors import ArgumentError, NumericalError
from diffode.hippo.arguments import numbers_of
from diffode.hippo.polynomials import gauss

Array = np.ndarray[Any, Any]

#: Gauss nodes of a panel.
_NODES = 24
#: Largest number of nodes of all panels.
_MOST_NODES = 2**21
#: Numbers of basis functions at nodes that are held at once.
_AT_ONCE = 2**22
#: Ratio of neighbouring panels towards an end where a function has no derivative.
_GRADING = 4.0


def integrated(
    basis: Callable[[Array], Array], fn: Callable[[Array], Any], edges: Array, tolerance: float, argument: str = "fn"
) -> Array:
    """The integrals of fn(s) basis(s) over panels, (N,) real or complex.

    Args:
        basis: functions (N, n) of points (n,).
        fn: the function, of points (n,) and with answers (n,).
        edges: the ends of the panels, rising.
        tolerance: largest distance of the last two answers, relative to the size of the function.
        argument: the name of the function in messages.

    Raises:
        ArgumentError: if the function's answers are no finite numbers, one for each point.
        NumericalError: if the answers do not come to agree, as for a function with jumps inside panels.
    """
    before = None
    while True:
        found, size = _on_panels(basis, fn, edges, argument)
        gap = np.inf if before is None else float(np.abs(found - before).max(initial=0.0))
        if gap <= tolerance * size:
            return found
        before = found
        middle = (edges[1:] + edges[:-1]) / 2
        if 2 * len(middle) * _NODES > _MOST_NODES or not ((middle > edges[:-1]) & (middle < edges[1:])).all():
            raise NumericalError(
                f"the coefficients of {argument} can't be had to {tolerance:g} of its size, the last two answers differ by "
                f"{gap / max(size, 1e-300):.1e}: give the times at which it jumps or bends as breaks=, or a larger tolerance="
            )
        edges = np.sort(np.concatenate([edges, middle]))


def _on_panels(basis: Callable[[Array], Array], fn: Callable[[Array], Any], edges: Array, argument: str) -> tuple[Array, float]:
    """The integrals, and the integral of the function's size weighed with that of the largest basis function there."""
    x, w = gauss(_NODES)
    total: Array | None = None
    size = 0.0
    width = np.diff(edges)
    part = max(1, _AT_ONCE // (_NODES * max(1, len(basis(edges[:1])))))
    for k in range(0, len(width), part):
        points = (edges[:-1][k : k + part, None] + width[k : k + part, None] * x).ravel()
        weights = (width[k : k + part, None] * w).ravel()
        values = values_of(fn, points, argument)
        functions = basis(points)
        answer = functions @ (weights * values)
        total = answer if total is None else total + answer
        size += float(weights @ (np.abs(values) * np.abs(functions).max(axis=0)))
    if total is None:
        raise ArgumentError(f"{argument} is asked on no panel")
    return total, size


def values_of(fn: Callable[[Array], Any], points: Array, argument: str = "fn") -> Array:
    """A function's values at points (n,); ArgumentError unless it gives a finite number for each."""
    if not callable(fn):
        raise ArgumentError(f"{argument} must be a function of an array of times, got {type(fn).__name__}")
    values = numbers_of(fn(points), f"the answer of {argument}", complex_too=True)
    if values.shape == ():
        return np.broadcast_to(values, points.shape)
    if values.shape != points.shape:
        raise ArgumentError(f"{argument} must give a number for each of {points.shape} times, got shape {values.shape}")
    return values


def graded(edge: float, end: float, depth: int) -> Array:
    """Edges of panels that shrink towards ``edge``, each a part of the one before, ``depth`` of them."""
    shrunk = _GRADING ** -np.arange(depth, -1, -1.0)
    return np.concatenate([[edge], edge + (end - edge) * shrunk])
