r"""``check_sampler``: the verdict on a sampler, its claims, and its runs on fields whose flow is known exactly.

Deterministic samplers are held against the exact flow of a one-dimensional mixture, samplers that draw noise against the exact
law. The checks watch the calls of the field and do not look into the sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from diffode import fields, paths
from diffode.errors import ArgumentError, DiffodeError
from diffode.flows import reference
from diffode.numerics.orders import OrderEstimate, fit_order
from diffode.solvers import Solver
from diffode.verify.report import Check, Report
from diffode.verify.sampler import scheduler_trial
from diffode.verify.sampler.limits import law, moments, to_zero
from diffode.verify.sampler.scheduler_levels import CannotJudgeError
from diffode.verify.sampler.scheduler_loops import Scheduler
from diffode.verify.sampler.subject import Sampler, find_sampler
from diffode.verify.sampler.trial import Bench
from diffode.verify.theory.orders import floor_of

#: Numbers of steps at which the order is measured.
_STEPS = (16, 32, 64, 128, 256, 512)
#: Number of starts.
_STARTS = 24
#: Largest amount by which a measured order may fall short of the claim.
_SHORT = 0.3
#: Width of an order's interval beyond which it says nothing, as when a high order reaches rounding at once.
_WIDE = 3.0
#: Largest difference of a row alone and in a batch, relative to the largest state, that rounding explains.
_ROUNDING = 1e-9


def check_sampler(
    sampler: Sampler | Solver | Callable[..., Any] | str,
    *,
    order: int | None = None,
    path: paths.Path | str | None = None,
    grid: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Judge a sampler, of diffode or any other, on fields whose flow or law is known exactly.

    Args:
        sampler: a solver's spec; ``torchdiffeq:METHOD``; ``diffusers:CLASS``; ``module:attribute`` (or ``file.py:attribute``)
            of a diffode solver, a function ``(field, x, times)`` or ``(field, x, times, generator)``, a k-diffusion function
            ``(model, x, sigmas, ...)`` or an azula sampler's class; such an object itself; or a ``Sampler``.
        order: the claimed order, if the sampler does not have one.
        path: a path or its spec, instead of the usual one.
        grid: spec of a family of grids, instead of the usual one.
        options: keyword options of a sampler of another library.

    Returns:
        A report whose fact ``"order"`` is the measured order (an :class:`diffode.verify.OrderEstimate`), or None. If a sampler
        can't be judged (it solves no ODE or SDE of a density, or it raises as documented), no check has an outcome.

    >>> report = check_sampler("heun:chart=noise")
    >>> report.passed, round(report.facts["order"].slope)
    (True, 2)
    """
    if isinstance(sampler, Sampler):
        given: dict[str, Any] = {"order": order, "path": path, "grid": grid, "options": options}
        wrong = next((name for name, value in given.items() if value is not None), None)
        if wrong is not None:
            raise ArgumentError(f"{wrong} must be left out for a Sampler, which has its own, got {given[wrong]!r}")
        return _judged(sampler)
    return _judged(find_sampler(sampler, order=order, path=path, grid=grid, options=options))


def _judged(sampler: Sampler) -> Report:
    if sampler.unjudged:
        return _unjudged(sampler, sampler.unjudged)
    bench = Bench(sampler, paths.get(sampler.path))
    try:
        first = _answers(bench)
    except _Raised as raised:
        return _unjudged(sampler, str(raised))
    if first.passed is False:
        return _report(sampler, [first])
    try:
        stochastic = _stochastic(bench)
    except Exception as error:  # anyone's sampler may fail on its second run
        failed = Check.found("repeatable", False, f"a second run raised {type(error).__name__}: {error}")
        return _report(sampler, [first, failed])
    findings = [first]
    checks: tuple[Callable[[Bench], Check | list[Check]], ...] = (_evaluations, _useless, _ends, _repeatable, _batches)
    # A scheduler gets a copy of the start, made from x/alpha.
    checks += () if sampler.scheduler is not None else (_untouched_start,)
    for check in checks:
        findings += _safely(check, bench)
    kind = "draws noise" if stochastic else "deterministic"
    findings.append(Check.found("noise", None, f"{kind}: ends {'differ' if stochastic else 'are equal'} for different seeds"))
    estimate = None
    if sampler.scheduler is not None:
        own, estimate = _between_own_levels(bench, sampler.scheduler, stochastic)
        findings += own
    elif stochastic:
        findings += _safely(law, bench)
        if sampler.claimed is not None:
            measured = "diffode.verify.strong_order and weak_order measure one"
            text = f"order {sampler.claimed} is claimed: not measured, since it draws noise; {measured}"
            findings.append(Check.found("order", None, text))
    else:
        try:
            found, estimate = _order(bench)
        except Exception as error:
            found = [Check.found("order", False, f"raised {type(error).__name__}: {error}")]
        findings += [*found, *_safely(moments, bench)]
    findings += _safely(to_zero, bench)
    return _report(sampler, findings, estimate)


def _report(sampler: Sampler, found: Sequence[Check], estimate: OrderEstimate | None = None) -> Report:
    return Report(sampler.name, tuple(found), facts={"order": estimate})


class _Raised(Exception):
    """A run of another library's sampler raised, perhaps since it is called in another way than its authors meant."""


def _unjudged(sampler: Sampler, reason: str) -> Report:
    return _report(sampler, [Check.found("judged", None, f"can't be judged: {reason}")])


def _safely(check: Callable[[Bench], Check | list[Check]], bench: Bench) -> list[Check]:
    try:
        found = check(bench)
    except Exception as error:  # anyone's sampler may raise anything
        topic, text = check.__name__.strip("_"), f"raised {type(error).__name__}: {error}"
        return [
            Check.found(topic, None, f"not judged: it {text}") if bench.sampler.foreign else Check.found(topic, False, text)
        ]
    return found if isinstance(found, list) else [found]


def _between_own_levels(bench: Bench, scheduler: Scheduler, stochastic: bool) -> tuple[list[Check], OrderEstimate | None]:
    """Checks of the order and limit of a scheduler, or of the law of one that draws noise, and the measured order."""
    try:
        return (scheduler_trial.law(bench, scheduler), None) if stochastic else scheduler_trial.order(bench, scheduler)
    except Exception as error:  # another library may raise anything
        return [Check.found("limit", None, f"not judged: it raised {type(error).__name__}: {error}")], None


def _answers(bench: Bench) -> Check:
    """The check that it runs in float64 and float32, and gives finite points of the right shape and dtype."""
    for dtype in (torch.float64, torch.float32):
        x = bench.start(6).to(dtype)
        try:
            end = bench.run(bench.watched(), x, bench.times(10))
        except CannotJudgeError as error:
            raise _Raised(str(error)) from error
        except DiffodeError as error:
            return Check.found("runs", False, str(error))
        except Exception as error:
            text = f"raised {type(error).__name__}: {error} (10 steps, x {dtype} {tuple(x.shape)})"
            if bench.sampler.foreign:
                raise _Raised(f"called as its documentation says, it {text}") from error
            return Check.found("runs", False, text)
        if end.shape != x.shape:
            return Check.found("runs", False, f"returned shape {tuple(end.shape)} from a start of shape {tuple(x.shape)}")
        if not bool(torch.isfinite(end).all()):
            return Check.found("runs", False, f"returned non-finite values with 10 steps ({dtype})")
        if end.dtype != dtype and dtype == torch.float64 and bench.sampler.scheduler is None:
            return Check.found("runs", False, f"turned {dtype} into {end.dtype}: digits are lost")
        if end.dtype != dtype:
            return Check.found("runs", None, f"runs; turns {dtype} into {end.dtype}, which costs time and memory")
    return Check.found("runs", True, "10 steps give finite points of the shape and dtype of the start")


def _stochastic(bench: Bench) -> bool:
    x, times = bench.start(4), bench.times(10)
    return not torch.equal(bench.run(bench.watched(), x, times, 0), bench.run(bench.watched(), x, times, 1))


def _evaluations(bench: Bench) -> Check:
    """The check of counted against promised evaluations; without a promise, the line through 10 and 20 steps counts."""
    x, counted = bench.start(3), {}
    for steps in (10, 20, 7, 49, 50):
        watched = bench.watched()
        bench.run(watched, x, bench.times(steps))
        counted[steps] = len(watched.asked)
    if bench.sampler.promised is not None:
        promised: dict[int, float] = {steps: bench.sampler.promised(steps) for steps in counted}
        rule = "as it promises"
    else:
        slope = (counted[20] - counted[10]) / 10
        promised = {steps: counted[10] + slope * (steps - 10) for steps in counted}
        rule = f"{slope:g} a step" + (f" and {counted[10] - 10 * slope:+g}" if counted[10] != 10 * slope else "")
    # A rule with half an evaluation per step may round up or down.
    wrong = [n for n in sorted(counted) if abs(counted[n] - promised[n]) >= 1]
    if wrong:
        shown = "; ".join(f"{counted[n]} evaluations instead of {promised[n]:g} at {n} steps" for n in wrong)
        # A scheduler may use another number of timesteps for n steps, and an implicit method as many evaluations as it needs.
        free = bench.sampler.iterates or (bench.sampler.foreign and bench.sampler.promised is None)
        settled = bench.sampler.scheduler is None and not free
        return Check.found("evaluations", False if settled else None, f"{shown} (otherwise {rule})")
    return Check.found("evaluations", True, f"{rule}: {counted[10]} for 10 steps, {counted[50]} for 50")


def _useless(bench: Bench) -> Check:
    """The check for evaluations made twice at one point, and for ones whose answer changes nothing."""
    x, times = bench.start(3), bench.times(6)
    watched = bench.watched()
    end = bench.run(watched, x, times)
    twice = [
        (i, j)
        for j, (t, y) in enumerate(watched.asked) for i, (s, z) in enumerate(watched.asked[:j]) if s == t and torch.equal(y, z)
    ]  # fmt: skip
    dummy = [k for k in range(len(watched.asked)) if torch.equal(bench.run(bench.watched(k), x, times), end)]
    found = []
    if twice:
        found.append(f"evaluation {twice[0][1] + 1} repeats evaluation {twice[0][0] + 1} (same x, same t); {len(twice)} such")
    if dummy:
        found.append(f"the answer of evaluation {dummy[0] + 1} of {len(watched.asked)} is not used; {len(dummy)} such")
    if found and bench.sampler.scheduler is not None:
        # The loop is that of its pipelines; a superfluous evaluation costs time, but no accuracy.
        return Check.found("wasted evaluations", None, "; ".join(found))
    return Check.found("wasted evaluations", not found, "; ".join(found) or f"none in {len(watched.asked)}: each one matters")


def _repeatable(bench: Bench) -> Check:
    """The check that the same call gives the same answer, also after a run on other starts."""
    x, times = bench.start(4), bench.times(10)
    first = bench.run(bench.watched(), x, times, 3)
    if not torch.equal(bench.run(bench.watched(), x, times, 3), first):
        return Check.found("repeatable", False, "the same start and seed give different ends")
    bench.run(bench.watched(), bench.start(4, seed=9), bench.times(5), 4)
    if not torch.equal(bench.run(bench.watched(), x, times, 3), first):
        return Check.found(
            "repeatable", False, "a run in between changes the result: something is kept from one run to the next"
        )
    return Check.found("repeatable", True, "the same start and seed give the same end, bit for bit")


def _batches(bench: Bench) -> Check:
    """The check that a row's end does not depend on other rows, at one seed and size of batch, which set the noise."""
    x, times = bench.start(6), bench.times(10)
    together = bench.run(bench.watched(), x, times)
    difference = 0.0
    # A leak from each row to the next spares the first row, and one in the other direction the last.
    for row in (0, -1):
        others = bench.start(6, seed=8)
        others[row] = x[row]
        changed = bench.run(bench.watched(), others, times)
        difference = max(difference, float((together[row] - changed[row]).abs().max()) / float(together.abs().max()))
    if difference > _ROUNDING and bench.sampler.scheduler is not None and bench.sampler.scheduler.batched:
        return Check.found(
            "batches", None, f"other rows in the batch change a row by {difference:.1e}: {bench.sampler.scheduler.batched}"
        )
    if difference > _ROUNDING:
        return Check.found("batches", False, f"other rows in the batch change a row by {difference:.1e} of its size")
    return Check.found("batches", True, "a row does not depend on the rest of its batch")


def _untouched_start(bench: Bench) -> Check:
    x = bench.start(3)
    kept = x.clone()
    with torch.random.fork_rng(devices=[]):
        bench.sampler.run(bench.watched(), x, bench.times(5), torch.Generator().manual_seed(0))
    same = torch.equal(x, kept)
    return Check.found("start", same, "left as it was" if same else "the start is overwritten: what the caller holds changes")


def _ends(bench: Bench) -> Check:
    """The check that both ends of the grid matter, as the last time does not in a run without its last step."""
    if bench.sampler.scheduler is not None:
        rho = bench.sampler.scheduler.levels(6)
        return Check.found("ends", None, f"it lays its own levels: 6 steps go from sigma/alpha = {rho[0]:.4g} to {rho[-1]:.4g}")
    x, times = bench.start(3), bench.times(6)
    end = bench.run(bench.watched(), x, times)
    unseen = [
        name
        for name, moved in (
            ("first", [times[0] - 0.1 * (times[0] - times[1]), *times[1:]]),
            ("last", [*times[:-1], times[-1] * 0.9]),
        )
        if torch.equal(bench.run(bench.watched(), x, moved), end)
    ]
    if unseen:
        return Check.found(
            "ends", False, f"the {' and the '.join(unseen)} time of the grid changes nothing: a step is missing there"
        )
    return Check.found("ends", True, "the run goes from the first time of the grid to the last")


def _order(bench: Bench) -> tuple[list[Check], OrderEstimate | None]:
    """Checks of the order against the exact flow, and of the limit of the error, with the measured order."""
    exact = fields.exact_field(bench.target, bench.path)
    x = bench.start(_STARTS)
    first, last = bench.times(_STEPS[0])[0], bench.times(_STEPS[0])[-1]
    true = reference(exact, x, first, last, 1e-12)
    errors = []
    try:
        for steps in _STEPS:
            errors.append(float((bench.run(exact, x, bench.times(steps)) - true.x).square().mean().sqrt()))
    except Exception as error:
        return [Check.found("order", False, f"raised {type(error).__name__} at {_STEPS[len(errors)]} steps: {error}")], None
    if not all(math.isfinite(error) for error in errors):
        return [Check.found("order", False, f"errors are not finite: {', '.join(f'{e:.1e}' for e in errors)}")], None
    shown = f"errors {errors[0]:.1e} at {_STEPS[0]} steps, {errors[-1]:.1e} at {_STEPS[-1]}"
    try:
        estimate = fit_order(_STEPS, errors, floor_of(true, x))
    except ArgumentError:
        good = errors[-1] < 1e-6 * exact.scale
        text = f"exact to rounding on this target: {shown}" if good else f"no order: {shown}"
        return [Check.found("order", good, text)], None
    claimed, slope = bench.sampler.claimed, estimate.slope
    stuck = slope < 0.4 and errors[-1] > 1e-4 * exact.scale
    limit = Check.found(
        "limit",
        not stuck,
        f"does NOT converge to the flow of the field: {shown}; more steps do not help"
        if stuck
        else f"converges to the exact flow: {shown}",
    )
    measured = f"order {slope:.2f} measured (95 %: {estimate.low:.2f} to {estimate.high:.2f})"
    if claimed is None:
        return [Check.found("order", None, f"{measured}; none is claimed"), limit], estimate
    extra = f"; {bench.sampler.documented}" if bench.sampler.documented else ""
    wide = estimate.high - estimate.low > _WIDE
    if slope < claimed - _SHORT and estimate.high > claimed - _SHORT and (wide or slope > claimed - 0.5) and not stuck:
        return [
            Check.found("order", None, f"order {claimed} is claimed, which these levels do not settle: {measured}{extra}"),
            limit,
        ], estimate
    if slope < claimed - _SHORT:
        words = {1: "first", 2: "second", 3: "third", 4: "fourth"}.get(round(slope), f"{slope:.1f}th") if not stuck else "no"
        text = f"order {claimed} is claimed, it is of {words} order: {measured}{extra}"
        return [Check.found("order", False, text), limit], estimate
    return [Check.found("order", True, f"order {claimed} as claimed: {measured}"), limit], estimate
