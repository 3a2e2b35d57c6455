"""Wrong arguments of adapters are named before anything is run, and what is not finite is no result."""

import math

import numpy as np
import pytest
import torch

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, FieldError, NumericalError
from diffode.paths import FunctionPath, Tabulated


def denoiser(x, sigma):
    return 0.5 * x


class Levels:
    sigma_min, sigma_max = math.nan, 80.0

    def __call__(self, x, sigma):
        return x


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: FunctionPath(lambda t: math.cos(t), lambda t: t), r"torch\.cos, not math\.cos"),
        (lambda: FunctionPath(lambda t: "no", lambda t: t), "alpha and sigma must be functions"),
        (lambda: Tabulated("abc"), "alphas_cumprod must be numbers"),
        (lambda: adapters.from_k_diffusion(denoiser, scale="a"), "scale must be a positive number"),
        (lambda: adapters.from_k_diffusion(denoiser, scale=math.inf), "scale must be a positive number"),
        (lambda: adapters.from_k_diffusion(denoiser, extra=[1]), "extra must be a dictionary"),
        (lambda: adapters.from_k_diffusion(Levels()), "sigma_min of the model is not a number"),
        (lambda: adapters.from_score_sde(denoiser, "ve", sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: adapters.from_flow_matching(denoiser, scheduler=3), "scheduler must be callable"),
        (lambda: adapters.from_diffusers(denoiser, dict), "an object, not a class"),
        (lambda: adapters.from_torchsde(None, "vp", dim=0), "dim must be the number"),
        (lambda: adapters.from_torchsde(None, "vp", dim="2"), "dim must be the number"),
        (lambda: adapters.as_torchdiffeq(denoiser), "field must be a diffode field"),
        (lambda: adapters.as_k_diffusion(denoiser), "field must be a diffode field"),
        (lambda: adapters.as_torchsde(denoiser), "field must be a diffode field"),
        (lambda: adapters.as_flow_matching(denoiser), "field must be a diffode field"),
        (lambda: adapters.as_k_diffusion_sampler("ddim")(denoiser, torch.ones(0, 2), [1.0, 0.1]), "at least one row"),
        (lambda: adapters.as_k_diffusion_sampler("ddim")(denoiser, [1.0], [1.0, 0.1]), "at least one row"),
    ],
)
def test_a_wrong_argument_is_named(call, word):
    with pytest.raises(ArgumentError, match=word):
        call()


def test_a_constant_alpha_makes_a_path():
    path = FunctionPath(lambda t: 1.0, lambda t: t, t_min=0.01, t_max=10.0)
    assert path.alpha(3.0) == 1.0
    assert path.alpha_derivative(3.0) == 0.0
    assert path.rho(3.0) == 3.0


def test_what_a_model_raises_is_named_with_the_call():
    field = adapters.from_k_diffusion(denoiser, extra={"labels": torch.ones(1)})
    with pytest.raises(FieldError, match=r"can't be called with x of torch\.float64.*unexpected keyword argument 'labels'"):
        diffode.solve(field, torch.ones(2, 2, dtype=torch.float64), solver="ddim", nfe=3)


def test_values_that_are_not_finite_are_no_result():
    sample = adapters.as_k_diffusion_sampler("dpmpp:order=2")
    with pytest.raises(NumericalError, match="not finite"):
        sample(lambda x, sigma: x / 0, torch.ones(2, 2), [10.0, 1.0, 0.0])


def test_levels_are_numbers_too():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    model = adapters.as_k_diffusion(field)
    assert torch.equal(model(x, 2.0), model(x, torch.full((3,), 2.0, dtype=torch.float64)))
    assert torch.equal(model(x, np.float64(2.0)), field.denoised(x, 2.0))


def test_classes_of_a_score_sde_network_reach_it():
    exact = diffode.exact_field("ring8", "vp")
    classes = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)

    def network(x, labels, y):
        return exact.noise(x, labels / 999) + y

    found = adapters.from_score_sde(network, "vp", extra={"y": classes})
    x = exact.marginal(3, 0.5, generator=0)
    torch.testing.assert_close(found.noise(x, 0.5), exact.noise(x, 0.5) + classes, rtol=1e-9, atol=1e-9)
