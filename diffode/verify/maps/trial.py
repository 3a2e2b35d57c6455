r"""A flow map on trial: exact trajectories of a field at a few times, and the units in which errors are measured.

Errors are Euclidean distances of rows in units of the size of a state, :math:`\sqrt{\alpha_t^2 c^2 + \sigma_t^2}` with c the
scale of the data, which at the data's end is that scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.flows import reference
from diffode.maps import FlowMap
from diffode.paths import Path
from diffode.randomness import keyed, normal

#: Noise levels between the ends, in units of the data's scale, at which states are compared.
_LEVELS = (3.0, 1.0, 0.3, 0.1)
#: Largest part of the noise range, in its logarithm, that two of the times may be apart from each other at least.
_APART = 0.02
#: Tolerance of integrated trajectories, far below the error of any learned map.
TOLERANCE = 1e-7


@dataclass(frozen=True, eq=False)
class MapTrial:
    """A map, the field whose flow it is to be, and states along exact trajectories.

    Attributes:
        phi: the map, in the times of the field's path.
        field: the field.
        times: falling times, from the map's first to its last.
        states: the states of the trajectories at these times, (M, B, *shape).
        tolerance: largest mean error that passes, for each coordinate in the root mean square.
        seed: seed of all draws.
    """

    phi: FlowMap
    field: Field
    times: tuple[float, ...]
    states: Tensor
    tolerance: float
    seed: int

    @classmethod
    def of(
        cls, phi: FlowMap, field: Field, points: int, tolerance: float, seed: int, tell: Callable[[str], None] = lambda _: None
    ) -> MapTrial:
        """The trial of a map with trajectories that start in the law of its first time.

        ``tell`` is called with the words for each of their parts as it begins.

        Raises:
            ArgumentError: if the field has no path, or neither field nor map says how many coordinates a row has.
        """
        path = field.require_path("a flow map")
        times = _times(phi, path, field.scale)
        start = starts(phi, field, points, times[0], seed)
        states = [start]
        for k in range(len(times) - 1):
            tell(f"exact trajectories to t={times[k + 1]:.3g}")
            states.append(reference(field, states[-1], times[k], times[k + 1], TOLERANCE).x)
        return cls(phi, field, times, torch.stack(states), tolerance, seed)

    @property
    def path(self) -> Path:
        """The path of the field."""
        return self.field.require_path("a flow map")

    @property
    def last(self) -> int:
        """The index of the last time."""
        return len(self.times) - 1

    @property
    def allowed(self) -> float:
        """The largest mean error that passes, in sizes of a state: the tolerance times the root of the dimension."""
        return self.tolerance * math.sqrt(self.states[0, 0].numel())

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices of the times (s, t) at which ends are compared: to the end, from the start, and to the next time.

        The first pair is that of the map's ends, the only one of a generator.
        """
        if self.phi.one_jump:
            return [(0, self.last)]
        to_end = [(k, self.last) for k in range(self.last)]
        if self.phi.fixed_end:
            return to_end
        return [*to_end, *((0, k) for k in range(1, self.last)), *((k, k + 1) for k in range(1, self.last - 1))]

    def size(self, t: float) -> float:
        """The size of a state at a time."""
        return math.hypot(self.path.alpha(t) * self.field.scale, self.path.sigma(t))

    def angle_rate(self, t: float) -> float:
        """The derivative of the angle arctan(sigma/(alpha c)) by time, over the sine of the angle: the rate of a level."""
        path, c = self.path, self.field.scale
        alpha, sigma = path.alpha(t), path.sigma(t)
        rate = c * (path.sigma_derivative(t) * alpha - sigma * path.alpha_derivative(t)) / self.size(t) ** 2
        return rate / (sigma / self.size(t))

    def call(self, x: Tensor, s: float, t: float) -> Tensor:
        """The map's answer without a graph."""
        with torch.no_grad():
            return self.phi(x, s, t)

    def errors(self, found: Tensor, wanted: Tensor, t: float) -> Tensor:
        """The distances of rows (B,) in sizes of a state at a time."""
        distances: Tensor = (found - wanted).flatten(1).norm(dim=1) / self.size(t)
        return distances


def starts(phi: FlowMap, field: Field, points: int, first: float, seed: int) -> Tensor:
    """Draws of the law at the first time: exact ones, or for a field of an unknown law normal ones."""
    generator = keyed(seed, "check_map")
    if isinstance(field, ExactField):
        return field.marginal(points, first, generator=generator)
    shape = field.shape or getattr(phi, "shape", None)
    width = field.dim or phi.dim
    if shape is None and width is None:
        raise ArgumentError("this field and this map do not tell the number of coordinates of a row: give the map its dim=")
    rows = tuple(shape) if shape is not None else (int(width or 0),)
    size = math.hypot(field.require_path("a flow map").alpha(first) * field.scale, field.require_path("a map").sigma(first))
    return size * normal((points, *rows), generator=generator)


def _times(phi: FlowMap, path: Path, scale: float) -> tuple[float, ...]:
    """The map's ends and the levels between them, none close to another."""
    first, last = phi.ends
    high, low = (path.log_snr(t) for t in (first, last))
    levels = [-math.log(level * scale) for level in _LEVELS]
    gap = _APART * (low - high) if math.isfinite(low - high) else _APART
    inner = [path.time_from_log_snr(level) for level in levels if high + gap < level < low - gap]
    return (first, *inner, last)
