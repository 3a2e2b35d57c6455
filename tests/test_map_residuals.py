"""The residuals by which flow maps are trained: the exact map has none, whatever the method; losses that are wrong have."""

import math
import types

import pytest
import torch
from maps_exact import GaussianStates, exact_map, slope, straight_map, variance

from diffode.learned.maps.residuals import Context
from diffode.learned.maps.table import MAP_METHODS
from diffode.learned.maps.training import options_of
from diffode.maps.parametrisations import PARAMETRISATIONS


def terms_of(method, lam, parametrisation=None, share=0.6, seed=0, **changed):
    row, options = options_of(method)
    options.update(changed)
    if parametrisation is not None:
        options["parametrisation"] = parametrisation
    states = GaussianStates(lam, seed)
    states.path, states.clock = "none", None
    if "grid" in options:
        options["grid"] = "angle"
    phi = straight_map(lam, states.angles) if row.name == "reflow" else exact_map(options["parametrisation"], lam)
    context = Context(phi, phi, states, options, share, {} if row.name == "reflow" else dict.fromkeys(range(6), phi))
    return row.residual(context, 64)


CASES = [(name, None) for name in MAP_METHODS] + [
    (name, parametrisation)
    for name, row in MAP_METHODS.items()
    for parametrisation in PARAMETRISATIONS
    if not row.defaults["one_time"] and name != "ctm"
]


@pytest.mark.parametrize(("name", "parametrisation"), CASES)
@pytest.mark.parametrize("lam", [0.05, 0.7, 6.0])
def test_the_exact_map_has_no_residual(name, parametrisation, lam):
    terms = terms_of(name, lam, parametrisation)
    assert terms
    for term in terms:
        size = 1 + lam**0.5
        assert float(term.residual.detach().abs().max()) < 1e-10 * size * 10


@pytest.mark.parametrize("name", MAP_METHODS)
def test_a_map_that_is_not_exact_has_one(name):
    """The exact map of another variance is found out by every method."""
    row, options = options_of(name)
    if "grid" in options:
        options["grid"] = "angle"
    states = GaussianStates(0.7)
    wrong = straight_map(0.4, states.angles) if name == "reflow" else exact_map(options["parametrisation"], 0.4)
    # In later rounds progressive distillation learns from its own earlier map, whatever that is.
    share, frozen = (0.0, {}) if name in ("progressive", "reflow") else (0.6, {0: wrong})
    context = Context(wrong, wrong, states, options, share, frozen)
    assert max(float(term.residual.detach().abs().mean()) for term in row.residual(context, 256)) > 1e-4


@pytest.mark.parametrize("name", [n for n, row in MAP_METHODS.items() if len(row.teachers) > 1])
def test_all_teachers_of_a_method_agree_on_the_exact_map(name):
    for teacher in MAP_METHODS[name].teachers:
        for term in terms_of(name, 0.7, teacher=teacher):
            assert float(term.residual.detach().abs().max()) < 1e-10


def test_consistency_training_with_few_levels_has_the_slope_of_cosines():
    """On a Gaussian the fixed point of N levels of consistency training multiplies the slope by prod cos of the steps."""
    lam, rho = 0.7, torch.tensor(0.7, dtype=torch.float64).sqrt()
    known = {11: 0.767974060, 41: 0.936126307, 161: 0.983633715, 1281: 0.997939411}
    for count, ratio in known.items():
        steps = torch.arange(count, dtype=torch.float64) / (count - 1)
        levels = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        own = (levels / rho).atan()
        assert float((own[:-1] - own[1:]).cos().prod()) == pytest.approx(ratio, abs=5e-9)
        # The recursion of the stepwise optimum, in the clock of the data's scale 1, in which the angles are others.
        clock = levels.atan()
        found = torch.ones((), dtype=torch.float64)
        for a, r in zip(clock[:-1].flip(0), clock[1:].flip(0), strict=True):
            mean = (a.cos() * r.cos() * lam + a.sin() * r.sin()) / variance(a, lam)
            found = found * mean
        assert float(found / slope(clock[0], clock[-1], lam)) == pytest.approx(ratio, abs=5e-9)


def test_the_grid_of_equal_angles_is_the_best_for_consistency_training():
    for count, ratio in {11: 0.885277, 41: 0.970108, 161: 0.992444, 1281: 0.999052}.items():
        step = (math.atan(80 / 0.7**0.5) - math.atan(0.002 / 0.7**0.5)) / (count - 1)
        assert math.cos(step) ** (count - 1) == pytest.approx(ratio, abs=5e-7)
        # Any other split of the same angle has a smaller product.
        uneven = [step * (1 + 0.1 * (-1) ** k) for k in range(count - 1)]
        assert math.prod(map(math.cos, uneven)) < math.cos(step) ** (count - 1)


def conditional(lam, n=200_000):
    """Data and noise in rectified flow, exact in their first two moments, so that means over them are exact for lines."""
    base = torch.randn(n // 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    both = (base[None] * signs[:, None]).reshape(-1, 2)
    both = both / both.square().mean(0).sqrt()
    return both[:, :1] * lam**0.5, both[:, 1:]


@pytest.mark.parametrize(("lam", "wrong"), [(0.25, 0.00025), (1.0, 0.001), (4.0, 0.004)])
def test_the_conditional_lagrangian_learns_a_ddim_step(lam, wrong):
    """E|d_t Phi(x_s) - v_c(t)|^2 has its least for one DDIM step, which is the mean; its gradient at the exact map is not 0."""
    data, noise = conditional(lam)
    s, t = 0.999, 0.001
    start = (1 - s) * data + s * noise
    # For a line Phi = k x the least of the loss over all times up to t is the regression of the conditional end.
    end = (1 - t) * data + t * noise
    found = float((start * end).mean() / start.square().mean())
    alone = ((1 - t) * (1 - s) * lam + t * s) / ((1 - s) ** 2 * lam + s**2)
    assert found == pytest.approx(alone, rel=1e-9)
    # The mean is all that is left of the data at s = 1: a slope of a thousandth where lam^(1/2) is right.
    assert alone < 0.01 * lam**0.5
    assert alone == pytest.approx((0.999 * 0.001 * lam + 0.001 * 0.999) / (1e-6 * lam + 0.998001), rel=1e-12)
    assert wrong < lam**0.5


@pytest.mark.parametrize(("lam", "known"), [(0.25, 0.24174), (1.0, 0.38961), (4.0, 0.56165)])
def test_the_conditional_eulerian_without_a_stop_learns_something_else(lam, known):
    """E|d_s Phi + v_c Phi_x|^2 is least for another slope than the exact sqrt(lam): a boundary problem, solved backwards."""

    def rates(t, p):
        size = (1 - t) ** 2 * lam + t**2
        growth = (t - (1 - t) * lam) / size
        spread = lam / size
        return growth, size, spread

    # Riccati's form: with p = l (a' + G a) and q = p/a, a' = q a/l - G a, q' = 2 G q + V - q^2/l, q(1) = 0, backwards.
    def q_rate(t, q):
        growth, size, spread = rates(t, q)
        return 2 * growth * q + spread - q * q / size

    steps, t_max, t_min = 20_000, 0.999, 0.0
    h = (t_max - t_min) / steps
    q, log_slope = 0.0, 0.0
    for k in range(steps):
        t = t_max - k * h

        def both(at, value):
            growth, size, _ = rates(at, value)
            return q_rate(at, value), value / size - growth

        k1 = both(t, q)
        k2 = both(t - h / 2, q - h / 2 * k1[0])
        k3 = both(t - h / 2, q - h / 2 * k2[0])
        k4 = both(t - h, q - h * k3[0])
        q -= h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        # a = 1 at the end, so that log a is the integral of a'/a from 0 to 1.
        log_slope += h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
    assert math.exp(log_slope) == pytest.approx(known, abs=2e-5)


def test_the_gradient_of_conditional_losses_is_not_zero_at_the_exact_map():
    """Replacing the velocity given a state by that of data and noise is allowed in the target of MeanFlow, not in these."""
    lam, s, t = 1.0, 0.9, 0.2
    data, noise = conditional(lam)
    x = (1 - s) * data + s * noise
    exact = math.sqrt(((1 - t) ** 2 * lam + t**2) / ((1 - s) ** 2 * lam + s**2))
    end = (1 - t) * data + t * noise
    lagrangian = float((2 * x * (exact * x - end)).mean())
    assert abs(lagrangian) > 0.1
    # MeanFlow: the mean over v_c of its residual, times x, vanishes, since its target is linear in v_c.
    size, rate = (1 - s) ** 2 * lam + s**2, s - (1 - s) * lam
    velocity = noise - data
    mean = float((x * (velocity - rate / size * x)).mean())
    assert abs(mean) < 1e-12


def test_the_context_keeps_what_it_is_given():
    states = types.SimpleNamespace(angles=(1.5, 0.0), dtype=torch.float64)
    context = Context(exact_map("angle", 1.0), exact_map("angle", 1.0), states, {})
    assert context.share == 0.0
    assert context.frozen == {}
