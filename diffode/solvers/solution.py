"""The result of a run, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from diffode.tableau import Tableau


class Status(IntEnum):
    """How a row ended."""

    #: The row is good.
    OK = 0
    #: The row became non-finite, and is NaN.
    NON_FINITE = 1
    #: The row met the step limit of an adaptive solver, and is where it was then.
    UNFINISHED = 2


@dataclass(frozen=True)
class Solution:
    """The result of a run.

    Attributes:
        x: the end points, (B, *shape). Rows that became non-finite are NaN; rows that met the step limit have the last state
            that they reached.
        states: the solution at every grid time, (steps + 1, B, *shape), if ``keep="all"``, else None.
        times: the times of the grid, (steps + 1,), float64.
        nfe: network calls of this run, without those of other threads.
        status: a :class:`Status` for each row, (B,) int8: 0 for a good one.
        message: the kind, row and time of a failure; else empty.
        tableau: the table that was run; None for solvers without one.
        accepted, rejected: numbers of steps of each row, (B,), for adaptive solvers.
        reached: the time that each row reached, (B,) float64, for adaptive solvers.
    """

    x: Tensor
    states: Tensor | None
    times: Tensor
    nfe: int
    status: Tensor
    message: str
    tableau: Tableau | None
    accepted: Tensor | None = None
    rejected: Tensor | None = None
    reached: Tensor | None = None

    def __repr__(self) -> str:
        times = f"{len(self.times)} times from {float(self.times[0]):g} to {float(self.times[-1]):g}"
        state = "success" if self.success else self.message
        return f"Solution(x of shape {tuple(self.x.shape)}, nfe={self.nfe}, {times}, {state})"

    @property
    def success(self) -> bool:
        """Whether every row is good."""
        return not self.message


def is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite: their sum proves it, at a fraction of the cost of a look at each, unless it overflows."""
    numbers = x.detach()
    return bool(numbers.sum().isfinite()) or bool(numbers.isfinite().all())


def non_finite_rows(x: Tensor) -> Tensor:
    """Mask (B,) of the rows that hold a NaN or an infinity."""
    return ~torch.isfinite(x.detach()).flatten(1).all(dim=1)


def with_nan(x: Tensor, bad: Tensor) -> Tensor:
    """x with the rows of the mask ``bad`` NaN-filled."""
    return torch.where(bad.reshape((-1,) + (1,) * (x.ndim - 1)), torch.nan, x)
