"""Signals in files: ``.npy`` arrays and ``.csv`` tables of numbers, checked before use."""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from diffode.array_files import read_array
from diffode.errors import ArgumentError, FileFormatError
from diffode.file_names import place_of
from diffode.input_files import read_bytes, shown

Array = np.ndarray[Any, Any]

#: Largest size of a table, in bytes.
_LARGEST = 2**30
#: What stands between two numbers of a line.
_BETWEEN = re.compile(r"\s*[,;\t]\s*|\s+")


def read_signal(file: str | FilePath) -> tuple[Array, Array | None]:
    """The samples (L,) of a signal, and their times (L,) if the file gives them.

    An array (L,), or a table of one column, holds samples; an array (L, 2), or a table of two columns, times and samples. A
    table may begin with a line of names; numbers are separated by commas, semicolons or blanks.

    Raises:
        ArgumentError: if there is no such file, it can't be read, or has another ending or shape.
        FileFormatError: if it is damaged, or holds anything but finite numbers; the message names the line.
    """
    place = place_of(file, "SIGNAL")
    name = f"signal {str(file)!r}"
    ending = place.suffix.lower()
    if ending not in (".npy", ".csv", ".txt", ".tsv"):
        raise ArgumentError(f"{name} must be a .npy or .csv file, got the ending {ending!r}")
    found = read_array(place, name) if ending == ".npy" else _table(place, name)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.size == 0:
        raise ArgumentError(f"{name} is empty; it must hold two samples or more")
    if found.ndim == 1:
        return found, None
    if found.ndim == 2 and found.shape[1] == 2:
        return found[:, 1], found[:, 0]
    raise ArgumentError(
        f"{name} must hold samples (L,) or times and samples (L, 2), got shape {found.shape}; give one channel at a time"
    )


def _table(place: FilePath, name: str) -> Array:
    try:
        lines = read_bytes(place, name, _LARGEST).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{name} is no table of numbers: it is not a text in UTF-8 ({error.reason})") from None
    rows: list[list[float]] = []
    names = False
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        parts = _BETWEEN.split(text)
        try:
            row = [float(part) for part in parts]
        except ValueError:
            if not rows and not names and not any(map(_is_number, parts)):
                # The names of the columns, once. A line with a number in it is one of data that is wrong.
                names = True
                continue
            raise FileFormatError(f"{name}, line {number}: expected numbers, got {shown(text)}") from None
        if rows and len(row) != len(rows[0]):
            raise FileFormatError(f"{name}, line {number}: expected {len(rows[0])} numbers as before, got {len(row)}")
        if not np.isfinite(row).all():
            raise FileFormatError(
                f"{name}, line {number}: numbers must be finite, got {shown(text)}; leave out what is missing"
            )
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
