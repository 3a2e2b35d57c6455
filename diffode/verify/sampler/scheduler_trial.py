"""The trial of another library's scheduler between its own levels: its order and limit, or the law of its output.

A last step to no noise is a jump to the denoised point. Its error remains with any number of steps if the table of training
levels ends above 0. The end is therefore held against two references: the exact flow's point at the last level, and the
denoised point of the flow's point at the level before. The one that is nearer at the largest number of steps counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffode import fields
from diffode.errors import ArgumentError
from diffode.fields import ExactField
from diffode.flows import reference
from diffode.numerics.orders import OrderEstimate, fit_order
from diffode.targets import GaussianMixture
from diffode.targets.target import Target
from diffode.verify.report import Check
from diffode.verify.sampler import foreign, scheduler_given
from diffode.verify.sampler.scheduler_levels import CannotJudgeError
from diffode.verify.sampler.scheduler_loops import STEPS, Scheduler
from diffode.verify.sampler.trial import TARGET, Bench

#: Number of starts.
_STARTS = 24
#: Rounding of levels, which are kept in float32, relative to the largest state.
_ROUNDING = 1e-6
#: Smallest slope of an error that falls with the number of steps.
_FALLS = 0.4
#: Largest error, in units of the data's scale, that is harmless without falling.
_HARMLESS = 1e-3
#: Largest amount by which a measured order may fall short of the claim.
_SHORT = 0.3
#: Mean of the Gaussian.
_MEAN = 0.7
#: Variance of the Gaussian.
_VARIANCE = 0.25
#: Number of draws for a law.
_DRAWS = 10_000
#: Largest error of a law that draws explain, in standard errors.
_DEVIATIONS = 5.0
#: Largest error of a law, in units of the data's scale, that the number of steps explains.
_SHARE = 0.02
#: Numbers of steps for a law.
LAW_STEPS = (50, 100)
#: Largest ratio of the errors with twice the steps and before, for an error that falls.
_LEFT = 0.75


def formula_order(bench: Bench, scheduler: Scheduler) -> OrderEstimate | None:
    """The order of a scheduler's steps between given levels in float64; None if it keeps its own or is exact there."""
    laid = scheduler.between_given_levels()
    try:
        laid.levels(scheduler_given.STEPS[0])
    except CannotJudgeError:
        return None
    own = replace(bench.sampler, scheduler=laid, run=foreign.scheduler_run(laid))
    there = replace(bench, sampler=own)
    found = _errors(there, laid, scheduler_given.STEPS)
    try:
        return fit_order(scheduler_given.STEPS, found, 1e-14 * max(there.field().scale, 1.0))
    except ArgumentError:
        return None


def order(bench: Bench, scheduler: Scheduler) -> tuple[list[Check], OrderEstimate | None]:
    """Checks of the order between the scheduler's own levels, and of the fall of the error, with the measured order.

    If an order is claimed it is measured between given levels in float64, where the class steps between such.
    """
    exact = bench.field()
    found = _errors(bench, scheduler, STEPS)
    shown = f"errors {', '.join(f'{e:.1e}' for e in found)} at {', '.join(map(str, STEPS))} steps between its own levels"
    if not all(math.isfinite(error) for error in found):
        return [Check.found("limit", False, f"errors are not finite: {shown}")], None
    try:
        estimate = fit_order(STEPS, found, _ROUNDING / 30 * max(exact.scale, 1.0))
    except ArgumentError:
        good = found[-1] < _HARMLESS * exact.scale
        return [Check.found("limit", good, f"exact to rounding: {shown}" if good else f"does NOT converge: {shown}")], None
    # Errors on the coarsest grids may be irregular; the slope over all grids tells whether they fall.
    overall = -_slope([math.log(n) for n in STEPS], [math.log(max(e, 1e-300)) for e in found])
    stuck = overall < _FALLS and estimate.slope < _FALLS and found[-1] > _HARMLESS * exact.scale
    says = "does NOT converge to the flow of the field: more steps do not help" if stuck else "converges to the exact flow"
    limit = Check.found("limit", not stuck, f"{says}: {shown}")
    measured = f"order {estimate.slope:.2f} measured between its own levels (95 %: {estimate.low:.2f} to {estimate.high:.2f})"
    claimed = bench.sampler.claimed
    formula = None if claimed is None else formula_order(bench, scheduler)
    if claimed is not None and formula is not None:
        return [_claimed(claimed, formula), limit], formula
    if claimed is None:
        return [Check.found("order", None, f"{measured}; none is claimed"), limit], estimate
    if estimate.slope >= claimed - _SHORT:
        return [Check.found("order", True, f"order {claimed} as claimed: {measured}"), limit], estimate
    text = f"order {claimed} is claimed, which its own levels, rounded to training steps, do not settle: {measured}"
    return [Check.found("order", None, text), limit], estimate


def _claimed(claimed: int, found: OrderEstimate) -> Check:
    """The check of a claim against the order between given levels."""
    shown = ", ".join(f"{e:.1e}" for e in found.errors)
    text = (
        f"order {found.slope:.2f} measured between levels given in float64 (95 %: {found.low:.2f} to {found.high:.2f}; errors "
        f"{shown} at {', '.join(map(str, found.steps))} steps)"
    )
    if found.slope >= claimed - _SHORT:
        return Check.found("order", True, f"order {claimed} as claimed: {text}")
    if found.high >= claimed - _SHORT:
        return Check.found("order", None, f"order {claimed} is claimed, which these steps do not settle: {text}")
    return Check.found("order", False, f"order {claimed} is claimed, it is lower: {text}")


def _errors(bench: Bench, scheduler: Scheduler, counts: Sequence[int]) -> list[float]:
    """Root mean square errors at each number of steps, against the nearer of the two references."""
    exact = bench.field()
    errors: list[tuple[float, ...]] = []
    for steps in counts:
        rho, times = scheduler.levels(steps), bench.times(steps)
        x = bench.start(_STARTS, steps=steps)
        end = bench.run(exact, x, times)
        errors.append(
            tuple(float((end - true).square().mean().sqrt()) / math.hypot(1, rho[-1]) for true in _ends(exact, rho, x))
        )
    best = min(range(len(errors[0])), key=lambda k: errors[-1][k])
    return [error[best] for error in errors]


def _slope(x: list[float], y: list[float]) -> float:
    centre_x, centre_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True)) / sum((a - centre_x) ** 2 for a in x)


def _ends(exact: ExactField, rho: Sequence[float], x: Tensor) -> list[Tensor]:
    """The end of the exact flow, and that of a jump from the level before."""
    ends = [reference(exact, x, rho[0], rho[-1], 1e-12).x]
    if rho[-1] == 0 and len(rho) > 2 and rho[-2] > 0:
        with torch.no_grad():
            ends.append(exact.denoised(reference(exact, x, rho[0], rho[-2], 1e-12).x, rho[-2]))
    return ends


def law(bench: Bench, scheduler: Scheduler) -> list[Check]:
    """Checks of the end's moments on a Gaussian and of its law on a mixture, from exact draws at the first level."""
    gaussian = GaussianMixture([1.0], [[_MEAN]], [[_VARIANCE]])
    return [
        _judged("moments", bench, scheduler, gaussian, _moment_error, "on a Gaussian, mean and deviation"),
        _judged("limit", bench, scheduler, bench.target, _distance, f"distance to the law of {TARGET} in scales"),
    ]


def _judged(
    topic: str, bench: Bench, scheduler: Scheduler, target: Target, measure: Callable[[Tensor, Tensor, float], float], what: str
) -> Check:
    exact = fields.ExactField(target, bench.path)
    found: list[float] = []
    for steps in LAW_STEPS:
        rho = scheduler.levels(steps)
        with torch.no_grad():
            end = bench.run(exact, bench.start(_DRAWS, target, 5, steps=steps), bench.times(steps), 6)
            true = [exact.marginal(_DRAWS, rho[-1], generator=7)]
            if rho[-1] == 0 and rho[-2] > 0:
                true.append(exact.denoised(exact.marginal(_DRAWS, rho[-2], generator=7), rho[-2]))
            unit = math.hypot(1, rho[-1])
            found.append(min(measure(end / unit, one / unit, exact.scale) for one in true))
            noise = measure(exact.marginal(_DRAWS, rho[-1], generator=11) / unit, true[0] / unit, exact.scale)
        if found[-1] <= _SHARE + 2 * noise + _DEVIATIONS / math.sqrt(_DRAWS):
            text = f"{what}: off by {found[-1]:.4f} at {steps} steps ({_DRAWS} draws; exact draws: {noise:.4f})"
            return Check.found(topic, True, f"converges to the right law, {text}" if topic == "limit" else text)
    falls = found[1] < _LEFT * found[0]
    text = f"{what}: off by {found[0]:.4f} at {LAW_STEPS[0]} steps and {found[1]:.4f} at {LAW_STEPS[1]}"
    if falls:
        return Check.found(topic, True, f"{text}, which falls")
    return Check.found(
        topic, False, f"{text}: more steps do not help" if topic == "moments" else f"ANOTHER law than the field's: {text}"
    )


def _moment_error(end: Tensor, true: Tensor, scale: float) -> float:
    deviation = float(true.std())
    return max(abs(float(end.mean() - true.mean())) / deviation, abs(float(end.std()) / deviation - 1))


def _distance(end: Tensor, true: Tensor, scale: float) -> float:
    return float((end[:, 0].sort().values - true[:, 0].sort().values).abs().mean()) / scale
