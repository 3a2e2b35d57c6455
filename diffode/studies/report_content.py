"""What a report is made of, told without what draws it: the names of its files, and whether one is up to date."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Sequence
from pathlib import Path as FilePath

from diffode.studies.report_folder import FIGURES, PAGE, TABLE, check_folder, is_current
from diffode.studies.store import Result
from diffode.studies.suite import Suite

#: Kinds of pictures of samples.
KINDS = ("clouds", "images")
#: Largest number of characters of a target in a file's name; systems allow 255 in all.
_LONGEST_NAME = 120
#: Libraries that draw.
_LIBRARIES = ("matplotlib",)
#: Endings of the files of this folder that make a page.
_KINDS_OF_CODE = ("py", "html", "css", "js")


def check_report(suite: Suite, folder: str | FilePath) -> None:
    """Try whether the report of a suite can be written to a folder, before its cells are computed.

    Raises:
        ArgumentError: if the folder can't be written, or a file is in the way that is no report's.
    """
    names = figure_names(cell.target for cell in suite.cells).values()
    pictures = [f"{FIGURES}/{kind}-{name}.png" for name in names for kind in KINDS]
    check_folder(FilePath(folder), [PAGE, TABLE, *pictures])


def current_report(suite: Suite, results: Sequence[Result], folder: str | FilePath, *, command: str) -> FilePath | None:
    """The page of a report that was made of these results, by this command and this code; None if the folder holds none."""
    place = FilePath(folder)
    return place / PAGE if results and is_current(place, made_of(suite, results, command)) else None


def made_of(suite: Suite, results: Sequence[Result], command: str) -> str:
    """A hash of all that a report shows and of the code that makes it.

    Pictures of samples come from the code of targets, flows and solvers, which the keys of the results cover.
    """
    digest = hashlib.sha256(_code().encode())
    for part in (suite.name, suite.summary, suite.imports, suite.cells[0].metrics, command):
        digest.update(f"{part!r}\n".encode())
    environments: dict[int, str] = {}
    for r in results:
        # Thousands of results share an environment.
        told, c = environments.setdefault(id(r.environment), repr(r.environment)), r.cell
        digest.update(
            f"{(c.target, c.path, c.grid, c.solver, c.nfe, c.seed, c.points, c.dtype)}".encode(errors="backslashreplace")
        )
        row = (r.key, r.status, r.reason, r.nfe_counted, r.steps, r.seconds, r.scale, r.threads, told)
        measured = [(m.name, m.value, m.floor, m.low, m.high) for m in r.measurements]
        digest.update(f"{row} {measured}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """The code of this folder, which makes reports, and the versions of what draws."""
    here = FilePath(__file__).parent
    own = (
        file.read_text(encoding="utf-8") for file in sorted(f for kind in _KINDS_OF_CODE for f in here.glob(f"[!.]*.{kind}"))
    )
    return "\n".join([*own, *(f"{library} {importlib.metadata.version(library)}" for library in _LIBRARIES)])


def figure_names(names: Iterable[str]) -> dict[str, str]:
    """Each target as a part of file names: plain, short, and different even where systems ignore case."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for target in dict.fromkeys(names):
        plain = re.sub(r"[^A-Za-z0-9_.=-]+", "_", target)
        if len(plain) > _LONGEST_NAME or plain.lower() in taken:
            plain = f"{plain[: _LONGEST_NAME - 9]}-{hashlib.sha256(target.encode()).hexdigest()[:8]}"
        taken.add(plain.lower())
        found[target] = plain
    return found
