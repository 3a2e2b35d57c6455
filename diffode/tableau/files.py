"""Tableau files: safetensors with a JSON description, validated before use. Never pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from diffode import paths
from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.specs import parse_spec
from diffode.tableau.rows import Row
from diffode.tensor_files import read_tensors, text, write_tensors

if TYPE_CHECKING:
    from diffode.tableau.table import Tableau

#: Schema of a file with one table.
_SCHEMA = "diffode-tableau-1"
#: Largest number of rows of a table in a file; in memory a row takes about ten times its size in the file.
_MOST_ROWS = 100_000
#: Largest number of coefficients of one kind in a file; in memory a coefficient takes about ten times its size in the file.
_MOST_ENTRIES = 1_000_000

#: The kinds of coefficients.
_KINDS = ("states", "evaluations", "draws")


Table = TypeVar("Table")


def write(table: Tableau, file: str | FilePath) -> None:
    """Write a table, sparse coefficients as index and value tensors, the rest as metadata; ArgumentError if it is too large."""
    if table.path is not None and parse_spec(table.path.spec)[0] not in paths.names():
        raise ArgumentError(
            f"a table on path {table.path.spec!r} can't be saved, since no name rebuilds that path; register one that does"
        )
    found = {name: [(i, j, v) for i, row in enumerate(table.rows) for j, v in getattr(row, name).items()] for name in _KINDS}
    if len(table.rows) > _MOST_ROWS or any(len(entries) > _MOST_ENTRIES for entries in found.values()):
        raise ArgumentError(
            f"a table of {len(table.rows):,} rows can't be saved: "
            f"at most {_MOST_ROWS:,} rows and {_MOST_ENTRIES:,} coefficients of a kind can be read again"
        )
    if table.draws > _most_draws(len(table.rows), len(found["draws"]), len(table.spans)):
        raise ArgumentError(
            f"a table of {len(table.rows):,} rows can't be saved with {table.draws:,} draws: number them without gaps"
        )
    tensors = {"times": table.times, "outputs": torch.tensor(table.outputs, dtype=torch.int64)}
    for name, entries in found.items():
        index = torch.tensor([(i, j) for i, j, _ in entries], dtype=torch.int64).reshape(-1, 2)
        tensors[f"{name}_index"] = index
        tensors[f"{name}_value"] = torch.tensor([v for _, _, v in entries], dtype=torch.float64)
    if table.spans:
        tensors["spans"] = torch.tensor(table.spans, dtype=torch.float64)
    description = {
        "schema": _SCHEMA,
        "prediction": table.prediction,
        "solver": table.solver,
        "path": table.path.spec if table.path else None,
    }
    write_tensors(file, tensors, description)


def read(file: str | FilePath, make: Callable[..., Table]) -> Table:
    """The table that ``make`` makes of a file's contents; FileFormatError for a file that holds none."""
    description, tensors = read_tensors(file, _SCHEMA)
    with believed(file, "a valid tableau"):
        times, outputs = tensors["times"], tensors["outputs"]
        count = times.numel()
        if (
            times.dtype != torch.float64
            or times.ndim != 1
            or not 2 <= count <= _MOST_ROWS
            or bool((times < 0).any())
            or outputs.dtype != torch.int64
            or outputs.ndim != 1
        ):
            raise ValueError(f"times must be 2 to {_MOST_ROWS} float64 numbers >= 0, outputs int64")
        if not 2 <= len(outputs) <= count or bool(((outputs < 0) | (outputs >= count)).any()):
            raise ValueError("outputs must name at least two rows of the table")
        steps = times[outputs].diff()
        if not bool((steps < 0).all() or (steps > 0).all()):
            raise ValueError("the times of its outputs must fall, or rise")
        spans = tensors.get("spans", torch.zeros(0, 2, dtype=torch.float64))
        if (
            spans.dtype != torch.float64
            or spans.ndim != 2
            or spans.shape[1] != 2
            or len(spans) > _MOST_ENTRIES
            or not bool(((spans[:, 0] < spans[:, 1]) & torch.isfinite(spans).all(1)).all())
        ):
            raise ValueError("spans must be (draws, 2) increasing intervals")
        most = {"states": count, "evaluations": count, "draws": _most_draws(count, len(tensors["draws_value"]), len(spans))}
        entries = {name: _entries(tensors, name, count, most[name]) for name in _KINDS}
        rows = tuple(
            Row(t, entries["states"][i], entries["evaluations"][i], entries["draws"][i]) for i, t in enumerate(times.tolist())
        )
        if rows[0].states or rows[0].evaluations or rows[0].draws:
            raise ValueError("its first row is the start and has no coefficients")
        path = None if description["path"] is None else paths.registry.registered(text(description, "path"))
        prediction, solver = text(description, "prediction"), text(description, "solver")
        # ``make`` refuses a prediction that is no view.
        return make(
            prediction,
            rows,
            tuple(outputs.tolist()),
            path,
            solver,
            tuple((float(a), float(b)) for a, b in spans.tolist()),
        )


def _most_draws(rows: int, coefficients: int, spans: int) -> int:
    """Largest number of draws, since a run makes all up to the last: a small file must not ask for a huge run."""
    return max(2 * rows + coefficients, spans)


def _entries(tensors: Mapping[str, Tensor], name: str, count: int, most: int) -> list[dict[int, float]]:
    """The coefficients of one kind in each of ``count`` rows; their second indices are below ``most``."""
    index, value = tensors[f"{name}_index"], tensors[f"{name}_value"]
    if (
        value.ndim != 1
        or index.shape != (len(value), 2)
        or index.dtype != torch.int64
        or value.dtype != torch.float64
        or len(value) > _MOST_ENTRIES
    ):
        raise ValueError(f"{name} must be (n, 2) int64 indices with n float64 values, n <= {_MOST_ENTRIES}")
    found: list[dict[int, float]] = [{} for _ in range(count)]
    for (i, j), v in zip(index.tolist(), value.tolist(), strict=True):
        if not (0 <= i < count and 0 <= j < most):
            raise ValueError(f"{name} index ({i}, {j}) is outside the table")
        if j in found[i]:
            raise ValueError(f"{name} index ({i}, {j}) is there twice")
        found[i][j] = v
    return found
