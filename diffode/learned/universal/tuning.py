"""The choice of a member of the universal codebook for a field by comparing runs, without training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diffode.errors import ArgumentError, BudgetError, NumericalError
from diffode.fields import Field
from diffode.learned.arguments import check_seed, field_on, row_shape
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.problems import problem_for
from diffode.learned.universal.choice import Choice, choices, fits, ranked, table_of
from diffode.paths import Path
from diffode.randomness import keyed
from diffode.solvers.solver import check_budget
from diffode.solvers.trained.bespoke import Universal, shipped_members, shipped_tables
from diffode.solvers.trained.ranged import Ranged
from diffode.targets import Target

#: Number of starts on which all members are tried in all units.
_FEW_STARTS = 48
#: Number of the best choices that are tried with other dimensions, on the same starts.
_FIRST_BEST = 48
#: Number of the best choices after that; these are tried in finer units, on all starts.
_BEST = 24
#: Dimensions to choose from beside the field's own, since a lower one suits data of few directions in a large space.
_DIMENSIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Ratio of a finer unit to its neighbours: the root of that of two ``UNITS``.
_FINER = 2**0.25
#: Largest number of starts.
_MOST_POINTS = 10**6


@dataclass(frozen=True)
class TunedUniversal:
    """The member of a codebook chosen for a field, with its mean end-point errors in units of the scale.

    Attributes:
        solver: ``universal`` with its member, scale and dimension given.
        nfe: its number of evaluations.
        held_out_error: error on starts that played no part in the choice.
        untuned_error: error of the single table for all data on the same starts; infinite if it was not trained for the levels.
        tried: number of tables that were run.
        seconds: time of the choice, exact ends included.
    """

    solver: Universal
    nfe: int
    held_out_error: float
    untuned_error: float
    tried: int
    seconds: float


def tune_universal(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    points: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TunedUniversal:
    """The member of the universal codebook, the unit of length and the dimension with the smallest mean error on a field.

    About a thousand tables are run on 48 starts, and up to 72 on all. ``field.nfe`` does not count these runs. The field need
    not be differentiable.

    Args:
        field: any field with a path, or a target or its name.
        nfe: number of evaluations.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        points: number of starts to choose on, and of others that give the held-out error.
        seed: seed of the starts.
        progress: called as ``progress(done, total)``.

    Raises:
        BudgetError: if there is no codebook for this number of evaluations.
        ArgumentError: for a wrong argument, or levels for which no member was trained.
        NumericalError: if no member gives finite states.

    >>> found = tune_universal("moons", 6, points=64)
    >>> found.held_out_error < found.untuned_error
    True
    """
    check_budget(nfe)
    check_seed(seed)
    if type(points) is not int or not 8 <= points <= _MOST_POINTS:
        raise ArgumentError(f"points must be an integer from 8 to {_MOST_POINTS}, got {points!r}")
    if progress is not None and not callable(progress):
        raise ArgumentError(f"progress must be a function of (done, total), got {progress!r}")
    books = shipped_members()
    if nfe not in books:
        raise BudgetError(f"there are universal codebooks for nfe {', '.join(map(str, sorted(books)))}, not for {nfe}")
    began = time.perf_counter()
    chosen, on, _ = field_on(field, path)
    shape = row_shape(chosen, dim)
    problem, held_out = (
        problem_for(chosen, on, shape, points, keyed(seed, "tune_universal", stream), differentiated=False)
        for stream in ("choice", "held out")
    )
    search = _Search(books[nfe], problem, progress)
    with chosen.uncounted():
        error, best = search.best()
        held_out_error, untuned_error = held_out.error(table_of(books[nfe], held_out, best)), _untuned(held_out, nfe)
    if not math.isfinite(error):
        raise NumericalError(f"no universal member gives finite states with nfe={nfe} on this field; look at the field first")
    return TunedUniversal(
        Universal(member=best.member, scale=best.unit * chosen.scale, dim=best.dim, nfe=nfe),
        nfe,
        held_out_error,
        untuned_error,
        search.tried,
        time.perf_counter() - began,
    )


class _Search:
    """A search that runs many choices on a few starts, and the best of them on all starts."""

    def __init__(self, book: Sequence[Ranged], problem: Problem, progress: Callable[[int, int], None] | None):
        self.book, self.problem, self._progress = book, problem, progress
        self.few = replace(problem, start=problem.start[:_FEW_STARTS], end=problem.end[:_FEW_STARTS])
        self.tried = self._total = 0

    def best(self) -> tuple[float, Choice]:
        """The choice with the smallest error on all starts, and that error."""
        first = choices(self.book, self.problem, (1, self.problem.dim))
        if not first:
            # This raises an error that names the level out of range.
            self.book[0].check(self.problem.first, self.problem.last, self.problem.unit)
        self._total = len(first) + _FIRST_BEST * len(_DIMENSIONS) + 3 * _BEST
        found = ranked(self.book, self.few, first, self._seen)[:_FIRST_BEST]
        others = {choice._replace(dim=dim) for _, choice in found for dim in _DIMENSIONS} - {choice for _, choice in found}
        found = sorted(found + ranked(self.book, self.few, sorted(others), self._seen))[:_BEST]
        finer = {choice._replace(unit=choice.unit * by) for _, choice in found for by in (1 / _FINER, 1.0, _FINER)}
        finer = {choice for choice in finer if fits(self.book, self.problem, choice)}
        self._total = self.tried + len(finer)
        return ranked(self.book, self.problem, sorted(finer), self._seen)[0]

    def _seen(self) -> None:
        self.tried += 1
        if self._progress is not None:
            self._progress(self.tried, self._total)


def _untuned(problem: Problem, nfe: int) -> float:
    book, plain = [table for n, table in shipped_tables().items() if n == nfe], Choice(0, 1.0, problem.dim)
    return problem.error(table_of(book, problem, plain)) if book and fits(book, problem, plain) else math.inf
