"""The result of a run, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffode.facts_table import facts_table
from diffode.fields import Field
from diffode.tableau import Tableau

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        sweeps: number of sweeps of each row, (B,), for solvers that are parallel in time.
        latency: network calls of this run that had to wait for each other, all those of one batch counting once, for solvers
            that are parallel in time; with others all calls wait, and it is None.
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
    sweeps: Tensor | None = None
    latency: int | None = None

    def __repr__(self) -> str:
        times = f"{len(self.times)} times from {float(self.times[0]):g} to {float(self.times[-1]):g}"
        state = "success" if self.success else self.message
        return f"Solution(x of shape {tuple(self.x.shape)}, nfe={self.nfe}, {times}, {state})"

    def _repr_html_(self) -> str:
        """The facts of the run as a table, for notebooks."""
        good = int((self.status == Status.OK).sum())
        facts = {
            "x": f"{tuple(self.x.shape)}, {self.x.dtype}, {self.x.device}",
            "evaluations": self.nfe,
            **({} if self.latency is None else {"one after another": self.latency}),
            "solver": self.tableau.solver if self.tableau is not None else "no table",
            "times": f"{len(self.times)}, from {float(self.times[0]):g} to {float(self.times[-1]):g}",
            "states": "not kept" if self.states is None else f"kept, {tuple(self.states.shape)}",
            "good rows": f"{good} of {len(self.status)}",
        }
        return facts_table("Solution", {**facts, **({"message": self.message} if self.message else {})})

    @property
    def success(self) -> bool:
        """Whether every row is good."""
        return not self.message

    def plot(self, field: Field | None = None, **options: Any) -> Axes:
        """A picture: the trajectories of a run that kept its states, else its end points.

        Args:
            field: the field that it followed, whose density is shown where it is known.
            options: those of :func:`diffode.plot.trajectories`, or of :func:`diffode.plot.cloud` (``ax``, ``size``, ...).

        Returns:
            The Matplotlib axes.

        Raises:
            ArgumentError: as those functions do, for instance if no row is finite.
        """
        from diffode.plot import cloud, trajectories

        return cloud(self.x, field, **options) if self.states is None else trajectories(self, field, **options)


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
