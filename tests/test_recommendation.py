"""Recommendations: the best first, sure where it is always the best, and honest where there is nothing to go on."""

import pytest

from diffode.errors import ArgumentError
from diffode.studies.ranking import Curve
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
