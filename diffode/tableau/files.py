"""Tableau files: safetensors with a JSON description, validated before use. Never pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from diffode import paths
from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.specs import parse_spec
from diffode.statistics import Statistics
from diffode.statistics.files import checked
from diffode.tableau.rows import Number, Row, along_directions
from diffode.tensor_files import read_tensors, schema_of, text, write_tensors

if TYPE_CHECKING:
    from diffode.tableau.table import Tableau

#: Schema of a file with one table.
_SCHEMA = "diffode-tableau-1"
#: Schema of a file with one table that has coefficients for directions, and the statistics of the data.
_DIRECTED_SCHEMA = "diffode-tableau-2"
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
    table.one_for_all("save")
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
    plain = {name: [entry for entry in entries if not along_directions(entry[2])] for name, entries in found.items()}
    for name, entries in plain.items():
        index = torch.tensor([(i, j) for i, j, _ in entries], dtype=torch.int64).reshape(-1, 2)
        tensors[f"{name}_index"] = index
        tensors[f"{name}_value"] = torch.tensor([v for _, _, v in entries], dtype=torch.float64)
    if table.spans:
        tensors["spans"] = torch.tensor(table.spans, dtype=torch.float64)
    description: dict[str, Any] = {
        "schema": _SCHEMA,
        "prediction": table.prediction,
        "solver": table.solver,
        "path": table.path.spec if table.path else None,
    }
    if table.statistics is not None and table.directed:
        directed = {name: [entry for entry in entries if along_directions(entry[2])] for name, entries in found.items()}
        directed["mean"] = [(i, 0, torch.as_tensor(row.mean)) for i, row in enumerate(table.rows)]
        more, known = _directions(directed, table.statistics)
        tensors, description = tensors | more, description | {"schema": _DIRECTED_SCHEMA, "statistics": known}
    write_tensors(file, tensors, description)


def read(file: str | FilePath, make: Callable[..., Table]) -> Table:
    """The table that ``make`` makes of a file's contents; FileFormatError for a file that holds none."""
    with_directions = schema_of(file) == _DIRECTED_SCHEMA
    description, tensors = read_tensors(file, _DIRECTED_SCHEMA if with_directions else _SCHEMA)
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
        statistics: Statistics | None = None
        means: list[Number] = [0.0] * count
        if with_directions:
            statistics = _statistics(tensors, description["statistics"])
            means = _with_directions(tensors, entries, most, count, statistics.basis.count)
        rows = tuple(
            Row(t, entries["states"][i], entries["evaluations"][i], entries["draws"][i], means[i])
            for i, t in enumerate(times.tolist())
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
            statistics,
        )


def _directions(
    directed: Mapping[str, list[tuple[int, int, Number]]], statistics: Statistics
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The coefficients for directions as tensors (n, E) with their indices (n, 2), and the statistics."""
    parts, told = statistics.parts()
    tensors = {f"statistics_{name}": part for name, part in parts.items()}
    count = statistics.basis.count
    for name, entries in directed.items():
        tensors[f"{name}_along_index"] = torch.tensor([(i, j) for i, j, _ in entries], dtype=torch.int64).reshape(-1, 2)
        rows = [torch.as_tensor(v, dtype=torch.float64).reshape(1, -1).expand(1, count) for _, _, v in entries]
        tensors[f"{name}_along"] = torch.cat(rows) if rows else torch.zeros(0, count, dtype=torch.float64)
    return tensors, told


def _statistics(tensors: Mapping[str, Tensor], told: object) -> Statistics:
    """The statistics in the file of a table; ValueError or ArgumentError if they are none."""
    if not isinstance(told, dict):
        raise ValueError("it has coefficients for directions, but no statistics")
    prefix = "statistics_"
    parts = {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
    return Statistics.of_parts(*checked(told, parts))


def _with_directions(
    tensors: Mapping[str, Tensor], entries: dict[str, list[dict[int, Number]]], most: Mapping[str, int], count: int, width: int
) -> list[Number]:
    """Put the coefficients for directions among the others; the answer is the coefficient of the mean in each row."""
    means: list[Number] = [0.0] * count
    for name in (*_KINDS, "mean"):
        index, value = tensors[f"{name}_along_index"], tensors[f"{name}_along"]
        if (
            value.dtype != torch.float64
            or value.ndim != 2
            or value.shape[1] != width
            or index.dtype != torch.int64
            or index.shape != (len(value), 2)
        ):
            raise ValueError(f"{name}_along must be (n, {width}) float64, with (n, 2) int64 indices")
        for (i, j), v in zip(index.tolist(), value, strict=True):
            if not (0 <= i < count and 0 <= j < most.get(name, 1)):
                raise ValueError(f"{name} index ({i}, {j}) is outside the table")
            if name == "mean":
                means[i] = v[None].clone() if bool(v.any()) else 0.0
            elif j in entries[name][i]:
                raise ValueError(f"{name} index ({i}, {j}) is there twice")
            else:
                entries[name][i][j] = v[None].clone()
    return means


def _most_draws(rows: int, coefficients: int, spans: int) -> int:
    """Largest number of draws, since a run makes all up to the last: a small file must not ask for a huge run."""
    return max(2 * rows + coefficients, spans)


def _entries(tensors: Mapping[str, Tensor], name: str, count: int, most: int) -> list[dict[int, Number]]:
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
    found: list[dict[int, Number]] = [{} for _ in range(count)]
    for (i, j), v in zip(index.tolist(), value.tolist(), strict=True):
        if not (0 <= i < count and 0 <= j < most):
            raise ValueError(f"{name} index ({i}, {j}) is outside the table")
        if j in found[i]:
            raise ValueError(f"{name} index ({i}, {j}) is there twice")
        found[i][j] = v
    return found
