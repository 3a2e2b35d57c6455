"""Recommendation of a solver from curves of errors, with its certainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from diffode.errors import ArgumentError
from diffode.studies.ranking import Curve, error_within

#: Number of bootstrap resamples of the problems.
_RESAMPLES = 2000
#: Share of further problems, and of resamples, that an interval holds.
_SHARE = 0.95
#: Least number of problems whose spread says anything.
LEAST_PROBLEMS = 3


@dataclass(frozen=True)
class Advice:
    """A method's geometric mean error (in units of the target's scale), its ratio to the best, and the certainty of both.

    ``ratio_low`` and ``ratio_high`` bound the ratio to the best method in 95 % of bootstrap resamples of the problems (target
    and path); ``first`` is the share of resamples, ``wins`` the number of problems, in which the method comes first.
    ``low`` and ``high`` bound the error on one more problem of the same kind with a probability of 95 %
    (:func:`next_error`); they are None with fewer than three problems. ``least`` and ``most`` are the errors on the problems
    that were tried.
    """

    method: str
    error: float
    ratio: float
    ratio_low: float
    ratio_high: float
    first: float
    wins: int
    problems: int
    low: float | None
    high: float | None
    least: float
    most: float

    @property
    def as_good(self) -> bool:
        """Whether the interval of the ratio to the best holds 1: on other problems this method may be the better one."""
        return self.ratio_low <= 1.0


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
    # How often each problem is in each resample; methods with equal errors stay equal, whatever the product rounds.
    times = np.stack([np.bincount(row, minlength=len(problems)) for row in sample])
    resampled = np.round(logs @ times.T / len(problems), 12)
    first = np.bincount(resampled.argmin(0), minlength=len(methods)) / _RESAMPLES
    tails = 100 * (1 - _SHARE) / 2
    low, high = np.exp(np.percentile(resampled - resampled[best], (tails, 100 - tails), axis=1))
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
            *next_error([math.exp(v) for v in logs[i]]),
            math.exp(logs[i].min()),
            math.exp(logs[i].max()),
        )
        for i in np.argsort(mean, kind="stable")
    ]


def next_error(errors: Sequence[float]) -> tuple[float | None, float | None]:
    """The interval in which the error on one more problem lies with a probability of 95 %, if problems are drawn alike.

    The logarithms of the errors are taken for normal, so that the next one follows Student's t around their mean m, with
    n - 1 degrees of freedom and the width s sqrt(1 + 1/n) (Hahn and Meeker, Statistical Intervals, 1991, section 4.7).

    Args:
        errors: errors on n problems, all positive.

    Returns:
        The ends of the interval; None for both with fewer than three problems, whose spread says nothing.

    >>> low, high = next_error([0.1, 0.2, 0.4])
    >>> round(low, 4), round(high, 3)
    (0.0064, 6.261)
    """
    count = len(errors)
    if count < LEAST_PROBLEMS:
        return None, None
    logs = np.log(np.asarray(errors))
    reach = float(stdtrit(count - 1, (1 + _SHARE) / 2) * logs.std(ddof=1) * math.sqrt(1 + 1 / count))
    middle = float(logs.mean())
    # Errors at rounding may lie decades apart, so that an end would overflow.
    return math.exp(max(middle - reach, -700.0)), math.exp(min(middle + reach, 700.0))
