"""The laws of a target, which say that its samples, its density and its field belong to one distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffode.errors import DiffodeError
from diffode.fields import ExactField
from diffode.flows.integrated import integrated_flow
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.randomness import keyed, normal
from diffode.targets import Target
from diffode.targets import get as get_target
from diffode.testing.laws import Largest, Law, kept, tried
from diffode.verify import Check, Report, contract, typical_points
from diffode.verify.field.equations import pointwise
from diffode.verify.field.evolution import mass_check

#: Number of draws for moments.
_DRAWS = 8000
#: Largest error of a moment, in standard errors.
_DEVIATIONS = 6.0
#: Number of random directions, besides axes, in which the variance is compared.
_DIRECTIONS = 16
#: Number of points at each noise level.
_POINTS = 6
#: Places of these levels in the path's range, as shares of its log-SNR; long rows are tried at the two in the middle.
_PLACES = (0.1, 0.4, 0.6, 0.85)
#: Largest number of coordinates of a row that is not long.
_LONG = 128
#: Number of points at each noise level for long rows.
_FEW_POINTS = 2
#: Noise level of the law of noised samples, in root mean squares of the data.
_NOISE = 2.0
#: Noise level that is nearly none, in units of the data's scale.
_LEAST_NOISE = 1e-9
#: Largest change of a log-density by that noise.
_NEAR = 1e-6
#: Largest dimension in which the density is summed over a box.
_BOX = 2
#: Largest relative difference of a target and the mixture that it says it is.
_ROUNDING = 1e-9
#: Largest relative error of scale and variance against the covariance.
_SAME = 1e-12


def check_target(target: Target | str, *, path: Path | str = "edm", seed: int = 0) -> Report:
    """Hold a target to the laws that every target keeps; see docs/verification.md for the list.

    Args:
        target: a target or its spec.
        path: the path along which it is noised, or its spec.
        seed: seed of all draws.

    Returns:
        The report of all checks.

    Raises:
        LawError: if a law is broken; the message names it, the numbers and the place.

    >>> check_target("ring8").passed
    True
    """
    of, on = get_target(target), get_path(path)
    subject = f"target {target if isinstance(target, str) else of!r}"
    checks = [
        tried(name, law)
        for name, law in {
            "samples": lambda: _samples(of, seed),
            "scale and variance belong to the covariance": lambda: _scale(of),
            "mean of the samples": lambda: _mean(of, seed),
            "covariance of the samples": lambda: _covariance(of, seed),
            "noised law is that of the samples": lambda: _convolution(of, seed),
            "log_prob is the law at no noise": lambda: _at_no_noise(of, seed),
            "content": lambda: _content(of, target if isinstance(target, str) else None),
        }.items()
    ]
    if any(check.name == "samples" and not check.passed for check in checks):
        return kept(subject, checks)
    field = ExactField(of, on)
    try:
        checks += _of_the_field(field, seed)
    except Exception as error:  # anyone's code may raise anything
        checks.append(Check.found("equations of the field", False, f"raised {type(error).__name__}: {error}"))
    if of.as_mixture() is not of:
        checks.append(tried("mixture is the same law", lambda: _mixture(of, seed)))
    if of.exact_flow(on) is not None:
        checks.append(tried("exact flow is that of the field", lambda: _exact_flow(field, seed)))
    if of.dim <= _BOX:
        mass: Law = lambda: mass_check(field)  # noqa: E731
        checks.append(tried("mass is 1", mass))
    return kept(subject, checks)


def _of_the_field(field: ExactField, seed: int) -> list[Check]:
    """The contract with solvers, and the equations at a few points."""
    path, long = field.path, field.target.dim > _LONG
    first, last = path.log_snr(path.t_max), path.log_snr(path.t_min)
    levels = [math.exp(-first - (last - first) * share) for share in (_PLACES[1:3] if long else _PLACES)]
    # Points are asked for at noise levels in units of the scale if that is above 1.
    unit = max(1.0, field.scale)
    where = typical_points(
        field, _FEW_POINTS if long else _POINTS, levels=[v / unit if v > unit else min(v, 1.0) for v in levels], seed=seed
    )
    x, t = where.points[-1], where.times[-1]
    return [*contract(field, x[:3], t), *pointwise(field, where)]


def _samples(target: Target, seed: int) -> Check:
    name = "samples"
    x = target.sample(7, generator=seed)
    if tuple(x.shape) != (7, target.dim) or x.dtype != torch.float64:
        return Check.found(
            name, False, f"sample(7) has shape {tuple(x.shape)} and {x.dtype}, not (7, {target.dim}) and float64"
        )
    if not bool(torch.isfinite(x).all()):
        return Check.found(name, False, f"sample(7) with seed {seed} is not finite")
    single = target.sample(7, generator=seed, dtype=torch.float32)
    if single.dtype != torch.float32:
        return Check.found(name, False, f"sample(dtype=torch.float32) gives {single.dtype}")
    if not torch.equal(target.sample(7, generator=seed), x):
        return Check.found(name, False, f"seed {seed} gives other samples the second time: draw from the generator alone")
    if torch.equal(target.sample(7, generator=seed + 1), x):
        return Check.found(name, False, f"seeds {seed} and {seed + 1} give the same samples: draw from the generator")
    return Check.found(name, True, f"shape, dtype, and one seed, one answer (seed {seed})")


def _scale(target: Target) -> Check:
    name = "scale and variance belong to the covariance"
    diagonal, variance = target.covariance.diagonal(), target.variance
    if tuple(target.mean.shape) != (target.dim,) or tuple(target.covariance.shape) != (target.dim, target.dim):
        detail = f"mean has shape {tuple(target.mean.shape)}, covariance {tuple(target.covariance.shape)}, dim is {target.dim}"
        return Check.found(name, False, detail)
    size = max(float(diagonal.max()), 1e-300)
    error = max(float((diagonal - variance).abs().max()) / size, abs(target.scale**2 - float(variance.mean())) / size)
    if size == 1e-300:
        error = abs(target.scale - 1)
    asymmetry = float((target.covariance - target.covariance.T).abs().max()) / size
    return Check(name, max(error, asymmetry), _SAME, f"scale {target.scale:.6g}")


def _drawn(target: Target, seed: int) -> Tensor:
    return target.sample(_DRAWS, generator=keyed(seed, "laws", "moments"))


def _mean(target: Target, seed: int) -> Check:
    x = _drawn(target, seed)
    error = (x.mean(0) - target.mean).abs() / (target.variance / _DRAWS).sqrt().clamp(min=1e-12 * target.scale)
    k = int(error.argmax())
    place = f"standard errors of {_DRAWS} draws, in coordinate {k}: {float(x.mean(0)[k]):.6g}, not {float(target.mean[k]):.6g}"
    return Check("mean of the samples", float(error.max()), _DEVIATIONS, place)


def _covariance(target: Target, seed: int) -> Check:
    """The variance along axes and random directions, in standard errors of the draws."""
    x = _drawn(target, seed) - target.mean
    axes = torch.eye(target.dim, dtype=torch.float64)[: 8 * _DIRECTIONS]
    turned = normal((_DIRECTIONS, target.dim), generator=keyed(seed, "laws", "directions"))
    directions = torch.cat([axes, turned / turned.norm(dim=1, keepdim=True)])
    square = (x @ directions.T).square()
    known = ((directions @ target.covariance) * directions).sum(1)
    # The bound is for coordinates without spread, whose standard error is 0.
    spread = (square.std(0) / math.sqrt(_DRAWS)).clamp(min=1e-12 * target.scale**2)
    error = (square.mean(0) - known).abs() / spread
    k = int(error.argmax())
    where = f"coordinate {k}" if k < len(axes) else f"random direction {k - len(axes)}"
    place = f"standard errors of {_DRAWS} draws, along {where}: {float(square.mean(0)[k]):.6g}, not {float(known[k]):.6g}"
    return Check("covariance of the samples", float(error.max()), _DEVIATIONS, place)


def _convolution(target: Target, seed: int) -> Check:
    """p(x_t) = E N(x_t; x_0, sigma^2) over the samples, at noise of the size of the data, where a few thousand suffice."""
    x0 = _drawn(target, seed)
    size = float((target.variance.sum() + target.mean.square().sum()).sqrt())
    sigma = _NOISE * size if size else 1.0
    y = x0[:_POINTS] + sigma * normal((_POINTS, target.dim), generator=keyed(seed, "laws", "noise"))
    logs = -(y[:, None] - x0).square().sum(2) / (2 * sigma**2) - target.dim / 2 * math.log(2 * math.pi * sigma**2)
    known = target.noised_log_prob(y, 1.0, sigma)
    ratio = (logs - known[:, None]).exp()
    error = (ratio.mean(1) - 1).abs() / (ratio.std(1) / math.sqrt(_DRAWS)).clamp(min=1e-9)
    k = int(error.argmax())
    place = (
        f"standard errors of {_DRAWS} draws: the density is {1 / float(ratio.mean(1)[k]):.6g} of theirs at sigma={sigma:.4g}"
    )
    return Check("noised law is that of the samples", float(error.max()), _DEVIATIONS, place)


def _at_no_noise(target: Target, seed: int) -> Check:
    name = "log_prob is the law at no noise"
    x = target.sample(_POINTS, generator=seed)
    try:
        value = target.log_prob(x)
    except DiffodeError as error:
        return Check.found(name, None, str(error))
    least = _LEAST_NOISE * target.scale
    change = (target.noised_log_prob(x, 1.0, least) - value).abs() / (1 + value.abs())
    k = int(change.argmax())
    return Check(name, float(change.max()), _NEAR, f"of log_prob, with noise of {least:.1e} at sample {k} of seed {seed}")


def _mixture(target: Target, seed: int) -> Check:
    """What the target calls its mixture has its density and its denoised points, at noise of a scale and less."""
    name, mixture, worst = "mixture is the same law", target.as_mixture(), Largest()
    if mixture is None:
        return Check.found(name, None, "none is named")
    x0 = target.sample(_POINTS, generator=seed)
    for level in (0.1, 1.0):
        sigma = level * target.scale
        x = x0 + sigma * normal(x0.shape, generator=keyed(seed, "laws", "mixture"))
        own_law, other_law = (
            [law.noised_log_prob(x, 1.0, sigma), law.noised_view(x, 1.0, sigma, 1.0, 0.0)] for law in (target, mixture)
        )
        for kind, own, other in zip(("log-density", "denoised point"), own_law, other_law, strict=True):
            size = 1 + float(other.abs().max())
            worst.see(float((own - other).abs().max()) / size, f"of the {kind}, at sigma={sigma:.4g}, seed {seed}")
    return worst.check(name, _ROUNDING)


def _exact_flow(field: ExactField, seed: int) -> Check:
    """The flow that the target knows ends where an integration of its field does, in either direction."""
    name, path = "exact flow is that of the field", field.path
    flow, worst = field.target.exact_flow(path), Largest()
    if flow is None:
        return Check.found(name, None, "none is known")
    first, last = path.log_snr(path.t_max), path.log_snr(path.t_min)
    times = [path.time_from_log_snr(first + (last - first) * share) for share in (_PLACES[0], _PLACES[-1])]
    for start, stop in (times, times[::-1]):
        x = field.marginal(_POINTS, start, generator=seed)
        ends, _ = flow(x, start, stop)
        with field.uncounted():
            true, _ = integrated_flow(field, x, start, stop, 1e-10, False, x.shape[1:])
        size = math.hypot(path.alpha(stop) * field.scale, path.sigma(stop))
        worst.see(float((ends - true).abs().max()) / size, f"of a state, from t={start:.4g} to t={stop:.4g}, seed {seed}")
    return worst.check(name, _NEAR)


def _content(target: Target, spec: str | None) -> Check:
    try:
        content = target.content()
    except NotImplementedError as error:
        return Check.found("content", None, str(error))
    if not isinstance(content, str) or not content:
        return Check.found("content", False, f"content() must be a text, got {content!r}")
    again = target.content() if spec is None else get_target(spec).content()
    same = content == again
    return Check.found("content", same, f"{content} the first time, {again} the second" if not same else content)
