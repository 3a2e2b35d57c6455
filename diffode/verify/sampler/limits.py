"""Checks of a sampler's output: moments on a Gaussian and the law of a mixture in many steps, and a last step to sigma = 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from diffode import fields
from diffode.errors import DiffodeError
from diffode.fields import ExactField
from diffode.randomness import keyed
from diffode.targets import GaussianMixture
from diffode.verify.report import Check
from diffode.verify.sampler.trial import TARGET, Bench

#: Largest error of a moment that draws explain, in standard errors.
_DEVIATIONS = 5.0
#: Largest relative error of a moment that the number of steps explains.
_SHARE = 0.02
#: Largest limit of an error that goes to 0 with the number of steps.
_LIMIT = 0.005
#: Mean of the Gaussian.
_MEAN = 0.7
#: Variance of the Gaussian.
_VARIANCE = 0.25
#: Longest move of a last step to sigma = 0, in noise levels.
_ZERO_MOVE = 20.0
#: Largest distance of a sample from its mode, in standard deviations.
_ASTRAY = 8.0


def _gaussian(bench: Bench) -> tuple[GaussianMixture, ExactField]:
    target = GaussianMixture([1.0], [[_MEAN]], [[_VARIANCE]])
    return target, fields.exact_field(target, bench.path)


def moments(bench: Bench) -> Check:
    """The check of moments on a Gaussian, exact without sampling, since field and sampler are affine there."""
    steps = bench.sampler.law_steps
    once, bend = _errors(bench, steps)
    if bend > 1e-6:
        return Check.found("moments", None, f"not affine on a Gaussian (it bends by {bend:.1e}): moments are not read off")
    text = f"on a Gaussian, {steps} steps: mean off by {abs(once[0]):.1e} deviations, variance by {abs(once[1]):.1e} of itself"
    if max(map(abs, once)) < _SHARE:
        return Check.found("moments", True, text)
    # A method of first order may err much on a grid that does not suit it, so the limit of many steps counts.
    twice, _ = _errors(bench, 2 * steps)
    left = max(abs(2 * two - one) for one, two in zip(once, twice, strict=True))
    text += f"; {2 * steps}: {abs(twice[0]):.1e} and {abs(twice[1]):.1e}, which " + (
        "goes to 0" if left < _LIMIT else f"leaves {left:.1e} with any number of steps"
    )
    return Check.found("moments", left < _LIMIT, text)


def _errors(bench: Bench, steps: int) -> tuple[tuple[float, float], float]:
    """Error of the mean in deviations, relative error of the variance, and deviation of the sampler from an affine map."""
    _, exact = _gaussian(bench)
    path = bench.path
    times = bench.times(steps)
    x = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64) * path.sigma(times[0])
    low, centre, high = bench.run(exact, x, times)[:, 0].tolist()
    width = float(x[2] - x[0])
    gain = (high - low) / width
    bend = abs(centre - (low + gain * float(x[1] - x[0]))) / max(abs(high), abs(low), 1e-300)
    alpha, sigma = path.alpha(times[0]), path.sigma(times[0])
    start_mean, start_variance = alpha * _MEAN, alpha**2 * _VARIANCE + sigma**2
    mean, variance = centre + gain * start_mean, gain**2 * start_variance
    true_mean = path.alpha(times[-1]) * _MEAN
    true_variance = path.alpha(times[-1]) ** 2 * _VARIANCE + path.sigma(times[-1]) ** 2
    return ((mean - true_mean) / math.sqrt(true_variance), variance / true_variance - 1), bend


def law(bench: Bench) -> list[Check]:
    """Checks of mean and variance of the output on a Gaussian, and of the law on a mixture, within their intervals."""
    _, exact = _gaussian(bench)
    path, steps, draws = bench.path, bench.sampler.law_steps, bench.sampler.draws
    times = bench.times(steps)
    end = bench.run(exact, exact.prior(draws, generator=5), times, 6)[:, 0]
    true_mean = path.alpha(times[-1]) * _MEAN
    true_variance = path.alpha(times[-1]) ** 2 * _VARIANCE + path.sigma(times[-1]) ** 2
    deviation = math.sqrt(true_variance)
    mean_error, variance_error = float(end.mean()) - true_mean, float(end.var()) / true_variance - 1
    allowed = (
        (_DEVIATIONS / math.sqrt(draws) + _SHARE / 3) * deviation, _DEVIATIONS * math.sqrt(2 / draws) + _SHARE,
    )  # fmt: skip
    good = abs(mean_error) <= allowed[0] and abs(variance_error) <= allowed[1]
    text = (
        f"on a Gaussian, {steps} steps, {draws} draws: mean off by {mean_error / deviation:+.3f} deviations, variance by "
        f"{variance_error:+.3f} of itself (allowed {allowed[0] / deviation:.3f} and {allowed[1]:.3f})"
    )
    return [Check.found("moments", good, text), _mixture_law(bench, times)]


def _mixture_law(bench: Bench, times: Sequence[float]) -> Check:
    exact, draws = fields.exact_field(bench.target, bench.path), bench.sampler.draws
    x, true = (exact.marginal(draws, t, generator=keyed(k, "law"))[:, 0] for k, t in enumerate((times[0], times[-1])))
    end = bench.run(exact, x[:, None], times, 8)[:, 0]
    distance = float((end.sort().values - true.sort().values).abs().mean()) / exact.scale
    floor = float((exact.marginal(draws, times[-1], generator=11)[:, 0].sort().values - true.sort().values).abs().mean())
    allowed = 4 * floor / exact.scale + _SHARE
    text = f"distance to the law of {TARGET}: {distance:.4f} of its scale (exact draws: {floor / exact.scale:.4f})"
    good = distance <= allowed
    return Check.found("limit", good, ("converges to the right law: " if good else "ANOTHER law than the field's: ") + text)


def to_zero(bench: Bench) -> Check:
    """The check of a run whose last step goes to sigma = 0."""
    if not bench.sampler.to_zero:
        return Check.found("sigma = 0", None, "not asked: it lays its own grid")
    x = bench.start(4)
    try:
        end = bench.run(bench.watched(), x, bench.times(20, to_zero=True))
    except DiffodeError as error:
        return Check.found("sigma = 0", None, f"refuses a last step to sigma = 0: {error}")
    except Exception as error:
        return Check.found("sigma = 0", False, f"raises {type(error).__name__} in a last step to sigma = 0: {error}")
    if not bool(torch.isfinite(end).all()):
        return Check.found("sigma = 0", False, "gives non-finite values in a last step to sigma = 0")
    times = bench.times(19)
    before = bench.run(bench.watched(), x, times)
    scale = fields.exact_field(bench.target, bench.path).scale
    moved = float((end - before).abs().max()) / scale
    # A step from sigma ends within a few sigma/alpha of x/alpha, unless new noise moves it to another mode.
    allowed = max(_ZERO_MOVE * bench.path.rho(times[-1]) / scale, 1e-6)
    components = bench.target.means[:, 0], bench.target.components.variances()[:, 0].sqrt()
    astray = float(((end - components[0]).abs() / components[1]).amin(1).max())
    text = f"a last step to sigma = 0 is finite, {moved:.1e} of the scale from where it ends without"
    if astray > _ASTRAY and moved > allowed:
        return Check.found("sigma = 0", False, f"{text}, and {astray:.0f} deviations from any mode: that is no sample")
    return Check.found("sigma = 0", True, text)
