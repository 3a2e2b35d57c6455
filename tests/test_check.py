"""The verdict on samplers: right about the zoo, about other libraries, and about defects planted in copies of our own."""

import importlib.util
import itertools
import json
from pathlib import Path

import planted_samplers
import pytest
import torch
from commandline import diffode as command

import diffode
from diffode.errors import ArgumentError
from diffode.verify.sampler import find_sampler
from diffode.verify.verdict import check_sampler

HERE = Path(__file__).parent
azula = pytest.mark.skipif(importlib.util.find_spec("azula") is None, reason="azula is not installed")


def wrong(verdict):
    return {finding.topic for finding in verdict.findings if finding.passed is False}


KEPT = (
    "ddim", "dpmpp:order=2", "unipc:order=2", "edm_heun", "deis:order=3", "lms:order=3", "rk4:chart=data", "euler_ancestral",
    "dpmpp_2m_sde", "dpmpp_sde", "euler_maruyama",
)  # fmt: skip


@pytest.mark.parametrize("spec", KEPT)
def test_nothing_is_wrong_with_solvers_that_keep_their_claims(spec):
    verdict = check_sampler(find_sampler(spec))
    assert verdict.passed, verdict.findings


@pytest.mark.parametrize(("spec", "claimed"), [("dpmpp:order=3", 3), ("ipndm:order=4", 4), ("ipndm:order=3", 3)])
def test_published_multistep_methods_are_of_second_order(spec, claimed):
    verdict = check_sampler(find_sampler(spec))
    assert wrong(verdict) == {"order"}
    assert f"order {claimed} is claimed, it is of second order" in verdict.finding("order").text
    assert verdict.order.slope == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("spec", ["deis:order=4", "sa:tau=0", "ab:order=5,chart=data"])
def test_a_high_order_that_the_levels_do_not_settle_is_left_open(spec):
    verdict = check_sampler(find_sampler(spec))
    assert verdict.passed
    assert verdict.finding("order").passed is None
    assert "do not settle" in verdict.finding("order").text


def test_torchdiffeq_makes_an_extra_evaluation_at_49_steps():
    verdict = check_sampler(find_sampler("torchdiffeq:euler"))
    assert wrong(verdict) == {"evaluations"}
    assert "50 evaluations instead of 49 at 49 steps" in verdict.finding("evaluations").text


@azula
@pytest.mark.parametrize("order", [2, 3])
def test_azulas_reab_is_of_first_order_whatever_is_asked(order):
    verdict = check_sampler(find_sampler("azula.sample:REABSampler", options={"order": order}))
    assert wrong(verdict) >= {"order"}
    assert f"order {order} is claimed, it is of first order" in verdict.finding("order").text


@azula
@pytest.mark.parametrize(("name", "order"), [("zEABSampler", 3), ("xEABSampler", 2)])
def test_azulas_other_multistep_samplers_keep_their_order(name, order):
    assert check_sampler(find_sampler(f"azula.sample:{name}", options={"order": order})).passed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "options", "order"), [
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "sigma_min"}, None),
    ("HeunDiscreteScheduler", {}, 2),
])  # fmt: skip
def test_schedulers_of_diffusers_are_judged(name, options, order):
    verdict = check_sampler(find_sampler(f"diffusers:{name}", options=options, order=order))
    assert verdict.passed, verdict.findings
    assert verdict.finding("order").passed


@pytest.mark.parametrize("name", planted_samplers.RIGHT)
def test_right_copies_pass(name):
    function, order = planted_samplers.RIGHT[name]
    verdict = check_sampler(find_sampler(function, order=order))
    assert verdict.passed, verdict.findings


@pytest.mark.parametrize("name", planted_samplers.DEFECTS)
def test_planted_defects_are_found_and_named(name):
    function, order, topics = planted_samplers.DEFECTS[name]
    assert set(topics) <= wrong(check_sampler(find_sampler(function, order=order)))


def k_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    ones = x.new_ones(len(x))
    for s, t in itertools.pairwise(sigmas):
        x = x + (t - s) * (x - model(x, s * ones)) / s
    return x


def test_functions_in_the_manner_of_k_diffusion_are_judged():
    verdict = check_sampler(find_sampler(k_euler, order=1))
    assert verdict.passed, verdict.findings
    x = diffode.exact_field("bimodal1d", "edm").prior(3, generator=0)
    times = diffode.grids.get("karras", diffode.paths.get("edm"), 8).tolist()
    field = diffode.exact_field("bimodal1d", "edm")
    end = find_sampler(k_euler).run(field, x, times, torch.Generator())
    torch.testing.assert_close(end, diffode.solve(field, x, solver="ddim", grid=times).x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("function", "text"), [
    (lambda field, x, times: x / 0, "non-finite"),
    (lambda field, x, times: x[:2], "returned shape"),
    (lambda field, x, times: None, "returned NoneType"),
    (lambda field, x, times: [][0], "raised IndexError"),
])  # fmt: skip
def test_samplers_that_give_nothing_useful_are_told_so(function, text):
    verdict = check_sampler(find_sampler(function))
    assert wrong(verdict) == {"runs"}
    assert text in verdict.finding("runs").text


def test_a_sampler_that_fails_later_keeps_its_other_findings():
    def sampler(field, x, times):
        if len(times) == 50:
            raise ValueError("49 steps are not for me")
        return planted_samplers.euler(field, x, times)

    verdict = check_sampler(find_sampler(sampler, order=1))
    assert wrong(verdict) == {"evaluations"}
    assert "49 steps are not for me" in verdict.finding("evaluations").text


def test_what_is_no_sampler_is_named():
    for text, message in (
        ("dpmp", "did you mean"), ("math:pi", "not a sampler"), ("torchdiffeq:dopri5", "chooses its own steps"),
        ("rk_adaptive", "chooses its own steps"), ("universal", "claims no order"), ("diffusers:Foo", "has no 'Foo'"),
        ("no_such_module:f", "can't be imported"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=message):
            find_sampler(text)
    with pytest.raises(ArgumentError, match="go into the spec"):
        find_sampler("ddim", options={"order": 2})
    with pytest.raises(ArgumentError, match="unknown path"):
        find_sampler("ddim", path="edn")


def test_the_command_says_it_in_plain_words(tmp_path):
    shown = command("check", "dpmpp:order=2", cwd=tmp_path).stdout
    assert "nothing wrong was found" in shown
    assert "order 2 as claimed" in shown
    facts = json.loads(command("check", "dpmpp:order=3", "--json", cwd=tmp_path, code=1).stdout)
    assert [f["topic"] for f in facts["findings"] if f["passed"] is False] == ["order"]
    (tmp_path / "mine.py").write_text((HERE / "planted_samplers.py").read_text())
    assert "1 finding against it" in command("check", "mine.py:batch_leak", "--order", "2", cwd=tmp_path, code=1).stdout
    options = ("--order", "2", "--option", "swap=false", "--grid", "log_snr")
    assert "nothing wrong" in command("check", "mine.py:second_order_multistep", *options, cwd=tmp_path).stdout
    assert "KEY=VALUE" in command("check", "mine.py:heun", "--option", "nonsense", cwd=tmp_path, code=2).stderr
