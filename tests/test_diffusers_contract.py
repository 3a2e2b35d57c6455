"""What diffusers' pipelines ask of a scheduler besides steps: later starts, schedules taken over, given levels, refusals."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import numpy as np
import pytest
import torch

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, NumericalError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

FIELD = diffode.exact_field("digits-gmm10", "ddpm")
NETWORK = adapters.as_diffusers_model(FIELD, (1, 8, 8))
START = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def scheduler(solver="ddim", **options):
    return adapters.as_diffusers_scheduler(solver, **options)


def remaining(made, steps, strength):
    """The timesteps of an image-to-image pipeline, as diffusers' get_timesteps computes them."""
    made.set_timesteps(steps)
    begin = max(steps - min(int(steps * strength), steps), 0)
    made.set_begin_index(begin * made.order)
    return made.timesteps[begin * made.order :], begin


@pytest.mark.parametrize(
    ("solver", "order"),
    [("ddim", 1), ("dpmpp:order=3", 1), ("unipc:order=3", 1), ("unipc:order=2", 1), ("edm_heun", 2), ("dpm:order=2", 2),
     ("dpm:order=3", 3), ("rk4:chart=data", 4)],
)  # fmt: skip
@pytest.mark.parametrize("strength", [0.6, 0.5, 0.3])
def test_image_to_image_begins_where_diffusers_would(solver, order, strength):
    made = scheduler(solver)
    timesteps, begin = remaining(made, 10, strength)
    assert made.order == order
    whole = made.timesteps.clone()
    times = [*diffode.grids.get("time_uniform", FIELD.path, 9).tolist(), 0.0][begin:]
    assert float(timesteps[0]) == times[0] - 1
    x = START
    for t in timesteps:
        x = made.step(NETWORK(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(x, diffode.solve(FIELD, START, solver=solver, grid=times).x, rtol=1e-9, atol=1e-9)
    assert torch.equal(made.timesteps, whole)
    assert made.step_index == len(whole)


def test_it_begins_where_diffusers_heun_does():
    ours, theirs = scheduler("edm_heun"), diffusers.HeunDiscreteScheduler()
    for made in (ours, theirs):
        made.set_timesteps(10)
    assert ours.order == theirs.order == 2
    assert len(ours.timesteps) == len(theirs.timesteps) == 19


@pytest.mark.parametrize(
    "other",
    [
        diffusers.DDIMScheduler(**SCALED, prediction_type="v_prediction"),
        diffusers.CogVideoXDDIMScheduler(),
        diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True),
        diffusers.DPMSolverMultistepScheduler(rescale_betas_zero_snr=True),
        diffusers.UniPCMultistepScheduler(**SCALED, rescale_betas_zero_snr=True),
        diffusers.DDPMScheduler(trained_betas=np.linspace(1e-3, 0.2, 200), num_train_timesteps=200),
    ],
    ids=lambda other: type(other).__name__,
)
def test_the_levels_taken_over_are_the_others(other):
    made = scheduler(like=other)
    known, theirs = made.alphas_cumprod.numpy(), other.alphas_cumprod.double().numpy().copy()
    if theirs[-1] == 2.0**-24:
        theirs[-1] = 0.0
    np.testing.assert_allclose(known, theirs, rtol=1e-3, atol=1e-7)
    assert made.config.prediction_type == other.config.prediction_type
    assert made.path.t_max == len(theirs) - (theirs[-1] == 0)
    assert adapters.from_diffusers(lambda x, t: x, other, prediction_type="epsilon").path.t_max == made.path.t_max


def test_flow_matching_shift_is_taken_over():
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=500)
    for made in (scheduler(like=other), adapters.DiffodeScheduler.from_config(other.config, solver="ddim")):
        assert made.path.spec == "rectified_flow"
        assert made.config.prediction_type == "flow_prediction"
        made.set_timesteps(4)
        other.set_timesteps(4)
        assert made.timesteps.tolist() == other.timesteps.tolist()
        assert made.sigmas.tolist() == pytest.approx(other.sigmas.tolist(), abs=1e-6)
        assert len(made) == 500


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (diffusers.ScoreSdeVeScheduler(), "Field.from_score"),
        (diffusers.DDPMWuerstchenScheduler(), "Field.from_noise"),
        (diffusers.CMStochasticIterativeScheduler(), "consistency function"),
        (diffusers.DDIMInverseScheduler(), "from data to noise"),
        (diffusers.DDIMScheduler, "not a class"),
        (3, "must be a scheduler"),
    ],
)
def test_a_schedule_that_is_none_of_ours_is_refused(other, word):
    with pytest.raises(ArgumentError, match=word):
        scheduler(like=other)


def test_a_configuration_alone_is_taken_over_or_refused():
    other = diffusers.PNDMScheduler(**SCALED)
    made = adapters.DiffodeScheduler.from_config(other.config, solver="unipc:order=2")
    assert made.config.solver == "unipc:order=2"
    torch.testing.assert_close(made.alphas_cumprod, other.alphas_cumprod.double(), rtol=1e-4, atol=0)
    shifted = diffusers.CogVideoXDDIMScheduler()
    made = adapters.DiffodeScheduler.from_config(shifted.config, solver="ddim")
    torch.testing.assert_close(made.alphas_cumprod, shifted.alphas_cumprod.double(), rtol=1e-6, atol=0)
    with pytest.raises(ArgumentError, match="config must name its class"):
        adapters.DiffodeScheduler.from_config({"beta_start": 0.1})
    with pytest.raises(ArgumentError, match="config must be"):
        adapters.DiffodeScheduler.from_config(3)


def test_a_continuous_scheduler_reaches_its_own_noise_level():
    svd = diffusers.EulerDiscreteScheduler(timestep_type="continuous", sigma_max=700.0, sigma_min=0.002,
                                           prediction_type="v_prediction")  # fmt: skip
    exact = diffode.exact_field("ring8", "edm")

    def network(x, t):
        """alpha noise - sigma x_0 on the variance-preserving scale, where alpha = 1/root and sigma/alpha is the level."""
        level = (4 * t)[:, None].exp()
        root = (level**2 + 1).sqrt()
        noise, denoised = (exact.predict(view, x * root, level[:, 0]) for view in ("noise", "denoised"))
        return noise / root - level / root * denoised

    found = adapters.from_diffusers(network, svd, scale=exact.scale)
    assert found.path.rho(found.path.t_max) == 700.0
    x = exact.marginal(5, 3.0, generator=0)
    torch.testing.assert_close(found.denoised(x, 3.0), exact.denoised(x, 3.0), rtol=1e-9, atol=1e-9)


def test_given_sigmas_and_timesteps():
    made = scheduler()
    made.set_timesteps(sigmas=[14.0, 2.0, 0.5])
    rho = [FIELD.path.rho(float(t) + 1) for t in made.timesteps]
    assert rho == pytest.approx([14.0, 2.0, 0.5])
    assert made.num_inference_steps == 3
    assert float(made.sigmas[-1]) == 0.0
    torch.testing.assert_close(made.sigmas[:-1], torch.tensor([14.0, 2.0, 0.5], dtype=torch.float64))
    made = scheduler(final_sigmas_type="sigma_min")
    made.set_timesteps(timesteps=[999, 400, 30, 0])
    assert made.timesteps.tolist() == [999, 400, 30, 0]
    assert float(made.sigmas[-1]) == pytest.approx(FIELD.path.rho(1.0), rel=1e-5)
    made.set_timesteps(timesteps=[999, 400, 30])
    assert made.timesteps.tolist() == [999, 400, 30]
    assert float(made.sigmas[-1]) == pytest.approx(FIELD.path.rho(1.0))
    made.set_timesteps(np.int64(5))
    assert made.num_inference_steps == len(made.timesteps) == 5
    assert float(made.sigmas[-1]) == pytest.approx(FIELD.path.rho(1.0))
    flow = scheduler(prediction_type="flow_prediction", num_train_timesteps=400)
    x, noise = START, START.flip(0)
    torch.testing.assert_close(flow.scale_noise(x, torch.tensor([100.0, 300.0]), noise)[1], 0.25 * x[1] + 0.75 * noise[1])
    flow.set_timesteps(timesteps=[300, 100])
    assert flow.sigmas.tolist() == pytest.approx([3.0, 1 / 3, 0.0])
    flow.set_timesteps(sigmas=[1.0, 0.5, 0.1], mu=0.7)
    shifted = [np.exp(0.7) * t / (np.exp(0.7) * t + 1 - t) for t in (0.5, 0.1)]
    assert (flow.timesteps[1:] / 400).tolist() == pytest.approx(shifted)


def test_steps_out_of_order_and_of_another_shape_are_refused():
    made = scheduler()
    made.set_timesteps(5)
    with pytest.raises(ArgumentError, match=r"none of scheduler\.timesteps"):
        made.step(START, 77777, START)
    for wrong in (START[:1], START[:, :, :1]):
        with pytest.raises(ArgumentError, match="model_output has shape"):
            made.step(wrong, made.timesteps[0], START)
    made.set_timesteps(5)
    x = made.step(START, made.timesteps[0], START).prev_sample
    with pytest.raises(ArgumentError, match="out of order"):
        made.step(x, made.timesteps[3], x)
    with pytest.raises(NumericalError, match="the model's answer is not finite"):
        made.step(x / 0, made.timesteps[1], x)


def test_a_learned_variance_is_cut_off():
    runs = []
    for double in (False, True):
        made, x = scheduler("unipc:order=2"), START
        made.set_timesteps(4)
        for t in made.timesteps:
            answer = NETWORK(x, t).sample
            x = made.step(torch.cat([answer, 100 + answer], 1) if double else answer, t, x).prev_sample
        runs.append(x)
    assert torch.equal(*runs)


def test_a_new_run_begins_at_the_start_again():
    made = scheduler("unipc:order=2")
    timesteps, _ = remaining(made, 6, 0.5)
    made.step(START, timesteps[0], START)
    made.set_timesteps(6)
    assert made.begin_index is None
    made.step(START, made.timesteps[0], START)
    assert made.step_index == 1


def test_noise_and_velocity_as_other_schedulers_give_them():
    made, theirs = scheduler(), diffusers.DDPMScheduler()
    x, noise = START.float(), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    steps = torch.tensor([10, 700])
    torch.testing.assert_close(made.get_velocity(x, noise, steps), theirs.get_velocity(x, noise, steps), rtol=1e-5, atol=1e-5)
    noisy = theirs.add_noise(x, noise, torch.tensor([10, 10]))
    torch.testing.assert_close(made.add_noise(x, noise, 10), noisy, rtol=1e-5, atol=1e-5)
    flow = scheduler(prediction_type="flow_prediction")
    other = diffusers.FlowMatchEulerDiscreteScheduler()
    t = other.timesteps[torch.tensor([3, 600])]
    torch.testing.assert_close(flow.scale_noise(x, t, noise), other.scale_noise(x, t, noise), rtol=1e-5, atol=1e-5)


def test_betas_are_kept_saved_and_checked(tmp_path):
    made = scheduler(trained_betas=torch.linspace(1e-3, 0.2, 100), num_train_timesteps=100)
    made.save_pretrained(tmp_path)
    again = adapters.DiffodeScheduler.from_pretrained(tmp_path)
    assert torch.equal(again.betas, made.betas)
    torch.testing.assert_close(made.betas, torch.linspace(1e-3, 0.2, 100).double(), rtol=1e-6, atol=0)
    for wrong in ([0.1, float("nan")], [0.1], [0.1, 1.5], [-0.1, 0.1]):
        with pytest.raises(ArgumentError, match="trained_betas must be"):
            scheduler(trained_betas=wrong)


def test_a_field_as_a_network_is_read_as_diffusers_networks_are():
    network = adapters.as_diffusers_model(FIELD, (1, 8, 8))
    assert getattr(network.config, "time_cond_proj_dim", None) is None
    assert network.config.in_channels == network.config["in_channels"] == 1
    answer = network(START, 10)
    assert answer[0] is answer.sample
    assert answer[0] is not None
    assert network(START.half(), 10).sample.dtype == torch.float16
    flow = diffode.exact_field("digits-gmm10", "rectified_flow")
    counted = adapters.as_diffusers_model(flow, (1, 8, 8), "flow_prediction", num_train_timesteps=50)
    torch.testing.assert_close(counted(START, 25).sample, flow.velocity(START, 0.5))
    for shape in (64, (1, 8), (1, 0, 8), "abc"):
        with pytest.raises(ArgumentError, match="shape must be"):
            adapters.as_diffusers_model(FIELD, shape)
