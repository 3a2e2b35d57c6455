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
from diffode import solvers
from diffode.errors import ArgumentError
from diffode.solvers.runge_kutta import Heun
from diffode.verify import check_sampler
from diffode.verify.sampler.subject import find_sampler

HERE = Path(__file__).parent
azula = pytest.mark.skipif(importlib.util.find_spec("azula") is None, reason="azula is not installed")


def wrong(verdict):
    return {finding.name for finding in verdict.checks if finding.passed is False}


KEPT = (
    "ddim", "heun", "dpmpp:order=2", "unipc:order=2", "edm_heun", "deis:order=3", "lms:order=3", "rk4:chart=data",
    # The law of two stages a step is that of one, in twice the time.
    "euler_ancestral", "dpmpp_2m_sde", "euler_maruyama", pytest.param("dpmpp_sde", marks=pytest.mark.slow),
)  # fmt: skip


@pytest.mark.parametrize("spec", KEPT)
def test_nothing_is_wrong_with_solvers_that_keep_their_claims(spec):
    verdict = check_sampler(spec)
    assert verdict.passed, verdict.checks


@pytest.mark.parametrize(("spec", "claimed"), [("dpmpp:order=3", 3), ("ipndm:order=4", 4), ("ipndm:order=3", 3)])
def test_published_multistep_methods_are_of_second_order(spec, claimed):
    verdict = check_sampler(spec)
    assert wrong(verdict) == {"order"}
    assert f"order {claimed} is claimed, it is of second order" in verdict.check("order").detail
    assert verdict.facts["order"].slope == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("spec", ["deis:order=4", "sa:tau=0", "ab:order=5,chart=data"])
def test_a_high_order_that_the_levels_do_not_settle_is_left_open(spec):
    verdict = check_sampler(spec)
    assert verdict.passed
    assert verdict.check("order").passed is None
    assert "do not settle" in verdict.check("order").detail


def test_torchdiffeq_makes_an_extra_evaluation_at_49_steps():
    verdict = check_sampler("torchdiffeq:euler")
    assert wrong(verdict) == {"evaluations"}
    assert "50 evaluations instead of 49 at 49 steps" in verdict.check("evaluations").detail


@azula
@pytest.mark.parametrize("order", [2, 3])
def test_azulas_reab_is_of_first_order_whatever_is_asked(order):
    verdict = check_sampler("azula.sample:REABSampler", options={"order": order})
    assert wrong(verdict) >= {"order"}
    assert f"order {order} is claimed, it is of first order" in verdict.check("order").detail


@azula
@pytest.mark.parametrize(("name", "order"), [("zEABSampler", 3), ("xEABSampler", 2)])
def test_azulas_other_multistep_samplers_keep_their_order(name, order):
    assert check_sampler(f"azula.sample:{name}", options={"order": order}).passed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "options", "order"), [
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "sigma_min"}, None),
    ("HeunDiscreteScheduler", {}, 2),
])  # fmt: skip
def test_schedulers_of_diffusers_are_judged(name, options, order):
    verdict = check_sampler(f"diffusers:{name}", options=options, order=order)
    assert verdict.passed, verdict.checks
    assert verdict.check("order").passed


@pytest.mark.parametrize("name", planted_samplers.RIGHT)
def test_right_copies_pass(name):
    function, order = planted_samplers.RIGHT[name]
    verdict = check_sampler(function, order=order)
    assert verdict.passed, verdict.checks


@pytest.mark.parametrize("name", planted_samplers.DEFECTS)
def test_planted_defects_are_found_and_named(name):
    function, order, topics = planted_samplers.DEFECTS[name]
    assert set(topics) <= wrong(check_sampler(function, order=order))


def k_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    ones = x.new_ones(len(x))
    for s, t in itertools.pairwise(sigmas):
        x = x + (t - s) * (x - model(x, s * ones)) / s
    return x


def test_functions_in_the_manner_of_k_diffusion_are_judged():
    verdict = check_sampler(k_euler, order=1)
    assert verdict.passed, verdict.checks
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
    verdict = check_sampler(function)
    assert wrong(verdict) == {"runs"}
    assert text in verdict.check("runs").detail


def test_a_sampler_that_fails_later_keeps_its_other_findings():
    def sampler(field, x, times):
        if len(times) == 50:
            raise ValueError("49 steps are not for me")
        return planted_samplers.euler(field, x, times)

    verdict = check_sampler(sampler, order=1)
    assert wrong(verdict) == {"evaluations"}
    assert "49 steps are not for me" in verdict.check("evaluations").detail


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
    assert [f["name"] for f in facts["checks"] if f["passed"] is False] == ["order"]
    (tmp_path / "mine.py").write_text((HERE / "planted_samplers.py").read_text())
    assert "1 finding against it" in command("check", "mine.py:batch_leak", "--order", "2", cwd=tmp_path, code=1).stdout
    options = ("--order", "2", "--option", "swap=false", "--grid", "log_snr")
    assert "nothing wrong" in command("check", "mine.py:second_order_multistep", *options, cwd=tmp_path).stdout
    assert "KEY=VALUE" in command("check", "mine.py:heun", "--option", "nonsense", cwd=tmp_path, code=2).stderr


OF_FIRST_ORDER = """
import torch

def alternate(field, x, times):
    print("a sampler that talks")
    for k, (t, s) in enumerate(zip(times, times[1:])):
        slope = field.velocity(x, t)
        end = x + (s - t) * slope
        if k % 2:
            end = x + (s - t) * (slope + field.velocity(end, s)) / 2
        x = end
    return x

def garbage(field, x, times):
    for t, s in zip(times, times[1:]):
        x = x + (s - t) * field.velocity(x, t) if s > 0 else 40 * torch.ones_like(x)
    return x

def biased(field, x, times):
    for t, s in zip(times, times[1:]):
        x = x + 1.02 * (s - t) * field.velocity(x, t)
    return x

def noisy(field, x, times, generator):
    for t, s in zip(times, times[1:]):
        d = field.denoised(x, t)
        x = d + s * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x
"""


@pytest.fixture
def first_order(tmp_path):
    (tmp_path / "own.py").write_text(OF_FIRST_ORDER)
    return tmp_path


@pytest.mark.parametrize("where", [{"path": "rectified_flow"}, {"grid": "karras:rho=3"}])
def test_a_first_order_method_on_a_grid_that_does_not_suit_it_is_not_called_wrong(where):
    verdict = check_sampler("euler", **where)
    assert verdict.check("moments").passed
    assert "goes to 0" in verdict.check("moments").detail
    assert verdict.passed, [f for f in verdict.checks if f.passed is False]


def test_a_bias_that_more_steps_leave_is_found(first_order):
    found = check_sampler(f"{first_order / 'own.py'}:biased", grid="karras:rho=3").check("moments")
    assert found.passed is False
    assert "with any number of steps" in found.detail


def test_a_garbage_step_to_no_noise_is_found(first_order):
    found = check_sampler(f"{first_order / 'own.py'}:garbage").check("sigma = 0")
    assert found.passed is False
    assert "no sample" in found.detail


def test_half_an_evaluation_a_step_is_a_rule(first_order):
    verdict = check_sampler(f"{first_order / 'own.py'}:alternate")
    assert verdict.check("evaluations").passed
    assert "1.5 a step" in verdict.check("evaluations").detail


def test_an_order_claimed_of_a_sampler_that_draws_noise_is_not_ignored(first_order):
    found = check_sampler(f"{first_order / 'own.py'}:noisy", order=3).check("order")
    assert found.passed is None
    assert "order 3 is claimed: not measured" in found.detail


def test_what_a_sampler_prints_leaves_the_answer_alone(first_order):
    done = command("check", "own.py:alternate", "--json", cwd=first_order, code=None)
    assert json.loads(done.stdout)["subject"] == "own.py:alternate"
    assert "a sampler that talks" in done.stderr


def at_zero(happens):
    """Euler's method, but for a last step to sigma = 0."""

    def sampler(field, x, times):
        if times[-1] == 0:
            return happens(field, x, times)
        return planted_samplers.euler(field, x, times)

    return sampler


def refuses(field, x, times):
    raise ArgumentError("give times above 0")


def crashes(field, x, times):
    raise ZeroDivisionError("sigma is 0")


@pytest.mark.parametrize(("happens", "passed", "text"), [
    (refuses, None, "refuses a last step to sigma = 0: give times above 0"),
    (crashes, False, "raises ZeroDivisionError in a last step to sigma = 0"),
    (lambda field, x, times: x * torch.nan, False, "non-finite values in a last step"),
])  # fmt: skip
def test_what_a_sampler_does_at_no_noise_is_told(happens, passed, text):
    found = check_sampler(at_zero(happens), order=1).check("sigma = 0")
    assert found.passed is passed
    assert text in found.detail


@pytest.mark.parametrize(("end", "passed"), [(-4.5, False), (-4.3, True), (4.9, True), (5.1, False)])
def test_a_last_step_to_another_mode_is_a_sample_up_to_eight_of_its_deviations(end, passed):
    """The modes of the target are N(-2, 0.3^2) and N(1, 0.5^2), which end at -4.4 and at 5."""
    found = check_sampler(at_zero(lambda field, x, times: torch.full_like(x, end)), order=1).check("sigma = 0")
    assert found.passed is passed


def test_moments_of_a_sampler_that_is_not_affine_are_not_read_off():
    def clipped(field, x, times):
        return planted_samplers.euler(field, x, times).clamp(-1.5, 1.5)

    found = check_sampler(clipped).check("moments")
    assert found.passed is None
    assert "not affine" in found.detail


def test_an_order_that_can_not_be_measured_says_why():
    def stops(field, x, times):
        if len(times) > 100:
            raise RuntimeError("too many steps")
        return planted_samplers.euler(field, x, times)

    found = check_sampler(stops, order=1).check("order")
    assert found.passed is False
    assert "raised RuntimeError" in found.detail

    def overflows(field, x, times):
        return planted_samplers.euler(field, x, times) * (torch.inf if len(times) > 100 else 1)

    assert "not finite" in check_sampler(overflows, order=1).check("order").detail


def test_samplers_are_classes_objects_and_functions_that_take_a_generator_by_place():
    assert find_sampler(Heun, options={"chart": "noise"}).claimed == 2
    assert find_sampler(solvers.get("ddim")).claimed == 1

    def by_place(field, x, times, generator):
        assert isinstance(generator, torch.Generator)
        return planted_samplers.euler(field, x, times)

    assert check_sampler(by_place, order=1).passed


def make(change):
    def sampler(field, x, times):
        for s, t in itertools.pairwise(times):
            x = x + (t - s) * field.velocity(x, s)
        return change(x)

    return sampler


def test_a_leak_that_spares_the_first_row_is_found():
    leaking = make(lambda x: torch.cat([x[:1], x[1:] + 1e-5 * x[:-1]]))
    findings = {f.name: f for f in check_sampler(leaking, order=1).checks}
    assert findings["batches"].passed is False


def test_a_sampler_that_fails_on_its_second_size_of_batch_gets_a_verdict():
    kept = []

    def stale(field, x, times):
        kept.append(x)
        return make(lambda y: y + 0 * kept[0])(field, x, times)

    verdict = check_sampler(stale, order=1)
    assert not verdict.passed


def test_a_generator_is_passed_by_its_name():
    def sampler(field, x, times, eta=0.0, generator=None):
        assert isinstance(generator, torch.Generator)
        return make(lambda y: y + eta)(field, x, times)

    def keyword(field, x, times, *, generator):
        return sampler(field, x, times, generator=generator)

    for one in (sampler, keyword):
        findings = {f.name: f for f in check_sampler(one, order=1).checks}
        assert findings["runs"].passed is not False


def test_a_grid_that_does_not_exist_is_not_held_against_the_sampler():
    with pytest.raises(diffode.errors.UnknownNameError, match="nogrid"):
        find_sampler("ddim", grid="nogrid")
