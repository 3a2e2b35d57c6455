r"""Holds: what a signal does between its samples, and how a step of a memory treats that.

A step moves the memory by c -> M c + G a, where the signal in the step is taken as :math:`\sum_i a_i x^i`, x from 0 to 1.
Polynomial holds solve that input exactly; Euler's and the trapezoid rule approximate the step too. M and G depend on the step
alone (for ``legs`` on the ratio of its two times), whatever the hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.hippo.arguments import number_of, order_of
from diffode.hippo.measure import Measure, cells_walked
from diffode.specs import Registry

Array = np.ndarray[Any, Any]

#: Largest degree of a polynomial hold; through more samples polynomials swing.
_MOST_DEGREE = 9


@dataclass(frozen=True)
class Hold(ABC):
    """A rule for the steps of a memory.

    Attributes:
        name: the name in a spec.
        order: the order of convergence for smooth signals.
        exact: whether it is exact for signals that are polynomials of its degree in each step.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False

    @property
    @abstractmethod
    def spec(self) -> str:
        """The spec that makes this hold."""

    @property
    @abstractmethod
    def order(self) -> int:
        """See the class."""

    @property
    @abstractmethod
    def degree(self) -> int:
        """The degree of the input's polynomial in a step."""

    @abstractmethod
    def cell(self, measure: Measure, order: int, step: float) -> tuple[Array, Array]:
        """(M, G) of a step, (N, N) and (N, degree + 1)."""

    def cells(self, measure: Measure, order: int, steps: Array) -> tuple[Array, Array]:
        """(M, G) of several steps, (steps, N, N) and (steps, N, degree + 1)."""
        moved, inputs = zip(*(self.cell(measure, order, float(step)) for step in steps), strict=True)
        return np.stack(moved), np.stack(inputs)

    def walked(self, measure: Measure, steps: Array, a: Array, state: Array) -> Iterator[Array]:
        """The states (channels, N) after each of some steps that are not alike, with inputs a (L, channels, degree + 1)."""
        return cells_walked(lambda step: self.cell(measure, state.shape[1], step), steps, a, state)

    def pieces(self, u: Array, times: Array) -> Array:
        """The polynomials of the steps, from samples: (L - 1, channels, degree + 1) for u (L, channels)."""
        return polynomials(u, times, self.degree)


def polynomials(u: Array, times: Array, degree: int) -> Array:
    """Coefficients a_i of the polynomial through the samples around each step, in powers of the place in the step.

    Degree 0 takes the sample at the step's beginning, odd degrees as many samples before the step as after it, even degrees one
    more before. At the ends of the signal the samples are those nearest; a signal of fewer samples has a lower degree.

    Returns:
        (L - 1, channels, degree + 1).
    """
    length = len(u) - 1
    found = np.zeros((length, u.shape[1], degree + 1))
    own = min(degree, length)
    if own == 0:
        found[..., 0] = u[:-1]
    elif own == 1:
        found[..., 0], found[..., 1] = u[:-1], np.diff(u, axis=0)
    else:
        index, places = stencils(times, own)
        found[..., : own + 1] = _interpolated(places, u[index].astype(np.float64)).transpose(0, 2, 1)
    return found


def stencils(times: Array, degree: int) -> tuple[Array, Array]:
    """The samples around each step, by index, and their places in units of the step: (L - 1, degree + 1) each."""
    length = len(times) - 1
    first = np.clip(np.arange(length) - degree // 2, 0, length - degree)
    index = first[:, None] + np.arange(degree + 1)
    return index, (times[index] - times[:-1, None]) / np.diff(times)[:, None]


def weights(times: Array, degree: int) -> tuple[Array, Array]:
    """What :func:`polynomials` computes, as weights of samples: their index (L - 1, n), and (L - 1, degree + 1, n)."""
    own = min(degree, len(times) - 1)
    index, places = stencils(times, own)
    found = np.zeros((len(index), degree + 1, own + 1))
    found[:, : own + 1] = _interpolated(places, np.broadcast_to(np.eye(own + 1), (*places.shape, own + 1)))
    return index, found


def _interpolated(places: Array, values: Array) -> Array:
    """The polynomials through values (steps, n, channels) at places (steps, n), in its powers: (steps, n, channels)."""
    differences, powers = values.copy(), np.zeros(values.shape)
    count = places.shape[1]
    # Newton's divided differences first.
    for level in range(1, count):
        gaps = places[:, level:] - places[:, :-level]
        differences[:, level:] = np.diff(differences[:, level - 1 :], axis=1) / gaps[..., None]
    for k in range(count - 1, -1, -1):
        # powers <- powers (x - place) + difference.
        powers[:, 1:] = powers[:, :-1] - places[:, k, None, None] * powers[:, 1:]
        powers[:, 0] = differences[:, k] - places[:, k, None] * powers[:, 0]
    return powers


@dataclass(frozen=True)
class Polynomial(Hold):
    """The polynomial of a degree through the samples around a step, solved exactly; order degree + 1.

    Degree 0 is the zero-order hold, exact for signals that are held; 1 joins the samples by lines; 3 is the cubic hold.

    Args:
        degree: from 0 to 9. An even degree above 0 looks at one sample more before the step than after it.
    """

    name: ClassVar[str] = "poly"
    exact: ClassVar[bool] = True
    degree: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "degree", order_of(self.degree, "degree of hold 'poly'", 0, _MOST_DEGREE))

    @property
    @override
    def spec(self) -> str:
        return {0: "zoh", 1: "foh", 3: "cubic"}.get(self.degree, f"poly:degree={self.degree}")

    @property
    @override
    def order(self) -> int:
        return self.degree + 1

    @override
    def cell(self, measure: Measure, order: int, step: float) -> tuple[Array, Array]:
        return measure.cell(order, step, self.degree)

    @override
    def cells(self, measure: Measure, order: int, steps: Array) -> tuple[Array, Array]:
        return measure.cells(order, steps, self.degree)

    @override
    def walked(self, measure: Measure, steps: Array, a: Array, state: Array) -> Iterator[Array]:
        return measure.walked(steps, a, state)


@dataclass(frozen=True)
class Rule(Hold):
    r"""A one-stage rule for dc/dt = f(t, c): c' = c + h ((1 - theta) f(t, c) + theta f(t', c')).

    f is A c + B u, for ``legs`` (A c + B u)/t; a first step from time 0, where that has no value, is filled with the input that
    the rule takes: u(t') for theta = 1, lines for the trapezoid rule, u(t) for Euler's.

    Args:
        theta: from 0 (Euler's) over 1/2 (the trapezoid rule, order 2) to 1 (backward Euler).
    """

    name: ClassVar[str] = "gbt"
    theta: float = 0.5

    def __post_init__(self) -> None:
        theta = number_of(self.theta, "theta of hold 'gbt'", 0.0, reached=True)
        if theta > 1:
            raise ArgumentError(f"theta of hold 'gbt' must be from 0 to 1, got {theta:g}")
        object.__setattr__(self, "theta", theta)

    @property
    @override
    def spec(self) -> str:
        return {0.0: "euler", 0.5: "trapezoid", 1.0: "backward"}.get(self.theta, f"gbt:theta={self.theta!r}")

    @property
    @override
    def order(self) -> int:
        return 2 if self.theta == 0.5 else 1

    @property
    @override
    def degree(self) -> int:
        return 1

    def lengths(self, measure: Measure, steps: Any) -> tuple[Any, Any]:
        """The lengths of steps as f at their beginnings and at their ends counts them."""
        return ((1 - steps) / steps, 1 - steps) if measure.logarithmic else (steps, steps)

    @override
    def cell(self, measure: Measure, order: int, step: float) -> tuple[Array, Array]:
        if measure.logarithmic and step == 0:
            moved, inputs = measure.cell(order, step, 1)
            return moved, inputs if self.theta == 0.5 else np.outer(inputs[:, 0], (1.0, self.theta))
        before, after = (float(length) for length in self.lengths(measure, np.float64(step)))
        b = measure.input(order)
        start = np.eye(order) + (1 - self.theta) * before * measure.matrix(order)
        sides = np.column_stack([start, (1 - self.theta) * before * b, self.theta * after * b])
        found = sides if self.theta == 0 else measure.solved(order, self.theta * after, sides)
        # a_0 = u(t), a_0 + a_1 = u(t').
        return found[:, :order], np.stack([found[:, order] + found[:, order + 1], found[:, order + 1]], axis=1)

    @override
    def walked(self, measure: Measure, steps: Array, a: Array, state: Array) -> Iterator[Array]:
        if len(np.unique(steps)) * 4 <= len(steps):
            yield from super().walked(measure, steps, a, state)
            return
        order = state.shape[1]
        b = measure.input(order)[:, None]
        early, late = self.lengths(measure, steps)
        now = state.T
        # Each step costs as much as a product with A and a solution with 1 - A: O(N) where the measure has a ladder.
        for before, after, own in zip((1 - self.theta) * early, self.theta * late, a, strict=True):
            sides = now + after * b * own.sum(axis=1)
            if self.theta < 1:
                sides += before * (measure.applied(order, now) + b * own[:, 0])
            now = measure.solved(order, after, sides) if self.theta else sides
            yield now.T


registry: Registry[Hold] = Registry("hold", Hold)
_RULES = {"euler": (0.0, "Euler's rule, order 1"), "backward": (1.0, "Backward Euler, order 1"),
          "trapezoid": (0.5, "The trapezoid rule, order 2")}  # fmt: skip
for _name, (_theta, _summary) in _RULES.items():
    registry.register(_name, Rule, summary=_summary, theta=_theta)
_HOLDS = {"zoh": (0, "The sample before, held; exact for signals that are held"), "foh": (1, "Lines between samples, order 2"),
          "cubic": (3, "Cubics through four samples, order 4")}  # fmt: skip
for _name, (_degree, _summary) in _HOLDS.items():
    registry.register(_name, Polynomial, summary=_summary, degree=_degree)
for _hold in (Polynomial, Rule):
    registry.register(_hold.name, _hold)


def hold_of(hold: str | Hold) -> Hold:
    """The hold that a spec describes, such as ``"cubic"`` or ``"poly:degree=5"``; UnknownNameError or ArgumentError if none.

    >>> hold_of("poly:degree=3").spec
    'cubic'
    """
    return hold if isinstance(hold, Hold) else registry.make(hold)
