"""Networks of diffusers' consistency schedulers as our maps: the scheduler's own loop on the network is our run of the map."""

import warnings

import pytest
import torch
from two_time_models import GAUSSIAN, MEAN, VARIANCE, columns

import diffode
from diffode.adapters import from_consistency
from diffode.errors import ArgumentError, ConventionWarning
from diffode.solvers.trained.mapped import MapSolver

diffusers = pytest.importorskip("diffusers")
from test_two_time_out import in_double, run  # noqa: E402


def network(x, label):
    """Any network will do: what it answers is carried through."""
    return (x + 0.3 * columns(label, x).sin()).tanh() - 0.2 * x


def laid(make, count, **config):
    scheduler = make(**config)
    more = {"intermediate_timesteps": None} if make is diffusers.SCMScheduler and count != 2 else {}
    scheduler.set_timesteps(count, **more)
    return scheduler


def answered(scheduler):
    """What a pipeline gives the scheduler's step: TrigFlow's network gets states in units of the data, and so it answers."""

    class Answer:
        def __init__(self, sample):
            self.sample = sample

    unit = scheduler.config.get("sigma_data", 1.0) if isinstance(scheduler, diffusers.SCMScheduler) else 1.0
    return lambda x, t: Answer(unit * network(x / unit, torch.as_tensor(t, dtype=torch.float64).expand(len(x))))


CASES = [
    (diffusers.CMStochasticIterativeScheduler, {"sigma_min": 2**-9, "clip_denoised": False}, (1, 2, 4)),
    (diffusers.CMStochasticIterativeScheduler, {"sigma_min": 2**-9, "clip_denoised": True, "sigma_data": 0.8}, (3,)),
    (diffusers.LCMScheduler, {}, (1, 4)),
    (diffusers.LCMScheduler, {"prediction_type": "sample", "clip_sample": True}, (2,)),
    (diffusers.LCMScheduler, {"prediction_type": "v_prediction", "timestep_scaling": 0.01}, (2,)),
    (diffusers.SCMScheduler, {"sigma_data": 0.7}, (1,)),
]


@pytest.mark.parametrize(("make", "config", "counts"), CASES)
def test_the_loop_of_diffusers_is_our_run(make, config, counts):
    for count in counts:
        scheduler = in_double(laid(make, count, **config))
        if make is diffusers.CMStochasticIterativeScheduler:
            # It makes them of the levels before these are rounded to float32.
            scheduler.timesteps = 250 * scheduler.sigmas[:-1].log()
        if make is diffusers.LCMScheduler:
            whole = scheduler.get_scalings_for_boundary_condition_discrete
            scheduler.get_scalings_for_boundary_condition_discrete = lambda step, whole=whole: whole(int(step))
        if make is diffusers.SCMScheduler:
            # Its first angle, 1.5708, is a little more than pi/2.
            scheduler.timesteps.clamp_(max=torch.pi / 2)
        phi = from_consistency(network, scheduler)
        field = diffode.exact_field(GAUSSIAN, phi.path)
        x = field.marginal(5, phi.times(count)[0] if make is not diffusers.SCMScheduler else 1.57, generator=0)
        ours = diffode.solve(field, x, solver=MapSolver(of=phi), nfe=count, generator=3)
        torch.testing.assert_close(run(scheduler, answered(scheduler), x, 3), ours.x, rtol=1e-9, atol=1e-9)
        assert ours.nfe == count


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_trajectory_consistency_model_is_a_map_of_two_times(kind):
    scheduler = in_double(laid(diffusers.TCDScheduler, 3, prediction_type=kind))
    phi = from_consistency(network, scheduler)
    assert not phi.fixed_end
    field = diffode.exact_field(GAUSSIAN, phi.path)
    x = field.prior(5, generator=0)
    ours = diffode.solve(field, x, solver=MapSolver(of=phi), nfe=3)
    torch.testing.assert_close(run(scheduler, answered(scheduler), x, eta=0.0), ours.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(phi(x, 500.0, 500.0), x, rtol=1e-12, atol=1e-12)


def test_two_steps_of_trigflow_noise_at_the_angle_of_the_scheduler(monkeypatch):
    scheduler = in_double(laid(diffusers.SCMScheduler, 2, sigma_data=0.7))
    drawn = lambda shape, generator, device: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(diffusers.schedulers.scheduling_scm, "randn_tensor", drawn)
    scheduler.timesteps[0] = scheduler.timesteps[0].clamp(max=torch.pi / 2)
    phi = from_consistency(network, scheduler)
    field = diffode.exact_field(GAUSSIAN, phi.path)
    x = field.marginal(5, 1.57, generator=0)
    times = [float(t) for t in scheduler.timesteps]
    ours = diffode.solve(field, x, solver=MapSolver(of=phi), grid=times, generator=3)
    torch.testing.assert_close(run(scheduler, answered(scheduler), x, 3), ours.x, rtol=1e-9, atol=1e-9)
    assert phi.times(2) == pytest.approx([torch.pi / 2, 1.3, 0.0], abs=1e-6)


def latent(kind="epsilon", sign=1, label=lambda step: step):
    """The network of an exact latent consistency model on Stable Diffusion's levels."""
    kept = diffusers.LCMScheduler().alphas_cumprod.double()

    def model(x, timestep):
        step = columns(label(timestep), x).clamp(0, len(kept) - 1)
        square = kept[step.long()]
        alpha, sigma = square.sqrt(), (1 - square).sqrt()
        end = MEAN + (VARIANCE / (alpha**2 * VARIANCE + sigma**2)).sqrt() * (x - alpha * MEAN)
        scaled = 10 * step
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
        clean = (end - skip * x) / out.clamp(min=1e-12)
        return (
            sign * {"epsilon": (x - alpha * clean) / sigma, "sample": clean, "v_prediction": (alpha * x - clean) / sigma}[kind]
        )

    return model


@pytest.mark.parametrize("given", ["data", "field"])
@pytest.mark.parametrize(
    ("model", "fix"),
    [
        (latent(), ""),
        (latent("sample"), "pass a scheduler with prediction_type='sample'"),
        (latent("v_prediction"), "pass a scheduler with prediction_type='v_prediction'"),
        (latent(sign=-1), "its sign is wrong: return -model"),
        (latent(label=lambda step: 999 * step), "its timesteps run from 0 to 1"),
        (latent(label=lambda step: 999 - step), "its timesteps rise towards the data"),
    ],
)
def test_a_wrong_reading_of_a_latent_consistency_model_is_named(model, fix, given):
    known = {"data": GAUSSIAN.sample(256, generator=0)} if given == "data" else {"field": diffode.exact_field(GAUSSIAN, "vp")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_consistency(model, diffusers.LCMScheduler(), **known)
    told = str(caught[0].message) if caught else ""
    assert all(one.category is ConventionWarning for one in caught)
    assert fix in told if fix else not told, told


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_consistency(network, diffusers.LCMScheduler(prediction_type="flow")), "prediction_type must be one of"),
        (lambda: from_consistency(network, diffusers.CMStochasticIterativeScheduler(s_noise=1.1)), r"s_noise=1.1"),
        (lambda: from_consistency(network, diffusers.LCMScheduler(), labels="log"), "labels goes with 'edm' and 'trigflow'"),
        (lambda: from_consistency(network, diffusers.LCMScheduler), "must be 'edm', 'trigflow', or a scheduler"),
        (lambda: from_consistency(network, diffusers.DDIMScheduler()), "got 'DDIMScheduler'"),
        (lambda: from_consistency(network, diffusers.LCMScheduler()).times(60), "LCMScheduler lays no 60 jumps"),
    ],
)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
