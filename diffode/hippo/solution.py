"""What the ODE of a memory answers to any function, exactly: what runs on samples are held against."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from diffode.errors import NumericalError
from diffode.hippo.measure import Measure
from diffode.hippo.polynomials import gauss
from diffode.hippo.quadrature import values_of

Array = np.ndarray[Any, Any]

#: Gauss nodes of a step.
_NODES = 24
#: Number of steps with which the search begins, and largest number.
_STEPS = (8, 2**16)


def solution(
    measure: Measure, order: int, fn: Callable[[Array], Any], since: float, now: float, breaks: Array, tolerance: float
) -> Array:
    """The memory at ``now`` that the ODE makes of a function from ``since`` on, (N,); the steps are halved until two agree.

    Raises:
        NumericalError: if they don't.
    """
    edges = np.concatenate([[since], breaks[(breaks > since) & (breaks < now)], [now]])
    steps, before = _STEPS[0], None
    while True:
        found, size = _solved(measure, order, fn, edges, (now - since) / steps)
        gap = np.inf if before is None else float(np.abs(found - before).max())
        if gap <= tolerance * size:
            return found
        steps, before = 2 * steps, found
        if steps > _STEPS[1]:
            raise NumericalError(
                f"the ODE's answer can't be had to {tolerance:g}, the last two differ by {gap:.1e}: give the times at which "
                "the signal jumps or bends as breaks=, or a larger tolerance="
            )


def _solved(measure: Measure, order: int, fn: Callable[[Array], Any], edges: Array, longest: float) -> tuple[Array, float]:
    """The answer with steps up to a length, and the size of the states on the way."""
    x, w = gauss(_NODES)
    state, size = np.zeros(order), 1e-300
    for begin, end in itertools.pairwise(edges):
        count = max(1, int(np.ceil((end - begin) / longest)))
        step = (end - begin) / count
        points = begin + step * (np.arange(count)[:, None] + x)
        values = values_of(fn, points.ravel()).reshape(count, _NODES)
        inputs = values @ (step * w[:, None] * measure.kernel(order, step * (1 - x)).T)
        moved = measure.propagator(order, step).T
        for own in inputs:
            state = state @ moved + own
            size = max(size, float(np.abs(state).max()))
    return state, size
