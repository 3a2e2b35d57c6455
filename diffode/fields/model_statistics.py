r"""Model statistics from a field: expectations over noised data at some levels, and derivatives by differences.

With z = x/alpha, rho = exp(-lambda) and f = rho eps - l z, at each level (Zheng et al., arXiv 2310.13268, section 3.1):

.. math::
    l = E[\mathrm{diag}(\sigma \nabla_x \epsilon)], \qquad
    s = \frac{E[f f'] - E[f] E[f']}{E[f^2] - E[f]^2}, \qquad b = E[f'] - s E[f],

with f' the derivative along the flow, for each coordinate. For all coordinates alike, l is the mean over them, b = 0 and
s = sum E[f f'] / sum E[f^2].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffode.arguments import check_count
from diffode.errors import ArgumentError, FieldError
from diffode.fields.exact import ExactField
from diffode.fields.field import Field
from diffode.numerics.splines import derivative_at
from diffode.randomness import Randomness, generator_from, normal
from diffode.statistics.of_model import ModelStatistics

#: Steps of differences: of x in units of the noised data's deviation, and of the log-SNR.
_STEP, _STEP_TIME = 1e-4, 1e-3
#: Largest number of coordinates that are differentiated one by one; of more, random signs give the diagonal's expectation.
_ONE_BY_ONE = 16
#: Share of E[f^2] below which the variance of f is rounding, and s has no meaning.
_NOTHING = 1e-10


def estimate_model_statistics(
    field: Field, *, form: Literal["diagonal", "scalar"] = "diagonal", levels: int = 60, points: int = 512,
    samples: Tensor | None = None, generator: Randomness = 0,
) -> ModelStatistics:  # fmt: skip
    """Coefficients of DPM-Solver-v3 for a field, between the ends of its path.

    Args:
        field: a field on a path. Its evaluations are counted as any others.
        form: coefficients for each coordinate (``diagonal``) or one for all (``scalar``).
        levels: number of levels, even in log-SNR.
        points: number of noised points at each.
        samples: data (n, *shape), of which points are drawn; those of an exact field's target unless given.
        generator: generator or seed of data and noise.

    Raises:
        ArgumentError: for a wrong argument, or a field without a target and no samples.
        FieldError: if the field has no path, or non-finite answers.

    >>> import diffode
    >>> estimate_model_statistics(diffode.exact_field("ring8", "edm"), levels=20, points=64)
    ModelStatistics(20 levels, log-SNR -4.38 to 6.21, 2 coordinates, from 64 points at each level)
    """
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field, such as diffode.exact_field('ring8', 'edm'), got {field!r:.60}")
    if form not in ("diagonal", "scalar"):
        raise ArgumentError(f"form must be diagonal or scalar, got {form!r:.40}")
    for name, value, least in (("levels", levels, 4), ("points", points, 2)):
        check_count(name, value, least)
    path, source = field.require_path("its model statistics"), generator_from(generator)
    data = _data(field, samples, points, source)
    if path.sigma(path.t_min) == 0 or path.alpha(path.t_max) == 0:
        raise ArgumentError("the path must end before sigma = 0 and begin after alpha = 0: field.path.between(...)")
    at = torch.linspace(path.log_snr(path.t_max), path.log_snr(path.t_min), levels, dtype=torch.float64)
    noise = normal((levels, *data.shape), generator=source)
    signs = 2.0 * torch.randint(2, tuple(noise.shape), generator=source).to(torch.float64) - 1
    found = [_Level(field, data, noise[i], signs[i], float(level)) for i, level in enumerate(at)]
    linear = torch.stack([level.diagonal() for level in found])
    if form == "scalar":
        linear = linear.mean(1, keepdim=True)
    changes = derivative_at(at, linear)
    pairs = [level.slope(l, change, form == "scalar") for level, l, change in zip(found, linear, changes, strict=True)]
    s, b = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return ModelStatistics(at, linear, s, b, form == "scalar", f"from {len(data)} points at each level")


def _data(field: Field, samples: Tensor | None, points: int, source: torch.Generator) -> Tensor:
    """Points of the data (points, *shape), float64."""
    if samples is None:
        if not isinstance(field, ExactField):
            raise ArgumentError("the field does not know its data: give samples=, of shape (n, *shape)")
        return field.target.sample(points, generator=source).to(torch.float64)
    if not isinstance(samples, Tensor) or samples.ndim < 2 or not samples.numel() or not bool(samples.isfinite().all()):
        raise ArgumentError(f"samples must be finite rows (n, *shape), got {getattr(samples, 'shape', samples)!r:.60}")
    return samples.to(torch.float64)[torch.randint(len(samples), (points,), generator=source)]


class _Level:
    """A field at one level, on noised points z (n, *shape)."""

    def __init__(self, field: Field, data: Tensor, noise: Tensor, signs: Tensor, log_snr: float):
        self.field, self.path, self.log_snr, self.rho = field, field.require_path("its level"), log_snr, math.exp(-log_snr)
        self.z, self.signs = data + self.rho * noise, signs
        self.unit = float(self.z.std(0).square().mean().sqrt())

    def noise(self, z: Tensor, log_snr: float) -> Tensor:
        """The noise prediction at z, (n, *shape)."""
        t = self.path.time_from_log_snr(log_snr)
        with torch.no_grad():
            answer = self.field.noise(z * self.path.alpha(t), t).to(torch.float64).cpu()
        if not bool(torch.isfinite(answer).all()):
            raise FieldError(
                f"the field has non-finite answers at the log-SNR {log_snr:.4g}, where its statistics are estimated"
            )
        return answer

    def diagonal(self) -> Tensor:
        """E[diag(sigma grad eps)], (D,)."""
        step = _STEP * self.unit
        count = math.prod(self.z.shape[1:])
        if count > _ONE_BY_ONE:
            change = self.noise(self.z + step * self.signs, self.log_snr) - self.noise(self.z - step * self.signs, self.log_snr)
            return (self.rho * self.signs * change / (2 * step)).mean(0).flatten()
        found = []
        for i, direction in enumerate(torch.eye(count, dtype=torch.float64)):
            push = step * direction.reshape(self.z.shape[1:])
            change = self.noise(self.z + push, self.log_snr) - self.noise(self.z - push, self.log_snr)
            found.append(self.rho * change.flatten(1)[:, i].mean() / (2 * step))
        return torch.stack(found)

    def slope(self, linear: Tensor, change: Tensor, alike: bool) -> tuple[Tensor, Tensor]:
        """s and b for l (E,) and its derivative by the level (E,)."""
        noise, z = self.noise(self.z, self.log_snr), self.z.flatten(1)
        # To both sides along the flow, dz/d lambda = -rho eps, so that the errors of both steps cancel.
        back, on = (
            self.noise(self.z - step * self.rho * noise, self.log_snr + step).flatten(1) for step in (-_STEP_TIME, _STEP_TIME)
        )
        eps, turn = noise.flatten(1), (on - back) / (2 * _STEP_TIME)
        f = self.rho * eps - linear * z
        moves = self.rho * (turn - eps) - change * z + linear * self.rho * eps
        if alike:
            return ((f * moves).sum() / f.square().sum().clamp(min=1e-300)).reshape(1), f.new_zeros(1)
        spread, square = f.var(0, correction=0), f.square().mean(0)
        joint = (f * moves).mean(0) - f.mean(0) * moves.mean(0)
        s = torch.where(spread > _NOTHING * square, joint / spread.clamp(min=1e-300), 0.0)
        return s, moves.mean(0) - s * f.mean(0)
