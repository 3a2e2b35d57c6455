r"""The ends of a flow map against those of the exact flow, and its slope against the exact one.

A one-step map of slope K can't follow a flow that is steeper. With an odd exact map f of a standard normal z, every map g with
:math:`|g(z) - g(-z)| \le 2 K z` errs by :math:`E|g - f| \ge 2\int_0^\infty (f(z) - K z)_+ \varphi(z)\, dz`, since
:math:`|g(z) - f(z)| + |g(-z) - f(-z)| \ge 2 f(z) - 2 K z`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.fields import ExactField
from diffode.flows import reference
from diffode.randomness import keyed, normal
from diffode.verify.maps.trial import TOLERANCE, MapTrial
from diffode.verify.report import Check

#: Distance of two starts, in sizes of a state, over which a slope is measured.
_NEAR = 1e-4
#: Number of starts at which slopes are measured.
_SLOPES = 256
#: Number of quantiles of the start over which the bound is integrated, up to this many deviations.
_QUANTILES, _DEVIATIONS = 4000, 8.0
#: Largest part of its size by which an odd map may fail to be odd.
_ODD = 1e-6


@dataclass(frozen=True)
class Pair:
    """Errors of ends from a time s to a time t, in sizes of a state at t: their mean, quantiles and the largest."""

    s: float
    t: float
    mean: float
    median: float
    ninety: float
    ninety_nine: float
    most: float

    @property
    def jump(self) -> str:
        """From where to where, in words."""
        return f"from t={self.s:.4g} to t={self.t:.4g}"

    def __str__(self) -> str:
        return (
            f"{self.jump}: mean {self.mean:.1e}, median {self.median:.1e}, 90 % {self.ninety:.1e}, "
            f"99 % {self.ninety_nine:.1e}, largest {self.most:.1e}"
        )


def pairs(trial: MapTrial) -> tuple[Check, tuple[Pair, ...]]:
    """The check of the mean error of the worst pair of times, and the errors of all pairs.

    The check of a map that was made to have the right law has no outcome.
    """
    found = []
    for s, t in trial.pairs:
        first, end = trial.times[s], trial.times[t]
        errors = trial.errors(trial.call(trial.states[s], first, end), trial.states[t], end)
        levels = torch.tensor([0.5, 0.9, 0.99], dtype=errors.dtype, device=errors.device)
        median, ninety, ninety_nine = errors.quantile(levels).tolist()
        found.append(Pair(first, end, float(errors.mean()), median, ninety, ninety_nine, float(errors.max())))
    worst = max(found, key=lambda pair: pair.mean)
    if trial.phi.law_only:
        return Check("pairs", worst.mean, detail=f"not judged, its law is: {worst}"), tuple(found)
    return Check("pairs", worst.mean, trial.allowed, str(worst)), tuple(found)


def two_jumps(trial: MapTrial) -> float:
    """The mean error of the end reached in two jumps, over that of the trial's times where it is largest."""
    first, last, start = trial.times[0], trial.times[-1], trial.states[0]
    worst = 0.0
    for middle in trial.times[1:-1]:
        end = trial.call(trial.call(start, first, middle), middle, last)
        worst = max(worst, float(trial.errors(end, trial.states[-1], last).mean()))
    return worst


def slope(trial: MapTrial, error: float) -> Check:
    """A remark on the largest slope of the map from its first to its last time, and on what it allows.

    ``error`` is the mean error of the map from its first time to its last.
    """
    first, last = trial.times[0], trial.times[-1]
    x = trial.states[0, :_SLOPES]
    direction = normal(x.shape, generator=keyed(trial.seed, "slopes")).to(x)
    direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    step = _NEAR * trial.size(first) * direction

    def slopes(ends: Tensor, others: Tensor) -> Tensor:
        # In sizes of a state at both ends.
        return trial.errors(ends, others, last) / (2 * _NEAR)

    own = float(slopes(trial.call(x + step, first, last), trial.call(x - step, first, last)).max())
    exact = slopes(*(reference(trial.field, x + side * step, first, last, TOLERANCE).x for side in (1.0, -1.0)))
    text = f"largest slope {own:.3g}, of the exact flow {float(exact.max()):.3g} at the same {len(x)} starts"
    bound = least_error(trial)
    if bound is not None:
        text += f"; a map as steep as this one errs by {bound:.1e} at least, this one by {error:.1e}"
    return Check("slope", own, detail=text)


def least_error(trial: MapTrial) -> float | None:
    """The least mean error of a map as steep as this one, on a law of one dimension whose flow is odd; None for others."""
    field = trial.field
    if not isinstance(field, ExactField) or field.dim != 1:
        return None
    first, last = trial.times[0], trial.times[-1]
    centre = float(field.target.mean)
    z = torch.linspace(0, _DEVIATIONS, _QUANTILES + 1, dtype=torch.float64)[1:]
    offset = z[:, None] * math.sqrt((trial.path.alpha(first) * field.scale) ** 2 + trial.path.sigma(first) ** 2)
    middle = trial.path.alpha(first) * centre
    starts = torch.cat([middle + offset, middle - offset])
    exact = reference(field, starts, first, last, TOLERANCE).x - trial.path.alpha(last) * centre
    up, down = exact[: len(z), 0], exact[len(z) :, 0]
    if float((up + down).abs().max()) > _ODD * float(up.abs().max()):
        return None
    ends = trial.call(starts, first, last)[:, 0]
    steep = float(((ends[: len(z)] - ends[len(z) :]) / (2 * z)).abs().max())
    # The starts are those of the law at the first time, whose density is not quite normal.
    density = field.log_prob(starts[: len(z)], first).exp() * float(offset[0, 0] / z[0])
    missing = (up - steep * z).clamp(min=0)
    return float(2 * (missing * density).sum() * (z[1] - z[0])) / trial.size(last)
