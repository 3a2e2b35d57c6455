"""Files of spectral samplers: safetensors with a JSON description, validated before use. Never pickle."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from diffode.errors import ArgumentError
from diffode.input_files import believed
from diffode.solvers.trained.spectral import Spectral
from diffode.tensor_files import finite, float64, read_tensors, write_tensors

#: Schema of a file with one spectral sampler for each number of evaluations.
_SCHEMA = "diffode-spectral-samplers-1"
#: Largest number of evaluations of a sampler in a file.
_MOST_EVALUATIONS = 1000


def save_spectral(tables: Mapping[int, Spectral], facts: Mapping[str, Any], file: str | FilePath) -> None:
    """Write spectral samplers by number of evaluations; ``facts`` say how they were trained.

    ArgumentError for none, for different ranges, or if the file can't be written.
    """
    ranges = {(table.last, table.most) for table in tables.values()}
    if len(ranges) != 1:
        raise ArgumentError("tables of one file must be at least one, trained for the same ranges of levels and directions")
    ((last, most),) = ranges
    tensors = {f"nfe_{nfe}": table.coefficients.contiguous() for nfe, table in tables.items()}
    write_tensors(file, tensors, {**facts, "schema": _SCHEMA, "last": last, "most": most})


def load_spectral(file: str | FilePath) -> dict[int, Spectral]:
    """Read what :func:`save_spectral` wrote; FileFormatError for any other file, ArgumentError if it can't be read."""
    description, tensors = read_tensors(file, _SCHEMA)
    with believed(file, "a file of spectral samplers"):
        low, high = description["last"]
        if isinstance(low, bool) or isinstance(high, bool) or not 0 < low < high < math.inf:
            raise ValueError("last must be a range of positive numbers")
        most = finite(description, "most")
        if not 1 < most <= 1e9:
            raise ValueError("most must be a number from 1 to 1e9")
        tables = {}
        for name in tensors:
            if not re.fullmatch(r"nfe_[1-9][0-9]{0,3}", name) or int(name.removeprefix("nfe_")) > _MOST_EVALUATIONS:
                raise ValueError(f"unknown tensor {name[:60]!r}; they are called nfe_1, nfe_2, ...")
            nfe = int(name.removeprefix("nfe_"))
            # A shape that is none of a table's is refused where it is made.
            tables[nfe] = Spectral(nfe, (float(low), float(high)), most, float64(tensors, name, 2))
        if not tables:
            raise ValueError("it holds no table")
        return tables
