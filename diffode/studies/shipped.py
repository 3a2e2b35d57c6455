"""Curves of suites that ship with the package, so that an answer needs no run: ``diffode recommend --schedule`` reads them.

``tools/make_shipped.py`` makes the files. A file says which runs it holds, by a hash of the suite's cells, and the versions and
hardware that made it: curves of another suite than the one that ships are not read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from diffode.errors import FileFormatError
from diffode.input_files import believed, read_bytes, read_json
from diffode.output_files import write_whole
from diffode.studies.ranking import Curve
from diffode.studies.suite import Suite, load_suite

#: Folder of the curves that ship, a file for each suite.
FOLDER = FilePath(__file__).parent / "shipped"
#: First words of a file.
SCHEMA = "diffode-curves-1"
#: Largest size of a file, in bytes.
_LARGEST = 2**22
#: Digits of an error that are kept, far more than its starts give it.
_DIGITS = 5


@dataclass(frozen=True)
class Shipped:
    """Curves of a suite, and what made them.

    Attributes:
        curves: the curves, in the order of the suite.
        made_with: versions and hardware.
        points: number of starts of each run.
    """

    curves: tuple[Curve, ...]
    made_with: str
    points: int


def shipped_curves(suite: str) -> Shipped | None:
    """The curves that ship of a suite; None if there are none of this name.

    Raises:
        FileFormatError: if the file is damaged, or holds the runs of another suite than the one that ships.

    >>> shipped_curves("quick") is None
    True
    """
    # A name with a folder in it is a suite of the user's own, as is one that no suite of the package has.
    file = FOLDER / f"{suite}.json"
    return _read(file) if file.parent == FOLDER and file.is_file() else None


@functools.cache
def _read(file: FilePath) -> Shipped:
    remedy = "reinstall diffode, or run diffode bench " + file.stem
    with believed(file, "shipped curves", remedy):
        content = read_json(read_bytes(file, "shipped curves", _LARGEST))
        if content["schema"] != SCHEMA or content["cells"] != digest_of(load_suite(file.stem)):
            raise FileFormatError(f"shipped curves {file} are not those of the suite {file.stem!r}: {remedy}")
        made = tuple(_curve(content["names"], row) for row in content["curves"])
        return Shipped(made, str(content["made_with"]), int(content["points"]))


def _curve(names: Sequence[str], row: Sequence[Any]) -> Curve:
    target, path, grid, solver = (names[i] for i in row[:4])
    nfe, errors, budgets = (tuple(values) for values in row[4:7])
    return Curve(target, path, grid, solver, nfe, errors, float(row[7]), budgets)


def write_shipped(suite: Suite, curves: Sequence[Curve], made_with: str, file: FilePath) -> None:
    """Write curves as a file that ships; errors keep five digits."""
    names: dict[str, int] = {}
    rows = []
    for c in curves:
        spelled = [names.setdefault(text, len(names)) for text in (c.target, c.path, c.grid, c.solver)]
        rows.append([*spelled, c.nfe, [_short(e) for e in c.error], c.budgets, _short(c.floor)])
    content = {
        "schema": SCHEMA, "suite": suite.name, "cells": digest_of(suite), "made_with": made_with,
        "points": suite.cells[0].points, "names": list(names),
    }  # fmt: skip
    head = json.dumps(content, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    write_whole(file, f'{head},\n "curves": [\n{lines}\n ]\n}}\n'.encode(), "shipped curves")


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")


def digest_of(suite: Suite) -> str:
    """A hash of a suite's cells."""
    return hashlib.sha256("\n".join(sorted(map(repr, suite.cells))).encode()).hexdigest()
