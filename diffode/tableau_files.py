"""Tableau files: safetensors with a JSON description, validated before use. Never pickle."""

from __future__ import annotations

from pathlib import Path as FilePath

import torch

from diffode import paths
from diffode.errors import ArgumentError, FileFormatError
from diffode.specs import parse_spec
from diffode.tableau import Row, Tableau
from diffode.tensor_files import read_tensors, write_tensors

_SCHEMA = "diffode-tableau-1"


def write(table: Tableau, file: str | FilePath) -> None:
    """Write a table: sparse coefficients as index and value tensors, the rest as metadata."""
    if table.path is not None and parse_spec(table.path.spec)[0] not in paths.names():
        raise ArgumentError(
            f"a table on path {table.path.spec!r} can't be saved, since no name rebuilds that path; register one that does"
        )
    tensors = {"times": table.times, "outputs": torch.tensor(table.outputs, dtype=torch.int64)}
    for name in ("states", "evaluations", "draws"):
        entries = [(i, j, v) for i, row in enumerate(table.rows) for j, v in getattr(row, name).items()]
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


def read(file: str | FilePath) -> Tableau:
    """Read a table; raises FileFormatError for anything that is not one."""
    description, tensors = read_tensors(file, _SCHEMA)
    try:
        times, outputs = tensors["times"], tensors["outputs"]
        count = times.numel()
        if (
            times.dtype != torch.float64
            or times.ndim != 1
            or count < 2
            or bool((times < 0).any())
            or outputs.dtype != torch.int64
        ):
            raise ValueError("times must be at least two float64 numbers >= 0, outputs int64")
        if not all(0 <= i < count for i in outputs.tolist()) or len(outputs) < 2:
            raise ValueError("outputs must name at least two rows of the table")
        entries: dict[str, list[dict[int, float]]] = {}
        for name in ("states", "evaluations", "draws"):
            index, value = tensors[f"{name}_index"], tensors[f"{name}_value"]
            if index.shape != (value.numel(), 2) or index.dtype != torch.int64 or value.dtype != torch.float64:
                raise ValueError(f"{name} must be (n, 2) int64 indices with n float64 values")
            entries[name] = [{} for _ in range(count)]
            for (i, j), v in zip(index.tolist(), value.tolist(), strict=True):
                if not (0 <= i < count and 0 <= j < max(count, 2**20)):
                    raise ValueError(f"{name} index ({i}, {j}) is outside the table")
                entries[name][i][j] = v
        rows = tuple(
            Row(t, entries["states"][i], entries["evaluations"][i], entries["draws"][i]) for i, t in enumerate(times.tolist())
        )
        spans = tensors.get("spans", torch.zeros(0, 2, dtype=torch.float64))
        if spans.ndim != 2 or spans.shape[1] != 2 or not bool((spans[:, 0] < spans[:, 1]).all()):
            raise ValueError("spans must be (draws, 2) increasing intervals")
        path = description["path"]
        return Tableau(
            description["prediction"],
            rows,
            tuple(outputs.tolist()),
            None if path is None else paths.registry.registered(path),
            str(description["solver"]),
            tuple((float(a), float(b)) for a, b in spans.tolist()),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{file} is not a valid tableau: {error}") from error
