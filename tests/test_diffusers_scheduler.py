"""Our solvers as schedulers of diffusers: their public contract, real pipelines, and the same numbers."""

import inspect
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import pytest
import torch

import diffode
from diffode import adapters
from diffode.errors import ArgumentError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

# diffusers' own code warns of its future.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SOLVERS = (
    "ddim", "edm_heun", "dpm:order=2", "dpm:order=3", "dpmpp:order=2", "dpmpp:order=3", "unipc:order=3", "deis:order=3",
    "ipndm:order=3", "rk4:chart=data", "euler_ancestral", "dpmpp_2m_sde",
)  # fmt: skip


def scheduler(solver="dpmpp:order=2", **options):
    return adapters.as_diffusers_scheduler(solver, **options)


def dummy(shape=(4, 3, 8, 8), dtype=torch.float32):
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=dtype).reshape(shape)


def model(sample, t):
    """What diffusers' own tests use for a network."""
    return sample * t / (t + 1)


def run(made, steps=10, sample=None, generator=None):
    sample = dummy() if sample is None else sample
    made.set_timesteps(steps)
    for t in made.timesteps:
        scaled = made.scale_model_input(sample, t)
        sample = made.step(model(scaled, t).to(sample.dtype), t, sample, generator=generator).prev_sample
    return sample


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_public_contract(solver):
    made = scheduler(solver)
    assert isinstance(made, diffusers.SchedulerMixin)
    assert isinstance(made.init_noise_sigma, float)
    assert list(inspect.signature(made.scale_model_input).parameters)[:2] == ["sample", "timestep"]
    assert list(inspect.signature(made.step).parameters)[:3] == ["model_output", "timestep", "sample"]
    assert len(made) == made.config.num_train_timesteps == 1000
    assert made.order >= 1
    for steps in (1, 2, 10, 25):
        made.set_timesteps(steps)
        assert made.num_inference_steps == steps
        # One timestep an evaluation, none above the last training step; states of a step may lie a little above its start.
        assert len(made.timesteps) == made.table.nfe
        assert float(made.timesteps.max()) <= 999
        assert float(made.timesteps.min()) >= -1


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_keeps_shape_and_dtype(solver):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        end = run(scheduler(solver), 4, dummy(dtype=dtype), torch.Generator().manual_seed(0))
        assert end.dtype == dtype
        assert end.shape == (4, 3, 8, 8)
        assert bool(torch.isfinite(end).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_saving_and_loading_gives_the_same_run(solver, tmp_path):
    made = scheduler(solver, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, grid="karras")
    made.save_config(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["solver"] == solver
    again = type(made).from_pretrained(tmp_path)
    renewed = type(made).from_config(made.config)
    ends = [run(one, 6, generator=torch.Generator().manual_seed(0)) for one in (made, again, renewed)]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_tuples_and_objects_hold_the_same():
    made, other = scheduler(), scheduler()
    made.set_timesteps(3)
    other.set_timesteps(3)
    sample = dummy()
    for t in made.timesteps:
        answer = model(sample, t)
        found = made.step(answer, t, sample).prev_sample
        (same,) = other.step(answer, t, sample, return_dict=False)
        assert torch.equal(found, same)
        sample = found


def test_a_scheduler_can_be_used_again_and_is_deterministic():
    made = scheduler("unipc:order=3")
    assert torch.equal(run(made), run(made))


def test_noise_is_drawn_from_the_generator():
    made = scheduler("euler_ancestral")
    ends = [run(made, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_add_noise_is_the_forward_process():
    made, theirs = scheduler(), diffusers.DDPMScheduler()
    sample, noise = dummy(), dummy().flip(0)
    t = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(made.add_noise(sample, noise, t), theirs.add_noise(sample, noise, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["digits-gmm10"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("solver", [s for s in SOLVERS if "ancestral" not in s and "sde" not in s])
def test_the_same_numbers_as_our_own_run(target, prediction, solver):
    path = "rectified_flow" if prediction == "flow_prediction" else "ddpm"
    field = diffode.exact_field(target, path)
    network = adapters.as_diffusers_model(field, (1, 8, 8), prediction)
    made = scheduler(solver, prediction_type=prediction)
    made.set_timesteps(9)
    start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start
    for t in made.timesteps:
        x = made.step(network(x, t).sample, t, x).prev_sample
    times = [*diffode.grids.get("time_uniform", field.path, 8).tolist(), 0.0]
    ours = diffode.solve(field, start, solver=solver, grid=times).x
    torch.testing.assert_close(x, ours, rtol=1e-9, atol=1e-9)
    single = start.float()
    made.set_timesteps(9)
    for t in made.timesteps:
        single = made.step(network(single, t).sample, t, single).prev_sample
    ours = diffode.solve(field, start.float(), solver=solver, grid=times).x
    assert float((single - ours).norm() / ours.norm()) < 1e-5


@pytest.mark.parametrize(
    ("solver", "theirs", "options"),
    [
        ("ddim", "EulerDiscreteScheduler", {}),
        ("edm_heun", "HeunDiscreteScheduler", {}),
        ("dpmpp:order=2,lower_order_final=always", "DPMSolverMultistepScheduler", {"lower_order_final": True}),
        ("unipc:order=2,variant=bh2,lower_order_final=always", "UniPCMultistepScheduler", {"solver_order": 2}),
    ],
)
def test_ours_agrees_with_diffusers_own_at_its_timesteps(solver, theirs, options):
    """On the same timesteps; theirs keeps noise levels in float32."""
    field = diffode.exact_field("digits-gmm10", "ddpm")
    network = adapters.as_diffusers_model(field, (1, 8, 8))
    other = getattr(diffusers, theirs)(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
    other.set_timesteps(10)
    distinct = list(dict.fromkeys(other.timesteps.tolist()))
    made = scheduler(solver)
    made.set_timesteps(timesteps=distinct)
    start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start
    for t in made.timesteps:
        x = made.step(network(x, t).sample, t, x).prev_sample
    y = start * other.init_noise_sigma
    if other.init_noise_sigma != 1:
        # Theirs works on x/alpha.
        y = start / field.path.alpha(float(other.timesteps[0]) + 1)
    for t in other.timesteps:
        y = other.step(network(other.scale_model_input(y, t), t).sample, t, y).prev_sample
    torch.testing.assert_close(x, y.double(), rtol=1e-4, atol=2e-3)


def test_a_real_pipeline_makes_our_numbers():
    field = diffode.exact_field("digits-gmm10", "ddpm")
    pipeline = diffusers.DDPMPipeline(adapters.as_diffusers_model(field, (1, 8, 8)), scheduler("dpmpp:order=2"))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=5, generator=torch.Generator().manual_seed(4), num_inference_steps=9, output_type="pt").images
    start = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    times = [*diffode.grids.get("time_uniform", field.path, 8).tolist(), 0.0]
    ours = diffode.solve(field, start, solver="dpmpp:order=2", grid=times).x
    torch.testing.assert_close(images, (ours / 2 + 0.5).clamp(0, 1), rtol=1e-9, atol=1e-9)


def test_universal_tables_run_in_a_pipeline():
    field = diffode.exact_field("digits-gmm10", "ddpm")
    made = scheduler(f"universal:scale={field.scale},dim=64", final_sigmas_type="sigma_min")
    pipeline = diffusers.DDPMPipeline(adapters.as_diffusers_model(field, (1, 8, 8)), made)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=3, generator=torch.Generator().manual_seed(4), num_inference_steps=8, output_type="pt").images
    assert made.table.nfe == len(made.timesteps) == 8
    assert images.shape == (3, 1, 8, 8)
    assert bool(torch.isfinite(images).all())


def test_it_begins_later_as_image_to_image_does():
    """The rest of the run is a run on the rest of the grid."""
    field = diffode.exact_field("digits-gmm10", "ddpm")
    network = adapters.as_diffusers_model(field, (1, 8, 8))
    start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = [*diffode.grids.get("time_uniform", field.path, 8).tolist(), 0.0]
    for begins_by in ("set_begin_index", "timestep"):
        for solver, index, step in (("dpmpp:order=2", 4, 4), ("edm_heun", 6, 3)):
            made = scheduler(solver)
            made.set_timesteps(9)
            remaining = made.timesteps[index:]
            if begins_by == "set_begin_index":
                made.set_begin_index(index)
                assert made.begin_index == index
            x = start
            for t in remaining:
                x = made.step(network(x, t).sample, t, x).prev_sample
            ours = diffode.solve(field, start, solver=solver, grid=times[step:]).x
            torch.testing.assert_close(x, ours, rtol=1e-9, atol=1e-9)
    made = scheduler("edm_heun")
    made.set_timesteps(9)
    made.set_begin_index(5)
    with pytest.raises(ArgumentError, match="begin at another"):
        made.step(start, made.timesteps[5], start)


def test_a_sample_changed_between_steps_is_taken_as_it_is():
    """As inpainting changes it: a one-step method goes on from the new one alone."""
    field = diffode.exact_field("digits-gmm10", "ddpm")
    network = adapters.as_diffusers_model(field, (1, 8, 8))
    made = scheduler("ddim")
    made.set_timesteps(4)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = []
    for t in made.timesteps:
        x = 0.9 * made.step(network(x, t).sample, t, x).prev_sample
        states.append(x)
    times = [float(t) + 1 for t in made.timesteps] + [0.0]
    expected = diffode.solve(field, states[1], solver="ddim", grid=times[2:4]).x * 0.9
    torch.testing.assert_close(states[2], expected, rtol=1e-9, atol=1e-9)


def test_it_takes_over_the_schedule_of_another():
    for other in (
        diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
        ),
        diffusers.DDPMScheduler(trained_betas=[0.001 * (k + 1) for k in range(200)], num_train_timesteps=200),
        diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    ):
        made = adapters.as_diffusers_scheduler("unipc:order=2", like=other)
        # Theirs are float32, which near no signal at all has few digits.
        torch.testing.assert_close(made.alphas_cumprod, other.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
        assert made.config.prediction_type == other.config.prediction_type
        assert adapters.from_diffusers(lambda x, t: x, made).path == made.path
    flow = adapters.as_diffusers_scheduler("unipc:order=2", like=diffusers.FlowMatchEulerDiscreteScheduler())
    assert flow.config.prediction_type == "flow_prediction"
    assert flow.path.spec == "rectified_flow"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prediction_type": "noise"}, "prediction_type"),
        ({"final_sigmas_type": "none"}, "final_sigmas_type"),
        ({"beta_schedule": "exp"}, "beta_schedule"),
        ({"solver": "dpmp"}, "did you mean"),
        ({"solver": "edm_stochastic:churn=40,noise_to=500"}, "evaluate its start"),
        ({"solver": "ddim:analytic_first_step=true"}, "evaluate its start"),
        ({"beta_end": float("nan")}, "beta_start and beta_end"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(ArgumentError, match=word):
        scheduler(**{"solver": "ddim", **options})


def test_wrong_calls_are_named():
    made = scheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        made.step(dummy(), 3, dummy())
    for count in (0, 1.5, True):
        with pytest.raises(ArgumentError, match="num_inference_steps"):
            made.set_timesteps(count)
    with pytest.raises(ArgumentError, match="or give timesteps or sigmas"):
        made.set_timesteps()
    with pytest.raises(ArgumentError, match="not both"):
        made.set_timesteps(3, timesteps=[900, 10])
    for given in ([5000, 10], [10, 900], [900, -5], [], [900, float("nan")]):
        with pytest.raises(ArgumentError, match="timesteps must fall, from at most 999"):
            made.set_timesteps(timesteps=given)
    with pytest.raises(ArgumentError, match="sigmas must fall"):
        made.set_timesteps(sigmas=[500.0, 1.0])
    with pytest.raises(ArgumentError, match="mu shifts"):
        made.set_timesteps(4, mu=1.0)
    run(made, 2)
    with pytest.raises(ArgumentError, match="has ended"):
        made.step(dummy(), made.timesteps[-1], dummy())
    with pytest.raises(ArgumentError, match="choose ddpm"):
        adapters.as_diffusers_model(diffode.exact_field("digits-gmm10", "edm"), (1, 8, 8))
    with pytest.raises(ArgumentError, match="does not go with"):
        adapters.as_diffusers_model(diffode.exact_field("digits-gmm10", "ddpm"), (1, 8, 8), "flow_prediction")
