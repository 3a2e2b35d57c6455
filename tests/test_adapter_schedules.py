"""What an adapter takes from a model or a scheduler besides its answer: its levels, its counting of time, its unit."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.util
import math
import warnings

import pytest
import torch

import diffode
from diffode import adapters
from diffode.paths import VP, SubVP, Tabulated

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

EDM = diffode.exact_field("ring8", "edm")
SAMPLES = EDM.marginal(5, 2.0, generator=0)


class Denoiser:
    """EDM's network class, as far as it is read."""

    def __init__(self, **known):
        vars(self).update(known)

    def __call__(self, x, sigma, **_):
        return EDM.denoised(x, sigma)


def test_an_edm_networks_levels_and_unit():
    field = adapters.from_edm(Denoiser(sigma_min=0.05, sigma_max=30.0, sigma_data=0.7))
    assert (field.path.sigma(field.path.t_min), field.path.sigma(field.path.t_max), field.scale) == (0.05, 30.0, 0.7)
    plain = adapters.from_edm(Denoiser(sigma_min=0, sigma_max=math.inf, sigma_data=0.5))
    assert (plain.path.sigma(plain.path.t_min), plain.path.sigma(plain.path.t_max), plain.scale) == (0.002, 80.0, 0.5)


@pytest.mark.parametrize("path", ["vp", "rectified_flow", "trigonometric"])
def test_a_denoiser_of_sigma_on_another_path_gets_x_over_alpha(path):
    exact = diffode.exact_field("ring8", path)
    field = adapters.from_k_diffusion(Denoiser(), path, scale=exact.scale)
    t = exact.path.time_from_rho(2.0)
    x = exact.marginal(5, t, generator=0)
    torch.testing.assert_close(field.denoised(x, t), exact.denoised(x, t), rtol=1e-9, atol=1e-9)
    times = torch.linspace(0.3, 0.7, 5, dtype=torch.float64)
    torch.testing.assert_close(field.noise(x, times), exact.noise(x, times), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("sde", "made"), [("vp", VP), ("sub_vp", SubVP)])
def test_a_score_sdes_own_betas(sde, made):
    path = made(beta_min=0.4, beta_max=9.0)
    exact = diffode.exact_field("ring8", path)
    field = adapters.from_score_sde(lambda x, labels: exact.noise(x, labels / 999), sde, beta_min=0.4, beta_max=9.0)
    assert field.path == path
    x = exact.marginal(5, 0.4, generator=0)
    torch.testing.assert_close(field.velocity(x, 0.4), exact.velocity(x, 0.4), rtol=1e-9, atol=1e-9)


def test_a_score_function_of_the_variance_exploding_sde_gets_its_time():
    low, high = 0.02, 40.0
    seen = []

    def score(x, t):
        seen.append(t)
        return EDM.score(x, low * (high / low) ** t)

    field = adapters.from_score_sde(score, "ve", score=True, sigma_min=low, sigma_max=high)
    torch.testing.assert_close(field.score(SAMPLES, 2.0), EDM.score(SAMPLES, 2.0), rtol=1e-9, atol=1e-9)
    assert float(seen[-1][0]) == pytest.approx(math.log(2.0 / low) / math.log(high / low))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edm_preconditioning_is_what_diffusers_scheduler_does(prediction_type):
    """The raw network's answer, turned into a denoised sample by diffusers' own code, is ours."""
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5, prediction_type=prediction_type)

    def raw(x, label):
        return torch.sin(3 * x) + label[:, None]

    field = adapters.from_diffusers(raw, scheduler)
    sigma = torch.tensor(1.7, dtype=torch.float64)
    answer = raw(scheduler.precondition_inputs(SAMPLES, sigma), scheduler.precondition_noise(sigma).expand(5))
    theirs = scheduler.precondition_outputs(SAMPLES, answer, sigma)
    torch.testing.assert_close(field.denoised(SAMPLES, 1.7), theirs, rtol=1e-12, atol=1e-12)


def test_flow_matching_timesteps_are_counted_as_the_scheduler_does():
    seen = []

    def model(x, t):
        seen.append(float(t[0]))
        return x

    adapters.from_diffusers(model, diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=400)).velocity(SAMPLES, 0.25)
    assert seen == [100.0]
    unipc = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    assert adapters.from_diffusers(model, unipc).path.spec == "rectified_flow"
    assert adapters.as_diffusers_scheduler("ddim", like=unipc).config.prediction_type == "flow_prediction"
    plain = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True)
    assert adapters.from_diffusers(model, plain).path.spec == "rectified_flow"
    assert adapters.as_diffusers_scheduler("ddim", like=plain).config.prediction_type == "epsilon"


def test_continuous_timesteps_within_the_table():
    scheduler = diffusers.EulerDiscreteScheduler(timestep_type="continuous")
    seen = []

    def model(x, t):
        seen.append(t)
        return x

    field = adapters.from_diffusers(model, scheduler)
    assert isinstance(field.path, Tabulated)
    field.noise(SAMPLES, 300.0)
    assert float(seen[0][0]) == pytest.approx(math.log(field.path.rho(300.0)) / 4)


def test_below_the_first_level_the_derivatives_are_those_of_alpha_and_sigma():
    path = Tabulated([0.99, 0.9, 0.5, 0.1])
    for t in (0.1, 0.6, 0.95, 1.7, 3.2):
        for name in ("alpha", "sigma"):
            value = getattr(path, name)
            slope = (value(t + 1e-6) - value(t - 1e-6)) / 2e-6
            assert getattr(path, f"{name}_derivative")(t) == pytest.approx(slope, rel=1e-7)


def test_a_guided_field_keeps_scale_and_shape():
    one, two = (diffode.exact_field(name, "vp") for name in ("ring8", "moons"))
    field = adapters.guided(one, two, 2.0)
    assert (field.scale, field.calls, field.dim) == (one.scale, 2, 2)


def test_a_k_diffusion_sampler_ends_above_any_level():
    """A run between two given levels is that very run, above sigma 0.002 and below it."""
    for levels in ([10.0, 3.0, 1.0], [1.0, 1e-2, 1e-4], [5.0, 0.5, 0.0]):
        x = EDM.marginal(4, levels[0], generator=1)
        end = adapters.as_k_diffusion_sampler("dpmpp:order=2")(adapters.as_k_diffusion(EDM), x, levels)
        torch.testing.assert_close(end, diffode.solve(EDM, x, solver="dpmpp:order=2", grid=levels).x, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(importlib.util.find_spec("azula") is None, reason="azula is not installed")
def test_an_azula_samplers_keywords_reach_the_denoiser():
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior
    from azula.noise import VPSchedule

    class Labelled(Base):
        def __init__(self):
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t, t, label=None):
            assert label is not None
            return DiracPosterior(mean=0 * x_t + label)

    sampler = adapters.as_azula_sampler("ddim")(Labelled(), steps=6, silent=True, dtype=torch.float64)
    labels = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    end = sampler(torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), label=labels)
    torch.testing.assert_close(end, labels.expand(3, 2), rtol=0, atol=0.2)
