"""Recommendations: the best first, sure where it is always the best, and honest where there is nothing to go on."""

import json

import pytest
from commandline import diffode as command
from test_cli import SUITE

from diffode.errors import ArgumentError
from diffode.studies import Result, parse_suite
from diffode.studies.ranking import Curve, coverage
from diffode.studies.recommendation import recommend


def curve(target, solver, errors, path="edm"):
    return Curve(target, path, "karras", solver, (4, 8, 16), tuple(errors), 0.0, (4, 8, 16))


TARGETS = ["a", "b", "c", "d"]


def test_a_method_that_always_wins_is_recommended_for_sure():
    curves = [curve(t, "good", (1e-1, 1e-2, 1e-3)) for t in TARGETS] + [curve(t, "bad", (1, 1e-1, 1e-2)) for t in TARGETS]
    best, second = recommend(curves, 10)
    assert (best.method, best.first, best.wins, best.problems) == ("good", 1.0, 4, 4)
    assert best.error == pytest.approx(1e-2)
    assert second.ratio == pytest.approx(10)
    assert second.ratio_low == pytest.approx(10)


def test_a_close_call_is_said_to_be_one():
    first = [curve(t, "one", (1, e, 1e-3)) for t, e in zip(TARGETS, (0.1, 0.2, 0.1, 0.2), strict=True)]
    second = [curve(t, "two", (1, e, 1e-3)) for t, e in zip(TARGETS, (0.2, 0.1, 0.2, 0.11), strict=True)]
    best = recommend([*first, *second], 8)[0]
    assert 0.3 < best.first < 0.9


def test_path_target_and_budget_choose_and_absent_ones_are_named():
    curves = [curve("a", "one", (1, 0.1, 0.01)), curve("a", "two", (0.5, 0.2, 0.1), path="vp")]
    assert recommend(curves, 8, path="vp")[0].method == "two"
    assert recommend(curves, 8, target="a", path="edm")[0].method == "one"
    with pytest.raises(ArgumentError, match="paths stored: edm, vp"):
        recommend(curves, 8, path="cosine")
    with pytest.raises(ArgumentError, match="all 2 problems; none was run on all of them"):
        recommend(curves, 3)
    with pytest.raises(ArgumentError, match="nfe must be an integer"):
        recommend(curves, 0)


def test_what_a_ranking_leaves_out_is_said():
    """Of 2 targets by 2 paths by 2 budgets, one target's runs on one path are not stored and one run has failed."""
    study = {"targets": ["gauss1d", "ring8"], "paths": ["edm", "vp"], "grids": ["karras"], "nfe": [4, 8], "seeds": [0]}
    cells = parse_suite({"study": [{**study, "solvers": ["ddim"]}]}).cells
    there = [c for c in cells if (c.target, c.path) != ("ring8", "vp")]
    results = [Result("k", c, "failed" if c == there[0] else "ok") for c in there]
    found = coverage(cells, results, damaged=1)
    assert (found.cells, found.missing, found.failed, found.problems, found.damaged) == (8, 2, 1, 4, 1)
    assert found.absent == (("ring8", "vp"),)
    assert found.sentence == (
        "2 of 8 runs of the suite are not stored; damaged rows left out: 1; "
        "1 of 4 problems (targets and paths) are not in it: ring8 on vp"
    )
    assert coverage(there, results).sentence == ""
    assert coverage(cells, []).absent == tuple(sorted({(c.target, c.path) for c in cells}))


def test_recommendations_are_json_too_and_say_how_much_they_rest_on(tmp_path):
    (tmp_path / "tiny.toml").write_text(SUITE)
    missing = command("recommend", "--suite", "tiny.toml", "--nfe", "5", cwd=tmp_path, code=2).stderr
    assert "no result store" in missing
    assert "diffode bench tiny.toml" in missing
    command("bench", "tiny.toml", "--jobs", "1", "--no-report", cwd=tmp_path)
    told = command("recommend", "--suite", "tiny.toml", "--nfe", "5", cwd=tmp_path).stdout
    ranked = json.loads(command("recommend", "--suite", "tiny.toml", "--nfe", "5", "--json", cwd=tmp_path).stdout)
    assert f"take {ranked['ranking'][0]['method']}" in told
    errors = [row["error"] for row in ranked["ranking"]]
    assert errors == sorted(errors)
    assert "one or two problems say little" in told
