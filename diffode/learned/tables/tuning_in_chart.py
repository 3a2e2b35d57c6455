"""Universal tables in the Gaussian's chart, tuned to a field: chosen among units and methods, then refined without derivatives.

The universal tables are a family in two numbers beside the levels, the unit of length and the number of directions that matter,
of which the data's covariance gives a good guess. A tuning tries others, and Adams methods after a jump besides, on a few
starts. Then it takes a few Gauss-Newton steps from the best table of each chart, with differences of runs for derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from diffode.errors import BudgetError, NumericalError
from diffode.learned.fitting.chart import ChartTable, in_chart
from diffode.learned.fitting.differences import SHORTEST, equations_by_differences
from diffode.learned.fitting.gauss_newton import Fit, Problem, descend, loss_of
from diffode.learned.progress import Step
from diffode.learned.request import Request
from diffode.learned.tables.in_chart import ADAMS, adams, chart_named, few_starts, gaussians, known_to
from diffode.learned.tables.published import Published
from diffode.learned.tables.training import trained_table
from diffode.learned.trained import History, Trained
from diffode.learned.universal.batches import UNITS
from diffode.solvers.trained.bespoke import shipped_spectral
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.solvers.trained.spectral import LEAST_FIRST, Spectral, directions_of, unit_of
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages

#: Numbers of directions to choose from beside the data's own.
_DIRECTIONS = (1, 2, 4, 8, 16, 32)
#: Number of starts on which all tables are tried, and of the best that are compared on all.
_FEW_STARTS, _BEST = 48, 8
#: Largest number of steps of the refinement, unless it is given.
STEPS = 10
#: Number of steps without a smaller error on the starts that decide, after which the next one ends it.
_PATIENCE = 4


class _Chart(NamedTuple):
    """A Gaussian, and in its chart the starts of the choice, those that decide between steps, and those of the errors told."""

    statistics: Statistics
    choice: Problem
    deciding: Problem
    held_out: Problem


def tuned_in_chart(request: Request, nfe: int, statistics: Statistics | str | None, points: int, steps: int) -> Trained:
    """What :func:`diffode.learned.tune_universal` gives in the chart of the data's Gaussian."""
    known = known_to(request, statistics, "universal:chart=gaussian")
    compared = gaussians(known) if statistics is None else [known]
    for told in compared:
        _shipped(told, nfe)
    problems = [request.problem(points, stream, differentiated=False) for stream in ("choice", "deciding", "held out")]
    with request.field.uncounted():
        charts = [_Chart(told, *(in_chart(problem, request.field, told) for problem in problems)) for told in compared]
        begun = sorted(
            ((found[0], chart) for chart in charts if (found := best_tables(chart.choice, chart.statistics, request, nfe))),
            key=lambda pair: pair[0].error,
        )
        if not begun:
            raise NumericalError(
                f"no table in the Gaussian's chart gives finite states with nfe={nfe}; look at the field first"
            )
        step = max(SHORTEST, math.sqrt(request.field.rounding(problems[0].start, request.path.t_max)))
        made: list[tuple[Fit, Published, _Chart]] = []
        for one, chart in begun:
            if made and request.limit.reached():
                break
            made.append((_refined(chart, one, steps, step, request), one, chart))
        before, plain = None, _untuned(charts[0], nfe)
        if plain is not None:
            # What no tuning costs is taken if starts that chose nothing find it better.
            made.append((_as_it_is(charts[0], plain), plain, charts[0]))
            before = charts[0].held_out.error(plain.stages)
        fitted, origin, chart = min(made, key=lambda one: min(one[0].held_out))
        stages = ChartTable(origin.stages).stages(fitted.values, chart.choice.first, chart.choice.last)
        after = chart.held_out.error(stages)
    if not math.isfinite(after):
        raise NumericalError(f"the table with nfe={nfe} overflows on starts that chose nothing; look at the field first")
    facts = request.facts("universal:chart=gaussian", before, after).facts()
    checkpoint = Checkpoint(stages=stages, scale=chart.choice.unit, statistics=chart.statistics, **facts)
    return trained_table(checkpoint, History(fitted.training, fitted.held_out, len(fitted.training) - 1), origin.stages)


def best_tables(problem: Problem, statistics: Statistics, request: Request, nfe: int) -> list[Published]:
    """The best universal tables of all units, and Adams methods, on a problem in the chart, the smallest error first.

    If the limit of the request is reached, the best of those that were tried, one at least.
    """
    few, stage = few_starts(problem, _FEW_STARTS), f"compare tables, {chart_named(statistics)}"
    found: list[Published] = []
    every, tried, least = [*_universal(few, statistics, nfe)], 0, math.inf

    def seen(error: float) -> bool:
        """Whether the comparison ends, of which a step is told."""
        nonlocal tried, least
        tried, least = tried + 1, min(least, error)
        request.tell(Step(stage, tried, len(every) + ADAMS, least))
        return request.limit.reached()

    for one in every:
        found.append(one._replace(error=few.error(one.stages)))
        if seen(found[-1].error):
            break
    if least == math.inf or not request.limit.reached():
        found += adams(few, statistics, request.path, nfe, seen)
    best = sorted((one for one in found if math.isfinite(one.error)), key=lambda one: one.error)[:_BEST]
    if request.limit.reached():
        best = best[:1]
    on_all = (one._replace(error=problem.error(one.stages)) for one in best)
    return sorted((one for one in on_all if math.isfinite(one.error)), key=lambda one: one.error)


def _universal(problem: Problem, statistics: Statistics, nfe: int) -> Iterator[Published]:
    """The universal tables in units about that of the data and for several numbers of directions, in units of the scale."""
    spectral, unit, own = _shipped(statistics, nfe), unit_of(statistics), directions_of(statistics)
    for factor in UNITS:
        for directions in sorted({*_DIRECTIONS, own}):
            if problem.first * problem.unit >= LEAST_FIRST * factor * unit:
                many = f"{directions:.3g} direction{'' if directions == 1 else 's'}"
                name = f"universal:chart=gaussian in units of {factor * unit:.3g}, for {many}"
                yield Published(math.inf, name, _stages(spectral, problem, factor * unit, directions))


def _shipped(statistics: Statistics, nfe: int) -> Spectral:
    tables = shipped_spectral(statistics.kind == "scale" and len(statistics.mean) > 1)
    if nfe not in tables:
        raise BudgetError(f"there are universal tables in the Gaussian's chart for nfe 1 to {max(tables)}, not for {nfe}")
    return tables[nfe]


def _stages(spectral: Spectral, problem: Problem, unit: float, directions: float) -> Stages:
    first, last = (level * problem.unit / unit for level in (problem.first, problem.last))
    return spectral.stages(first, last, directions).scaled(unit / problem.unit)


def _refined(chart: _Chart, begun: Published, steps: int, step: float, request: Request) -> Fit:
    """Gauss-Newton steps from a table on the starts of the choice, of which other starts tell the best."""
    table = ChartTable(begun.stages)
    return descend(
        table.start,
        lambda values: loss_of(table, values, [chart.choice]),
        lambda values: loss_of(table, values, [chart.deciding]),
        lambda values: equations_by_differences(table, values, chart.choice, step),
        steps=0 if request.limit.reached() else steps,
        limit=request.limit,
        patience=_PATIENCE,
        stage=f"refine {begun.name}, {chart_named(chart.statistics)}",
        progress=request.progress,
        confined=lambda values: table.confined(values, chart.choice.first, chart.choice.last),
    )


def _as_it_is(chart: _Chart, one: Published) -> Fit:
    """A table without a step, as the result of a refinement."""
    return Fit(ChartTable(one.stages).start, (chart.choice.error(one.stages),), (chart.deciding.error(one.stages),), 0.0)


def _untuned(chart: _Chart, nfe: int) -> Published | None:
    """The universal table as the data's own statistics ask for it; None where that is refused."""
    problem, known = chart.choice, chart.statistics
    unit = unit_of(known)
    if problem.first * problem.unit < LEAST_FIRST * unit:
        return None
    stages = _stages(_shipped(known, nfe), problem, unit, directions_of(known))
    return Published(math.inf, "universal:chart=gaussian", stages)
