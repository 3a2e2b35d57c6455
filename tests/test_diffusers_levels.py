"""A run in the place of a scheduler of diffusers makes that scheduler's levels, calls its network alike and is never worse."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import pathlib
import warnings

import numpy as np
import pytest
import torch
from scheduler_runs import TARGETS, Network, follow, gap_to_exact

import diffode
from diffode import adapters
from diffode.errors import ArgumentError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

#: Configurations as published with the models' weights.
PUBLISHED = json.loads((pathlib.Path(__file__).parent / "data" / "scheduler_configs.json").read_text())
#: Our spec for the sampler of a class.
SOLVERS = {
    "DDIM": "ddim", "EulerDiscrete": "ddim", "FlowMatchEulerDiscrete": "ddim", "CogVideoXDDIM": "ddim", "EDMEuler": "ddim",
    "HeunDiscrete": "edm_heun", "FlowMatchHeunDiscrete": "heun", "KDPM2Discrete": "dpm:order=2", "LMSDiscrete": "lms:order=4",
    "DPMSolverMultistep": "dpmpp:order=2", "EDMDPMSolverMultistep": "dpmpp:order=2",
    "UniPCMultistep": "unipc:order=2,variant=bh2",
    "DEISMultistep": "ab:order=2,chart=noise_log_snr,lower_order_final=below_10",
}  # fmt: skip
#: Published schedulers that draw noise, or start in a way of their own: deterministic ones of the same order take their place.
DETERMINISTIC = {"PNDM": "DDIM", "LCM": "DDIM", "DDPM": "DDIM", "CogVideoXDPM": "CogVideoXDDIM"}
NOISE = torch.tensor(np.linspace(-2.2, 2.2, 9)[:, None])
SD = PUBLISHED["sd15"]
NEVER_CLIPPED = {"clip_sample": False, "thresholding": False}


def arguments(model, steps):
    """What the pipeline of a model gives to ``set_timesteps``."""
    if model in ("flux-dev", "ltx"):
        return {"sigmas": np.linspace(1, 1 / steps, steps).tolist(), "mu": 0.9}
    if model == "flux-schnell":
        return {"sigmas": np.linspace(1, 1 / steps, steps).tolist()}
    if model in ("hunyuan-video", "mochi"):
        return {"sigmas": np.linspace(1, 0, steps + 1)[:-1].tolist()}
    return {"num_inference_steps": steps}


def theirs(config, name=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name or config["_class_name"]).from_config(config, **options)


def short(scheduler):
    return type(scheduler).__name__.removesuffix("Scheduler")


def labels(scheduler):
    return sorted(set(scheduler.timesteps.double().tolist()), reverse=True)


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_timesteps_of_published_configurations_are_theirs(model):
    other = theirs(PUBLISHED[model])
    for make in (
        lambda: adapters.as_diffusers_scheduler("ddim", like=other),
        lambda: adapters.DiffodeScheduler.from_config(PUBLISHED[model], solver="ddim"),
        lambda: adapters.DiffodeScheduler.from_config(other.config, solver="ddim"),
    ):
        made = make()
        for steps in (4, 8, 20, 50):
            other.set_timesteps(**arguments(model, steps))
            made.set_timesteps(**arguments(model, steps))
            falling = -1 if other.config.get("invert_sigmas") else 1
            assert [falling * t for t in made.timesteps.tolist()] == sorted({falling * t for t in labels(other)}, reverse=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", PUBLISHED)
def test_published_configurations_end_no_further_from_the_exact_flow_than_theirs(model, target):
    """Where theirs draws noise, DDIM on the same levels is what ours is held against."""
    config = {**PUBLISHED[model], **NEVER_CLIPPED}
    name = config["_class_name"].removesuffix("Scheduler")
    ours = adapters.as_diffusers_scheduler(SOLVERS[DETERMINISTIC.get(name, name)], like=theirs(config))
    # DDPM goes on to no noise at all, whatever its configuration carries for others.
    ends = {"set_alpha_to_one": True} if name == "DDPM" else {}
    other = theirs(config, DETERMINISTIC.get(name, name) + "Scheduler", **ends)
    for steps in (4, 8, 20, 50):
        given = arguments(model, steps)
        if name in ("LCM", "CogVideoXDPM"):
            # Theirs has no deterministic form on these levels: ours is only held against its own with more steps.
            continue
        far = [gap_to_exact(made, other, target, NOISE, given) for made in (other, ours)]
        # Equal up to the float32 in which theirs keeps its levels and, in part, its states.
        assert far[1] <= 1.05 * far[0], steps


KEYS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True},
        {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}, {"final_sigmas_type": "sigma_min"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {"beta_schedule": "squaredcos_cap_v2"},
        {"use_lu_lambdas": True})  # fmt: skip
FLOW_KEYS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True},
             {"shift_terminal": 0.1}, {"invert_sigmas": True}, {"num_train_timesteps": 400},
             {"use_dynamic_shifting": True, "time_shift_type": "linear"})  # fmt: skip


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize(
    "name", ["EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"]
)
def test_every_key_that_places_levels_is_honoured(name, keys):
    other = theirs(SD, name + "Scheduler", **keys)
    expected = [key for key in keys if key in other.config]
    if keys and not expected:
        pytest.skip("the class does not read this key")
    ours = adapters.as_diffusers_scheduler(SOLVERS[name], like=other)
    far = [gap_to_exact(made, other, "three modes", NOISE, {"num_inference_steps": 6}) for made in (other, ours)]
    assert far[1] <= 1.05 * far[0]


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("keys", KEYS[1:4], ids=str)
@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"])
def test_levels_that_lie_beside_those_of_the_table_are_not_drawn_to_them(name, keys, steps):
    """Theirs rounds the timestep of such a level and keeps the level, to float32."""
    other = theirs(SD, name + "Scheduler", **keys)
    if not any(key in other.config for key in keys):
        pytest.skip("the class does not read this key")
    ours = adapters.as_diffusers_scheduler("ddim", like=other)
    other.set_timesteps(steps)
    ours.set_timesteps(steps)
    levels = torch.tensor([ours.path.rho(float(t)) for t in ours.table.times[:-1]], dtype=torch.float64)
    torch.testing.assert_close(levels, other.sigmas.double()[: len(levels)], rtol=4e-4, atol=0)


@pytest.mark.parametrize("keys", FLOW_KEYS, ids=str)
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
def test_every_key_that_places_times_of_a_flow_is_honoured(name, keys):
    other = theirs(PUBLISHED["sd3"], name + "Scheduler", **keys)
    if keys and not [key for key in keys if key in other.config]:
        pytest.skip("the class does not read this key")
    given = {"num_inference_steps": 6, **({"mu": 1.5} if "use_dynamic_shifting" in keys else {})}
    ours = adapters.as_diffusers_scheduler(SOLVERS[name], like=other)
    far = [gap_to_exact(made, other, "three modes", NOISE, given) for made in (other, ours)]
    assert far[1] <= 1.05 * far[0]


def test_levels_between_those_of_a_midpoint_method_are_theirs():
    other = theirs(SD, "KDPM2DiscreteScheduler", use_karras_sigmas=True)
    ours = adapters.as_diffusers_scheduler("dpm:order=2", like=other)
    far = [gap_to_exact(made, other, "three modes", NOISE, {"num_inference_steps": 6}) for made in (other, ours)]
    assert far[1] <= 1.05 * far[0]
    assert len(ours.timesteps) == len(other.timesteps)


def test_given_sigmas_and_mu_are_treated_as_the_configuration_says():
    made = adapters.as_diffusers_scheduler("ddim", like=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0))
    given = np.linspace(1, 0, 6)[:-1]
    made.set_timesteps(sigmas=given.tolist())
    # 7 t/(1 + 6 t), by hand.
    assert made.timesteps.tolist() == pytest.approx((7000 * given / (1 + 6 * given)).tolist(), rel=1e-6)
    plain = adapters.as_diffusers_scheduler("ddim", like=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0))
    plain.set_timesteps(sigmas=given.tolist(), mu=1.15)
    assert plain.timesteps.tolist() == pytest.approx((1000 * given).tolist(), rel=1e-6)
    dynamic = adapters.as_diffusers_scheduler("ddim", like=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(ArgumentError, match="mu"):
        dynamic.set_timesteps(5)
    dynamic.set_timesteps(sigmas=given.tolist(), mu=1.15)
    shifted = np.exp(1.15) / (np.exp(1.15) + (1 / given - 1))
    assert dynamic.timesteps.tolist() == pytest.approx((1000 * shifted).tolist(), rel=1e-6)
    euler = adapters.as_diffusers_scheduler("ddim", like=theirs(SD, "EulerDiscreteScheduler"))
    with pytest.raises(ArgumentError, match="takes no mu"):
        euler.set_timesteps(4, mu=1.0)
    euler.set_timesteps(sigmas=[10.0, 2.0, 0.5, 0.0])
    assert euler.sigmas.tolist() == pytest.approx([10.0, 2.0, 0.5, 0.0], rel=1e-6)


@pytest.mark.parametrize("given", [20, [*range(999, 0, -50)], [*range(950, -1, -50)]], ids=["steps", "above", "down to it"])
def test_as_many_evaluations_are_made_as_timesteps_were_given_where_a_run_ends_with_noise(given):
    other = theirs(SD, "DPMSolverMultistepScheduler", final_sigmas_type="sigma_min")
    wanted = {"num_inference_steps": given} if isinstance(given, int) else {"timesteps": given}
    other.set_timesteps(**wanted)
    for solver in ("ddim", "dpmpp:order=2", "unipc:order=3"):
        made = adapters.as_diffusers_scheduler(solver, like=other)
        network = Network("gaussian", other)
        _, end = follow(made, network, NOISE, **wanted)
        assert network.calls == len(made.timesteps) == 20
        assert float(made.sigmas[-1]) == pytest.approx(float(other.sigmas[-1]), rel=1e-3)
        assert bool(torch.isfinite(end).all())


@pytest.mark.parametrize(
    "solver", ["ddim", "heun", "edm_heun", "dpm:order=2", "dpmpp:order=3", "unipc:order=3", "ipndm:order=3", "lms:order=3",
               "deis:order=3", "rk4:chart=data", "rk4:chart=noise"]
)  # fmt: skip
def test_a_start_without_any_signal_is_as_good_as_one_with_a_thousandth(solver):
    """Solvers in sigma/alpha begin at alpha = 1e-6 there, and single precision survives it."""
    other = theirs(PUBLISHED["sd3"])
    made, steps = adapters.as_diffusers_scheduler(solver, like=other), {"num_inference_steps": 20}
    far = gap_to_exact(made, other, "gaussian", NOISE, steps)
    assert made.timesteps[0] == 1000
    single = gap_to_exact(made, other, "gaussian", NOISE.float(), steps)
    # Some 200 roundings of float32; without the rearrangement it is 1e-2.
    assert abs(single - far) < 5e-5
    other.set_timesteps(20)
    network = Network("gaussian", other)
    field = diffode.exact_field(TARGETS["gaussian"], "rectified_flow")
    near = diffode.solve(field, NOISE, solver=solver, grid=[0.999, *other.sigmas[1:].double().tolist()]).x
    reached = diffode.reference(network.field, NOISE * 1e6, 1e6, 0.0).x
    assert far < 1.05 * float((near - reached).abs().mean()) + 1e-3
