"""Recommendation of a solver from stored results, with its certainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffode.errors import ArgumentError
from diffode.studies.ranking import Curve, error_within

#: Number of bootstrap resamples of the problems.
_RESAMPLES = 2000


@dataclass(frozen=True)
class Advice:
    """A method's geometric mean error (in units of the target's scale), its ratio to the best, and the certainty of both.

    ``ratio_low`` and ``ratio_high`` bound the ratio to the best method in 95 % of bootstrap resamples of the problems (target
    and path); ``first`` is the share of resamples, ``wins`` the number of problems, in which the method comes first.
    """

    method: str
    error: float
    ratio: float
    ratio_low: float
    ratio_high: float
    first: float
    wins: int
    problems: int


def recommend(
    curves: Sequence[Curve], nfe: int, *, path: str | None = None, target: str | None = None, seed: int = 0
) -> list[Advice]:
    """Methods with a run within ``nfe`` on every chosen problem, best first.

    Raises ArgumentError, which names what is stored, if nothing fits.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ArgumentError(f"nfe must be an integer >= 1, got {nfe!r}")
    chosen = [c for c in curves if path in (None, c.path) and target in (None, c.target)]
    if not chosen:
        stored_paths, stored_targets = (sorted({getattr(c, k) for c in curves}) for k in ("path", "target"))
        raise ArgumentError(
            f"nothing stored for path={path!r}, target={target!r}; paths stored: {', '.join(stored_paths) or 'none'}; "
            f"targets: {', '.join(stored_targets) or 'none'}"
        )
    problems = sorted({c.problem for c in chosen})
    table: dict[str, dict[tuple[str, str], float]] = {}
    for curve in chosen:
        error = error_within(curve, nfe)
        if error is not None:
            table.setdefault(curve.method, {})[curve.problem] = math.log(max(error, 1e-300))
    methods = [m for m, errors in table.items() if len(errors) == len(problems)]
    if not methods:
        by_method: dict[str, list[int]] = {}
        for curve in chosen:
            by_method.setdefault(curve.method, []).append(curve.nfe[0])
        complete = [max(first) for first in by_method.values() if len(first) == len(problems)]
        least = f"the smallest nfe that is: {min(complete)}" if complete else "none was run on all of them"
        raise ArgumentError(f"no method is stored with nfe={nfe} or less on all {len(problems)} problems; {least}")
    logs = np.array([[table[m][p] for p in problems] for m in methods])
    mean = logs.mean(1)
    best = int(mean.argmin())
    sample = np.random.default_rng(seed).integers(len(problems), size=(_RESAMPLES, len(problems)))
    resampled = logs[:, sample].mean(2)
    first = np.bincount(resampled.argmin(0), minlength=len(methods)) / _RESAMPLES
    low, high = np.exp(np.percentile(resampled - resampled[best], (2.5, 97.5), axis=1))
    wins = np.bincount(logs.argmin(0), minlength=len(methods))
    return [
        Advice(
            methods[i],
            math.exp(mean[i]),
            math.exp(mean[i] - mean[best]),
            float(low[i]),
            float(high[i]),
            float(first[i]),
            int(wins[i]),
            len(problems),
        )
        for i in np.argsort(mean)
    ]
