"""Stored results as a table for other programs, CSV or Parquet: a line for each measurement, or for each cell."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

from diffode.errors import ArgumentError
from diffode.extensions import library
from diffode.output_files import make_folder, whole_file, writable
from diffode.studies.cell import Result

#: What a line stands for.
Line = Literal["measurement", "cell"]
#: The form of a file.
Form = Literal["csv", "parquet"]

#: Columns of every line, with their types in Parquet and their meanings.
COLUMNS = {
    "target": ("string", "target, or the text of a field"),
    "path": ("string", "path"),
    "grid": ("string", "grid"),
    "solver": ("string", "solver"),
    "nfe_budget": ("int64", "budget of network calls"),
    "nfe": ("int64", "network calls that the field counted"),
    "seed": ("int64", "seed of starts and noise"),
    "points": ("int64", "number of starts"),
    "dtype": ("string", "dtype of the states"),
    "status": ("string", "ok, or failed"),
    "reason": ("string", "reason of a failure"),
    "steps": ("int64", "steps of the grid"),
    "seconds": ("float64", "wall time of the run"),
    "scale": ("float64", "root mean variance of the target"),
    "threads": ("int64", "threads of the process"),
}
#: Columns of a line for a measurement.
MEASURED = {
    "metric": ("string", "metric; empty for a failed run"),
    "value": ("float64", "the error"),
    "floor": ("float64", "value for an exact sampler, or error of the reference"),
    "low": ("float64", "lower end of a 95 % interval, where sampling makes one"),
    "high": ("float64", "upper end of it"),
}
#: Columns at the end of a line of an exported file, which a report's table has not.
STORED = {
    "tolerance": ("float64", "tolerance of the reference"),
    "key": ("string", "key in the store: equal keys mean equal numbers"),
    "environment": ("string", "versions and hardware, as JSON"),
}
#: Number of lines that are made at a time.
_CHUNK = 50_000


def export(results: Iterable[Result], file: str | FilePath, *, line: Line = "measurement", form: Form | None = None) -> int:
    """Write results as CSV or Parquet; returns the number of lines.

    The columns are ``COLUMNS``, then those of ``MEASURED`` or, with a line for each cell, for each metric its value under its
    name and its floor under its name with ``.floor``, then ``STORED``. What is missing is empty. Files are replaced whole.

    Args:
        results: results of a store.
        file: the file; its folder is made if it is missing.
        line: ``"measurement"`` or ``"cell"``. A failed result has one line in either.
        form: ``"csv"`` or ``"parquet"``; by default the latter if the file's name ends so, and else CSV.

    Raises:
        ArgumentError: if an argument is none of these, the file can't be written, or Parquet needs pyarrow and it is missing.
    """
    place = FilePath(file)
    form = form or ("parquet" if place.suffix.lower() == ".parquet" else "csv")
    for name, value, known_values in (("line", line, get_args(Line)), ("form", form, get_args(Form))):
        if value not in known_values:
            raise ArgumentError(f"{name} must be one of {', '.join(known_values)}, got {value!r}")
    check_export(place, form)
    known = list(results)
    names = list(dict.fromkeys(name for r in known for name in dict.fromkeys(m.name for m in r.measurements)))
    types = {name: kind for name, (kind, _) in (COLUMNS | (MEASURED if line == "measurement" else {})).items()}
    if line == "cell":
        of_metrics = [column for name in names for column in (name, f"{name}.floor")]
        for column in of_metrics:
            if column in types or column in STORED or of_metrics.count(column) > 1:
                raise ArgumentError(f"two columns would be called {column!r}, one of them a metric's: use line='measurement'")
        types |= {column: "float64" for name in names for column in (name, f"{name}.floor")}
    types |= {name: kind for name, (kind, _) in STORED.items()}
    lines = _by_measurement(known) if line == "measurement" else _by_cell(known, names)
    make_folder(place, "export")
    return (_write_parquet if form == "parquet" else _write_csv)(types, lines, place)


def check_export(file: str | FilePath, form: Form) -> None:
    """Raise ArgumentError unless a file of a form can be written: its place can, and what Parquet needs is installed."""
    if form == "parquet":
        library("pyarrow.parquet", "'diffode[parquet]'")
    writable(file, "export", make_folders=True)


def write_csv(results: Iterable[Result], file: FilePath) -> None:
    """Write a report's table: a row for each measurement, and one with the reason for each failed result."""
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as handle:
        writer = csv.writer(handle)
        writer.writerow([*COLUMNS, *MEASURED])
        writer.writerows(row for r in results for row in _measured(r))


def _told(r: Result) -> list[Any]:
    c = r.cell
    return [
        *(c.target, c.path, c.grid, c.solver, c.nfe, r.nfe_counted, c.seed, c.points, c.dtype),
        *(r.status, r.reason, r.steps, r.seconds, r.scale, r.threads),
    ]


def _stored(r: Result) -> list[Any]:
    return [r.cell.tolerance, r.key, json.dumps(r.environment or {})]


def _measured(r: Result) -> Iterator[list[Any]]:
    row = _told(r)
    for m in r.measurements:
        yield [*row, m.name, m.value, m.floor, m.low, m.high]
    if not r.measurements:
        yield [*row, *[None] * len(MEASURED)]


def _by_measurement(results: Iterable[Result]) -> Iterator[list[Any]]:
    for r in results:
        stored = _stored(r)
        for row in _measured(r):
            yield [*row, *stored]


def _by_cell(results: Iterable[Result], names: Sequence[str]) -> Iterator[list[Any]]:
    for r in results:
        found = {m.name: (m.value, m.floor) for m in r.measurements}
        yield [*_told(r), *itertools.chain(*(found.get(name, (None, None)) for name in names)), *_stored(r)]


def _write_csv(types: dict[str, str], lines: Iterable[Sequence[Any]], file: FilePath) -> int:
    count = 0
    with whole_file(file, "export") as handle:
        handle.write(_as_text([list(types)]))
        for chunk in _chunks(lines):
            handle.write(_as_text(chunk))
            count += len(chunk)
    return count


def _chunks(lines: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    """The lines in lists that fit into memory."""
    rest = iter(lines)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        yield chunk


def _as_text(rows: Iterable[Sequence[Any]]) -> bytes:
    with io.StringIO(newline="") as text:
        csv.writer(text).writerows(rows)
        return text.getvalue().encode("utf-8", "backslashreplace")


def _write_parquet(types: dict[str, str], lines: Iterable[Sequence[Any]], file: FilePath) -> int:
    arrow = library("pyarrow", "'diffode[parquet]'")
    parquet = library("pyarrow.parquet", "'diffode[parquet]'")
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in types.items()])
    count = 0
    with whole_file(file, "export") as handle, parquet.ParquetWriter(handle, schema) as writer:
        for chunk in _chunks(lines):
            columns = [
                arrow.array(_fitting(name, kind, values), schema.field(name).type)
                for (name, kind), values in zip(types.items(), zip(*chunk, strict=True), strict=True)
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            count += len(chunk)
    return count


def _fitting(name: str, kind: str, values: Sequence[Any]) -> Sequence[Any]:
    """A column's values as Parquet can hold them: texts of whole characters, as in CSV, and integers of 64 bits."""
    if kind == "string":
        return [v if v is None else str(v).encode("utf-8", "backslashreplace").decode() for v in values]
    if kind == "int64":
        large = next((v for v in values if v is not None and not -(2**63) <= v < 2**63), None)
        if large is not None:
            raise ArgumentError(f"{name} {large} does not fit the 64 bits of a Parquet column; export as CSV")
    return values
