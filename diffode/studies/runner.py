"""Runs of suites: cells in parallel processes, each result stored by the process that made it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import torch
from joblib import Parallel, delayed

from diffode import metrics, solvers
from diffode.errors import ArgumentError, StoreError, WorkerError
from diffode.extensions import import_extension
from diffode.solvers.direct import DirectSolver
from diffode.studies.cell import Cell, Result
from diffode.studies.computation import computed
from diffode.studies.problem import size_of
from diffode.studies.store import Store
from diffode.studies.suite import Suite
from diffode.studies.versions import cell_keys, environment

Keyed = tuple[str, Cell]


@dataclass(frozen=True)
class Summary:
    """The numbers of a suite's cells: in total, found stored, computed now, and failed among the computed.

    ``damaged`` counts stored rows whose checksum did not fit and that were computed again. ``senseless`` lists cells that can't
    succeed, with the reasons; they are neither run nor stored.
    """

    total: int
    stored: int
    computed: int
    failed: int
    seconds: float
    damaged: int = 0
    senseless: tuple[tuple[Cell, str], ...] = ()


def run_suite(
    suite: Suite,
    store_file: str | FilePath,
    *,
    jobs: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Compute the cells of a suite that the store does not hold yet.

    Args:
        suite: the cells.
        store_file: the SQLite file; made if missing.
        jobs: worker processes; the number of cores by default. Each uses one thread.
        force: compute stored cells again.
        progress: called as ``progress(done, to_do)`` whenever a group of cells is finished, and once at the start.

    A killed run loses at most one unfinished cell per worker; the next run goes on from there. Failed cells are stored with
    their reason and tried again. Raises ArgumentError for wrong arguments, StoreError for a store that can't be used, and
    WorkerError if a worker process is killed.
    """
    began = time.perf_counter()
    workers = jobs if jobs is not None else (os.cpu_count() or 1)
    if workers < 1:
        raise ArgumentError(f"jobs must be >= 1, got {workers}")
    senseless = tuple((cell, reason) for cell in suite.cells if (reason := reason_against(cell)))
    if len(senseless) == len(suite.cells):
        raise ArgumentError(f"no run of suite {suite.name!r} makes sense: {senseless[0][1]}")
    cells = keyed_cells(suite)
    with Store(store_file) as store:
        done = set() if force else store.done(cells)
        todo = [(key, cell) for key, cell in cells if key not in done]
        damaged = len(store.damaged)
        if todo and not store.writable:
            raise StoreError(
                f"store {store_file} can't be written, and {len(todo):,} runs are to be stored; choose a writable place with "
                "--store or --output"
            )
    groups = _groups(todo)
    finished = failed = 0
    if progress:
        progress(0, len(todo))
    for count, bad in _run_groups(groups, suite, FilePath(store_file), min(workers, max(1, len(groups)))):
        finished += count
        failed += bad
        if progress:
            progress(finished, len(todo))
    return Summary(len(cells), len(cells) - len(todo), finished, failed, time.perf_counter() - began, damaged, senseless)


def keyed_cells(suite: Suite) -> list[Keyed]:
    """The suite's cells that make sense, with the keys under which their results are stored."""
    cells = sensible_cells(suite)
    return list(zip(cell_keys(cells), cells, strict=True))


def sensible_cells(suite: Suite) -> list[Cell]:
    """The suite's cells without those that can't succeed, see :func:`reason_against`."""
    return [cell for cell in suite.cells if reason_against(cell) is None]


def _groups(cells: Iterable[Keyed]) -> list[list[Keyed]]:
    """Groups of cells that share starts and references; the costliest come first, so that none is left for the end."""
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
    return _run_in_processes(groups, suite, store_file, workers)


def _run_in_processes(
    groups: Sequence[Sequence[Keyed]], suite: Suite, store_file: FilePath, workers: int
) -> Iterator[tuple[int, int]]:
    try:
        yield from Parallel(n_jobs=workers, return_as="generator_unordered")(
            delayed(_run_group)(group, suite.imports, store_file) for group in groups
        )
    except BrokenProcessPool as error:
        raise WorkerError(
            f"one of {workers} worker processes was killed, by the system when memory runs out or by hand; what was stored "
            f"stays, and the same command goes on from there: run it again with fewer jobs (--jobs {max(1, workers // 2)})"
        ) from error


def _run_group(group: Sequence[Keyed], imports: Sequence[str], store_file: FilePath) -> tuple[int, int]:
    """Compute and store some cells; returns their number, and the number of those that failed."""
    # Each process has one thread, since two processes with two threads each slow each other down on two cores.
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


def reason_against(cell: Cell) -> str | None:
    """The reason why a cell can't succeed, as its solver and metrics make no sense in a study; None if they do."""
    return _reason(cell.solver, cell.metrics)


@functools.lru_cache(maxsize=4096)
def _reason(solver: str, chosen: tuple[str, ...]) -> str | None:
    recipe = solvers.get(solver)
    if isinstance(recipe, DirectSolver) and not recipe.takes_budget:
        return (
            f"a study's axis is the number of evaluations, and {solver} chooses its own steps; hold its tolerances against "
            "errors with diffode.solve and solution.nfe"
        )
    if not recipe.stochastic:
        return None
    for metric in chosen:
        if metrics.needs_of(metric).flow:
            return (
                f"{metric} compares with the exact flow, which {solver} does not follow since it draws noise; give solvers "
                "that draw noise a [[study]] of their own, with metrics of samples: moments, mode_weights, ..."
            )
    return None


def compute(key: str, cell: Cell) -> Result:
    """Run and measure one cell; any error but StoreError becomes a failed result with a reason."""
    try:
        return replace(computed(key, cell), environment=environment())
    except StoreError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Result(key, cell, "failed", reason, threads=torch.get_num_threads(), environment=environment())
