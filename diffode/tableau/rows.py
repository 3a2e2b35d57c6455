"""A row of a table: one state of a sampler."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError

#: A number, a number for each row of the batch, (B,), or one for each direction of the data's statistics, (1, E).
Number = float | Tensor
Coefficients = Mapping[int, Number]


class Fixed(dict[int, Number]):
    """Coefficients that can't be changed, since runs to come may share them; ``dict(...)`` gives some that can.

    >>> Fixed({0: 1.0})[0]
    1.0
    """

    def _refused(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the coefficients of a row can't be changed: make another row, such as replace(row, states={0: 1.0})")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refused

    def __reduce__(self) -> tuple[type[Fixed], tuple[dict[int, Number]]]:
        return Fixed, (dict(self),)

    @override
    def __eq__(self, other: object) -> bool:
        # Tensors of several numbers have no truth, so that the comparison of dict fails for them.
        return _told_of(self) == _told_of(other) if isinstance(other, dict) else NotImplemented

    @override
    def __ne__(self, other: object) -> bool:
        return not self == other

    @override
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(_told_of(self).items()))


#: The coefficients of a kind of which a row has none.
_NOTHING = Fixed()
#: The types of the numbers of a row that is plain, and of its indices.
_FLOATS, _INTS = {float}, {int}
#: The kinds of coefficients.
_KINDS = ("states", "evaluations", "draws")
#: The shapes that a tensor may have, by the numbers of its axes.
_SHAPES = {(0, 1): " (B,)", (0, 2): " (1, E)", (0, 1, 2): " (B,) or (1, E)"}


@dataclass(frozen=True, init=False, eq=False)
class Row:
    """One state: its time, and the coefficients of earlier states, evaluations and noise draws that make it.

    The time and the coefficients are floats, or (B,) float64 tensors in a table written for the rows of one batch. Coefficients
    that are (1, E) float64 tensors have a number for each direction of the statistics of the table, whose mean then enters with
    the coefficient ``mean``. Mappings and tensors are copied, so that what becomes of those that were given changes no row, and
    mappings can't be changed afterwards; gradients go through the copies. Other real numbers, those of NumPy too, are made
    floats. Rows of the same numbers are equal.

    Raises:
        ArgumentError: for a time, a coefficient or an index that is none, which is named.

    >>> Row(0.5, {0: 1}, {0: -0.25}) == Row(0.5, {0: 1.0}, {0: -0.25})
    True
    """

    time: Number
    states: Coefficients
    evaluations: Coefficients
    draws: Coefficients
    mean: Number

    def __init__(
        self,
        time: Number,
        states: Coefficients = _NOTHING,
        evaluations: Coefficients = _NOTHING,
        draws: Coefficients = _NOTHING,
        mean: Number = 0.0,
    ):
        # A row has no other way of setting its attributes, being frozen.
        held = self.__dict__
        held["time"], held["mean"] = time, mean
        try:
            held["states"] = states = states if type(states) is Fixed else Fixed(states)
            held["evaluations"] = evaluations = evaluations if type(evaluations) is Fixed else Fixed(evaluations)
            held["draws"] = draws = draws if type(draws) is Fixed else Fixed(draws)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"the coefficients of the row at t={time!r:.60} must be mappings from indices to numbers, such as {{0: 1.0}}, "
                f"got states={states!r:.60}, evaluations={evaluations!r:.60}, draws={draws!r:.60}"
            ) from None
        kinds = {
            type(time),
            type(mean),
            *map(type, states.values()),
            *map(type, evaluations.values()),
            *map(type, draws.values()),
        }
        held["_plain"] = kinds == _FLOATS
        if kinds != _FLOATS or not {*map(type, states), *map(type, evaluations), *map(type, draws)} <= _INTS:
            self._settle()

    def _settle(self) -> None:
        """Make floats of other real numbers; ArgumentError for what is no number, and for an index that is none."""
        held = self.__dict__
        held["time"] = time = _settled("the time of a row", None, self.time, (0, 1))
        held["mean"] = _settled("mean", time, self.mean, (0, 2))
        for kind in _KINDS:
            terms = held[kind]
            wrong = next((j for j in terms if not is_integer(j)), None)
            if wrong is not None or None in terms:
                raise ArgumentError(f"{_named(kind, time)} must be numbered by integers, got {wrong!r:.60}")
            held[kind] = Fixed({int(j): _settled(f"{kind}[{j}]", time, value, (0, 1, 2)) for j, value in terms.items()})
        held["_plain"] = all(type(value) is float for value in (self.time, *self.numbers))

    def __deepcopy__(self, memo: dict[int, Any]) -> Row:
        """Itself, since nothing changes a row; copies of tensors through which gradients go can't be copied once more."""
        return self

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        mine, theirs = ((_told(row.time), _told(row.mean), row.states, row.evaluations, row.draws) for row in (self, other))
        return mine == theirs

    @override
    def __hash__(self) -> int:
        return hash((_told(self.time), _told(self.mean), self.states, self.evaluations, self.draws))

    @property
    def plain(self) -> bool:
        """Whether its time and all its coefficients are floats, which is looked at once."""
        return bool(self.__dict__["_plain"])

    @property
    def numbers(self) -> list[Number]:
        """The coefficients of all kinds."""
        return [*self.states.values(), *self.evaluations.values(), *self.draws.values(), self.mean]

    @property
    def directed(self) -> bool:
        """Whether it needs the data's statistics: a coefficient differs between directions, or the data's mean enters."""
        return bool(self.mean != 0) if self.plain else any(map(along_directions, self.numbers)) or bool(self.mean != 0)


def along_directions(value: Number) -> bool:
    """Whether a coefficient has a number for each direction."""
    return isinstance(value, Tensor) and value.ndim == 2


def _named(what: str, time: Number | None) -> str:
    """The name of a number in errors; to write out the time of a batch takes longer than to make the row."""
    return what if time is None else f"{what} of the row at t={time!r:.60}"


def is_integer(value: Any) -> bool:
    """Whether something is a whole number, of NumPy for one, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _copied(value: Tensor) -> Tensor:
    """A copy that belongs to a row alone, and through which gradients go, also where the row is made in inference mode."""
    if torch.is_inference_mode_enabled() and not value.is_inference():
        with torch.inference_mode(False), torch.no_grad():
            return value.clone()
    return value.clone()


def _settled(what: str, time: Number | None, value: Any, axes: tuple[int, ...]) -> Number:
    """A number as a float, or a copy of a real tensor with so many axes; ArgumentError for anything else."""
    if isinstance(value, Tensor):
        if value.ndim not in axes or value.is_complex() or value.dtype == torch.bool:
            raise ArgumentError(
                f"{_named(what, time)} must be a number or a real tensor{_SHAPES[axes]}, got one of shape "
                f"{tuple(value.shape)}, {value.dtype}"
            )
        return _copied(value) if value.is_floating_point() else value.to(torch.float64)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentError(
            f"{_named(what, time)} must be a number, or a tensor{_SHAPES[axes]}, got {value!r:.60}: write it as a float"
        )
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{_named(what, time)} must be finite, got an integer that no float can hold") from None


def _told(value: Number) -> object:
    """A number, or the shape and the numbers of a tensor: what is equal and hashed."""
    if not isinstance(value, Tensor):
        return value
    return (tuple(value.shape), tuple(value.detach().flatten().tolist())) if value.ndim else value.item()


def _told_of(terms: Coefficients) -> dict[int, object]:
    return {j: _told(value) for j, value in terms.items()}
