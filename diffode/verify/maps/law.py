"""The law of the points that one jump generates, against exact draws: moments, weights of modes, and sliced W2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffode.fields import ExactField
from diffode.fields.exact import mixture_of
from diffode.metrics.density import LOST_SHARE
from diffode.metrics.gaussian import gaussian_w2
from diffode.numerics.projections import directions, projected_distance
from diffode.randomness import keyed
from diffode.verify.maps.trial import MapTrial
from diffode.verify.report import Check

#: Number of generated points, in up to three dimensions and in more.
_MANY, _FEW = 20_000, 4_000
#: Largest dimension with many points.
_LOW = 3
#: A distance may be this multiple of the largest of those of so many sets of exact draws, beside what is allowed. The points of
#: an exact map are one set more: with one set to compare with, one exact map in nineteen failed.
_FLOORS, _SETS = 1.5, 8
#: Expected number of points of a mode from which its loss is no chance.
_EXPECTED = 12.0
#: Error of a weight that draws explain, in standard errors.
_DEVIATIONS = 5.0
#: Number of directions of the sliced distance.
_DIRECTIONS = 128

#: A distance of two sets of points (n, D).
Measure = Callable[[Tensor, Tensor], float]

#: Names of the checks of a law.
NAMES = ("moments", "weights of modes", "sliced W2")


def law(trial: MapTrial, draws: int | None = None) -> list[Check]:
    """The checks of the law of ``draws`` points; no check has an outcome for a field whose law is unknown."""
    exact = trial.field if isinstance(trial.field, ExactField) else trial.field.truth
    if exact is None:
        return [Check.found(name, None, "not judged: the law of this field is not known") for name in NAMES]
    first, last = trial.times[0], trial.times[-1]
    count = draws or (_MANY if exact.target.dim <= _LOW else _FEW)
    row = trial.states.shape[2:]
    start = exact.marginal(count, first, generator=keyed(trial.seed, "law", 0))
    made = trial.call(start.reshape(-1, *row), first, last).flatten(1)
    true, *others = (exact.marginal(count, last, generator=keyed(trial.seed, "law", k)) for k in range(1, _SETS + 2))
    size = trial.size(last)
    return [
        _distance(trial, "moments", made, true, others, size, _of_moments),
        _modes(trial, exact, made, true, last),
        _distance(trial, "sliced W2", made, true, others, size, _sliced),
    ]


def _distance(
    trial: MapTrial, name: str, made: Tensor, true: Tensor, others: list[Tensor], size: float, distance: Measure
) -> Check:
    value, floor = distance(made, true) / size, max(distance(other, true) for other in others) / size
    allowed = _FLOORS * floor + trial.allowed
    return Check(name, value, allowed, f"of the scale, for {len(made):,} points; exact draws: up to {floor:.1e}")


def _of_moments(x: Tensor, y: Tensor) -> float:
    """W2 between the Gaussians with the means and covariances of two sets."""
    parts = [(z.mean(0), torch.cov(z.T).reshape(z.shape[1], z.shape[1])) for z in (x, y)]
    return gaussian_w2(*parts[0], *parts[1])


def _sliced(x: Tensor, y: Tensor) -> float:
    """Root mean square over directions of W2 between projections, times the root of the dimension, as a distance of points."""
    dim = x.shape[1]
    # All directions of a line are one.
    along = directions(dim, _DIRECTIONS if dim > 1 else 1).to(x)
    return projected_distance(x, y, along) * math.sqrt(dim)


def _modes(trial: MapTrial, exact: ExactField, made: Tensor, true: Tensor, last: float) -> Check:
    """The check that no mode is lost and none has far more or less than its weight."""
    name, mixture = "weights of modes", mixture_of(exact)
    if mixture is None or mixture.count == 1:
        return Check.found(name, None, "not judged: the data have one mode, or are no mixture")
    alpha, sigma = trial.path.alpha(last), max(trial.path.sigma(last), 1e-6 * exact.scale)
    weights = mixture.weights.cpu()
    own, drawn = (mixture.responsibilities(x, alpha, sigma).mean(0).cpu() for x in (made, true))
    lost = (own < LOST_SHARE * weights) & (weights * len(made) >= _EXPECTED)
    if bool(lost.any()):
        which = weights[lost].tolist()
        text = ", ".join(f"{w:.3g}" for w in which[:4]) + (" ..." if len(which) > 4 else "")
        return Check.found(name, False, f"loses the mode{'s' if len(which) > 1 else ''} of weight {text}")
    spread = (weights * (1 - weights) / len(made)).sqrt()
    excess = ((own - weights).abs() - _DEVIATIONS * spread).clamp(min=0)
    apart, floor = (float((w - weights).abs().sum()) / 2 for w in (own, drawn))
    worst = int((own - weights).abs().argmax())
    text = (
        f"total variation {apart:.1e} (exact draws: {floor:.1e}); the mode of weight {weights[worst]:.3g} has {own[worst]:.3g}"
    )
    return Check(name, float(excess.sum()), trial.tolerance, text)
