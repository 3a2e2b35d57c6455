r"""Likelihoods by the probability flow, with the divergence exact or estimated by Hutchinson's probes.

.. math::
    \log p_t(x) = \log p_T(\Phi(x)) + \int_t^T \nabla\cdot v(x_s, s)\,ds

along the flow from t to T (Chen et al. 2018; Song et al., arXiv 2011.13456, section 4.3). Hutchinson's estimator replaces the
divergence by the mean of :math:`e^T(\nabla v)e` over probes e with entries +-1, fixed along the flow. The mean over all
:math:`2^D` of them is the divergence itself, so that the estimator can be tested without noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.integrate import DOP853, solve_ivp
from torch import Tensor

from diffode.errors import ArgumentError, FieldError
from diffode.fields import ExactField, Field
from diffode.flows import reference
from diffode.flows.integrated import MOST_EVALUATIONS, check_leaves_zero, least_rho, limited, too_fine
from diffode.input_files import shown
from diffode.randomness import Randomness, generator_from, row_generators
from diffode.verify.report import Check

#: Largest relative error of a round trip along the flow.
_ROUND_TRIP = 1e-10
#: Largest relative error of Hutchinson's estimator over all signs.
_ALL_SIGNS = 1e-11
#: Relative tolerance of DOP853 in checks.
_RTOL = 1e-10
#: Largest dimension in which all signs are tried.
_MOST_SIGNS = 10
#: Distance of states from 0, in standard deviations, beyond which their relative error matters in the density.
_FAR = 100.0
#: Distance from the time at which alpha is 0, relative to that time, at which the divergence there is computed.
_BESIDE = 1e-10


def log_likelihood(
    field: Field,
    x: Tensor,
    t: float | None = None,
    *,
    divergence: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    generator: Randomness | None = None,
    base: Callable[[Tensor], Tensor] | None = None,
    base_time: float | None = None,
    tolerance: float = 1e-8,
    differentiable: bool = False,
) -> Tensor:
    """log p_t(x) of the law that the flow carries to time t, (B,) float64.

    Args:
        field: any field; one without a path needs ``t``, ``base`` and ``base_time``.
        x: points at time ``t``, (B, *shape).
        t: their time; ``path.t_min`` unless given. If sigma is 0 there, the limit is taken, for data that have a density.
        divergence: ``"exact"`` (a closed form, or one backward pass for each coordinate) or ``"hutchinson"``.
        probes: number of probes of Hutchinson's estimator for each row.
        generator: generator or seed of the probes.
        base: log-density at ``base_time``, a function from (B, *shape) to (B,); by default that of the exact law if it is
            known, else of N(0, sigma^2).
        base_time: time of ``base``; ``path.t_max`` unless given.
        tolerance: relative tolerance of DOP853, from 1e-13 to 1e-3.
        differentiable: keep the graph, for gradients by the field's parameters. The graph is kept too if x requires a
            gradient. The steps are those of a first run without a graph.

    Raises:
        ArgumentError: for a wrong argument. FieldError: if the field can't be differentiated, or has no path and no base.

    >>> import diffode
    >>> field = diffode.exact_field("gauss1d", "vp")
    >>> x = field.marginal(3, field.path.t_min, generator=0)
    >>> bool(((log_likelihood(field, x) - field.log_prob(x, field.path.t_min)).abs() < 1e-6).all())
    True
    """
    begin, end = _times(field, x, t, base, base_time, tolerance)
    signs = _signs(x, divergence, probes, generator)
    graph = differentiable or (x.requires_grad and torch.is_grad_enabled())
    ends, integral = flow_with_divergence(field, x, begin, end, tolerance, signs, differentiable=graph)
    return _known(field, ends, end, base) + integral


def sample_with_likelihood(
    field: Field,
    x: Tensor,
    t: float | None = None,
    *,
    divergence: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    generator: Randomness | None = None,
    base: Callable[[Tensor], Tensor] | None = None,
    base_time: float | None = None,
    tolerance: float = 1e-8,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Samples and their log-densities in one pass: the ends of the flow from starts, and log p_t there.

    Args:
        field: any field; one without a path needs ``t``, ``base`` and ``base_time``.
        x: starts at ``base_time``, (B, *shape), drawn from the law of ``base``.
        t: the time of the samples, with sigma > 0; ``path.t_min`` unless given.
        divergence, probes, generator, base, base_time, tolerance, differentiable: as in :func:`log_likelihood`.

    Returns:
        The samples, (B, *shape) float64, and their log-densities, (B,) float64. Evaluations are not counted.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> samples, log_prob = sample_with_likelihood(field, field.prior(3, generator=0))
    >>> bool(((log_prob - field.log_prob(samples, 0.002)).abs() < 1e-6).all())
    True
    """
    end, begin = _times(field, x, t, base, base_time, tolerance)
    if field.path is not None and field.path.sigma(end) == 0:
        raise ArgumentError(f"t must be a time with some noise, got {end!r}: give t, for instance {1e-3 * begin:g}")
    signs = _signs(x, divergence, probes, generator)
    graph = differentiable or (x.requires_grad and torch.is_grad_enabled())
    ends, integral = flow_with_divergence(field, x, begin, end, tolerance, signs, differentiable=graph)
    return ends, _known(field, x.to(torch.float64), begin, base) - integral


def _signs(x: Tensor, divergence: str, probes: int, generator: Randomness | None) -> Tensor | None:
    """Hutchinson's probes (probes, B, *shape), or None for the exact divergence."""
    if divergence == "exact":
        return None
    if divergence != "hutchinson":
        raise ArgumentError(f"divergence must be 'exact' or 'hutchinson', got {divergence!r}")
    if generator is None:
        raise ArgumentError("Hutchinson's estimator draws probes: pass generator=")
    if type(probes) is not int or probes < 1:
        raise ArgumentError(f"probes must be an integer >= 1, got {probes!r}")
    each = row_generators(generator, len(x))
    if each is None:
        return _coins((probes, *x.shape), generator_from(generator)).to(x.device)
    return torch.cat([_coins((probes, 1, *x.shape[1:]), source) for source in each], 1).to(x.device)


def _coins(shape: Sequence[int], source: torch.Generator) -> Tensor:
    """Signs, 1 or -1, float64 and on the generator's device."""
    return 2.0 * torch.randint(0, 2, tuple(shape), generator=source, device=source.device).to(torch.float64) - 1


def _known(field: Field, x: Tensor, t: float, base: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The log-density at the noisy end of the flow, (B,): that of ``base``, of the exact law, or of N(0, sigma^2)."""
    if base is not None:
        return base(x)
    if isinstance(field, ExactField):
        return field.log_prob(x, t)
    if field.source is not None:
        raise ArgumentError(f"base is needed: the log-density at t={t:g} of noise from source {field.source.spec!r}")
    sigma = field.require_path("a likelihood without base=").sigma(t)
    return -(x.flatten(1) / sigma).square().sum(1) / 2 - x[0].numel() * math.log(sigma * math.sqrt(2 * math.pi))


def _times(
    field: Field,
    x: Tensor,
    t: float | None,
    base: Callable[[Tensor], Tensor] | None,
    base_time: float | None,
    tolerance: float,
) -> tuple[float, float]:
    """The time of the points and that of the base, after checks of the arguments."""
    if not isinstance(tolerance, int | float) or not 1e-13 <= tolerance <= 1e-3:
        raise ArgumentError(f"tolerance must lie in [1e-13, 1e-3], got {shown(tolerance)}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise ArgumentError("x must be a float32 or float64 tensor (B, *shape) with at least one row")
    if not bool(torch.isfinite(x.detach()).all()):
        raise ArgumentError("x must be finite")
    path = field.path
    if path is None and (t is None or base is None or base_time is None):
        raise FieldError(
            "a likelihood of a field without a path needs t=, base= and base_time= (the time of base); or give the "
            "field a path: Field.from_velocity(fn, path=...)"
        )
    numbers: tuple[tuple[str, object], ...] = (("t", t), ("base_time", base_time))
    for name, number in numbers:
        single = isinstance(number, Tensor) and number.numel() == 1 and not number.is_complex()
        if number is not None and not single and (not isinstance(number, int | float) or isinstance(number, bool)):
            raise ArgumentError(f"{name} must be one time, a number, for all rows, got {shown(number)}")
    begin, end = (
        float(given if given is not None else default)
        for given, default in ((t, 0.0 if path is None else path.t_min), (base_time, 1.0 if path is None else path.t_max))
    )
    for name, value in (("t", begin), ("base_time", end)):
        if not math.isfinite(value) or (path is not None and not 0 <= value <= path.t_max * (1 + 1e-12)):
            most = "" if path is None else f" from 0 to path.t_max={path.t_max:g}"
            raise ArgumentError(f"{name} must be a finite time{most}, got {value!r}")
    if path is not None and path.sigma(end) == 0:
        raise ArgumentError(f"base_time must be a time with noise, got {end!r}, where sigma is 0")
    return begin, end


def flow_with_divergence(
    field: Field,
    x: Tensor,
    start: float,
    stop: float,
    tolerance: float,
    signs: Tensor | None = None,
    *,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """The ends (B, *shape) of the flow of x from ``start`` to ``stop``, and the integral of div v along it, (B,)."""
    with field.uncounted():
        if not isinstance(field, ExactField):
            # A view derived from a callable has a gradient even where the callable has none.
            path = field.path
            asked = path.time_from_rho(least_rho(field)) if path is not None and path.sigma(start) == 0 else start
            field.check_gradient(x[:1].detach().to(torch.float64), asked)
        points = (x if differentiable else x.detach()).to(torch.float64)
        flow = _Flow(field, signs, differentiable)
        points, integral, first = flow.leave_zero(points, start)
        if first != stop:
            clock = flow.clock(first, stop)
            times = _steps(flow, points.detach(), clock, tolerance, (start, stop))
            if differentiable:
                points, change = _retraced(flow, points, times[0], clock.time)
            else:
                points, change = times[1]
            integral = integral + change
    return points, integral


class _Clock(NamedTuple):
    """The variable of an integration, from ``begin`` to ``end``, with the time and its derivative by the variable."""

    begin: float
    end: float
    time: Callable[[float], tuple[float, float]]


class _Flow:
    """Velocity and divergence of a field, with a graph or without."""

    def __init__(self, field: Field, signs: Tensor | None, graph: bool):
        self.field, self.signs, self.graph = field, signs, graph

    def at(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """v (B, *shape) and div v (B,) at x."""
        if not self.graph:
            velocity = self.field.velocity(x, t).detach()
            spread = self.field.divergence(x, t) if self.signs is None else hutchinson(self.field, x, t, self.signs)
            return velocity, spread.detach()
        if isinstance(self.field, ExactField) and self.signs is None:
            return self.field.velocity(x, t), self.field.divergence(x, t)
        with torch.enable_grad():
            point = x if x.requires_grad else x.clone().requires_grad_(True)
            velocity = self.field.velocity(point, t)
            probes = self.signs if self.signs is not None else _axes(x)
            pulled = (torch.autograd.grad((velocity * e).sum(), point, create_graph=True)[0] * e for e in probes)
            total = torch.stack([p.flatten(1).sum(1) for p in pulled]).sum(0)
        return velocity, total if self.signs is None else total / len(self.signs)

    def clock(self, start: float, stop: float) -> _Clock:
        """The log-SNR where it is finite at both ends; else time."""
        path = self.field.path
        if path is None or path.alpha(stop) == 0 or path.alpha(start) == 0:
            if path is not None and isinstance(self.field, ExactField):
                # The divergence is a difference that is undefined where alpha is 0, but has a limit there.
                start, stop = (t if path.alpha(t) > 0 else t * (1 - _BESIDE) for t in (start, stop))
            return _Clock(start, stop, lambda u: (u, 1.0))
        on = path

        def time(log_snr: float) -> tuple[float, float]:
            t = on.time_from_log_snr(log_snr)
            # dt/d log_snr: the log-SNR falls at the rate g^2/(2 sigma^2).
            return t, -2 * on.sigma(t) ** 2 / on.diffusion(t) ** 2

        return _Clock(path.log_snr(start), path.log_snr(stop), time)

    def leave_zero(self, x: Tensor, start: float) -> tuple[Tensor, Tensor, float]:
        """State of a flow from sigma = 0 at a tiny noise level, the integral of div v up to there, and its time.

        In between eps is proportional to rho: x/alpha moves by rho eps/2, and the integral is half of rho div eps.
        """
        path, none = self.field.path, torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if path is None or path.sigma(start) > 0:
            return x, none, start
        check_leaves_zero(self.field, path, start)
        rho = least_rho(self.field)
        first = path.time_from_rho(rho)
        alpha, dim = path.alpha(first), x[0].numel()
        point = alpha / path.alpha(start) * x
        spread = self.at(point, first)[1]
        noise = self.field.noise(point, first)
        noise = noise if self.graph else noise.detach()
        # rho div eps/2 in coordinates x/alpha, eps from v = f x + g^2/(2 sigma) eps; a source's noise need not fall with rho.
        share = 1 if self.field.source is None else 2
        integral = share * path.sigma(first) ** 2 * (spread - dim * path.drift(first)) / path.diffusion(first) ** 2
        return alpha * (point / alpha + share * rho / 2 * noise), integral + dim * math.log(alpha / path.alpha(start)), first


def _axes(x: Tensor) -> Iterator[Tensor]:
    """Every coordinate's unit vector, in the shape of a row."""
    for i in range(x[0].numel()):
        unit = torch.zeros(x[0].numel(), dtype=x.dtype, device=x.device)
        unit[i] = 1.0
        yield unit.reshape(x.shape[1:])


def _steps(
    flow: _Flow, x: Tensor, clock: _Clock, tolerance: float, ends: tuple[float, float]
) -> tuple[list[float], tuple[Tensor, Tensor]]:
    """The steps of DOP853, and its end: points and integral."""
    size, plain = x.numel(), _Flow(flow.field, flow.signs, False)

    def slope(u: float, state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        t, rate = clock.time(float(u))
        velocity, spread = plain.at(torch.from_numpy(state[:size]).reshape(x.shape).to(x.device), t)
        moved: np.ndarray[Any, Any] = (rate * torch.cat([velocity.reshape(-1), spread])).cpu().numpy()
        return moved

    begin = torch.cat([x.reshape(-1), torch.zeros(len(x), dtype=torch.float64, device=x.device)]).cpu().numpy()
    # Points are in the unit of the data; the integral has no unit.
    units = np.concatenate([np.full(size, flow.field.scale), np.ones(len(x))])
    failed = f"the flow from t={ends[0]:g} to t={ends[1]:g} could not be integrated"
    bounded = limited(
        slope,
        lambda u: too_fine(f"{failed}: {MOST_EVALUATIONS:,} evaluations took it to t={clock.time(u)[0]:g} only", tolerance),
    )
    found = solve_ivp(bounded, (clock.begin, clock.end), begin, method="DOP853", rtol=tolerance, atol=tolerance * 1e-2 * units)
    if not found.success or not np.isfinite(found.y[:, -1]).all():
        raise too_fine(f"{failed}: {found.message.rstrip('.')}", tolerance)
    end = torch.from_numpy(found.y[:, -1].copy()).to(x.device)
    return found.t.tolist(), (end[:size].reshape(x.shape), end[size:])


def _retraced(
    flow: _Flow, x: Tensor, steps: Sequence[float], time: Callable[[float], tuple[float, float]]
) -> tuple[Tensor, Tensor]:
    """The same steps of DOP853 again, as sums of tensors that can be differentiated."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for begin, end in itertools.pairwise(steps):
        h = end - begin
        moves: list[Tensor] = []
        spreads: list[Tensor] = []
        for node, row in zip(DOP853.C, DOP853.A, strict=True):
            t, rate = time(begin + node * h)
            stage = x + h * sum(float(a) * move for a, move in zip(row, moves, strict=False) if a)
            velocity, spread = flow.at(stage, t)
            moves.append(rate * velocity)
            spreads.append(rate * spread)
        x = x + h * sum(float(b) * move for b, move in zip(DOP853.B, moves, strict=True) if b)
        total = total + h * sum(float(b) * spread for b, spread in zip(DOP853.B, spreads, strict=True) if b)
    return x, total


def hutchinson(field: Field, x: Tensor, t: float, signs: Tensor) -> Tensor:
    """Mean of e . (grad v) e over probes e, ``signs`` (probes, B, *shape): an estimate of div v, (B,)."""
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        velocity = field.velocity(point, t)
        if not velocity.requires_grad:
            raise FieldError("the field is not differentiable in x: it returned a tensor without a gradient")
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for e in signs:
            (pulled,) = torch.autograd.grad((velocity * e).sum(), point, retain_graph=True)
            total = total + (e * pulled).flatten(1).sum(1)
    return total.detach() / len(signs)


def likelihood_checks(field: ExactField, count: int = 2, seed: int = 4) -> list[Check]:
    """Checks of the log-density along the flow, of a round trip over the path, and of Hutchinson's estimator over all signs."""
    path, dim = field.path, field.target.dim
    start, stop = (
        min(max(path.time_from_rho(level), path.t_min), path.t_max) for level in (20.0 * max(1.0, field.scale), 0.05)
    )
    x = field.marginal(count, start, generator=seed)
    # The integrator's error is relative to x and is multiplied by the score, so that it has to be smaller far from 0.
    far = field.path.alpha(stop) * float(field.target.mean.abs().max() + field.scale) / (_FAR * path.sigma(stop))
    ends, integral = flow_with_divergence(field, x, start, stop, _RTOL / max(1.0, far))
    exact = field.log_prob(ends, stop)
    error = (field.log_prob(x, start) - integral - exact).abs() / exact.abs().clamp(min=1)
    factor = 100 if dim <= 2 else 1000
    found = [
        Check("likelihood along the flow", float(error.max()), factor * _RTOL, f"DOP853 at rtol {_RTOL:g}, {count} points")
    ]
    there = reference(field, x, start, stop, 1e-12, use_cache=False)
    back = reference(field, there.x, stop, start, 1e-12, use_cache=False)
    trip = float((back.x - x).norm(dim=1).max() / x.norm(dim=1).max())
    found.append(Check("round trip along the flow", trip, _ROUND_TRIP, f"t={start:.4g} to {stop:.4g} and back, {there.method}"))
    if dim <= _MOST_SIGNS:
        few = field.marginal(4, stop, generator=seed)
        every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=torch.float64)
        estimate = hutchinson(field, few, stop, every[:, None].expand(-1, len(few), -1))
        exact = field.divergence(few, stop)
        size = exact.abs() + dim * abs(path.drift(stop))
        worst = float(((estimate - exact).abs() / size).max())
        found.append(Check("Hutchinson over all signs", worst, _ALL_SIGNS, f"{2**dim} probes"))
    return found
