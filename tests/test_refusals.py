"""The record of refusals: what differs between runs is left out, and another text is found."""

import json
import os

import pytest
import refusals

from diffode.errors import ArgumentError


def test_what_is_another_in_each_run_is_left_out(tmp_path):
    text = f"file '{tmp_path / 'a.pt'}' at 0x7f00aa12 errs by 3.25e-16 and 2.5e-03; known: a, b, c, d, e, f, g"
    assert refusals.settled(text) == "file '<place>' at <address> errs by <small> and 2.5e-03; known: <names>"
    assert refusals.settled("known: inv, legs") == "known: inv, legs"
    assert refusals.settled("took 2.5 s, scale=1.006200944951045 of 13e34082f19900af") == (
        "took <seconds>, scale=1.00620094 of <digest>"
    )
    assert refusals.settled("suite: 4 runs ━━━ 4/4 0:00:01\nno room for 1234567890123 rows") == "no room for 1234567890123 rows"


def test_a_refusal_that_is_not_in_the_record_of_its_test_is_told(monkeypatch, tmp_path):
    name = refusals.current()
    assert name == "tests/test_refusals.py::test_a_refusal_that_is_not_in_the_record_of_its_test_is_told"
    monkeypatch.delenv(refusals.FOLDER, raising=False)
    monkeypatch.setattr(refusals, "_KNOWN", {name: ["two must be 2"]})
    with pytest.raises(ArgumentError, match="must be"):
        raise ArgumentError("two must be 2")
    with pytest.raises(AssertionError, match=r"not as it was recorded:\n  two must be 3\n.*\n  two must be 2\n.*test_refusals"):  # noqa: SIM117
        with pytest.raises(ArgumentError, match="must be"):
            raise ArgumentError("two must be 3")
    with pytest.raises(ValueError, match="three"):
        raise ValueError("three, of another package")
    monkeypatch.setenv(refusals.FOLDER, str(tmp_path))
    refusals.look("two must be 3")
    assert refusals.kept(tmp_path) == {name: {"two must be 3"}}
    assert (tmp_path / f"{os.getpid()}.jsonl").is_file()


def test_what_two_runs_agree_on_is_recorded_in_place_of_what_stood_there(monkeypatch, tmp_path):
    file = tmp_path / "record.json"
    monkeypatch.setattr(refusals, "FILE", file)
    assert refusals.known() == {}
    refusals.write(
        {"a::one": {"x", "y"}, "a::two": {"z"}, "b::one": {"w"}},
        {"a::one": {"y", "x"}, "a::two": {"q"}, "b::one": {"w"}},
        whole=False,
    )
    assert refusals.known() == {"a::one": ["x", "y"], "b::one": ["w"]}
    refusals.write({"a::two": {"z"}}, {"a::two": {"z"}}, whole=False)
    assert refusals.known() == {"a::two": ["z"], "b::one": ["w"]}
    refusals.write({"a::two": {"z"}}, {"a::two": {"z"}}, whole=True)
    assert refusals.known() == {"a::two": ["z"]}
    of_others = {"versions": {**refusals.VERSIONS, "python": "2.7"}, "texts": {"a::one": ["x"]}}
    file.write_text(json.dumps(of_others))
    assert refusals.known() == {}
    with pytest.raises(SystemExit, match=r"the record is of .*2\.7"):
        refusals.main(["tests/test_grids.py"])
    assert json.loads(file.read_text()) == of_others


def test_the_record_holds_many_tests():
    assert len(refusals.record()["texts"]) > 500
    assert refusals.record()["versions"].keys() == refusals.VERSIONS.keys()
