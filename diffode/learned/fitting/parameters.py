r"""The free parameters of a trained sampler: maps from a vector to :class:`Stages`, with their derivatives.

The numbers of a sampler stand in the order c, b row by row, log rho of the inner levels, in units of the data's scale, as in
:class:`diffode.learned.fitting.sensitivities.Recording`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.tableau.stages import Stages, from_vector, to_vector

#: Level in place of a last level of 0, which has no logarithm.
_LEAST_LEVEL = 1e-30


class Parameters(ABC):
    """Free parameters of a sampler in units of the data's scale, (size,) float64."""

    @property
    @abstractmethod
    def start(self) -> Tensor:
        """The parameters (size,) at which training starts."""

    @abstractmethod
    def stages(self, values: Tensor, first: float, last: float, dim: int = 1) -> Stages:
        """The sampler between two noise levels, in units of the scale, for data of ``dim`` coordinates."""

    @abstractmethod
    def jacobian(self, values: Tensor, first: float, last: float, dim: int = 1) -> Tensor:
        """Derivative of the sampler's numbers by the parameters, (P, size)."""

    def confined(self, values: Tensor, first: float, last: float) -> Tensor:
        """The parameters, with levels beyond those of start or end moved back to these.

        A network is not trained beyond these levels. An exact field is linear on a Gaussian, where no error would keep a level
        from going to infinity or zero.
        """
        return values


@dataclass(frozen=True)
class Table(Parameters):
    """The numbers of a table, all free or some of them fixed at those of ``origin``.

    Attributes:
        origin: the table at which training starts, in units of the scale.
        levels, weights, scales: whether the levels, the weights b and the scales c are free.
        consistent: whether c = 1 and each row of b sums to its difference of levels, so that a constant noise prediction is
            followed exactly.
        groups: sizes of sets of evaluations that run in parallel, since none uses another of its set (EPD, arXiv 2507.14797).
    """

    origin: Stages
    levels: bool = True
    weights: bool = True
    scales: bool = True
    consistent: bool = False
    groups: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.groups is not None and not _are_sizes(self.groups, self.origin.nfe):
            raise ArgumentError(
                f"groups must be integers >= 1 that sum to nfe={self.origin.nfe}, such as (1, 2), in a spec 1+2, "
                f"got {self.groups!r:.80}"
            )
        if self.consistent and self.groups is not None and self.groups[0] > 1:
            raise ArgumentError(
                "a consistent table needs a first group of 1: a point made of the start alone is not consistent"
            )

    @property
    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column of every weight, and whether the row may use the column's evaluation."""
        nfe = self.origin.nfe
        rows, columns = torch.tril_indices(nfe, nfe)
        if self.groups is None:
            return rows, columns, torch.ones(len(rows), dtype=torch.bool)
        group = torch.repeat_interleave(torch.arange(len(self.groups)), torch.tensor(self.groups))
        # Row i is the point of evaluation i + 1, unless it is the output.
        made = torch.cat([group[1:], torch.tensor([len(self.groups)])])
        return rows, columns, group[columns] < made[rows]

    def _free(self) -> Tensor:
        nfe = self.origin.nfe
        _, _, usable = self._places
        inner = usable & self.weights
        if self.consistent:
            inner = inner & ~self._closing()
        return torch.cat([
            torch.full((nfe,), self.scales and not self.consistent), inner, torch.full((nfe - 1,), self.levels),
        ])  # fmt: skip

    def _closing(self) -> Tensor:
        """A mask of the newest usable weight of each row, which in a consistent table completes the row's sum."""
        rows, columns, usable = self._places
        newest = torch.full((self.origin.nfe,), -1).scatter_reduce(0, rows, torch.where(usable, columns, -1), "amax")
        closing: Tensor = columns == newest[rows]
        return closing

    @property
    @override
    def start(self) -> Tensor:
        free: Tensor = to_vector(self.origin)[self._free()]
        return free

    @override
    def stages(self, values: Tensor, first: float, last: float, dim: int = 1) -> Stages:
        vector = to_vector(self.origin)
        vector[self._free()] = values
        nfe = self.origin.nfe
        rows, columns, usable = self._places
        vector[nfe : nfe + len(rows)] *= usable
        found = from_vector(vector, nfe, first, last)
        if not self.consistent:
            return found
        weights = found.weights.clone()
        closing = self._closing()
        weights[rows[closing], columns[closing]] = 0.0
        weights[rows[closing], columns[closing]] = (found.levels[1:] - found.levels[0] - weights.sum(1))[rows[closing]]
        return Stages(torch.ones_like(found.scales), weights, found.levels)

    @override
    def confined(self, values: Tensor, first: float, last: float) -> Tensor:
        count = self.origin.nfe - 1 if self.levels else 0
        others, levels = values[: len(values) - count], values[len(values) - count :]
        return torch.cat([others, _clamped(levels, first, last)])

    @override
    def jacobian(self, values: Tensor, first: float, last: float, dim: int = 1) -> Tensor:
        free = self._free()
        jacobian = torch.eye(len(free), dtype=torch.float64)[:, free]
        if self.consistent:
            nfe = self.origin.nfe
            rows, _, _ = self._places
            levels = self.stages(values, first, last).levels
            inside = jacobian[nfe : nfe + len(rows)]
            for k in torch.nonzero(self._closing()).reshape(-1).tolist():
                i = int(rows[k])
                inside[k] = -inside[(rows == i) & (torch.arange(len(rows)) != k)].sum(0)
                if i + 1 < nfe:
                    inside[k] += jacobian[nfe + len(rows) + i] * levels[i + 1]
        return jacobian


def _are_sizes(groups: object, total: int) -> bool:
    """Whether a value is a sequence of positive integers with this sum."""
    return isinstance(groups, tuple | list) and all(type(n) is int and n >= 1 for n in groups) and sum(groups) == total


def to_shares(levels: Tensor) -> Tensor:
    """N - 1 numbers without constraints for N + 1 decreasing positive levels: logarithms of the steps in log rho relative to
    the last step (LD3's softmax).
    """
    steps = levels.log().diff().neg()
    return (steps[:-1] / steps[-1]).log()


def from_shares(values: Tensor, first: float, last: float) -> Tensor:
    """The levels (N + 1,) between two ends for N - 1 numbers of :func:`to_shares`."""
    steps = torch.softmax(torch.cat([values, values.new_zeros(1)]), 0)
    inner = math.log(first) + (math.log(last) - math.log(first)) * steps.cumsum(0)[:-1]
    return torch.cat([values.new_full((1,), first), inner.exp(), values.new_full((1,), last)])


@dataclass(frozen=True)
class Levels(Parameters):
    """The inner levels of a grid alone; ``write`` gives the solver's table on them (LD3's setting)."""

    origin: Tensor
    write: Callable[[Tensor], Stages]

    @property
    @override
    def start(self) -> Tensor:
        return to_shares(self.origin)

    @override
    def stages(self, values: Tensor, first: float, last: float, dim: int = 1) -> Stages:
        return self.write(from_shares(values, first, last))

    def jacobian(self, values: Tensor, first: float, last: float, dim: int = 1) -> Tensor:
        """The derivative by central differences of the table: exact to 1e-9, without evaluations of the field."""
        step = 1e-6
        columns = []
        for k in range(len(values)):
            shift = torch.zeros_like(values)
            shift[k] = step
            up, down = (to_vector(self.stages(values + sign * shift, first, last)) for sign in (1, -1))
            columns.append((up - down) / (2 * step))
        return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class Decoupled(Levels):
    """Levels of a grid and, separately, the levels at which the field is evaluated (LD3's second setting)."""

    @property
    @override
    def start(self) -> Tensor:
        together = to_shares(self.origin)
        return torch.cat([together, torch.zeros_like(together)])

    @override
    def stages(self, values: Tensor, first: float, last: float, dim: int = 1) -> Stages:
        together, shift = values.chunk(2)
        table = self.write(from_shares(together, first, last))
        levels = table.levels.clone()
        levels[1:-1] *= shift.exp()
        return Stages(table.scales, table.weights, levels)

    @override
    def confined(self, values: Tensor, first: float, last: float) -> Tensor:
        together, shift = values.chunk(2)
        own = from_shares(together, first, last)[1:-1].log()
        return torch.cat([together, _clamped(own + shift, first, last) - own])


def _clamped(logarithms: Tensor, first: float, last: float) -> Tensor:
    return logarithms.clamp(math.log(max(last, _LEAST_LEVEL)), math.log(first))
