r"""Flow maps: :math:`\Phi(x, s \to t)` takes points at one time of a path to another in one evaluation.

The exact one is :func:`diffode.flow`; a :class:`LearnedMap` is a network that was trained to be it, or to be a part of it: a
consistency function always goes to one end. Anyone's function ``(x, s, t)`` is a :class:`FunctionMap`.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffode.errors import ArgumentError, FieldError
from diffode.maps.clock import AngleClock
from diffode.maps.networks import AngleMap, OneTime, multiply_adds, network
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.targets.target import Scalar
from diffode.training_facts import Facts

#: Difference of angles that is rounding: times of a path are known to about 1e-9 of themselves.
_SAME_ANGLE = 1e-6


class FlowMap(ABC):
    """A map (x, s, t) from points at times s to points at times t of a path.

    Attributes:
        path: the path whose times it takes.
        ends: the noisiest and the cleanest time that it takes.
        fixed_end: whether it goes to its cleanest time only, as a consistency function does.
        one_jump: whether it is a generator, which goes from its noisiest time to its cleanest alone.
        law_only: whether it was made to have the law of the data, whatever noise it couples with which point.
        cost: evaluations of a network for one call.
    """

    path: Path
    ends: tuple[float, float]
    fixed_end: bool = False
    one_jump: bool = False
    law_only: bool = False
    cost: int = 1

    @abstractmethod
    def __call__(self, x: Tensor, s: Scalar, t: Scalar) -> Tensor:
        """The points (B, *shape) at times t for x (B, *shape) at times s; times are numbers or (B,)."""

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """Number of coordinates of a row; None if any will do."""

    @property
    def name(self) -> str:
        """The map in a few words."""
        return type(self).__name__

    @property
    def weights(self) -> list[Tensor]:
        """The weights of its network, if it has one, by which two maps are told apart."""
        return []

    def on(self, path: Path | str) -> FlowMap:
        """The map in the times of a path; ArgumentError if it knows its own path only, and that is another."""
        wanted = get_path(path)
        if wanted.spec != self.path.spec:
            raise ArgumentError(f"this map is on the path {self.path.spec!r}, the field on {wanted.spec!r}")
        return self

    def times(self, count: int) -> list[float]:
        """The times (count + 1) of a run with ``count`` jumps from end to end: uniform in log-SNR unless it knows better."""
        first, last = self.ends
        levels = [self.path.log_snr(time) for time in (first, last)]
        if not all(map(math.isfinite, levels)):
            return [first + (last - first) * k / count for k in range(count + 1)]
        inner = (levels[0] + (levels[1] - levels[0]) * k / count for k in range(1, count))
        return [first, *(self.path.time_from_log_snr(level) for level in inner), last]


def checked_points(x: object) -> None:
    """Raise ArgumentError unless x is a batch of points that a map takes."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        raise ArgumentError("x must be a float32 or float64 tensor (B, *shape)")


def times_of_rows(x: Tensor, t: Scalar, path: Path, name: str) -> Tensor:
    """The times (B,) of a path for the rows of x, float64 on its device; ArgumentError, which names them, for others."""
    if isinstance(t, Tensor):
        if t.shape not in ((), (len(x),)):
            raise ArgumentError(f"{name} must be a number or a time for each row, ({len(x)},); got {tuple(t.shape)}")
    elif isinstance(t, bool) or not isinstance(t, int | float):
        raise ArgumentError(f"{name} must be a number or a tensor of times, got {t!r:.60}")
    path.check_times(t, name)
    return torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))


class FunctionMap(FlowMap):
    """A map given as a function ``(x, s, t)``, which is called with times (B,), on a path.

    Args:
        function: gives points of the shape of x.
        path: the path, or its spec.
        dim: number of coordinates of a row, if only one will do.
        fixed_end: whether it goes to the path's ``t_min`` only.
        any_path: whether the function takes the times of whatever path :meth:`on` is given.

    >>> import diffode
    >>> exact = diffode.flow(diffode.exact_field("gauss1d", "edm"))
    >>> phi = FunctionMap(exact, "edm")
    >>> phi(torch.zeros(2, 1), 80.0, 0.002).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        function: Callable[..., Any],
        path: Path | str = "edm",
        dim: int | None = None,
        *,
        fixed_end: bool = False,
        any_path: bool = False,
    ):
        if not callable(function):
            raise ArgumentError(f"a flow map must be a function of (x, s, t), got {type(function).__name__}")
        _check_signature(function)
        self.function, self.path, self._dim, self.fixed_end = function, get_path(path), dim, fixed_end
        self.any_path = any_path
        self.ends = self.path.t_max, self.path.t_min

    @property
    @override
    def dim(self) -> int | None:
        return self._dim

    @property
    @override
    def name(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    @override
    def on(self, path: Path | str) -> FlowMap:
        if not self.any_path:
            return super().on(path)
        return FunctionMap(self.function, path, self._dim, fixed_end=self.fixed_end, any_path=True)

    @override
    def __call__(self, x: Tensor, s: Scalar, t: Scalar) -> Tensor:
        rows = [torch.as_tensor(time, dtype=torch.float64, device=x.device).expand(len(x)) for time in (s, t)]
        found = self.function(x, *rows)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise FieldError(f"the flow map {self.name} must give points of the shape of x, {tuple(x.shape)}; got {kind}")
        return found.to(x.dtype)


def _check_signature(function: Callable[..., Any]) -> None:
    """Raise ArgumentError for a function that can't be called with (x, s, t)."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some functions of other languages tell no signature.
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise ArgumentError(f"a flow map must be a function of (x, s, t), but of {name}{signature}: {error}") from None


@dataclass(frozen=True, eq=False)
class LearnedMap(FlowMap):
    """A network as a flow map, on any path: what it learned is a function in the angle clock.

    Attributes:
        net: the network (y, a, b), float32.
        kind, width, depth, shape: what it is built of, and the shape of a row.
        parametrisation: name of the form in which the network enters.
        clock: mean and scale of the data that it was trained on.
        angles: the largest and the smallest angle that it was trained for.
        path: the path whose times it takes; :meth:`on` gives the same map on another.
        fixed_end: whether it goes to its last angle only.
        both_ways: whether it was trained to go to more noise as well as to less.
        law_only, one_jump: as in :class:`FlowMap`; the errors of a map that has the law alone are distances of laws.
        one_time: whether its network is a velocity that does not know where it goes, as that of a rectified flow.
        grids: angles of the best runs that are known, by number of jumps.
        held_out: mean end-point error on held-out starts, in units of the scale, by number of jumps; for a map that has the
            law alone, the distance of its law from that of the data.
        method: the training, as a spec.
        facts: what the training says of itself; None for a map that was not trained here.
    """

    net: nn.Module = field(repr=False)
    kind: str
    shape: tuple[int, ...]
    width: int
    depth: int
    parametrisation: str
    clock: AngleClock = field(repr=False)
    angles: tuple[float, float]
    path: Path
    fixed_end: bool = False
    one_time: bool = False
    both_ways: bool = False
    law_only: bool = False
    one_jump: bool = False
    grids: Mapping[int, tuple[float, ...]] = field(default_factory=dict, repr=False)
    held_out: Mapping[int, float] = field(default_factory=dict)
    method: str = ""
    facts: Facts | None = field(default=None, repr=False)
    _by_kind: dict[tuple[torch.dtype, torch.device], AngleMap] = field(default_factory=dict, init=False, repr=False)

    @property
    @override
    def name(self) -> str:
        return self.method or "a learned map"

    @property
    @override
    def dim(self) -> int:
        return self.clock.dim

    @property
    def multiply_adds(self) -> int:
        """Number of products a row that a jump costs."""
        return multiply_adds(self.net, self.dim)

    @property
    def ends(self) -> tuple[float, float]:  # type: ignore[override]
        """The noisiest and the cleanest time of its path that it was trained for."""
        return self._time(self.angles[0]), self._time(self.angles[1])

    @override
    def on(self, path: Path | str) -> Self:
        """The same map in the times of another path."""
        return replace(self, path=get_path(path))

    def in_angles(self, like: Tensor) -> AngleMap:
        """The map of states and angles, in the dtype and on the device of a tensor."""
        key = (like.dtype, like.device)
        if key not in self._by_kind:
            copy = network(self.kind, self.shape, width=self.width, depth=self.depth)
            copy.load_state_dict(self.net.state_dict())
            made = AngleMap(OneTime(copy) if self.one_time else copy, self.parametrisation).to(
                device=like.device, dtype=like.dtype
            )
            self._by_kind[key] = made.requires_grad_(False)
        return self._by_kind[key]

    @override
    def __call__(self, x: Tensor, s: Scalar, t: Scalar) -> Tensor:
        checked_points(x)
        if math.prod(x.shape[1:]) != self.dim:
            raise ArgumentError(f"this map was trained for rows of {self.dim} numbers, got {tuple(x.shape[1:])}")
        begin, end = self._angles(x, s, "s"), self._angles(x, t, "t")
        if self.one_jump and bool(((begin - self.angles[0]).abs() > _SAME_ANGLE).any()):
            raise ArgumentError(
                f"this map is a generator, which goes from s={self.ends[0]:g} to t={self.ends[1]:g} only; it has no other times"
            )
        if self.fixed_end and bool(((end - self.angles[1]).abs() > _SAME_ANGLE).any()):
            raise ArgumentError(
                f"this map is a consistency function, which goes to t={self.ends[1]:g} only; noise its points anew to get "
                "elsewhere"
            )
        if not self.both_ways and bool((end > begin + _SAME_ANGLE).any()):
            raise ArgumentError("t must not be noisier than s: this map was trained to go towards the data only")
        y = self.clock.state(x, self.path, s)
        there = self.in_angles(x)(y, begin.to(x), end.to(x))
        return self.clock.point(there, self.path, t).reshape(x.shape)

    @override
    def times(self, count: int) -> list[float]:
        if self.one_jump and count != 1:
            raise ArgumentError(f"this map is a generator, which makes its points in one jump: nfe must be 1, got {count}")
        own = [float(self.clock.angle(self.path, t)) for t in (self.path.t_max, self.path.t_min)]
        if all(abs(one - known) <= _SAME_ANGLE for one, known in zip(own, self.angles, strict=True)):
            return [self._time(angle) for angle in self.grids.get(count) or uniform(self.angles, count)]
        # The path's ends are kept: a start is at its first time. If the map was not trained there, it will say so.
        inner = uniform((own[0], own[1]), count)[1:-1]
        return [self.path.t_max, *(self._time(angle) for angle in inner), self.path.t_min]

    def _time(self, angle: float) -> float:
        """The time of an angle; an end of the path itself where it is one."""
        for own in (self.path.t_max, self.path.t_min):
            known = self.clock.angle(self.path, own)
            if isinstance(known, float) and abs(known - angle) <= _SAME_ANGLE:
                return own
        return float(self.clock.time(self.path, angle))

    def _angles(self, x: Tensor, t: Scalar, name: str) -> Tensor:
        """The angles (B,) of times, float64; ArgumentError for those outside of what the map was trained for."""
        times_of_rows(x, t, self.path, name)
        angle = torch.as_tensor(self.clock.angle(self.path, t), dtype=torch.float64, device=x.device).expand(len(x))
        most, least = self.angles
        outside = (angle > most + _SAME_ANGLE) | (angle < least - _SAME_ANGLE)
        if bool(outside.any()):
            wrong = t if not isinstance(t, Tensor) else float(t.expand(len(x))[outside][0])
            first, last = self.ends
            raise ArgumentError(
                f"{name}={wrong:g} is outside of the times that this map was trained for, {first:g} to {last:g} on "
                f"{self.path.spec}: run it between these, or train one on this path"
            )
        return angle.clamp(least, most)


def uniform(angles: tuple[float, float], count: int) -> tuple[float, ...]:
    """Angles of ``count`` equal jumps from the first to the last."""
    first, last = angles
    return (first, *(first + (last - first) * k / count for k in range(1, count)), last)
