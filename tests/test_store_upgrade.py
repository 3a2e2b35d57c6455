"""Stores of an earlier schema: upgraded in place, whole or not at all, by one process or many at once."""

import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from diffode.errors import StoreError
from diffode.studies import Store, keyed_cells, run_suite, store_tables
from diffode.studies.store_tables import TABLES_2


def answer(file, query):
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def as_schema_2(file):
    """Rewrite a store with the tables of schema 2, in which each row holds its environment's text."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection, connection:
        run = connection.execute
        texts = dict(run("SELECT key, content FROM environments"))
        rows = [(*row[:17], texts[row[17]], *row[18:]) for row in run("SELECT * FROM results")]
        lines = run("SELECT * FROM measurements").fetchall()
        for table in ("measurements", "results", "environments"):
            run(f"DROP TABLE {table}")
        for table in TABLES_2.values():
            run(table)
        connection.executemany(f"INSERT INTO results VALUES ({','.join('?' * 20)})", rows)
        connection.executemany("INSERT INTO measurements VALUES (?,?,?,?,?,?)", lines)
        run("PRAGMA user_version = 2")
        run("PRAGMA journal_mode = DELETE")


def test_a_store_of_schema_2_is_upgraded_and_keeps_what_it_has(filled):
    """Rows and checksums stay, those of a damaged row too, whose text is not even UTF-8."""
    file, suite, results = filled
    keyed = keyed_cells(suite)
    third = replace(results[0], key="f" * 32)
    with Store(file) as store:
        store.put(third)
    as_schema_2(file)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"UPDATE results SET environment = CAST(x'ff' AS TEXT) WHERE key = '{third.key}'")
    with Store(file) as store:
        assert store.get([*keyed, (third.key, third.cell)]) == results
        assert store.damaged == {third.key}
        store.put(third)
        assert store.get([*keyed, (third.key, third.cell)]) == [*results, third]
    assert run_suite(suite, file, jobs=1).stored == 2
    fresh = file.with_name("fresh.sqlite")
    Store(fresh).close()
    tables = [answer(f, "SELECT sql FROM sqlite_master ORDER BY name") for f in (file, fresh)]
    assert tables[0] == tables[1]


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(filled, monkeypatch):
    file, suite, results = filled
    as_schema_2(file)
    before = answer(file, "SELECT * FROM results")
    monkeypatch.setitem(store_tables.TABLES, "results", "CREATE TABLE results (")
    with pytest.raises(StoreError, match="can't be opened"):
        Store(file)
    monkeypatch.undo()
    assert answer(file, "SELECT * FROM results") == before
    with Store(file) as store:
        assert store.get(keyed_cells(suite)) == results


def test_a_store_of_schema_2_in_a_place_that_can_not_be_written_is_read(filled, read_only_folder):
    file, suite, results = filled
    keyed = keyed_cells(suite)
    as_schema_2(file)
    folder, close = read_only_folder
    shutil.copy(file, folder)
    close()
    with Store(folder / "s.sqlite") as store:
        assert not store.writable
        assert store.get(keyed) == results


def test_processes_that_upgrade_a_store_at_once_all_find_it_upgraded(filled):
    """20 files, each opened by 6 threads at one moment."""
    file, suite, results = filled
    as_schema_2(file)
    keyed, failed = keyed_cells(suite), []

    def opened(copy, start):
        start.wait()
        try:
            with Store(copy) as store:
                assert store.get(keyed) == results
        except (StoreError, AssertionError) as error:
            failed.append(error)

    for number in range(20):
        copy, start = file.with_name(f"{number}.sqlite"), threading.Barrier(6)
        shutil.copy(file, copy)
        threads = [threading.Thread(target=opened, args=(copy, start)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_a_row_of_schema_2_that_its_tables_forbid_is_left_behind_and_the_others_are_upgraded(filled):
    file, suite, results = filled
    as_schema_2(file)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE results SET status = 'oh' WHERE key = ?", (results[0].key,))
    with Store(file) as store:
        assert store.get(keyed_cells(suite)) == results[1:]
        kept = store._connection.execute("SELECT DISTINCT key FROM measurements").fetchall()
        assert kept == [(r.key,) for r in results[1:]]
        store.put(results[0])
        assert store.get(keyed_cells(suite)) == results
