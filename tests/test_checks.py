"""One report of checks: what passes, what its exit code is, how it reads, and what its parts used to be called."""

import importlib
import json
import math
import pickle

import pytest

import diffode
from diffode import verify
from diffode.errors import ArgumentError
from diffode.verify import Check, Report

GOOD, BAD, REMARK = (
    Check("a", 0.5, 1.0, "at t=1"),
    Check.found("b", False, "of first order"),
    Check.found("c", None, "draws none"),
)


@pytest.mark.parametrize(
    ("value", "passed"), [(0.0, True), (1.0, True), (1.0 + 1e-15, False), (math.nan, False), (-math.inf, False), (None, False)]
)
def test_a_check_with_a_tolerance_passes_if_its_value_is_finite_and_within(value, passed):
    assert Check("", value, 1.0).passed is passed
    assert Check("", value, 1.0, passed=not passed).passed is passed


def test_without_a_tolerance_a_check_is_what_was_found():
    assert Check("", 3.0).passed is None
    assert [Check.found("", passed, "").passed for passed in (True, False, None)] == [True, False, None]


@pytest.mark.parametrize(
    ("checks", "judged", "passed", "code", "outcome"),
    [
        ((GOOD, REMARK), True, True, 0, "nothing wrong was found, 1 of 1 checks passed"),
        ((GOOD, BAD, REMARK), True, False, 1, "1 finding against it, 1 of 2 checks passed"),
        ((BAD, BAD), True, False, 1, "2 findings against it, 0 of 2 checks passed"),
        ((REMARK,), False, False, 4, "no verdict"),
        ((), False, False, 4, "no verdict"),
    ],
)
def test_the_checks_alone_decide_the_verdict_and_the_exit_code(checks, judged, passed, code, outcome):
    report = Report("mine", checks, advice=("turn it round",))
    assert (report.judged, report.passed, report.exit_code) == (judged, passed, code)
    assert report.json()["passed"] is (passed if judged else None)
    assert str(report).endswith(f"FIX     turn it round\n\n{outcome}")
    assert repr(report) == f"Report(mine: {outcome})"


def test_a_report_reads_as_a_table_whose_texts_go_on_under_themselves():
    long = Check.found("limit", True, "word " * 60)
    lines = str(Report("mine", (GOOD, long))).splitlines()
    assert lines[:2] == ["mine", ""]
    assert lines[2].split() == ["check", "residual", "tolerance", "where"]
    assert lines[3].split() == ["ok", "a", "5.0e-01", "1", "at", "t=1"]
    begins = {line.index(word) for line, word in zip(lines[2:7], ("where", "at t=1", "word", "word", "word"), strict=True)}
    assert len(begins) == 1
    assert max(map(len, lines)) <= 118
    assert "tolerance" not in str(Report("mine", (long,)))


def test_a_check_is_found_by_its_name():
    assert Report("mine", (GOOD, BAD)).check("b") is BAD
    with pytest.raises(ArgumentError, match="got 'z'; there are a, b"):
        Report("mine", (GOOD, BAD)).check("z")


def test_all_reports_have_one_json_shape():
    exact = diffode.exact_field("bimodal1d", "vp")
    reports = (
        verify.verify_field(diffode.Field.from_noise(exact.noise, "vp", scale=exact.scale), dim=1),
        verify.check_field(exact.noise, "noise", "vp", 1, scale=exact.scale),
        verify.check_sampler("ddim"),
        verify.check_sampler("diffusers:LCMScheduler"),
    )
    facts = []
    for report in reports:
        shown = json.loads(json.dumps(report.json()))
        assert list(shown)[:5] == ["subject", "judged", "passed", "checks", "advice"]
        assert {tuple(check) for check in shown["checks"]} == {("name", "passed", "value", "tolerance", "detail")}
        facts.append(set(list(shown)[5:]))
        assert repr(pickle.loads(pickle.dumps(report))) == repr(report)  # noqa: S301
    assert facts == [{"path"}, {"kind", "path", "loss", "best_reading", "best_loss"}, {"order"}, {"order"}]
    assert isinstance(reports[0].facts["residuals"], verify.Residuals)


def test_a_reading_that_is_wrong_is_a_failed_check_beside_the_advice():
    exact = diffode.exact_field("bimodal1d", "vp")
    for sign, passed in ((1, True), (-1, False)):
        report = verify.check_field(lambda x, t, s=sign: s * exact.noise(x, t), "noise", "vp", 1, scale=exact.scale)
        assert report.check("read as it is meant").passed is passed
        assert bool(report.advice) is not passed
    broken = verify.check_field(lambda x, t: x[:, :0], "noise", "vp", 1)
    assert broken.check("read as it is meant").passed is None
    assert broken.exit_code == 1


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("diffode.verify", "FieldReport", verify.Report), ("diffode.verify.verdict", "check_sampler", verify.check_sampler),
        ("diffode.verify.verdict", "Verdict", verify.Report), ("diffode.verify.diagnosis", "diagnose", verify.check_field),
        ("diffode.verify.diagnosis", "Diagnosis", verify.Report),
        ("diffode.verify.sampler", "find_sampler", None), ("diffode.verify.sampler", "Sampler", None),
    ],
)  # fmt: skip
def test_former_names_lead_to_the_new_ones_and_say_so(module, name, now):
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is now diffode.verify") as said:
        found = getattr(importlib.import_module(module), name)
    assert said[0].filename == __file__
    assert found.__name__ == name if now is None else found is now
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018


def test_former_attributes_lead_to_the_new_ones_and_say_so():
    report = Report("mine", (GOOD, BAD), facts={"order": 2})
    for former, now in (("findings", report.checks), ("wrong", report.failed), ("order", 2), ("residuals", None)):
        with pytest.warns(DeprecationWarning, match=f"Report.{former} is now Report."):
            assert getattr(report, former) == now
    with pytest.warns(DeprecationWarning, match="finding is now Report.check"):
        assert report.finding("b") is BAD
    for former, now in (("topic", "b"), ("text", "of first order")):
        with pytest.warns(DeprecationWarning, match=f"Check.{former} is now Check."):
            assert getattr(BAD, former) == now
    for thing in (report, BAD):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            thing.nothing  # noqa: B018


def test_a_sampler_made_elsewhere_has_its_own_options():
    from diffode.verify.sampler.subject import find_sampler

    sampler = find_sampler("ddim")
    with pytest.raises(ArgumentError, match="grid must be left out for a Sampler"):
        verify.check_sampler(sampler, grid="karras")
    assert verify.check_sampler(sampler).passed


def test_a_sampler_is_run_on_a_path_or_its_spec_alike():
    one, other = (verify.check_sampler("ddim", path=path) for path in ("vp", diffode.paths.get("vp")))
    assert one.facts["order"] == other.facts["order"]
