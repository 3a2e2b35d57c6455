"""A table's rows as instructions, compiled once, for the loop that runs every sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import columns
from diffode.tableau.rows import Row


class Step(NamedTuple):
    """The instructions for one row.

    ``evaluate`` lists the evaluations before it (slot of the state, slot of the answer, time), ``terms`` its sum (slot,
    factor), ``draws`` its noise (draw, factor), ``unused`` the slots that no later row needs. ``plain`` is the commonest sum,
    x_i + b m_j, which one call of PyTorch computes.
    """

    row: int
    evaluate: tuple[tuple[int, int, float], ...]
    plain: tuple[int, int, float] | None
    terms: tuple[tuple[int, float], ...]
    draws: tuple[tuple[int, float], ...]
    unused: tuple[int, ...]

    def make(self, slots: list[Any], draw: Callable[[int], Tensor] | None) -> Tensor:
        """The row's state, which is put into its slot; slots that no later row needs are emptied."""
        row, _, plain, terms, draws, unused = self
        if plain is not None:
            i, j, b = plain
            total = torch.add(slots[i], slots[j], alpha=b)
        else:
            total = _sum(slots, terms, draws, draw)
        slots[row] = total
        for slot in unused:
            slots[slot] = None
        return total


def _sum(
    slots: Sequence[Any],
    terms: tuple[tuple[int, Any], ...],
    draws: tuple[tuple[int, Any], ...],
    draw: Callable[[int], Tensor] | None,
) -> Tensor:
    """A weighted sum as a new tensor, made by the first term, so that no tensor of others is written to."""
    slot, factor = terms[0]
    total: Tensor = slots[slot] * (columns(factor, slots[slot]) if isinstance(factor, Tensor) else factor)
    for slot, factor in terms[1:]:
        if isinstance(factor, Tensor):
            total.add_(slots[slot] * columns(factor, total))
        else:
            total.add_(slots[slot], alpha=factor)
    for k, factor in draws:
        if draw is None:
            raise ArgumentError("this tableau uses noise draws; pass noise= or generator=")
        total.add_(draw(k), alpha=factor)
    return total


def compiled(rows: Sequence[Row]) -> list[Step]:
    """The instructions of all rows but the start."""
    count = len(rows)
    terms = [(*row.states.items(), *((count + j, b) for j, b in row.evaluations.items())) for row in rows]
    evaluated_at: dict[int, int] = {}
    last_use: dict[int, int] = {i: i for i in range(1, count)}
    for i, row in enumerate(rows):
        for j in row.evaluations:
            if evaluated_at.setdefault(j, i) == i:
                last_use[j] = i
        last_use.update({slot: i for slot, _ in terms[i]})
    evaluate: list[list[int]] = [[] for _ in rows]
    for j, i in evaluated_at.items():
        evaluate[i].append(j)
    unused: list[list[int]] = [[] for _ in rows]
    for slot, i in last_use.items():
        unused[i].append(slot)
    steps = []
    for i, row in enumerate(rows[1:], start=1):
        alike = not any(isinstance(factor, Tensor) for _, factor in terms[i])
        plain = len(terms[i]) == 2 and not row.draws and alike and terms[i][0][1] == 1.0
        steps.append(
            Step(
                i,
                tuple((j, count + j, rows[j].time) for j in evaluate[i]),
                (terms[i][0][0], *terms[i][1]) if plain else None,
                terms[i],
                tuple(row.draws.items()),
                tuple(unused[i]),
            )
        )
    return steps
