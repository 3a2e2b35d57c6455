"""A solver with ``jump=`` in other libraries' loops: the run is our own, or the error says why it can't be."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import pytest
import torch

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, UnknownNameError
from diffode.statistics import Statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SHAPE = (1, 8, 8)
KNOWN = Statistics.of_target("digits-gmm10")
#: One evaluation a step, past steps, two stages, noise, and a chart of the Gaussian.
SOLVERS = ("ipndm:order=3,jump=auto", "dpmpp:order=2,jump=3", "edm_heun:jump=2", "euler:chart=gaussian,jump=2")


def start(rows=3, dtype=torch.float64):
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def loop(made, network, x, timesteps=None, generator=None):
    """The loop of Stable Diffusion's pipelines."""
    for t in made.timesteps if timesteps is None else timesteps:
        answer = network(made.scale_model_input(x, t), t).sample
        x = made.step(answer, t, x, generator=generator).prev_sample
    return x


def scheduler(solver, steps, known=KNOWN, **options):
    made = adapters.as_diffusers_scheduler(solver, statistics=known, **options)
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_scheduler_jumps_as_our_own_run_does(solver, prediction):
    field = diffode.exact_field("digits-gmm10", "rectified_flow" if prediction == "flow_prediction" else "ddpm")
    network = adapters.as_diffusers_model(field, SHAPE, prediction)
    made = scheduler(solver, 5, prediction_type=prediction, grid="karras:rho=3")
    found = loop(made, network, start())
    ours = diffode.solve(field, start(), solver=solver, grid="karras:rho=3", steps=5, statistics=KNOWN)
    torch.testing.assert_close(found, ours.x, rtol=1e-9, atol=1e-9)
    assert len(made.timesteps) == made.table.nfe == ours.nfe
    assert made.num_inference_steps == 5
    # The network is first asked far below the level at which the pipeline's noise lies.
    assert float(made.timesteps[0]) < 900


def test_in_the_place_of_another_scheduler_it_ends_without_noise_and_is_better():
    """The schedule of Stable Diffusion: 2.4 times as near at two evaluations, 1.5 times at eight, on equal grids."""
    like = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    plain = adapters.as_diffusers_scheduler("ipndm:order=3", like=like, grid="karras:rho=3,to_zero=true")
    made = scheduler("ipndm:order=3,jump=auto", 2, like=like)
    assert float(made.sigmas[-1]) == 0
    field = diffode.exact_field("digits-gmm10", made.path)
    network, x = adapters.as_diffusers_model(field, SHAPE), start(16)
    exact = diffode.reference(field, x.flatten(1), field.path.t_max, field.path.t_min).x
    for steps, share in ((2, 0.5), (8, 0.75)):
        near, far = [], []
        for one, errors in ((made, near), (plain, far)):
            one.set_timesteps(steps)
            errors.append(float((loop(one, network, x).flatten(1) - exact).norm(dim=1).mean()))
        assert near[0] < share * far[0]


def test_an_edm_scheduler_jumps_in_its_own_units():
    like = diffusers.EDMEulerScheduler()
    made = scheduler("ipndm:order=3,jump=auto", 6, like=like, grid="karras:rho=3")
    field = diffode.exact_field("digits-gmm10", made.path)
    x = made.path.t_max * start()

    class Network:
        """EDM's network, from its preconditioning."""

        def __call__(self, shown, t):
            rho = float(torch.exp(4 * torch.as_tensor(t, dtype=torch.float64)))
            size = (rho**2 + 0.25) ** 0.5
            clean = (shown * size).flatten(1)
            out = (field.denoised(clean, rho) - (0.5 / size) ** 2 * clean) / (rho * 0.5 / size)
            return type("Answer", (), {"sample": out.reshape(shown.shape)})

    found = loop(made, Network(), x)
    ours = diffode.solve(field, x.flatten(1), solver="ipndm:order=3,jump=auto", grid="karras:rho=3", steps=6).x
    torch.testing.assert_close(found.flatten(1), ours, rtol=1e-7, atol=1e-7)


def test_noise_is_drawn_after_the_jump_and_from_the_generator():
    field = diffode.exact_field("digits-gmm10", "ddpm")
    network = adapters.as_diffusers_model(field, SHAPE)
    made = scheduler("dpmpp_2m_sde:jump=2", 5, grid="karras:rho=3")
    ends = []
    for seed in (0, 0, 1):
        made.set_timesteps(5)
        ends.append(loop(made, network, start(), generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(ends[0], ends[1])
    assert float((ends[0] - ends[2]).abs().max()) > 1e-3


def test_guidance_doubles_the_batch_and_half_precision_is_kept():
    field = diffode.exact_field("digits-gmm10", "ddpm")
    network, made = adapters.as_diffusers_model(field, SHAPE), scheduler("ipndm:order=3,jump=auto", 4, grid="karras:rho=3")
    x = start()
    for t in made.timesteps:
        shown = made.scale_model_input(torch.cat([x, x]), t)
        one, other = network(shown, t).sample.chunk(2)
        x = made.step(0.5 * (one + other), t, x).prev_sample
    ours = diffode.solve(field, start(), solver="ipndm:order=3,jump=auto", grid="karras:rho=3", steps=4).x
    torch.testing.assert_close(x, ours, rtol=1e-9, atol=1e-9)
    made.set_timesteps(4)
    half = start(dtype=torch.float16)
    assert made.scale_model_input(half, made.timesteps[0]).dtype == torch.float16
    end = loop(made, lambda x, t: network(x.double(), t), half)
    assert end.dtype == torch.float16
    assert float((end.double() - ours).abs().max()) < 0.1 * KNOWN.scale


def test_a_loop_that_scales_no_input_is_told_that_it_can_not_jump():
    """As those of DDPM and of flow matching, which call the network with their sample as it is."""
    field = diffode.exact_field("digits-gmm10", "ddpm")
    made = adapters.as_diffusers_scheduler("ipndm:order=3,jump=auto", statistics=KNOWN)
    pipeline = diffusers.DDPMPipeline(adapters.as_diffusers_model(field, SHAPE), made)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ArgumentError, match="jumps before its first evaluation, in scale_model_input, which this loop"):
        pipeline(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=4)
    made.set_timesteps(4)
    made.scale_model_input(start(), made.timesteps[0])
    made.set_timesteps(4)
    with pytest.raises(ArgumentError, match="leave jump out"):
        made.step(start(), made.timesteps[0], start())


def test_image_to_image_noises_to_the_start_of_the_jump_or_begins_below_it():
    field = diffode.exact_field("digits-gmm10", "ddpm")
    network, image, noise = adapters.as_diffusers_model(field, SHAPE), 0.3 * start(), start().flip(0)
    made = scheduler("dpmpp:order=2,jump=3", 6, grid="karras:rho=3")
    last = field.path.t_max
    noised = made.add_noise(image, noise, made.timesteps[:1])
    torch.testing.assert_close(noised, field.path.alpha(last) * image + field.path.sigma(last) * noise)
    made.set_begin_index(2)
    x = made.add_noise(image, noise, made.timesteps[2:3])
    found = loop(made, network, x, made.timesteps[2:])
    times = made.table.output_times.tolist()[3:]
    torch.testing.assert_close(found, diffode.solve(field, x, solver="dpmpp:order=2", grid=times).x, rtol=1e-9, atol=1e-9)


def test_statistics_are_no_part_of_the_configuration_and_are_asked_for(tmp_path):
    made = scheduler("ipndm:order=3,jump=auto", 4)
    assert "statistics" not in made.config
    made.save_config(tmp_path)
    again = type(made).from_pretrained(tmp_path, statistics=KNOWN)
    again.set_timesteps(4)
    assert torch.equal(again.timesteps, made.timesteps)
    other = adapters.as_diffusers_scheduler("dpmpp:order=2,jump=auto", like=made)
    assert other.statistics is KNOWN
    assert type(made).like(made, "dpmpp:order=2").statistics is None
    for make in (lambda: type(made).from_pretrained(tmp_path), lambda: adapters.as_diffusers_scheduler("ddim:jump=auto")):
        with pytest.raises(ArgumentError, match=r"has to know mean and covariance .* statistics=diffode.Statistics.of_samples"):
            make()
    with pytest.raises(ArgumentError, match="statistics go with a solver that asks for them"):
        adapters.as_diffusers_scheduler("ddim", statistics=KNOWN)
    with pytest.raises(ArgumentError, match="statistics are of data with 64 coordinates, but rows have 12"):
        made.scale_model_input(torch.zeros(2, 3, 2, 2), made.timesteps[0])
    with pytest.raises(ArgumentError, match="leaves nothing for a pipeline"):
        scheduler("ddim:jump=auto", 4, Statistics.of_target("gauss64-powerlaw"))


LEVELS = [80.0, 20.0, 7.0, 2.5, 0.8, 0.2, 0.02]


@pytest.mark.parametrize("make", [adapters.as_k_diffusion_sampler, adapters.as_comfyui_sampler])
def test_a_jump_past_all_levels_is_refused_where_others_gave_them(make):
    field = diffode.exact_field("ring8", "edm")
    model, x = adapters.as_k_diffusion(field), field.prior(3, generator=0)
    sample = make("ipndm:order=3,jump=auto", statistics=field.statistics)
    with pytest.raises(ArgumentError, match="the model is never asked: give more levels"):
        sample(model, x, torch.tensor([80.0, 0.0]))
    assert torch.isfinite(sample(model, x, torch.tensor([80.0, 1.0, 0.0]))).all()


@pytest.mark.parametrize("make", [adapters.as_k_diffusion_sampler, adapters.as_comfyui_sampler])
@pytest.mark.parametrize("solver", ["ipndm:order=3,jump=3", "edm_heun:jump=3", "euler:chart=gaussian"])
def test_functions_of_k_diffusions_kind_jump_to_a_level_of_theirs(make, solver):
    """To the first that is not above the level, three largest deviations of 1.67, which is the fourth."""
    field = diffode.exact_field("digits-gmm10", "edm")
    model, x = adapters.as_k_diffusion(field), field.prior(3, generator=0)
    asked = []

    def watched(x, sigma, **extra):
        asked.append(float(sigma[0]))
        return model(x, sigma, **extra)

    found = make(solver, statistics=KNOWN)(watched, x, torch.tensor(LEVELS, dtype=torch.float64))
    ours = diffode.solve(field, x, solver=solver, grid=LEVELS)
    torch.testing.assert_close(found, ours.x, rtol=1e-9, atol=1e-9)
    assert len(asked) == ours.nfe
    assert asked[0] == (2.5 if "jump" in solver else 80.0)
    if "jump" in solver:
        with pytest.raises(ArgumentError, match="s_churn goes with a solver that does not jump"):
            make(solver, statistics=KNOWN)(model, x, torch.tensor(LEVELS), s_churn=1.0)


@pytest.mark.parametrize("make", [adapters.as_k_diffusion_sampler, adapters.as_comfyui_sampler, adapters.as_azula_sampler])
def test_statistics_and_jumps_of_a_wrong_kind_are_refused_where_a_sampler_is_made(make):
    if make is adapters.as_azula_sampler:
        pytest.importorskip("azula.sample")
        with pytest.raises(UnknownNameError, match="did you mean 'karras'"):
            make("ddim", grid="karas")
    for wrong in (5, "ring8", KNOWN.mean):
        for solver in ("ipndm:jump=auto", "ddim"):
            with pytest.raises(ArgumentError, match=r"statistics must be diffode\.Statistics"):
                make(solver, statistics=wrong)
    for solver in ("ipndm:jump=auto", "euler:chart=gaussian", "universal:chart=gaussian"):
        with pytest.raises(ArgumentError, match="has to know mean and covariance of what the network denoises"):
            make(solver)
    with pytest.raises(ArgumentError, match="statistics go with a solver that asks for them"):
        make("ddim", statistics=KNOWN)
    for jump in (-1, 0, "often", float("nan"), True):
        with pytest.raises(ArgumentError, match="jump must be auto, or a level > 0"):
            make(diffode.solvers.DDIM(jump=jump), statistics=KNOWN)


def test_a_jump_of_a_wrong_kind_is_refused_with_the_solver():
    with pytest.raises(ArgumentError, match="jump must be auto"):
        diffode.solvers.get("euler:jump=often")
