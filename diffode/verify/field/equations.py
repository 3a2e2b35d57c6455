r"""The equations of a diffusion at points: continuity, Fokker-Planck, and the relations of a field to its density.

With :math:`p_t` the density, v the velocity and the forward SDE :math:`dx = f x\,dt + g\,dw`,

.. math::
    \partial_t \log p + \nabla\cdot v + v\cdot\nabla\log p = 0, \qquad
    \partial_t \log p = -f D - f x\cdot\nabla\log p + \tfrac12 g^2(\Delta\log p + |\nabla\log p|^2).

Time derivatives come from the density alone (automatic differentiation in t, or a difference where a user's density can't be
differentiated), everything else from the field, so the two sides share no formula. Residuals are relative to the sum of the
absolute terms, as rounding is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffode import solvers
from diffode.bridges import Bridge
from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field, RotatedField
from diffode.verify.report import Check

#: A log-density: a function of x (B, *shape) and a time, a float or (B,), that gives (B,).
Density = Callable[[Tensor, "float | Tensor"], Tensor]


@runtime_checkable
class HasDensity(Protocol):
    """A field that knows its own log-density, as exact ones do."""

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x), (B,)."""


#: Noise levels of the points; those above 1 are in units of the data's scale, if that is above 1.
LEVELS = (80.0, 10.0, 1.0, 0.3, 0.05, 0.002)
#: Shares of a bridge's interval at which it is checked, from the source on.
_SHARES = (0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0)
#: Largest relative residual if the derivative in t comes from automatic differentiation.
_EXACT = 1e-11
#: Largest relative residual if it comes from differences, whose error is 2e-9 by theory.
_DIFFERENCED = 1e-6
#: Largest relative residual of the score's Jacobian, which automatic differentiation gives up to the field's rounding.
_JACOBIAN = 1e-10
#: Largest number of coordinates for which the Jacobian is computed, with one backward pass for each.
_MOST_COORDINATES = 64
#: Ratio of the largest residual to the rounding of a field's answers, which is 1e-7 for a network in single precision.
_ROUNDINGS = 100.0
#: Largest residual, whatever the rounding.
_MOST_ROUNDING = 1e-2


@dataclass(frozen=True)
class Points:
    """Points at which a field is checked: for each time some points (B, *shape) in the bulk of its law."""

    times: tuple[float, ...]
    points: tuple[Tensor, ...]


def typical_points(
    field: Field, count: int = 24, *, dim: int | Sequence[int] | None = None, levels: Sequence[float] = LEVELS, seed: int = 5
) -> Points:
    """Points at noise levels from 80 down: exact draws for an exact field, else the flow from its prior by a fine RK4.

    For a bridge, or a field of a bridge or target that is rotated, they are exact draws at times along its interval.
    """
    if isinstance(field, Bridge | RotatedField) and field.interval is not None:
        low, high = field.interval.t_min, field.interval.t_max
        along = [high + share * (low - high) for share in _SHARES]
        return Points(tuple(along), tuple(field.marginal(count, t, generator=seed) for t in along))
    path = field.require_path("its law")
    unit = max(1.0, field.scale)
    ends = path.rho(path.t_max), path.rho(path.t_min)
    wanted = [level * unit if level > 1 else level for level in levels]
    times = [path.time_from_rho(rho) for rho in wanted if ends[1] * (1 - 1e-9) <= rho <= ends[0] * (1 + 1e-9)]
    if not times:
        raise ArgumentError(f"none of the noise levels {', '.join(map(str, levels))} lies within path {path.spec!r}")
    if isinstance(field, ExactField):
        return Points(tuple(times), tuple(field.marginal(count, t, generator=seed) for t in times))
    wanted_dim = field.dim if dim is None else dim
    if wanted_dim is None:
        raise ArgumentError("dim is needed: how many coordinates a row of x has, or the shape of a row")
    shape = (wanted_dim,) if isinstance(wanted_dim, int) else tuple(wanted_dim)
    x, at = field.first_noise((count, *shape), generator=seed), path.t_max
    found = []
    with torch.no_grad(), field.uncounted():
        for t in times:
            if t < at * (1 - 1e-9):
                x = solvers.solve(field, x, solver="rk4:chart=data", grid=_between(field, at, t)).x
                at = t
            found.append(x)
    return Points(tuple(times), tuple(found))


def _between(field: Field, start: float, stop: float, steps: int = 40) -> list[float]:
    path = field.require_path("a flow")
    ends = path.log_snr(start), path.log_snr(stop)
    inner = (path.time_from_log_snr(ends[0] + (ends[1] - ends[0]) * k / steps) for k in range(1, steps))
    return [start, *inner, stop]


@dataclass(frozen=True)
class Residuals:
    """Relative residuals of an equation at every point: times (N,), points (N, D) and values (N,)."""

    times: Tensor
    points: Tensor
    values: Tensor

    def check(self, name: str, tolerance: float) -> Check:
        """The check of the largest residual, which names its place."""
        k = int(self.values.nan_to_num(torch.inf).argmax())
        shown = ", ".join(f"{v:.3g}" for v in self.points[k, :3].tolist()) + (", ..." if self.points.shape[1] > 3 else "")
        return Check(name, float(self.values[k]), tolerance, f"largest at t={float(self.times[k]):.4g}, x=({shown})")


def continuity(field: Field, where: Points, density: Density | None = None) -> Residuals:
    """Residuals of the continuity equation: d_t log p + div v + v . grad log p, over the sum of its absolute terms.

    ``density`` is log p for a field other than an :class:`ExactField`. The gradient is that of ``density`` and not the field's
    score, so that a wrong field can't agree with itself.
    """

    def terms(x: Tensor, t: float, rate: Tensor, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        velocity = field.velocity(x, t).detach().flatten(1)
        divergence, products = field.divergence(x, t), velocity * gradient
        size = [rate, divergence, products.abs().sum(1)]
        if field.path is not None:
            # div v = f D - g^2/2 Lap log p; both terms enter the sum, since they nearly cancel on variance-preserving paths.
            linear = torch.full_like(rate, field.path.drift(t) * velocity.shape[1])
            size += [linear, linear - divergence]
        return rate + divergence + products.sum(1), size

    return _residuals(field, where, density, terms)


def fokker_planck(field: Field, where: Points, density: Density | None = None) -> Residuals:
    """Residuals of the Fokker-Planck equation of the forward SDE, with the field's score and its divergence.

    Raises ArgumentError for noise from a source, whose laws are not those of the path's SDE.
    """
    path = field.require_path("its forward SDE")
    if field.source is not None:
        raise ArgumentError(f"the path's SDE adds normal noise; this field's comes from source {field.source.spec!r}")

    def terms(x: Tensor, t: float, rate: Tensor, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        f, half = path.drift(t), path.diffusion(t) ** 2 / 2
        score, laplacian = field.score(x, t).detach().flatten(1), _score_divergence(field, x, t)
        flat = x.flatten(1)
        norm, transport = score.square().sum(1), f * flat * score
        linear = torch.full_like(rate, f * flat.shape[1])
        residual = rate + linear + transport.sum(1) - half * (laplacian + norm)
        return residual, [rate, linear, transport.abs().sum(1), half * laplacian, half * norm]

    return _residuals(field, where, density, terms)


def score_is_gradient(field: Field, where: Points, density: Density | None = None) -> Residuals:
    """Residuals of the field's score against the gradient of log p, relative to its largest size at that time."""

    def terms(x: Tensor, t: float, rate: Tensor, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        score = field.score(x, t).detach().flatten(1)
        return (score - gradient).norm(dim=1), [score.norm(dim=1).max().expand(len(x))]

    return _residuals(field, where, density, terms)


def views(field: Field, where: Points) -> Residuals:
    """Residuals of Tweedie's formula: x = alpha D + sigma eps, v = alpha' D + sigma' eps, score = -eps/sigma.

    The last of them holds for normal noise alone, and is left out for noise from a source.
    """
    path = field.require_path("its views")
    values = []
    for t, x in zip(where.times, where.points, strict=True):
        flat = x.flatten(1)
        denoised, noise, velocity = (
            field.predict(view, x, t).detach().flatten(1) for view in ("denoised", "noise", "velocity")
        )
        parts = path.alpha(t) * denoised, path.sigma(t) * noise
        rates = path.alpha_derivative(t) * denoised, path.sigma_derivative(t) * noise
        worst = [
            (sum(parts) - flat).norm(dim=1) / sum(p.norm(dim=1).max() for p in parts),
            (sum(rates) - velocity).norm(dim=1) / sum(r.norm(dim=1).max() for r in rates),
        ]
        if field.source is None:
            score, scores = field.predict("score", x, t).detach().flatten(1), noise / path.sigma(t)
            worst.append((score + scores).norm(dim=1) / scores.norm(dim=1).max())
        values.append(torch.stack(worst).amax(0))
    return _gathered(where, values)


def jacobian(field: Field, where: Points) -> tuple[Residuals, Residuals]:
    """Asymmetry of the score's Jacobian, and its trace against ``field.divergence``: a true score is a gradient.

    With noise from a source the trace is that of the velocity's own Jacobian. Each coordinate takes one backward pass, so that
    rows have at most 64 of them.
    """
    path = field.require_path("its score")
    asymmetry, traces = [], []
    for t, x in zip(where.times, where.points, strict=True):
        point = x.detach().requires_grad_(True)
        with torch.enable_grad():
            flat = field.score(point, t).flatten(1)
            rows = [torch.autograd.grad(flat[:, i].sum(), point, retain_graph=True)[0] for i in range(flat.shape[1])]
        matrix = torch.stack([row.flatten(1) for row in rows], dim=1)
        size = matrix.flatten(1).norm(dim=1).max()
        asymmetry.append((matrix - matrix.mT).flatten(1).norm(dim=1) / size)
        if field.source is not None:
            own = Field.divergence(field, x, t)
            traces.append((field.divergence(x, t) - own).abs() / own.abs().max())
            continue
        trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
        # div v = f D - g^2/2 div score.
        half = path.half_variance_rate(t) - path.sigma(t) ** 2 * path.drift(t)
        linear = path.drift(t) * matrix.shape[1]
        terms = abs(linear) + half * matrix.diagonal(dim1=1, dim2=2).abs().sum(1)
        traces.append((field.divergence(x, t) - (linear - half * trace)).abs() / terms)
    return _gathered(where, asymmetry), _gathered(where, traces)


def pointwise(field: Field, where: Points, density: Density | None = None) -> list[Check]:
    """The checks of all equations of this module that apply to a field."""
    width = where.points[0][0].numel()
    known = density is not None or isinstance(field, HasDensity)
    found, coarse = [], precision(field, where)
    if known:
        tolerance = _EXACT if isinstance(field, ExactField) else max(_DIFFERENCED, coarse)
        gradient = 1e-9 if isinstance(field, ExactField) else tolerance
        found += [
            continuity(field, where, density).check("continuity equation", tolerance),
            *([] if field.source else [fokker_planck(field, where, density).check("Fokker-Planck equation", tolerance)]),
        ]
        if field.source is None or isinstance(field, ExactField):
            found.append(score_is_gradient(field, where, density).check("score = grad log p", gradient))
    # The noise of a denoised point is (x - alpha D)/sigma, whose rounding is multiplied by |x|/sigma of the least level.
    least = min(field.require_path("its views").sigma(t) for t in where.times) / field.scale
    found.append(views(field, where).check("Tweedie and conversions", max(1e-12, 1e-12 / least if least else 1e-12, coarse)))
    if field.source is not None and not isinstance(field, ExactField):
        # Such a field has no score, which can't be had from its noise.
        return found
    if width <= _MOST_COORDINATES:
        few = Points(where.times, tuple(x[: 4 if width <= 8 else 1] for x in where.points))
        asymmetry, traces = jacobian(field, few)
        allowed = max(_JACOBIAN, coarse)
        found += [asymmetry.check("score Jacobian symmetric", allowed), traces.check("divergence = trace", allowed)]
    return found


def precision(field: Field, where: Points) -> float:
    """Largest residuals that the rounding of a user's field allows; 1e-5 and more for a network in single precision.

    A denoised point or a velocity becomes a score by (x - alpha D)/sigma, which multiplies its rounding by |x|/sigma.
    """
    if isinstance(field, ExactField):
        return 0.0
    path = field.require_path("its views")
    worst = 0.0
    for t, x in zip(where.times, where.points, strict=True):
        many = 1.0 if field.prediction in ("noise", "score") else 1 + path.alpha(t) * field.scale / max(path.sigma(t), 1e-300)
        worst = max(worst, many * field.rounding(x[:4], t))
    return min(_ROUNDINGS * worst, _MOST_ROUNDING)


def log_density(field: Field, density: Density | None) -> Density:
    """The given log-density, or the field's own."""
    if density is not None:
        return density
    if not isinstance(field, HasDensity):
        raise ArgumentError("this field has no density: give density=, a function (x, t) -> log p (B,)")
    return field.log_prob


def _residuals(
    field: Field,
    where: Points,
    density: Density | None,
    terms: Callable[[Tensor, float, Tensor, Tensor], tuple[Tensor, list[Tensor]]],
) -> Residuals:
    known = log_density(field, density)
    values = []
    with field.uncounted():
        for t, x in zip(where.times, where.points, strict=True):
            rate, gradient = _rate(known, x, t, field), _gradient(known, x, t)
            residual, sizes = terms(x, t, rate, gradient)
            values.append(residual.abs() / sum(size.abs() for size in sizes).clamp(min=1e-300))  # type: ignore[union-attr]
    return _gathered(where, values)


def _gathered(where: Points, values: list[Tensor]) -> Residuals:
    times = torch.cat([torch.full((len(x),), t, dtype=torch.float64) for t, x in zip(where.times, where.points, strict=True)])
    return Residuals(times, torch.cat([x.flatten(1) for x in where.points]), torch.cat(values).detach())


def _gradient(density: Density, x: Tensor, t: float) -> Tensor:
    point = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = density(point, t)
    if value.shape != (len(x),) or not value.requires_grad:
        raise ArgumentError(f"density must give log p of shape ({len(x)},) with a gradient in x, got {tuple(value.shape)}")
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return gradient.flatten(1)


def _rate(density: Density, x: Tensor, t: float, field: Field) -> Tensor:
    """d log p/dt at fixed x: by automatic differentiation, or a Richardson difference if the density takes no tensor t."""
    time = torch.full((len(x),), t, dtype=torch.float64, requires_grad=True)
    try:
        with torch.enable_grad():
            (rate,) = torch.autograd.grad(density(x, time).sum(), time)
        return rate
    except (RuntimeError, TypeError, ValueError, ArgumentError):
        h = 2e-3 * t
        with torch.no_grad():
            wide, narrow = ((density(x, t + d) - density(x, t - d)) / (2 * d) for d in (h, h / 2))
        return (4 * narrow - wide) / 3


def _score_divergence(field: Field, x: Tensor, t: float) -> Tensor:
    """div of the score (B,), in closed form if there is one, else from the field's divergence."""
    path = field.require_path("its score")
    if isinstance(field, ExactField):
        return field.target.noised_score_divergence(x.flatten(1), path.alpha(t), path.sigma(t))
    half = path.half_variance_rate(t) - path.sigma(t) ** 2 * path.drift(t)
    return (path.drift(t) * x[0].numel() - field.divergence(x, t)) / half
