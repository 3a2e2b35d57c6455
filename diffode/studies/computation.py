"""The computation of one cell: its field, table, start, run, reference and measurements."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace
from typing import Literal

import torch

from diffode import grids, metrics, solvers
from diffode.bridges import Bridge
from diffode.errors import NumericalError
from diffode.flows import Reference, reference
from diffode.metrics import Measurement, Outcome
from diffode.randomness import keyed
from diffode.solvers import kept_tables
from diffode.solvers.direct import DirectSolver
from diffode.solvers.run_options import evaluations
from diffode.solvers.solver import WritesTable
from diffode.studies.cell import Cell, Result
from diffode.studies.problem import field_of, path_of, shape_of, starts, tolerance_of, untold
from diffode.tableau import Tableau


def computed(key: str, cell: Cell) -> Result:
    """The result of running and measuring one cell; errors of any part are raised."""
    field = field_of(cell.target, cell.path)
    path, recipe = path_of(cell.target, cell.path), solvers.get(cell.solver)
    table = None
    first, last = path.t_max, path.t_min
    grid = None
    if isinstance(recipe, DirectSolver) and recipe.takes_steps:
        grid = cell.grid
        ends = grids.get(grid, path, 1 if grids.is_named(grid) else None).tolist()
        first, last = ends[0], ends[-1]
    if isinstance(recipe, WritesTable):
        budget = evaluations(field, cell.nfe)
        content = recipe.content() + grids.content(cell.grid)
        table = _tableau(cell.solver, content, cell.target, cell.path, cell.grid, budget)
        first, last = table.ends
    start = _start(cell.target, cell.path, cell.seed, cell.points, first).to(getattr(torch, cell.dtype))
    keep: Literal["all", "last"] = "all" if any(metrics.needs_of(metric).states for metric in cell.metrics) else "last"
    began = time.perf_counter()
    if table is None:
        solution = solvers.solve(field, start, solver=recipe, grid=grid, nfe=cell.nfe, keep=keep, generator=cell.seed)
    else:
        solution = solvers.run_tableau(table, field, start, keep=keep, generator=cell.seed)
    seconds = time.perf_counter() - began
    tolerance = tolerance_of(cell.target, cell.path, cell.tolerance)

    def own() -> Reference:
        return _reference(untold(cell.target), cell.path, cell.seed, cell.points, first, last, tolerance)

    # Metrics of laws need no reference, which of a network and thousands of points takes longest of all.
    outcome = Outcome(field, start, solution, cell.seed, tolerance, own)
    return Result(
        key,
        cell,
        "ok",
        nfe_counted=solution.nfe,
        steps=len(solution.times) - 1,
        seconds=seconds,
        scale=field.scale,
        threads=torch.get_num_threads(),
        measurements=tuple(_measured(metric, outcome) for metric in cell.metrics),
    )


def _measured(metric: str, outcome: Outcome) -> Measurement:
    """A metric's measurement, named by its spec so that specs with other options differ; NumericalError if not finite."""
    found = replace(metrics.measure(metric, outcome), name=metric)
    if not (math.isfinite(found.value) and math.isfinite(found.floor)):
        raise NumericalError(f"metric {metric!r} gave {found.value!r} with floor {found.floor!r}")
    return found


@functools.lru_cache(maxsize=4096)
def _tableau(solver: str, content: str, target: str, path: str, grid: str, nfe: int) -> Tableau:
    """A table, kept by the ``content`` of the files that solver and grid read too, which may change under the same name."""
    field = field_of(target, path)
    recipe = solvers.table_solver(solvers.for_run(solver, field, math.prod(shape_of(field))))
    on = path_of(target, path)
    # Most tables do not depend on the target, and are found among those of the targets before.
    return kept_tables.kept(recipe, on, grid, ("nfe", nfe), lambda: recipe.within(on, grid, nfe))


@functools.lru_cache(maxsize=64)
def _start(target: str, path: str, seed: int, points: int, first: float) -> torch.Tensor:
    """Starts at the first time that seed and target fix; a bridge starts from draws of its law there."""
    field = field_of(target, path)
    if isinstance(field, Bridge):
        return field.marginal(points, first, generator=keyed(seed, target))
    return starts(target, path, seed, points, first)


@functools.lru_cache(maxsize=64)
def _reference(target: str, path: str, seed: int, points: int, first: float, last: float, tolerance: float) -> Reference:
    return reference(field_of(target, path), _start(target, path, seed, points, first), first, last, tolerance)
