"""The tables of a result store, and the upgrade of those of the last schema."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator

#: Version of the tables below.
SCHEMA_VERSION = 3
_RESULTS = """CREATE TABLE results (
    key TEXT PRIMARY KEY,
    target TEXT NOT NULL, path TEXT NOT NULL, grid TEXT NOT NULL, solver TEXT NOT NULL,
    nfe INTEGER NOT NULL, seed INTEGER NOT NULL, points INTEGER NOT NULL, dtype TEXT NOT NULL, tolerance REAL NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'failed')), reason TEXT NOT NULL,
    nfe_counted INTEGER, steps INTEGER, seconds REAL, scale REAL,
    threads INTEGER NOT NULL, environment TEXT NOT NULL{}, created REAL NOT NULL, checksum TEXT NOT NULL
) WITHOUT ROWID"""
_MEASUREMENTS = """CREATE TABLE measurements (
    key TEXT NOT NULL REFERENCES results(key) ON DELETE CASCADE,
    metric TEXT NOT NULL, value REAL NOT NULL, floor REAL NOT NULL, low REAL, high REAL,
    PRIMARY KEY (key, metric)
) WITHOUT ROWID"""
#: The tables. A row of results names its environment by a hash; its checksum is over the environment's text.
TABLES = {
    "environments": """CREATE TABLE environments (
    key TEXT PRIMARY KEY, content TEXT NOT NULL
) WITHOUT ROWID""",
    "results": _RESULTS.format(" REFERENCES environments(key)"),
    "measurements": _MEASUREMENTS,
}
#: The tables of schema 2, in which each row held the text of its environment.
TABLES_2 = {"results": _RESULTS.format(""), "measurements": _MEASUREMENTS}


def environment_key(content: str | bytes) -> str:
    """The key of an environment's text."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()[:12]


def tables_of(connection: sqlite3.Connection) -> dict[str, str]:
    """The names of the tables and other parts of a database, with the statements that made them; at most nine."""
    return dict(connection.execute("SELECT name, sql FROM sqlite_master LIMIT 9").fetchall())


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written in the block, or nothing; other processes that write wait."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        # SQLite rolls a transaction back itself when the disk fails.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def upgrade(connection: sqlite3.Connection) -> None:
    """Turn the tables of schema 2 into those of today, in one transaction; rows keep their checksums, damaged ones too.

    Damaged rows that hold what the tables forbid are left behind; they are computed again.
    """
    run = connection.execute
    connection.create_function("environment_key", 1, environment_key, deterministic=True)
    # References to the table must keep its name, and nothing may follow from its rows' departure.
    run("PRAGMA foreign_keys = OFF")
    run("PRAGMA legacy_alter_table = ON")
    try:
        with transaction(connection):
            # Another process may have been faster.
            if run("PRAGMA user_version").fetchone()[0] == 2:
                # A text that is no UTF-8 is a damaged row's, and no reason to leave others behind: hence bytes.
                known = "environment_key(CAST(environment AS BLOB))"
                run(TABLES["environments"])
                run("ALTER TABLE results RENAME TO results_2")
                run(TABLES["results"])
                run(
                    f"INSERT OR IGNORE INTO environments SELECT {known}, environment "
                    "FROM (SELECT DISTINCT environment FROM results_2)"
                )
                columns = [row[1] for row in run("PRAGMA table_info(results_2)")]
                given = ", ".join(known if column == "environment" else column for column in columns)
                # Rows with values that the tables forbid are damaged, and can't be carried along.
                run(f"INSERT OR IGNORE INTO results SELECT {given} FROM results_2")
                run("DELETE FROM measurements WHERE key NOT IN (SELECT key FROM results)")
                run("DROP TABLE results_2")
                run(f"PRAGMA user_version = {SCHEMA_VERSION}")
    finally:
        run("PRAGMA legacy_alter_table = OFF")
        run("PRAGMA foreign_keys = ON")
    # Without room for a second copy, or while others read, the file keeps its size and new rows fill it.
    with contextlib.suppress(sqlite3.Error):
        run("VACUUM")
