"""Parareal: fine runs over blocks of steps at the same time, joined by coarse steps that correct them (SRDS)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from diffode.arguments import check_count
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.randomness import Randomness
from diffode.solvers.direct import Journey
from diffode.solvers.in_parallel import Calls, InParallel, units
from diffode.tableau import Number, Row, Tableau


@dataclass(frozen=True, kw_only=True)
class Parareal(InParallel):
    r"""Blocks of steps: :math:`X_{i+1}^{n+1} = F(X_i^n) + G(X_i^{n+1}) - G(X_i^n)`, all fine runs F of a sweep at once.

    F makes the steps of ``base`` over a block, G one step of it over the whole block; X^0 are coarse steps alone. After n
    sweeps the first n blocks are those of the sequential run, so that it is found in at most as many sweeps as there are
    ``blocks`` (none: the root of the number of steps, rounded). A row is settled when its last state moves by less than
    ``tolerance``. A solver that uses past steps begins anew in each block, and its sequential run is the one that does.

    The latency is that of the pipelined form of the paper, in which a fine run begins as soon as its start is there. Its
    numbers are those of this one, which makes a sweep after the other.
    """

    blocks: int | None = None

    name = "parareal"
    reference: ClassVar[str] = (
        "Selvam, Merchant, Ermon, arXiv 2412.08292, algorithm 1; Lions, Maday, Turinici, C. R. Acad. Sci. 332 (2001)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None:
            check_count("blocks", self.blocks, 1)
        if self.recipe.stochastic:
            raise ArgumentError(f"base must be a solver without noise, got {self.base!r}; picard keeps the noise of a run")

    @property
    @override
    def spends(self) -> str:
        n = self.nfe_per_step
        return f"{n} in every sweep over the blocks that are left, and {n} a block before; a run says its sweeps"

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: Randomness | None) -> Journey:
        self.check_derivative(x)
        if not len(x):
            return Journey(x[None].expand(len(times), *x.shape), sweeps=x.new_zeros(0, dtype=torch.int64), latency=0)
        run = _Blocks(self, field, x, times)
        run.coarse_steps()
        while len(run.alive):
            run.sweep()
        fine, coarse = ([table.nfe * field.calls for table in tables] for tables in (run.fine, run.coarse))
        return Journey(run.states, sweeps=run.made, latency=critical_path(fine, coarse, int(run.made.max())))


class _Blocks:
    """The sweeps of a run: states at the grid's times (N + 1, B, *shape), and the ends of coarse steps."""

    def __init__(self, solver: Parareal, field: Field, x: Tensor, times: Sequence[float]):
        steps = len(times) - 1
        count = min(solver.blocks or max(1, round(math.sqrt(steps))), steps)
        self.solver, self.calls, self.count = solver, Calls(field, len(x), x.device), count
        #: Index of the first time of each block, and the last time of all.
        self.edges = [steps * i // count for i in range(count + 1)]
        path, recipe = field.path, solver.recipe
        self.fine = [recipe.tableau(path, list(times[a : b + 1])) for a, b in itertools.pairwise(self.edges)]
        self.coarse = [recipe.tableau(path, [times[a], times[b]]) for a, b in itertools.pairwise(self.edges)]
        self.states = x.expand(steps + 1, *x.shape).clone()
        #: The ends of the coarse steps of all blocks, and the answers of the field at their starts.
        self.ends, self.asked = torch.zeros((2, count, *x.shape), dtype=x.dtype, device=x.device)
        self.unit = units(path, times[-1:], field.scale).to(x.device)
        self.alive = torch.arange(len(x), device=x.device)
        self.made = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def coarse_steps(self) -> None:
        """The first states at the edges of blocks. The last step is compared with, and no block needs its end before."""
        for i in range(self.count if self.count > 1 else 0):
            self.ends[i] = self._coarse_step(i, self.states[self.edges[i]], self.alive)
            self.states[self.edges[i + 1]] = self.ends[i]

    def sweep(self) -> None:
        """Fine runs of all blocks from the first that is not settled on, and the corrected states at their edges."""
        first, rows = int(self.made[self.alive].max()), self.alive
        before = self.states[-1, rows].clone()
        fine = self._fine_runs(first, rows)
        x = self.states[self.edges[first], rows]
        for i, inner in zip(range(first, self.count), fine, strict=True):
            self.states[self.edges[i] + 1 : self.edges[i + 1] + 1, rows] = inner
            end = inner[-1]
            if i > first:
                # The start of the first block is settled, so that its coarse steps would cancel.
                step = self._coarse_step(i, x, rows)
                end = end + (step - self.ends[i, rows])
                self.ends[i, rows] = step
            x = end
            self.states[self.edges[i + 1], rows] = x
        self.made[rows] += 1
        moved = self.solver.moves((x - before).flatten(1), self.unit)
        most = min(self.count, self.solver.sweeps or self.count)
        self.alive = rows[moved & (self.made[rows] < most)]

    def _coarse_step(self, block: int, x: Tensor, rows: Tensor) -> Tensor:
        """The end of one coarse step from x (n, *shape), states of the rows; its first answer is kept for the fine run."""

        def ask(state: int, at: Tensor, time: Number) -> Tensor:
            answer = self.calls.predict(self.coarse[block].prediction, at, time, rows)
            if state == 0:
                self.asked[block, rows] = answer
            return answer

        *_, (_, last) = _walked(self.coarse[block], x, ask)
        return last

    def _fine_runs(self, first: int, rows: Tensor) -> list[Tensor]:
        """The states of the fine runs of all blocks from ``first`` on, (steps of the block, n, *shape) each.

        Coarse steps have asked the field at their starts.
        """
        tables = self.fine[first:]
        joint, lead = side_by_side(tables, len(rows))
        starts = torch.cat([self.states[edge, rows] for edge in self.edges[first:-1]])
        known = torch.cat([self.asked[block, rows] for block in range(first, self.count)])
        begins = torch.tensor(lead, device=rows.device).repeat_interleave(len(rows))
        if self.count == 1:
            # One block has no coarse step.
            begins = begins - 1
        every = rows.repeat(len(tables))

        def ask(state: int, at: Tensor, time: Number) -> Tensor:
            new = torch.nonzero(begins < state).flatten()
            if not len(new):
                return known
            then = time[new.to(time.device)] if isinstance(time, Tensor) else time
            answer = self.calls.predict(joint.prediction, at[new], then, every[new])
            return answer if len(new) == len(every) else known.index_copy(0, new, answer)

        states = dict(_walked(joint, starts, ask))
        parts = []
        for i, table in enumerate(tables):
            mine = slice(i * len(rows), (i + 1) * len(rows))
            parts.append(torch.stack([states[row + lead[i]][mine] for row in table.outputs[1:]]))
        return parts


def _walked(table: Tableau, x: Tensor, ask: Callable[[int, Tensor, Number], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """The rows of a table with their states from x, where ``ask(row, state, time)`` answers for the field."""
    slots: list[Any] = [x, *([None] * (2 * len(table.rows) - 1))]
    for step in table.program:
        for state, slot, time in step.evaluate:
            slots[slot] = ask(state, slots[state], time)
        yield step.row, step.make(slots, None)


def critical_path(fine: Sequence[int], coarse: Sequence[int], sweeps: int) -> int:
    """Calls that have to wait for each other in a run of ``sweeps`` over blocks, whose fine and coarse runs cost so much.

    With T(i, n) the time at which X_i^n is there, T(i + 1, n) is T(i, n - 1) + fine[i] or T(i, n) + coarse[i], the later one.

    >>> critical_path([5, 5], [1, 1], 1), critical_path([5, 5], [1, 1], 2)
    (6, 10)
    """
    there = [0, *itertools.accumulate(coarse)]
    for made in range(min(sweeps, len(fine))):
        before = there
        there = before[: made + 1]
        for i in range(made, len(fine)):
            corrected = there[i] + coarse[i] if i > made else 0
            there = [*there, max(before[i] + fine[i], corrected)]
    return there[-1]


def side_by_side(tables: Sequence[Tableau], rows: int) -> tuple[Tableau, list[int]]:
    """One table that runs some tables at once, each for ``rows`` rows of a batch, the first for the first of them.

    Shorter tables begin with copies of their start, whose number is told for each table.
    """
    longest = max(len(table.rows) for table in tables)
    lead = [longest - len(table.rows) for table in tables]

    def each(values: Sequence[Number]) -> Tensor:
        return torch.tensor([float(value) for value in values], dtype=torch.float64).repeat_interleave(rows)

    def joined(terms: Sequence[Mapping[int, Number]]) -> dict[int, Number]:
        return {j: each([one.get(j, 0.0) for one in terms]) for j in sorted({j for one in terms for j in one})}

    made = [Row(each([table.rows[0].time for table in tables]))]
    for i in range(1, longest):
        shifted = [table.rows[i - gap] if i > gap else None for table, gap in zip(tables, lead, strict=True)]
        time = each([table.rows[0].time if row is None else row.time for table, row in zip(tables, shifted, strict=True)])
        states = [
            {i - 1: 1.0} if row is None else {j + gap: c for j, c in row.states.items()}
            for row, gap in zip(shifted, lead, strict=True)
        ]
        answers = [
            {} if row is None else {j + gap: c for j, c in row.evaluations.items()}
            for row, gap in zip(shifted, lead, strict=True)
        ]
        made.append(Row(time, joined(states), joined(answers)))
    return Tableau(tables[0].prediction, tuple(made), (0, longest - 1), tables[0].path, tables[0].solver), lead
