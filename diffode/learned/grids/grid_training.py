"""Training of grids for a field, with the facts that files keep: their errors, and what ended the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffode import grids, solvers
from diffode.arguments import check_count
from diffode.errors import ArgumentError, UnknownNameError
from diffode.fields import Field
from diffode.grid_files import TrainedGrid
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.parameters import to_shares
from diffode.learned.grids import levels
from diffode.learned.grids.free_levels import begun, error_of, trained_levels
from diffode.learned.grids.informed import InformedLevels, ended
from diffode.learned.grids.simplex import searched
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request, with_gradients
from diffode.learned.tables.in_chart import known_to
from diffode.learned.tables.training import trained_table
from diffode.learned.trained import History, Trained
from diffode.paths import Path
from diffode.solvers import WritesTable
from diffode.solvers.informed import informed
from diffode.solvers.jumped import Jumped
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.statistics import Statistics
from diffode.tableau import Tableau
from diffode.tableau.stages import Stages
from diffode.targets import Target

#: Methods of training a grid, each with its default solver.
METHODS = {"gits": "ddim", "dmn": "ab:order=3,chart=data", "ld3": "dpmpp:order=2", "search": "dpmpp:order=2"}
#: Named grids, the better of which a grid is compared with that no training began from.
_NAMED = ("log_snr", "karras")
#: Number of starts on which the error of a grid is measured.
_TEST_STARTS = 512
#: Number of starts on which what was trained is compared with what it began from.
_CHOICE_STARTS = 256
#: Options of the methods for a solver that knows the data, with their values unless given.
_INFORMED: dict[str, dict[str, Any]] = {
    "gits": {"points": 256, "teacher": 60, "discount": 1.15, "grid": Jumped.usual_grid},
    "ld3": {"points": 512, "rounds": 60, "grid": Jumped.usual_grid},
    "search": {"points": 256, "grid": Jumped.usual_grid},
}
#: Largest number of steps of a grid for such a solver.
_MOST_STEPS = 100


@with_gradients
def train_grid(
    method: str,
    field: Field | Target | str,
    steps: int,
    *,
    path: Path | str = "edm",
    solver: str | None = None,
    jump: float | str | None = None,
    statistics: Statistics | str | None = None,
    dim: int | Sequence[int] | None = None,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Any,
) -> Trained:
    """Train a grid for a solver of one evaluation per step, and measure its error on other starts.

    For a solver that jumps, the level to which it jumps is one of the grid's, and the first step asks nothing: its steps are
    the evaluations after it, from one on. Solvers in a chart of the data's Gaussian are trained too. Both begin from several
    grids, that of the solver as it was asked for among them.

    Args:
        method: ``"gits"``, ``"dmn"``, ``"ld3"`` or ``"search"``, the functions of these names.
        field: a target or its name, or a field with a path.
        steps: number of steps, a jump not counted.
        path: path of the target; a field has its own.
        solver: spec of the solver; by default that of the method's publication.
        jump: option ``jump`` of the solver, if its spec has none: ``auto``, or a level in the data's largest deviations.
        statistics: mean and covariance of the data for a solver that has to know them, or a kind of them, such as ``scale``, to
            which those of the field are reduced; by default the field's own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        seconds, stop: limit of time, and a function that ends the training if it returns True, for ld3 and search;
            ``stopped_by`` of the result says whether either did. The time counts the exact ends of all starts, those of the
            test too, and can't cut them short.
        seed: seed of the starts; those of training and of the test are separate streams.
        progress: called with every :class:`Step` of ld3 and search.
        options: further options of the function, such as ``points``, ``teacher`` or ``grid``.

    Returns:
        :class:`Trained`, with its ``grid``: the better one, on starts of their own, of the trained grid and of a named one,
        which is that at which ld3 begins, and for the others the better one of log_snr and karras; for solvers that know the
        data ``karras:rho=3`` after the level of the jump. ``errors.before`` is that of the named one; for solvers that know the
        data that of the solver as it was asked for.

    Raises:
        ArgumentError: for a wrong argument, or a solver with more than one evaluation per step.

    >>> found = train_grid("dmn", "ring8", 5)
    >>> len(found.grid), found.stopped_by
    (6, 'counts')
    >>> found = train_grid("ld3", "ring8", 1, solver="ipndm", jump="auto", points=64)
    >>> len(found.grid), found.nfe, found.errors.after < found.errors.before
    (3, 1, True)
    """
    if method not in METHODS:
        raise UnknownNameError("way to train a grid", method, METHODS)
    request = Request.of("train_grid", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    chosen, on = request.field, request.path
    recipe = solvers.table_solver(METHODS[method] if solver is None else solver)
    if jump is not None:
        if recipe.jump not in (None, jump):
            raise ArgumentError(f"jump={jump!r} and solver {recipe.spec!r} say two things: leave one of them out")
        recipe = replace(recipe, jump=jump)
    if recipe.stochastic:
        raise ArgumentError(f"solver {recipe.spec!r} draws noise: a grid is trained for a deterministic one, as by eta=0")
    if recipe.nfe_per_step != 1:
        raise ArgumentError(
            f"{method} lays a step for each evaluation; solver {recipe.spec!r} makes {recipe.nfe_per_step} a step"
        )
    if recipe.needs_statistics:
        return _informed(request, method, recipe, steps, statistics, options)
    if statistics is not None:
        raise ArgumentError(
            "statistics go with a solver that has to know the data: give jump=auto, or a chart of their Gaussian"
        )
    choice, test = choice_problem(request), test_problem(request)
    history, tell = told(progress)
    given: dict[str, Any] = {"solver": recipe.spec, **options}
    trained: dict[str, Any] = {"dim": dim, "seconds": request.limit, "seed": seed, "progress": tell, **given}
    if method == "gits":
        times = levels.gits(chosen, steps, dim=dim, seed=seed, **options)
    elif method == "dmn":
        times = levels.dmn(on, steps, **given)
    elif method == "ld3":
        times = levels.ld3(chosen, steps, **trained)
    else:
        times = levels.search(chosen, steps, **trained)
    names = (options.get("grid", _NAMED[0]),) if method == "ld3" else _NAMED
    named = {name: grids.get(name, on, steps) for name in names}
    name = min(named, key=lambda one: _error(choice, recipe, on, named[one]))
    if not _error(choice, recipe, on, times) <= _error(choice, recipe, on, named[name]):
        times = named[name]
    before, after = (_error(test, recipe, on, one) for one in (named[name], times))
    facts = request.facts(f"{recipe.spec} @ {name}", before, after)
    rho = torch.tensor([on.rho(t) for t in times.tolist()], dtype=torch.float64)
    grid = TrainedGrid(levels=rho, method=method, solver=recipe.spec, **facts.facts())
    return Trained(recipe, steps, grid, grid, times, history())


def _informed(
    request: Request, method: str, recipe: WritesTable, steps: int, statistics: Statistics | str | None, options: dict[str, Any]
) -> Trained:
    """The grid of a solver that knows the data."""
    if method not in _INFORMED or (method == "gits" and recipe.jump is None):
        raise ArgumentError(
            f"{method} lays no grid for {recipe.spec!r}: gits lays one for a solver that jumps, ld3 and search for each that "
            "knows the data"
        )
    wrong = next((key for key in options if key not in _INFORMED[method]), None)
    if wrong is not None:
        raise ArgumentError(f"{method} does not take the option {wrong!r} for a solver that knows the data")
    given = {**_INFORMED[method], **options}
    named, points = given["grid"], given["points"]
    check_count("steps", steps, 1, _MOST_STEPS)
    check_count("points", points, 1, 10**9)
    known = known_to(request, statistics, f"solver {recipe.spec!r}")
    asked = solvers.table_solver(informed(recipe, known))
    if (asked.solver if isinstance(asked, Jumped) else asked).lays_levels:
        raise ArgumentError(f"solver {recipe.spec!r} lays its own levels, so that no grid is to be trained for it")
    history, tell = told(request.progress)
    request = replace(request, progress=tell)
    seen: History | None = None
    free = InformedLevels(known, request.field, request.path, steps, asked)
    if method == "ld3":
        check_count("rounds", given["rounds"], 1)
        found = trained_levels(free, request, named, points, given["rounds"])
        values, seen = found.values, History(found.training, found.held_out, len(found.training) - 1)
    elif method == "search":
        problem = request.problem(points, "starts", differentiated=False)
        values = searched(lambda trial: free.error(trial, problem), begun(free, problem, named), request)
    else:
        times = levels.gits(
            request.field, steps, dim=request.shape, points=points, seed=request.seed, statistics=known,
            teacher=given["teacher"], discount=given["discount"],
        )  # fmt: skip
        values = to_shares(torch.tensor([request.path.rho(t) for t in times.tolist()], dtype=torch.float64))
    choice, test = choice_problem(request), test_problem(request)
    values = min((values, *begun(free, choice, named)), key=lambda one: _informed_error(choice, request, free.table(one)))
    before, after = (
        _informed_error(test, request, table) for table in (asked.tableau(request.path, named, steps), free.table(values))
    )
    facts = request.facts(f"{recipe.spec} @ {named}", before, after)
    chosen = free.runner(values)
    times = grids.explicit(free.times(values), request.path)
    rho = torch.tensor([request.path.rho(t) for t in times.tolist()], dtype=torch.float64)
    content = TrainedGrid(levels=rho, method=method, solver=chosen.spec, statistics=known, **facts.facts())
    return Trained(chosen, steps, content, content, times, history() if seen is None else seen)


@with_gradients
def train_decoupled(
    field: Field | Target | str,
    steps: int,
    *,
    path: Path | str = "edm",
    solver: str = "dpmpp:order=2",
    grid: str = "log_snr",
    dim: int | Sequence[int] | None = None,
    points: int = 512,
    rounds: int = 100,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """The table of :func:`diffode.learned.ld3_decoupled` with its errors and facts, which is saved as every trained table is.

    The arguments are those of :func:`train_grid`; a saved table runs as the solver ``bespoke:file=FILE``.
    """
    request = Request.of("train_grid", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    unit, test = request.field.scale, test_problem(request)
    history, tell = told(progress)
    found = levels.ld3_decoupled(
        request.field, steps, solver=solver, grid=grid, dim=dim, points=points, rounds=rounds, seconds=request.limit,
        seed=seed, progress=tell,
    ).scaled(1 / unit)  # fmt: skip
    origin = Stages.of(solvers.table_solver(solver).tableau(request.path, grid, steps)).scaled(1 / unit)
    facts = request.facts(f"{solver} @ {grid}", test.error(origin), test.error(found))
    return trained_table(Checkpoint(stages=found, scale=unit, **facts.facts()), history(), origin)


def told(progress: Progress | None) -> tuple[Callable[[], History], Progress]:
    """A history that is written while steps are told, and the function that is told of them."""
    steps: list[Step] = []

    def tell(step: Step) -> None:
        steps.append(step)
        if progress is not None:
            progress(step)

    def history() -> History:
        held = tuple(step.held_out for step in steps if step.held_out is not None)
        return History(tuple(step.error for step in steps), held, len(steps))

    return history, tell


def _error(problem: Problem, recipe: WritesTable, path: Path, times: Tensor) -> float:
    """Mean end-point error of a solver at some times, in units of the scale."""
    return problem.error(Stages.of(recipe.tableau(path, times)).scaled(1 / problem.unit))


def _informed_error(problem: Problem, request: Request, table: Tableau) -> float:
    """Mean end-point error of a table of a solver that knows the data, in units of the scale."""
    return error_of(ended(table, request.field, problem), problem)


def choice_problem(request: Request) -> Problem:
    """The starts on which what was trained is compared with what it began from, of which the better one is given."""
    return request.problem(_CHOICE_STARTS, "choice", differentiated=False)


def test_problem(request: Request) -> Problem:
    """The starts on which errors of grids, and of solvers on them, are measured."""
    return request.problem(_TEST_STARTS, "test", differentiated=False)
