"""Training of a sampler for one field and number of evaluations, from published samplers by Gauss-Newton."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffode import paths
from diffode.arguments import check_count, check_number
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.learned.arguments import check_seed, finite_levels
from diffode.learned.fitting.chart import ChartTable, in_chart
from diffode.learned.fitting.gauss_newton import Fit, Problem, fit
from diffode.learned.fitting.parameters import Table
from diffode.learned.fitting.problems import FEWEST, starts_for
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress
from diffode.learned.request import Request, held_out_count, with_gradients
from diffode.learned.tables.in_chart import chart_candidates, chart_named, check_smaller, gaussians, known_to
from diffode.learned.tables.published import Published, candidates
from diffode.learned.trained import History, Trained, check_trained
from diffode.paths import Path
from diffode.solvers.solver import check_budget, check_choice
from diffode.solvers.trained.bespoke import Bespoke
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages
from diffode.targets import Target

#: Number of steps of the trial of a candidate, which ranks it.
_LOOK_STEPS = 6
#: Number of starts of a trial as a share of all; at least ``FEWEST``.
_LOOK_PART = 0.25
#: Weight of the states in between in a trial, relative to the end. Where a start ends at the wrong mode, the error of the end
#: has no gradient towards the right one, but that of the states before has.
_LOOK_TRAJECTORY = 1.0
#: Share of a limit of seconds after which no further candidate is tried.
_LOOK_SHARE = 0.4
#: Share of a limit of seconds after which tables in the Gaussian's chart grow no further.
_GROW_SHARE = 0.25
#: Largest number of steps of a training from one candidate.
_MOST_STEPS = 200
#: Relative difference below which the errors of two trained candidates are the same, which ends the training.
_SAME = 0.02


@with_gradients
def train_table(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    begin_from: str | None = None,
    start: str | None = None,
    chart: str = "noise",
    statistics: Statistics | str | None = None,
    smaller: Trained | Checkpoint | None = None,
    consistent: bool = False,
    groups: tuple[int, ...] | None = None,
    trajectory: float = 0.0,
    points: int | None = None,
    steps: int = _MOST_STEPS,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train the weights, scales and levels of a table with ``nfe`` evaluations, from published samplers.

    Each candidate is tried for a few steps; then the candidates are trained to the end, the best first, until two have the
    same error. On one machine the same arguments give the same table, bit for bit, unless ``seconds`` or ``stop`` end the
    training early, which ``stopped_by`` says.

    Args:
        field: a target or its name, or a field with a path, differentiable in x.
        nfe: number of evaluations.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        begin_from: the one candidate, as ``"solver @ grid"`` or ``"universal"``; by default the best six of a list of
            published samplers, the universal table and its codebook.
        start: the former name of ``begin_from``.
        chart: ``noise``, or ``gaussian`` for a table in the chart of the data's Gaussian: it jumps to its first level, which is
            trained as well, and its rows have a coefficient for each direction of the data's covariance. It begins from Adams
            methods in the chart and from tables that grow from one evaluation.
        statistics: mean and covariance of the data for that chart, or a kind of them, such as ``scale``, to which those of the
            field are reduced; by default the field's own or, unless ``begin_from`` is given, their scale alone, whichever gives
            the better table; the ``statistics`` of the result say which.
        smaller: what a training in that chart gave for the same field with fewer evaluations, from which tables grow too;
            not beside ``begin_from``, from which nothing grows.
        consistent: keep the table exact for a constant noise prediction.
        groups: sizes of the sets of evaluations that may run in parallel.
        trajectory: weight of the mean error of the states in between, in units of the data's spread at their levels; that of
            the end weighs 1. Trials of candidates always count both, except in the Gaussian's chart, where they gain nothing.
        points: number of starts, by default from 192 to 4,096; it falls with the number of evaluations, the components of
            the mixture and the dimension.
        steps: largest number of steps from one candidate; most trainings end before, where steps no longer gain.
        seconds: limit of time, in seconds or as a :class:`Limit`. It includes references and the choice of candidates, which
            it can't cut short.
        seed: seed of the starts; those of training, held out and of the test are separate streams.
        progress: called with every :class:`Step`; in a trial its ``error`` counts the states in between.
        stop: a function called after every step; if it returns True, the best table so far is returned.

    Returns:
        :class:`Trained`, whose solver is ``bespoke``; its history is that of the best candidate, after its trial.

    Raises:
        ArgumentError, BudgetError: for a wrong argument.
        FieldError: if the field can't be differentiated.
        NumericalError: if no published sampler gives finite states.

    >>> trained = train_table("bimodal1d", 4, points=192, begin_from="deis:order=3")
    >>> trained.errors.after < 0.02  # the best of hundreds of published samplers: 0.065
    True
    >>> train_table("bimodal1d", 2, points=192, chart="gaussian").errors.after < 0.02
    True
    """
    check_budget(nfe)
    request = Request.of("train_table", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    check_number("trajectory", trajectory, 0)
    check_choice("consistent", consistent, (True, False))
    count = points if points is not None else starts_for(request.field, request.width, nfe)
    check_count("points", count, 8)
    check_count("steps", steps, 1)
    begin_from = _begin_from(begin_from, start)
    few, part = held_out_count(count), min(max(round(_LOOK_PART * count), FEWEST), count)
    check_choice("chart", chart, ("noise", "gaussian"))
    charts: list[Statistics] = []
    if chart == "gaussian":
        if consistent or groups is not None:
            raise ArgumentError("consistent and groups are of tables in the chart noise: leave them out here")
        if smaller is not None and begin_from is not None:
            raise ArgumentError(
                f"begin_from={begin_from!r:.60} is the one table that a training begins from, so that none grows from "
                "smaller=: leave one of the two out"
            )
        known = known_to(request, statistics)
        charts = gaussians(known) if statistics is None and begin_from is None else [known]
    elif statistics is not None or smaller is not None:
        raise ArgumentError("statistics and smaller go with chart='gaussian': a table in the chart noise knows the scale alone")
    task = _Task(
        look=request.problem(part, "training", trajectory if charts else max(trajectory, _LOOK_TRAJECTORY)),
        problem=request.problem(count, "training", trajectory),
        held_out=request.problem(few, "held out", trajectory),
        test=request.problem(few, "test"),
        path=request.path,
        name=request.target,
        limit=request.limit,
        seed=seed,
        progress=progress,
        steps=steps,
    )
    if not charts:
        found = candidates(task.problem, request.path, nfe, begin_from)
        return _best_of([(task, one) for one in found], consistent, groups)
    less = None if smaller is None else check_trained(smaller, Checkpoint, "what train_table gave")
    if less is not None:
        check_smaller(less, charts, nfe)
    pairs = []
    for k, statistics in enumerate(charts, 1):
        inside = task.in_chart(request.field, statistics)
        limit = request.limit.part(_GROW_SHARE * k / len(charts))
        found = chart_candidates(inside.problem, statistics, request.path, nfe, begin_from, less, limit)
        pairs += [(inside, one) for one in found]
    # A limit of seconds may end the trials, so that the best of all charts are tried first.
    return _best_of(sorted(pairs, key=lambda pair: pair[1].error))


@with_gradients
def train_gaussian(
    eigenvalues: Tensor | Sequence[float],
    nfe: int,
    *,
    path: Path | str = "vp",
    begin_from: str | None = None,
    start: str | None = None,
    steps: int = _MOST_STEPS,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train a table on a Gaussian's exact error, without samples.

    The training minimises the mean error of the output's standard deviation over eigen-directions, which is the error that
    ``tableau.propagate`` gives. ``eigenvalues`` (E,) are the data's variances; the other arguments, the result and the errors
    are those of :func:`train_table`. The held-out errors are the training errors, since nothing is held out.

    >>> train_gaussian([1.0, 0.3, 0.01], 4, seconds=3).errors.after < 1e-6
    True
    """
    check_budget(nfe)
    limit = Limit(seconds, stop)
    check_seed(seed)
    check_count("steps", steps, 1)
    begin_from = _begin_from(begin_from, start)
    try:
        variances = torch.as_tensor(eigenvalues, dtype=torch.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"eigenvalues must be numbers, got {eigenvalues!r}") from None
    if variances.ndim != 1 or not len(variances) or not bool((torch.isfinite(variances) & (variances > 0)).all()):
        raise ArgumentError("eigenvalues must be a vector (E,) of positive numbers")
    on = paths.get(path)
    column = variances[:, None]

    def noise(z: Tensor, rho: float) -> Tensor:
        return z * (rho / (column[: len(z)] + rho**2))

    unit = float(variances.mean().sqrt())
    first, last = finite_levels(on)
    deviations = [(column + level**2).sqrt() for level in (first, last)]
    problem = Problem(noise, deviations[0], deviations[1], unit, first / unit, last / unit)
    name = f"Gaussian, {len(variances)} eigenvalues"
    task = _Task(problem, problem, problem, problem, on, name, limit, seed, progress, steps)
    return _best_of([(task, one) for one in candidates(problem, on, nfe, begin_from)])


class _Task(NamedTuple):
    """The problems of a training (of trials, to train on, held out, of the test), its limit, and its name."""

    look: Problem
    problem: Problem
    held_out: Problem
    test: Problem
    path: Path
    name: str
    limit: Limit
    seed: int
    progress: Progress | None
    steps: int
    statistics: Statistics | None = None

    def in_chart(self, field: Field, statistics: Statistics) -> _Task:
        """The same training in the chart of a Gaussian."""
        look, problem, held_out, test = (in_chart(one, field, statistics) for one in self[:4])
        return self._replace(look=look, problem=problem, held_out=held_out, test=test, statistics=statistics)

    @property
    def told(self) -> str:
        """The chart, for the names of stages: trainings in two of them may begin from methods of one name."""
        return "" if self.statistics is None else f", {chart_named(self.statistics)}"

    def table(self, origin: Stages, consistent: bool, groups: tuple[int, ...] | None) -> Table:
        """The free numbers of a training from a table."""
        if self.statistics is not None:
            return ChartTable(origin)
        return Table(origin, consistent=consistent, groups=groups)

    def trained(self, on: Problem, table: Table, stage: str, begin: Tensor, steps: int, limit: Limit) -> Fit | None:
        """A training from given values; None if the first run overflows, which another candidate's may not."""
        try:
            return fit(
                table, [on], [self.held_out], start=begin, steps=steps, limit=limit, seed=self.seed,
                stage=stage, progress=self.progress,
            )  # fmt: skip
        except NumericalError:
            return None


class _Candidate(NamedTuple):
    """A published sampler after its trial: its held-out error and its parameters, and the training it is for."""

    error: float
    values: Tensor
    published: Published
    table: Table
    task: _Task


def _best_of(
    found: Sequence[tuple[_Task, Published]], consistent: bool = False, groups: tuple[int, ...] | None = None
) -> Trained:
    """Try each candidate for a few steps, then train them to the end, the best of each chart first."""
    seen = _looked_at(found, consistent, groups)
    first, limit = seen[0], seen[0].task.limit
    best = Fit(first.values, (_error(first.task.problem, first.table, first.values),), (first.error,), 0.0), first
    errors: list[tuple[_Task, float]] = []
    for one in seen:
        if limit.reached():
            break
        task = one.task
        further = task.trained(
            task.problem, one.table, f"train from {one.published.name}{task.told}", one.values, task.steps, limit
        )
        if further is None:
            continue
        error = min(further.held_out)
        # The history of the first candidate is kept even if its steps gained nothing.
        if error < min(best[0].held_out) or one is first:
            best = further, one
        # Two charts that hardly differ give the same errors, though neither is trained as well as it can be.
        same = any(abs(error - other) <= _SAME * other for of, other in errors if of is task)
        errors.append((task, error))
        if same and error <= (1 + _SAME) * min(other for _, other in errors):
            break
    fitted, chosen = best
    task = chosen.task
    stages = chosen.table.stages(fitted.values, task.problem.first, task.problem.last)
    checkpoint = Checkpoint(
        stages=stages,
        scale=task.problem.unit,
        path=task.path.spec,
        target=task.name,
        begun_from=chosen.published.name,
        held_out_error=task.test.error(stages),
        start_error=task.test.error(chosen.published.stages),
        seconds=task.limit.elapsed,
        seed=task.seed,
        stopped_by=task.limit.stopped_by,
        statistics=task.statistics,
    )
    history = History(fitted.training, fitted.held_out, len(fitted.training) - 1)
    return trained_table(checkpoint, history, chosen.published.stages)


def trained_table(checkpoint: Checkpoint, history: History, origin: Stages | None) -> Trained:
    """The result of a training that gave a table."""
    solver = Bespoke(table=checkpoint)
    return Trained(solver, checkpoint.nfe, checkpoint, checkpoint, history=history, origin=origin)


def _looked_at(found: Sequence[tuple[_Task, Published]], consistent: bool, groups: tuple[int, ...] | None) -> list[_Candidate]:
    """The candidates after their trials, the best first, but before all others the best of each chart."""
    limit = found[0][0].limit.part(_LOOK_SHARE)
    seen: list[_Candidate] = []
    for task, published in found:
        if seen and limit.reached():
            break
        table = task.table(published.stages, consistent, groups)
        looked = task.trained(task.look, table, f"look ahead from {published.name}{task.told}", table.start, _LOOK_STEPS, limit)
        if looked is not None:
            seen.append(_Candidate(min(looked.held_out), looked.values, published, table, task))
    if not seen:
        raise NumericalError(
            f"every published sampler overflows on {found[0][0].name}; look at the field first, or begin from another"
        )
    firsts: list[_Candidate] = []
    others: list[_Candidate] = []
    for one in sorted(seen, key=lambda candidate: candidate.error):
        (others if any(one.task is first.task for first in firsts) else firsts).append(one)
    return firsts + others


def _begin_from(given: str | None, older: str | None) -> str | None:
    """The value of ``begin_from``, given by this name or the former one, ``start``."""
    if given is not None and older is not None:
        raise ArgumentError("begin_from and its older name start are both given: leave start out")
    chosen = older if given is None else given
    if chosen is not None and not isinstance(chosen, str):
        raise ArgumentError(f"begin_from must be 'solver @ grid' or 'universal', got {chosen!r:.60}")
    return chosen


def _error(problem: Problem, table: Table, values: Tensor) -> float:
    return problem.error(table.stages(values, problem.first, problem.last))


def output_weights(stages: Stages, in_chart: bool = False) -> Tensor:
    """Weights (N,) of the noise predictions in the output, each divided by its level, for pictures.

    The start counts as D_0 + rho_0 e_0, since z_0 and e_0 are nearly parallel if rho_0 is large, so that a table may divide
    its weight between them in any way. In the Gaussian's chart the start is not evaluated.
    """
    if in_chart:
        return stages.weights[-1, 1:] / stages.levels[1:-1]
    weights = stages.weights[-1].clone()
    weights[0] += stages.scales[-1] * stages.levels[0]
    return weights / stages.levels[:-1]
