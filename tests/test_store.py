"""The store of results: what is read is what was written, whatever happens to the file, the disk or the process."""

import random
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
from commandline import started
from small_suite import small

from diffode.errors import StoreError
from diffode.studies import Store, keyed_cells, load_suite, run_suite
from diffode.studies.rows import compute


def stored(file):
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.Error:
        return 0


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    """Killed outright in the middle, the store holds whole results only and the next run computes the rest."""
    code = f"""
        from diffode.studies import load_suite, run_suite
        run_suite(load_suite("quick"), {str(tmp_path / "s.sqlite")!r}, jobs=1)
    """
    process = started(code)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and stored(tmp_path / "s.sqlite") < 5:
        time.sleep(0.05)
    process.kill()
    process.join()
    count = stored(tmp_path / "s.sqlite")
    assert count >= 5
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(load_suite("quick")))
        assert len(store.done()) == len(results) == count
    assert all(r.measurements for r in results)


def test_a_store_that_is_something_else_is_left_alone(tmp_path):
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE precious (x)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="not a diffode store"):
        Store(other)
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, and long enough to be read as a damaged one" * 50)
    with pytest.raises(StoreError, match="move it away"):
        Store(text)
    assert text.read_text().startswith("this is no database")
    newer = tmp_path / "newer.sqlite"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="schema 99"):
        Store(newer)


ALTERATIONS = (
    "UPDATE results SET environment = '{no json'",
    "UPDATE results SET scale = scale * 2",
    "UPDATE results SET nfe_counted = 'many'",
    "UPDATE results SET seed = 7",
    "UPDATE measurements SET value = value / 2",
    "UPDATE measurements SET metric = 'endpoint:reduction=max'",
    "UPDATE measurements SET low = NULL, high = 1",
    "DELETE FROM measurements",
    "INSERT INTO measurements SELECT key, 'another', value, floor, low, high FROM measurements",
    "UPDATE results SET reason = CAST(x'ff' AS TEXT)",
)


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_altered_rows_are_left_out_and_computed_again(filled, alteration):
    """Whatever is changed in the first of two rows, or taken from it or added to it."""
    file, suite, results = filled
    where = f" key = '{results[0].key}'"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(alteration + (" AND" if " WHERE " in alteration else " WHERE") + where)
    with Store(file) as store:
        assert store.get(keyed_cells(suite)) == results[1:]
        assert store.damaged == {results[0].key}
        assert store.done() == {r.key for r in results[1:]}
    summary = run_suite(suite, file, jobs=1)
    assert (summary.computed, summary.damaged) == (1, 1)
    with Store(file) as store:
        assert len(store.get(keyed_cells(suite))) == len(results)
        assert not store.damaged


def test_an_altered_environment_damages_the_rows_that_were_measured_in_it(filled):
    file, suite, results = filled
    with Store(file) as store:
        store.put(replace(results[0], environment={"torch": "3"}))
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute("SELECT count(*) FROM environments").fetchone()[0] == 2
        connection.execute("UPDATE environments SET content = replace(content, '2', '4') WHERE content LIKE '%2%'")
    with Store(file) as store:
        assert [r.environment for r in store.get(keyed_cells(suite))] == [{"torch": "3"}]
        assert store.damaged == {results[1].key}


def test_no_flipped_bit_of_a_store_is_read_as_a_result(filled):
    """A bit in each 32 bytes of the file, one at a time: what is read is what was written, or it is refused or left out."""
    file, suite, results = filled
    content, draw = file.read_bytes(), random.Random(3)
    copy, outcomes = file.with_name("copy.sqlite"), set()
    keyed, known = keyed_cells(suite), {r.key: r for r in results}
    for place in (block + draw.randrange(32) for block in range(0, len(content), 32)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        copy.write_bytes(damaged)
        try:
            with Store(copy, patience=0.01) as store:
                read = store.get(keyed)
        except StoreError as error:
            outcomes.add("refused" if str(copy) in str(error) else f"unclear: {error}")
        else:
            assert all(known[r.key] == r for r in read)
            outcomes.add("left out" if len(read) < len(results) else "whole")
    assert outcomes == {"refused", "left out", "whole"}


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE environments SET content = '{'[' * 100_000}'",
        "UPDATE environments SET content = '[1, 2]'",
        "UPDATE results SET status = 'failed', reason = CAST(x'00' AS BLOB)",
        "UPDATE results SET scale = 9e999",
    ],
)
def test_rows_that_are_no_results_are_left_out_whatever_their_checksum(filled, change, monkeypatch):
    """Someone who writes a file can write checksums too."""
    file, suite, results = filled
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(change)
    monkeypatch.setattr("diffode.studies.store.checksum_of", lambda row, measurements: results[0].key)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE results SET checksum = ?", (results[0].key,))
    with Store(file) as store:
        assert store.get(keyed_cells(suite)) == []
        assert len(store.damaged) == len(results)


def test_a_huge_row_is_refused_before_it_is_read(filled):
    file, suite, _ = filled
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE results SET reason = hex(zeroblob(2000000))")
    with Store(file) as store, pytest.raises(StoreError, match=r"s\.sqlite can't be read: .*too big; the file is damaged"):
        store.get(keyed_cells(suite))


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON results BEGIN DELETE FROM results; END",
        "ALTER TABLE results ADD COLUMN more",
        "DROP TABLE measurements",
    ],
)
def test_a_store_whose_tables_were_changed_is_refused(filled, change):
    file, _, _ = filled
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(change)
    with pytest.raises(StoreError, match="tables were changed"):
        Store(file)


def test_a_store_without_checksums_is_refused_and_left_as_it_is(tmp_path):
    file = tmp_path / "old.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE results (key TEXT PRIMARY KEY)")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"earlier diffode, without checksums.*move it away"):
        Store(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("logged", [False, True])
def test_a_store_in_a_place_that_can_not_be_written_is_read(filled, read_only_folder, logged):
    """With what lies in the log of writes too, where a killed process left one."""
    file, suite, results = filled
    folder, close = read_only_folder
    keyed = keyed_cells(suite)
    if logged:
        with closing(sqlite3.connect(file, isolation_level=None)) as holder, holder:
            holder.execute("PRAGMA wal_autocheckpoint = 0")
            holder.execute("DELETE FROM results WHERE key = ?", (results[0].key,))
            shutil.copy(f"{file}-wal", folder / "s.sqlite-wal")
            shutil.copy(file, folder)
    else:
        shutil.copy(file, folder)
    close()
    with Store(folder / "s.sqlite") as store:
        assert not store.writable
        assert store.get(keyed) == results[int(logged) :]
        with pytest.raises(StoreError, match="writable place"):
            store.put(results[0])
    with pytest.raises(StoreError, match="2 runs are to be stored; choose a writable place"):
        run_suite(suite, folder / "s.sqlite", jobs=1, force=True)


def test_processes_that_make_a_store_at_once_all_find_it_made(tmp_path):
    """40 files, each opened first by 8 threads at one moment."""
    failed = []

    def opened(file, start):
        start.wait()
        try:
            Store(file).close()
        except StoreError as error:
            failed.append(error)

    for number in range(40):
        start = threading.Barrier(8)
        threads = [threading.Thread(target=opened, args=(tmp_path / f"{number}.sqlite", start)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_a_locked_store_says_so_and_keeps_what_it_has(tmp_path):
    file, suite = tmp_path / "s.sqlite", small()
    run_suite(suite, file, jobs=1)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Store(file, patience=0.1) as store:
        key, cell = keyed_cells(suite)[0]
        with pytest.raises(StoreError, match="another process holds it"):
            store.put(compute(key, cell))
        assert len(store.done()) == 8
    holder.execute("ROLLBACK")
    holder.close()


def test_a_full_disk_says_so_and_keeps_what_it_has(tmp_path, monkeypatch):
    """SQLite's own page limit stands in for a disk that fills up."""
    keyed, connect = keyed_cells(small()), sqlite3.connect
    with Store(tmp_path / "s.sqlite") as store:
        store.put(compute(*keyed[0]))

    def full(place, **options):
        connection = connect(place, **options)
        # Coverage keeps its notes in SQLite's files too.
        if "s.sqlite" in str(place):
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", full)
    with Store(tmp_path / "s.sqlite") as store:
        long = replace(compute(*keyed[1]), reason="x" * 100000)
        with pytest.raises(StoreError, match="free some space"):
            store.put(long)
        assert store.done() == {keyed[0][0]}


def test_an_unwritable_store_says_so(tmp_path):
    with pytest.raises(StoreError, match="writable place"):
        Store("/proc/nowhere/store.sqlite")
