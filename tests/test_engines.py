"""Engines: a study's results are the same whatever runs it, and whatever happens to what runs it."""

import dataclasses
import os
import re
import subprocess
import sys
import warnings

import pytest
from commandline import program, script
from small_suite import SMALL, SOLVER, small

import diffode
from diffode import engines
from diffode.engines.code import Code
from diffode.engines.companion import Companion
from diffode.engines.work import Work, place_of
from diffode.errors import ArgumentError, GridWarning, StoreError, UnknownNameError, WorkerError
from diffode.studies import Store, keyed_cells, parse_suite, run_suite
from diffode.studies.rows import compute_group, compute_proven_group, plain_group, results_of
from diffode.studies.runner import groups_of


def kept(suite, file):
    """The stored results without what differs from run to run."""
    with Store(file) as store:
        return [dataclasses.replace(r, seconds=None, environment=None) for r in store.get(keyed_cells(suite))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What an uninterrupted run in this process stores for the small suite."""
    file = tmp_path_factory.mktemp("alone") / "s.sqlite"
    run_suite(small(), file, jobs=1)
    return kept(small(), file)


def backwards_and_twice(function, items):
    for item in reversed(items):
        yield function(item)
        yield function(item)


@pytest.mark.parametrize("engine", [map, backwards_and_twice, "local:jobs=2"], ids=["map", "backwards and twice", "local"])
def test_every_engine_stores_the_same_rows(engine, alone, tmp_path):
    told = []
    summary = run_suite(small(), tmp_path / "s.sqlite", engine=engine, progress=lambda *counts: told.append(counts))
    assert (summary.computed, summary.failed) == (8, 0)
    assert kept(small(), tmp_path / "s.sqlite") == alone
    assert told[0] == (0, 8)
    assert told[-1] == (8, 8)


def test_an_engine_that_loses_groups_is_an_error_and_the_rest_is_stored(tmp_path):
    with pytest.raises(WorkerError, match=r"results for 1 of 2 groups, and then no more; 4 of 8 runs are stored"):
        run_suite(small(), tmp_path / "s.sqlite", engine=lambda function, items: map(function, items[:1]))
    assert run_suite(small(), tmp_path / "s.sqlite", jobs=1).computed == 4


def test_results_that_are_no_longer_wanted_draw_no_warning():
    found = engines.get("local:jobs=2")(Work("time:sleep"), [(number, 0.05) for number in range(20)])
    assert next(iter(found))[1] is None
    found.close()


def test_warnings_of_workers_are_those_of_the_process_that_asked(tmp_path):
    """Each once, though both workers and every item warn; of a class that this process may not know, as a UserWarning."""
    (tmp_path / "warns.py").write_text(
        "import warnings\n\nfrom diffode.errors import GridWarning\n\nclass Own(Warning):\n    pass\n\n"
        "def warned(number):\n    warnings.warn('same for all', GridWarning)\n    warnings.warn(f'own {number % 2}', Own)\n"
    )
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        assert len(list(engines.each(f"{tmp_path / 'warns.py'}:warned", list(range(6)), engine="local:jobs=2"))) == 6
    found = [(w.category, str(w.message)) for w in heard if "warns.py" in w.filename]
    assert sorted(found, key=str) == sorted(
        [(GridWarning, "same for all"), (UserWarning, "own 0"), (UserWarning, "own 1")], key=str
    )


def test_what_is_stored_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    """The coordinator's disk fills up after the first group."""
    write, written = Store.put_all, []

    def full(store, results):
        if written:
            raise StoreError("store s.sqlite can't be written: database or disk is full; free some space and run again")
        written.append(results)
        write(store, results)

    monkeypatch.setattr(Store, "put_all", full)
    with pytest.raises(StoreError, match="free some space"):
        run_suite(small(), tmp_path / "s.sqlite", engine="local:jobs=2")
    monkeypatch.undo()
    assert run_suite(small(), tmp_path / "s.sqlite", jobs=1).computed == 4


@pytest.mark.parametrize(
    ("engine", "jobs", "words"),
    [
        ("dusk://host:1", None, "unknown engine 'dusk'; did you mean 'dask'?"),
        ("locale", None, "did you mean 'local'?"),
        ("local:job=2", None, "has no option 'job'; did you mean 'jobs'?"),
        ("local:jobs=0", None, "jobs must be >= 1, got 0"),
        ("local:jobs=true", None, "jobs must be >= 1, got True"),
        ("dask:patience=x", None, "patience must be >= 0"),
        ("dask:in_flight=0", None, "in_flight must be >= 1"),
        ("dask://host:1", 2, "goes with a cluster begun here"),
        (map, 2, "has its own workers"),
        (3, None, "engine must be a spec"),
    ],
)
def test_wrong_engines_are_named(engine, jobs, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        engines.get(engine, jobs=jobs)


@pytest.mark.parametrize("place", ["math:nope", "no_such_module:f", "math", ":sqrt", "math:"])
def test_functions_that_are_not_there_are_named(place):
    with pytest.raises(ArgumentError, match="function"):
        list(engines.each(place, [1.0], jobs=1))


@pytest.mark.parametrize(
    "given",
    [None, 5, [(0, {}, 1)], [([], {})], [(0.0, {})], [(True, {})], [(0, None)], [(0, [])],
     [(0, {"environment": {}, "rows": []})], [(0, {"environment": {}, "rows": [[1]] * 4})]],
)  # fmt: skip
def test_engines_that_give_no_results_are_errors_that_say_what_is_stored(given, tmp_path):
    with pytest.raises(WorkerError, match=r"an engine .*; 0 of 8 runs are stored"):
        run_suite(small(), tmp_path / "s.sqlite", engine=lambda function, items: given)


def test_anyone_can_register_an_engine(monkeypatch, tmp_path, alone):
    monkeypatch.setattr(engines.registry, "_entries", dict(engines.registry._entries))
    engines.register("mine", lambda: backwards_and_twice, summary="an engine of one's own")
    run_suite(small(), tmp_path / "s.sqlite", engine="mine")
    assert kept(small(), tmp_path / "s.sqlite") == alone
    (tmp_path / "own.py").write_text("def runs(function, items):\n    return [function(item) for item in items]\n")
    found = engines.get(f"{tmp_path / 'own.py'}:runs")
    assert found(lambda item: item + 1, [1, 2]) == [2, 3]
    with pytest.raises(UnknownNameError):
        engines.get("nobody")


def test_work_is_plain_data_and_its_function_is_one_that_workers_find():
    work = Work("diffode.studies.rows:compute_group", ("json",)).elsewhere(["ddim"])
    assert Work.read(work.text) == work
    assert place_of(compute_group) == "diffode.studies.rows:compute_group"
    with pytest.raises(ArgumentError, match="at the top of a module or file"):
        place_of(lambda item: item)


def test_groups_hold_about_a_hundred_cells_of_one_problem_and_every_cell_once():
    study = {"targets": ["ring8", "gauss1d"], "solvers": ["ddim"], "nfe": list(range(2, 52)), "seeds": list(range(8))}
    cells = keyed_cells(parse_suite({**SMALL, "study": [study]}))
    groups = groups_of(cells)
    assert sorted(pair for group in groups for pair in group) == sorted(cells)
    assert all(len({(cell.target, cell.path) for _, cell in group}) == 1 for group in groups)
    assert [len(group) for group in groups] == [100] * 8
    costly = [(key, dataclasses.replace(cell, target="digits-empirical", points=10**7)) for key, cell in cells]
    assert {len(group) for group in groups_of(costly)} == {1}


def test_a_worker_with_other_code_is_refused(monkeypatch):
    """Its keys are others; nothing of it is stored."""
    group = keyed_cells(small())[:2]
    assert [r.key for r in results_of(group, compute_proven_group(plain_group(group)))] == [key for key, _ in group]
    with pytest.raises(WorkerError, match="other code, parameters, kernels or files for ddim on ring8"):
        compute_proven_group(plain_group([("0" * 32, group[0][1])]))
    with pytest.raises(WorkerError, match=r"lacks what the study needs: unknown solver 'nobody'.*--import"):
        compute_proven_group(plain_group([("0" * 32, dataclasses.replace(group[0][1], solver="nobody"))]))
    other = dataclasses.replace(Work("diffode.studies.rows:compute_group"), version="0" * 64)
    with pytest.raises(WorkerError, match="install the same diffode on all machines"):
        other((0, []))


def test_any_function_of_a_file_runs_on_many_items(tmp_path):
    """A program's own function, in its processes and by way of any engine."""
    (tmp_path / "program.py").write_text(
        "import sys\nfrom diffode import engines\n\n"
        "def squared(number):\n    return [number, number**2]\n\n"
        "if __name__ == '__main__':\n    print(sorted(engines.each(squared, [1, 2, 3], jobs=2)))\n"
    )
    assert script(tmp_path / "program.py").stdout == "[(0, [1, 1]), (1, [2, 4]), (2, [3, 9])]\n"
    place = f"{tmp_path / 'program.py'}:squared"
    assert dict(engines.each(place, [3, 4], engine=backwards_and_twice)) == {0: [3, 9], 1: [4, 16]}
    assert [file.written for file in Work(place).elsewhere().code.files] == [str(tmp_path / "program.py")]


def test_a_companion_holds_one_work_at_a_time_and_outlives_its_copies(tmp_path):
    """A file that changes is another work, whose process has not seen the first; a killed copy gives an empty answer."""
    file, companion, found = tmp_path / "changes.py", Companion(), []
    try:
        for body in ("return 2 * number", "return 3 * number", "os.kill(os.getpid(), 9)", "return [number, os.getppid()]"):
            file.write_text(f"import os\n\ndef changed(number):\n    print(number)\n    {body}\n")
            text = Work(f"{file}:changed", code=Code.of([str(file)])).text
            found.append(companion.answer(text, "[0, 7]"))
        assert found[:3] == ['["result", 14]\n', '["result", 21]\n', ""]
        assert found[3].startswith('["result", [7, ')
        assert companion.lives
    finally:
        companion.end()


OWN = (
    SOLVER.replace("FACTOR", "beside.FACTOR").replace("import diffode\n", "import diffode\nimport beside\n")
    + "\n\ndef velocity(x, t):\n    return -x / (1 + t)\n"
)


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A folder with a user's solver, which imports a module beside it, and a field; the current folder."""
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("FACTOR = 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("beside", None)


def test_a_users_modules_travel_by_content(user):
    """In a process that has never seen the folder, the file and the module that it imports are there, with the same keys."""
    text = f"""
        import json, sys
        from diffode.studies import keyed_cells, parse_suite
        from diffode.studies.runner import _work
        from diffode.studies.rows import plain_group
        suite = parse_suite({dict(SMALL, imports=["mine.py"], study=[{"targets": ["gauss1d"], "solvers": ["mine"]}])!r})
        keyed = keyed_cells(suite)
        print("work", _work(suite, map, keyed).text)
        print("item", json.dumps([0, plain_group(keyed)]))
    """
    sent = program(text, cwd=user).stdout
    for name in ("mine.py", "beside.py"):
        (user / name).unlink()
    root = os.path.dirname(os.path.dirname(diffode.__file__))
    done = subprocess.run(
        [sys.executable, "-c", "from diffode.engines.companion import serve; serve()"],
        input=sent, capture_output=True, text=True, cwd="/", check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])},
    )  # fmt: skip
    assert done.stdout.startswith('ready\n["result", {"environment"'), done.stdout + done.stderr
    assert '"ok"' in done.stdout
    assert '"failed"' not in done.stdout
