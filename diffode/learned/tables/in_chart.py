"""Tables in the chart of the data's Gaussian at which a training may begin: Adams methods after a jump, and grown tables.

A table with one evaluation more, whose weight in all later rows is 0, errs as the table did. So a table is grown from that of
one evaluation, each new one placed where a few steps of training on a few starts gain most, which finds arrangements of levels
that no published method has.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from diffode import solvers
from diffode.errors import ArgumentError, BudgetError, NumericalError, StatisticsWarning
from diffode.fields import ExactField, GuidedField
from diffode.fields.estimated import breadth_beside
from diffode.learned.fitting.chart import HIGHEST, ChartTable
from diffode.learned.fitting.gauss_newton import Problem, fit
from diffode.learned.limit import Limit
from diffode.learned.request import Request
from diffode.learned.tables.published import Published
from diffode.paths import Path
from diffode.solvers.informed import known_of
from diffode.solvers.solver import check_choice
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.statistics import KINDS, Statistics
from diffode.tableau.gaussian_stages import GaussianStages
from diffode.tableau.stages import Stages

#: Methods in the chart, without their jump.
_METHODS = ("ab:order=1", "ab:order=2")
#: Levels to which they jump, in the data's largest deviations, or in the path's first level if that is lower.
_JUMPS = (0.1, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)
#: Exponents of the power grids that are laid from there.
_EXPONENTS = (1, 2, 3, 5)
#: Number of methods, jumps and grids that are compared.
ADAMS = len(_METHODS) * len(_JUMPS) * len(_EXPONENTS)
#: Number of candidates of each of the two kinds.
_CANDIDATES = 3
#: Number of starts on which methods are compared.
_FEW_STARTS = 64
#: Number of starts on which tables grow; steps after which the best places of an evaluation are chosen, and those of its table.
_GROWING_STARTS, _CHOOSING_STEPS, _GROWING_STEPS = 256, 2, 8
#: Largest variance along a direction, over the mean variance, up to which all directions count as alike.
_ALIKE = 1.1
#: Ratio of the breadth of a field's answers at high noise to what statistics say, or its inverse, from which on they are of
#: other data. Those of the data give between 0.8 and 1.4, of kind ``scale`` up to 5, and those in a unit a hundred times too
#: large or too small below 0.05 or above 12, on the targets and networks that ship.
_OTHER_BREADTH = 10.0
#: Level of a first evaluation put before all others, over that which was the first.
_ABOVE = 2.0


def chart_candidates(
    problem: Problem,
    statistics: Statistics,
    path: Path,
    nfe: int,
    begin_from: str | None,
    smaller: Checkpoint | None,
    limit: Limit,
) -> list[Published]:
    """The best Adams methods in the chart on a few starts, and the best grown tables.

    ``problem`` is one in the chart; ``begin_from`` the one candidate, as ``"solver @ grid"``; ``smaller`` a table with fewer
    evaluations, from which tables grow in its own chart too, and not from one evaluation alone; ``limit`` ends the growing.
    ArgumentError for a ``begin_from`` that is of another chart.
    """
    if begin_from is not None:
        if begin_from.partition(":")[0] == "universal":
            raise ArgumentError(
                f"begin_from={begin_from!r} is no beginning in the chart of the Gaussian: name a method of that chart, such "
                "as 'ab:order=2,chart=gaussian_angle,jump=1 @ karras:rho=3'"
            )
        solver, _, grid = (part.strip() for part in begin_from.partition("@"))
        return [_method(problem, statistics, path, nfe, solver, grid or "karras:rho=3")]
    found = adams(problem, statistics, path, nfe)[:_CANDIDATES]
    if nfe > 1:
        begin = [one.stages for one in adams(problem, statistics, path, 1)[:1]]
        if smaller is not None and smaller.statistics is not None and smaller.statistics.alike(statistics):
            begin = [smaller.stages, *begin]
        for stages in begin:
            found += _grown(few_starts(problem, _GROWING_STARTS), stages, nfe, limit)
    if not found:
        raise NumericalError(f"no table in the Gaussian's chart gives finite states with nfe={nfe}; look at the field first")
    return found


def known_to(
    request: Request, statistics: Statistics | str | None, asker: str = "a table in the Gaussian's chart"
) -> Statistics:
    """The statistics for a training: those given, or the field's own, reduced to a kind if one is named.

    ``asker`` says what has to know them, for the error. ArgumentError if there are none, if they are of other data, for an
    unknown kind, or for data so narrow that every jump goes to the path's end, where nothing is left to train;
    StatisticsWarning if the answers of a field that is not exact say that they are of other data.
    """
    kind = statistics if isinstance(statistics, str) else None
    given = None if isinstance(statistics, str) else statistics
    if kind is not None:
        check_choice("statistics", kind, KINDS)
    told = known = known_of(request.field, asker, request.width, given)
    if kind is not None:
        known = known.reduced(kind, shape=request.shape if kind in ("cosine", "fourier") else None)
    last = request.path.rho(request.path.t_min)
    if _JUMPS[-1] * known.largest <= last:
        narrow = f"have a largest deviation of {known.largest:.3g}, so small beside the path's last noise level of {last:.3g}"
        what = narrow if known.largest else "are one point, of covariance 0, so"
        raise ArgumentError(
            f"{asker} has nothing to train: the data {what} that a jump goes all the way; any solver with jump=auto, such as "
            "ddim:jump=auto, does so without an evaluation"
        )
    _look_at(request, told)
    return known


def _look_at(request: Request, told: Statistics) -> None:
    """StatisticsWarning if they are of data of another breadth than a field's answers.

    Of an exact field that is refused, and what a guided field answers is of no data.
    """
    if isinstance(request.field, ExactField | GuidedField):
        return
    ratio = breadth_beside(request.field, told, request.shape)
    if not 1 / _OTHER_BREADTH < ratio < _OTHER_BREADTH:
        warnings.warn(
            f"statistics are of data of scale {told.scale:.4g}, and at high noise this field's answers lie {ratio:.2g} times "
            "as widely as for such data: give those of what it denoises, in its own unit (Statistics.scaled changes the unit), "
            "unless a rare mode far away makes the scale, or the field is not trained",
            StatisticsWarning,
            stacklevel=_frames_to_the_caller(),
        )


def _frames_to_the_caller() -> int:
    """The ``stacklevel`` of who called the function of this package, which decorators of PyTorch may stand around."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("diffode", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def chart_named(statistics: Statistics) -> str:
    """The chart of the Gaussian of some statistics, in words."""
    return "in the chart of the scale alone" if statistics.kind == "scale" else "in the chart of the covariance"


def gaussians(known: Statistics) -> list[Statistics]:
    """The Gaussians whose charts a training compares where none is given: that of the data, and the one of their scale alone.

    Where modes have almost no width in many directions, the answer of one evaluation at a high level, which is the right mode,
    is a row whose numbers all directions share in the chart of the scale, and in that of the covariance is none.
    """
    if known.gaussian or known.largest**2 <= _ALIKE * known.spectral_mean(1) / len(known.mean):
        return [known]
    return [known, known.reduced("scale")]


def check_smaller(checkpoint: Checkpoint, charts: Sequence[Statistics], nfe: int) -> None:
    """ArgumentError for a table that can't grow to one with ``nfe`` evaluations in one of these charts."""
    if checkpoint.statistics is None or not any(checkpoint.statistics.alike(one) for one in charts):
        raise ArgumentError("smaller must be a table in the Gaussian's chart, trained with the same statistics")
    if checkpoint.nfe >= nfe:
        raise ArgumentError(f"smaller must have fewer evaluations than nfe={nfe}, it has {checkpoint.nfe}")


def grown(stages: Stages) -> Iterator[Stages]:
    """Tables with one evaluation more, before the first and between each two neighbours, that give the same end.

    The state at a new level lies between its neighbours' as the angle of its level, arctan(rho), does. Before a first level
    that a training has brought to the start nothing grows.
    """
    angles = torch.atan(stages.levels)
    for k in range(1, stages.nfe + 1):
        above, below = stages.levels[k - 1], stages.levels[k]
        level = (above * below).sqrt()
        if k == 1:
            level = torch.minimum(level, below * _ABOVE)
            if level > HIGHEST * above:
                # Between the start and the first level there is no room.
                continue
        # Row i makes the state at level i + 1, and column j weighs the evaluation at level j.
        rows = torch.tensor([i if i < k - 1 else i + 1 for i in range(stages.nfe)])
        columns = torch.tensor([j if j < k else j + 1 for j in range(stages.nfe)])
        scales = stages.scales.new_ones(stages.nfe + 1)
        weights = stages.weights.new_zeros(stages.nfe + 1, stages.nfe + 1)
        scales[rows] = stages.scales
        weights[rows[:, None], columns] = stages.weights
        if k > 1:
            apart = angles[k] - angles[k - 1]
            # A training may bring two levels together.
            share = (torch.atan(level) - angles[k - 1]) / apart if apart else torch.full_like(apart, 0.5)
            scales[k - 1] = torch.lerp(stages.scales[k - 2], stages.scales[k - 1], share)
            weights[k - 1, :k] = torch.lerp(stages.weights[k - 2, :k], stages.weights[k - 1, :k], share)
        yield Stages(scales, weights, torch.cat([stages.levels[:k], level[None], stages.levels[k:]]))


def adams(
    problem: Problem, statistics: Statistics, path: Path, nfe: int, seen: Callable[[float], bool] = lambda error: False
) -> list[Published]:
    """The Adams methods in the chart that run, the smallest error on a few starts first, one for each jump.

    ``seen`` is told the error of each of the :data:`ADAMS`, infinite for one that does not run, and ends the comparison by
    True, once there is a method that runs.
    """
    few = few_starts(problem, _FEW_STARTS)
    best: dict[float, Published] = {}
    unit = min(1.0, problem.first * problem.unit / max(statistics.largest, 1e-300))
    for method, jump, exponent in itertools.product(_METHODS, _JUMPS, _EXPONENTS):
        solver, grid = f"{method},chart=gaussian_angle,jump={jump * unit:.4g}", f"karras:rho={exponent}"
        error = math.inf
        # An error says that the level lies above the path's first.
        with contextlib.suppress(ArgumentError):
            one = _method(few, statistics, path, nfe, solver, grid)
            error = one.error
            if math.isfinite(error) and (jump not in best or error < best[jump].error):
                best[jump] = one
        if seen(error) and best:
            break
    return sorted(best.values(), key=lambda one: one.error)


def _method(problem: Problem, statistics: Statistics, path: Path, nfe: int, solver: str, grid: str) -> Published:
    """A method on a grid; ArgumentError if it has no form in the chart, BudgetError if it does not cost ``nfe``."""
    recipe = solvers.informed(solver, statistics)
    table = solvers.table_solver(recipe).within(path, grid, nfe)
    stages = GaussianStages.of(table).stages.scaled(1 / problem.unit)
    if stages.nfe - 1 != nfe:
        raise BudgetError(f"begin_from {solver!r} has no run of exactly {nfe} evaluations, but of {stages.nfe - 1}")
    return Published(problem.error(stages), f"{solver} @ {grid}", stages)


def _grown(problem: Problem, smaller: Stages, nfe: int, limit: Limit) -> list[Published]:
    """The best tables with ``nfe`` evaluations that grow from a smaller one."""
    begun = smaller.nfe - 1
    found = [Published(math.inf, "", smaller)]
    while (count := found[0].stages.nfe - 1) < nfe:
        if limit.reached():
            return []
        tried = [_after(problem, stages, _CHOOSING_STEPS) for stages in grown(found[0].stages)]
        found = sorted(filter(None, tried), key=lambda one: one.error)[:_CANDIDATES]
        if not found:
            return []
        if count + 1 < nfe:
            found = [_after(problem, found[0].stages, _GROWING_STEPS) or found[0]]
    return [
        one._replace(name=f"grown from {begun} evaluation{'' if begun == 1 else 's'}, place {k + 1}")
        for k, one in enumerate(found)
    ]


def _after(problem: Problem, stages: Stages, steps: int) -> Published | None:
    """A table after a few steps of training; None if it overflows."""
    table = ChartTable(stages)
    try:
        fitted = fit(table, [problem], [problem], steps=steps)
    except NumericalError:
        return None
    return Published(min(fitted.held_out), "", table.stages(fitted.values, problem.first, problem.last))


def few_starts(problem: Problem, count: int) -> Problem:
    """The first starts of a problem, of whose runs the ends alone count."""
    return replace(problem, start=problem.start[:count], end=problem.end[:count], trajectory=None)
