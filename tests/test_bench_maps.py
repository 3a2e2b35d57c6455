"""Flow maps in studies and in tests of plug-ins: beside solvers, keyed by content, held to the laws."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import diffode
from diffode import testing
from diffode.cli import bench_command, recommend_command
from diffode.errors import ArgumentError, LawError
from diffode.learned import train_map
from diffode.maps import FunctionMap

SUITE = """
name = "small"
[[study]]
targets = ["gauss1d"]
paths = ["edm"]
grids = ["karras", "log_snr"]
solvers = ["euler", "dpmpp:order=2"]
nfe = [1, 2]
points = 16
seeds = [0]
"""
EXACT = """
import diffode

exact = diffode.flow(diffode.exact_field("gauss1d", "edm"))


def phi(x, s, t):
    return {factor} * exact(x, s, t)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SUITE)
    (tmp_path / "own.py").write_text(EXACT.format(factor="1.0"))
    return tmp_path


def bench(*words):
    return CliRunner().invoke(bench_command.command, ["small.toml", "--no-report", "--json", "--jobs", "1", *words])


def test_maps_run_beside_solvers_on_every_budget(place):
    train_map("flow_map:width=8,depth=1", "gauss1d", nfe=(1, 2), points=64, steps=5).save("gauss.safetensors")
    done = bench("--map", "own.py:phi", "--map", "gauss.safetensors")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["suite"] == "small-maps"
    assert not told["failures"]
    for nfe in ("1", "2"):
        errors = {one["solver"]: one["error"] for one in told["standings"][nfe]}
        own = next(error for solver, error in errors.items() if "own.py:phi" in solver)
        assert any("gauss.safetensors" in solver for solver in errors)
        assert any("euler" in solver for solver in errors)
        # The exact map of this Gaussian errs by rounding alone.
        assert own == min(errors.values()) < 1e-9


def test_a_map_that_changes_is_run_anew(place):
    first, again = bench("--map", "own.py:phi"), bench("--map", "own.py:phi")
    assert "0 computed" in again.stderr
    assert json.loads(first.stdout)["standings"] == json.loads(again.stdout)["standings"]
    # A text of another length is read anew even by who keeps bytecode, of which a second is the finest time.
    (place / "own.py").write_text(EXACT.format(factor="1.500"))
    # A program that goes on has the module that it imported; another one reads the file.
    words = [
        sys.executable,
        "-m",
        "diffode",
        "bench",
        "small.toml",
        "--no-report",
        "--json",
        "--jobs",
        "1",
        "--map",
        "own.py:phi",
    ]
    changed = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "2 computed" in changed.stderr, changed.stderr
    errors = {one["solver"]: one["error"] for one in json.loads(changed.stdout)["standings"]["1"]}
    assert next(error for solver, error in errors.items() if "own.py" in solver) > 0.1


def test_a_map_that_is_not_there_is_told_before_anything_runs(place):
    for wrong in ("none.safetensors", "own.py:psi", "nowhere.py:phi"):
        done = bench("--map", wrong)
        assert isinstance(done.exception, ArgumentError), (wrong, done.exception)


def test_a_map_without_a_single_number_is_a_failure(place):
    (place / "bad.py").write_text("def phi(x, s, t):\n    return x / 0\n")
    words = ["small.toml", "--no-report", "--json", "--jobs", "1", "--map", "bad.py:phi"]
    done = CliRunner().invoke(bench_command.command, words, standalone_mode=False)
    assert done.return_value == 3
    assert "map:of=bad.py:phi has not a single number: NumericalError: 16 of 16 rows became non-finite" in done.stderr
    assert json.loads(done.stdout)["standings"]["1"], "the other solvers are ranked all the same"


def test_a_map_is_recommended_where_it_is_best(place):
    assert bench("--map", "own.py:phi").exit_code == 0
    words = ["--nfe", "1", "--suite", "small.toml", "--json"]
    alone = CliRunner().invoke(recommend_command.command, words)
    assert "own.py" not in alone.stdout
    done = CliRunner().invoke(recommend_command.command, [*words, "--map", "own.py:phi"])
    told = json.loads(done.stdout)
    assert told["ranking"][0]["method"].startswith("map:of=own.py:phi")
    assert told["paste"] == ['diffode.solve(field, x, solver="map:of=own.py:phi", nfe=1)']


@pytest.mark.parametrize("solver", ["map:of=own.py:phi", "map:file=none.safetensors", FunctionMap(lambda x, s, t: x)])
def test_a_map_is_no_scheduler_and_is_told_where_to_go(solver):
    with pytest.raises(ArgumentError, match="as_two_time_model"):
        diffode.adapters.as_diffusers_scheduler(solver)


def test_the_kit_for_tests_names_a_broken_law():
    field = diffode.exact_field("gauss1d", "edm")
    assert testing.check_map(diffode.flow(field), field, points=32, draws=200).passed

    def euler(x, s, t):
        return x + (t - s)[:, None] * field.velocity(x, s)

    with pytest.raises(LawError, match="breaks"):
        testing.check_map(euler, field, points=32, draws=200)
