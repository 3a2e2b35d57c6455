"""Metrics of samples that come in chunks, in memory that does not grow with their number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.flows import reference
from diffode.metrics.coupled import Reduction
from diffode.metrics.density import LOST_SHARE, mixture_of, responsibilities
from diffode.metrics.gaussian import gaussian_w2
from diffode.metrics.measurement import Measurement, law_of, registry
from diffode.metrics.sampled import check_sampling
from diffode.numerics.projections import directions
from diffode.randomness import keyed
from diffode.solvers.starts import part_of
from diffode.specs import Registry

#: Number of exact draws that are made at once; no more than these are the draws of the metric of all points at once.
_DRAWS = 2**16
#: Number of projected coordinates that are held at once, 8 MB.
_COORDINATES = 2**20
#: Standard deviations of the exact law, on either side of its mean, that bins of equal width cover.
_COVERED = 8.0


@dataclass(frozen=True)
class Run:
    """What the samples are of: a field, the first and last times, a seed for exact draws, and the tolerance of references."""

    field: Field
    times: tuple[float, float]
    seed: int
    tolerance: float

    @property
    def law(self) -> ExactField:
        """The exact field; ArgumentError if it is not known."""
        return law_of(self.field)

    def exact_draws(self, n: int, stream: int) -> Iterator[Tensor]:
        """n draws of the exact law at the last time, in blocks; each stream gives another set."""
        generator = keyed(self.seed, "metrics", stream)
        for begin in range(0, n, _DRAWS):
            yield self.law.marginal(min(_DRAWS, n - begin), self.times[1], generator=generator)


class Streamed(ABC):
    """A metric that takes samples in chunks: :meth:`add` as often as wanted, and :meth:`value` at any time."""

    def __init__(self, run: Run):
        self.run = run
        #: Number of points so far.
        self.count = 0

    def add(self, ends: Tensor, starts: Tensor | None = None) -> None:
        """Take end points (rows, *shape), and the starts that they come from, where the metric compares with the flow.

        Raises ArgumentError for points of another size, for some that are not finite, and for missing starts.
        """
        dim = self.run.law.target.dim
        points = _rows(ends, dim, "ends")
        if not bool(points.isfinite().all()):
            raise ArgumentError("some end points are not finite; a metric over the others would flatter the solver")
        before = None if starts is None else _rows(starts, dim, "starts")
        if before is not None and len(before) != len(points):
            raise ArgumentError(f"starts must be as many as ends, {len(points)}, got {len(before)}")
        if len(points):
            self.take(points, before)
            self.count += len(points)

    def value(self) -> Measurement:
        """The metric of all points so far; ArgumentError if there are too few."""
        if self.count < self.least:
            raise ArgumentError(f"{self.name} needs at least {self.least} points to measure, got {self.count}; add more")
        return self.measured()

    #: Name of the metric.
    name: ClassVar[str]
    #: Least number of points that can be measured.
    least: ClassVar[int] = 1

    @abstractmethod
    def take(self, ends: Tensor, starts: Tensor | None) -> None:
        """Take end points (rows, dim), float64, at least one, and their starts."""

    @abstractmethod
    def measured(self) -> Measurement:
        """The metric of the points so far, at least ``least``."""


def streamed(
    spec: str,
    field: Field,
    *,
    between: tuple[float, float] | None = None,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> Streamed:
    """A metric of samples that come in chunks, such as those of :func:`diffode.stream`, in constant memory.

    ``moments``, ``mode_weights``, ``lost_modes`` and ``endpoint`` are those of all points at once, up to rounding, however the
    points are cut. ``sliced_w2`` keeps numbers, means and variances of the points between 4,096 bounds along each direction
    (option ``bins``); the distance of all points at once lies between ``low`` and ``high``. Floors come from as many exact
    draws: up to 65,536 points these are the same as for all points at once, beyond that others.

    Args:
        spec: the metric: one of ``streamed_names()``, with its options.
        field: an exact field, or one that knows the exact field that it approximates.
        between: the times of the run; those of the path unless given.
        seed: seed of the exact draws that floors, and ``sliced_w2``, need.
        tolerance: of the references of ``endpoint``.

    Raises:
        UnknownNameError: for a metric that can't be streamed; ArgumentError for wrong options.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> weights = diffode.metrics.streamed("mode_weights", field)
    >>> for chunk in diffode.stream(field, 20_000, solver="dpmpp:order=2", nfe=10, rows=4096):
    ...     weights.add(chunk)
    >>> weights.count, weights.value().value < 0.03
    (20000, True)
    """
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field, got {type(field).__name__}")
    path = field.require_path("the times of the run")
    part = path if between is None else part_of(path, between, None)
    return streamed_registry.make(spec, run=Run(field, (part.t_max, part.t_min), seed, tolerance))


def streamed_names() -> list[str]:
    """The names of metrics that take samples in chunks."""
    return streamed_registry.names()


def _in_a_suite(name: str) -> str:
    """Advice on a metric that takes all points at once."""
    if name not in registry.names():
        return ""
    return f'it takes all points at once, in a suite with metrics = ["{name}"] or by diffode.metrics.measure'


streamed_registry: Registry[Streamed] = Registry("streamed metric", advice=_in_a_suite)


def _rows(points: Tensor, dim: int, name: str) -> Tensor:
    if not isinstance(points, Tensor) or points.ndim < 1 or points[:0].flatten(1).shape[1:] != (dim,):
        shape = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise ArgumentError(f"{name} must be a tensor of rows with {dim} numbers each, got {shape}")
    return points.detach().to(torch.float64).flatten(1)


class _Moments:
    """Number, mean (dim,) and centred second moments (dim, dim) of points, merged without cancellation."""

    def __init__(self, dim: int):
        self.count, self.mean, self.squares = 0, torch.zeros(dim).double(), torch.zeros(dim, dim).double()

    def add(self, x: Tensor) -> None:
        x = x.cpu()
        mean, total = x.mean(0), self.count + len(x)
        apart, centred = mean - self.mean, x - mean
        self.squares += centred.T @ centred + apart[:, None] * apart * (self.count * len(x) / total)
        self.mean = self.mean + apart * (len(x) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        return self.squares / (self.count - 1)


class Moments(Streamed):
    """W2 between the Gaussians with the mean and covariance of the points and of the data; see ``metrics.moments``."""

    name = "moments"
    least = 2

    def __init__(self, run: Run):
        super().__init__(run)
        self._points = _Moments(run.law.target.dim)

    @override
    def take(self, ends: Tensor, starts: Tensor | None) -> None:
        self._points.add(ends)

    @override
    def measured(self) -> Measurement:
        target, exact = self.run.law.target, _Moments(self.run.law.target.dim)
        for draws in self.run.exact_draws(self.count, 1):
            exact.add(draws)
        values = (gaussian_w2(part.mean, part.covariance, target.mean, target.covariance) for part in (self._points, exact))
        return Measurement(self.name, *values)


class ModeWeights(Streamed):
    """Total variation distance of the points' mode weights from the mixture's; see ``metrics.mode_weights``."""

    name = "mode_weights"

    def __init__(self, run: Run):
        super().__init__(run)
        self._weights = mixture_of(run.law).weights
        self._sums = torch.zeros_like(self._weights)

    def _shares(self, x: Tensor) -> Tensor:
        return responsibilities(self.run.law, self.run.field.scale, self.run.times[1], x).sum(0).cpu()

    @override
    def take(self, ends: Tensor, starts: Tensor | None) -> None:
        self._sums += self._shares(ends)

    def _both(self) -> tuple[Tensor, Tensor]:
        """The weights of the points, and of as many exact draws."""
        exact = torch.zeros_like(self._sums)
        for draws in self.run.exact_draws(self.count, 2):
            exact += self._shares(draws)
        return self._sums / self.count, exact / self.count

    @override
    def measured(self) -> Measurement:
        return Measurement(self.name, *(float((part - self._weights).abs().sum()) / 2 for part in self._both()))


class LostModes(ModeWeights):
    """Number of modes that got less than a tenth of their weight; see ``metrics.lost_modes``."""

    name = "lost_modes"

    @override
    def measured(self) -> Measurement:
        return Measurement(self.name, *(float((part < LOST_SHARE * self._weights).sum()) for part in self._both()))


class Endpoint(Streamed):
    """Mean, root mean square or largest distance of end points to those of the field's own flow; see ``metrics.endpoint``."""

    name = "endpoint"

    def __init__(self, run: Run, reduction: Reduction = "mean"):
        super().__init__(run)
        if reduction not in ("mean", "rms", "max"):
            raise ArgumentError(f"reduction must be mean, rms or max for points in chunks, got {reduction!r}")
        self._reduction = reduction
        # Of the distances and of the errors of the references.
        self._sums = torch.zeros(2, dtype=torch.float64)

    @override
    def take(self, ends: Tensor, starts: Tensor | None) -> None:
        if starts is None:
            raise ArgumentError(
                "endpoint compares with the flow of the starts: add(ends, starts), as stream(with_starts=True) gives"
            )
        exact = reference(self.run.field, starts, *self.run.times, self.run.tolerance)
        each = torch.stack([(ends - exact.x.flatten(1)).norm(dim=1).cpu(), exact.errors.cpu()])
        if self._reduction == "max":
            self._sums = torch.maximum(self._sums, each.amax(1))
        else:
            self._sums += (each.square() if self._reduction == "rms" else each).sum(1)

    @override
    def measured(self) -> Measurement:
        means = self._sums if self._reduction == "max" else self._sums / self.count
        return Measurement(self.name, *(means.sqrt() if self._reduction == "rms" else means).tolist())


class _Bins(NamedTuple):
    """Bins of equal width along each of P directions: the first's centre (P, 1), and the width (P, 1)."""

    directions: Tensor
    first: Tensor
    width: Tensor
    many: int

    @classmethod
    def of(cls, run: Run, projections: int, many: int) -> _Bins:
        """Bins that cover the exact law at the last time; the first and last hold what lies beyond."""
        target, path, last = run.law.target, run.law.path, run.times[1]
        along = directions(target.dim, projections)
        mean = path.alpha(last) * (target.mean @ along)
        variance = path.alpha(last) ** 2 * (along * (target.covariance @ along)).sum(0) + path.sigma(last) ** 2
        reach = (_COVERED * variance.sqrt())[:, None]
        width = (2 * reach / many).clamp(min=1e-300)
        return cls(along, mean[:, None] - reach + width / 2, width, many)


class _Projected:
    """Number, sum and sum of squares, about the bin's centre, of projected points in each bin, (P, bins)."""

    def __init__(self, bins: _Bins):
        self.bins = bins
        self.numbers, self.sums, self.squares = (torch.zeros(len(bins.width), bins.many).double() for _ in range(3))

    def add(self, x: Tensor) -> None:
        bins, (projections, count) = self.bins, self.numbers.shape
        offsets = torch.arange(projections)[:, None] * count
        for part in torch.split(x.cpu(), max(1, _COORDINATES // projections)):
            along = (part @ bins.directions).T
            place = ((along - bins.first) / bins.width).round().clamp(0, count - 1)
            rest = (along - bins.first).addcmul_(place, bins.width, value=-1)
            flat, rest = (place.long() + offsets).reshape(-1), rest.reshape(-1)
            for held, weights in ((self.numbers, None), (self.sums, rest), (self.squares, rest.square())):
                held += torch.bincount(flat, weights, held.numel()).reshape(held.shape)

    @property
    def means(self) -> Tensor:
        """The mean of each bin's points, (P, bins), or its centre if it has none."""
        centres = self.bins.first + self.bins.width * torch.arange(self.bins.many)
        return centres + self.sums / self.numbers.clamp(min=1)

    @property
    def error(self) -> float:
        """The sliced W2 distance of the points from as many at their bin's means: the root of the mean variance in a bin."""
        within = (self.squares - self.sums.square() / self.numbers.clamp(min=1)).clamp(min=0)
        return float((within.sum() / self.numbers.sum()).sqrt())

    def distance(self, other: _Projected) -> float:
        """The sliced W2 distance between two sets of as many points, all of which lie at their bin's means."""
        ends = [part.numbers.cumsum(1) for part in (self, other)]
        levels = torch.cat(ends, dim=1).sort(dim=1).values
        gaps = torch.zeros_like(levels)
        for sign, part, cumulated in ((1, self, ends[0]), (-1, other, ends[1])):
            # The atom that holds the points just below a level.
            at = torch.searchsorted(cumulated, levels).clamp(max=part.bins.many - 1)
            gaps += sign * part.means.gather(1, at)
        lengths = levels.diff(dim=1, prepend=torch.zeros_like(levels[:, :1]))
        return float(((gaps.square() * lengths).sum() / self.numbers.sum()).sqrt())


class SlicedW2(Streamed):
    """The sliced W2 distance from as many exact draws, and bounds that hold that of all points; see ``metrics.sliced_w2``."""

    name = "sliced_w2"

    def __init__(self, run: Run, projections: int = 128, bins: int = 4096):
        super().__init__(run)
        check_sampling(projections=projections)
        if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= 2**20:
            raise ArgumentError(f"bins must be an integer from 2 to {2**20:,}, got {bins!r}")
        self._bins = _Bins.of(run, projections, bins)
        self._points = _Projected(self._bins)

    @override
    def take(self, ends: Tensor, starts: Tensor | None) -> None:
        self._points.add(ends)

    @override
    def measured(self) -> Measurement:
        exact, other = _Projected(self._bins), _Projected(self._bins)
        for held, stream in ((exact, 3), (other, 4)):
            for draws in self.run.exact_draws(self.count, stream):
                held.add(draws)
        value = self._points.distance(exact)
        # The distance obeys the triangle inequality, and both sets are moved by no more than their errors.
        error = self._points.error + exact.error
        return Measurement(self.name, value, other.distance(exact), max(0.0, value - error), value + error)


for _make in (Endpoint, Moments, ModeWeights, LostModes, SlicedW2):
    streamed_registry.register(_make.name, _make)
