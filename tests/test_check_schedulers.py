"""The verdict on every scheduler class of the installed diffusers, beside loops written from the documentation alone."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commandline import diffode as command

from diffode import exact_field, reference
from diffode.errors import ArgumentError
from diffode.verify import check_sampler
from diffode.verify.sampler import scheduler_levels, scheduler_loops, scheduler_trial
from diffode.verify.sampler.subject import find_sampler

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.filterwarnings("ignore")]

MEAN, VARIANCE = 0.7, 0.25


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Fewer steps than a user's check takes: BrownianTree, LMS's quadratures and a thousand levels a run cost seconds."""
    monkeypatch.setattr("diffode.verify.sampler.scheduler_trial.STEPS", (10, 20, 50, 100))
    monkeypatch.setattr("diffode.verify.sampler.scheduler_trial.LAW_STEPS", (25, 50))


NAMES = tuple(scheduler_loops.classes())
#: Classes that are no ODE or SDE of a density on vectors.
NO_FLOW = {
    "AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler", "VQDiffusionScheduler",
    "CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler", "FlowMatchLCMScheduler", "LCMScheduler", "SCMScheduler",
    "TCDScheduler", "HeliosDMDScheduler", "HeliosScheduler", "PiflowScheduler", "RePaintScheduler", "RFD4ProteinaScheduler",
}  # fmt: skip
#: Classes whose documentation has another loop than set_timesteps, scale_model_input, the network, step.
OWN_LOOP = {
    "CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler",
    "KarrasVeScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "UnCLIPScheduler",
}  # fmt: skip


def noise_of(x, alpha, sigma):
    """E[eps|x] of N(0.7, 0.25)."""
    return sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)


def network(scheduler, t, sigma_of_t):
    """The network of N(0.7, 0.25) as this class's model documentation has it: of the scaled input and the timestep alone."""
    config, t = scheduler.config, float(t)
    if hasattr(scheduler, "precondition_outputs"):
        sigma = math.exp(4 * t) if "Cosine" not in type(scheduler).__name__ else math.tan(t * math.pi / 2)
        data = config.sigma_data
        sign = -1 if config.prediction_type == "v_prediction" else 1

        def edm(x):
            y = x * math.hypot(sigma, data)
            skip, out = data**2 / (sigma**2 + data**2), sign * sigma * data / math.hypot(sigma, data)
            return (y - sigma * noise_of(y, 1.0, sigma) - skip * y) / out

        return edm
    if "MiniMax" in type(scheduler).__name__:
        s, sign = 1 - t, -1
    elif scheduler_levels.is_flow(scheduler):
        s, sign = t / config.num_train_timesteps, 1
    elif "IPNDM" in type(scheduler).__name__:
        alpha, sigma = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
        return lambda x: alpha * noise_of(x, alpha, sigma) - sigma * (x - sigma * noise_of(x, alpha, sigma)) / max(alpha, 1e-12)
    else:
        rho = sigma_of_t(t)
        alpha, sigma = 1 / math.hypot(1, rho), rho / math.hypot(1, rho)
        return lambda x: noise_of(x, alpha, sigma)
    return lambda x: (
        sign * (noise_of(x, 1 - s, s) - (MEAN + (1 - s) * VARIANCE * (x - (1 - s) * MEAN) / ((1 - s) ** 2 * VARIANCE + s**2)))
    )


def documented_run(name, steps, count):
    """Starts and ends of set_timesteps; for t in timesteps: scale_model_input, network, step."""
    # Some classes draw their noise from the global generator.
    torch.manual_seed(0)
    made = scheduler_loops.classes()[name]
    takes = made.__init__.__wrapped__.__code__.co_varnames if hasattr(made.__init__, "__wrapped__") else ()
    scheduler = made(**({"clip_sample": False} if "clip_sample" in takes else {}))
    scheduler.set_timesteps(steps)
    table = getattr(scheduler, "alphas_cumprod", None)
    sigma_of_t = None
    if table is not None:
        levels = ((1 - table) / table).double().sqrt().numpy()
        inner = getattr(scheduler, "sigmas_interpol", None)
        logarithmic = inner is not None or "SDE" in name
        sigma_of_t = (
            (lambda t: math.exp(np.interp(t, np.arange(len(levels)), np.log(levels))))
            if logarithmic
            else (lambda t: float(np.interp(t, np.arange(len(levels)), levels)))
        )
    x = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        asked = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scheduler, t, sigma_of_t)(asked), t, x).prev_sample
    return start, x.double()


def error_of(name, steps):
    """How far the documented loop's ends are from the exact flow's, in root mean square, and whether it draws noise."""
    start, end = documented_run(name, steps, 2000)
    made = scheduler_loops.classes()[name]
    scheduler = made()
    scheduler.set_timesteps(steps)
    # A deterministic run of Gaussian data is affine in its start.
    drawn = float(torch.corrcoef(torch.cat([start, end], 1).T)[0, 1]) < 0.9999
    if drawn:
        # Its last step jumps to the denoised point from sigma = 0.3.
        shrunk = VARIANCE / math.hypot(math.sqrt(VARIANCE), 0.3) if "Cosine" in name else math.sqrt(VARIANCE)
        return max(abs(float(end.mean()) - MEAN), abs(float(end.std()) - shrunk)) / shrunk, drawn
    alpha, sigma = first_level(scheduler, name)
    true = MEAN + math.sqrt(VARIANCE / (alpha**2 * VARIANCE + sigma**2)) * (start - alpha * MEAN)
    return float((end - true).square().mean().sqrt()), drawn


def first_level(scheduler, name):
    t = float(scheduler.timesteps[0])
    if hasattr(scheduler, "precondition_outputs"):
        return 1.0, float(scheduler.config.sigma_max)
    if "IPNDM" in name or "MiniMax" in name or scheduler_levels.is_flow(scheduler):
        return 0.0, 1.0
    kept = float(scheduler.alphas_cumprod[int(t)])
    identity = float(scheduler.scale_model_input(torch.ones(1), scheduler.timesteps[0])) == 1.0
    return (math.sqrt(kept), math.sqrt(1 - kept)) if identity else (1.0, math.sqrt((1 - kept) / kept))


#: Classes with quadratures or a tree of noise at every step, as long as ten others. They go through the loops and levels of
#: those: multistep methods, two evaluations a step, and noise.
LONG = {"DPMSolverSDEScheduler", "LMSDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in NAMES if n not in NO_FLOW | OWN_LOOP],
)
def test_no_class_is_condemned_which_its_documented_loop_acquits(name):
    coarse, drawn = error_of(name, 10)
    fine = error_of(name, 50)[0]
    # Of first order a fifth is left, of a law moments within 5 standard errors and the steps' own error.
    acquitted = fine < 0.15 if drawn else fine < 0.4 * coarse or fine < 2e-3
    assert acquitted, (coarse, fine)
    verdict = check_sampler(f"diffusers:{name}")
    assert verdict.judged
    assert verdict.passed, verdict.failed
    assert ("draws noise" in verdict.check("noise").detail) == drawn


@pytest.mark.parametrize("name", sorted(OWN_LOOP))
def test_classes_with_a_loop_of_their_own_are_acquitted(name):
    verdict = check_sampler(f"diffusers:{name}")
    assert verdict.judged
    assert verdict.passed, verdict.failed


@pytest.mark.parametrize("name", sorted(NO_FLOW))
def test_what_is_no_flow_of_a_field_is_not_judged_and_says_why(name):
    verdict = check_sampler(f"diffusers:{name}")
    assert not verdict.judged
    assert not verdict.passed
    assert not verdict.failed
    assert len(verdict.check("judged").detail) > 40


class WrongSignDDIM(diffusers.DDIMScheduler):
    """Takes each step the other way."""

    def step(self, model_output, timestep, sample, **options):
        return super().step(-model_output, timestep, sample, **options)


class StuckEuler(diffusers.FlowMatchEulerDiscreteScheduler):
    """Its slope is a twentieth too large at any number of steps."""

    def step(self, model_output, timestep, sample, **options):
        return super().step(1.05 * model_output, timestep, sample, **options)


class WeakNoise(diffusers.DDPMScheduler):
    """Half the noise."""

    def _get_variance(self, *arguments, **options):
        return super()._get_variance(*arguments, **options) / 4


class Crashes(diffusers.DDIMScheduler):
    """Wants what no pipeline gives."""

    def step(self, model_output, timestep, sample, **options):
        return [][0]


@pytest.mark.parametrize(("made", "topics"), [(WrongSignDDIM, {"limit"}), (StuckEuler, {"limit"}), (WeakNoise, {"moments"})])
def test_a_scheduler_that_is_wrong_is_found(made, topics, monkeypatch):
    monkeypatch.setattr(diffusers, "MineScheduler", made, raising=False)
    verdict = check_sampler("diffusers:MineScheduler")
    assert topics <= {finding.name for finding in verdict.failed}


def test_a_crash_is_no_verdict(monkeypatch):
    monkeypatch.setattr(diffusers, "MineScheduler", Crashes, raising=False)
    verdict = check_sampler("diffusers:MineScheduler")
    assert not verdict.judged
    assert "IndexError" in verdict.check("judged").detail


@pytest.mark.parametrize(("name", "options"), [
    ("HeliosScheduler", {"stages": 1}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.0}),
])  # fmt: skip
def test_options_are_honoured(name, options):
    verdict = check_sampler(f"diffusers:{name}", options=options)
    assert verdict.passed, verdict.checks


def test_the_inverse_of_ddim_begins_one_level_before_its_first_timestep():
    """Of 30 in 1000, 33 apart: at the level of timestep 0 if they begin at 33, and at none of the table if they begin at 0."""
    levels = {}
    for offset in (0, 33):
        options = {"steps_offset": offset, "timestep_spacing": "leading"}
        levels[offset] = find_sampler("diffusers:DDIMInverseScheduler", options=options).scheduler.levels(30)[0]
    table = diffusers.DDIMInverseScheduler().alphas_cumprod
    assert levels[33] == pytest.approx(math.sqrt((1 - float(table[0])) / float(table[0])), rel=1e-6)
    assert levels[0] == 0


@pytest.mark.parametrize(("last", "stuck"), [(0.16, False), (0.6, True)])
def test_an_error_that_halts_at_the_end_has_fallen_over_all_grids(last, stuck):
    """At 10, 20, 50 and 100 steps: the slope of the last three is small either way, that of all four is 0.73 or 0.2."""
    errors = dict(zip((10, 20, 50, 100), (1.0, last * 1.1, last * 1.05, last), strict=True))
    field = exact_field("bimodal1d", "edm")
    start = field.marginal(24, 10.0, generator=0)
    exact = reference(field, start, 10.0, 0.01, 1e-12).x
    bench = SimpleNamespace(
        sampler=SimpleNamespace(claimed=None),
        field=lambda: field,
        times=lambda steps: steps,
        start=lambda count, steps: start,
        run=lambda on, x, steps: exact + errors[steps],
    )
    (order, limit), estimate = scheduler_trial.order(bench, SimpleNamespace(levels=lambda steps: (10.0, 0.01)))
    assert estimate.slope < 0.1
    assert order.passed is None
    assert limit.passed is not stuck


@pytest.mark.parametrize(("name", "options", "reason"), [
    ("DDPMScheduler", {"variance_type": "learned_range"}, "predicts variances"),
    ("DDIMScheduler", {"thresholding": True}, "quantiles"),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "straight to the data"),
    ("VQDiffusionScheduler", {"num_vec_classes": 4}, "tokens"),
])  # fmt: skip
def test_options_that_leave_no_flow_are_named(name, options, reason):
    assert reason in check_sampler(f"diffusers:{name}", options=options).check("judged").detail


def test_wrong_names_and_options_are_named():
    with pytest.raises(ArgumentError, match="did you mean 'DDIMScheduler'"):
        find_sampler("diffusers:DDIMSchedule")
    with pytest.raises(ArgumentError, match="no option 'etta'"):
        find_sampler("diffusers:DDIMScheduler", options={"etta": 1})
    with pytest.raises(ArgumentError, match="grid must be left out"):
        find_sampler("diffusers:DDIMScheduler", grid="karras")


def test_the_command_says_apart_what_is_wrong_and_what_has_no_verdict(tmp_path):
    facts = json.loads(command("check", "diffusers:LCMScheduler", "--json", cwd=tmp_path, code=4).stdout)
    assert facts["judged"] is False
    assert facts["passed"] is None
    assert "can't be judged" in facts["checks"][0]["detail"]
