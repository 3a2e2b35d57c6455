"""Paths: schedules, derivatives, log-SNR and its inverse, the forward SDE."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffode
from diffode import paths
from diffode.errors import ArgumentError, FieldError, UnknownNameError

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


@pytest.mark.parametrize("rho", [1e-4, 1e-8, 1e-12, 1e-18])
def test_levels_next_to_nothing_keep_their_digits(path, rho):
    """Flows to sigma = 0 end there: a difference of two angles, for one, would leave no digit of the time."""
    assert path.rho(path.time_from_rho(rho)) == pytest.approx(rho, rel=1e-13)
    several = torch.tensor([rho, 0.1], dtype=torch.float64)
    torch.testing.assert_close(path.rho(path.time_from_rho(several)), several, rtol=1e-13, atol=0)


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


def test_the_domain_of_a_path_ends_where_no_signal_or_no_level_is_left():
    ends = {spec: paths.get(spec).t_end for spec in ("rectified_flow", "trigonometric", "vp_cosine", "edm", "vp", "ddpm")}
    assert [ends[spec] for spec in ("rectified_flow", "trigonometric", "vp_cosine")] == [1, 1, 1]
    assert min(ends["edm"], ends["vp"]) > 1e100
    assert ends["ddpm"] == pytest.approx(1000, rel=1e-10)
    assert paths.FunctionPath(lambda t: 1 - t, lambda t: t, upper=1.0).t_end == 1
    assert paths.FunctionPath(lambda t: 1 - t, lambda t: t).t_end == 0.999


OUTSIDE = [
    ("trigonometric", 3.5), ("trigonometric", 1.0001), ("vp_cosine", 4.0), ("rectified_flow", 1.5), ("ddpm", 5000.0),
    ("ddpm", 1001.0), ("edm", 1e200), ("edm", -1.0), ("vp", math.nan), ("edm", math.inf), ("sub_vp", -1e-9),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "t"), OUTSIDE)
def test_times_outside_the_path_are_refused_one_or_many(spec, t):
    field = diffode.exact_field("ring8", spec)
    x = torch.zeros(3, 2, dtype=torch.float64)
    inside = field.path.t_max
    rows = torch.tensor([inside, t, inside], dtype=torch.float64)
    for when in (t, rows, rows.float()):
        for view in (field.velocity, field.noise, field.denoised, field.score, field.log_prob, field.divergence):
            with pytest.raises(ArgumentError, match="t must be a finite time >= 0 on path"):
                view(x, when)
    with pytest.raises(ArgumentError, match="on path"):
        field.marginal(2, t, generator=0)
    with pytest.raises(ArgumentError, match=r"grid|path"):
        diffode.grids.get([t, field.path.t_min] if t > 0 or t != t else [field.path.t_max, t], field.path)
    with pytest.raises(ArgumentError, match="start must be a finite time"):
        diffode.reference(field, x, t, inside)
    with pytest.raises(ArgumentError, match=r"grid|path"):
        diffode.solve(field, x, solver="euler", grid=[t, field.path.t_min] if t > 0 or t != t else [field.path.t_max, t])


@pytest.mark.parametrize(
    ("spec", "t"),
    [("edm", 500.0), ("edm", 0.0), ("vp", 1.5), ("ddpm", 1000.0), ("ddpm", 0.0), ("rectified_flow", 1.0),
     ("trigonometric", 1.0), ("vp_cosine", 1.0), ("vp_cosine", 0.0)],
)  # fmt: skip
def test_times_at_the_ends_of_the_domain_are_taken_one_or_many(spec, t):
    field = diffode.exact_field("ring8", spec)
    x = torch.ones(2, 2, dtype=torch.float64)
    for view in (field.velocity, field.noise, field.denoised):
        one, many = view(x, t), view(x, torch.full((2,), t, dtype=torch.float64))
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-12)


def test_point_masses_have_no_field_without_noise_in_any_row():
    field = diffode.exact_field("digits-empirical", "edm")
    x = torch.zeros(2, 64, dtype=torch.float64)
    for t in (0.0, 1e-170, torch.tensor([1.0, 0.0]), torch.tensor([1e-170, 1.0], dtype=torch.float64)):
        with pytest.raises(ArgumentError, match="no field at sigma = 0"):
            field.denoised(x, t)


def test_the_divergence_says_where_alpha_is_0_one_or_many():
    field = diffode.exact_field("ring8", "rectified_flow:t_max=1")
    for t in (1.0, torch.tensor([0.5, 1.0])):
        with pytest.raises(FieldError, match="not available at t=1"):
            field.divergence(torch.zeros(2, 2, dtype=torch.float64), t)


@pytest.mark.parametrize("s", [0.008, 0.2445, 0.1, 0.77, 0.999])
def test_the_cosine_path_loses_all_signal_at_1_exactly(s):
    path = paths.get(f"vp_cosine:s={s},t_max=1.0")
    assert path.alpha(1.0) == 0
    assert path.alpha(0.0) == 1
    assert path.log_snr(1.0) == -math.inf
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    theta = math.pi / 2 * (t + s) / (1 + s)
    assert torch.allclose(path.alpha(t), theta.cos() / theta[0].cos(), rtol=0, atol=4e-16 / math.cos(float(theta[0])))


@pytest.mark.parametrize(
    ("spec", "word"),
    [("edm:sigma_max=1e200", "t_max <= 1e"), ("ddpm:levels=10000000000", "levels must be an integer >= 2 and <= 1000000"),
     ("vp:beta_min=1e200,beta_max=1e200", "beta_max <= 1e"), ("ddpm:beta_start=1e-17", "larger betas"),
     ("ddpm:levels=100000,beta_end=0.9", "fewer levels"), ("ddpm:t_max=1001", "t_max <= 1000")],
)  # fmt: skip
def test_options_that_float64_or_memory_does_not_hold_are_named(spec, word):
    with pytest.raises(ArgumentError, match=word):
        paths.get(spec)


def test_draws_that_float32_does_not_hold_are_refused():
    field = diffode.exact_field("ring8", "edm:sigma_max=1e39")
    for draw in (field.prior, lambda n, **how: field.path.prior((n, 2), **how)):
        with pytest.raises(ArgumentError, match=r"does not fit torch\.float32"):
            draw(4, generator=0, dtype=torch.float32)
        assert torch.isfinite(draw(4, generator=0)).all()


def test_noise_that_float32_does_not_hold_is_no_error_where_the_answer_is():
    """At sigma = 1e39: the noise of x = 0 is -alpha m/sigma, the density (2 pi sigma^2)^(-D/2), the divergence D/sigma."""
    for name in ("ring8", "gmm40-50d"):
        field = diffode.exact_field(name, "edm")
        x = torch.zeros(2, field.dim)
        for t in (1e39, torch.full((2,), 1e39, dtype=torch.float64)):
            assert torch.allclose(field.denoised(x, t).double(), field.target.mean.expand(2, -1), rtol=1e-5, atol=1e-6)
            expected = -field.dim * math.log(1e39 * math.sqrt(2 * math.pi))
            assert float(field.log_prob(x, t)[0]) == pytest.approx(expected, rel=1e-6)
            assert float(field.divergence(x, t)[0]) == pytest.approx(field.dim / 1e39, rel=1e-6)
        with pytest.raises(ArgumentError, match="make it float64"):
            diffode.solve(field, x, solver="ddim", grid=[1e39, 1.0])


def test_churn_ends_at_the_last_level_of_a_discrete_model():
    table = diffode.solvers.get("edm_stochastic:churn=40").tableau(paths.get("ddpm"), [1000.0, 500.0, 100.0])
    assert max(float(row.time) for row in table.rows) <= paths.get("ddpm").t_end


def test_options_that_are_tensors_of_many_numbers_are_refused_by_name():
    with pytest.raises(ArgumentError, match="path 'ddpm' can't be made"):
        paths.get("ddpm", beta_end=torch.ones(2))


@pytest.mark.parametrize("spec", [
    "vp_cosine:s=0", "vp_cosine:s=1", "vp_cosine:t_max=1.0001", "trigonometric:t_max=1.0001",
    "ddpm:beta_end=1", "ddpm:beta_end=1.5", "ddpm:beta_start=0", "ddpm:beta_start=0.03,beta_end=0.02",
    "ddpm:levels=1",
])  # fmt: skip
def test_options_of_paths_end_where_they_say(spec):
    with pytest.raises(ArgumentError, match=r"0 <|<= 1|need 0|levels must"):
        paths.get(spec)


def test_options_just_inside_are_taken():
    for spec in ("vp_cosine:s=0.999", "vp_cosine:s=1e-6", "ddpm:beta_end=0.5", "ddpm:levels=2"):
        assert paths.get(spec).t_max > 0


def test_each_wrong_option_of_the_cosine_path_is_refused_alone():
    for options in ({"s": 1.5}, {"t_max": 1.2}):
        with pytest.raises(diffode.errors.ArgumentError, match="vp_cosine"):
            diffode.paths.VPCosine(**options)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(lambda: paths.get("trigonometric:t_max=1.5"), "t_max <= 1", id="a path beyond its end"),
    ],
)
def test_a_path_beyond_its_end_is_refused(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


def test_times_of_many_levels_are_those_of_each_to_the_last_bit():
    vp = paths.get("vp")
    levels = torch.logspace(-6, 6, 301, dtype=torch.float64).tolist()
    assert vp.times_from_rho(levels).tolist() == [vp.time_from_rho(level) for level in levels]
