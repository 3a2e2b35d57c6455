"""Direct search of levels: Nelder and Mead's simplex from each of several grids, without derivatives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.learned.progress import Step
from diffode.learned.request import Request

#: Sizes of the simplex, in parameters and in the function, below which Nelder-Mead ends.
_TOLERANCES = {"xatol": 1e-5, "fatol": 1e-9}
#: Error in place of an overflow in a search.
_OVERFLOW = 1e300


def searched(error: Callable[[Tensor], float], begins: Sequence[Tensor], request: Request) -> Tensor:
    """The values (size,) with the least error of all that searches from ``begins`` see before the request's limit ends them.

    The request is told of every run as a :class:`Step`, whose ``error`` is the least so far.
    """
    best, least, runs = begins[0].numpy(), math.inf, 0

    def compared(values: np.ndarray) -> float:
        nonlocal best, least, runs
        try:
            found = error(torch.from_numpy(values))
        except ArgumentError:
            # The simplex may reach a point where a step vanishes.
            return _OVERFLOW
        runs += 1
        if found < least:
            best, least = values.copy(), found
        request.tell(Step("search the levels", runs, None, least))
        return min(found, _OVERFLOW)

    def until_ended(values: np.ndarray) -> float:
        found = compared(values)
        if request.limit.reached():
            raise _Ended
        return found

    # The grids to begin from are compared in any case, so that a search that is stopped at once returns the best of them.
    for begin in begins:
        compared(begin.numpy())
    with contextlib.suppress(_Ended):
        for begin in begins:
            simplex(until_ended, begin.numpy())
    return torch.from_numpy(best)


class _Ended(Exception):
    """The search has used its seconds, or was asked to end."""


def simplex(function: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Nelder-Mead from a simplex with sides of 1/2 (a factor 1.6 on a step), and once more from its result."""
    # Imported where it is used: this module is loaded for its name alone whenever solvers are listed.
    from scipy.optimize import minimize

    for _ in range(2):
        corners = np.vstack([start, start + 0.5 * np.eye(len(start))])
        limits = {"initial_simplex": corners, "maxiter": 300 * len(start), "maxfev": 400 * len(start)}
        start = minimize(function, start, method="Nelder-Mead", options={**_TOLERANCES, **limits}).x
    return start
