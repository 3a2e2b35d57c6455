r"""The identities of a flow map: boundary, semigroup, diagonal, and the equations of Lagrange and Euler.

.. math::
    \Phi(x, s \to s) = x, \quad \Phi(\Phi(x, s \to r), r \to t) = \Phi(x, s \to t), \quad
    \partial_t\Phi|_{t=s} = v(x, s), \quad \partial_t\Phi = v(\Phi, t), \quad \partial_s\Phi + v \cdot \nabla_x\Phi = 0.

Derivatives are taken by differences of fourth order; of a map that answers in single precision, where these lose digits, by
forward automatic differentiation if it allows that. They are in units of a state's size over a change of the noise level by its
own size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffode.numerics.butcher import KUTTA
from diffode.numerics.forward import along
from diffode.verify.maps.trial import MapTrial
from diffode.verify.report import Check

#: Names of the checks.
NAMES = ("boundary", "semigroup", "diagonal", "Lagrangian equation", "Eulerian equation")
#: Largest distance of a point from itself after no jump, in sizes of a state.
BOUNDARY = 1e-4
#: A residual that contains a derivative may be this multiple of the error that is allowed in an end.
_DERIVATIVE = 2.0
#: Number of rows on which derivatives are taken.
_ROWS = 128
#: Step of differences, relative to the time, and that for a map that answers in single precision.
_STEP, _SINGLE_STEP = 1e-3, 2e-2
#: Change of an answer, relative to it, when x changes by 1e-12 of itself, by which single precision shows.
_ROUNDED = 1e-9
#: Mean difference of a forward derivative from one by differences, in units of its own size, above which it has lost a part.
_AGREE = 0.02
#: Weights of differences of fourth order at 0, 1, 2, 3, 4 steps towards the data.
_ONE_SIDED = (25 / 12, -4.0, 3.0, -4 / 3, 1 / 4)
#: Weights of central differences of fourth order at 2, 1, -1, -2 steps.
_CENTRAL = ((2, -1 / 12), (1, 8 / 12), (-1, -8 / 12), (-2, 1 / 12))


def identities(trial: MapTrial) -> list[Check]:
    """The checks of all identities that a map can have; one that goes to its end only has no other times to be held to."""
    if trial.phi.one_jump:
        why = f"not judged: it goes from t={trial.times[0]:.4g} to t={trial.times[-1]:.4g} only"
        return [Check.found(name, None, why) for name in NAMES]
    found = [_boundary(trial)]
    if trial.phi.law_only:
        why = "not judged: it was made for the law of its points, whichever noise they come from"
        return [*found, *(Check.found(name, None, why) for name in NAMES[1:])]
    if trial.phi.fixed_end:
        why = f"not judged: it goes to t={trial.times[-1]:.4g} only"
        found += [Check.found(name, None, why) for name in NAMES[1:-1]]
        return [*found, _eulerian(trial)]
    return [*found, _semigroup(trial), _diagonal(trial), _lagrangian(trial), _eulerian(trial)]


def _boundary(trial: MapTrial) -> Check:
    worst, place = 0.0, ""
    for k in (trial.last,) if trial.phi.fixed_end else range(len(trial.times)):
        t = trial.times[k]
        error = float(trial.errors(trial.call(trial.states[k], t, t), trial.states[k], t).max())
        if not error <= worst:
            worst, place = error, f"at t={t:.4g}: a jump of no length moves a point by {error:.1e} of a state's size"
    return Check("boundary", worst, BOUNDARY, place if worst > BOUNDARY else "")


def _semigroup(trial: MapTrial) -> Check:
    worst, place = 0.0, ""
    for s, r, t in [(0, k, trial.last) for k in range(1, trial.last)] + [(k, k + 1, k + 2) for k in range(1, trial.last - 1)]:
        first, middle, end = (trial.times[k] for k in (s, r, t))
        there = trial.call(trial.call(trial.states[s], first, middle), middle, end)
        error = float(trial.errors(there, trial.call(trial.states[s], first, end), end).mean())
        if not error <= worst:
            worst, place = error, f"from t={first:.4g} over t={middle:.4g} to t={end:.4g}, mean"
    return Check("semigroup", worst, 2 * trial.allowed, place)


def _diagonal(trial: MapTrial) -> Check:
    """The velocity with which a point leaves s, where t = s."""
    worst, place = 0.0, ""
    for k in range(1, trial.last):
        t, x = trial.times[k], trial.states[k, :_ROWS]
        _, slope = at_end(trial, x, t, t)
        error = _mean(trial, slope - trial.field.velocity(x, t), t, t)
        if not error <= worst:
            worst, place = error, f"at t={t:.4g}, against the field's velocity, mean"
    return Check("diagonal", worst, _DERIVATIVE * trial.allowed, place)


def _lagrangian(trial: MapTrial) -> Check:
    worst, place = 0.0, ""
    for s, t in [(0, k) for k in range(1, trial.last)] + [(1, k) for k in range(2, trial.last)]:
        first, end = trial.times[s], trial.times[t]
        reached, slope = at_end(trial, trial.states[s, :_ROWS], first, end)
        error = _mean(trial, slope - trial.field.velocity(reached, end), end, end)
        if not error <= worst:
            worst, place = error, f"from t={first:.4g} to t={end:.4g}, mean"
    return Check("Lagrangian equation", worst, _DERIVATIVE * trial.allowed, place)


def _eulerian(trial: MapTrial) -> Check:
    worst, place = 0.0, ""
    ends = [(k, trial.last) for k in range(1, trial.last)]
    if not trial.phi.fixed_end:
        ends += [(k, k + 1) for k in range(1, trial.last - 1)]
    for s, t in ends:
        first, end = trial.times[s], trial.times[t]
        error = _mean(trial, at_start(trial, trial.states[s, :_ROWS], first, end), first, end)
        if not error <= worst:
            worst, place = error, f"from t={first:.4g} to t={end:.4g}, mean"
    return Check("Eulerian equation", worst, _DERIVATIVE * trial.allowed, place)


def _mean(trial: MapTrial, residual: Tensor, rate_at: float, size_at: float) -> float:
    """The mean of a residual, a derivative by the time ``rate_at`` of a state at ``size_at``, in the units of this module."""
    return float(residual.flatten(1).norm(dim=1).mean()) / (trial.size(size_at) * trial.angle_rate(rate_at))


def at_end(trial: MapTrial, x: Tensor, s: float, t: float) -> tuple[Tensor, Tensor]:
    """The map and its derivative by the time of its end."""
    start, end = (torch.full((len(x),), time, dtype=torch.float64, device=x.device) for time in (s, t))

    def answer(time: Tensor) -> Tensor:
        return trial.phi(x, start, time)

    relative = _step(trial, x, s, t)
    h = relative * t
    with torch.no_grad():
        by_differences = sum((w * answer(end - k * h) for k, w in enumerate(_ONE_SIDED)), torch.zeros_like(x)) / h
    if relative != _SINGLE_STEP:
        return trial.call(x, s, t), by_differences
    return trial.call(x, s, t), _forward(answer, (end,), (torch.ones_like(end),), by_differences)


def at_start(trial: MapTrial, x: Tensor, s: float, t: float) -> Tensor:
    """The derivative of the map along the trajectory through its start, which is 0 for the flow."""
    start, end = (torch.full((len(x),), time, dtype=torch.float64, device=x.device) for time in (s, t))

    def answer(point: Tensor, time: Tensor) -> Tensor:
        return trial.phi(point, time, end)

    relative = _step(trial, x, s, t)
    h = relative * s
    total = torch.zeros_like(x)
    with torch.no_grad():
        for k, weight in _CENTRAL:
            total = total + weight * answer(_moved(trial, x, s, k * h), start + k * h)
    if relative != _SINGLE_STEP:
        return total / h
    return _forward(answer, (x, start), (trial.field.velocity(x, s), torch.ones_like(start)), total / h, size=x / s)


def _moved(trial: MapTrial, x: Tensor, s: float, h: float) -> Tensor:
    """The point a short way along its trajectory, by one step of the classical Runge-Kutta method, which errs by h^5."""
    return KUTTA.step(trial.field.velocity, x, s, h)  # type: ignore[no-any-return]


def _forward(
    answer: Callable[..., Tensor],
    at: tuple[Tensor, ...],
    directions: tuple[Tensor, ...],
    by_differences: Tensor,
    size: Tensor | None = None,
) -> Tensor:
    """The derivative by forward differentiation where it agrees with that by differences, else the latter.

    A map may refuse to be differentiated, and one that leaves PyTorch on its way (``float(t[0])``) loses a part unseen.
    """
    try:
        _, slope = along(answer, at, directions)
    except Exception:  # anyone's map may raise anything where it is differentiated
        return by_differences
    around = float((by_differences if size is None else size).abs().mean())
    agrees = float((slope - by_differences).abs().mean()) <= _AGREE * around
    return slope.detach() if agrees else by_differences


def _step(trial: MapTrial, x: Tensor, s: float, t: float) -> float:
    """The relative step of differences, wide for a map that answers in single precision, where a small step is all rounding."""
    value = trial.call(x, s, t)
    moved = trial.call(x * (1 + 1e-12), s, t)
    jump = float((moved - value).abs().max()) / max(float(value.abs().max()), 1e-300)
    return _STEP if 0 < jump < _ROUNDED else _SINGLE_STEP
