"""The contract of a field with solvers, checked call by call; each failure names the call that showed it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffode.errors import DiffodeError
from diffode.fields import Field
from diffode.fields.field import SAME_TIMES, size_of
from diffode.verify.report import Check

#: Value of a check whose call fails.
_FAILED = float("inf")


def contract(field: Field, x: Tensor, t: float) -> list[Check]:
    """Check shape, dtype, finiteness, an unchanged x, determinism, independence of rows, and a time for every row.

    ``x`` is (B, *shape) with at least two different rows, at time ``t``. Evaluations are not counted.
    """
    found = []
    with field.uncounted():
        rows = _allowed(field, x, t)
        for name, tolerance, test in (
            ("answers with the shape and dtype of x", 0.0, _shape),
            ("finite", 0.0, _finite),
            ("leaves its x alone", 0.0, _untouched),
            ("deterministic", 0.0, _deterministic),
            ("rows independent of their batch", rows, _rows),
            ("takes a time for every row", SAME_TIMES, _times),
        ):
            value, detail = _attempt(test, field, x.clone(), t)
            found.append(Check(name, value, tolerance, detail))
            if name == "finite" and not (found[-1].passed and found[-2].passed):
                break
    return found


#: A function of field, x and t that gives a residual and the place where it is largest.
Test = Callable[[Field, Tensor, float], tuple[float, str]]


def _attempt(test: Test, field: Field, x: Tensor, t: float) -> tuple[float, str]:
    try:
        with torch.no_grad():
            return test(field, x, t)
    except DiffodeError as error:
        return _FAILED, str(error)
    except Exception as error:  # a user's code may raise anything
        return _FAILED, f"field(x{tuple(x.shape)}, t={t:.4g}) raised {type(error).__name__}: {error}"


def _allowed(field: Field, x: Tensor, t: float) -> float:
    try:
        return field.same_rows(x.clone(), t)
    except Exception:  # a later check names what is raised here
        return 0.0


def _call(field: Field, x: Tensor, t: float | Tensor) -> Tensor:
    # The callable itself is called, since a derived view would hide some of its faults.
    return field.predict(field.prediction, x, t)


def _shape(field: Field, x: Tensor, t: float) -> tuple[float, str]:
    answer = _call(field, x, t)
    if answer.dtype != x.dtype:
        return _FAILED, f"x is {x.dtype}, the answer {answer.dtype}: cast it with .to(x.dtype)"
    return 0.0, f"x{tuple(x.shape)}, t={t:.4g}"


def _finite(field: Field, x: Tensor, t: float) -> tuple[float, str]:
    bad = int((~torch.isfinite(_call(field, x, t))).flatten(1).any(1).sum())
    return float(bad), f"{bad} of {len(x)} rows non-finite at t={t:.4g}" if bad else f"t={t:.4g}"


def _untouched(field: Field, x: Tensor, t: float) -> tuple[float, str]:
    kept = x.clone()
    _call(field, x, t)
    changed = float((x - kept).abs().max())
    return changed, f"x changed by {changed:.1e} in the call at t={t:.4g}: work on x.clone()" if changed else ""


def _deterministic(field: Field, x: Tensor, t: float) -> tuple[float, str]:
    first, second = _call(field, x, t), _call(field, x, t)
    difference = float((first - second).abs().max())
    advice = "two calls with the same x and t differ: put the network in eval mode, draw no noise inside"
    return difference, f"{advice} (by {difference:.1e} at t={t:.4g})" if difference else ""


def _rows(field: Field, x: Tensor, t: float) -> tuple[float, str]:
    together = _call(field, x, t)
    apart = torch.cat([_call(field, x[i : i + 1], t) for i in range(len(x))])
    value = float((together - apart).abs().max()) / size_of(apart, x)
    if value <= _allowed(field, x, t):
        return value, ""
    return value, f"rows alone and in a batch differ by {value:.1e} at t={t:.4g}: batch statistics need eval mode"


def _times(field: Field, x: Tensor, t: float) -> tuple[float, str]:
    times = t * (1 - 0.3 * torch.linspace(0, 1, len(x), dtype=torch.float64))
    together = _call(field, x, times)
    apart = torch.cat([_call(field, x[i : i + 1], float(times[i])) for i in range(len(x))])
    value = float((together - apart).abs().max()) / size_of(apart, x)
    advice = "asked with t of shape (B,) it gives other answers than row by row: use t.to(x.dtype).reshape(-1, 1)"
    return value, f"{advice} (by {value:.1e})" if value > SAME_TIMES else ""
