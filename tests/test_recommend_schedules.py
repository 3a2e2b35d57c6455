"""Advice for published schedules: the levels are theirs, the numbers are measured, and every line to paste makes the run."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scheduler_runs import Network
from scipy import stats

import diffode
from diffode import adapters, grids, paths, solvers
from diffode.adapters.diffusers_schedules import path_of
from diffode.adapters.scheduler_files import path_of_file
from diffode.cli import bench_command, recommend_command
from diffode.errors import ArgumentError, FileFormatError, UnknownNameError
from diffode.studies import load_suite, question
from diffode.studies.paste import lines_to_paste
from diffode.studies.ranking import Curve
from diffode.studies.recommendation import next_error, recommend
from diffode.studies.shipped import shipped_curves

diffusers = pytest.importorskip("diffusers")
SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, in which nothing is stored."""
    monkeypatch.chdir(tmp_path)


def told(*words, command=recommend_command.command):
    return CliRunner().invoke(command, list(map(str, words)))


# -- schedules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_stable_diffusions_levels_are_those_that_diffusers_computes(name):
    theirs = diffusers.EulerDiscreteScheduler(**SDXL).alphas_cumprod.double()
    path = paths.get(name)
    levels = torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(levels) ** 2, theirs, rtol=1e-5, atol=0)
    assert path == paths.get("ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012")


def test_fluxs_grid_is_the_shift_of_its_configuration():
    """FLUX.1-dev: max_shift 1.15 at 1024 x 1024, which diffusers applies to sigmas 1, ..., 1/n as e^mu/(e^mu + 1/t - 1)."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 50, 50), mu=1.15)
    named = next(cell.grid for cell in load_suite("schedules").cells if cell.grid.startswith("shift"))
    shift = float(named.partition("s=")[2].partition(",")[0])
    assert shift == pytest.approx(math.exp(1.15), rel=2e-4)
    theirs = scheduler.sigmas[1:50].double()
    u = 1 - torch.arange(1, 50).double() / 50
    torch.testing.assert_close(shift * u / (1 + (shift - 1) * u), theirs, rtol=2e-4, atol=0)


@pytest.mark.parametrize("grid", ["ays_sd15", "ays_sdxl"])
@pytest.mark.parametrize("steps", [4, 10, 12])
def test_published_levels_with_five_digits_begin_at_the_end_of_their_own_path(grid, steps):
    times = grids.get(grid, "sdxl", steps)
    assert times[0] == 1000
    assert paths.get("sdxl").rho(1000.0) == pytest.approx(14.615, rel=1e-4)
    with pytest.raises(ArgumentError, match="beyond the noise end"):
        grids.get(grid, "ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.0115", steps)


@pytest.mark.parametrize(
    ("scheduler", "options", "spec"),
    [
        ("EulerDiscreteScheduler", SDXL, "ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012"),
        ("DDIMScheduler", {"beta_end": 0.015}, "ddpm:beta_end=0.015"),
        (
            "DDPMScheduler",
            {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
            "ddpm:schedule=cosine,levels=500",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "rectified_flow"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "rectified_flow"),
        ("EDMEulerScheduler", {"sigma_max": 60.0}, "edm:t_max=60.0"),
    ],
)
def test_a_schedulers_file_is_the_path_that_the_scheduler_itself_has(tmp_path, scheduler, options, spec):
    made = getattr(diffusers, scheduler)(**options)
    made.save_pretrained(tmp_path)
    path = path_of_file(tmp_path / "scheduler_config.json")
    assert path.spec == spec
    direct = path_of(made)
    assert path.t_max == pytest.approx(direct.t_max)
    for share in (0.1, 0.5, 0.9):
        t = path.t_min + share * (path.t_max - path.t_min)
        assert path.rho(t) == pytest.approx(direct.rho(t), rel=1e-5)


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DDPMScheduler", "EDMEulerScheduler"])
def test_keys_that_a_file_leaves_out_have_the_schedulers_own_defaults(tmp_path, scheduler):
    (tmp_path / "c.json").write_text(json.dumps({"_class_name": scheduler}))
    path, direct = path_of_file(tmp_path / "c.json"), path_of(getattr(diffusers, scheduler)())
    assert path.rho(path.t_max) == pytest.approx(direct.rho(direct.t_max), rel=1e-4)
    assert path.rho(path.t_min) == pytest.approx(direct.rho(direct.t_min), rel=1e-4)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", FileFormatError, "not valid JSON"),
        ("[1]", FileFormatError, "no _class_name"),
        ('{"beta_start": 0.1}', FileFormatError, "no _class_name"),
        ('{"_class_name": "DDIMScheduler", "beta_start": "x"}', FileFormatError, "no number"),
        ('{"_class_name": "DDIMScheduler", "beta_start": -1}', ArgumentError, "beta_start"),
        ('{"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true}', ArgumentError, "rescale_betas_zero_snr=True"),
        ('{"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}', ArgumentError, "diffode bench schedules --field"),
        ('{"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}', ArgumentError, "beta_schedule='laplace'"),
        ('{"_class_name": "VQDiffusionScheduler"}', ArgumentError, "follows no path"),
    ],
)
def test_files_without_a_schedule_that_has_a_name_are_refused(tmp_path, content, error, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(error, match=message):
        path_of_file(tmp_path / "c.json")
    with pytest.raises(ArgumentError, match="no such file"):
        path_of_file(tmp_path / "none.json")


def test_a_suite_moves_to_another_schedule_with_the_grids_that_begin_at_its_end():
    suite = load_suite("schedules")
    same = question.on_schedule(suite, question.path_of_schedule("sdxl"))
    assert same.cells == tuple(c for c in suite.cells if c.path == question.path_of_schedule("sdxl"))
    other = question.on_schedule(suite, "ddpm")
    assert {c.path for c in other.cells} == {"ddpm"}
    assert {c.grid for c in other.cells} == {
        "karras:to_zero=true", "log_snr:to_zero=true", "time_uniform:to_zero=true", "kl_optimal:to_zero=true"
    }  # fmt: skip
    with pytest.raises(UnknownNameError, match=r"scheduler_config\.json"):
        question.path_of_schedule("sdxll")


# -- certainty -----------------------------------------------------------------------------------------------------------


def test_the_interval_holds_the_next_problem_as_often_as_it_says():
    """Students t, by SciPy's own prediction interval and by drawing: 95 % of 4,000 next errors, within three deviations."""
    errors = np.random.default_rng(0).lognormal(-2, 1.5, (4000, 5))
    found = 0
    for row in errors:
        low, high = next_error(row[:4].tolist())
        found += low <= row[4] <= high
    assert abs(found / 4000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 4000)
    logs = np.log(errors[0, :4])
    ends = stats.t.interval(0.95, 3, logs.mean(), logs.std(ddof=1) * math.sqrt(1.25))
    assert np.log(next_error(errors[0, :4].tolist())) == pytest.approx(ends)
    assert next_error([0.1, 0.2]) == (None, None)
    assert all(map(math.isfinite, next_error([1e-300, 1.0, 1e300])))


def test_advice_says_which_methods_are_as_good_and_what_was_seen():
    curves = [
        Curve(target, "edm", "karras", solver, (8,), (error * factor,), 0.0, (8,))
        for target, error in zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True)
        for solver, factor in (("one", 1.0), ("near", 1.0 if target in "ab" else 1.2), ("far", 2.0))
    ]
    one, near, far = recommend(curves, 8)
    assert (one.least, one.most) == pytest.approx((0.1, 0.4))
    assert one.low < 0.1 < 0.4 < one.high
    assert (one.method, near.method, far.method) == ("one", "near", "far")
    assert (near.as_good, far.as_good) == (True, False)
    assert question.budget_note(curves, 8) == ""
    assert "more than 8" in question.budget_note(curves, 9)


# -- lines to paste ------------------------------------------------------------------------------------------------------


class Pipe:
    """A pipeline of diffusers without text: its loop around the exact network of a mixture."""

    def __init__(self, scheduler):
        self.scheduler, self.network = scheduler, Network("three modes", scheduler)
        self.start = torch.tensor([[-1.5], [-0.4], [0.3], [1.2]], dtype=torch.float64)

    def __call__(self, prompt, num_inference_steps):
        self.scheduler.set_timesteps(num_inference_steps)
        x = self.start * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.network(self.scheduler.scale_model_input(x, t), t), t, x).prev_sample
        return types.SimpleNamespace(images=x)


def pasted(lines, **given):
    exec("\n".join(lines), given)
    return given


MODES = Network("three modes", diffusers.EulerDiscreteScheduler(**SDXL)).field.target


@pytest.mark.parametrize("method", [
    "unipc:order=2 @ log_snr:to_zero=true", "ipndm:order=3 @ karras:to_zero=true", "dpmpp:order=2 @ ays_sdxl",
    "edm_heun @ karras:to_zero=true", "deis:order=3 @ kl_optimal:to_zero=true", "dpmpp_s:order=2 @ log_snr:to_zero=true",
])  # fmt: skip
def test_the_lines_for_every_program_make_the_run_that_was_measured(method, monkeypatch):
    path = paths.get("sdxl")
    field = diffode.exact_field(MODES, path)
    solver, _, grid = method.partition(" @ ")
    table = solvers.get(solver).within(path, grid or "karras", 9)
    start = Pipe(diffusers.EulerDiscreteScheduler(**SDXL)).start
    wanted = solvers.run_tableau(table, field, start * path.sigma(1000.0)).x
    lines = lines_to_paste(method, 9, "sdxl")
    programs = ["diffode", "diffusers", "azula", "k-diffusion", "ComfyUI"]
    # azula's last step ends with some noise, where a second stage is an evaluation beyond the budget.
    assert list(lines) == [program for program in programs if program != "azula" or solvers.get(solver).nfe_per_step == 1]
    x = start * path.sigma(1000.0)
    ours = pasted([f"run = {lines['diffode'][0]}"], diffode=diffode, field=field, x=x)["run"]
    torch.testing.assert_close(ours.x, wanted, rtol=0, atol=1e-12)
    # Pipelines start from noise of variance 1, the path at its end from sigma; both are normal.
    pipe = Pipe(diffusers.EulerDiscreteScheduler(**SDXL))
    pipe.start = x
    images = pasted(lines["diffusers"], pipe=pipe, prompt="a cat")["images"]
    torch.testing.assert_close(images, wanted, rtol=0, atol=2e-5)
    # Levels are printed with six digits, and the state at the first is x/alpha.
    end = path.alpha(float(table.times[-1]))
    denoise = adapters.as_k_diffusion(diffode.exact_field(MODES, "edm"))
    found = pasted(lines["k-diffusion"], model=denoise, noise=start)["x"]
    torch.testing.assert_close(found, wanted / end, rtol=0, atol=1e-4)
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.samplers", types.ModuleType("comfy.samplers"))
    sys.modules["comfy"].samplers = sys.modules["comfy.samplers"]

    class KSAMPLER:
        """As ComfyUI calls a function of k-diffusion's kind (comfy/samplers.py)."""

        def __init__(self, sampler_function, extra_options=None):
            self.sampler_function, self.extra_options = sampler_function, extra_options

        def sample(self, model, noise, sigmas):
            seen = []
            callback = lambda x: seen.append((x["i"], x["denoised"], x["x"]))  # noqa: E731
            x = self.sampler_function(model, noise * sigmas[0], sigmas, extra_args={}, callback=callback, disable=True)
            return x, seen

    sys.modules["comfy.samplers"].KSAMPLER = KSAMPLER
    given = pasted(lines["ComfyUI"])
    x, seen = given["sampler"].sample(denoise, start, given["sigmas"])
    torch.testing.assert_close(x, found, rtol=0, atol=1e-12)
    assert len(seen) == table.nfe


def test_the_lines_for_azula_and_for_flow_matching_make_the_run(monkeypatch):
    noise, denoise = pytest.importorskip("azula.noise"), pytest.importorskip("azula.denoise")
    schedule = noise.RectifiedSchedule()
    path = adapters.azula_path(schedule)
    field = diffode.exact_field(MODES, path)

    class Denoiser(denoise.Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = schedule

        def forward(self, x, t, **options):
            return types.SimpleNamespace(mean=field.denoised(x, float(t)))

    lines = lines_to_paste("deis:order=3 @ shift:s=3.158,to_zero=true", 8, "flux")
    assert "end with some noise" in lines["azula"][-1]
    assert list(lines) == ["diffode", "diffusers", "azula"], "programs give times of the flow where k-diffusion has levels"
    x = field.prior(4, generator=0)
    found = pasted(lines["azula"], denoiser=Denoiser(), x=x)["x"]
    wanted = diffode.solve(field, x, solver="deis:order=3", grid="shift:s=3.158", nfe=8).x
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    pipe = Pipe(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    on = paths.get("flux")
    start = pipe.start * on.sigma(on.t_max)
    pipe.start = start
    images = pasted(lines["diffusers"], pipe=pipe, prompt="a cat")["images"]
    wanted = diffode.solve(
        diffode.exact_field(MODES, on), start, solver="deis:order=3", grid="shift:s=3.158,to_zero=true", nfe=8
    ).x
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-5)


def test_a_program_whose_run_would_be_another_has_no_line():
    """Heun in native time steps in t, of which levels alone know nothing; a list of times belongs to one path."""
    assert "k-diffusion" not in lines_to_paste("heun @ log_snr", 8, "sdxl")
    assert "k-diffusion" in lines_to_paste("edm_heun @ log_snr", 8, "sdxl")
    assert "k-diffusion" not in lines_to_paste("euler_ancestral @ log_snr", 8, "sdxl")
    # Nine evaluations are four steps of two stages and one of a single one, which no number of steps says.
    assert list(lines_to_paste("dpmpp_s:order=2 @ karras", 9, "sdxl")) == ["diffode"]
    assert list(lines_to_paste("ddim @ times 80 1 0.01", 2, "edm")) == ["diffode"]
    assert "ComfyUI" not in lines_to_paste("ddim", 8)
    assert list(lines_to_paste("edm_heun:jump=auto", 8, "sdxl")) == ["diffode"]
    assert list(lines_to_paste("ipndm:order=3,jump=auto", 8, "flux")) == ["diffode"]


@pytest.mark.parametrize("method", ["ipndm:order=3,jump=auto @ karras:rho=3", "dpmpp:order=2,jump=2 @ log_snr"])
def test_the_lines_of_a_jump_make_the_run_that_was_measured(method):
    path = paths.get("sdxl")
    field = diffode.exact_field(MODES, path)
    solver, _, grid = method.partition(" @ ")
    lines = lines_to_paste(method, 6, "sdxl")
    assert list(lines) == ["diffode", "diffusers"]
    pipe = Pipe(diffusers.EulerDiscreteScheduler(**SDXL))
    pipe.start = x = pipe.start * path.sigma(1000.0)
    latents = MODES.sample(400, generator=torch.Generator().manual_seed(3))
    images = pasted(lines["diffusers"], pipe=pipe, prompt="a cat", latents=latents)["images"]
    wanted = diffode.solve(field, x, solver=solver, grid=grid, nfe=6, statistics=diffode.Statistics.of_samples(latents))
    torch.testing.assert_close(images, wanted.x, rtol=0, atol=2e-5)
    assert len(pipe.scheduler.timesteps) == wanted.nfe == 6


def test_the_line_for_a_pipeline_has_the_weight_that_was_asked_for():
    assert lines_to_paste("ddim", 8)["diffusers"][-1] == "images = pipe(prompt, num_inference_steps=8).images"
    lines = lines_to_paste("ddim:jump=auto", 8, "sdxl", calls=2, guidance=7.5)["diffusers"]
    assert lines[-1] == "images = pipe(prompt, num_inference_steps=8, guidance_scale=7.5).images"


# -- the command ---------------------------------------------------------------------------------------------------------


def test_a_newcomer_is_answered_without_a_run():
    done = told("--schedule", "sdxl", "--steps", 8)
    assert done.exit_code == 0, done.output
    for words in (
        "Within 8 evaluations on schedule sdxl (4 problems)", "take ", "on the grid ", "runner-up: ", "probability of 95 %",
        "on those that were tried", "results ship with diffode", "diffode bench schedules --schedule sdxl makes them anew",
        "pipe.scheduler = as_diffusers_scheduler(", "num_inference_steps=8", "ComfyUI:", "without guidance",
    ):  # fmt: skip
        assert words in done.stdout, words
    facts = json.loads(told("--schedule", "sdxl", "--nfe", 8, "--json", "--target", "images").stdout)
    best = facts["ranking"][0]
    assert f"take {best['method'].partition(' @ ')[0]} on the grid" in done.stdout
    assert best["low"] < best["least"] <= best["error"] <= best["most"] < best["high"]
    assert facts["paste"][0] == facts["programs"]["diffode"][0]
    # By hand: the geometric mean over the four targets of each method's error at 8 evaluations.
    shipped = [c for c in shipped_curves("schedules").curves if c.path == paths.PUBLISHED["sdxl"].path]
    means = {}
    for c in shipped:
        within = [e for n, e in zip(c.nfe, c.error, strict=True) if n <= 8]
        means.setdefault(c.method, []).append(within[-1])
    by_hand = min(means, key=lambda m: np.prod(means[m]))
    assert best["method"] == by_hand
    assert best["error"] == pytest.approx(np.prod(means[by_hand]) ** 0.25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schedule", "sdxl"], "give --nfe N or --steps N"),
        (["--schedule", "sdxl", "--nfe", 8, "--steps", 8], "give --nfe N or --steps N"),
        (["--schedule", "sdxl", "--path", "vp", "--nfe", 8], "both say the path"),
    ],
)
def test_questions_that_contradict_themselves_are_refused(words, message):
    done = told(*words)
    assert done.exit_code == 2
    assert message in done.output


def test_a_question_outside_of_what_was_run_names_the_command_that_runs_it(tmp_path):
    done = told("--schedule", "vp", "--nfe", 8)
    assert isinstance(done.exception, ArgumentError)
    assert "run diffode bench schedules --schedule vp, and ask again" in str(done.exception)
    with pytest.raises(ArgumentError, match="tags: full, high-dimensional, images, low-rank"):
        CliRunner().invoke(
            recommend_command.command, ["--schedule", "edm", "--nfe", "8", "--target", "2d"], catch_exceptions=False
        )
    assert "nothing was run with more than 30" in told("--schedule", "edm", "--nfe", 99).stdout
    assert (
        "7 evaluations were not run: an error is that of the largest run within them, mostly 6"
        in told("--schedule", "edm", "--nfe", 7).stdout
    )


def test_a_file_of_ones_own_is_run_and_then_answered(tmp_path):
    diffusers.DDIMScheduler(beta_end=0.015).save_pretrained(tmp_path)
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\n[defaults]\npaths = ["sdxl"]\ngrids = ["karras", "ays_sdxl"]\nnfe = [4]\nseeds = [0]\npoints = 4\n'
        'tolerance = 1e-5\n[[study]]\ntargets = ["gauss1d", "bimodal1d"]\nsolvers = ["ddim", "dpmpp:order=2"]\n'
    )
    words = ["--suite", "tiny.toml", "--schedule", "scheduler_config.json", "--nfe", "4"]
    before = told(*words)
    assert "run diffode bench tiny.toml --schedule scheduler_config.json first" in str(before.exception)
    ran = told("tiny.toml", "--schedule", "scheduler_config.json", "--no-report", "--jobs", 1, command=bench_command.command)
    assert ran.exit_code == 0, ran.output
    after = told(*words, "--json")
    assert after.exit_code == 0, after.output
    facts = json.loads(after.stdout)
    assert facts["path"] == "ddpm:beta_end=0.015"
    assert facts["coverage"]["missing"] == 0
    assert facts["ranking"][0]["problems"] == 2
    assert {row["method"] for row in facts["ranking"]} == {"ddim", "dpmpp:order=2"}
    with_field = told(
        "quick", "--schedule", "edm", "--field", "a.py:b", "--no-report", command=bench_command.command
    )  # fmt: skip
    assert "has its --path" in with_field.output
