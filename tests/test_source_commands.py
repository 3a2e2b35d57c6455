"""Sources in studies, keys and commands."""

import json

import numpy as np
import pytest
import torch
from commandline import diffode as command

import diffode
from diffode.errors import ArgumentError
from diffode.fields.problem_text import parts_of, problem_text
from diffode.studies import parse_suite, run_suite
from diffode.studies.cell_keys import cell_key
from diffode.studies.problem import content_of, field_of, starts
from diffode.studies.store import Store

STUDY = {
    "targets": ["bimodal1d"], "paths": ["edm"], "grids": ["karras"], "solvers": ["heun", "ipndm:order=3", "euler_ancestral"],
    "nfe": [9], "seeds": [0], "points": 32, "metrics": ["endpoint", "moments"],
}  # fmt: skip


def suite(**study):
    return parse_suite({"name": "sources", "study": [{**STUDY, **study}]})


def test_a_bridge_takes_no_source():
    with pytest.raises(ArgumentError, match="a bridge goes between two laws of its own: leave source 'student:dof=2' out"):
        field_of("bridge:two_gaussians from student:dof=2", None)


def test_a_study_runs_on_a_field_with_a_source(tmp_path):
    """In its rows and pictures the target names its source; solvers that draw normal noise make no sense there."""
    chosen = suite(source="student:dof=8")
    summary = run_suite(chosen, tmp_path / "results.sqlite", jobs=1)
    assert (summary.computed, summary.failed, len(summary.senseless)) == (2, 0, 1)
    assert "draws normal noise" in summary.senseless[0][1]
    with Store(tmp_path / "results.sqlite") as store:
        found = store.get(summary.cells)
    field = diffode.exact_field("bimodal1d", "edm", "student:dof=8")
    x = starts("bimodal1d from student:dof=8", "edm", 0, 32, 80.0)
    end = diffode.solve(field, x, solver="heun", grid="karras", nfe=9).x
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-9).x
    heun = next(r for r in found if r.cell.solver == "heun")
    assert heun.cell.target == "bimodal1d from student:dof=8"
    assert heun.value("endpoint") == pytest.approx(float((end - exact).norm(dim=1).mean()), rel=1e-6)


def test_cells_without_a_source_are_what_they_were():
    """Normal noise has no text of its own, so that the cell, which the key hashes, is the same."""
    plain, normal, infinite = suite(), suite(source="normal"), suite(source="student:dof=inf")
    assert plain.cells == normal.cells == infinite.cells
    assert repr(plain.cells[0]) == (
        "Cell(target='bimodal1d', path='edm', seed=0, grid='karras', solver='heun', nfe=9, points=32, dtype='float64', "
        "metrics=('endpoint', 'moments'), tolerance=1e-09)"
    )
    assert content_of("bimodal1d", "edm") == diffode.targets.get("bimodal1d").content()
    keys = {cell_key(suite(source=source).cells[0]) for source in (None, "student:dof=8", "student:dof=9", "gauss1d")}
    assert len(keys) == 4


def test_a_suite_is_run_with_another_source():
    from diffode.cli.bench_command import from_source

    other = from_source(suite(), "student:dof=8")
    assert other.cells == suite(source="student:dof=8").cells
    assert other.name == "sources-from-student_dof_8"
    with pytest.raises(ArgumentError, match="coordinates, the target"):
        from_source(suite(), "ring8")


def test_texts_of_targets_with_sources():
    assert parts_of(problem_text("ring8", "ring8")) == ("ring8", "ring8")
    with pytest.raises(ArgumentError, match="names a source already"):
        problem_text("ring8 from ring8", "gauss2d")
    with pytest.raises(ArgumentError, match="goes with a target"):
        field_of("trained:ring8 from student:dof=3", "edm")
    for wrong, message in (("student", "dof must be"), ("rign8", "ring8"), (3, "source must be a text")):
        with pytest.raises(ArgumentError, match=message):
            suite(source=wrong)


def test_starts_do_not_depend_on_their_number():
    text = "ring8 from student:dof=3"
    few, many = (starts(text, "edm", 0, n, 80.0) for n in (10, 600))
    assert torch.equal(few, many[:10])
    field = field_of(text, "edm")
    stream = diffode.solvers.stream(field, 600, solver="euler", grid="karras", nfe=2, seed=0, key=text, with_starts=True)
    assert torch.equal(torch.cat([begun for _, begun in stream]), many)


def test_commands_take_a_source(tmp_path):
    file = tmp_path / "points.npy"
    sample = ["sample", "bimodal1d", "--source", "student:dof=4", "--output", str(file)]
    told = command(*sample, "--solver", "heun", "--nfe", "9", "-n", "64", "--json")
    assert 0 < json.loads(told.stdout)["mean_endpoint_error"] < 1
    assert np.load(file).shape == (64, 1)
    refused = command(*sample, "--solver", "euler_ancestral", code=2)
    assert "student:dof=4" in refused.stderr
    command("verify", "bimodal1d", "--source", "gauss1d", "--path", "rectified_flow", cwd=tmp_path)


def test_lists_and_pages_of_sources():
    listed = json.loads(command("list", "sources", "--json").stdout)["sources"]
    assert {row["name"] for row in listed} >= {"student", "density", "normal"}
    assert "degrees of freedom" in command("show", "student").stdout


def test_tables_are_trained_on_a_source_and_maps_are_not(tmp_path):
    field = diffode.exact_field("bimodal1d", "edm", "student:dof=4")
    trained = diffode.learned.train("bespoke", field, 3, points=16, steps=2, seed=0)
    assert trained.errors.after <= trained.errors.before * 1.01
    with pytest.raises(ArgumentError, match="student:dof=4"):
        diffode.learned.train("flow_map", field, (1,), steps=2)
