"""What a caller asks of a run beside the solver: how far it goes, where its noise comes from, what it keeps and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from diffode import grids
from diffode.errors import ArgumentError, BudgetError
from diffode.fields import Field
from diffode.paths import Interval, Path
from diffode.randomness import Randomness, RowNoise
from diffode.solvers.solver import Solver, check_budget
from diffode.tableau import Tableau

Draw = Callable[[int], Tensor]


class Progress(Protocol):
    """Called after each step with the number of steps done and their total."""

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps are made."""


@dataclass(frozen=True)
class Extent:
    """Where a run goes and in how many steps, as it was asked for; what is None was left to the solver.

    Attributes:
        path: the field's path, or a part of it.
        grid: times, or a grid spec.
        steps: number of steps of a named grid.
        nfe: budget of network calls.
    """

    path: Path | None
    grid: grids.Times | None = None
    steps: int | None = None
    nfe: int | None = None

    def check_steps(self) -> None:
        """Raise ArgumentError if there is a number of steps beside a list of times, or beside a budget."""
        if self.nfe is not None and self.steps is not None:
            raise ArgumentError("give steps or nfe, not both")
        if self.steps is not None and self.grid is not None and not grids.is_named(self.grid):
            raise ArgumentError("steps goes with a grid spec; explicit times have their own number of steps")


@dataclass(frozen=True)
class RunOptions:
    """The noise of a run, and what it hands back; see :func:`diffode.solve`.

    ArgumentError for a wrong value of ``keep``, ``progress`` or ``on_failure``.
    """

    noise: Tensor | None = None
    generator: Randomness | None = None
    keep: Literal["last", "all"] = "last"
    progress: Progress | None = None
    on_failure: Literal["raise", "return"] = "raise"

    def __post_init__(self) -> None:
        if self.keep not in ("last", "all"):
            raise ArgumentError(f"keep must be 'last' or 'all', got {self.keep!r}")
        if self.progress is not None and not callable(self.progress):
            raise ArgumentError(f"progress must be a function of (done, total), got {self.progress!r}")
        if self.on_failure not in ("raise", "return"):
            raise ArgumentError(f"on_failure must be 'raise' or 'return', got {self.on_failure!r}")

    def draws(self, table: Tableau, x: Tensor) -> Draw | None:
        """A function that gives the k-th noise of a run from x, and the same when asked again, so that it can be retraced."""
        noise, generator = self.noise, self.generator
        if noise is not None and generator is not None:
            raise ArgumentError("give noise= or generator=, not both: one of them would be ignored")
        if not table.draws:
            if noise is not None:
                raise ArgumentError(f"solver {table.solver!r} draws no noise; leave noise= out")
            return None
        shape = (table.draws, *x.shape)
        if noise is None:
            if generator is None:
                raise ArgumentError(
                    f"solver {table.solver!r} uses {table.draws} noise draws; pass generator= or noise= {shape}"
                )
            return RowNoise(x, table.draws, generator)
        if not isinstance(noise, Tensor) or noise.shape != shape:
            raise ArgumentError(f"noise must have shape (draws, B, *shape) = {shape}, got {tuple(getattr(noise, 'shape', ()))}")
        if not noise.is_floating_point():
            raise ArgumentError(f"noise must be real, float32 or float64, got {noise.dtype}")
        if not bool(torch.isfinite(noise).all()):
            raise ArgumentError("noise has non-finite values")
        return noise.to(x).unbind().__getitem__


def usual_grid(path: Path, solver: Solver) -> str:
    """The grid of a run that is given a budget alone: the solver's, or ``time_uniform`` where there are no noise levels."""
    return "time_uniform" if isinstance(path, Interval) else solver.usual_grid


def evaluations(field: Field, nfe: int) -> int:
    """The number of evaluations of a field in a budget of network calls; BudgetError if it is 0."""
    check_budget(nfe)
    if nfe < field.calls:
        raise BudgetError(f"nfe={nfe} is less than the {field.calls} network calls that one evaluation of this field makes")
    return nfe // field.calls
