"""Runs of suites: groups of cells go to an engine, and this process stores the rows that come back."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from diffode import engines, metrics, solvers
from diffode.engines import Engine, Work
from diffode.errors import ArgumentError, StoreError, WorkerError
from diffode.fields.problem_text import parts_of
from diffode.solvers.direct import DirectSolver
from diffode.studies.cell import Cell
from diffode.studies.cell_keys import cell_keys
from diffode.studies.problem import field_of, size_of, untold
from diffode.studies.rows import Keyed, plain_group, results_of
from diffode.studies.store import Result, Store
from diffode.studies.suite import Suite

#: Largest number of cells of a group.
_MOST_CELLS = 128
#: Largest cost of a group in the arbitrary units of ``size_of``, some ten seconds.
_MOST_COST = 1e11


@dataclass(frozen=True)
class Summary:
    """The numbers of a suite's cells: in total, found stored, computed now, and failed among the computed.

    ``damaged`` counts stored rows whose checksum did not fit and that were computed again. ``senseless`` lists cells that can't
    succeed, with the reasons; they are neither run nor stored. ``cells`` are the others with their keys, and ``results`` their
    results as they were read, if nothing was to be computed, else None.
    """

    total: int
    stored: int
    computed: int
    failed: int
    seconds: float
    damaged: int = 0
    senseless: tuple[tuple[Cell, str], ...] = ()
    cells: tuple[Keyed, ...] = field(default=(), repr=False, compare=False)
    results: tuple[Result, ...] | None = field(default=None, repr=False, compare=False)


def run_suite(
    suite: Suite,
    store_file: str | FilePath,
    *,
    engine: str | Engine | None = None,
    jobs: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Compute the cells of a suite that the store does not hold yet.

    Args:
        suite: the cells.
        store_file: the SQLite file; made if missing. This process alone writes it.
        engine: what computes, see :mod:`diffode.engines`: a spec such as ``"local"`` or ``"dask://host:8786"``, or a
            callable; processes on this machine by default.
        jobs: worker processes, one thread each, for engines that begin them here; the number of cores by default.
        force: compute stored cells again.
        progress: called as ``progress(done, to_do)`` whenever a group of cells is stored, and once at the start.

    A killed run loses the groups that its workers had in hand, of about a hundred cells each, fewer if they are costly; the
    next run goes on from there. Failed cells are stored with their reason and tried again. Raises ArgumentError for wrong
    arguments, StoreError for a store that can't be used, and WorkerError if workers are lost.
    """
    began = time.perf_counter()
    check_metrics(suite)
    chosen = engines.get(engine, jobs=jobs)
    senseless = tuple((cell, reason) for cell in suite.cells if (reason := reason_against(cell)))
    if len(senseless) == len(suite.cells):
        raise ArgumentError(f"no run of suite {suite.name!r} makes sense: {senseless[0][1]}")
    cells = keyed_cells(suite)
    with Store(store_file) as store:
        held = [] if force else store.get(cells)
        done = {result.key for result in held if result.status == "ok"}
        todo = [(key, cell) for key, cell in cells if key not in done]
        damaged = len(store.damaged)
        if todo and not store.writable:
            raise StoreError(
                f"store {store_file} can't be written, and {len(todo):,} runs are to be stored; choose a writable place with "
                "--store or --output"
            )
        finished = failed = 0
        if progress:
            progress(0, len(todo))
        groups = groups_of(todo)
        try:
            for number, answer in engines.results(chosen, _work(suite, chosen, todo), list(map(plain_group, groups))):
                found = results_of(groups[number], answer)
                store.put_all(found)
                finished += len(found)
                failed += sum(result.status != "ok" for result in found)
                if progress:
                    progress(finished, len(todo))
        except WorkerError as error:
            known = len(cells) - len(todo) + finished
            raise WorkerError(f"{error}; {known:,} of {len(cells):,} runs are stored") from error
    numbers = (len(cells), len(cells) - len(todo), finished, failed, time.perf_counter() - began, damaged)
    return Summary(*numbers, senseless, tuple(cells), None if todo else tuple(held))


def check_metrics(suite: Suite) -> None:
    """Raise ArgumentError if a metric can't measure on a target, or has a wrong option, before anything runs."""
    for metric, points in dict.fromkeys((metric, cell.points) for cell in suite.cells for metric in cell.metrics):
        metrics.check_options(metric)
        most = metrics.needs_of(metric).most_points
        if most is not None and points > most:
            raise ArgumentError(f"suite {suite.name!r}: metric {metric!r} takes up to {most:,} points, got points = {points:,}")
    asked = dict.fromkeys((cell.target, cell.path, metric) for cell in suite.cells for metric in cell.metrics)
    for target, path, metric in asked:
        if metrics.needs_of(metric).fits is None:
            continue
        try:
            metrics.check_fits(metric, field_of(target, path))
        except ArgumentError as error:
            raise ArgumentError(
                f"suite {suite.name!r}: metric {metric!r} can't measure on target {target!r}: {error}. Give each a [[study]] "
                "with what fits it"
            ) from error


def _work(suite: Suite, engine: Engine, cells: Sequence[Keyed]) -> Work:
    """The work of a suite on an engine; workers elsewhere get the user's code, and prove that they have what the keys say."""
    if getattr(engine, "begins_workers", False):
        return Work("diffode.studies.rows:compute_group", suite.imports)
    specs = {text for _, c in cells for text in (*filter(None, parts_of(c.target)), c.path, c.grid, c.solver, *c.metrics)}
    return Work("diffode.studies.rows:compute_proven_group", suite.imports).elsewhere(sorted(specs))


def keyed_cells(suite: Suite) -> list[Keyed]:
    """The suite's cells that make sense, with the keys under which their results are stored."""
    cells = sensible_cells(suite)
    return list(zip(cell_keys(cells), cells, strict=True))


def sensible_cells(suite: Suite) -> list[Cell]:
    """The suite's cells without those that can't succeed, see :func:`reason_against`."""
    return [cell for cell in suite.cells if reason_against(cell) is None]


def groups_of(cells: Iterable[Keyed]) -> list[list[Keyed]]:
    """Groups of about a hundred cells, each for one worker, the costliest first, so that none is left for the end.

    Cells that share starts and references stay together where there are not too many, and fewer costly cells make a group.
    """
    shared: dict[object, list[Keyed]] = {}
    for key, cell in cells:
        start = (untold(cell.target), cell.path, cell.seed, cell.grid, cell.points, cell.dtype, cell.tolerance)
        shared.setdefault(start, []).append((key, cell))
    groups: list[list[Keyed]] = []
    open_for: dict[tuple[str, str], list[Keyed]] = {}
    for own in shared.values():
        problem = (untold(own[0][1].target), own[0][1].path)
        parts = max(math.ceil(len(own) / _MOST_CELLS), min(len(own), math.ceil(_cost(own) / _MOST_COST)))
        for part in range(parts):
            piece = own[part * len(own) // parts : (part + 1) * len(own) // parts]
            group = open_for.get(problem)
            if group is None or len(group) + len(piece) > _MOST_CELLS or _cost(group) + _cost(piece) > _MOST_COST:
                group = open_for[problem] = []
                groups.append(group)
            group += piece
    return sorted(groups, key=_cost, reverse=True)


def _cost(group: Sequence[Keyed]) -> float:
    return size_of(group[0][1].target) * group[0][1].points * (500 + sum(cell.nfe for _, cell in group))


def reason_against(cell: Cell) -> str | None:
    """The reason why a cell can't succeed, as its solver and metrics make no sense in a study; None if they do."""
    source = parts_of(cell.target)[1]
    if source is not None and solvers.get(cell.solver).draws_noise(cell.nfe):
        return f"{cell.solver} draws normal noise, and the noise of source {source} is no normal one"
    return _reason(cell.solver, cell.metrics, cell.nfe)


@functools.lru_cache(maxsize=4096)
def _reason(solver: str, chosen: tuple[str, ...], nfe: int) -> str | None:
    recipe = solvers.get(solver)
    if isinstance(recipe, DirectSolver) and not recipe.takes_budget:
        return (
            f"a study's axis is the number of evaluations, and {solver} chooses its own steps; hold its tolerances against "
            "errors with diffode.solve and solution.nfe"
        )
    if not recipe.draws_noise(nfe):
        return None
    for metric in chosen:
        if metrics.needs_of(metric).flow:
            return (
                f"{metric} compares with the exact flow, which {solver} does not follow since it draws noise; give solvers "
                "that draw noise a [[study]] of their own, with metrics of samples: moments, mode_weights, ..."
            )
    return None
