"""What one jump costs: the slope between two modes, the price of a Lipschitz bound, noise of training, shortcuts."""

import math

import pytest
import torch

import diffode
from diffode.errors import ArgumentError
from diffode.verify.theory.one_step import bootstrapped_factor, lipschitz_price, one_step_slope, target_noise


def pair(r):
    return diffode.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [r**-2] * 2)


@pytest.mark.parametrize(("r", "known"), [(1, 1.65), (2, 3.70), (3, 30.0), (4, 745), (5, 5.4e4), (6, 1.1e7)])
def test_the_slope_of_the_exact_map_between_two_modes(r, known):
    assert one_step_slope(r) == pytest.approx(known, rel=0.01)
    flow, small = diffode.flow(diffode.exact_field(pair(r), "edm")), 1e-4 / one_step_slope(r)
    ends = flow(torch.tensor([[80.0 * small]], dtype=torch.float64), 80.0, 0.0)
    # The law at the first level is normal up to 1e-4.
    assert float(ends) / small == pytest.approx(one_step_slope(r), rel=5e-4)


PRICES = {
    2: (1.9e-2, 0, 0, 0, 0),
    3: (6.7e-2, 1.0e-2, 1.8e-3, 0, 0),
    4: (9.8e-2, 2.4e-2, 8.4e-3, 1.4e-3, 1.7e-4),
    6: (1.3e-1, 4.1e-2, 1.7e-2, 4.5e-3, 9.9e-4),
}


@pytest.mark.parametrize("r", PRICES)
def test_the_price_of_a_bound_on_the_slope(r):
    for slope, known in zip((2, 5, 10, 30, 100), PRICES[r], strict=True):
        assert lipschitz_price(r, slope) == pytest.approx(known, rel=0.04, abs=1e-10)


def test_no_map_beats_the_price():
    """Clipped maps of all levels and shapes with a slope at most K: the best of a family has the price, none is below."""
    r, slope = 3.0, 5.0
    z = torch.special.ndtri((torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000)
    exact = diffode.flow(diffode.exact_field(pair(r), "edm"))(80.0 * z[:, None], 80.0, 0.0)[:, 0]
    scale, price = math.sqrt(1 + r**-2), lipschitz_price(r, slope)
    clipped = torch.where(z.abs() * slope < exact.abs(), slope * z, exact)
    assert float((clipped - exact).abs().mean()) / scale == pytest.approx(price, rel=0.01)
    assert float(((clipped[1:] - clipped[:-1]) / (z[1:] - z[:-1])).max()) < slope * 1.001
    others = [
        torch.where(clipped.abs() == exact.abs(), exact, 0.9 * clipped),
        clipped + 0.01,
        torch.tanh(slope * z),
        0.98 * clipped,
        (slope * z).clamp(-1, 1),
    ]
    for other in others:
        assert float((other - exact).abs().mean()) / scale > price


def test_the_price_is_of_first_order():
    """phi(0)/K for narrow modes."""
    assert lipschitz_price(200.0, 3.0) == pytest.approx(0.3989 / 3, rel=0.05)


@pytest.mark.parametrize(("r", "ratio"), [(2, 1.694), (3, 5.173), (4, 64.32), (5, 2843.8)])
def test_the_noise_of_mean_flow_grows_with_the_square_of_the_slope(r, ratio):
    assert target_noise(r).ratio == pytest.approx(ratio, rel=1e-3)


def test_the_noise_for_narrow_modes_comes_from_the_border():
    """sqrt(pi/2) e^(r^2/2)/r^3, the integral of p_s^2/p_t across the border."""
    for r, close in ((5, 0.06), (6, 0.05), (7, 0.04)):
        assert target_noise(r).ratio == pytest.approx(math.sqrt(math.pi / 2) * math.exp(r * r / 2) / r**3, rel=close)


def test_the_noise_by_draws():
    """E[R^2 Var(v_c|x)] from draws, with R by the exact field's densities."""
    r, s, t = 2.0, 0.999, 0.001
    field = diffode.exact_field(pair(r), "rectified_flow")
    data = field.target.sample(50_000, generator=0)
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (1 - s) * data + s * noise
    away = (noise - data - field.velocity(x, s)).square()[:, 0]
    slope = (field.log_prob(x, s) - field.log_prob(diffode.flow(field)(x, s, t), t)).exp()
    known = target_noise(r, s, t)
    assert float(away.mean()) == pytest.approx(known.improved, rel=0.02)
    assert float((slope.square() * away).mean()) == pytest.approx(known.mean_flow, rel=0.04)


def test_one_gaussian_has_the_same_noise_for_both_at_the_ends():
    """On N(0, lam) the ratio is l_t/l_s: from one end to the other lam, so 1 for modes that merge into N(0, 1)-like data."""
    lam, s, t = 1.0, 0.999, 0.001
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [lam]), "rectified_flow")
    x = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    slope = (field.log_prob(x, s) - field.log_prob(diffode.flow(field)(x, s, t), t)).exp()
    assert slope.tolist() == pytest.approx([1.0, 1.0], abs=1e-9)


@pytest.mark.parametrize(("variance", "known"), [(0.25, 0.494245), (1.0, 0.990008), (4.0, 1.976980)])
def test_a_shortcut_model_ends_where_euler_does_for_every_budget(variance, known):
    found = [bootstrapped_factor(variance, 128, 2**k) for k in range(8)]
    assert found == pytest.approx([known] * 8, abs=5e-7)
    x, h = 1.0, 1 / 128
    for k in range(128):
        tau = k * h
        x += h * (tau * variance - (1 - tau)) / (tau**2 * variance + (1 - tau) ** 2) * x
    assert found[0] == pytest.approx(x, rel=1e-12)
    assert bootstrapped_factor(variance, 2**14) == pytest.approx(math.sqrt(variance), rel=2e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: one_step_slope(0.0),
        lambda: one_step_slope(40.0),
        lambda: target_noise(40.0),
        lambda: lipschitz_price(1e300, 10.0),
        lambda: lipschitz_price("4", 1.0),
        lambda: lipschitz_price(2.0, 0.0),
        lambda: target_noise(2.0, 0.1, 0.5),
        lambda: bootstrapped_factor(0.0, 8),
        lambda: bootstrapped_factor(1.0, 100),
        lambda: bootstrapped_factor(1.0, 4, 8),
    ],
)
def test_wrong_arguments_are_named(call):
    with pytest.raises(ArgumentError, match=r"separation|slope|times|variance|finest|jumps"):
        call()
