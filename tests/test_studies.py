"""Studies: suites, resuming, keys by content, the store's failures, ranking, the report."""

import csv
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diffode import paths, solvers
from diffode.errors import ArgumentError, StoreError, UnknownNameError
from diffode.metrics import Measurement
from diffode.studies import Result, Store, keyed_cells, load_suite, parse_suite, run_suite, suite_names
from diffode.studies.ranking import Curve, curves, prices, standings
from diffode.studies.report import write_report
from diffode.studies.runner import compute
from diffode.studies.versions import cell_key, solver_version

SMALL = {
    "name": "small",
    "summary": "a suite for the tests",
    "defaults": {"paths": ["edm"], "grids": ["karras"], "nfe": [4, 8], "seeds": [0], "points": 16, "tolerance": 1e-6},
    "study": [{"targets": ["ring8", "gauss1d"], "solvers": ["ddim", "heun"]}],
}


def small(**changes):
    return parse_suite({**SMALL, **changes})


def test_the_shipped_suites_are_what_they_promise():
    assert {"quick", "full"} <= set(suite_names())
    quick = load_suite("quick")
    cells = quick.cells
    assert len({c.target for c in cells}) >= 10
    assert {"digits-gmm10", "digits-empirical"} <= {c.target for c in cells}
    assert {"edm", "vp", "rectified_flow"} <= {c.path for c in cells}
    assert len({c.solver for c in cells}) >= 14
    assert (min(c.nfe for c in cells), max(c.nfe for c in cells)) == (4, 50)
    assert len({c.seed for c in cells}) == 2
    full = load_suite("full")
    assert len({c.target for c in full.cells}) >= 23
    assert {c.path for c in full.cells} == set(paths.names())


def test_a_second_run_does_nothing_and_force_recomputes(tmp_path):
    file, suite = tmp_path / "store.sqlite", small()
    first = run_suite(suite, file, jobs=1)
    assert (first.total, first.computed, first.failed) == (8, 8, 0)
    assert run_suite(suite, file, jobs=1).computed == 0
    assert run_suite(suite, file, jobs=1, force=True).computed == 8


def test_results_are_the_same_in_one_process_and_in_two(tmp_path):
    suite = small()
    values = []
    for jobs in (1, 2):
        file = tmp_path / f"{jobs}.sqlite"
        run_suite(suite, file, jobs=jobs)
        with Store(file) as store:
            values.append([(r.cell, r.nfe_counted, r.value("endpoint")) for r in store.get(keyed_cells(suite))])
    assert values[0] == values[1]


def test_rows_carry_what_is_needed_to_judge_them(tmp_path):
    run_suite(small(), tmp_path / "s.sqlite", jobs=1)
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(small()))
    for result in results:
        assert result.nfe_counted <= result.cell.nfe
        assert result.seconds > 0
        assert result.threads == 1
        assert {"torch", "diffode", "processor", "python"} <= result.environment.keys()
        assert result.measurements[0].floor >= 0


def test_a_change_of_anything_that_matters_changes_the_key():
    cell = small().cells[0]
    keys = {cell_key(cell)}
    for change in (
        {"nfe": 5},
        {"seed": 1},
        {"dtype": "float32"},
        {"target": "gauss1d"},
        {"solver": "lms"},
        {"points": 17},
        {"tolerance": 1e-7},
    ):
        keys.add(cell_key(replace(cell, **change)))
    assert len(keys) == 8
    assert cell_key(cell) == cell_key(replace(cell))


SOLVER = '''
from dataclasses import dataclass
import diffode

@dataclass(frozen=True, kw_only=True)
class Mine(diffode.Solver):
    """A solver of the user's own."""
    name = "mine"
    order = 1
    chart_name = "noise"
    reference = "none"

    def write(self, table, chart, times):
        row = table.start
        for s, t in zip(times[:-1], times[1:]):
            row = table.output(table.add(t, {row: chart.ratio(s, t)}, {row: FACTOR * chart.advance(s, t)}))

if "mine" not in diffode.solvers.names():
    diffode.solvers.register("mine", Mine)
'''


def in_fresh_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_changed_solver_recomputes_only_its_own_cells(tmp_path):
    (tmp_path / "suite.toml").write_text(
        'name = "s"\n[[study]]\ntargets = ["gauss1d"]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4, 6]\nseeds = [0]\n'
        'points = 4\nsolvers = ["ddim", "mine"]\n'
    )
    code = f"""
        from diffode.studies import load_suite, run_suite
        from diffode.extensions import import_extension
        import_extension({str(tmp_path / "mine.py")!r})
        s = run_suite(load_suite({str(tmp_path / "suite.toml")!r}), {str(tmp_path / "s.sqlite")!r}, jobs=1)
        print(s.computed, s.stored, s.failed)
    """
    source = tmp_path / "mine.py"
    source.write_text(SOLVER.replace("FACTOR", "1.0"))
    assert in_fresh_process(code) == "4 0 0"
    source.write_text("# a comment changes nothing\n" + SOLVER.replace("FACTOR", "1.0").replace("the user's own", "my own"))
    assert in_fresh_process(code) == "0 4 0"
    source.write_text(SOLVER.replace("FACTOR", "0.9"))
    assert in_fresh_process(code) == "2 2 0"


def test_a_changed_file_that_an_option_names_changes_the_key(tmp_path):
    source = tmp_path / "noise.py"
    code = f"""
        from diffode.studies import parse_suite
        from diffode.studies.versions import cell_key
        study = dict(targets=["gauss1d"], paths=["edm"], grids=["karras"], nfe=[4], seeds=[0], points=4)
        study["solvers"] = ["euler_maruyama:diffusion={source}:noise"]
        suite = parse_suite(dict(name="s", study=[study]))
        print(cell_key(suite.cells[0]))
    """
    keys = []
    for text in ("SIZE = 1.0", "SIZE = 2.0", "# A comment changes nothing.\nSIZE = 2.0"):
        source.write_text(text + "\ndef noise(t):\n    return SIZE\n")
        keys.append(in_fresh_process(code))
    assert keys[0] != keys[1] == keys[2]


NAMES = ("euler", "heun", "ab", "lms", "ipndm", "dpm", "dpmpp", "unipc")


def test_solver_versions_differ_where_code_differs():
    assert len({solver_version(type(solvers.get(name))) for name in NAMES}) == 8


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    """Killed outright in the middle, the store holds whole results only and the next run computes the rest."""
    code = f"""
        from diffode.studies import load_suite, run_suite
        run_suite(load_suite("quick"), {str(tmp_path / "s.sqlite")!r}, jobs=1)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and stored(tmp_path / "s.sqlite") < 5:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    count = stored(tmp_path / "s.sqlite")
    assert count >= 5
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(load_suite("quick")))
        assert len(store.done()) == len(results) == count
    assert all(r.measurements for r in results)


def stored(file):
    if not file.exists():
        return 0
    try:
        return sqlite3.connect(file).execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.Error:
        return 0


def test_a_failed_cell_is_a_row_with_a_reason_and_is_tried_again(tmp_path):
    suite = parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["rk4", "ddim"], "nfe": [3]}]})
    assert run_suite(suite, tmp_path / "s.sqlite", jobs=1).failed == 1
    with Store(tmp_path / "s.sqlite") as store:
        failed = [r for r in store.get(keyed_cells(suite)) if r.status == "failed"]
    assert "possible budgets" in failed[0].reason
    assert run_suite(suite, tmp_path / "s.sqlite", jobs=1).computed == 1
    page = report(suite, tmp_path)
    assert "possible budgets" in page


def test_runs_that_can_not_succeed_are_left_out_and_said_once(tmp_path):
    """A solver that draws noise does not follow the flow that the endpoint metric compares with."""
    study = {"targets": ["gauss1d"], "solvers": ["ddim", "ddpm", "torchsde:euler"], "nfe": [4]}
    summary = run_suite(parse_suite({**SMALL, "study": [study]}), tmp_path / "s.sqlite", jobs=1)
    assert (summary.total, summary.computed, summary.failed) == (1, 1, 0)
    assert [cell.solver for cell, _ in summary.senseless] == ["ddpm", "torchsde:euler"]
    assert "ddpm does not follow since it draws noise" in summary.senseless[0][1]
    suite = parse_suite({**SMALL, "study": [{**study, "metrics": ["moments"], "solvers": ["ddpm", "ddim:eta=0"]}]})
    assert run_suite(suite, tmp_path / "s.sqlite", jobs=1).senseless == ()
    with pytest.raises(ArgumentError, match="makes sense: total compares with the exact flow"):
        run_suite(parse_suite({**SMALL, "study": [{**study, "solvers": ["ddpm"], "metrics": ["total"]}]}), tmp_path / "x")


@pytest.mark.parametrize("solver", ["rk_adaptive", "sde_adaptive", "scipy:RK45", "torchdiffeq:dopri5"])
def test_solvers_that_choose_their_own_steps_are_left_out_and_those_of_a_grid_are_not(solver, tmp_path):
    study = {"targets": ["gauss1d"], "solvers": [solver, "torchdiffeq:euler", "ddim"], "nfe": [4], "metrics": ["moments"]}
    summary = run_suite(parse_suite({**SMALL, "study": [study]}), tmp_path / "s.sqlite", jobs=1)
    assert (summary.total, summary.computed, summary.failed) == (2, 2, 0)
    ((cell, reason),) = summary.senseless
    assert cell.solver == solver
    assert "chooses its own steps" in reason


KILLED = """
import os, signal
import diffode

def killed(outcome):
    os.kill(os.getpid(), signal.SIGKILL)

diffode.metrics.register("killed", killed)
"""


def test_a_killed_worker_is_an_error_that_says_how_to_go_on(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "suite.toml").write_text(
        '[[study]]\ntargets = ["gauss1d", "ring8"]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\n'
        'points = 4\nsolvers = ["ddim"]\nmetrics = ["endpoint", "killed"]\n'
    )
    command = [sys.executable, "-m", "diffode", "bench", "suite.toml", "--import", "killed.py", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert "worker processes was killed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_is_something_else_is_left_alone(tmp_path):
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE precious (x)")
    connection.commit()
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
    with sqlite3.connect(file) as connection:
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


@pytest.fixture
def filled(tmp_path):
    """A store of two rows that no run was needed for, its suite and its results."""
    suite = parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["ddim"]}]})
    file = tmp_path / "s.sqlite"
    with Store(file) as store:
        for number, (key, cell) in enumerate(sorted(keyed_cells(suite))):
            measured = (Measurement("endpoint", 0.25 + number, 1e-9),)
            store.put(Result(key, cell, "ok", "", 4, 4, 0.125, 1.0, 1, {"torch": "2"}, measured))
        results = store.get(sorted(keyed_cells(suite)))
    return file, replace(suite, cells=tuple(r.cell for r in results)), results


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
        f"UPDATE results SET environment = '{'[' * 100_000}'",
        "UPDATE results SET environment = '[1, 2]'",
        "UPDATE results SET status = 'failed', reason = CAST(x'00' AS BLOB)",
        "UPDATE results SET scale = 9e999",
    ],
)
def test_rows_that_are_no_results_are_left_out_whatever_their_checksum(filled, change, monkeypatch):
    """Someone who writes a file can write checksums too."""
    file, suite, results = filled
    with sqlite3.connect(file) as connection:
        connection.execute(change)
    monkeypatch.setattr("diffode.studies.store._checksum", lambda row, measurements: results[0].key)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE results SET checksum = ?", (results[0].key,))
    with Store(file) as store:
        assert store.get(keyed_cells(suite)) == []
        assert len(store.damaged) == len(results)


def test_a_huge_row_is_refused_before_it_is_read(filled):
    file, suite, _ = filled
    with sqlite3.connect(file) as connection:
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
    with sqlite3.connect(file) as connection:
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


@pytest.fixture
def read_only_folder():
    """A folder to be filled; once it is closed, nobody (not root either, who is someone else then) can write in it."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        folder.chmod(0o755)

        def close():
            for file in folder.iterdir():
                file.chmod(0o444)
            folder.chmod(0o555)
            if user == 0:
                os.seteuid(65534)

        yield folder, close
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.mark.parametrize("logged", [False, True])
def test_a_store_in_a_place_that_can_not_be_written_is_read(filled, read_only_folder, logged):
    """With what lies in the log of writes too, where a killed process left one."""
    file, suite, results = filled
    folder, close = read_only_folder
    keyed = keyed_cells(suite)
    if logged:
        with sqlite3.connect(file, isolation_level=None) as holder:
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


def test_a_full_disk_says_so_and_keeps_what_it_has(tmp_path):
    """SQLite's own page limit stands in for a disk that fills up."""
    suite = small()
    with Store(tmp_path / "s.sqlite") as store:
        keyed = keyed_cells(suite)
        store.put(compute(*keyed[0]))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        long = replace(compute(*keyed[1]), reason="x" * 100000)
        with pytest.raises(StoreError, match="free some space"):
            store.put(long)
        assert store.done() == {keyed[0][0]}


def test_an_unwritable_store_says_so(tmp_path):
    with pytest.raises(StoreError, match="writable place"):
        Store("/proc/nowhere/store.sqlite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": []}, "at least one"),
        ({"studies": []}, "unknown key 'studies'; did you mean 'study'"),
        ({"study": [{"targets": ["ring9"], "solvers": ["ddim"]}]}, "did you mean 'ring8'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["dimm"]}]}, "did you mean 'ddim'"),
        ({"study": [{"targets": ["ring8"], "solvers": "ddim"}]}, "solvers must be a list"),
        ({"study": [{"targets": ["ring8"]}]}, "solvers is missing"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "nfe": [0]}]}, "nfe must be integers >= 1"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "points": 1}]}, "points must be"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "dtype": "half"}]}, "dtype must be"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "tolerance": 1.0}]}, "tolerance must lie"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "metrics": ["endpiont"]}]}, "did you mean 'endpoint'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "grids": ["karas"]}]}, "did you mean 'karras'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "metrics": ["endpoint:foo=1"]}]}, "no option 'foo'"),
        ({"study": [{"targets": ["ring8"], "solvers": ["ddim"], "metrics": ["endpoint", "endpoint"]}]}, "twice"),
        ({"study": [3]}, "at least one"),
        ({"defaults": 3}, "defaults must be a table"),
        ({"imports": ["no_such_module_anywhere"]}, "can't be imported"),
        ({"imports": ["/nowhere/mine.py"]}, "does not exist"),
    ],
)
def test_wrong_suites_say_what_is_wrong(change, message):
    with pytest.raises(ArgumentError, match=message):
        small(**change)


def test_unreadable_suites_say_so(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(ArgumentError, match="can't be read"):
        load_suite(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ArgumentError, match="not valid TOML"):
        load_suite(str(tmp_path / "bad.toml"))


def curve(solver, errors, target="a"):
    return Curve(target, "edm", "karras", solver, (4, 8, 16), tuple(errors), 0.0, (4, 8, 16))


def test_the_price_of_an_error_is_interpolated():
    """Errors falling as 1/NFE^2 from 1 at 4: 0.01 costs 40."""
    c = Curve("a", "edm", "karras", "x", (4, 16, 64), (1.0, 1 / 16, 1 / 256), 0.0, (4, 16, 64))
    assert c.nfe_to_reach(0.01) == pytest.approx(40)
    assert c.nfe_to_reach(2.0) == 4
    assert c.nfe_to_reach(1e-9) == float("inf")
    bumpy = curve("x", [1e-3, 1.0, 1e-3])
    assert bumpy.nfe_to_reach(0.01) > 8


def test_standings_rank_by_geometric_mean_and_count_wins():
    all_curves = [
        curve("x", [1, 0.1, 0.01]),
        curve("y", [2, 0.2, 0.02]),
        curve("x", [1, 1, 1], "b"),
        curve("y", [1, 1e-4, 1], "b"),
    ]
    first = standings(all_curves, 8)[0]
    assert (first.method, first.wins, first.problems) == ("y", 1, 2)
    assert first.error == pytest.approx((0.2 * 1e-4) ** 0.5)
    assert prices(all_curves, 0.05)[0].reached == 1


def report(suite, tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(suite))
    page = write_report(suite, results, tmp_path / "report", command="diffode bench small", jobs=1)
    return page.read_text(encoding="utf-8")


def test_the_report_is_complete_and_offline(tmp_path):
    suite = small()
    run_suite(suite, tmp_path / "s.sqlite", jobs=1)
    page = report(suite, tmp_path)
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "http" not in own.replace("data:image", "")
    for expected in ("diffode bench small", "Best solver at each NFE", "NFE needed", 'alt="ring8"', "torch"):
        assert expected in page
    names = {f.name for f in (tmp_path / "report" / "figures").iterdir()}
    assert {"curves-ring8.png", "curves-gauss1d.png", "clouds-ring8.png"} == names
    with (tmp_path / "report" / "results.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(suite))
    assert len(rows) == sum(len(r.measurements) for r in results) == 8
    assert float(rows[0]["value"]) == results[0].value("endpoint")
    assert len(curves(results)) == 4


def test_an_unwritable_report_says_so(tmp_path):
    suite = small()
    run_suite(suite, tmp_path / "s.sqlite", jobs=1)
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(suite))
    with pytest.raises(ArgumentError, match="can't be written"):
        write_report(suite, results, "/proc/nowhere", command="x")
    with pytest.raises(ArgumentError, match="nothing is stored"):
        write_report(suite, [], tmp_path, command="x")


EXTENSION = (
    SOLVER.replace("FACTOR", "1.0")
    + """
diffode.targets.register("own", lambda: diffode.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1]))
diffode.metrics.register("constant", lambda outcome, value=VALUE: diffode.metrics.Measurement("constant", value))
"""
)


def test_extensions_reach_the_workers_and_the_report_and_are_versioned(tmp_path):
    """A user's solver, target and metric in two processes, drawn too; a changed metric is measured again."""
    (tmp_path / "suite.toml").write_text(
        '[[study]]\ntargets = ["own", "gauss1d"]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\n'
        'points = 4\nsolvers = ["ddim", "mine"]\nmetrics = ["endpoint", "endpoint:reduction=max", "constant"]\n'
    )
    source = tmp_path / "mine.py"
    for value, expected in (("1.0", "4 computed"), ("1.0", "0 computed"), ("2.0", "4 computed"), ("float('nan')", "4 failed")):
        source.write_text(EXTENSION.replace("VALUE", value))
        command = [sys.executable, "-m", "diffode", "bench", "suite.toml", "--import", "mine.py", "--jobs", "2"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == (3 if "failed" in expected else 0), done.stderr
        assert expected in done.stderr
        # With every run failed there is nothing to draw, and the report says why.
        assert (tmp_path / "diffode-report/suite/figures/clouds-own.png").is_file() == ("failed" not in expected)


def test_two_extensions_of_one_name_are_both_imported(tmp_path):
    from diffode import metrics
    from diffode.extensions import import_extension

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"import diffode\ndiffode.metrics.register('metric_of_{folder}', dict)\n")
        import_extension(str(tmp_path / folder / "mine.py"))
    assert {"metric_of_a", "metric_of_b"} <= set(metrics.names())
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ArgumentError, match="ZeroDivisionError"):
        import_extension(str(tmp_path / "broken.py"))
