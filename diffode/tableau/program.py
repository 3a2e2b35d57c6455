"""A table's rows as instructions, compiled once, for the loop that runs every sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import columns
from diffode.statistics import Statistics
from diffode.tableau.directed import Frame
from diffode.tableau.rows import Number, Row


class Step(NamedTuple):
    """The instructions for one row.

    ``evaluate`` lists the evaluations before it (slot of the state, slot of the answer, time), ``terms`` its sum (slot,
    factor), ``draws`` its noise (draw, factor), ``unused`` the slots that no later row needs. ``plain`` is the commonest sum,
    x_i + b m_j, which one call of PyTorch computes; ``fixed`` says that all factors are numbers.
    ``frame`` makes the sum where factors differ between directions, with ``mean`` times the data's mean.
    """

    row: int
    evaluate: tuple[tuple[int, int, Number], ...]
    plain: tuple[int, int, float] | None
    fixed: bool
    terms: tuple[tuple[int, Number], ...]
    draws: tuple[tuple[int, Number], ...]
    unused: tuple[int, ...]
    mean: Number = 0.0
    frame: Frame | None = None

    def make(self, slots: list[Any], draw: Callable[[int], Tensor] | None) -> Tensor:
        """The row's state, which is put into its slot; slots that no later row needs are emptied."""
        row, _, plain, fixed, terms, draws, unused, mean, frame = self
        if frame is not None:
            total = frame.sum(slots, row, terms, draws, mean, draw)
        elif plain is not None:
            i, j, b = plain
            total = torch.add(slots[i], slots[j], alpha=b)
        elif fixed:
            # The general sum, without a question for each factor: most of the time of a small batch goes into those.
            slot, factor = terms[0]
            total = slots[slot] * factor
            for slot, factor in terms[1:]:
                total.add_(slots[slot], alpha=factor)
            for k, factor in draws:
                total.add_(_drawn(draw, k), alpha=factor)
        else:
            total = _sum(slots, terms, draws, draw)
        slots[row] = total
        for slot in unused:
            slots[slot] = None
        return total


def _sum(
    slots: Sequence[Any],
    terms: tuple[tuple[int, Number], ...],
    draws: tuple[tuple[int, Number], ...],
    draw: Callable[[int], Tensor] | None,
) -> Tensor:
    """A weighted sum as a new tensor, made by the first term, so that no tensor of others is written to."""
    slot, factor = terms[0]
    total: Tensor = slots[slot] * (columns(factor, slots[slot]) if isinstance(factor, Tensor) else factor)
    for slot, factor in terms[1:]:
        _add(total, slots[slot], factor)
    for k, factor in draws:
        _add(total, _drawn(draw, k), factor)
    return total


def _drawn(draw: Callable[[int], Tensor] | None, k: int) -> Tensor:
    """The k-th noise."""
    if draw is None:
        raise ArgumentError("this tableau uses noise draws; pass noise= or generator=")
    return draw(k)


def _add(total: Tensor, term: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor):
        total.add_(term * columns(factor, total))
    else:
        total.add_(term, alpha=factor)


def _plain(terms: tuple[tuple[int, Number], ...]) -> tuple[int, int, float] | None:
    """The commonest sum, x_i + b m_j, as (i, j, b); None for another."""
    if len(terms) != 2:
        return None
    (i, one), (j, b) = terms
    return None if isinstance(one, Tensor) or isinstance(b, Tensor) or one != 1.0 else (i, j, b)


def compiled(rows: Sequence[Row], statistics: Statistics | None = None) -> list[Step]:
    """The instructions of all rows but the start; coordinates in the basis of ``statistics`` lie in slots of their own."""
    frame = None if statistics is None else Frame(statistics)
    count = len(rows)
    terms = [(*row.states.items(), *[(count + j, b) for j, b in row.evaluations.items()]) for row in rows]
    evaluated_at: dict[int, int] = {}
    last_use: dict[int, int] = {i: i for i in range(1, count)}
    for i, row in enumerate(rows):
        for j in row.evaluations:
            if evaluated_at.setdefault(j, i) == i:
                last_use[j] = i
        for slot, _ in terms[i]:
            last_use[slot] = i
    evaluate: list[list[int]] = [[] for _ in rows]
    for j, i in evaluated_at.items():
        evaluate[i].append(j)
    unused: list[list[int]] = [[] for _ in rows]
    for slot, i in last_use.items():
        unused[i].append(slot)
    if frame is not None:
        unused = [[slot + half for slot in slots for half in (0, 2 * count)] for slots in unused]
    steps = []
    for i, row in enumerate(rows[1:], start=1):
        own, draws = terms[i], tuple(row.draws.items())
        steps.append(
            Step(
                i,
                tuple([(j, count + j, rows[j].time) for j in evaluate[i]]),
                None if draws else _plain(own),
                row.plain or not any(isinstance(factor, Tensor) for _, factor in (*own, *draws)),
                own,
                draws,
                tuple(unused[i]),
                row.mean,
                frame if frame is not None and row.directed else None,
            )
        )
    return steps
