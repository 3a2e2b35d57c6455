"""Training of grids for a field, with the facts that files keep: their errors, and what ended the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffode import grids, solvers
from diffode.errors import ArgumentError, UnknownNameError
from diffode.fields import Field
from diffode.grid_files import TrainedGrid
from diffode.learned.arguments import check_seed, field_on, path_of, row_shape
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.problems import problem_for
from diffode.learned.grids import levels
from diffode.learned.limit import Limit
from diffode.learned.tables.training import Trained
from diffode.paths import Path
from diffode.randomness import keyed
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.tableau.stages import Stages
from diffode.targets import Target

#: Methods of training a grid, each with its default solver.
METHODS = {"gits": "ddim", "dmn": "ab:order=3,chart=data", "ld3": "dpmpp:order=2", "search": "dpmpp:order=2"}
#: Number of starts on which the error of a grid is measured.
_TEST_STARTS = 512


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
    progress: Callable[[int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Any,
) -> TrainedGrid:
    """Train a grid for a solver of one evaluation per step, and measure its error on other starts.

    Args:
        method: ``"gits"``, ``"dmn"``, ``"ld3"`` or ``"search"``, the functions of these names.
        field: a target or its name, or a field with a path.
        steps: number of steps.
        path: path of the target; a field has its own.
        solver: spec of the solver; by default that of the method's publication.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        seconds, stop: limit of time, and a function that ends the training if it returns True, for ld3 and search;
            ``stopped_by`` of the grid says whether either did.
        seed: seed of the starts; those of training and of the test are separate streams.
        progress: called as ``progress(step, error)`` by ld3 and search.
        options: further options of the function, such as ``points``, ``teacher`` or ``grid``.

    Returns:
        The grid with its mean end-point error in units of the scale.

    Raises:
        ArgumentError: for a wrong argument, or a solver with more than one evaluation per step.

    >>> found = train_grid("dmn", "ring8", 5)
    >>> len(found.times), found.stopped_by
    (6, 'counts')
    """
    if method not in METHODS:
        raise UnknownNameError("way to train a grid", method, METHODS)
    limit = Limit(seconds, stop)
    chosen, on, name = field_on(field, path)
    check_seed(seed)
    recipe = solvers.get(solver or METHODS[method])
    if recipe.nfe_per_step != 1:
        raise ArgumentError(
            f"{method} lays a step for each evaluation; solver {recipe.spec!r} makes {recipe.nfe_per_step} a step"
        )
    if method == "gits":
        times = levels.gits(chosen, steps, dim=dim, seed=seed, **options)
    elif method == "dmn":
        times = levels.dmn(on, steps, solver=recipe.spec, **options)
    elif method == "ld3":
        report = None if progress is None else lambda step, _, held: progress(step, held)
        times = levels.ld3(chosen, steps, solver=recipe.spec, dim=dim, seconds=limit, seed=seed, progress=report, **options)
    else:
        times = levels.search(
            chosen, steps, solver=recipe.spec, dim=dim, seconds=limit, seed=seed, progress=progress, **options
        )
    seconds = limit.elapsed
    error = errors_on(chosen, recipe.spec, [times], seed, dim)[0]
    rho = torch.tensor([on.rho(t) for t in times.tolist()], dtype=torch.float64)
    return TrainedGrid(rho, on.spec, method, recipe.spec, name, error, seconds, seed, limit.stopped_by)


def train_decoupled(
    field: Field | Target | str,
    steps: int,
    *,
    path: Path | str = "edm",
    solver: str = "dpmpp:order=2",
    grid: str = "log_snr",
    dim: int | Sequence[int] | None = None,
    points: int = 512,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Callable[[int, float, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """The table of :func:`diffode.learned.ld3_decoupled` with its errors and facts, which is saved as every trained table is.

    The arguments are those of :func:`train_grid`; a saved table runs as the solver ``bespoke:file=FILE``.
    """
    limit = Limit(seconds, stop)
    chosen, on, name = field_on(field, path)
    unit = chosen.scale
    training: list[float] = []
    held: list[float] = []

    def seen(step: int, error: float, held_out: float) -> None:
        training.append(error)
        held.append(held_out)
        if progress is not None:
            progress(step, error, held_out)

    found = levels.ld3_decoupled(
        chosen, steps, solver=solver, grid=grid, dim=dim, points=points, seconds=limit, seed=seed, progress=seen
    ).scaled(1 / unit)
    seconds = limit.elapsed
    origin = Stages.of(solvers.table_solver(solver).tableau(on, grid, steps)).scaled(1 / unit)
    test = _test_problem(chosen, on, seed, dim)
    checkpoint = Checkpoint(
        found, unit, on.spec, name, f"{solver} @ {grid}", test.error(found), test.error(origin), seconds, seed, limit.stopped_by
    )
    return Trained(checkpoint, origin, tuple(training), tuple(held), limit.stopped_by)


def errors_on(
    field: Field, solver: str, on: Sequence[grids.Times], seed: int, dim: int | Sequence[int] | None = None, steps: int = 0
) -> list[float]:
    """Mean end-point errors of a solver on grids, in units of the scale, on test starts; named grids have ``steps`` steps."""
    path, recipe = path_of(field, "the error of a grid"), solvers.table_solver(solver)
    test = _test_problem(field, path, seed, dim)
    given = [recipe.tableau(path, grid, steps if isinstance(grid, str) else None) for grid in on]
    return [test.error(Stages.of(table).scaled(1 / test.unit)) for table in given]


def _test_problem(field: Field, path: Path, seed: int, dim: int | Sequence[int] | None) -> Problem:
    starts = keyed(seed, "train_grid", "test")
    return problem_for(field, path, row_shape(field, dim), _TEST_STARTS, starts, differentiated=False)
