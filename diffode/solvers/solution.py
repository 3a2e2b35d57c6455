"""What a run gives, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.tableau import Tableau

#: Values of ``Solution.status``.
OK, NON_FINITE, UNFINISHED = 0, 1, 2


@dataclass(frozen=True)
class Solution:
    """What a run gave.

    Attributes:
        x: the end points, (B, *shape); rows that became non-finite are NaN, those that met the step limit stay where they
            got to.
        states: the solution at every grid time, (steps + 1, B, *shape), if ``keep="all"``, else None.
        times: the grid, (steps + 1,), float64.
        nfe: network calls that this run made, whatever other threads ask of the field.
        status: (B,) int8, 0 for a good row, 1 for one that became non-finite, 2 for one that met the step limit.
        message: empty, or what went wrong, where and when.
        tableau: the table that was run; None for solvers that have none.
        accepted, rejected: steps of each row, (B,), for adaptive solvers.
        reached: the time each row got to, (B,) float64, for adaptive solvers.
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


def non_finite_rows(x: Tensor) -> Tensor:
    """Which rows hold a NaN or an infinity, (B,)."""
    return ~torch.isfinite(x.detach()).flatten(1).all(dim=1)


def with_nan(x: Tensor, bad: Tensor) -> Tensor:
    """x with these rows NaN-filled."""
    return torch.where(bad.reshape((-1,) + (1,) * (x.ndim - 1)), torch.nan, x)
