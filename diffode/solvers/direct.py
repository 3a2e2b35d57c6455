"""Solvers that follow the field themselves: they write no tableau, since their coefficients depend on the solution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from diffode import grids
from diffode.errors import BudgetError
from diffode.fields import Field
from diffode.paths import Path
from diffode.randomness import Randomness
from diffode.solvers.solver import Solver


@dataclass(frozen=True)
class Journey:
    """The answer of a direct solver.

    Attributes:
        states: the solution at the grid's times, (steps + 1, B, *shape).
        accepted, rejected: numbers of steps of each row, (B,), for adaptive solvers.
        reached: the time that each row reached, (B,) float64: the last time of the grid, unless a row met the step limit.
        finished: whether each row reached the last time, (B,) bool.
        end: the last states of the rows, (B, *shape), if some are not at the last time.
        message: the integrator's own message about a failure.
        remedy: what helps rows that did not get to the end.
        sweeps: number of sweeps of each row, (B,), for solvers that are parallel in time.
        latency: network calls that had to wait for each other, for those solvers.
    """

    states: Tensor
    accepted: Tensor | None = None
    rejected: Tensor | None = None
    reached: Tensor | None = None
    finished: Tensor | None = None
    end: Tensor | None = None
    message: str = ""
    remedy: str = "raise max_steps, or rtol and atol"
    sweeps: Tensor | None = None
    latency: int | None = None


@runtime_checkable
class ForBudget(Protocol):
    """What a solver that follows a field itself, and was made for certain numbers of evaluations, has besides."""

    def check_nfe(self, nfe: int) -> None:
        """Raise BudgetError unless a run over the whole path costs exactly ``nfe`` evaluations."""


@runtime_checkable
class LaysTimes(Protocol):
    """What a solver for a budget has besides if its times follow from the number of evaluations."""

    def lay(self, field: Field, path: Path, nfe: int) -> list[float]:
        """The times of a run with ``nfe`` evaluations of a field on a path."""


@dataclass(frozen=True, kw_only=True)
class DirectSolver(Solver):
    """A solver that follows the field itself: subclass it and write :meth:`follow`.

    The run counts calls of the field; a solver with a network of its own says what that costs by ``field.spend(calls)``.
    """

    #: Whether it iterates until something settles, so that no number of evaluations belongs to a number of steps.
    iterates: ClassVar[bool] = False
    #: Whether it asks the field with a time for every row.
    asks_row_times: ClassVar[bool] = False
    #: Whether it can replace its first evaluation by the analytic one.
    takes_analytic_first_step: ClassVar[bool] = False
    #: Whether it draws noise row by row, and so takes a list of generators.
    draws_for_rows: ClassVar[bool] = False

    @property
    @override
    def chart_name(self) -> str:
        return "velocity"

    @property
    def takes_steps(self) -> bool:
        """Whether it makes one step between two times, so that a budget is a number of steps of a named grid.

        It is False for solvers that choose their own steps, and for those that were made for a budget (:class:`ForBudget`).
        """
        return not isinstance(self, ForBudget)

    @property
    def takes_budget(self) -> bool:
        """Whether it takes a number of evaluations as budget: for a number of steps, or because it was made for one."""
        return self.takes_steps or isinstance(self, ForBudget)

    def steps_within(
        self, field: Field, x: Tensor, path: Path, grid: grids.Times, nfe: int, generator: Randomness | None
    ) -> int | None:
        """The largest number of steps on a named grid that cost at most ``nfe`` network calls from this start, by trial runs.

        The cost of a step may depend on the solution, as the length of an iteration does. The trials are not counted. For a
        list of times, which has its own number of steps, the cost is checked and the answer is None.

        Raises:
            BudgetError: if not even one step fits, or the listed times cost more.
        """
        costs: dict[int | None, int] = {}

        def cost(steps: int | None) -> int:
            if steps not in costs:
                own = None if generator is None else torch.Generator().manual_seed(0)
                with torch.no_grad(), field.uncounted(), field.counted() as spent:
                    self.follow(field, x, grids.get(grid, path, steps).tolist(), own)
                costs[steps] = spent.calls
            return costs[steps]

        if not grids.is_named(grid):
            if cost(None) > nfe:
                raise BudgetError(
                    f"the grid lists its own times, on which {self.spec!r} costs {costs[None]} network calls, "
                    f"more than nfe={nfe}"
                )
            return None
        if cost(1) > nfe:
            raise BudgetError(f"no run of {self.spec!r} on grid {grid!r} fits nfe={nfe}: one step costs {costs[1]}")
        # ``low`` steps fit and ``high`` do not, since a step costs at least one network call.
        low, high = 1, nfe + 1
        while high - low > 1:
            # The guess is exact where all steps cost the same.
            guess = low + max(1, (nfe - costs[low]) * low // max(costs[low], 1))
            middle = guess if low < guess < high else (low + high) // 2
            if cost(middle) <= nfe:
                low = middle
            else:
                high = middle
            if costs[low] + 1 > nfe or (low + 1 < high and cost(low + 1) > nfe):
                break
        return low

    @abstractmethod
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        """Follow the field from x (B, *shape) at ``times[0]`` to the other times."""


def check_trained_for(solver: Solver, own: int, nfe: int) -> None:
    """Raise BudgetError unless ``nfe`` is the number ``own`` of evaluations that a trained solver costs."""
    if nfe != own:
        raise BudgetError(f"solver {solver.spec!r} was trained for nfe={own} alone, not {nfe}")
