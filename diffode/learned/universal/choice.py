"""The choice of a table of a codebook for a problem: a member, a unit of length and a dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.universal.batches import UNITS
from diffode.solvers.trained.ranged import Ranged
from diffode.tableau.stages import Stages


class Choice(NamedTuple):
    """A member of a codebook, its unit of length relative to the scale, and the dimension that its table is made for."""

    member: int
    unit: float
    dim: int


def choices(book: Sequence[Ranged], problem: Problem, dims: Iterable[int]) -> list[Choice]:
    """All choices of members, ``UNITS`` and dimensions for which the members were trained."""
    every = [Choice(k, unit, dim) for k in range(len(book)) for unit in UNITS for dim in sorted(set(dims))]
    return [one for one in every if fits(book, problem, one)]


def fits(book: Sequence[Ranged], problem: Problem, choice: Choice) -> bool:
    """Whether the member was trained for the problem's levels in this unit."""
    return book[choice.member].covers(problem.first / choice.unit, problem.last / choice.unit)


def table_of(book: Sequence[Ranged], problem: Problem, choice: Choice) -> Stages:
    """The chosen table, in units of the scale."""
    first, last = problem.first / choice.unit, problem.last / choice.unit
    return book[choice.member].stages(first, last, choice.dim).scaled(choice.unit)


def ranked(
    book: Sequence[Ranged], problem: Problem, chosen: Iterable[Choice], seen: Callable[[float, Choice], None] = lambda *_: None
) -> list[tuple[float, Choice]]:
    """Mean end-point errors in units of the scale with their choices, the smallest first; ``seen`` is told of each."""
    found = []
    for choice in chosen:
        found.append((problem.error(table_of(book, problem, choice)), choice))
        seen(*found[-1])
    return sorted(found)
