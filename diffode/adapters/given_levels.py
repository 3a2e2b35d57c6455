"""Tables between the noise levels that another program gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from diffode.errors import ArgumentError, BudgetError
from diffode.fields import conversion
from diffode.paths import EDM, Path, RectifiedFlow
from diffode.solvers.trained.bespoke import TrainedSolver, Universal
from diffode.solvers.trained.ranged import Ranged
from diffode.tableau import Row, Tableau


def check_scale(scale: object) -> None:
    """Raise ArgumentError unless a scale of the data is a number > 0."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ArgumentError(f"scale must be a number > 0, the root mean variance of the data, got {scale!r:.40}")


def check_evaluates(table: Tableau) -> Tableau:
    """The table, which asks the model at least once; ArgumentError where a jump passes all levels that another program gave."""
    if not table.nfe:
        raise ArgumentError(
            f"the jump of solver {table.solver!r} passes all noise levels but the last, so that the model is never asked: give "
            "more levels, a larger jump=, or a solver without one"
        )
    return table


def path_between(first: float, last: float, straight: bool) -> Path:
    """The path of a model's levels, that of flow matching if they are ``straight``, else EDM's."""
    last = min(last, first / 2)
    return RectifiedFlow(last, first) if straight else EDM(last, first)


def laid_between(solver: TrainedSolver, levels: Sequence[float], straight: bool) -> Tableau:
    """The table of a solver that lays its own levels, with as many evaluations as there are steps between falling ones.

    If the levels end at 0 the last evaluation goes there from the lowest other one. The universal tables, trained between
    certain noise levels, begin and end inside of these. BudgetError for a number of levels that it has no table for.
    """
    steps, clean = len(levels) - 1, levels[-1] == 0
    nfe = steps - 1 if clean else steps
    if nfe not in solver.budgets:
        counts = ", ".join(str(n + (2 if clean else 1)) for n in solver.budgets)
        raise BudgetError(
            f"solver {solver.spec!r} lays its own levels, one evaluation a step, for some numbers of steps alone, and has no "
            f"table for {len(levels)} noise levels{' that end at 0' if clean else ''}: give {counts}"
        )
    first, last = levels[0], levels[-2] if clean else levels[-1]
    ranged = solver.tables.get(nfe) if isinstance(solver, Universal) else None
    if isinstance(solver, Universal) and isinstance(ranged, Ranged):
        (_, high), (_, low) = ranged.first, ranged.last
        unit = solver.scale or 1.0
        first = min(first, _level(high * unit, straight))
        last = min(last, _level(low * unit, straight)) if clean else last
    path = path_between(first, last, straight)
    table = solver.tableau(path, [first, last], nfe)
    if not clean:
        return table
    end = len(table.rows) - 1
    of_state, of_prediction = conversion(path, table.prediction, "denoised", last)
    rows = (*table.rows, Row(0.0, {end: of_state}, {end: of_prediction}))
    return dataclasses.replace(table, rows=rows, outputs=(*table.outputs, end + 1))


def _level(rho: float, straight: bool) -> float:
    """What a model calls sigma at a noise level sigma/alpha."""
    return rho / (1 + rho) if straight else rho
