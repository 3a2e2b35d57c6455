"""Curves that ship are those that their suites measure, and damage to their files is named."""

import pytest

from diffode.errors import FileFormatError
from diffode.studies import load_suite, parse_suite, shipped
from diffode.studies.computation import computed
from diffode.studies.ranking import Curve
from diffode.studies.shipped import digest_of, shipped_curves, write_shipped


def test_what_ships_is_what_its_suite_measures():
    """Three runs made again agree to the five digits that are kept, but for what other hardware rounds."""
    suite, shipped = load_suite("schedules"), shipped_curves("schedules")
    assert len(shipped.curves) == len({(c.target, c.path, c.grid, c.solver) for c in suite.cells})
    assert {n for c in shipped.curves for n in c.budgets} <= {c.nfe for c in suite.cells}
    wanted = [c for c in suite.cells if c.target == "digits-gmm10" and c.grid.startswith("karras") and c.nfe == 8]
    for solver in ("ddim", "dpmpp:order=2", "unipc:order=3"):
        cell = next(c for c in wanted if c.solver == solver and c.path != "edm")
        result = computed("k", cell)
        curve = next(
            c for c in shipped.curves if (c.target, c.path, c.grid, c.solver) == (cell.target, cell.path, cell.grid, solver)
        )
        assert curve.error[curve.nfe.index(result.nfe_counted)] == pytest.approx(
            result.value("endpoint") / result.scale, rel=1e-4
        )


def test_what_ships_of_guidance_is_what_its_suite_measures():
    suite, shipped = load_suite("guidance"), shipped_curves("guidance")
    ranked = [c for c in suite.cells if c.metrics[0] == "endpoint"]
    assert {(c.target, c.path, c.grid, c.solver) for c in shipped.curves} >= {
        (c.target, c.path, c.grid, c.solver) for c in ranked
    }
    cell = next(c for c in ranked if c.target == "ring8 guided label=three,weight=7.5" and (c.solver, c.nfe) == ("ddim", 16))
    result = computed("k", cell)
    curve = next(c for c in shipped.curves if (c.target, c.grid, c.solver) == (cell.target, cell.grid, "ddim"))
    found = curve.error[curve.nfe.index(result.nfe_counted)]
    assert found == pytest.approx(result.value("endpoint") / result.scale, rel=1e-4)


def test_curves_come_back_from_a_file_and_damage_is_named(tmp_path, monkeypatch):
    suite = parse_suite({"name": "quick", "study": [{
        "targets": ["ring8"], "paths": ["edm"], "grids": ["karras"], "nfe": [8], "seeds": [0], "solvers": ["ddim"],
    }]})  # fmt: skip
    curves = [Curve("ring8", "edm", "karras", "ddim", (8, 16), (0.123456789, 1e-9), 1e-11, (8, 16))]
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    monkeypatch.setattr(shipped, "load_suite", lambda name: suite)
    file = tmp_path / "quick.json"
    write_shipped(suite, curves, "here", file)
    (back,) = shipped_curves("quick").curves
    assert back.error == (0.12346, 1e-9)
    assert (back.target, back.nfe, back.budgets, back.floor) == ("ring8", (8, 16), (8, 16), 1e-11)
    assert shipped_curves("../quick") is None
    for damaged, message in (
        (file.read_text()[:-20], "not shipped curves"),
        (file.read_text().replace(digest_of(suite), "0" * 64), "not those of the suite"),
        (file.read_text().replace("diffode-curves-1", "x"), "not those of the suite"),
    ):
        shipped._read.cache_clear()
        file.write_text(damaged)
        with pytest.raises(FileFormatError, match=message):
            shipped_curves("quick")
        write_shipped(suite, curves, "here", file)
    shipped._read.cache_clear()
