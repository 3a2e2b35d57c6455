"""The map that an adapter makes of another library's model of two times, on any path, checked against its convention."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffode.adapters.map_convention import Jump, check_convention
from diffode.errors import ArgumentError
from diffode.fields import Field, columns
from diffode.fields.model import Model
from diffode.maps import FlowMap
from diffode.maps.flow_map import checked_points, times_of_rows
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.targets.target import Scalar

#: Relative difference of times that is rounding: the conversion of a time to another path and back errs by less.
_SAME_TIME = 1e-9
#: Change of a state's size when a time is beyond an end of the model's own by rounding.
_BEYOND = 1e-9


class AdaptedMap(FlowMap):
    """A flow map made from another library's model, which warns when it does not behave as its convention says.

    It runs on any path: at equal noise levels the states of two paths are multiples of each other. With ``data`` or a
    ``field`` it is checked when it is made (`map_convention.py`), and a ConventionWarning names the mistake.

    Args:
        jump: the points at times t (B,) of x at times s (B,), in states and times of the model's ``own`` path.
        own: the path of the model, whose ends are the times that the model takes.
        model: the model that the jump calls.
        name: the model in a few words.
        readings: what the model would be under other conventions, by a sentence that names the fix.
        path: the path whose times the map takes; its own unless given.
        fixed_end: whether it goes to the cleanest time of its own path only.
        lay: gives the own times of a run with some number of jumps, from the noisiest to the cleanest; evenly spaced unless
            given.
        shape: shape of a row, if it is known.
        data: some data, (n, *shape), or
        field: a field whose flow it is to be; either checks the convention at once.
    """

    def __init__(
        self,
        jump: Jump,
        own: Path,
        *,
        model: Model,
        name: str,
        readings: Mapping[str, Jump] | None = None,
        path: Path | str | None = None,
        fixed_end: bool = False,
        lay: Callable[[int], list[float]] | None = None,
        shape: Sequence[int] | None = None,
        data: Tensor | None = None,
        field: Field | None = None,
    ):
        self._jump, self.own, self._model, self._name = jump, own, model, name
        self.path = own if path is None else get_path(path)
        self.fixed_end, self._lay = fixed_end, lay
        self.shape: tuple[int, ...] | None = None if shape is None else _shape(shape)
        self._settle()
        if data is not None or field is not None:
            self._check(dict(readings or {}), data, field)

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def dim(self) -> int | None:
        return None if self.shape is None else math.prod(self.shape)

    @property
    @override
    def weights(self) -> list[Tensor]:
        owner = getattr(self._model.model, "__self__", self._model.model)
        return list(owner.state_dict().values()) if isinstance(owner, nn.Module) else []

    @override
    def on(self, path: Path | str) -> Self:
        """The same map in the states and times of another path."""
        other = copy.copy(self)
        other.path = get_path(path)
        other._settle()
        return other

    @override
    def __call__(self, x: Tensor, s: Scalar, t: Scalar) -> Tensor:
        checked_points(x)
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise ArgumentError(f"{self.name} takes rows of shape {self.shape}, got {tuple(x.shape[1:])}")
        begin, end = times_of_rows(x, s, self.path, "s"), times_of_rows(x, t, self.path, "t")
        if self.fixed_end and bool(((end - self.ends[1]).abs() > _SAME_TIME * max(1.0, self.ends[1])).any()):
            raise ArgumentError(
                f"{self.name} is a consistency function, which goes to t={self.ends[1]:g} only; noise its points anew to get "
                "elsewhere"
            )
        if self._at_home:
            return self._jump(x, self._within(begin, "s"), self._within(end, "t"))
        first, last = self._own_times(begin, "s"), self._own_times(end, "t")
        inside = x * columns(_size(self.own, first) / _size(self.path, begin), x)
        return self._jump(inside, first, last) * columns(_size(self.path, end) / _size(self.own, last), x)

    @override
    def times(self, count: int) -> list[float]:
        if self._lay is not None:
            laid = self._lay(count)
        else:
            first, last = (self._own_time(t) for t in (self.path.t_max, self.ends[1]))
            laid = [first + (last - first) * k / count for k in range(count + 1)]
        inner = laid if self._at_home else [_time_at(self.path, self.own, t) for t in laid]
        # The path's ends are kept: a start is at its first time.
        first, last = self.path.t_max, max(self.path.t_min, self.ends[1])
        return [first, *(t for t in inner[1:-1] if last < t < first), last]

    def _settle(self) -> None:
        """Find out what depends on the path."""
        self._at_home = same_family(self.own, self.path)
        limits = [t if self._at_home else _time_at(self.path, self.own, t) for t in (self.own.t_max, self.own.t_min)]
        cleanest = limits[1] if self.fixed_end else max(self.path.t_min, limits[1])
        self.ends = min(self.path.t_max, limits[0]), cleanest

    def _own_times(self, t: Tensor, name: str) -> Tensor:
        return self._within(self.own.time_from_log_snr(self.path.log_snr(t)), name)

    def _own_time(self, t: float) -> float:
        return t if self._at_home else _time_at(self.own, self.path, t)

    def _within(self, t: Tensor, name: str) -> Tensor:
        """Own times that are the model's; ArgumentError for those outside of its ends."""
        most, least = self.own.t_max, self.own.t_min
        slack = _BEYOND * max(1.0, most)
        outside = ~((t <= most + slack) & (t >= least - slack))
        if bool(outside.any()):
            raise ArgumentError(
                f"{name} is t={float(t[outside][0]):g} of the model's own path {self.own.spec!r}, outside of its {most:g} to "
                f"{least:g}: run it between these, or make it with another path="
            )
        return t.clamp(least, most)

    def _check(self, readings: dict[str, Jump], data: Tensor | None, field: Field | None) -> None:
        home = self.on(self.own)
        shape = check_convention(
            self._name,
            home._read(self._jump),
            {sentence: home._read(jump) for sentence, jump in readings.items()},
            self.own, self._model, fixed_end=self.fixed_end, shape=self.shape, data=data, field=field,
        )  # fmt: skip
        self.shape = shape

    def _read(self, jump: Jump) -> AdaptedMap:
        """The map that another jump would be."""
        other = copy.copy(self)
        other._jump = jump
        return other


def same_family(one: Path, other: Path) -> bool:
    """Whether two paths differ in their ends at most.

    >>> import diffode
    >>> same_family(diffode.paths.get("edm"), diffode.paths.EDM(1e-3, 1.0))
    True
    """
    try:
        return one.between(other.t_max, other.t_min).spec == other.spec
    except ArgumentError:
        # The times of the other path do not lie on this one.
        return False


def _time_at(path: Path, other: Path, t: float) -> float:
    """The time of a path at the noise level of another path's time; infinite where it has none."""
    return path.time_from_log_snr(other.log_snr(t))


def _size(path: Path, t: Tensor) -> Tensor:
    """sqrt(alpha^2 + sigma^2), the ratio of which is that of two paths' states at one noise level."""
    return torch.hypot(torch.as_tensor(path.alpha(t)), torch.as_tensor(path.sigma(t)))


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or not shape or not all(type(n) is int and n > 0 for n in shape):
        raise ArgumentError(f"shape must be the sizes of a row, such as (3, 32, 32), got {shape!r:.60}")
    return tuple(shape)
