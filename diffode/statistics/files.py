"""Files of statistics: safetensors with a JSON description, checked before use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any, TypeVar

from torch import Tensor

from diffode.input_files import believed, shown
from diffode.tensor_files import float64, read_tensors, text, write_tensors

#: Schema of a file of statistics.
SCHEMA = "diffode-statistics-1"
#: The tensors of each kind, with the number of their axes.
_TENSORS: dict[str, dict[str, int]] = {
    kind: {"mean": 1, "variances": 1, **({"matrix": 2} if kind in ("full", "low_rank") else {})}
    for kind in ("scale", "diagonal", "low_rank", "full", "cosine", "fourier")
}
#: Largest number of axes of a row.
_MOST_AXES = 8

Made = TypeVar("Made")


def write(file: str | FilePath, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """Write tensors and their description."""
    write_tensors(file, tensors, {"schema": SCHEMA, **told})


def read(file: str | FilePath, make: Callable[[dict[str, Tensor], dict[str, Any]], Made]) -> Made:
    """What ``make`` makes of a file's contents; FileFormatError for a file that holds no statistics."""
    description, tensors = read_tensors(file, SCHEMA)
    with believed(file, "statistics of data"):
        return make(*checked(description, tensors))


def checked(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description, if they are of statistics; else ValueError."""
    kind, shape = text(description, "kind"), description["shape"]
    gaussian, rows = description["gaussian"], description["rows"]
    if kind not in _TENSORS:
        raise ValueError(f"kind must be one of {', '.join(_TENSORS)}, got {shown(kind)}")
    if type(gaussian) is not bool or type(rows) is not int or rows < 0:
        raise ValueError("gaussian must be true or false, and rows a number >= 0")
    if shape is not None and not (
        isinstance(shape, list) and 1 <= len(shape) <= _MOST_AXES and all(type(n) is int and n >= 1 for n in shape)
    ):
        raise ValueError(f"shape must be the sizes of a row, got {shown(shape)}")
    if set(tensors) != set(_TENSORS[kind]):
        raise ValueError(f"kind {kind!r} has the tensors {', '.join(_TENSORS[kind])}")
    found = {name: float64(tensors, name, ndim) for name, ndim in _TENSORS[kind].items()}
    told = {"kind": kind, "shape": shape, "gaussian": gaussian, "source": text(description, "source"), "rows": rows}
    return found, told
