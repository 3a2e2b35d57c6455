"""Paths: schedules, derivatives, log-SNR and its inverse, the forward SDE."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffode import paths
from diffode.errors import ArgumentError, UnknownNameError

ALL = paths.names()


@pytest.fixture(params=[*ALL, "vp:beta_min=0.05,beta_max=12", "edm:sigma_max=700"])
def path(request):
    return paths.get(request.param)


def interior(path, count=400):
    """Times spread over the path's range, dense at both ends."""
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    return path.t_min + (path.t_max - path.t_min) * (1 - torch.cos(math.pi * u)) / 2


def test_five_paths_are_registered():
    assert set(ALL) >= {"edm", "vp", "vp_cosine", "rectified_flow", "trigonometric"}


def test_time_from_log_snr_inverts_log_snr_to_1e_12(path):
    t = interior(path)
    assert torch.allclose(path.time_from_log_snr(path.log_snr(t)), t, rtol=1e-12, atol=0)


def test_log_snr_inverts_time_from_log_snr_to_1e_12(path):
    ends = path.log_snr(path.t_max), path.log_snr(path.t_min)
    log_snr = torch.linspace(*ends, 400, dtype=torch.float64)
    assert (path.log_snr(path.time_from_log_snr(log_snr)) - log_snr).abs().max() < 1e-12


def test_floats_and_tensors_give_the_same_numbers(path):
    t = interior(path, 17)
    for name in (
        "alpha",
        "sigma",
        "alpha_derivative",
        "sigma_derivative",
        "log_snr",
        "rho",
        "drift",
        "diffusion",
    ):
        function = getattr(path, name)
        scalars = torch.tensor([function(float(v)) for v in t], dtype=torch.float64)
        assert torch.allclose(function(t), scalars, rtol=1e-13, atol=1e-15), name


def test_derivatives_are_those_of_autograd(path):
    t = interior(path, 50)[1:-1].requires_grad_(True)
    for value, derivative in (
        (path.alpha(t), path.alpha_derivative(t)),
        (path.sigma(t), path.sigma_derivative(t)),
    ):
        (expected,) = torch.autograd.grad(value.sum(), t)
        assert torch.allclose(derivative, expected, rtol=1e-9, atol=1e-12)


def test_forward_sde_reproduces_the_moments(path):
    """d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2: the linear SDE has the path's mean and variance."""
    t = interior(path, 50)
    f, g = path.drift(t), path.diffusion(t)
    assert torch.allclose(path.alpha_derivative(t), f * path.alpha(t), rtol=1e-12)
    d_variance = 2 * path.sigma(t) * path.sigma_derivative(t)
    scale = (2 * f * path.sigma(t) ** 2).abs() + g**2
    assert ((2 * f * path.sigma(t) ** 2 + g**2 - d_variance).abs() / scale).max() < 1e-12


def test_log_snr_falls_from_data_to_noise(path):
    assert (path.log_snr(interior(path)).diff() < 0).all()


@pytest.mark.parametrize("name", ["vp", "vp_cosine", "trigonometric"])
def test_variance_preserving_paths_preserve_variance(name):
    path = paths.get(name)
    t = interior(path)
    assert torch.allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14)


def test_where_no_data_are_left_the_log_snr_is_minus_infinity():
    path = paths.get("rectified_flow")
    assert path.log_snr(1.0) == -math.inf
    assert path.rho(1.0) == math.inf


def test_zero_noise_is_a_limit_not_a_clamp(path):
    t = path.time_from_rho(0.0)
    assert t == pytest.approx(0, abs=1e-15)
    assert path.log_snr(0.0) == math.inf


@given(st.floats(-6, 6.5))
def test_rho_names_the_same_noise_level_on_every_path(log_rho):
    rho = math.exp(log_rho)
    for name in ALL:
        path = paths.get(name)
        assert path.rho(path.time_from_rho(rho)) == pytest.approx(rho, rel=2e-12)


def test_published_values():
    """DDPM's linear schedule: alpha(1)^2 = exp(-10.05); EDM: sigma is t; rectified flow: the chord."""
    assert paths.get("vp").alpha(1.0) ** 2 == pytest.approx(math.exp(-10.05), rel=1e-14)
    assert paths.get("edm").sigma(3.7) == 3.7
    assert paths.get("rectified_flow").alpha(0.25) == 0.75


def test_prior_has_the_standard_deviation_of_t_max(path):
    x = path.prior((20000, 2), generator=3)
    assert x.std().item() == pytest.approx(path.sigma(path.t_max), rel=0.02)


def test_a_spec_rebuilds_the_path(path):
    assert paths.get(path.spec) == path


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("vp:beta_min=-1", "beta_min"),
        ("edm:sigma_min=90", "t_min"),
        ("rectified_flow:t_max=1.5", "t_max"),
        ("vp:beta=3", "beta"),
    ],
)
def test_wrong_options_are_named(spec, word):
    with pytest.raises(ArgumentError, match=word):
        paths.get(spec)


def test_an_unknown_path_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'rectified_flow'"):
        paths.get("rectifiedflow")


def test_numpy_arrays_are_answered_in_kind(path):
    t = interior(path, 9)
    for name in ("alpha", "sigma", "log_snr", "rho", "drift", "diffusion"):
        answer = getattr(path, name)(t.numpy())
        assert torch.allclose(torch.from_numpy(answer), getattr(path, name)(t), rtol=1e-13)
    log_snr = path.log_snr(t)
    assert torch.allclose(torch.from_numpy(path.time_from_log_snr(log_snr.numpy())), t, rtol=1e-12)
