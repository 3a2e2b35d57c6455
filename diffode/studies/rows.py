"""The work of a study on a worker: a group of cells in, their rows out, both as plain data that any engine can send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from diffode.errors import DiffodeError, WorkerError
from diffode.metrics import Measurement
from diffode.studies.cell import Cell, Result
from diffode.studies.cell_keys import cell_keys, environment
from diffode.studies.computation import computed

Keyed = tuple[str, Cell]
#: Number of values of a row: key, status, reason, counts, times and measurements.
_ROW = 9


def compute(key: str, cell: Cell) -> Result:
    """Run and measure one cell; any error becomes a failed result with a reason."""
    try:
        return replace(computed(key, cell), environment=environment())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Result(key, cell, "failed", reason, threads=torch.get_num_threads(), environment=environment())


def plain_group(cells: Iterable[Keyed]) -> list[list[Any]]:
    """Cells with their keys as plain data."""
    return [
        [key, c.target, c.path, c.seed, c.grid, c.solver, c.nfe, c.points, c.dtype, list(c.metrics), c.tolerance]
        for key, c in cells
    ]


def compute_group(group: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The rows of the cells of a group, and the environment that they were computed in, as plain data."""
    return _rows(_cells(group))


def compute_proven_group(group: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """:func:`compute_group`, after a proof that this process has the code, parameters and files that the keys stand for.

    Raises WorkerError if it has others.
    """
    cells = _cells(group)
    try:
        own = list(cell_keys(cell for _, cell in cells))
    except DiffodeError as error:
        raise WorkerError(
            f"this worker lacks what the study needs: {error}; put your own code into a file or a module for --import"
        ) from error
    for (key, cell), found in zip(cells, own, strict=True):
        if found != key:
            raise WorkerError(
                f"this worker has other code, parameters, kernels or files for {cell.solver} on {cell.target} than the study: "
                "install the same diffode (and Numba) and the same libraries that extend it on all machines, and start the "
                "workers again"
            )
    return _rows(cells)


def results_of(cells: Sequence[Keyed], answer: Mapping[str, Any]) -> list[Result]:
    """The results of a group's cells from what a worker answered."""
    try:
        described, rows = dict(answer["environment"]), [tuple(row) for row in answer["rows"]]
        if len(rows) != len(cells) or not all(len(row) == _ROW for row in rows):
            raise ValueError("it holds other rows")
    except (TypeError, ValueError, KeyError) as error:
        raise WorkerError(f"an engine returned no rows of results: {type(error).__name__}: {error}") from error
    found = []
    for (key, cell), row in zip(cells, rows, strict=True):
        own, status, reason, nfe_counted, steps, seconds, scale, threads, measured = row
        if own != key:
            raise WorkerError(f"an engine returned the row of {own!r} as that of {key!r}")
        measurements = tuple(Measurement(*values) for values in measured)
        outcome = (status, reason, nfe_counted, steps, seconds, scale, threads)
        found.append(Result(key, cell, *outcome, environment=described, measurements=measurements))
    return found


def _cells(group: Sequence[Sequence[Any]]) -> list[Keyed]:
    made = []
    for key, target, path, seed, grid, solver, nfe, points, dtype, chosen, tolerance in group:
        made.append((key, Cell(target, path, seed, grid, solver, nfe, points, dtype, tuple(chosen), tolerance)))
    return made


def _rows(cells: Iterable[Keyed]) -> dict[str, Any]:
    rows = []
    for key, cell in cells:
        r = compute(key, cell)
        measured = [[m.name, float(m.value), float(m.floor), m.low, m.high] for m in r.measurements]
        rows.append([key, r.status, r.reason, r.nfe_counted, r.steps, r.seconds, r.scale, r.threads, measured])
    return {"environment": environment(), "rows": rows}
