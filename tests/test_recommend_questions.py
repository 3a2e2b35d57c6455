"""What a question asks for: steps of methods that ask once a step, lines within the budget, and names of what was run."""

import json

import pytest
import torch
from click.testing import CliRunner

import diffode
from diffode import solvers
from diffode.cli import bench_command, recommend_command
from diffode.errors import ArgumentError
from diffode.studies import Store, keyed_cells, load_suite, question, run_suite
from diffode.studies.answer import answers, in_a_sentence, other_kinds
from diffode.studies.paste import lines_to_paste, method_parts
from diffode.studies.ranking import Curve, curves
from diffode.studies.recommendation import recommend


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, in which nothing is stored."""
    monkeypatch.chdir(tmp_path)


def told(*words, command=recommend_command.command):
    return CliRunner().invoke(command, list(map(str, words)))


# -- steps and evaluations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["sdxl", "edm"])
def test_no_line_of_azula_costs_more_than_the_budget(path):
    """azula's last step ends with some noise, where the second stage of a step is an evaluation more than to no noise."""
    for method in ("dpmpp_s:order=2 @ ays_sd15", "edm_heun @ log_snr:to_zero=true", "dpm:order=2 @ log_snr", "ddim @ ays_sd15"):
        solver = solvers.get(method.partition(" @ ")[0])
        for nfe in (3, 4, 5):
            lines = lines_to_paste(method, nfe, path)
            if line := lines.get("azula", [""])[-1]:
                steps = int(line.partition("steps=")[2].partition(")")[0])
                grid = line.partition('grid="')[2].partition('"')[0]
                assert solver.tableau(path, grid, steps).nfe <= nfe
            # Three and five evaluations are two and three steps of two stages, one evaluation short.
            assert ("azula" in lines) == (nfe == 4 or solver.nfe_per_step == 1)


def test_steps_are_those_of_methods_that_ask_once_a_step():
    """Within three evaluations dpmpp_s alone was run on sdxl, by two steps: who asks for three steps is not told of it."""
    by_nfe = json.loads(told("--schedule", "sdxl", "--nfe", 3, "--json").stdout)
    assert {row["method"].partition(":")[0] for row in by_nfe["ranking"]} == {"dpmpp_s"}
    refused = told("--schedule", "sdxl", "--steps", 3).exception
    assert isinstance(refused, ArgumentError)
    assert "the smallest nfe that is: 4" in str(refused)
    for words in (("--schedule", "sdxl", "--steps", 5), ("--guidance", 7.5, "--steps", 4)):
        facts = json.loads(told(*words, "--json", "--top", 99).stdout)
        recipes = [solvers.get(row["method"].partition(" @ ")[0]) for row in facts["ranking"]]
        assert len(recipes) > 10
        assert all(recipe.nfe_per_step == 1 for recipe in recipes)
        assert f"num_inference_steps={words[-1]}" in facts["programs"]["diffusers"][-1]


@pytest.mark.parametrize("solver", [
    "heun", "amed", "dpm_fast", "dpmpp_2s_ancestral", "pc", "restart", "torchdiffeq:rk4", "scipy:RK45", "rk_adaptive",
])  # fmt: skip
def test_methods_that_ask_more_often_than_once_a_step_are_left_out(solver):
    others = [Curve("a", "edm", "karras", one, (6,), (0.1,), 0.0, (6,)) for one in ("ddim", "unipc:order=2", "universal")]
    own = Curve("a", "edm", "karras", solver, (6,), (0.01,), 0.0, (6,))
    assert question.once_a_step([own, *others], 6) == others
    with pytest.raises(ArgumentError, match=r"no method that was run here asks the model once a step: .*--nfe 6"):
        question.once_a_step([own], 6)


# -- what was run --------------------------------------------------------------------------------------------------------

MINE = """name = "mine"
[defaults]
paths = ["edm"]
grids = ["karras"]
nfe = [4]
seeds = [0]
points = 4
tolerance = 1e-5
[[study]]
targets = ["gauss1d"]
solvers = ["ddim"]
"""


def test_a_path_that_was_not_run_is_named_with_those_that_were(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    ran = told("mine.toml", "--no-report", "--jobs", 1, command=bench_command.command)
    assert ran.exit_code == 0, ran.output
    for path in ("foo", "vp"):
        for more in ((), ("--target", "ring8")):
            error = told("--suite", "mine.toml", "--nfe", 16, "--path", path, *more).exception
            assert isinstance(error, ArgumentError)
            assert f"nothing of this suite was run on path '{path}'" in str(error)
            assert "paths that were: edm." in str(error)
    assert "did you mean 'edm'" in str(told("--suite", "mine.toml", "--nfe", 16, "--path", "edn").exception)
    assert told("--suite", "mine.toml", "--nfe", 16, "--path", "edm").exit_code == 0
    assert "targets: gauss1d; tags: 1d" in str(told("--suite", "mine.toml", "--nfe", 16, "--target", "ring8").exception)
    # A path of the suite that has no results yet is one to run.
    (tmp_path / "mine.toml").write_text(MINE.replace('["edm"]', '["edm", "vp"]'))
    error = str(told("--suite", "mine.toml", "--nfe", 16, "--path", "vp").exception)
    assert "nothing of suite 'mine' on path 'vp' is stored in" in error
    assert "run diffode bench mine.toml first" in error


def test_a_path_that_a_shipped_suite_has_not_is_not_answered_with_a_run_in_vain():
    error = str(told("--suite", "schedules", "--nfe", 8, "--path", "foo").exception)
    assert "was not run on path 'foo', but on ddpm:" in error
    assert "name one of these" in error
    assert "diffode bench" not in error


def test_a_consistency_functions_schedule_is_answered_with_a_note(tmp_path):
    for name, noted in (
        ("LCMScheduler", True),
        ("TCDScheduler", True),
        ("FlowMatchLCMScheduler", True),
        ("DDIMScheduler", False),
    ):
        config = {"_class_name": name, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        (tmp_path / "s.json").write_text(json.dumps(config))
        words = ("--schedule", "s.json", "--nfe", 8)
        notes = json.loads(told(*words, "--json").stdout)["notes"]
        assert any("consistency function" in note for note in notes) == noted
        assert ("few-step sampler of its own, keep its scheduler" in told(*words).stdout) == noted
        assert any("from_consistency" in note for note in notes) == (noted and name != "FlowMatchLCMScheduler")


def test_an_unknown_schedule_lists_each_name_once():
    text = str(told("--schedule", "sd3", "--nfe", 8).exception)
    assert text.count("rectified_flow") == text.count("vp_cosine") == text.count("edm") == 1
    assert "scheduler_config.json of a model" in text


@pytest.mark.parametrize(
    ("best", "other"), [("ipndm:order=3,jump=auto", "ipndm:order=3"), ("dpmpp_s:order=2,jump=auto", "ddim")]
)
def test_where_other_programs_can_not_make_the_best_run_or_need_statistics_another_is_told(tmp_path, best, other):
    """The first runs in diffusers with statistics of latents; steps of two evaluations have no line."""
    suite = tmp_path / "known.toml"
    suite.write_text(
        'name = "known"\nsummary = "t"\n[defaults]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [8]\nseeds = [0]\npoints = 16\n'
        'tolerance = 1e-6\n[[study]]\ntargets = ["ring8", "bimodal1d"]\n'
        f'solvers = ["{best}", "ddim", "{other}"]\n'
    )
    run_suite(load_suite(str(suite)), tmp_path / "diffode-report" / "results.sqlite", jobs=1)
    done = told("--suite", suite, "--nfe", 8)
    assert done.exit_code == 0, done.output
    runs = best.startswith("ipndm")
    said = (
        "Without latents to take statistics of, the best is "
        if runs
        else "can't be told to make this run. The best that they can is "
    )
    assert f"{said}{other}, " in done.stdout
    assert done.stdout.count("diffode:\n") == 1
    assert done.stdout.count("diffusers:\n") == 1 + runs
    assert f"{best} knows mean and covariance of the data; of those that need not, {other} on" in done.stdout
    with Store("diffode-report/results.sqlite") as store:
        found = answers(curves(store.get(keyed_cells(load_suite(str(suite))))))
    assert f"It knows mean and covariance of the data; without these take {other}: 0." in in_a_sentence(found)
    assert f'as_diffusers_scheduler("{other}", ' in done.stdout
    found = json.loads(told("--suite", suite, "--nfe", 8, "--json").stdout)
    assert found["elsewhere"]["method"] == other
    assert list(found["programs"]) == (["diffode", "diffusers"] if runs else ["diffode"])


@pytest.mark.parametrize(
    "method", ["ipndm:order=3,jump=auto", "ab:order=2,chart=gaussian_angle @ log_snr", "universal:chart=gaussian"]
)
def test_lines_of_solvers_that_know_the_data_hand_over_its_statistics(method):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    (*first, last) = lines_to_paste(method, 6, "edm")["diffode"]
    names = {"diffode": diffode, "field": field, "x": x}
    exec("\n".join([*first, f"run = {last}"]), names)
    spec, grid = method_parts(method)
    torch.testing.assert_close(names["run"].x, diffode.solve(field, x, solver=spec, grid=grid, nfe=6).x, rtol=0, atol=1e-12)
    assert "statistics=known" in last


def test_advice_names_its_metric_and_the_tags_on_which_another_is_best():
    def curve(target, solver, error):
        return Curve(target, "edm", "karras", solver, (8,), (error,), 0.0, (8,))

    values = dict.fromkeys(("ring8", "moons", "spiral"), (0.1, 0.9)) | dict.fromkeys(
        ("digits-gmm10", "digits-empirical"), (0.5, 0.4)
    )
    both = [curve(t, s, e) for t, pair in values.items() for s, e in zip(("ddim", "heun"), pair, strict=True)]
    said = other_kinds(both, 8, "ddim")
    assert said.startswith("another is best on some: heun on targets with the tag high-dimensional or images")
    assert "2d" not in said
    assert other_kinds(both[:6], 8, "ddim") == ""
    ranked = recommend(both, 8)
    assert "expect an error of 0.19 of the data's scale, as a distance" in recommend_command.verdict(ranked, "endpoint")
    assert "expect mode_weights of 0.19: " in recommend_command.verdict(ranked, "mode_weights")
    assert "expect w1 of 0.19 in units of the data's scale: " in recommend_command.verdict(ranked, "w1")


@pytest.mark.parametrize("program", ["k-diffusion", "ComfyUI"])
def test_a_line_makes_levels_that_are_too_many_to_list(program):
    """A thousand of them, equal to those of the run; 32 are listed."""
    long, short = (lines_to_paste("ddim @ log_snr:to_zero=true", steps, "sdxl")[program] for steps in (999, 31))
    assert max(map(len, long)) < 160
    given = {}
    exec("\n".join(line for line in long if "comfy" not in line and not line.startswith("x =")), given)
    on = diffode.paths.get("sdxl")
    levels = [on.rho(t) for t in diffode.grids.get("log_snr:to_zero=true", on, 999).tolist()]
    torch.testing.assert_close(given["sigmas"], torch.tensor(levels), rtol=0, atol=0)
    assert not any("grids.get" in line for line in short)


def test_a_question_whose_runs_are_all_on_one_path_is_answered_for_programs_that_take_levels(tmp_path):
    """The suite guidance has one path, which nobody has to name."""
    (tmp_path / "one.toml").write_text(
        '[[study]]\ntargets = ["ring8"]\nguidance = ["label=three,weight=7.5"]\npaths = ["edm"]\ngrids = ["karras"]\n'
        'seeds = [0]\nsolvers = ["ddim"]\nnfe = [8]\npoints = 8\ntolerance = 1e-6\n'
    )
    run_suite(load_suite("one.toml"), tmp_path / "results.sqlite", jobs=1)
    done = told("--suite", "one.toml", "--output", ".", "--guidance", 7.5, "--steps", 4, "--json")
    programs = json.loads(done.stdout)["programs"]
    assert list(programs) == ["diffode", "diffusers", "azula", "k-diffusion", "ComfyUI"]
    assert programs["k-diffusion"][2].startswith("sigmas = torch.tensor([80, ")
