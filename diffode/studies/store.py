"""The result store: one SQLite file, one transaction a result, keyed by content."""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from diffode.errors import StoreError
from diffode.metrics import Measurement
from diffode.output_files import remedy
from diffode.studies.suite import Cell

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY,
    target TEXT NOT NULL, path TEXT NOT NULL, grid TEXT NOT NULL, solver TEXT NOT NULL,
    nfe INTEGER NOT NULL, seed INTEGER NOT NULL, points INTEGER NOT NULL, dtype TEXT NOT NULL, tolerance REAL NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'failed')), reason TEXT NOT NULL,
    nfe_counted INTEGER, steps INTEGER, seconds REAL, scale REAL,
    threads INTEGER NOT NULL, environment TEXT NOT NULL, created REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS measurements (
    key TEXT NOT NULL REFERENCES results(key) ON DELETE CASCADE,
    metric TEXT NOT NULL, value REAL NOT NULL, floor REAL NOT NULL, low REAL, high REAL,
    PRIMARY KEY (key, metric)
);
"""
#: Seconds to wait for another process that is writing.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Result:
    """What became of one cell.

    ``status`` is ``"ok"`` or ``"failed"`` with a ``reason``; ``nfe_counted`` is what the field counted, ``seconds`` the wall
    time of the solve, ``scale`` the root mean variance of the target.
    """

    key: str
    cell: Cell
    status: str
    reason: str = ""
    nfe_counted: int | None = None
    steps: int | None = None
    seconds: float | None = None
    scale: float | None = None
    threads: int = 1
    environment: dict[str, str] | None = None
    measurements: tuple[Measurement, ...] = ()

    def value(self, metric: str) -> float | None:
        """The value of a metric, or None if it was not measured."""
        return next((m.value for m in self.measurements if m.name == metric), None)


class Store:
    """An open result store; use it as a context manager.

    Raises :class:`StoreError` with a way out when the file is not a store, is locked, or can't be written; what was
    committed before stays.
    """

    def __init__(self, file: str | FilePath, *, patience: float = _PATIENCE):
        self.file = FilePath(file)
        with self._explained("opened"):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=patience, isolation_level=None)
            self._prepare()

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA foreign_keys = ON")
        version = run("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA_VERSION):
            raise StoreError(
                f"store {self.file} has schema {version}, this diffode writes {_SCHEMA_VERSION}; choose another file"
            )
        if version == 0:
            if run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise StoreError(f"{self.file} is a database, but not a diffode store; choose another file")
            # Readers and one writer at a time work side by side, and a commit costs no full flush.
            run("PRAGMA journal_mode = WAL")
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        run("PRAGMA synchronous = NORMAL")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def put(self, result: Result) -> None:
        """Write one result and its measurements in one transaction, replacing what was there."""
        cell, run = result.cell, self._connection.execute
        with self._explained("written"), self._transaction():
            run(
                "INSERT OR REPLACE INTO results VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    *(result.key, cell.target, cell.path, cell.grid, cell.solver, cell.nfe, cell.seed, cell.points),
                    *(cell.dtype, cell.tolerance, result.status, result.reason, result.nfe_counted, result.steps),
                    *(result.seconds, result.scale, result.threads, json.dumps(result.environment or {}), time.time()),
                ),
            )
            run("DELETE FROM measurements WHERE key = ?", (result.key,))
            for m in result.measurements:
                run("INSERT INTO measurements VALUES (?,?,?,?,?,?)", (result.key, m.name, m.value, m.floor, m.low, m.high))

    def done(self) -> set[str]:
        """Keys of the results that are ok. Failed ones are not among them: they are tried again."""
        with self._explained("read"):
            return {row[0] for row in self._connection.execute("SELECT key FROM results WHERE status = 'ok'")}

    def get(self, cells: Iterable[tuple[str, Cell]]) -> list[Result]:
        """The stored results of these (key, cell) pairs, in their order, leaving out what is not there."""
        with self._explained("read"):
            measurements: dict[str, list[Measurement]] = {}
            for key, *values in self._connection.execute("SELECT key, metric, value, floor, low, high FROM measurements"):
                measurements.setdefault(key, []).append(Measurement(*values))
            columns = "key, status, reason, nfe_counted, steps, seconds, scale, threads, environment"
            rows = {row[0]: row[1:] for row in self._connection.execute(f"SELECT {columns} FROM results")}
            return [_result(key, cell, rows[key], measurements.get(key, ())) for key, cell in cells if key in rows]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn SQLite's errors into ones that say what to do."""
        try:
            yield
        except (sqlite3.Error, OSError, json.JSONDecodeError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"store {self.file} can't be {action}: {error}; {_remedy(str(error))}") from error


def _remedy(message: str) -> str:
    if "locked" in message or "busy" in message:
        return "another process holds it: wait for that one or stop it, or choose another file with --store"
    if "full" in message or "No space" in message:
        return "free some space and run again: what was stored stays, and the run goes on from there"
    if "disk I/O" in message:
        return f"{remedy(OSError(errno.EFBIG, message))}; otherwise choose a place on another disk with --store or --output"
    if any(sign in message for sign in ("not a database", "malformed", "Expecting", "Extra data")):
        return "the file is damaged or of another kind: move it away and run again"
    return "choose a writable place with --store or --output"


def _result(key: str, cell: Cell, row: Sequence[object], measurements: Sequence[Measurement]) -> Result:
    status, reason, nfe_counted, steps, seconds, scale, threads, environment = row
    return Result(
        key, cell, status, reason, nfe_counted, steps, seconds, scale, threads,  # type: ignore[arg-type]
        json.loads(str(environment)), tuple(measurements),
    )  # fmt: skip
