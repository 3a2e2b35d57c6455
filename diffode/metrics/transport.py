"""Wasserstein distances: exact on a line between laws or samples, and between samples in any dimension by assignment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.bridges import Bridge
from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.metrics.measurement import Measurement, Outcome, drawn_from, needs
from diffode.numerics.entropic_transport import entropic_value
from diffode.numerics.line_transport import OnLine, line_distance, line_dual, of_distribution, of_mixture, of_points
from diffode.sources import TargetSource
from diffode.targets import GaussianMixture, Target
from diffode.targets import get as get_target

#: Largest number of points of an exact assignment, whose time grows with the cube.
MOST_ASSIGNED = 4096
#: Rounding of a distribution function.
_ROUNDING = 1e-9
#: Points between the ends at which a distribution function is looked at, and the mass that may lie beyond the ends.
_LOOKS, _BEYOND = 65, 1e-3


@dataclass(frozen=True)
class LineLaw:
    """A law on the line from its distribution function, for :func:`wasserstein`.

    Args:
        cdf: P(X <= x) at an array of points (n,).
        low, high: finite ends between which all of the mass lies, up to what may be left out.
        survival: P(X > x); 1 - cdf unless given, which loses the digits of the upper tail.

    Raises:
        ArgumentError: for what is no function, ends that are not finite or do not rise, and a function that falls, leaves
            [0, 1], or leaves more than a thousandth of the mass beyond the ends.
    """

    cdf: Callable[[Any], Any]
    low: float
    high: float
    survival: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.cdf) or not (self.survival is None or callable(self.survival)):
            raise ArgumentError("cdf and survival must be functions of an array of points")
        ends = [end for end in (self.low, self.high) if isinstance(end, int | float) and math.isfinite(end)]
        if len(ends) < 2 or not self.low < self.high:
            raise ArgumentError(f"low and high must be finite and rise, got {self.low!r} and {self.high!r}")
        x = np.linspace(self.low, self.high, _LOOKS)
        below = _looked_at(self.cdf, x, "cdf")
        above = 1 - below if self.survival is None else _looked_at(self.survival, x, "survival")
        if below[0] > _BEYOND or above[-1] > _BEYOND:
            raise ArgumentError(
                f"low and high must hold all of the mass but {_BEYOND:g}: the function is {below[0]:.3g} at low, and "
                f"{1 - above[-1]:.3g} at high"
            )
        if (np.diff(below) < -_ROUNDING).any() or (np.diff(above) > _ROUNDING).any():
            raise ArgumentError("cdf must not fall, nor survival rise, from low to high: it is no distribution function")
        if np.abs(below + above - 1).max() > _BEYOND:
            raise ArgumentError("survival must be 1 - cdf, with the digits of the upper tail")


def _looked_at(function: Callable[[Any], Any], x: Any, name: str) -> Any:
    """The values of a distribution function at points; ArgumentError if they are none."""
    try:
        values = np.broadcast_to(np.asarray(function(x), dtype=np.float64), x.shape)
    except Exception as error:  # anyone's function may raise anything
        raise ArgumentError(f"{name} can't be asked at an array of points: {type(error).__name__}: {error}") from error
    if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
        raise ArgumentError(f"{name} must give probabilities in [0, 1], got {values[~((values >= 0) & (values <= 1))][0]:.3g}")
    return values


Line = Tensor | Target | str | LineLaw


def wasserstein(one: Line, two: Line, order: int = 2) -> float:
    """W1 (``order=1``) or W2 between two laws on the line.

    W_p^p is exact to its own rounding and that of a probability: 1e-16 of the mass may go across the widest gap g of a law, and
    counts as 1e-16 g^p. Between samples there is no such gap.

    Args:
        one, two: samples (n,) or (n, 1), of any two numbers of them; a one-dimensional mixture or its spec; or a
            :class:`LineLaw`.
        order: 1 or 2.

    Raises:
        ArgumentError: for laws that are none of these, samples that are not finite, and other orders.

    >>> wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([0.5]), 1)
    0.5
    >>> round(wasserstein("gauss1d", "gauss1d"), 12)
    0.0
    """
    _check_order(order)
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return _between_samples(_samples(one, "one"), _samples(two, "two"), order)
    return line_distance(_on_line(one, "one"), _on_line(two, "two"), order)


def wasserstein_dual(one: Line, two: Line) -> float:
    """A lower bound of W1 by Kantorovich's dual: E f(X) - E f(Y) for a 1-Lipschitz f, nearly the best one.

    It shares no formula with :func:`wasserstein` but the quantiles, and agrees to some 1e-4 of the distance, the error of its
    grid.

    >>> 0.4999 < wasserstein_dual(torch.tensor([0.0, 1.0]), torch.tensor([0.5])) <= 0.5 + 1e-12
    True
    """
    return line_dual(_on_line(one, "one"), _on_line(two, "two"))


@dataclass(frozen=True)
class Assigned:
    """An optimal assignment of as many points.

    Attributes:
        distance: W_p between the samples.
        partner: the row of y for each row of x, (n,).
        potentials: Kantorovich's f and g, (n,) each, with f_i + g_j <= |x_i - y_j|^p and equality for partners: the proof that
            no assignment is cheaper.
        excess: the largest f_i + g_j - |x_i - y_j|^p, which is rounding.
    """

    distance: float
    partner: Tensor
    potentials: tuple[Tensor, Tensor]
    excess: float


def assigned(x: Tensor, y: Tensor, order: int = 2) -> Assigned:
    """The optimal assignment of points x to as many points y, (n, dim), with its proof.

    Raises:
        ArgumentError: for samples of other shapes, that are not finite, or of more than 4,096 points.

    >>> found = assigned(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]), 1)
    >>> found.distance, found.partner.tolist()
    (1.0, [0, 1])
    """
    from scipy.optimize import linear_sum_assignment

    first, second = _cloud(x, "x"), _cloud(y, "y")
    _check_order(order)
    if first.shape != second.shape:
        raise ArgumentError(f"x and y must have one shape (n, dim), got {tuple(first.shape)} and {tuple(second.shape)}")
    if len(first) > MOST_ASSIGNED:
        raise ArgumentError(f"an exact assignment takes up to {MOST_ASSIGNED} points, got {len(first)}: take fewer")
    costs = _costs(first, second, order)
    partner = torch.from_numpy(linear_sum_assignment(costs.numpy())[1].astype(np.int64))
    paid = costs.gather(1, partner[:, None])[:, 0]
    g = _second_potential(costs, partner, paid)
    f = paid - g[partner]
    excess = float((f[:, None] + g[None] - costs).max())
    return Assigned(float(paid.mean().clamp(min=0) ** (1 / order)), partner, (f, g), excess)


def sinkhorn(x: Tensor, y: Tensor, epsilon: float, order: int = 2) -> float:
    """The debiased entropic distance S^(1/p), S = OT(x, y) - (OT(x, x) + OT(y, y))/2, of points (n, dim) and (m, dim).

    OT minimises the mean cost |x - y|^p plus epsilon times the relative entropy to the product; Sinkhorn's iterations run in
    the log domain, and Newton's where these crawl, until the marginals fit to 1e-7. It goes to W_p for epsilon -> 0, and for
    p = 2 to the distance of the means for epsilon -> infinity (Feydy et al., arXiv 1810.08278).

    Raises:
        ArgumentError: for wrong samples and an epsilon that is not positive.
        NumericalError: if the iterations do not come to an end, for an epsilon that is too small.

    >>> round(sinkhorn(torch.zeros(3, 2), torch.ones(4, 2), 0.1), 6)
    1.414214
    """
    first, second = _cloud(x, "x"), _cloud(y, "y")
    if first.shape[1] != second.shape[1]:
        raise ArgumentError(f"x has {first.shape[1]} coordinates and y {second.shape[1]}: they must be as many")
    check_epsilon(epsilon, "the unit of the cost |x - y|^p")
    _check_order(order)
    across = entropic_value(_costs(first, second, order), epsilon)
    own = [entropic_value(_costs(part, part, order), epsilon) for part in (first, second)]
    square = max(across - sum(own) / 2, 0.0)
    return math.sqrt(square) if order == 2 else square


def check_epsilon(epsilon: object = 0.05, unit: str = "units of scale^2 dim") -> None:
    """Raise ArgumentError unless a regularisation is a number > 0."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
        raise ArgumentError(f"epsilon must be a number > 0, in {unit}, got {epsilon!r:.60}")


def on_a_line(field: Field) -> None:
    """Raise ArgumentError unless the rows of a field are single numbers of a law whose quantiles are known."""
    law = drawn_from(field)
    if field.shape is not None:
        _check_line(math.prod(field.shape))
    if not isinstance(law, Bridge):
        _mixtures(law, "w1 and w2")


def _check_line(numbers: int) -> None:
    if numbers != 1:
        raise ArgumentError(f"w1 and w2 are exact on a line, and these rows have {numbers} numbers: take assigned_w2")


@needs(fits=on_a_line)
def w1(outcome: Outcome) -> Measurement:
    """The exact W1 distance of the end points from the law at the last time, for one-dimensional laws."""
    return _of_outcome(outcome, "w1", 1)


@needs(fits=on_a_line)
def w2(outcome: Outcome) -> Measurement:
    """The exact W2 distance of the end points from the law at the last time, for one-dimensional laws."""
    return _of_outcome(outcome, "w2", 2)


@needs(fits=drawn_from, most_points=MOST_ASSIGNED)
def assigned_w2(outcome: Outcome) -> Measurement:
    """W2 between the end points and as many exact draws, by optimal assignment; the floor is that of other exact draws."""
    outcome.check_points(1, "assigned_w2")
    count = len(outcome.end)
    exact, other = (outcome.exact_draws(count, stream).cpu() for stream in (3, 4))
    return Measurement("assigned_w2", *(assigned(part, exact).distance for part in (outcome.end.cpu(), other)))


@needs(fits=drawn_from, options=check_epsilon)
def sinkhorn_w2(outcome: Outcome, epsilon: float = 0.05) -> Measurement:
    """The debiased entropic distance between end points and as many exact draws; ``epsilon`` is in units of scale^2 dim."""
    check_epsilon(epsilon)
    outcome.check_points(1, "sinkhorn_w2")
    count = len(outcome.end)
    exact, other = (outcome.exact_draws(count, stream).cpu() for stream in (3, 4))
    unit = epsilon * outcome.field.scale**2 * exact.shape[1]
    return Measurement("sinkhorn_w2", *(sinkhorn(part, exact, unit) for part in (outcome.end.cpu(), other)))


def _of_outcome(outcome: Outcome, name: str, order: int) -> Measurement:
    outcome.check_points(1, name)
    _check_line(outcome.end.shape[1])
    last, field = outcome.times[-1], outcome.field
    if isinstance(field, Bridge):
        law = field.law(last)
    else:
        law = _noised_on_line(outcome.law, last, name)
    values = (wasserstein(part.cpu(), law, order) for part in (outcome.end, outcome.exact_draws(len(outcome.end), 3)))
    return Measurement(name, *values)


def _mixtures(field: ExactField, name: str) -> tuple[GaussianMixture, tuple[Tensor, Tensor, Tensor]]:
    """The mixture of the data, and weights, means and variances of that of the noise; ArgumentError if either is none."""
    mixture = field.target.as_mixture()
    noise: tuple[Tensor, Tensor, Tensor] | None = torch.ones(1).double(), torch.zeros(1).double(), torch.ones(1).double()
    if field.source is not None:
        source = field.source.of.as_mixture() if isinstance(field.source, TargetSource) else None
        noise = None if source is None else (source.weights, source.means[:, 0], source.components.variances()[:, 0])
    if mixture is None or noise is None:
        raise ArgumentError(
            f"{name} need data and noise that are mixtures of Gaussians, whose quantiles are known: take assigned_w2"
        )
    return mixture, noise


def _noised_on_line(field: ExactField, last: float, name: str) -> GaussianMixture:
    """The law of an exact field on the line at a time; ArgumentError if it is no mixture of Gaussians."""
    mixture, (shares, centres, variances) = _mixtures(field, name)
    alpha, sigma = field.path.alpha(last), field.path.sigma(last)
    weights = mixture.weights[:, None] * shares
    means = alpha * mixture.means + sigma * centres
    spread = alpha**2 * mixture.components.variances() + sigma**2 * variances
    return GaussianMixture(weights.reshape(-1), means.reshape(-1, 1), spread.reshape(-1))


def _check_order(order: object) -> None:
    if type(order) is not int or order not in (1, 2):
        raise ArgumentError(f"order must be 1 or 2, got {order!r:.60}")


def _on_line(law: Line, name: str) -> OnLine:
    if isinstance(law, LineLaw):
        above = law.survival or (lambda x: 1 - np.asarray(law.cdf(x)))
        return of_distribution(law.cdf, above, law.low, law.high)
    if isinstance(law, Tensor):
        points = _samples(law, name)
        return of_points(points, np.full(len(points), 1 / len(points)))
    mixture = get_target(law).as_mixture() if isinstance(law, Target | str) else None
    if mixture is None or mixture.dim != 1:
        raise ArgumentError(
            f"{name} must be samples (n,), a one-dimensional mixture or its spec, or a LineLaw, got {law!r:.60}"
        )
    means, variances = mixture.means[:, 0].numpy(), mixture.components.variances()[:, 0]
    if mixture.is_discrete:
        return of_points(means, mixture.weights.numpy())
    return of_mixture((mixture.weights.numpy(), means, variances.sqrt().numpy()))


def _between_samples(x: Any, y: Any, order: int) -> float:
    """The sum over the levels at which either quantile function jumps."""
    one, two = np.sort(x), np.sort(y)
    # Levels i/n and j/m as integers over n m, so that equal ones are equal.
    n, m = len(one), len(two)
    levels = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
    width = np.diff(levels, prepend=0) / (n * m)
    # Halves, and shares of the largest gap, neither overflow nor vanish where the distance does not.
    with np.errstate(over="ignore"):
        gaps = 2 * np.abs(one[(levels - 1) // m] / 2 - two[(levels - 1) // n] / 2)
    largest = float(gaps.max())
    if not 0 < largest < math.inf:
        if largest:
            raise ArgumentError("the samples are so far apart that their distance is no number of float64: rescale them")
        return 0.0
    return largest * float(np.sum(width * (gaps / largest) ** order) ** (1 / order))


def _samples(points: Tensor, name: str) -> Any:
    if points.ndim == 2 and points.shape[1] == 1:
        points = points[:, 0]
    if points.ndim != 1 or not len(points) or not points.is_floating_point():
        raise ArgumentError(f"{name} must be samples (n,) or (n, 1), one at least, got {points.dtype} {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise ArgumentError(f"{name} has samples that are not finite")
    return points.detach().to("cpu", torch.float64).numpy()


def _cloud(points: object, name: str) -> Tensor:
    if not isinstance(points, Tensor) or points.ndim != 2 or 0 in points.shape or not points.is_floating_point():
        shape = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise ArgumentError(f"{name} must be samples (n, dim), one at least, got {shape}")
    if not bool(torch.isfinite(points).all()):
        raise ArgumentError(f"{name} has samples that are not finite")
    return points.detach().to("cpu", torch.float64)


def _costs(x: Tensor, y: Tensor, order: int) -> Tensor:
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    costs = distances**order if order > 1 else distances
    if not bool(torch.isfinite(costs).all()):
        raise ArgumentError(
            f"points as large as {float(torch.maximum(x.abs().max(), y.abs().max())):.3g} have costs |x - y|^{order} beyond "
            "float64: rescale them"
        )
    return costs


def _second_potential(costs: Tensor, partner: Tensor, paid: Tensor) -> Tensor:
    """g (n,) by shortest paths: f_i + g_j <= c_ij for f_i = c_(i, partner) - g_partner holds if g_j - g_partner is small."""
    slack = costs - paid[:, None]
    g = torch.zeros(len(costs)).double()
    for _ in range(len(costs)):
        shorter = torch.minimum(g, (g[partner][:, None] + slack).amin(0))
        if torch.equal(shorter, g):
            break
        g = shorter
    return g
