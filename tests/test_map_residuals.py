"""The residuals by which flow maps are trained: the exact map has none, whatever the method; losses that are wrong have."""

import math

import pytest
import torch
from maps_exact import GaussianStates, exact_map, slope, straight_map, variance

from diffode.learned.maps import residuals
from diffode.learned.maps.on_policy import matching_gradient, own_ways
from diffode.learned.maps.residuals import Context
from diffode.learned.maps.sources import Noised
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
    frozen = {} if row.name == "reflow" else dict.fromkeys(range(6), phi)
    # What a method's second network has learned of the points of an exact map is their exact law.
    context = Context(phi, phi, states, options, share, frozen, fake=exact_map("trig", lam) if row.generate else None)
    return row.residual(context, 64)


#: Methods whose residual vanishes at the exact map; those that learn a law alone are in test_map_laws.py.
COUPLED = [name for name, row in MAP_METHODS.items() if not row.law_only]
CASES = [(name, None) for name in COUPLED] + [
    (name, parametrisation)
    for name, row in MAP_METHODS.items()
    for parametrisation in PARAMETRISATIONS
    if not row.law_only and not row.defaults["one_time"] and name != "ctm"
]


@pytest.mark.parametrize(("name", "parametrisation"), CASES)
@pytest.mark.parametrize("lam", [0.05, 0.7, 6.0])
def test_the_exact_map_has_no_residual(name, parametrisation, lam):
    terms = terms_of(name, lam, parametrisation)
    assert terms
    for term in terms:
        size = 1 + lam**0.5
        assert float(term.residual.detach().abs().max()) < 1e-10 * size * 10


@pytest.mark.parametrize("name", COUPLED)
def test_a_map_that_is_not_exact_has_one(name):
    """The exact map of another variance is found out by every method."""
    row, options = options_of(name)
    if "grid" in options:
        options["grid"] = "angle"
    states = GaussianStates(0.7)
    wrong = straight_map(0.4, states.angles) if name == "reflow" else exact_map(options["parametrisation"], 0.4)
    # In later rounds progressive distillation learns from its own earlier map, whatever that is.
    share, frozen = (0.0, {}) if name in ("progressive", "reflow") else (0.6, {0: wrong})
    context = Context(wrong, wrong, states, options, share, frozen, fake=exact_map("trig", 0.4) if row.generate else None)
    assert max(float(term.residual.detach().abs().mean()) for term in row.residual(context, 256)) > 1e-4


@pytest.mark.parametrize("name", [n for n, row in MAP_METHODS.items() if len(row.teachers) > 1])
def test_all_teachers_of_a_method_agree_on_the_exact_map(name):
    for teacher in MAP_METHODS[name].teachers:
        for term in terms_of(name, 0.7, teacher=teacher):
            assert float(term.residual.detach().abs().max()) < 1e-10


@pytest.mark.parametrize("name", [name for name, row in MAP_METHODS.items() if row.residual is residuals.halves])
def test_differences_of_points_weigh_as_those_of_velocities_or_all_alike(name):
    term = terms_of(name, 0.7, weight="slope")[0]
    a, b = term.span
    assert torch.equal(torch.as_tensor(term.weight), 1 / ((b - a) ** 2 + 1e-3))
    assert terms_of(name, 0.7, weight="none")[0].weight == 1


def test_segments_of_multistep_consistency_end_below_where_they_begin():
    """From an angle one goes to the nearest end of a segment below it, from the first step above an end too."""
    (term,) = terms_of("multistep_cd", 0.7)
    first, last = GaussianStates(0.7).angles
    ends = torch.linspace(first, last, 5, dtype=torch.float64)[1:]
    a, b = term.span
    below = torch.where(ends < a[:, None] - 1e-9, ends, -1.0).max(1).values
    assert torch.allclose(b, below, atol=1e-12)
    assert len(set(b.tolist())) == 4


@pytest.mark.parametrize("name", ["scd", "sct", "ayf_emd"])
def test_a_tangent_moves_points_against_their_derivative_along_the_trajectory(name):
    """A step down the loss changes Phi by - |B| g with g along D_a Phi: the other sign would lead away from the flow."""
    states, seen = GaussianStates(0.7), []

    def noised(a):
        seen.append(GaussianStates.noised(states, a))
        return seen[-1]

    states.noised = noised
    options = options_of(name)[1]
    wrong = exact_map(options["parametrisation"], 0.4)
    (term,) = MAP_METHODS[name].residual(Context(wrong, wrong, states, options, 1.0), 200)
    a, b = term.span
    _, rate = wrong.at_start(seen[0].y, a, b, states.velocity(seen[0].y, a))
    gain = wrong.parametrisation.coefficients(a, b)[1][:, None]
    agreement = gain * term.residual * rate
    assert float(agreement.min()) >= -1e-15
    assert float(agreement.mean()) > 1e-4


@pytest.mark.parametrize("lam", [0.2, 0.7, 3.0])
def test_consistency_training_with_few_levels_stops_at_the_product_of_cosines(lam):
    """Where levels are few its fixed point is not the flow: the residual's mean given a state vanishes for the product."""
    options = options_of("ct:levels=9,parametrisation=angle")[1] | {"grid": "angle"}
    states = GaussianStates(lam)
    # Data and noise given a state have their means, so that its neighbour has the mean of the neighbours.
    states.noised = lambda a: Noised(*GaussianStates.noised(states, a))
    angles = torch.linspace(*states.angles, 10, dtype=torch.float64)
    slopes, own = [torch.ones((), dtype=torch.float64)], (angles.tan() / lam**0.5).atan()
    for k in range(8, -1, -1):
        exact = slope(angles[k], angles[k + 1], lam)
        slopes.insert(0, slopes[0] * exact * (own[k] - own[k + 1]).cos())

    def jump(y, a, b):
        nearest = (a[:, None] - angles).abs().argmin(1)
        return torch.stack(slopes)[nearest][:, None] * y

    context = Context(jump, jump, states, options)
    (term,) = residuals.consistency(context, 200)
    assert float(term.residual.abs().max()) < 1e-12
    phi = exact_map("angle", lam)
    (term,) = residuals.consistency(Context(phi, phi, states, options), 200)
    assert float(term.residual.abs().mean()) > 1e-3


def conditional(lam, n=200_000):
    """Data and noise in rectified flow, exact in their first two moments, so that means over them are exact for lines."""
    base = torch.randn(n // 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    both = (base[None] * signs[:, None]).reshape(-1, 2)
    both = both / both.square().mean(0).sqrt()
    return both[:, :1] * lam**0.5, both[:, 1:]


@pytest.mark.parametrize(("lam", "known"), [(0.25, 0.00025), (1.0, 0.001), (4.0, 0.004)])
def test_the_conditional_lagrangian_learns_a_ddim_step(lam, known):
    """E|Phi(x_s) - x_t|^2 with the same data and noise is least for one DDIM step, the mean: slopes of a thousandth."""
    data, noise = conditional(lam)
    s, t = 0.999, 0.0
    start, end = (1 - s) * data + s * noise, (1 - t) * data + t * noise
    found = float((start * end).mean() / start.square().mean())
    assert found == pytest.approx(known, rel=0.01)
    assert found < 0.01 * lam**0.5


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


def anyflow(law, lam=0.7, share=0.6, seed=0, ends=0.5):
    """The terms of anyflow for the exact map of a law of its own, whose fake knows that law."""
    row, options = options_of(f"anyflow:ends={ends}")
    states, phi = GaussianStates(lam, seed), exact_map(options["parametrisation"], law)
    return row.residual(Context(phi, phi, states, options, share, fake=exact_map("trig", law)), 4000)


@pytest.mark.parametrize("law", [0.2, 1.8])
def test_ends_on_policy_are_moved_towards_the_law_of_the_data(law):
    """Points of too narrow a law are pulled apart, of too wide a one together; the residual is minus D/2 of the gradient."""
    _, term = anyflow(law)
    angles = GaussianStates(0.7).angles
    last = torch.tensor(angles[1], dtype=torch.float64)
    # The points of the same draws.
    row, options = options_of("anyflow")
    phi, states = exact_map(options["parametrisation"], law), GaussianStates(0.7)
    context = Context(phi, phi, states, options, 0.6, fake=exact_map("trig", law))
    row.residual(Context(phi, phi, states, options, 0.0), 4000)
    points, b = row.generate(context, 4000)
    assert torch.equal(b, last.expand(4000))
    outwards = float((term.residual * points).mean())
    assert (outwards > 0) == (law > 0.7)
    assert abs(outwards) > 1e-2


def test_the_gradient_on_policy_is_the_difference_of_the_scores():
    """For points of N(0, q) and data of N(0, k): D' - D = (q - k) of the two slopes, over the mean distance from D."""
    law, lam = 1.8, 0.7
    a, b = torch.full((50,), 0.9, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    points, eps = (
        torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None],
        torch.linspace(1, -1, 50, dtype=torch.float64)[:, None],
    )
    y = a.cos()[:, None] * points + a.sin()[:, None] * eps

    def denoised(of):
        return lambda y, a: (a.cos() * of / (a.cos() ** 2 * of + a.sin() ** 2))[:, None] * y

    found = matching_gradient(points, b, a, eps, denoised(lam), denoised(law))
    cos, sin = math.cos(0.9), math.sin(0.9)
    slopes = [cos * v / (cos**2 * v + sin**2) for v in (lam, law)]
    assert torch.allclose(found, (slopes[1] - slopes[0]) * y / (points - slopes[0] * y).abs(), rtol=1e-10)
    # In more dimensions the distance is the mean over coordinates.
    twice = matching_gradient(points.expand(50, 2), b, a, eps.expand(50, 2), denoised(lam), denoised(law))
    assert torch.allclose(twice, found.expand(50, 2), rtol=1e-12)


def test_the_second_of_three_jumps_on_the_way_learns_alone():
    """A way's first jump has no gradient and its last is held: the gradient is that of the middle jump by its numbers."""
    lam, gain = 0.7, torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    states = GaussianStates(lam)

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(gain)

        def forward(self, y, a, b):
            return self.gain * slope(a, b, lam)[:, None] * y

    phi = Scaled()
    points, last = own_ways(Context(phi, phi, states, options_of("anyflow:ends=0.3")[1]), 300)
    (by_gain,) = torch.autograd.grad(points.sum(), phi.parameters())
    # Ends are linear in the gain of one jump, so that their derivative at gain 1 is themselves.
    assert torch.allclose(by_gain, points.detach().sum())
    assert float((last - states.angles[1]).abs().max()) == 0.0
    assert float(points.detach().square().mean()) == pytest.approx(float(variance(last[:1], lam)), rel=0.3)


def test_pairs_come_first_and_ends_on_policy_later():
    assert [len(anyflow(0.2, share=share)) for share in (0.0, 0.49, 0.5, 1.0)] == [1, 1, 2, 2]
    assert anyflow(0.2)[1].weight == 0.1
