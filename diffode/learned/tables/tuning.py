"""The choice of a member of the universal codebook for a field by comparing runs, without training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from diffode.arguments import check_count
from diffode.errors import ArgumentError, BudgetError, NumericalError
from diffode.fields import Field
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request, with_gradients
from diffode.learned.tables.tuning_in_chart import STEPS, tuned_in_chart
from diffode.learned.trained import History, Trained
from diffode.learned.universal.choice import Choice, choices, fits, ranked, table_of
from diffode.paths import Path
from diffode.solvers.solver import check_budget, check_choice
from diffode.solvers.trained.bespoke import Universal, shipped_members, shipped_tables
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.solvers.trained.ranged import Ranged
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages
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


@with_gradients
def tune_universal(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    chart: str = "noise",
    statistics: Statistics | str | None = None,
    points: int = 256,
    steps: int | None = None,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """The member of the universal codebook, the unit of length and the dimension with the smallest mean error on a field.

    About a thousand tables are run on 48 starts, and up to 72 on all. ``field.nfe`` does not count these runs. The field need
    not be differentiable.

    With ``chart="gaussian"`` the choice is among the universal tables in the chart of the data's Gaussian, in several units
    and for several numbers of directions, and Adams methods after a jump: up to 135 runs on 48 starts and 8 on all, in the
    chart of the covariance and that of the scale alone. The best one of each is then refined by up to 10 Gauss-Newton steps on
    all starts, whose derivatives are differences of runs: as many evaluations a step as about N^2/6 + N + 2 runs with N
    evaluations make, and those of a few trials. Other starts decide which step's numbers are taken, or that the untuned table
    is the better one.

    Args:
        field: any field with a path, or a target or its name.
        nfe: number of evaluations.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        chart: ``noise``, in which the codebook is, or ``gaussian``.
        statistics: for that chart, mean and covariance of the data, or a kind of them, as in :func:`train_table`; by default
            the field's own, or their scale alone, whichever gives the better table.
        points: number of starts to choose on, and of others that give the held-out error.
        steps: for that chart, largest number of steps of the refinement; 10 by default.
        seconds: limit of time, exact ends included, after which the best choice so far is returned; ``stopped_by`` says so.
        seed: seed of the starts.
        progress: called with every table that is compared, and in the Gaussian's chart every step of the refinement, as a
            :class:`Step`, whose ``error`` is the least so far on the same starts.
        stop: a function called after each of these; if it returns True, the best choice so far is returned.

    Returns:
        :class:`Trained`, whose solver is ``universal`` with its member, scale and dimension given, or without a member if the
        single table for all data is better on the starts than each that was tried. ``errors.before`` is that of the single
        table, None if it was not trained for the levels. What is saved is the chosen table, which runs on this path as
        ``bespoke:file=FILE``. In the Gaussian's chart the solver is ``bespoke``, and ``errors.before`` that of
        ``universal:chart=gaussian``, None if it refuses the data.

    Raises:
        BudgetError: if there is no codebook for this number of evaluations.
        ArgumentError: for a wrong argument, or levels for which no member was trained.
        NumericalError: if no member gives finite states.

    >>> found = tune_universal("moons", 6, points=64)
    >>> found.errors.after < found.errors.before
    True
    >>> tune_universal("moons", 6, chart="gaussian").errors.after < found.errors.after / 2
    True
    """
    check_budget(nfe)
    check_count("points", points, 8, _MOST_POINTS)
    check_choice("chart", chart, ("noise", "gaussian"))
    in_chart, books = chart == "gaussian", shipped_members()
    if not in_chart and (statistics is not None or steps is not None):
        raise ArgumentError(
            "statistics and steps go with chart='gaussian': the codebook in the chart noise is chosen from alone"
        )
    if not in_chart and nfe not in books:
        raise BudgetError(f"there are universal codebooks for nfe {', '.join(map(str, sorted(books)))}, not for {nfe}")
    most = STEPS if steps is None else steps
    check_count("steps", most, 1)
    request = Request.of("tune_universal", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    if in_chart:
        return tuned_in_chart(request, nfe, statistics, points, most)
    chosen = request.field
    problem, held_out = (request.problem(points, stream, differentiated=False) for stream in ("choice", "held out"))
    search = _Search(books[nfe], problem, request)
    with chosen.uncounted():
        best = search.best()
        stages = table_of(books[nfe], problem, best)
        plain = _plain(problem, nfe)
        solver = Universal(member=best.member, scale=best.unit * chosen.scale, dim=best.dim, nfe=nfe)
        # A search that ends early may have seen no member that is better than the single table.
        error, of_plain = (math.inf if table is None else problem.error(table) for table in (stages, plain))
        if plain is not None and of_plain < error:
            error, stages, solver = of_plain, plain, Universal(scale=chosen.scale, dim=problem.dim, nfe=nfe)
        if not math.isfinite(error):
            raise NumericalError(
                f"no universal member gives finite states with nfe={nfe} on this field; look at the field first"
            )
        before, after = None if plain is None else held_out.error(plain), held_out.error(stages)
    checkpoint = Checkpoint(stages=stages, scale=chosen.scale, **request.facts("universal", before, after).facts())
    return Trained(solver, nfe, checkpoint, checkpoint, history=History(steps=search.tried))


class _Ended(Exception):
    """The limit of the request was reached."""


class _Search:
    """A search that runs many choices on a few starts, and the best of them on all starts."""

    def __init__(self, book: Sequence[Ranged], problem: Problem, request: Request):
        self.book, self.problem, self._request = book, problem, request
        self.few = replace(problem, start=problem.start[:_FEW_STARTS], end=problem.end[:_FEW_STARTS])
        self.tried = self._total = 0
        #: The best choice so far on the present starts, with its error.
        self._best: tuple[float, Choice] | None = None

    def best(self) -> Choice:
        """The choice with the smallest error on all starts; the best so far if the limit is reached."""
        first = choices(self.book, self.problem, (1, self.problem.dim))
        if not first:
            # This raises an error that names the level out of range.
            self.book[0].check(self.problem.first, self.problem.last, self.problem.unit)
        with contextlib.suppress(_Ended):
            self._total = len(first) + _FIRST_BEST * len(_DIMENSIONS) + 3 * _BEST
            found = self._ranked(self.few, first)[:_FIRST_BEST]
            others = {choice._replace(dim=dim) for _, choice in found for dim in _DIMENSIONS} - {choice for _, choice in found}
            found = sorted(found + self._ranked(self.few, sorted(others)))[:_BEST]
            finer = {choice._replace(unit=choice.unit * by) for _, choice in found for by in (1 / _FINER, 1.0, _FINER)}
            finer = {choice for choice in finer if fits(self.book, self.problem, choice)}
            self._total, self._best = self.tried + len(finer), None
            # The best so far comes first, so that it is what an end during the comparison on all starts leaves.
            self._ranked(self.problem, [found[0][1], *sorted(finer - {found[0][1]})])
        return self._best[1] if self._best else first[0]

    def _ranked(self, problem: Problem, chosen: Sequence[Choice]) -> list[tuple[float, Choice]]:
        return ranked(self.book, problem, chosen, self._seen)

    def _seen(self, error: float, choice: Choice) -> None:
        self.tried += 1
        self._best = min((error, choice), self._best or (error, choice))
        self._request.tell(Step("compare tables", self.tried, self._total, self._best[0]))
        if self.tried < self._total and self._request.limit.reached():
            raise _Ended


def _plain(problem: Problem, nfe: int) -> Stages | None:
    """The single table for all data, in units of the scale; None if it was not trained for the problem's levels."""
    book, plain = [table for n, table in shipped_tables().items() if n == nfe], Choice(0, 1.0, problem.dim)
    return table_of(book, problem, plain) if book and fits(book, problem, plain) else None
