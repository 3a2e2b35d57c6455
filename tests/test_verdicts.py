"""Verdicts on public samplers: findings that are known are found again, and pages say what their lines print."""

import importlib
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from diffode import paths, solvers
from diffode.adapters import as_comfyui_sampler
from diffode.errors import ArgumentError
from diffode.numerics import exponential_butcher
from diffode.verify import check_sampler
from diffode.verify.sampler import scheduler_given
from diffode.verify.sampler.scheduler_levels import CannotJudgeError
from diffode.verify.sampler.scheduler_loops import find_scheduler

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import make_verdicts
from verdicts import deis, exact_law, integrators, kept, mending, pages, res4lyf, schedulers
from verdicts.peers import Peers
from verdicts.row import Claim, Row, judge

ROOT = Path(__file__).parents[1]
diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.filterwarnings("ignore")]

CLAIMS = [claim for claim in schedulers.claims() if claim.order is not None]


def scheduler_row(name, **options):
    (claim,) = [c for c in CLAIMS if c.sampler == f"{name}Scheduler" and c.options == options]
    return judge(claim)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Fewer steps between a class's own levels, which no claim here is about."""
    monkeypatch.setattr("diffode.verify.sampler.scheduler_trial.STEPS", (10, 20, 50))


@pytest.mark.parametrize(("name", "options", "order", "verdict"), [
    ("DPMSolverMultistep", {"solver_order": 2, "algorithm_type": "dpmsolver++"}, 2, "right"),
    ("DPMSolverMultistep", {"solver_order": 3, "algorithm_type": "dpmsolver++"}, 2, "wrong"),
    ("EDMDPMSolverMultistep", {"solver_order": 3}, 2, "wrong"),
    ("DEISMultistep", {"solver_order": 3}, 3, "right"),
    ("UniPCMultistep", {"solver_order": 2, "solver_type": "bh2"}, 3, "right"),
    ("UniPCMultistep", {"solver_order": 2, "prediction_type": "flow_prediction", "use_flow_sigmas": True}, 3, "right"),
    pytest.param("LMSDiscrete", {}, 4, "open", marks=pytest.mark.slow),
    ("HeunDiscrete", {"prediction_type": "v_prediction"}, 2, "right"),
])  # fmt: skip
def test_orders_of_schedulers_are_those_that_are_known(name, options, order, verdict):
    row = scheduler_row(name, **options)
    assert row.verdict == verdict
    assert row.order == pytest.approx(order, abs=0.25 if order < 4 else 0.8)
    assert row.wrong == (("order",) if verdict == "wrong" else ())
    assert row.repeatable
    assert row.batches
    assert (row.finding == "third_order_multistep") == (verdict == "wrong")


def test_unipc_with_bh1_is_found_to_end_in_nan():
    row = scheduler_row("UniPCMultistep", solver_order=2, solver_type="bh1")
    assert (row.verdict, row.wrong, row.order) == ("wrong", ("runs",), None)


def test_the_line_that_mends_third_order_does_mend_it():
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_multistep")
    fixed = mending.mended(module, ("D2 = (1.0 / (r0 + r1))", "D2 = (2.0 / (r0 + r1))"))
    own, new = (mending.scheduler(m.DPMSolverMultistepScheduler, solver_order=3) for m in (module, fixed))
    assert mending.given_order(own) == pytest.approx(2, abs=0.25)
    assert mending.given_order(new) == pytest.approx(3, abs=0.25)
    with pytest.raises(LookupError, match="has no 'D2 = 7'"):
        mending.mended(module, ("D2 = 7", ""))


def claims_of(library, sampler):
    return [claim for claim in library if claim.sampler == sampler]


def test_adams_methods_of_torchdiffeq_lose_their_order_on_uneven_times():
    even, uneven = map(judge, claims_of(integrators.torchdiffeq(), "implicit_adams"))
    assert (even.verdict, uneven.verdict, uneven.wrong) == ("right", "wrong", ("order",))
    assert uneven.order == pytest.approx(2, abs=0.2)


def test_torchdiffeq_makes_a_step_more_than_was_asked_for():
    (claim,) = claims_of(integrators.torchdiffeq(), "midpoint")
    row = judge(claim)
    assert (row.wrong, row.evaluations.split(" at")[0]) == (("evaluations",), "100 evaluations instead of 98")
    assert row.order == pytest.approx(2, abs=0.1)


def test_flow_matching_has_the_orders_that_it_claims():
    pytest.importorskip("flow_matching")
    rows = [judge(claim) for claim in integrators.flow_matching() if "midpoint" in claim.sampler or "heun3" in claim.sampler]
    assert [row.verdict for row in rows] == ["right"] * 3
    assert [round(row.order) for row in rows] == [2, 3, 2]


def test_azula_has_one_class_of_first_order_at_any_order():
    pytest.importorskip("azula")
    found = {c.sampler: judge(c) for c in integrators.azula() if c.order == 2 and c.sampler in ("REABSampler", "xEABSampler")}
    assert found["REABSampler"].wrong == ("order",)
    assert found["REABSampler"].order == pytest.approx(1, abs=0.15)
    assert found["xEABSampler"].verdict == "right"


@pytest.mark.parametrize("steps", [5, 16])
@pytest.mark.parametrize(("name", "options"), [
    ("EulerDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("HeunDiscreteScheduler", {}),
    ("EDMEulerScheduler", {}),
])  # fmt: skip
def test_given_levels_are_karras_in_float64_and_end_as_the_class_does(name, options, steps):
    run = find_scheduler(name, options).between_given_levels().at(steps)
    # In float32 the levels of a class differ from these by 1e-7.
    low, high = 0.05 ** (1 / 7), 20 ** (1 / 7)
    levels = list(dict.fromkeys(run.rho))
    count = sum(level > 0 for level in levels)
    expected = [(high + (low - high) * k / (count - 1)) ** 7 for k in range(count)]
    assert levels[:count] == pytest.approx(expected, rel=1e-12)
    assert levels[count:] == ([] if "final_sigmas_type" in options else [0.0])


def test_inner_levels_are_the_geometric_means_that_the_class_makes():
    found = find_scheduler("KDPM2DiscreteScheduler", {}).between_given_levels().at(4).rho
    assert found[1] == pytest.approx((found[0] * found[2]) ** 0.5, rel=1e-12)
    assert found[3] == pytest.approx((found[2] * found[4]) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("name", ["DDIMScheduler", "IPNDMScheduler", "PNDMScheduler"])
def test_a_class_without_levels_of_its_own_is_not_given_any(name):
    with pytest.raises(CannotJudgeError):
        find_scheduler(name, {}).between_given_levels().at(8)
    assert scheduler_given.LEVELS == (20.0, 0.05)


def asks_for_levels(model, x, sigmas, extra_args=None, disable=None):
    """Euler's method as a function of ComfyUI: it wants the object that knows the model's levels."""
    levels = model.inner_model.inner_model.model_sampling
    assert levels is model.inner_model.model_patcher.get_model_object("model_sampling")
    assert float(sigmas[-1] or sigmas[-2]) <= levels.percent_to_sigma(0.5) <= float(sigmas[0])
    for i in range(len(sigmas) - 1):
        level = sigmas[i : i + 1].expand(len(x))
        x = x + (sigmas[i + 1] - sigmas[i]) * (x - model(x, level)) / level[:, None]
    return x


def test_functions_that_ask_for_comfyuis_objects_are_judged():
    report = check_sampler(asks_for_levels, order=1)
    assert report.passed
    # Levels come in the dtype of the states, so that float32 stays.
    assert report.check("runs").passed


@pytest.mark.parametrize("spec", ["euler_ancestral", "dpmpp_2m_sde", "seeds:order=2,chart=data", "dpmpp:order=2"])
def test_the_law_from_one_batch_is_the_one_that_a_table_carries(spec):
    levels = [20.0, 9.0, 3.0, 1.0, 0.2]
    table = solvers.table_solver(spec).tableau(paths.get("edm:sigma_min=0.02,sigma_max=40"), levels)
    start = torch.tensor([exact_law.VARIANCE], dtype=torch.float64)
    expected = table.propagate(exact_law.MEAN, start)
    mean, variance = exact_law.law(as_comfyui_sampler(spec), levels)
    assert mean == pytest.approx(float(expected.mean), rel=1e-11)
    assert variance == pytest.approx(float(expected.variance), rel=1e-11)


def overlapping(model, x, sigmas, *, noise_sampler, disable):
    """Noise of a whole step less that of its parts: nothing, if all of it is one Brownian motion in sigma."""
    first, last = sigmas[0], sigmas[-1]
    middle = (first + last) / 3
    for a, b, sign in ((first, last, 1.0), (first, middle, -1.0), (middle, last, -1.0)):
        x = x + sign * (a - b).sqrt() * noise_sampler(a, b)
    return x


def test_noise_of_overlapping_steps_is_one_brownian_motion():
    mean, variance = exact_law.law(overlapping, [9.0, 1.0])
    assert mean == pytest.approx(exact_law.MEAN)
    assert variance == pytest.approx(exact_law.VARIANCE + 81.0, rel=1e-12)


def test_weak_orders_of_functions_are_those_of_our_tables():
    for spec, order in (("euler_ancestral", 1), ("dpmpp_2m_sde", 2)):
        assert exact_law.weak_order(as_comfyui_sampler(spec)).slope == pytest.approx(order, abs=0.1)


def test_rows_survive_their_file_and_refuse_no_claim():
    row = judge(Claim("diffode", "heun", "heun:chart=noise", source="here", chart="noise"))
    (again,) = kept.rows_of(json.loads(json.dumps([row.json()])))
    assert again.order == pytest.approx(2, abs=0.1)
    assert again.json() == row.json()
    left = judge(Claim("x", "y", None, remark="chooses its own steps"))
    assert left == Row("x", "y", "", "", None, "", "not judged", remark="chooses its own steps")
    with pytest.raises(ArgumentError):
        judge(Claim("x", "y", "diffusers:NoSuchScheduler"))


def test_a_run_that_was_killed_loses_no_row_but_the_one_in_hand(tmp_path, monkeypatch):
    """A kill is stood in for by an interrupt in the third trial, and by a line that was cut while it was written."""
    trials = []

    def judged(claim):
        trials.append(claim.sampler)
        if trials == ["a", "b", "c"]:
            raise KeyboardInterrupt
        return Row("x", claim.sampler, "", "", None, "", "right", order=2.0)

    monkeypatch.setattr(kept, "judge", judged)
    claims, unfinished = [Claim("x", name, "euler") for name in "abcd"], kept.Unfinished(tmp_path / "rows" / "x.jsonl", "1.0")
    with pytest.raises(KeyboardInterrupt):
        kept.judge_all(claims, unfinished, False)
    assert [row.sampler for row in unfinished.rows()] == ["a", "b"]
    with unfinished.file.open("a") as file:
        file.write('{"origin": "x", "sampl')
    rows, failed = kept.judge_all(claims, unfinished, True)
    assert ([row.sampler for row in rows], failed) == (list("abcd"), [])
    assert trials == ["a", "b", "c", "c", "d"]
    assert unfinished.rows() == rows
    kept.judge_all(claims, kept.Unfinished(unfinished.file, "1.1"), True)
    assert trials[5:] == list("abcd"), "rows of another version are worth nothing"
    kept.judge_all(claims, kept.Unfinished(unfinished.file, "1.1"), False)
    assert trials[9:] == list("abcd")


def test_a_trial_that_raises_costs_its_own_row(tmp_path):
    said = []
    claims = [Claim("x", "y", "diffusers:NoSuchScheduler"), Claim("x", "z", None, remark="left")]
    rows, failed = kept.judge_all(claims, kept.Unfinished(tmp_path / "x.jsonl", "1"), False, said.append)
    assert failed == ["x y"]
    assert [row.verdict for row in rows] == ["not judged", "not judged"]
    assert rows[0].remark.startswith("its trial raised ArgumentError: ")
    assert said[0].startswith("x, y : its trial raised ArgumentError")


def test_a_library_that_fails_costs_no_other_and_keeps_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_verdicts, "OUT", tmp_path / "docs")
    monkeypatch.setattr(make_verdicts, "UNFINISHED", tmp_path / "build")
    monkeypatch.setattr(Peers, "version", lambda self, name: "2.0")
    (tmp_path / "docs").mkdir()
    old = [Row("broken", "a", "", "", None, "", "right"), Row("fine", "b", "", "", None, "", "right")]
    kept.write_rows(tmp_path / "docs" / "verdicts.json", {"broken": "1.0", "fine": "1.0"}, old)

    def broken():
        yield Claim("broken", "a", None, remark="new")
        raise ImportError("no such file")

    wanted = {"broken": broken, "fine": lambda: [Claim("fine", "c", None, remark="new")]}
    assert make_verdicts.judge_libraries(wanted, Peers(), False) == ["broken"]
    recorded = json.loads((tmp_path / "docs" / "verdicts.json").read_text())
    assert recorded["versions"] == {"broken": "1.0", "fine": "2.0"}
    assert [(row["sampler"], row["remark"]) for row in recorded["rows"]] == [("a", ""), ("c", "new")]
    assert "no such file" in capsys.readouterr().err


def test_samplers_of_deis_are_made_once_for_the_same_times_and_follow_the_field_that_is_given():
    made = []

    def get_sampler(sde, noise, **options):
        made.append((sde, options["num_step"]))
        return lambda x: noise(x, torch.tensor(0.5))

    module = types.SimpleNamespace(
        VPSDE=lambda *given: given[-2:], get_linear_alpha_fns=lambda *ends: ends, get_sampler=get_sampler
    )
    run = deis.sampler(module, "t_ab")
    fields = [types.SimpleNamespace(noise=lambda y, t, k=k: k * y) for k in (1, 2)]
    for field, k in zip(fields, (1, 2), strict=True):
        assert run(field, torch.ones(2, 1), [1.0, 0.5, 0.1]).tolist() == [[k], [k]]
    run(fields[0], torch.ones(2, 1), [1.0, 0.1])
    assert made == [((0.1, 1.0), 2), ((0.1, 1.0), 1)]


@pytest.mark.parametrize(("method", "power", "order"), [
    ("krogstad", True, 3), ("hochbruck_ostermann_4", True, 4), ("etd4", True, 2), ("krogstad", False, 2),
])  # fmt: skip
def test_a_table_of_numbers_has_the_stiff_order_of_its_method(method, power, order):
    """In the form of RES4LYF, numbers for a step h = -z; without a power an inner entry is four times itself."""
    own = exponential_butcher.get(method)

    def numbers(name, h, **levels):
        z = -float(h)
        assert float(levels["sigma"] / levels["sigma_next"]) == pytest.approx(math.exp(-z), rel=1e-9)
        rows = [[], *(own.stage(i, z) for i in range(1, len(own.nodes)))]
        if not power:
            more = 3 * own.stage(2, z)[1]
            rows[2] = [rows[2][0] - more, rows[2][1] + more]
        padded = [[*row, *[0.0] * (len(own.nodes) - len(row))] for row in rows]
        return padded, [own.step(z)], None, None, [*own.nodes, 1], 0, 0, False

    table = res4lyf.Table(method, types.SimpleNamespace(get_rk_methods_beta=numbers))
    assert table.nodes == own.nodes
    assert table.conditions == order


def test_a_page_shows_its_lines_with_what_they_print(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "FINDINGS", tmp_path)
    (tmp_path / "one.md").write_text("# One\n\n```py\nprint(2 + 2)\n```\n\nthen\n\n```few\nprint('| 3 |')\n```\n")
    assert pages.title("one") == "One"
    expected = "# One\n\n```py\nprint(2 + 2)\n```\n\nprints\n\n```text\n4\n```\n\nthen\n\n| 3 |\n"
    assert pages.finding_page("one", Peers()) == expected


def test_tables_name_what_is_wrong_and_lead_to_its_page():
    row = Row("x", "f", "k=3", "data", 3, "paper", "wrong", ("order",), 2.0, (1.9, 2.1), (8, 16), (1e-2, 1e-3), False, "l",
              evaluations="1 a step: 10 for 10 steps, 50 for 50", finding="third")  # fmt: skip
    line = pages.page_of_library("x", "1.0", [row]).splitlines()[-1]
    assert line == (
        "| `f` | k=3 | data | 3 (paper) | 2.00 (not in its asymptotic range) | flow, 1.0e-02 at 8 steps, 1.0e-03 at 16 "
        "| 10 for 10 | [**wrong**: order](third.md) |"
    )


def test_what_is_not_there_is_not_judged():
    absent = {"ComfyUI", "k-diffusion", "UniPC", "dpm-solver", "deis", "RES4LYF", "torchdyn", "torchode", "torchcfm"}
    assert not absent & set(make_verdicts.libraries(Peers()))
    assert {"diffusers", "torchdiffeq", "torchsde"} <= set(make_verdicts.libraries(Peers()))


def test_recorded_rows_name_findings_that_have_pages_and_cover_the_classes():
    recorded = json.loads((ROOT / "docs" / "verdicts" / "verdicts.json").read_text())
    rows = kept.rows_of(recorded["rows"])
    named = {row.finding for row in rows if row.finding}
    assert named <= set(make_verdicts.SHOWN_BY)
    for name in make_verdicts.SHOWN_BY:
        assert (pages.FINDINGS / f"{name}.md").is_file()
        assert (ROOT / "docs" / "verdicts" / f"{name}.md").is_file()
    if recorded["versions"]["diffusers"] == diffusers.__version__:
        from diffode.verify.sampler.scheduler_loops import classes

        assert set(classes()) == {row.sampler for row in rows if row.origin == "diffusers"}
    for row in rows:
        if row.verdict == "wrong" and row.origin != "diffusers":
            assert row.finding, row
