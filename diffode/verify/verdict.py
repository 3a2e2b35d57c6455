r"""The verdict on a sampler: what it promises, and what it does on fields whose flow is known exactly.

Deterministic samplers are held against the exact flow of a one-dimensional mixture, samplers that draw noise against the exact
law. All is measured by watching the calls of the field; the sampler itself is not looked into.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffode import fields, grids, paths
from diffode.errors import ArgumentError, DiffodeError
from diffode.fields import ExactField
from diffode.references import reference
from diffode.targets import GaussianMixture
from diffode.targets import get as get_target
from diffode.targets.target import Scalar, Target
from diffode.verify.order import OrderEstimate, fit_order
from diffode.verify.sampler import Sampler

_TARGET = "bimodal1d"
_STEPS = (16, 32, 64, 128, 256, 512)
_POINTS = 24
#: A slope may fall short of the claim by this much.
_SHORT = 0.3
#: An interval wider than this says nothing: a high order is at rounding before it shows.
_WIDE = 3.0
#: Rows alone and in a batch may differ by rounding: this share of the largest state.
_ROUNDING = 1e-9
#: Draws for moments, standard errors that they may be off, and the share of a moment that 400 steps may be off.
_DRAWS, _DEVIATIONS, _SHARE, _LAW_STEPS = 40_000, 5.0, 0.02, 400
_MEAN, _VARIANCE = 0.7, 0.25


@dataclass(frozen=True)
class Finding:
    """One sentence of a verdict; ``passed`` is None for a remark that is neither good nor bad."""

    topic: str
    passed: bool | None
    text: str


@dataclass(frozen=True)
class Verdict:
    """What was found about a sampler; ``order`` is its measured order, if there is one."""

    sampler: str
    findings: tuple[Finding, ...]
    order: OrderEstimate | None

    @property
    def passed(self) -> bool:
        """Whether nothing was found wrong."""
        return all(finding.passed is not False for finding in self.findings)

    def finding(self, topic: str) -> Finding:
        """The finding on a topic."""
        return next(finding for finding in self.findings if finding.topic == topic)


class Watched(ExactField):
    """An exact field that notes every call, and can falsify one of its answers to see whether it matters."""

    def __init__(self, target: Target, path: paths.Path, falsified: int | None = None):
        super().__init__(target, path)
        self.asked: list[tuple[float, Tensor]] = []
        self._falsified = falsified

    def predict(self, prediction: fields.Prediction, x: Tensor, t: Scalar) -> Tensor:  # noqa: D102
        when = float(t.reshape(-1)[0]) if isinstance(t, Tensor) else float(t)
        self.asked.append((when, x.detach().clone()))
        answer = super().predict(prediction, x, t)
        return answer * 1.01 + 0.01 if len(self.asked) - 1 == self._falsified else answer


@dataclass
class _Bench:
    """A sampler with the paths, grids and starts that all checks share."""

    sampler: Sampler
    path: paths.Path
    target: Target = field(default_factory=lambda: get_target(_TARGET))

    def times(self, steps: int, to_zero: bool = False) -> list[float]:
        spec = self.sampler.grid
        if to_zero:
            spec += ("," if ":" in spec else ":") + "to_zero=true"
        times: list[float] = grids.get(spec, self.path, steps).tolist()
        return times

    def start(self, count: int, target: Target | None = None, seed: int = 0) -> Tensor:
        return fields.exact_field(target or self.target, self.path).prior(count, generator=seed)

    def run(self, on: ExactField, x: Tensor, times: Sequence[float], seed: int = 0) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            # A sampler that draws from the global generator is repeatable too.
            torch.manual_seed(seed + 1)
            end = self.sampler.run(on, x.clone(), times, torch.Generator().manual_seed(seed))
        if not isinstance(end, Tensor):
            raise ArgumentError(f"the sampler returned {type(end).__name__}, not the end points (a tensor)")
        return end.detach()

    def watched(self, falsified: int | None = None) -> Watched:
        return Watched(self.target, self.path, falsified)


def check_sampler(sampler: Sampler) -> Verdict:
    """Judge a sampler; see :func:`diffode.verify.sampler.find_sampler` for what can be one.

    >>> from diffode.verify.sampler import find_sampler
    >>> check_sampler(find_sampler("heun:chart=noise")).passed
    True
    """
    bench = _Bench(sampler, paths.get(sampler.path))
    first = _answers(bench)
    if first.passed is False:
        return Verdict(sampler.name, (first,), None)
    try:
        stochastic = _stochastic(bench)
    except Exception as error:  # anyone's sampler may fail on its second run
        failed = Finding("repeatable", False, f"a second run raised {type(error).__name__}: {error}")
        return Verdict(sampler.name, (first, failed), None)
    findings = [first]
    for check in (_evaluations, _useless, _ends, _repeatable, _batches, _untouched_start):
        findings += _safely(check, bench)
    kind = "draws noise" if stochastic else "deterministic"
    findings.append(Finding("noise", None, f"{kind}: ends {'differ' if stochastic else 'are equal'} for different seeds"))
    estimate = None
    if stochastic:
        findings += _safely(_law, bench)
    else:
        try:
            found, estimate = _order(bench)
        except Exception as error:
            found = [Finding("order", False, f"raised {type(error).__name__}: {error}")]
        findings += [*found, *_safely(_affine, bench)]
    findings += _safely(_zero, bench)
    return Verdict(sampler.name, tuple(findings), estimate)


def _safely(check: Callable[[_Bench], Finding | list[Finding]], bench: _Bench) -> list[Finding]:
    try:
        found = check(bench)
    except Exception as error:  # anyone's sampler may raise anything
        return [Finding(check.__name__.strip("_"), False, f"raised {type(error).__name__}: {error}")]
    return found if isinstance(found, list) else [found]


def _answers(bench: _Bench) -> Finding:
    """It runs, in float64 and float32, and gives finite points of the right shape and dtype."""
    for dtype in (torch.float64, torch.float32):
        x = bench.start(6).to(dtype)
        try:
            end = bench.run(bench.watched(), x, bench.times(10))
        except DiffodeError as error:
            return Finding("runs", False, str(error))
        except Exception as error:
            return Finding("runs", False, f"raised {type(error).__name__}: {error} (10 steps, x {dtype} {tuple(x.shape)})")
        if end.shape != x.shape:
            return Finding("runs", False, f"returned shape {tuple(end.shape)} from a start of shape {tuple(x.shape)}")
        if not bool(torch.isfinite(end).all()):
            return Finding("runs", False, f"returned non-finite values with 10 steps ({dtype})")
        if end.dtype != dtype and dtype == torch.float64:
            return Finding("runs", False, f"turned {dtype} into {end.dtype}: digits are lost")
        if end.dtype != dtype:
            return Finding("runs", None, f"runs; turns {dtype} into {end.dtype}, which costs time and memory")
    return Finding("runs", True, "10 steps give finite points of the shape and dtype of the start")


def _stochastic(bench: _Bench) -> bool:
    x, times = bench.start(4), bench.times(10)
    return not torch.equal(bench.run(bench.watched(), x, times, 0), bench.run(bench.watched(), x, times, 1))


def _evaluations(bench: _Bench) -> Finding:
    """NFE promised and counted; a library that promises none is held to the line through 10 and 20 steps."""
    x, counted = bench.start(3), {}
    for steps in (10, 20, 7, 49, 50):
        watched = bench.watched()
        bench.run(watched, x, bench.times(steps))
        counted[steps] = len(watched.asked)
    if bench.sampler.promised is not None:
        promised = {steps: bench.sampler.promised(steps) for steps in counted}
        rule = "as it promises"
    else:
        slope = (counted[20] - counted[10]) / 10
        promised = {steps: round(counted[10] + slope * (steps - 10)) for steps in counted}
        rule = f"{slope:g} a step" + (f" and {counted[10] - 10 * slope:+g}" if counted[10] != 10 * slope else "")
    wrong = [n for n in sorted(counted) if counted[n] != promised[n]]
    if wrong:
        shown = "; ".join(f"{counted[n]} evaluations instead of {promised[n]} at {n} steps" for n in wrong)
        return Finding("evaluations", False, f"{shown} (otherwise {rule})")
    return Finding("evaluations", True, f"{rule}: {counted[10]} for 10 steps, {counted[50]} for 50")


def _useless(bench: _Bench) -> Finding:
    """Evaluations made twice at the same point, and evaluations whose answer changes nothing."""
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
    return Finding("wasted evaluations", not found, "; ".join(found) or f"none in {len(watched.asked)}: each one matters")


def _repeatable(bench: _Bench) -> Finding:
    """The same call gives the same answer, also after a run on something else."""
    x, times = bench.start(4), bench.times(10)
    first = bench.run(bench.watched(), x, times, 3)
    if not torch.equal(bench.run(bench.watched(), x, times, 3), first):
        return Finding("repeatable", False, "the same start and seed give different ends")
    bench.run(bench.watched(), bench.start(4, seed=9), bench.times(5), 4)
    if not torch.equal(bench.run(bench.watched(), x, times, 3), first):
        return Finding("repeatable", False, "a run in between changes the result: something is kept from one run to the next")
    return Finding("repeatable", True, "the same start and seed give the same end, bit for bit")


def _batches(bench: _Bench) -> Finding:
    """A row's end does not depend on the other rows: compared at the same seed and size of batch, which noise depends on."""
    x, times = bench.start(6), bench.times(10)
    together = bench.run(bench.watched(), x, times)
    difference = 0.0
    # The first row may be spared by a leak from one row to the next, the last by one the other way.
    for row in (0, -1):
        others = bench.start(6, seed=8)
        others[row] = x[row]
        changed = bench.run(bench.watched(), others, times)
        difference = max(difference, float((together[row] - changed[row]).abs().max()) / float(together.abs().max()))
    if difference > _ROUNDING:
        return Finding("batches", False, f"other rows in the batch change a row by {difference:.1e} of its size")
    return Finding("batches", True, "a row does not depend on the rest of its batch")


def _untouched_start(bench: _Bench) -> Finding:
    x = bench.start(3)
    kept = x.clone()
    with torch.random.fork_rng(devices=[]):
        bench.sampler.run(bench.watched(), x, bench.times(5), torch.Generator().manual_seed(0))
    same = torch.equal(x, kept)
    return Finding("start", same, "left as it was" if same else "the start is overwritten: what the caller holds changes")


def _ends(bench: _Bench) -> Finding:
    """Both ends of the grid matter: a run that leaves its last step out does not see the last time."""
    x, times = bench.start(3), bench.times(6)
    end = bench.run(bench.watched(), x, times)
    unseen = [
        name
        for name, moved in (("first", [times[0] * 0.99, *times[1:]]), ("last", [*times[:-1], times[-1] * 0.9]))
        if torch.equal(bench.run(bench.watched(), x, moved), end)
    ]
    if unseen:
        return Finding(
            "ends", False, f"the {' and the '.join(unseen)} time of the grid changes nothing: a step is missing there"
        )
    return Finding("ends", True, "the run goes from the first time of the grid to the last")


def _order(bench: _Bench) -> tuple[list[Finding], OrderEstimate | None]:
    """The slope of the end-point error against the exact flow, and whether the error goes to 0."""
    exact = fields.exact_field(bench.target, bench.path)
    x = bench.start(_POINTS)
    first, last = bench.times(_STEPS[0])[0], bench.times(_STEPS[0])[-1]
    true = reference(exact, x, first, last, 1e-12)
    errors = []
    try:
        for steps in _STEPS:
            errors.append(float((bench.run(exact, x, bench.times(steps)) - true.x).square().mean().sqrt()))
    except Exception as error:
        return [Finding("order", False, f"raised {type(error).__name__} at {_STEPS[len(errors)]} steps: {error}")], None
    if not all(math.isfinite(error) for error in errors):
        return [Finding("order", False, f"errors are not finite: {', '.join(f'{e:.1e}' for e in errors)}")], None
    shown = f"errors {errors[0]:.1e} at {_STEPS[0]} steps, {errors[-1]:.1e} at {_STEPS[-1]}"
    floor = max(float(true.errors.square().mean().sqrt()), 1e-14 * float(x.abs().max()))
    try:
        estimate = fit_order(_STEPS, errors, floor)
    except ArgumentError:
        good = errors[-1] < 1e-6 * exact.scale
        text = f"exact to rounding on this target: {shown}" if good else f"no order: {shown}"
        return [Finding("order", good, text)], None
    claimed, slope = bench.sampler.claimed, estimate.slope
    stuck = slope < 0.4 and errors[-1] > 1e-4 * exact.scale
    limit = Finding(
        "limit",
        not stuck,
        f"does NOT converge to the flow of the field: {shown}; more steps do not help"
        if stuck
        else f"converges to the exact flow: {shown}",
    )
    measured = f"order {slope:.2f} measured (95 %: {estimate.low:.2f} to {estimate.high:.2f})"
    if claimed is None:
        return [Finding("order", None, f"{measured}; none is claimed"), limit], estimate
    extra = f"; {bench.sampler.documented}" if bench.sampler.documented else ""
    wide = estimate.high - estimate.low > _WIDE
    if slope < claimed - _SHORT and estimate.high > claimed - _SHORT and (wide or slope > claimed - 0.5) and not stuck:
        return [
            Finding("order", None, f"order {claimed} is claimed, which these levels do not settle: {measured}{extra}"),
            limit,
        ], estimate
    if slope < claimed - _SHORT:
        words = {1: "first", 2: "second", 3: "third", 4: "fourth"}.get(round(slope), f"{slope:.1f}th") if not stuck else "no"
        text = f"order {claimed} is claimed, it is of {words} order: {measured}{extra}"
        return [Finding("order", False, text), limit], estimate
    return [Finding("order", True, f"order {claimed} as claimed: {measured}"), limit], estimate


def _gaussian(bench: _Bench) -> tuple[GaussianMixture, ExactField]:
    target = GaussianMixture([1.0], [[_MEAN]], [[_VARIANCE]])
    return target, fields.exact_field(target, bench.path)


def _affine(bench: _Bench) -> Finding:
    """On a Gaussian the field is affine, and so is a sampler made of sums: its output's moments are exact, without sampling."""
    _, exact = _gaussian(bench)
    path = bench.path
    times = bench.times(_LAW_STEPS)
    x = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64) * path.sigma(times[0])
    low, centre, high = bench.run(exact, x, times)[:, 0].tolist()
    width = float(x[2] - x[0])
    gain = (high - low) / width
    bend = abs(centre - (low + gain * float(x[1] - x[0]))) / max(abs(high), abs(low), 1e-300)
    if bend > 1e-6:
        return Finding("moments", None, f"not affine on a Gaussian (it bends by {bend:.1e}): moments are not read off")
    alpha, sigma = path.alpha(times[0]), path.sigma(times[0])
    start_mean, start_variance = alpha * _MEAN, alpha**2 * _VARIANCE + sigma**2
    mean, variance = centre + gain * start_mean, gain**2 * start_variance
    true_mean = path.alpha(times[-1]) * _MEAN
    true_variance = path.alpha(times[-1]) ** 2 * _VARIANCE + path.sigma(times[-1]) ** 2
    errors = abs(mean - true_mean) / math.sqrt(true_variance), abs(variance / true_variance - 1)
    good = max(errors) < _SHARE
    text = f"on a Gaussian, {_LAW_STEPS} steps: mean off by {errors[0]:.1e} deviations, variance by {errors[1]:.1e} of itself"
    return Finding("moments", good, text)


def _law(bench: _Bench) -> list[Finding]:
    """Mean and variance of the output on a Gaussian, and the share of a mixture's modes, within their intervals."""
    _, exact = _gaussian(bench)
    path, times = bench.path, bench.times(_LAW_STEPS)
    end = bench.run(exact, exact.prior(_DRAWS, generator=5), times, 6)[:, 0]
    true_mean = path.alpha(times[-1]) * _MEAN
    true_variance = path.alpha(times[-1]) ** 2 * _VARIANCE + path.sigma(times[-1]) ** 2
    deviation = math.sqrt(true_variance)
    mean_error, variance_error = float(end.mean()) - true_mean, float(end.var()) / true_variance - 1
    allowed = (
        (_DEVIATIONS / math.sqrt(_DRAWS) + _SHARE / 3) * deviation, _DEVIATIONS * math.sqrt(2 / _DRAWS) + _SHARE,
    )  # fmt: skip
    good = abs(mean_error) <= allowed[0] and abs(variance_error) <= allowed[1]
    text = (
        f"on a Gaussian, {_LAW_STEPS} steps, {_DRAWS} draws: mean off by {mean_error / deviation:+.3f} deviations, variance by "
        f"{variance_error:+.3f} of itself (allowed {allowed[0] / deviation:.3f} and {allowed[1]:.3f})"
    )
    return [Finding("moments", good, text), _mixture_law(bench, times)]


def _mixture_law(bench: _Bench, times: Sequence[float]) -> Finding:
    exact = fields.exact_field(bench.target, bench.path)
    x, true = (exact.marginal(_DRAWS, t, generator=7 + k)[:, 0] for k, t in enumerate((times[0], times[-1])))
    end = bench.run(exact, x[:, None], times, 8)[:, 0]
    distance = float((end.sort().values - true.sort().values).abs().mean()) / exact.scale
    floor = float((exact.marginal(_DRAWS, times[-1], generator=11)[:, 0].sort().values - true.sort().values).abs().mean())
    allowed = 4 * floor / exact.scale + _SHARE
    text = f"distance to the law of {_TARGET}: {distance:.4f} of its scale (exact draws: {floor / exact.scale:.4f})"
    good = distance <= allowed
    return Finding("limit", good, ("converges to the right law: " if good else "ANOTHER law than the field's: ") + text)


def _zero(bench: _Bench) -> Finding:
    """A grid whose last step goes to sigma = 0."""
    if not bench.sampler.to_zero:
        return Finding("sigma = 0", None, "not asked: it lays its own grid")
    x = bench.start(4)
    try:
        end = bench.run(bench.watched(), x, bench.times(20, to_zero=True))
    except DiffodeError as error:
        return Finding("sigma = 0", None, f"refuses a last step to sigma = 0: {error}")
    except Exception as error:
        return Finding("sigma = 0", False, f"raises {type(error).__name__} in a last step to sigma = 0: {error}")
    if not bool(torch.isfinite(end).all()):
        return Finding("sigma = 0", False, "gives non-finite values in a last step to sigma = 0")
    before = bench.run(bench.watched(), x, bench.times(19))
    moved = float((end - before).abs().max()) / fields.exact_field(bench.target, bench.path).scale
    return Finding(
        "sigma = 0", True, f"a last step to sigma = 0 is finite, {moved:.1e} of the scale from where it ends without"
    )
