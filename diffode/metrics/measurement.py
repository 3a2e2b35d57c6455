"""What a metric sees and what it says."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.flows import Reference, reference
from diffode.randomness import keyed
from diffode.solvers import Solution
from diffode.specs import Registry


@dataclass(frozen=True)
class Measurement:
    """A measured error with the floor below which it means nothing.

    Attributes:
        name: the metric.
        value: the error.
        floor: what an exact sampler would score with as many points, or the error of the reference.
        low, high: a 95 % interval of the value, where sampling makes one; else the value itself.
    """

    name: str
    value: float
    floor: float = 0.0
    low: float | None = None
    high: float | None = None

    @property
    def above_floor(self) -> bool:
        """Whether the value can be told from an exact sampler's."""
        return self.value > 2 * self.floor


@dataclass(frozen=True)
class Outcome:
    """One run to be measured: the field, the starts, the solution, and a seed for what is drawn while measuring.

    ``tolerance`` is that of the reference, which is computed once, on demand, unless ``known_reference`` is given.
    """

    field: Field
    start: Tensor
    solution: Solution
    seed: int = 0
    tolerance: float = 1e-9
    known_reference: Reference | None = None

    @property
    def times(self) -> list[float]:
        """The grid."""
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
        """Where the field's own flow takes the starts."""
        if self.known_reference is not None:
            return self.known_reference
        return self._flow(self.field)

    @functools.cached_property
    def true_reference(self) -> Reference:
        """Where the exact flow takes the starts, if the field only approximates an exact one."""
        return self._flow(self.law)

    def _flow(self, field: Field) -> Reference:
        times = self.times
        start = self.start.to(torch.float64)
        if isinstance(field, ExactField):
            start = start.flatten(1)
        return reference(field, start, times[0], times[-1], self.tolerance)

    @property
    def law(self) -> ExactField:
        """The exact field: the field itself, or the one it approximates."""
        truth = self.field if isinstance(self.field, ExactField) else self.field.truth
        if truth is None:
            raise ArgumentError("this metric needs the exact law of the data, which is not known for a field without a target")
        return truth

    @property
    def exact(self) -> ExactField:
        """The field, where a metric makes sense for an exact one only."""
        if not isinstance(self.field, ExactField):
            raise ArgumentError("this metric follows the exact field itself; it says nothing of one that only approximates it")
        return self.field

    def check_points(self, least: int, metric: str) -> None:
        """Raise ArgumentError if there are fewer end points than a metric needs."""
        if len(self.end) < least:
            raise ArgumentError(f"{metric} needs at least {least} points to measure, got {len(self.end)}; run more starts")

    def stream(self, number: int) -> torch.Generator:
        """A generator of its own for each number and seed."""
        return keyed(self.seed, "metrics", number)

    def exact_draws(self, n: int, stream: int) -> Tensor:
        """n draws of the exact law at the grid's last time, one independent set a stream, (n, dim), on the end's device."""
        return self.law.marginal(n, self.times[-1], generator=self.stream(stream)).to(self.end.device)


registry: Registry[Measurement] = Registry("metric")
register = registry.register


def names() -> list[str]:
    """All registered metric names, in the order in which to trust them."""
    return registry.names()


def measure(spec: str, outcome: Outcome, **options: Any) -> Measurement:
    """Measure an outcome with the metric of this spec, such as ``"endpoint"`` or ``"sliced_w2:projections=64"``.

    To add a metric, write a function of an :class:`Outcome` (and options) that returns a :class:`Measurement` and call
    ``diffode.metrics.register(name, function)``.
    """
    if not bool(outcome.good.all()):
        raise ArgumentError("some rows of the solution failed; a metric over the others would flatter the solver")
    outcome.check_points(1, repr(spec))
    return registry.make(spec, outcome=outcome, **options)
