"""Likelihoods at sigma = 0, without a path, up to where alpha is 0; and their gradients."""

import math
import re

import pytest
import torch

import diffode
from diffode import Field, paths, verify
from diffode.errors import ArgumentError, FieldError
from diffode.verify import log_likelihood
from diffode.verify.field import likelihood
from diffode.verify.theory import bounds


@pytest.mark.parametrize(
    ("path", "own"),
    [
        *((path, False) for path in paths.names()),
        # Whose field it is makes no difference to a path.
        *(pytest.param(path, True, marks=() if path in ("vp", "ddpm") else pytest.mark.slow) for path in paths.names()),
    ],
)
def test_at_zero_noise_it_is_the_density_of_the_data(path, own):
    exact = diffode.exact_field("bimodal1d", path)
    on = exact.path
    zero = on.time_from_rho(0.0)
    x = on.alpha(zero) * torch.cat([exact.target.sample(3, generator=0), torch.tensor([[0.1], [-2.5]], dtype=torch.float64)])
    field = Field.from_denoised(exact.denoised, on, scale=exact.scale) if own else exact
    found = log_likelihood(field, x, t=zero, base=lambda end: exact.log_prob(end, on.t_max))
    torch.testing.assert_close(found, exact.target.log_prob(x), rtol=0, atol=1e-6)


def test_it_reaches_the_time_at_which_no_data_are_left():
    """alpha = 0 at t = 1, where the law is N(0, 1)."""
    for path in ("rectified_flow:t_max=1", "trigonometric:t_max=1"):
        field = diffode.exact_field("bimodal1d", path)
        x = field.target.sample(3, generator=0)
        torch.testing.assert_close(log_likelihood(field, x, t=0.01), field.log_prob(x, 0.01), rtol=0, atol=1e-6)


def test_a_field_without_a_path_has_one_from_a_base_and_its_time():
    """dx/dt = x from t = 0 to 1 stretches by e in each of two axes: log p_0(x) = log p_1(e x) + 2."""
    field = Field.from_velocity(lambda x, t: x)
    x = torch.tensor([[0.3, -0.4], [1.0, 0.0]], dtype=torch.float64)

    def base(end):
        return -end.square().sum(1) / 2 - math.log(2 * math.pi)

    found = log_likelihood(field, x, t=0.0, base=base, base_time=1.0)
    torch.testing.assert_close(found, base(math.e * x) + 2, rtol=0, atol=1e-7)
    with pytest.raises(FieldError, match=r"needs t=, base= and base_time="):
        log_likelihood(field, x, base=base)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("own", [False, True])
def test_its_gradient_in_x_is_the_score(divergence, own):
    exact = diffode.exact_field(diffode.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [0.2, 0.4]), "vp")
    field = Field.from_noise(exact.noise, exact.path, scale=exact.scale) if own else exact
    t = exact.path.time_from_rho(0.2)
    x = torch.tensor([[-0.7], [0.2], [1.4]], dtype=torch.float64, requires_grad=True)
    # In one dimension each of Hutchinson's probes gives the divergence itself.
    found = log_likelihood(field, x, t=t, base=lambda end: exact.log_prob(end, exact.path.t_max), divergence=divergence,
                           generator=0)  # fmt: skip
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient, exact.score(x.detach(), t), rtol=0, atol=1e-6)
    plain = log_likelihood(field, x.detach(), t=t, base=lambda end: exact.log_prob(end, exact.path.t_max))
    torch.testing.assert_close(found.detach(), plain, rtol=0, atol=1e-10)
    assert not plain.requires_grad


@pytest.mark.parametrize("t", [0.0, 0.3])
def test_its_gradient_by_a_parameter_is_that_of_the_closed_form(t):
    """The score -x/(c + t^2) on EDM is that of N(0, c + t^2); the base N(0, T^2) does not depend on c."""
    path = paths.get("edm")
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    field = Field.from_score(lambda x, u: -x / (c + u**2), path)
    x = torch.tensor([[0.5], [-1.2]], dtype=torch.float64)
    found = log_likelihood(field, x, t=t, differentiable=True)
    total, start = c + 80.0**2, c + t**2
    end = x[:, 0] * (total / start).sqrt()
    closed = -(end**2) / (2 * 80.0**2) + (total / start).log() / 2
    (gradient,), (expected,) = (torch.autograd.grad(v.sum(), c) for v in (found, closed))
    assert float(gradient) == pytest.approx(float(expected), rel=1e-6)


def test_wrong_times_are_named():
    field = diffode.exact_field("bimodal1d", "edm")
    x = torch.zeros(2, 1, dtype=torch.float64)
    for arguments, message in (
        ({"t": -1.0}, "t must be a finite time from 0"),
        ({"t": 81.0}, "t must be a finite time from 0"),
        ({"t": math.nan}, "t must be a finite time"),
        ({"base_time": 0.0}, "base_time must be a time with noise"),
        ({"t": "x"}, "t must be one time, a number"),
        ({"base_time": torch.ones(2)}, "base_time must be one time, a number"),
        ({"tolerance": []}, "tolerance must lie in"),
        ({"tolerance": 0.0}, "tolerance must lie in"),
        ({"tolerance": math.nan}, "tolerance must lie in"),
    ):
        with pytest.raises(ArgumentError, match=message):
            log_likelihood(field, x, **arguments)
    with pytest.raises(ArgumentError, match="x must be finite"):
        log_likelihood(field, x * math.nan)
    points = diffode.exact_field(diffode.GaussianMixture.from_points([[0.0], [1.0]]), "edm")
    with pytest.raises(ArgumentError, match="point masses have no flow to noise"):
        log_likelihood(points, x, t=0.0)


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow", "trigonometric"])
@pytest.mark.parametrize("target", ["ring8", "gauss1d"])
def test_samples_carry_their_log_density_with_them(path, target):
    field = diffode.exact_field(target, path)
    x = field.prior(6, generator=0)
    samples, log_prob = verify.sample_with_likelihood(field, x)
    assert float((log_prob - field.log_prob(samples, field.path.t_min)).abs().max()) < 1e-5
    there = diffode.reference(field, x, field.path.t_max, field.path.t_min)
    assert float((samples - there.x).norm(dim=1).max()) < 1e-6 * field.scale
    assert field.nfe == 0


def test_one_pass_down_and_one_pass_up_agree_on_a_field_of_ones_own():
    exact = diffode.exact_field("moons", "vp")
    field = diffode.Field.from_noise(exact.noise, exact.path, scale=exact.scale, probe=False)
    x = field.path.prior((4, 2), generator=1)
    samples, log_prob = verify.sample_with_likelihood(field, x, 0.01)
    up = verify.log_likelihood(field, samples, 0.01)
    assert float((log_prob - up).abs().max()) < 1e-5


def test_hutchinsons_probes_estimate_the_density_of_samples():
    """In one dimension (e v' e) is the divergence itself for e = +-1."""
    field = diffode.exact_field("bimodal1d", "vp")
    x = field.prior(5, generator=0)
    exact = verify.sample_with_likelihood(field, x)[1]
    estimate = verify.sample_with_likelihood(field, x, divergence="hutchinson", generator=0)[1]
    assert float((exact - estimate).abs().max()) < 1e-5
    with pytest.raises(ArgumentError, match="some noise"):
        verify.sample_with_likelihood(field, x, 0.0)


def test_a_callable_without_gradients_gives_no_likelihood_and_no_certificate(exact):
    """A view derived from it has a gradient all the same."""
    cut = diffode.Field.from_noise(lambda x, t: exact.noise(x, t).detach(), exact.path)
    x = torch.zeros(2, 1, dtype=torch.float64)
    for probes in (None, 4):
        with pytest.raises(FieldError, match="no_grad"):
            likelihood.log_likelihood(cut, x, **({} if probes is None else {"probes": probes, "generator": 0}))
    with pytest.raises(FieldError, match="lipschitz="):
        bounds.one_sided_lipschitz(cut, x, 0.5)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: log_likelihood(
                diffode.exact_field("ring8", "edm"),
                torch.zeros(2, 2),
                divergence="hutchinson",
                probes=0,
                generator=torch.Generator(),
            ),
            "probes must be an integer >= 1",
            id="probes that are none",
        ),
    ],
)
def test_probes_are_at_least_one(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
