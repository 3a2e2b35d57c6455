"""The input of a metric, an outcome, and its answer, a measurement."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffode.bridges import Bridge
from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.flows import Reference, reference
from diffode.makers import option_names
from diffode.randomness import keyed
from diffode.solvers import Solution
from diffode.specs import Registry, parse_spec
from diffode.targets import GaussianMixture

#: Largest number of coordinates in a set of exact draws that is kept, 0.5 MB, and count of what is kept for a law.
_KEPT_NUMBERS, _KEPT_SETS = 2**16, 16
#: Exact draws, and statistics of them, by law and what fixes them: cells that differ in their solver alone ask for the same.
_drawn: weakref.WeakKeyDictionary[ExactField, dict[tuple[object, ...], Tensor]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Measurement:
    """A measured error and its floor, below which it means nothing.

    Attributes:
        name: the metric.
        value: the error.
        floor: the value for an exact sampler with as many points, or the error of the reference.
        low, high: a 95 % interval of the value, where sampling makes one, else None.
    """

    name: str
    value: float
    floor: float = 0.0
    low: float | None = None
    high: float | None = None

    @property
    def above_floor(self) -> bool:
        """Whether the value is more than twice its floor, and so differs from that of an exact sampler."""
        return self.value > 2 * self.floor


@dataclass(frozen=True)
class Outcome:
    """One run to be measured: the field, the starts, the solution, and a seed for the draws of a metric.

    ``tolerance`` is that of the reference, which is computed once, on demand, unless given as ``known_reference``, itself or as
    a function that gives it.
    """

    field: Field
    start: Tensor
    solution: Solution
    seed: int = 0
    tolerance: float = 1e-9
    known_reference: Reference | Callable[[], Reference] | None = None

    @property
    def times(self) -> list[float]:
        """The times of the grid."""
        return self.solution.times.tolist()

    @functools.cached_property
    def good(self) -> Tensor:
        """Rows that did not fail, (B,) bool."""
        return self.solution.status == 0

    @functools.cached_property
    def end(self) -> Tensor:
        """End points as (B, dim), float64."""
        return self.solution.x.detach().to(torch.float64).flatten(1)

    @functools.cached_property
    def reference(self) -> Reference:
        """The ends to which the field's own flow takes the starts."""
        if self.known_reference is None:
            return self._flow(self.field)
        return self.known_reference() if callable(self.known_reference) else self.known_reference

    @functools.cached_property
    def true_reference(self) -> Reference:
        """The ends to which the exact flow takes the starts, also if the field only approximates the exact one."""
        return self._flow(self.law)

    def _flow(self, field: Field) -> Reference:
        times = self.times
        start = self.start.to(torch.float64)
        if isinstance(field, ExactField):
            start = start.flatten(1)
        return reference(field, start, times[0], times[-1], self.tolerance)

    @property
    def law(self) -> ExactField:
        """The exact field: the field itself, or the one that it approximates; ArgumentError if that is unknown."""
        return law_of(self.field)

    @property
    def exact(self) -> ExactField:
        """The field, for metrics that need an exact one; ArgumentError if it is not."""
        return exact_of(self.field)

    def check_points(self, least: int, metric: str) -> None:
        """Raise ArgumentError if there are fewer end points than the ``least`` that a metric needs."""
        if len(self.end) < least:
            raise ArgumentError(f"{metric} needs at least {least} points to measure, got {len(self.end)}; run more starts")

    def stream(self, number: int) -> torch.Generator:
        """A generator for the draws of this number, fixed by the outcome's seed and the number."""
        return keyed(self.seed, "metrics", number)

    def exact_draws(self, n: int, stream: int) -> Tensor:
        """n draws of the exact law at the last time, (n, dim), on the device of the ends; each stream gives another set."""
        law, last = drawn_from(self.field), self.times[-1]

        def draw() -> Tensor:
            return law.marginal(n, last, generator=self.stream(stream))

        if isinstance(law, Bridge):
            return draw().to(self.end.device)
        return self._kept(law, (n, last, self.seed, stream), n * law.target.dim, draw).clone().to(self.end.device)

    def of_exact_draws(self, statistic: Callable[[Outcome, Tensor], Tensor], n: int, stream: int) -> Tensor:
        """``statistic(outcome, draws)`` of the draws that :meth:`exact_draws` gives; it may ask for field and times."""
        law, times = law_of(self.field), (self.times[0], self.times[-1])

        def computed() -> Tensor:
            return statistic(self, self.exact_draws(n, stream))

        key = (statistic, n, *times, self.seed, stream, self.field.scale, self.end.device)
        return self._kept(law, key, n * law.target.dim, computed).clone()

    def _kept(self, law: ExactField, key: tuple[object, ...], numbers: int, make: Callable[[], Tensor]) -> Tensor:
        """What a function makes of a law and a key, kept unless there are more ``numbers`` behind it than are kept."""
        # What a class of a user's draws may depend on more than a key.
        if type(law.target) is not GaussianMixture or numbers > _KEPT_NUMBERS:
            return make()
        kept = _drawn.setdefault(law, {})
        if key not in kept:
            if len(kept) >= _KEPT_SETS:
                kept.clear()
            kept[key] = make()
        return kept[key]


def law_of(field: Field) -> ExactField:
    """The exact field: the field itself, or the one that it approximates; ArgumentError if that is unknown."""
    truth = field if isinstance(field, ExactField) else field.truth
    if truth is None:
        raise ArgumentError("this metric needs the exact law of the data, which is not known for a field without a target")
    return truth


def exact_of(field: Field) -> ExactField:
    """The field; ArgumentError if it is not exact."""
    if not isinstance(field, ExactField):
        raise ArgumentError("this metric needs an exact field (diffode.exact_field), not one that approximates it")
    return field


def approximates(field: Field) -> None:
    """Raise ArgumentError unless a field approximates an exact one, which is known."""
    if law_of(field) is field:
        raise ArgumentError("this field is exact, so that its own error is 0 and all is the solver's: take endpoint")


def drawn_from(field: Field) -> ExactField | Bridge:
    """What gives exact draws of a field's law; ArgumentError if the law is unknown."""
    return field if isinstance(field, Bridge) else law_of(field)


class Needs(NamedTuple):
    """What a metric needs of a run beside its end points.

    Attributes:
        flow: rows that follow the exact flow from their own start, which those of solvers that draw noise do not.
        states: the states at all times of the grid, which a study keeps only for a cell with such a metric.
        length: whether its value is a length in the unit of the data, which rankings take in units of the data's scale.
        fits: raises ArgumentError for a field on which it can't measure, called with the field and with those of the metric's
            options that it takes; a study asks it before anything runs.
        options: raises ArgumentError for wrong options, called with those of a spec; a study asks it before anything runs.
        most_points: the largest number of end points that it takes, if there is one.
    """

    flow: bool = False
    states: bool = False
    length: bool = True
    fits: Callable[..., object] | None = None
    options: Callable[..., object] | None = None
    most_points: int | None = None


Metric = TypeVar("Metric", bound=Callable[..., Measurement])


def needs(
    *,
    flow: bool = False,
    states: bool = False,
    length: bool = True,
    fits: Callable[..., object] | None = None,
    options: Callable[..., object] | None = None,
    most_points: int | None = None,
) -> Callable[[Metric], Metric]:
    """Decorate a metric with what it needs, so that studies keep states for it, and leave out runs that it can't measure.

    With ``length=False`` rankings take its value as it is: it is no length, such as a probability or a number of modes.
    ``fits(field)`` raises ArgumentError for a field on which it can't measure, and ``options(**options)`` for wrong options;
    the options of the metric that ``fits`` names are given to it too.
    """

    def decorated(metric: Metric) -> Metric:
        metric.needs = Needs(flow, states, length, fits, options, most_points)  # type: ignore[attr-defined]
        return metric

    return decorated


def needs_of(spec: str) -> Needs:
    """What the metric of a spec needs; UnknownNameError for an unknown one."""
    found: Needs = getattr(registry.entry(parse_spec(spec)[0]).make, "needs", Needs())
    return found


def check_options(spec: str) -> None:
    """Raise ArgumentError if the metric of a spec does not take an option of the spec, or not its value.

    >>> check_options("sliced_w2:resamples=-1")
    Traceback (most recent call last):
    diffode.errors.ArgumentError: resamples must be 0 (no interval) or an integer >= 2, got -1
    """
    entry, check = registry.check(spec, given=("outcome",)), needs_of(spec).options
    if "outcome" in parse_spec(spec)[1]:
        raise ArgumentError(f"outcome is the run that metric {entry.name!r} measures, and no option of a spec: leave it out")
    if check is not None:
        check(**{**entry.preset, **parse_spec(spec)[1]})


def check_fits(spec: str, field: Field) -> None:
    """Raise ArgumentError if the metric of a spec can't measure on a field."""
    fits = needs_of(spec).fits
    if fits is not None:
        entry, taken = registry.entry(parse_spec(spec)[0]), option_names(fits)
        options = {**entry.preset, **parse_spec(spec)[1]}
        fits(field, **{key: value for key, value in options.items() if taken is None or key in taken})


registry: Registry[Measurement] = Registry("metric")
register = registry.register


def names() -> list[str]:
    """All registered metric names, the most trustworthy first."""
    return registry.names()


def measure(spec: str, outcome: Outcome, **options: Any) -> Measurement:
    """Measure an outcome with the metric of a spec, such as ``"endpoint"`` or ``"sliced_w2:projections=64"``.

    Raises ArgumentError if rows of the solution failed or the metric does not apply, UnknownNameError for an unknown metric.
    To add a metric, write a function of an :class:`Outcome` (and options) that returns a :class:`Measurement`, say with
    :func:`needs` what it needs beside the ends, and call ``diffode.metrics.register(name, function)``.
    """
    if not bool(outcome.good.all()):
        raise ArgumentError("some rows of the solution failed; a metric over the others would flatter the solver")
    outcome.check_points(1, repr(spec))
    return registry.make(spec, outcome=outcome, **options)
