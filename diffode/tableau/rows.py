"""A row of a table: one state of a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

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


#: The coefficients of a kind of which a row has none.
_NOTHING = Fixed()
#: The kinds of number in a row whose numbers are all floats.
_FLOATS = {float}


@dataclass(frozen=True, init=False)
class Row:
    """One state: its time, and the coefficients of earlier states, evaluations and noise draws that make it.

    The time and the coefficients are floats, or (B,) float64 tensors in a table written for the rows of one batch. Coefficients
    that are (1, E) float64 tensors have a number for each direction of the statistics of the table, whose mean then enters with
    the coefficient ``mean``. Mappings are copied, and can't be changed afterwards.
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
        held["states"] = states if type(states) is Fixed else Fixed(states)
        held["evaluations"] = evaluations if type(evaluations) is Fixed else Fixed(evaluations)
        held["draws"] = draws if type(draws) is Fixed else Fixed(draws)

    @property
    def plain(self) -> bool:
        """Whether its time and all its coefficients are floats, which is looked at once."""
        held = self.__dict__
        if "_plain" not in held:
            kinds = {type(self.time), type(self.mean)}
            kinds.update(map(type, self.states.values()), map(type, self.evaluations.values()), map(type, self.draws.values()))
            held["_plain"] = kinds == _FLOATS
        return bool(held["_plain"])

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
