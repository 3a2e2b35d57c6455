"""``diffode new`` writes what works as it is; ``diffode doctor`` says what is wrong."""

import json

import pytest
from click.testing import CliRunner

from diffode import testing
from diffode.cli import doctor_command, new_command
from diffode.errors import ArgumentError
from diffode.extensions import load_attribute
from diffode.studies import load_suite, run_suite


def new(*words):
    done = CliRunner().invoke(new_command.command, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_new_solver_keeps_the_laws_and_its_suite_runs_it(place):
    done = new("solver", "fresh_solver", "--json")
    told = json.loads(done.output)
    assert told["files"] == ["fresh_solver.py", "test_fresh_solver.py", "fresh_solver.toml"]
    made = load_attribute("fresh_solver.py:FreshSolver")
    testing.check_solver(made)
    suite = load_suite("fresh_solver.toml")
    assert {cell.solver for cell in suite.cells} >= {"fresh_solver", "ddim"}
    few = type(suite)(suite.name, suite.summary, tuple(c for c in suite.cells if c.nfe == 4 and c.seed == 0), suite.imports)
    found = run_suite(few, "s.sqlite", jobs=1)
    assert found.failed == 0
    assert found.computed == 12
    assert "from fresh_solver import FreshSolver" in (place / "test_fresh_solver.py").read_text()


def test_a_new_target_keeps_the_laws_and_its_suite_names_it(place):
    new("target", "fresh_target")
    load_attribute("fresh_target.py:fresh_target")
    testing.check_target("fresh_target")
    assert {cell.target for cell in load_suite("fresh_target.toml").cells} == {"fresh_target"}
    compile((place / "test_fresh_target.py").read_text(), "test_fresh_target.py", "exec")


def test_a_new_suite_needs_nothing_else(place):
    new("suite", "fresh_suite", "--output", "there")
    assert [file.name for file in (place / "there").iterdir()] == ["fresh_suite.toml"]
    assert load_suite("there/fresh_suite.toml").imports == ()


@pytest.mark.parametrize("name", ["Heun", "class", "9lives", "a-b", "", "x" * 80, "../up"])
def test_names_that_are_none_are_refused(place, name):
    with pytest.raises(ArgumentError, match="name must be lower-case"):
        new("solver", name)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("kind", "name"), [("solver", "heun"), ("target", "ring8"), ("suite", "quick")])
def test_names_that_are_taken_are_refused(place, kind, name):
    with pytest.raises(ArgumentError, match=f"there is a {kind} '{name}' already"):
        new(kind, name)


def test_files_that_exist_are_left_as_they_are(place):
    (place / "test_fresh.py").write_text("mine")
    with pytest.raises(ArgumentError, match=r"test_fresh.py' exists already"):
        new("solver", "fresh")
    assert [file.name for file in place.iterdir()] == ["test_fresh.py"]


def doctor(*words):
    done = CliRunner().invoke(doctor_command.command, [*words, "--json"], standalone_mode=False)
    told = json.loads(done.output)
    return done.return_value, told["well"], {one["part"]: one for one in told["parts"]}


def test_the_doctor_of_a_sound_installation_finds_nothing(place):
    code, well, parts = doctor()
    assert code == 0
    assert well
    assert "torch" in parts["versions"]["found"]
    assert "none at diffode-report/results.sqlite yet" in parts["store"]["found"]


def test_the_doctor_names_a_store_and_a_cache_that_are_broken(place, monkeypatch):
    (place / "s.sqlite").write_bytes(b"no store" * 100)
    (place / "file").write_text("")
    monkeypatch.setenv("DIFFODE_CACHE", str(place / "file" / "cache"))
    code, well, parts = doctor("--store", "s.sqlite")
    assert code == 1
    assert not well
    assert "s.sqlite" in parts["store"]["wrong"]
    assert "DIFFODE_CACHE" in parts["cache"]["wrong"]
    assert not parts["versions"]["wrong"]


def test_the_doctor_names_a_library_whose_numbers_are_wrong(place, monkeypatch):
    monkeypatch.setattr(doctor_command, "_SMALL", 0.0)
    code, _, parts = doctor()
    assert code == 1
    assert "reinstall" in parts["a small run"]["wrong"]
