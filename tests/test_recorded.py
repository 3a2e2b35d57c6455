"""Numbers stay as they were recorded, but for rounding: those of runs, of short trainings, and of verdicts."""

import json
import math

import pytest
import torch
from recorded import apart, cases, known_numbers, told

KNOWN = known_numbers()


@pytest.mark.parametrize("name", cases())
def test_numbers_are_those_that_were_recorded(name):
    one, anew = cases()[name], f"if they are meant to change, run: python tests/recorded.py {name}"
    assert name in KNOWN, f"its numbers are not recorded: run python tests/recorded.py {name}"
    lines = apart(json.loads(json.dumps(told(one.make()))), KNOWN[name], one.tolerance)
    assert not lines, "\n".join([f"numbers differ by more than {one.tolerance:g}; {anew}", *lines])


def test_every_record_has_its_case():
    assert sorted(KNOWN) == sorted(cases())


def test_differences_are_found():
    known = {"x": told(torch.arange(4.0)), "n": 3, "e": 0.25, "words": ["a", True, None]}
    assert apart(known, known, 0.0) == []
    for other in (
        known | {"x": told(torch.tensor([1.0, 0.0, 2.0, 3.0]))}, known | {"x": told(torch.arange(4.0).reshape(2, 2))},
        known | {"n": 4}, known | {"n": 3.0}, known | {"e": 0.2500001}, known | {"words": ["a", 1, None]},
        known | {"words": ["a", True]}, {"x": known["x"]},
    ):  # fmt: skip
        assert len(apart(other, known, 1e-8)) == 1
    assert apart(known | {"e": 0.2500001}, known, 1e-6) == []
    odd = {"x": told(torch.tensor([1.0, math.nan])), "y": told(torch.tensor([1.0, math.inf])), "z": 0.0, "n": math.nan}
    assert apart(odd, odd, 1e-8) == []
    assert apart(odd | {"z": 3e-16}, odd, 1e-8) == []
    assert len(apart(odd | {"y": told(torch.tensor([2.0, 3.0]))}, odd, 1e-8)) == 1
