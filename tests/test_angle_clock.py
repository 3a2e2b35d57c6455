"""The angle clock, in which all paths are one problem, and the forms in which a network enters a map."""

import math

import pytest
import torch
from maps_exact import angles

import diffode
from diffode import paths
from diffode.errors import ArgumentError, UnknownNameError
from diffode.maps import AngleClock
from diffode.maps.parametrisations import PARAMETRISATIONS, parametrisation

PATHS = ["edm", "rectified_flow", "vp", "vp_cosine", "trigonometric"]


@pytest.mark.parametrize("name", PATHS)
def test_the_clock_takes_any_path_to_a_state_of_variance_one_and_back(name):
    path = paths.get(name)
    clock = AngleClock(torch.tensor([3.0, -1.0], dtype=torch.float64), 2.5)
    draw = torch.Generator().manual_seed(0)
    data = clock.mean + clock.scale * torch.randn(40_000, 2, generator=draw, dtype=torch.float64)
    noise = torch.randn(40_000, 2, generator=draw, dtype=torch.float64)
    for t in (path.t_max, (path.t_max + path.t_min) / 3, path.t_min):
        x = path.alpha(t) * data + path.sigma(t) * noise
        y = clock.state(x, path, t)
        theta = clock.angle(path, t)
        known = math.cos(theta) * (data - clock.mean) / clock.scale + math.sin(theta) * noise
        assert torch.allclose(y, known, atol=1e-12)
        assert float(y.square().mean()) == pytest.approx(1, abs=0.02)
        assert torch.allclose(clock.point(y, path, t), x, rtol=1e-12, atol=1e-12)
        if 0 < theta < math.pi / 2:
            assert float(clock.time(path, theta)) == pytest.approx(t, rel=1e-9)


def test_the_clock_takes_a_time_for_every_row():
    path, clock = paths.get("vp"), AngleClock(torch.zeros(1, dtype=torch.float64), 1.5)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    together = clock.state(x, path, t)
    for k in range(3):
        assert torch.equal(together[k], clock.state(x[k : k + 1], path, float(t[k]))[0])
        assert float(clock.angle(path, t)[k]) == pytest.approx(clock.angle(path, float(t[k])), abs=1e-15)


def test_the_velocity_of_the_clock_is_the_slope_of_the_flow():
    field = diffode.exact_field("ring8", "edm")
    clock, h = AngleClock.of(field), 1e-4
    x = field.marginal(6, 0.9, generator=0)
    theta = clock.angle(field.path, 0.9)
    velocity = clock.velocity(field, clock.state(x, field.path, 0.9), torch.full((6,), theta, dtype=torch.float64))
    there = []
    for shifted in (theta + h, theta - h):
        t = float(clock.time(field.path, shifted))
        there.append(clock.state(diffode.reference(field, x, 0.9, t).x, field.path, t))
    assert torch.allclose((there[0] - there[1]) / (2 * h), velocity, atol=2e-6)


def test_the_clock_refuses_data_without_a_size():
    for scale in (0.0, math.inf, math.nan, -1.0):
        with pytest.raises(ArgumentError, match="scale"):
            AngleClock(torch.zeros(1, dtype=torch.float64), scale)
    with pytest.raises(ArgumentError, match="mean"):
        AngleClock(torch.zeros(0, dtype=torch.float64), 1.0)
    with pytest.raises(ArgumentError, match="dim="):
        AngleClock.of(diffode.Field.from_velocity(lambda x, t: x, path="edm"))


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_a_parametrisation_is_the_identity_where_it_does_not_go_anywhere(name):
    a, _ = angles(50)
    keep, gain = parametrisation(name).coefficients(a, a)
    assert torch.allclose(keep, torch.ones_like(a), atol=1e-15)
    assert torch.allclose(gain, torch.zeros_like(a), atol=1e-15)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_rates_of_a_parametrisation_are_those_of_differences(name):
    (a, b), h = angles(50), 1e-6
    form = parametrisation(name)
    by_a, by_b = form.rates(a, b)
    for rates, ahead, behind in ((by_a, (a + h, b), (a - h, b)), (by_b, (a, b + h), (a, b - h))):
        for rate, one, other in zip(rates, form.coefficients(*ahead), form.coefficients(*behind), strict=True):
            assert torch.allclose((one - other) / (2 * h), rate, rtol=1e-6, atol=1e-7)


def test_published_forms_are_theirs_in_their_own_coordinates():
    a, b = angles(20)
    y, answer = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)

    def there(name):
        keep, gain = parametrisation(name).coefficients(a, b)
        return keep * y + gain * answer

    # EDM's x = y/cos, sigma = tan, data of scale 1: f = c_skip x + c_out F, with the end's level for epsilon.
    x, sigma, end = y / a.cos(), a.tan(), b.tan()
    skip, out = 1 / ((sigma - end) ** 2 + 1), (sigma - end) / (sigma**2 + 1).sqrt()
    assert torch.allclose(there("edm"), (skip * x + out * answer) * b.cos(), rtol=1e-12)
    # CTM: G = (t/s) x + (1 - t/s) g.
    assert torch.allclose(there("ddim"), (end / sigma * x + (1 - end / sigma) * answer) * b.cos(), rtol=1e-12)
    # The same with the Gaussian's flow, y at every angle, in place of (t/s) x.
    assert torch.allclose(there("variance"), y + (1 - end / sigma) * answer * b.cos(), rtol=1e-12)
    # Rectified flow's x = y/(cos + sin), t = sin/(cos + sin): an average velocity.
    size = a.cos() + a.sin(), b.cos() + b.sin()
    t = a.sin() / size[0], b.sin() / size[1]
    assert torch.allclose(there("average"), (y / size[0] + (t[1] - t[0]) * answer) * size[1], rtol=1e-12)
    # TrigFlow: f = cos(s) x - sin(s) F at t = 0.
    keep, gain = parametrisation("trig").coefficients(a, torch.zeros_like(a))
    assert torch.allclose(keep, a.cos())
    assert torch.allclose(gain, -a.sin())


def test_unknown_parametrisations_are_told():
    with pytest.raises(UnknownNameError, match="average"):
        parametrisation("avrage")
