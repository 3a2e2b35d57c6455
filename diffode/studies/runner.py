"""Running a suite: cells in parallel processes, each result stored by the process that made it."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Literal

import torch
from joblib import Parallel, delayed

from diffode import grids, metrics, solvers
from diffode.errors import ArgumentError, NumericalError, StoreError
from diffode.extensions import import_extension
from diffode.metrics import Measurement, Outcome
from diffode.randomness import keyed_normal
from diffode.references import Reference, reference
from diffode.solvers.direct import DirectSolver
from diffode.solvers.run import evaluations
from diffode.studies.problem import field_of, path_of, shape_of, size_of, tolerance_of
from diffode.studies.store import Result, Store
from diffode.studies.suite import Cell, Suite
from diffode.studies.versions import cell_key, environment
from diffode.tableau import Tableau

Keyed = tuple[str, Cell]


@dataclass(frozen=True)
class Summary:
    """What a run of a suite did: cells in the suite, found stored, computed now, and failed among the computed."""

    total: int
    stored: int
    computed: int
    failed: int
    seconds: float


def run_suite(
    suite: Suite,
    store_file: str | FilePath,
    *,
    jobs: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Compute what the store does not hold yet.

    Args:
        suite: the cells.
        store_file: the SQLite file; made if missing.
        jobs: worker processes; the number of cores by default. Each uses one thread.
        force: compute stored cells again.
        progress: called as ``progress(done, to_do)`` whenever a group of cells is finished, and once at the start.

    A killed run loses at most the cell that each worker has in hand; the next run goes on from there. Failed cells are
    stored with their reason and tried again.
    """
    began = time.perf_counter()
    workers = jobs if jobs is not None else (os.cpu_count() or 1)
    if workers < 1:
        raise ArgumentError(f"jobs must be >= 1, got {workers}")
    cells = keyed_cells(suite)
    with Store(store_file) as store:
        done = set() if force else store.done()
    todo = [(key, cell) for key, cell in cells if key not in done]
    groups = _groups(todo)
    finished = failed = 0
    if progress:
        progress(0, len(todo))
    for count, bad in _run_groups(groups, suite, FilePath(store_file), min(workers, max(1, len(groups)))):
        finished += count
        failed += bad
        if progress:
            progress(finished, len(todo))
    return Summary(len(cells), len(cells) - len(todo), finished, failed, time.perf_counter() - began)


def keyed_cells(suite: Suite) -> list[Keyed]:
    """The suite's cells with the keys under which their results are stored."""
    return [(cell_key(cell), cell) for cell in suite.cells]


def _groups(cells: Iterable[Keyed]) -> list[list[Keyed]]:
    """Cells that share starts and references stay together; the costliest groups go first, so that none is left at the end."""
    groups: dict[object, list[Keyed]] = {}
    for key, cell in cells:
        shared = (cell.target, cell.path, cell.seed, cell.grid, cell.points, cell.dtype, cell.tolerance)
        groups.setdefault(shared, []).append((key, cell))
    return sorted(groups.values(), key=_cost, reverse=True)


def _cost(group: Sequence[Keyed]) -> float:
    return size_of(group[0][1].target) * group[0][1].points * (500 + sum(cell.nfe for _, cell in group))


def _run_groups(
    groups: Sequence[Sequence[Keyed]], suite: Suite, store_file: FilePath, workers: int
) -> Iterable[tuple[int, int]]:
    if workers == 1:
        return (_run_group(group, suite.imports, store_file) for group in groups)
    results: Iterable[tuple[int, int]] = Parallel(n_jobs=workers, return_as="generator_unordered")(
        delayed(_run_group)(group, suite.imports, store_file) for group in groups
    )
    return results


def _run_group(group: Sequence[Keyed], imports: Sequence[str], store_file: FilePath) -> tuple[int, int]:
    """Compute and store some cells; returns how many, and how many of them failed."""
    # One thread a process: two threads in each of two processes on two cores get in each other's way.
    torch.set_num_threads(1)
    for module in imports:
        import_extension(module)
    failed = 0
    with Store(store_file) as store:
        for key, cell in group:
            result = compute(key, cell)
            store.put(result)
            failed += result.status != "ok"
    return len(group), failed


def compute(key: str, cell: Cell) -> Result:
    """Run and measure one cell. Whatever goes wrong becomes a failed result with a reason."""
    try:
        return _computed(key, cell)
    except StoreError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Result(key, cell, "failed", reason, threads=torch.get_num_threads(), environment=environment())


def _computed(key: str, cell: Cell) -> Result:
    field = field_of(cell.target, cell.path)
    path, recipe = path_of(cell.target, cell.path), solvers.get(cell.solver)
    table = None
    first, last = path.t_max, path.t_min
    grid = None
    if isinstance(recipe, DirectSolver) and recipe.takes_steps:
        grid = cell.grid
        first, last = grids.get(grid, path, 1).tolist()
    if not isinstance(recipe, DirectSolver):
        budget = evaluations(field, cell.nfe)
        table = _tableau(cell.solver, recipe.content(), cell.target, cell.path, cell.grid, budget)
        first, last = table.rows[0].time, table.rows[table.outputs[-1]].time
    start = _start(cell.target, cell.path, cell.seed, cell.points, first).to(getattr(torch, cell.dtype))
    keep: Literal["all", "last"] = "all" if any(m.startswith("trajectory") for m in cell.metrics) else "last"
    began = time.perf_counter()
    if table is None:
        solution = solvers.solve(field, start, solver=recipe, grid=grid, nfe=cell.nfe, keep=keep, generator=cell.seed)
    else:
        solution = solvers.run_tableau(table, field, start, keep=keep, generator=cell.seed)
    seconds = time.perf_counter() - began
    tolerance = tolerance_of(cell.target, cell.path, cell.tolerance)
    own = _reference(cell.target, cell.path, cell.seed, cell.points, first, last, tolerance)
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
        environment=environment(),
        measurements=tuple(_measured(metric, outcome) for metric in cell.metrics),
    )


def _measured(metric: str, outcome: Outcome) -> Measurement:
    """A metric's measurement under its spec, so that two with different options stay apart; non-finite is a failure."""
    found = replace(metrics.measure(metric, outcome), name=metric)
    if not (math.isfinite(found.value) and math.isfinite(found.floor)):
        raise NumericalError(f"metric {metric!r} gave {found.value!r} with floor {found.floor!r}")
    return found


@functools.lru_cache(maxsize=4096)
def _tableau(solver: str, content: str, target: str, path: str, grid: str, nfe: int) -> Tableau:
    """Kept by the content of what the solver reads too: a file may change under the same name."""
    field = field_of(target, path)
    return solvers.get(solver).for_field(field.scale, math.prod(shape_of(field))).within(path_of(target, path), grid, nfe)


@functools.lru_cache(maxsize=64)
def _start(target: str, path: str, seed: int, points: int, first: float) -> torch.Tensor:
    """sigma z at the first time, z fixed by (seed, target): every solver starts from the same points."""
    shape = shape_of(field_of(target, path))
    return path_of(target, path).sigma(first) * keyed_normal((points, *shape), seed=seed, key=target)


@functools.lru_cache(maxsize=64)
def _reference(target: str, path: str, seed: int, points: int, first: float, last: float, tolerance: float) -> Reference:
    return reference(field_of(target, path), _start(target, path, seed, points, first), first, last, tolerance)
