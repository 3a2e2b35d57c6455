"""Training of grids for a field, with the facts that files keep: their errors, and what ended the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode import grids, solvers
from diffode.errors import ArgumentError, UnknownNameError
from diffode.fields import Field
from diffode.grid_files import TrainedGrid
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.grids import levels
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request, with_gradients
from diffode.learned.tables.training import trained_table
from diffode.learned.trained import History, Trained
from diffode.paths import Path
from diffode.solvers import WritesTable
from diffode.solvers.trained.checkpoints import Checkpoint
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


@with_gradients
def train_grid(
    method: str,
    field: Field | Target | str,
    steps: int,
    *,
    path: Path | str = "edm",
    solver: str | None = None,
    dim: int | Sequence[int] | None = None,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Any,
) -> Trained:
    """Train a grid for a solver of one evaluation per step, and measure its error on other starts.

    Args:
        method: ``"gits"``, ``"dmn"``, ``"ld3"`` or ``"search"``, the functions of these names.
        field: a target or its name, or a field with a path.
        steps: number of steps.
        path: path of the target; a field has its own.
        solver: spec of the solver; by default that of the method's publication.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        seconds, stop: limit of time, and a function that ends the training if it returns True, for ld3 and search;
            ``stopped_by`` of the result says whether either did. The time counts the exact ends of all starts, those of the
            test too, and can't cut them short.
        seed: seed of the starts; those of training and of the test are separate streams.
        progress: called with every :class:`Step` of ld3 and search.
        options: further options of the function, such as ``points``, ``teacher`` or ``grid``.

    Returns:
        :class:`Trained`, with its ``grid``: the better one, on starts of their own, of the trained grid and of a named one,
        which is that at which ld3 begins, and for the others the better one of log_snr and karras. ``errors.before`` is that
        of the named one.

    Raises:
        ArgumentError: for a wrong argument, or a solver with more than one evaluation per step.

    >>> found = train_grid("dmn", "ring8", 5)
    >>> len(found.grid), found.stopped_by
    (6, 'counts')
    """
    if method not in METHODS:
        raise UnknownNameError("way to train a grid", method, METHODS)
    request = Request.of("train_grid", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    chosen, on = request.field, request.path
    recipe = solvers.table_solver(METHODS[method] if solver is None else solver)
    if recipe.nfe_per_step != 1:
        raise ArgumentError(
            f"{method} lays a step for each evaluation; solver {recipe.spec!r} makes {recipe.nfe_per_step} a step"
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


def choice_problem(request: Request) -> Problem:
    """The starts on which what was trained is compared with what it began from, of which the better one is given."""
    return request.problem(_CHOICE_STARTS, "choice", differentiated=False)


def test_problem(request: Request) -> Problem:
    """The starts on which errors of grids, and of solvers on them, are measured."""
    return request.problem(_TEST_STARTS, "test", differentiated=False)
