r"""Likelihoods by the probability flow, with the divergence exact or estimated by Hutchinson's probes.

.. math::
    \log p_t(x) = \log p_T(\Phi(x)) + \int_t^T \nabla\cdot v(x_s, s)\,ds

along the flow from t to T (Chen et al. 2018; Song et al., arXiv 2011.13456, section 4.3). Hutchinson's estimator replaces the
divergence by the mean of :math:`e^T(\nabla v)e` over probes e with entries +-1, fixed along the way; the mean over all
:math:`2^D` of them is the divergence itself, which is how it is tested without noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffode.errors import ArgumentError, FieldError, NumericalError
from diffode.fields import ExactField, Field
from diffode.randomness import Randomness, generator_from
from diffode.references import reference
from diffode.verify.check import Check

_ROUND_TRIP, _ALL_SIGNS = 1e-10, 1e-11
_RTOL = 1e-10
_MOST_SIGNS = 10
#: So many standard deviations from 0 a state's relative error still is none of the density.
_FAR = 100.0


def log_likelihood(
    field: Field,
    x: Tensor,
    t: float | None = None,
    *,
    divergence: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    generator: Randomness | None = None,
    base: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-8,
) -> Tensor:
    """log p_t(x) of the law that the flow carries to time t, (B,) float64.

    Args:
        field: any field with a path.
        x: points at time ``t``, (B, *shape).
        t: their time; ``path.t_min`` unless given.
        divergence: ``"exact"`` (one backward pass a coordinate, or a closed form) or ``"hutchinson"``.
        probes: number of probes of Hutchinson's estimator for each row.
        generator: generator or seed of the probes.
        base: log-density at ``path.t_max``, (B, *shape) to (B,): by default that of the exact law where it is known, else of
            N(0, sigma^2).
        tolerance: relative tolerance of DOP853.

    >>> import diffode
    >>> field = diffode.exact_field("gauss1d", "vp")
    >>> x = field.marginal(3, field.path.t_min, generator=0)
    >>> bool(((log_likelihood(field, x) - field.log_prob(x, field.path.t_min)).abs() < 1e-6).all())
    True
    """
    path = field.require_path("a likelihood")
    begin = path.t_min if t is None else float(t)
    signs = None
    if divergence == "hutchinson":
        if generator is None:
            raise ArgumentError("Hutchinson's estimator draws probes: pass generator=")
        if type(probes) is not int or probes < 1:
            raise ArgumentError(f"probes must be an integer >= 1, got {probes!r}")
        source = generator_from(generator)
        signs = 2.0 * torch.randint(0, 2, (probes, *x.shape), generator=source).to(torch.float64) - 1
    elif divergence != "exact":
        raise ArgumentError(f"divergence must be 'exact' or 'hutchinson', got {divergence!r}")
    ends, integral = flow_with_divergence(field, x, begin, path.t_max, tolerance, signs)
    if base is not None:
        known = base(ends)
    elif isinstance(field, ExactField):
        known = field.log_prob(ends, path.t_max)
    else:
        sigma = path.sigma(path.t_max)
        known = -(ends.flatten(1) / sigma).square().sum(1) / 2 - ends[0].numel() * math.log(sigma * math.sqrt(2 * math.pi))
    return known + integral


def flow_with_divergence(
    field: Field, x: Tensor, start: float, stop: float, tolerance: float, signs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Where the flow takes x (B, *shape) from ``start`` to ``stop``, and the integral of div v on the way, (B,)."""
    path = field.require_path("a flow in its log-SNR")
    size, before = x.numel(), field.nfe
    if not isinstance(field, ExactField):
        # A view derived from a callable has a gradient even where the callable has none.
        field.check_gradient(x[:1].to(torch.float64), start)

    def slope(log_snr: float, state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        t = path.time_from_log_snr(float(log_snr))
        # dt/d log_snr: the log-SNR falls at the rate g^2/(2 sigma^2).
        rate = -2 * path.sigma(t) ** 2 / path.diffusion(t) ** 2
        points = torch.from_numpy(state[:size]).reshape(x.shape)
        velocity = field.velocity(points, t).detach().reshape(-1)
        spread = field.divergence(points, t) if signs is None else hutchinson(field, points, t, signs)
        moved: np.ndarray[Any, Any] = (rate * torch.cat([velocity, spread])).numpy()
        return moved

    begin = torch.cat([x.to(torch.float64).reshape(-1), torch.zeros(len(x), dtype=torch.float64)]).numpy()
    span = path.log_snr(start), path.log_snr(stop)
    found = solve_ivp(slope, span, begin, method="DOP853", rtol=tolerance, atol=tolerance * 1e-2)
    field.nfe = before
    if not found.success or not np.isfinite(found.y[:, -1]).all():
        raise NumericalError(f"the flow from t={start:g} to t={stop:g} could not be integrated: {found.message}")
    end = torch.from_numpy(found.y[:, -1].copy())
    return end[:size].reshape(x.shape), end[size:]


def hutchinson(field: Field, x: Tensor, t: float, signs: Tensor) -> Tensor:
    """Mean of e . (grad v) e over probes e, ``signs`` (probes, B, *shape): an estimate of div v, (B,)."""
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        velocity = field.velocity(point, t)
        if not velocity.requires_grad:
            raise FieldError("the field is not differentiable in x: it returned a tensor without a gradient")
        total = torch.zeros(len(x), dtype=torch.float64)
        for e in signs:
            (pulled,) = torch.autograd.grad((velocity * e).sum(), point, retain_graph=True)
            total = total + (e * pulled).flatten(1).sum(1)
    return total.detach() / len(signs)


def likelihood_checks(field: ExactField, count: int = 2, seed: int = 4) -> list[Check]:
    """The log-density followed along the flow, a round trip over the whole path, and Hutchinson's estimator over all signs."""
    path, dim = field.path, field.target.dim
    start, stop = (
        min(max(path.time_from_rho(level), path.t_min), path.t_max) for level in (20.0 * max(1.0, field.scale), 0.05)
    )
    x = field.marginal(count, start, generator=seed)
    # The integrator's error is a share of x, which the score multiplies: far from 0 it has to be smaller by as much.
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
