"""Rows that are kept: those of docs/verdicts, and those of a run that is not at its end.

The rows of a library lie in a file of their own while they are judged, so that a run that was killed, or a claim whose trial
raises, loses no other row; when all of its claims were judged they take the place of its former rows at once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verdicts.row import Claim, Row, judge

_LISTS = ("wrong", "interval", "steps", "errors")


def rows_of(kept: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows from JSON."""
    return [Row(**{key: tuple(v) if key in _LISTS and v is not None else v for key, v in row.items()}) for row in kept]


def write_rows(file: Path, versions: dict[str, str], rows: list[Row]) -> None:
    """The rows as JSON, one a line. A kill while it writes leaves the former file."""
    lines = ",\n".join(json.dumps(row.json()) for row in rows)
    beside = file.with_suffix(".new")
    beside.write_text(f'{{"versions": {json.dumps(versions)},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    beside.replace(file)


@dataclass(frozen=True)
class Unfinished:
    """The rows of one library that were judged so far, one a line in a file, below the library's version.

    Attributes:
        file: the file.
        version: of the library; rows of another one are worth nothing.
    """

    file: Path
    version: str

    def rows(self) -> list[Row]:
        """Its rows, none if the file is of another version. A line that a kill cut is left out."""
        if not self.file.is_file():
            return []
        version, *lines = self.file.read_text(encoding="utf-8").split("\n")
        return rows_of(json.loads(line) for line in lines[:-1]) if version == self.version else []

    def start(self, rows: Iterable[Row]) -> None:
        """Begin the file with rows that are there already."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(self.version + "\n", encoding="utf-8")
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """One row more."""
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row.json()) + "\n")


def judge_all(
    claims: Iterable[Claim], unfinished: Unfinished, resume: bool, say: Callable[[str], None] = print
) -> tuple[list[Row], list[str]]:
    """The rows of a library's claims, in their order, and what failed.

    Args:
        claims: the claims.
        unfinished: where rows are put as they come.
        resume: whether rows that lie there are taken as they are.
        say: told of a claim whose trial raised; its row is "not judged", with what was raised.

    Raises:
        Exception: what making the claims raises, as of a library that can't be loaded. The rows before it stay where they are.
    """
    there = {_key(row): row for row in (unfinished.rows() if resume else [])}
    unfinished.start(there.values())
    rows, failed = [], []
    for claim in claims:
        key = (claim.origin, claim.sampler, claim.label(), claim.chart)
        if key not in there:
            try:
                row = judge(claim)
            except Exception as error:
                logging.disable(logging.NOTSET)
                said = f"its trial raised {type(error).__name__}: {error}"
                say(f"{claim.origin}, {claim.sampler} {claim.label()}: {said}")
                failed.append(f"{claim.origin} {claim.sampler}")
                row = judge(dataclasses.replace(claim, subject=None, remark=said))
            unfinished.add(row)
            there[key] = row
        rows.append(there[key])
    return rows, failed


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.origin, row.sampler, row.options, row.chart
