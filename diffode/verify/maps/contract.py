"""The contract of a flow map with those who call it, checked call by call."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffode.errors import DiffodeError
from diffode.verify.maps.trial import MapTrial
from diffode.verify.report import Check

#: Largest difference, in sizes of a state, of a row alone and in a batch: rounding of a network in float32.
_SAME_ROWS = 1e-4
#: Number of rows of a trial call.
_ROWS = 5
#: Value of a check whose call fails.
_FAILED = float("inf")

#: A function that gives a residual and the place where it is largest.
Test = Callable[[MapTrial], tuple[float, str]]


def contract(trial: MapTrial) -> list[Check]:
    """Check shape, dtype, finiteness, an unchanged x, determinism, independence of rows, and times for every row.

    The rest is left out if the map's answer is none.
    """
    found = []
    tests: tuple[tuple[str, float, Test], ...] = (
        ("answers with the shape and dtype of x", 0.0, _shape),
        ("finite", 0.0, _finite),
        ("leaves its x alone", 0.0, _untouched),
        ("deterministic", 0.0, _deterministic),
        ("rows independent of their batch", _SAME_ROWS, _rows),
        ("takes times for every row", _SAME_ROWS, _row_times),
    )
    for name, tolerance, test in tests:
        try:
            value, detail = test(trial)
        except DiffodeError as error:
            value, detail = _FAILED, str(error)
        except Exception as error:  # anyone's map may raise anything
            value, detail = _FAILED, f"raised {type(error).__name__}: {error}"
        found.append(Check(name, value, tolerance, detail))
        if name in ("answers with the shape and dtype of x", "finite") and not found[-1].passed:
            break
    return found


def _shape(trial: MapTrial) -> tuple[float, str]:
    for dtype in (torch.float64, torch.float32):
        x = trial.states[0, :_ROWS].to(dtype)
        answer = trial.call(x, trial.times[0], trial.times[-1])
        if answer.shape != x.shape or answer.dtype != dtype:
            return _FAILED, f"x is {dtype} {tuple(x.shape)}, the answer {answer.dtype} {tuple(answer.shape)}"
    return 0.0, ""


def _finite(trial: MapTrial) -> tuple[float, str]:
    for s, t in trial.pairs:
        answer = trial.call(trial.states[s], trial.times[s], trial.times[t])
        bad = int((~torch.isfinite(answer)).flatten(1).any(1).sum())
        if bad:
            return float(bad), f"{bad} of {len(answer)} rows from t={trial.times[s]:.4g} to t={trial.times[t]:.4g}"
    return 0.0, ""


def _untouched(trial: MapTrial) -> tuple[float, str]:
    x = trial.states[0, :_ROWS].clone()
    trial.call(x, trial.times[0], trial.times[-1])
    changed = float((x - trial.states[0, :_ROWS]).abs().max())
    return changed, f"x changed by {changed:.1e}: work on x.clone()" if changed else ""


def _deterministic(trial: MapTrial) -> tuple[float, str]:
    x = trial.states[0, :_ROWS]
    first, second = (trial.call(x, trial.times[0], trial.times[-1]) for _ in range(2))
    apart = float((first - second).abs().max())
    return apart, f"two calls differ by {apart:.1e}: put the network in eval mode, draw no noise inside" if apart else ""


def _rows(trial: MapTrial) -> tuple[float, str]:
    value, s, t = 0.0, 0, trial.last
    x = trial.states[s, :_ROWS]
    together = trial.call(x, trial.times[s], trial.times[t])
    apart = torch.cat([trial.call(x[i : i + 1], trial.times[s], trial.times[t]) for i in range(len(x))])
    value = float(trial.errors(together, apart, trial.times[t]).max())
    return value, f"rows alone and in a batch differ by {value:.1e}" if value > _SAME_ROWS else ""


def _row_times(trial: MapTrial) -> tuple[float, str]:
    """Rows that start at different times of one batch; all at the first time of a generator, which has no other."""
    count = min(_ROWS, trial.last)
    begins = [0] * count if trial.phi.one_jump else list(range(count))
    s = torch.tensor([trial.times[k] for k in begins], dtype=torch.float64)
    x = torch.stack([trial.states[k, row] for row, k in enumerate(begins)])
    last = trial.times[-1]
    with torch.no_grad():
        together = trial.phi(x, s, torch.full((count,), last, dtype=torch.float64))
    apart = torch.cat([trial.call(x[row : row + 1], trial.times[k], last) for row, k in enumerate(begins)])
    value = float(trial.errors(together, apart, last).max())
    return value, f"asked with times (B,) it differs by {value:.1e} from row by row" if value > _SAME_ROWS else ""
