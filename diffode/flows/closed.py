"""Exact flows in closed form: of one Gaussian, and of mixtures with means on a line and a common covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field, columns
from diffode.numerics.quantiles import Law, quantile_map
from diffode.paths import Path
from diffode.sources import Law as NoisedLaw
from diffode.sources.pairs import Pairs
from diffode.targets import GaussianMixture
from diffode.targets.target import Flow, Scalar

#: Weights (K,), means and standard deviations, (K,) or (B, K), of a mixture along a line.
OfLine = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class KnownFlow:
    """A flow that needs no integration, and its kind: ``"closed-form"``, or ``"quantile"``, the monotone map of a line."""

    flow: Flow
    method: str


def known_flow(field: Field) -> KnownFlow | None:
    """The flow of a field in closed form: one Gaussian, means on a line with a common covariance, or what its target knows."""
    if not isinstance(field, ExactField):
        return None
    if field.law is not None:
        return _known_from_source(field.law, field.path)
    path, mixture = field.path, field.target.as_mixture()
    if mixture is None:
        own = field.target.exact_flow(path)
        return None if own is None else KnownFlow(own, "closed-form")
    if mixture.count == 1:
        return KnownFlow(lambda x, start, stop: gaussian_flow(mixture, path, x, start, stop), "closed-form")
    if mixture.line is None or mixture.is_discrete:
        return None
    return KnownFlow(lambda x, start, stop: line_flow(mixture, path, x, start, stop), "quantile")


def _known_from_source(law: NoisedLaw, path: Path) -> KnownFlow | None:
    """The flow between two mixtures, if both are one Gaussian or there is one dimension, and neither is of points."""
    if not isinstance(law, Pairs) or not all(bool((spectrum > 0).all()) for spectrum in law.spectra):
        return None
    if len(law.log_weights) == 1:
        return KnownFlow(lambda x, start, stop: _pair_flow(law, path, x, start, stop), "closed-form")
    if law.dim > 1:
        return None
    return KnownFlow(lambda x, start, stop: _pairs_flow(law, path, x, start, stop), "quantile")


def _pair_flow(law: Pairs, path: Path, x: Tensor, start: Scalar, stop: Scalar) -> tuple[Tensor, Tensor]:
    """Ends (B, D) and errors (B,) for one pair of Gaussians: in the pair's own basis z' = z u'/(2 u)."""
    (first, last), (before, after) = (
        [of(*_level(path, t))[0].to(x) for t in (start, stop)] for of in (law.centres, law.widths)
    )
    offset = x - first
    factor = (after / before).sqrt()
    if law.basis is None:
        ends = last + factor * offset
    else:
        basis, inverse = (part[0].to(x) for part in law.basis)
        ends = last + (factor * (offset @ inverse.mT)) @ basis.mT
    return ends, rounding_of(x, ends)


def _pairs_flow(law: Pairs, path: Path, x: Tensor, start: Scalar, stop: Scalar) -> tuple[Tensor, Tensor]:
    """Ends (B, 1) and errors (B,) of the monotone map between two mixtures on the line."""
    before, after = (
        (law.log_weights.exp(), of_rows(law.centres(*level)), of_rows(law.widths(*level)).sqrt())
        for level in (_level(path, start), _level(path, stop))
    )
    moved, errors = _moved(before, after, x[:, 0])
    ends = moved[:, None]
    return ends, errors + rounding_of(x, ends)


def of_rows(values: Tensor) -> Tensor:
    """Numbers of pairs, (C, 1, 1) or (C, B, 1), as (C,) or (B, C)."""
    found = values[..., 0].mT.cpu()
    return found[0] if len(found) == 1 else found


def _level(path: Path, t: Scalar) -> tuple[Scalar, Scalar]:
    """alpha and sigma at a time, or (B, 1) at a time for every row."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    if isinstance(alpha, Tensor) and isinstance(sigma, Tensor) and alpha.ndim:
        return alpha[:, None], sigma[:, None]
    return alpha, sigma


def gaussian_flow(target: GaussianMixture, path: Path, x: Tensor, start: Scalar, stop: Scalar) -> tuple[Tensor, Tensor]:
    """Ends (B, D) and errors (B,) for one Gaussian, differentiable in points and times, which are numbers or (B,)."""
    mean = target.mean.to(x.device)
    offset = x - columns(path.alpha(start), x) * mean
    ends = columns(path.alpha(stop), x) * mean + _across(target, path, offset, start, stop)
    return ends, rounding_of(x, ends)


def _across(target: GaussianMixture, path: Path, offset: Tensor, start: Scalar, stop: Scalar) -> Tensor:
    """sqrt(S_stop S_start^-1) applied to rows, for the covariance that all components share."""
    before, after = (path.alpha(t) ** 2 for t in (start, stop))
    noise_before, noise_after = (noise_variance(path, t) for t in (start, stop))

    def factor(c: Tensor) -> Tensor:
        of_row = c[..., None]
        return ((after * of_row + noise_after) / (before * of_row + noise_before)).sqrt()

    shared = target.components.first().to(torch.float64, offset.device)
    return shared.filter(offset.T[:, None], factor)[:, 0].T


def line_flow(target: GaussianMixture, path: Path, x: Tensor, start: Scalar, stop: Scalar) -> tuple[Tensor, Tensor]:
    """Ends (B, D) and errors (B,) by the quantile map along the line and the Gaussian flow across; differentiable once.

    Times are numbers or (B,).
    """
    direction, mean = target_line(target).to(x.device), target.mean.to(x.device)
    offset = x - columns(path.alpha(start), x) * mean
    along = offset @ direction
    positions = (target.means - target.mean) @ target_line(target)
    widths = (target.components.variances() if target.dim == 1 else _variance_along(target)).reshape(-1)
    before, after = (_law(target.weights, positions, widths, path, t) for t in (start, stop))
    moved, errors = _moved(before, after, along)
    across = _across(target, path, offset - along[:, None] * direction, start, stop) if target.dim > 1 else 0.0
    ends = columns(path.alpha(stop), x) * mean + across + moved[:, None] * direction
    return ends, errors + rounding_of(x, ends)


def _law(weights: Tensor, positions: Tensor, widths: Tensor, path: Path, t: Scalar) -> OfLine:
    """The noised mixture along the line at a time, or at a time for every row."""
    alpha, noise = path.alpha(t), noise_variance(path, t)
    if isinstance(alpha, Tensor) and isinstance(noise, Tensor) and alpha.ndim:
        alpha, noise = alpha.cpu()[:, None], noise.cpu()[:, None]
    return weights, alpha * positions, (alpha**2 * widths + noise) ** 0.5


def noise_variance(path: Path, t: Scalar) -> Scalar:
    """sigma^2, whose derivative is finite where sigma is 0, though that of sigma may not be."""
    if isinstance(t, Tensor) and t.requires_grad:
        made: Tensor = _NoiseVariance.apply(t, path)  # type: ignore[no-untyped-call]
        return made
    return path.sigma(t) ** 2


class _NoiseVariance(torch.autograd.Function):
    """sigma(t)^2 with the path's own rate of it."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, path: Path) -> Tensor:
        """The variance at times (B,)."""
        ctx.save_for_backward(t)
        ctx.path = path
        return path.sigma(t) ** 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The derivative by the times, which can be differentiated again."""
        (t,) = ctx.saved_tensors
        return 2 * gradient * ctx.path.half_variance_rate(t), None


def _moved(before: OfLine, after: OfLine, along: Tensor) -> tuple[Tensor, Tensor]:
    """The quantile map of positions (B,) with its derivative, and its errors."""
    x = along.cpu()
    found, errors = quantile_map(_numbers(before), _numbers(after), x.detach().numpy())
    moved = torch.from_numpy(found)
    if torch.is_grad_enabled() and any(part.requires_grad for part in (x, *before, *after)):
        # F_stop(y) = F_start(x) defines y and its derivatives; in the upper half 1 - F takes the place of F.
        with torch.no_grad():
            lower = _log_tail(before, x, torch.ones_like(x)) < _log_tail(before, x, -torch.ones_like(x))
            sign = torch.where(lower, 1.0, -1.0).to(x)
        point = moved.clone().requires_grad_(True)
        reached = _log_tail(after, point, sign)
        (slope,) = torch.autograd.grad(reached.sum(), point)
        gap = (_log_tail(before, x, sign) - _log_tail(after, moved, sign)) / slope
        moved = _Once.apply(moved + gap - gap.detach())  # type: ignore[no-untyped-call]
    return moved.to(along.device), torch.from_numpy(errors)


def _numbers(law: OfLine) -> Law:
    weights, means, widths = (part.detach().numpy() for part in law)
    return weights, means, widths


def _log_tail(law: OfLine, x: Tensor, sign: Tensor) -> Tensor:
    """log P(X <= x) where the sign is +1, log P(X > x) where it is -1."""
    weights, means, widths = law
    z = sign[:, None] * (x[:, None] - means) / widths
    total: Tensor = (weights.log() + torch.special.log_ndtr(z)).logsumexp(1)
    return total


class _Once(torch.autograd.Function):
    """The identity with a derivative that can't be differentiated, for values that are right to first order only."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """``value`` itself."""
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """``gradient`` itself, which can't be differentiated again."""
        return Final.apply(gradient, *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class Final(torch.autograd.Function):
    """A derivative that depends on other tensors outside autograd's graph, so that differentiating it again is an error.

    (PyTorch's ``once_differentiable`` silently leaves the missing part out if another part of the graph is found.)
    """

    @staticmethod
    def forward(ctx: Any, derivative: Tensor, *others: Tensor) -> Tensor:
        """``derivative`` itself."""
        return derivative.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        """Raise an error, since the second derivative is unknown."""
        raise ArgumentError(
            "an exact flow can be differentiated once; twice only that of one Gaussian: use create_graph=False, or its "
            "first derivatives as constants (detach)"
        )


def target_line(target: GaussianMixture) -> Tensor:
    """The direction of the line on which a target's means lie, (D,)."""
    if target.line is None:
        raise ArgumentError("this target's means do not lie on a line with a common covariance")
    return target.line


def _variance_along(target: GaussianMixture) -> Tensor:
    direction = target_line(target)
    shared = target.components.first()
    image = shared.filter(direction[:, None, None], lambda c: c[..., None])[:, 0, 0]
    return torch.dot(image, direction).expand(target.count)


def rounding_of(x: Tensor, ends: Tensor) -> Tensor:
    """Bounds (B,) of the rounding errors of ends (B, D) that a closed form gives for points x (B, D)."""
    sizes: Tensor = x.norm(dim=1) * 1e-2 + ends.norm(dim=1)
    return 2.0**-50 * sizes.detach().cpu()
