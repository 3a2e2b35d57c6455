"""The result store: one SQLite file, written in transactions, keyed by content; every row carries a checksum.

The keys come from `versions.py`, and a result is valid as long as its cell has the same key; the checksum shows a damaged row.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from urllib.parse import quote

from diffode.errors import StoreError
from diffode.file_names import place_of
from diffode.metrics import Measurement
from diffode.studies.cell import Cell, Result
from diffode.studies.store_tables import SCHEMA_VERSION, TABLES, TABLES_2, environment_key, tables_of, transaction, upgrade

__all__ = ["Result", "Store"]

#: Seconds to wait while another process writes.
_PATIENCE = 30.0
#: Number of the column of a result's environment.
_ENVIRONMENT = 17
#: Pages of the log of writes, of 4 kB each, that make SQLite write them to the file itself.
_LOG_PAGES = 8000
#: Types of the counts of a result.
_OPTIONAL_COUNTS = {int, type(None)}
#: The first bytes of every SQLite file.
_MAGIC = b"SQLite format 3\0"
#: Largest row that is read, in bytes, so that a foreign file can't fill the memory.
_LARGEST_ROW = 1_000_000
#: Parts of SQLite's messages about a place that can't be written, rather than a file that is no store.
_UNWRITABLE = ("unable to open", "readonly", "read-only")


class Store:
    """An open result store; use it as a context manager.

    A store of the last schema is upgraded in place, or read as it is where it can't be written. A store in a place that can't
    be written is opened for reading: ``writable`` is then False. ``damaged`` holds the keys of
    rows whose checksum did not fit when they were last read; such rows count as not stored.

    Raises :class:`StoreError`, with a remedy, when the file is not a store, is locked, or can't be written; committed rows
    stay.
    """

    def __init__(self, file: str | FilePath, *, patience: float = _PATIENCE):
        self.file = place_of(file, "store")
        self.writable = True
        self.damaged: frozenset[str] = frozenset()
        self._copied: tempfile.TemporaryDirectory[str] | None = None
        with self._explained("opened"):
            self._connection = self._opened(patience)

    def _opened(self, patience: float) -> sqlite3.Connection:
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
        elif self.file.is_file():
            # SQLite takes a file of a few bytes for a new database, and would overwrite it.
            with self.file.open("rb") as handle:
                beginning = handle.read(len(_MAGIC))
            if beginning and beginning != _MAGIC:
                raise StoreError(
                    f"{self.file} is not a database, so it is no diffode store; "
                    "move it away, or choose another file with --store"
                )
        end = time.monotonic() + patience
        while True:
            try:
                connection = _connected(str(self.file), patience)
                try:
                    self._prepare(connection)
                except BaseException:
                    connection.close()
                    raise
                return connection
            except sqlite3.OperationalError as error:
                if self.file.is_file() and any(sign in str(error) for sign in _UNWRITABLE):
                    return self._opened_for_reading(patience)
                # SQLite itself does not wait while another process makes the file or opens it for the first time.
                if not any(sign in str(error) for sign in ("locked", "busy", "protocol")) or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _opened_for_reading(self, patience: float) -> sqlite3.Connection:
        self.writable = False
        place = self.file
        log = place.with_name(f"{place.name}-wal")
        if log.is_file() and log.stat().st_size:
            # The latest rows lie in the log, which SQLite reads only where it may write beside it: hence a copy.
            self._copied = tempfile.TemporaryDirectory(prefix="diffode-store-")
            for file in (place, log):
                shutil.copyfile(file, FilePath(self._copied.name) / file.name)
            connection = _connected(str(FilePath(self._copied.name) / place.name), patience)
        else:
            connection = _connected(f"file:{quote(str(place.resolve()))}?mode=ro&immutable=1", patience, uri=True)
        try:
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        run = connection.execute
        if run("PRAGMA user_version").fetchone()[0] == 0:
            # Only one process makes the tables; others wait here and then find them.
            with transaction(connection):
                if run("PRAGMA user_version").fetchone()[0] == 0:
                    if run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise StoreError(f"{self.file} is a database, but not a diffode store; choose another file")
                    for table in TABLES.values():
                        run(table)
                    run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._check(connection)
        if run("PRAGMA user_version").fetchone()[0] == 2:
            upgrade(connection)
            self._check(connection)
        # With WAL, readers work beside one writer, and a commit needs no full flush.
        if run("PRAGMA journal_mode").fetchone()[0] != "wal":
            run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        # Keys are hashes, so that a group's rows lie on as many pages; they are written to the file itself less often.
        run(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raise StoreError unless the file is a store of this schema or the last, and nothing else."""
        # One transaction, since another process may upgrade the store in between.
        connection.execute("BEGIN")
        try:
            version, tables = connection.execute("PRAGMA user_version").fetchone()[0], tables_of(connection)
        finally:
            connection.execute("ROLLBACK")
        if version == 1:
            raise StoreError(
                f"store {self.file} was written by an earlier diffode, without checksums: nothing tells whether its rows are "
                "what was measured; move it away, or choose another file with --store, and run again"
            )
        if version not in (2, SCHEMA_VERSION):
            raise StoreError(
                f"store {self.file} has schema {version}, this diffode writes {SCHEMA_VERSION}; choose another file"
            )
        if tables != (TABLES_2 if version == 2 else TABLES):
            raise StoreError(f"{self.file} is not a diffode store, or its tables were changed; choose another file")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        if self._copied is not None:
            self._copied.cleanup()

    def put(self, result: Result) -> None:
        """Write one result and its measurements in one transaction, in place of an older result."""
        self.put_all([result])

    def put_all(self, results: Iterable[Result]) -> None:
        """Write results and their measurements, all in one transaction or none, in place of older results."""
        if not self.writable:
            raise StoreError(f"store {self.file} can't be written; choose a writable place with --store or --output")
        rows, lines, texts = [], [], dict[str, str]()
        for result in results:
            described = json.dumps(result.environment or {})
            known = texts.setdefault(described, environment_key(described))
            row = (*_columns(result), described, time.time())
            measured = [(m.name, _real(m.value), _real(m.floor), _real(m.low), _real(m.high)) for m in result.measurements]
            rows.append((*row[:_ENVIRONMENT], known, *row[_ENVIRONMENT + 1 :], checksum_of(row, measured)))
            lines += [(result.key, *measurement) for measurement in measured]
        with self._explained("written"), transaction(self._connection):
            write = self._connection.executemany
            write("INSERT OR IGNORE INTO environments VALUES (?,?)", [(known, text) for text, known in texts.items()])
            # An older row's measurements go with it.
            write(f"INSERT OR REPLACE INTO results VALUES ({','.join('?' * 20)})", rows)
            write("INSERT OR REPLACE INTO measurements VALUES (?,?,?,?,?,?)", lines)

    def done(self, cells: Iterable[tuple[str, Cell]] | None = None) -> set[str]:
        """Keys of the results that are ok, among some (key, cell) pairs or among all. Failed and damaged results, which are
        tried again, are left out.
        """
        return {key for key, result in self._read(None if cells is None else dict(cells)) if result.status == "ok"}

    def get(self, cells: Iterable[tuple[str, Cell]]) -> list[Result]:
        """The stored results of (key, cell) pairs, in their order, without those that are missing or damaged."""
        asked = list(cells)
        found = dict(self._read(dict(asked)))
        return [found[key] for key, _ in asked if key in found]

    def all(self) -> list[Result]:
        """All stored results, by key, without damaged ones; their cells list no metrics, which the file does not hold."""
        return [result for _, result in self._read(None)]

    def _read(self, wanted: Mapping[str, Cell] | None) -> list[tuple[str, Result]]:
        """The rows whose checksum fits, in a pass over the whole file that puts the keys of others in ``damaged``."""
        with self._explained("read"):
            told = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if told != "ok":
                raise sqlite3.DatabaseError(f"malformed, {told[:200]}")
            try:
                found, damaged = self._rows(wanted)
            except sqlite3.OperationalError as error:
                if "decode" not in str(error):
                    raise
                # A text that is no UTF-8 makes its row damaged, and must not keep others from being read.
                self._connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
                found, damaged = self._rows(wanted)
        self.damaged = frozenset(damaged)
        return found

    def _rows(self, wanted: Mapping[str, Cell] | None) -> tuple[list[tuple[str, Result]], set[str]]:
        """The good rows and the keys of the damaged ones."""
        found: list[tuple[str, Result]] = []
        damaged: set[str] = set()
        texts = self._environments()
        rows = self._connection.execute("SELECT * FROM results ORDER BY key")
        lines = self._connection.execute("SELECT * FROM measurements ORDER BY key, metric")
        groups = itertools.groupby(lines, key=_first)
        group = next(groups, None)
        for row in rows:
            key = str(row[0])
            while group is not None and group[0] < key:
                group = next(groups, None)
            cell = None if wanted is None else wanted.get(key)
            if wanted is not None and cell is None:
                continue
            # A row has at most as many measurements as its cell has metrics; a file with more is not read further.
            most = 1000 if cell is None else len(cell.metrics) + 1
            own = [line[1:] for line in itertools.islice(group[1], most)] if group and group[0] == key else []
            if texts is not None:
                row = (*row[:_ENVIRONMENT], texts.get(row[_ENVIRONMENT]), *row[_ENVIRONMENT + 1 :])
            result = _result(row, own, cell)
            if result is None:
                damaged.add(key)
            else:
                found.append((key, result))
        return found, damaged

    def _environments(self) -> dict[object, object] | None:
        """The texts of environments by their keys; None for a store of schema 2, whose rows hold the texts themselves."""
        if self._connection.execute("PRAGMA user_version").fetchone()[0] == 2:
            return None
        return dict(self._connection.execute("SELECT key, content FROM environments").fetchall())

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn SQLite's errors into a StoreError with a remedy."""
        try:
            yield
        except StoreError:
            raise
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            raise StoreError(f"store {self.file} can't be {action}: {error}; {_remedy(str(error))}") from error


def _connected(place: str, patience: float, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(place, timeout=patience, isolation_level=None, uri=uri)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_ROW)
    for pragma in ("foreign_keys = ON", "trusted_schema = OFF", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _remedy(message: str) -> str:
    if "locked" in message or "busy" in message:
        return "another process holds it: wait for that one or stop it, or choose another file with --store"
    if "full" in message or "No space" in message:
        return "free some space and run again: what was stored stays, and the run goes on from there"
    if "disk I/O" in message:
        return (
            "the disk failed or a limit on the size of files (ulimit -f) was met: see to that and run again: what was stored "
            "stays, and the run goes on from there"
        )
    if any(sign in message for sign in ("not a database", "malformed", "too big")):
        return "the file is damaged or of another kind: move it away and run again"
    return "choose a writable place with --store or --output"


def _columns(result: Result) -> tuple[object, ...]:
    """The columns of a result's row that come before its environment."""
    cell = result.cell
    return (
        *(result.key, cell.target, cell.path, cell.grid, cell.solver, cell.nfe, cell.seed, cell.points),
        *(cell.dtype, float(cell.tolerance), result.status, result.reason, result.nfe_counted, result.steps),
        *(_real(result.seconds), _real(result.scale), result.threads),
    )


def _real(value: float | None) -> float | None:
    """A number as SQLite returns it: None for NaN, and no sign of zero."""
    return None if value is None or math.isnan(value) else float(value) + 0.0


def _first(line: Sequence[object]) -> str:
    return str(line[0])


def _finite(numbers: Sequence[object]) -> bool:
    return all(isinstance(number, float) and math.isfinite(number) for number in numbers)


@functools.lru_cache(maxsize=256)
def _described(environment: str) -> tuple[tuple[str, str], ...]:
    """The items of an environment's text; ValueError or AttributeError if it is none."""
    items = tuple(json.loads(environment).items())
    if not all(isinstance(text, str) for item in items for text in item):
        raise ValueError("an environment holds texts")
    return items


def checksum_of(row: Sequence[object], measurements: Iterable[Sequence[object]]) -> str:
    told = (tuple(row), sorted(tuple(measurement) for measurement in measurements))
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _result(row: Sequence[object], measurements: Sequence[Sequence[object]], cell: Cell | None) -> Result | None:
    """A row as a result; None if its checksum does not fit, or a value is none that a result can have."""
    *content, checksum = row
    try:
        if checksum_of(content, measurements) != checksum:
            return None
        key, target, path, grid, solver, nfe, seed, points, dtype, tolerance, *outcome = content
        status, reason, nfe_counted, steps, seconds, scale, threads, environment, _ = outcome
        told = (target, path, seed, grid, solver, nfe, points, dtype)
        known = cell or Cell(*told, metrics=(), tolerance=tolerance)  # type: ignore[arg-type]
        if told != (known.target, known.path, known.seed, known.grid, known.solver, known.nfe, known.points, known.dtype):
            return None
        if not (
            isinstance(reason, str)
            and status in ("ok", "failed")
            and _OPTIONAL_COUNTS.issuperset((type(nfe_counted), type(steps), type(threads)))
            and _finite([real for real in (seconds, scale) if real is not None])
            and _finite([value for line in measurements for value in line[1:3]])
        ):
            return None
        return Result(
            str(key), known, str(status), reason, nfe_counted, steps, seconds, scale, threads,  # type: ignore[arg-type]
            dict(_described(str(environment))), tuple(Measurement(*m) for m in measurements),  # type: ignore[arg-type]
        )  # fmt: skip
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None
