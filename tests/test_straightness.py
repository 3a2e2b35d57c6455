"""Rectified flows: straightness, crossing, costs, what a second round does, and straight couplings that are not optimal."""

import math

import pytest
import torch

import diffode
from diffode.errors import ArgumentError
from diffode.numerics.gaussian_transport import optimal_map
from diffode.verify.theory.straightness import (
    coupling_cost,
    gaussian_straightness,
    rectified_map,
    straightness,
)

S0 = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
S1 = torch.tensor([[1.0, -0.9], [-0.9, 3.0]], dtype=torch.float64)


def exact_pairs(count=64):
    """Two columns whose second moments are those of independent standard normals, so that means of squares are exact."""
    base = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    both = (base[None] * signs[:, None]).reshape(-1, 2)
    both = both / both.square().mean(0).sqrt()
    return both[:, :1], both[:, 1:]


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.5), (0.7, 2.0), (-3.0, 1.0)])
def test_straightness_of_the_first_flow_of_a_gaussian(mean, deviation):
    """S = (2 - pi/2) s0 s1 and V = (pi/2) s0 s1, whatever the means; the cost falls by their sum, 2 s0 s1."""
    target = diffode.GaussianMixture([1.0], [[mean]], [deviation**2])
    field = diffode.exact_field(target, "rectified_flow:t_max=1,t_min=0")
    noise, unit = exact_pairs()
    found = straightness(field, noise, mean + deviation * unit)
    known = gaussian_straightness(1.0, deviation)
    assert found.curvature == pytest.approx(known.curvature, rel=1e-9)
    assert found.crossing == pytest.approx(known.crossing, rel=1e-9)
    assert found.cost - found.flow_cost == pytest.approx(2 * deviation, rel=1e-12)
    assert found.cost == pytest.approx(1 + deviation**2 + mean**2, rel=1e-12)


def test_the_cost_falls_by_curvature_and_crossing_on_a_mixture_too():
    """Equation 13, which holds for any law; draws have a standard error of some hundredths."""
    field = diffode.exact_field("bimodal1d", "rectified_flow")
    noise = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = field.target.sample(500, generator=1)
    found = straightness(field, noise, data)
    fall = found.cost - found.flow_cost
    assert fall == pytest.approx(found.curvature + found.crossing, rel=0.06)
    assert 0 < found.curvature < fall


def test_a_second_round_has_neither():
    """The velocity of the straightened flow, m1 - m0 + (R - I)((1 - t) I + t R)^-1 (x - m_t), gives the end of the first."""
    first = rectified_map(S0, S1)
    eye = torch.eye(2, dtype=torch.float64)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    straight = x.clone()
    steps = 7
    for k in range(steps):
        between = (1 - k / steps) * eye + k / steps * first
        velocity = straight @ torch.linalg.solve(between.T, (first - eye).T)
        # A line is followed without error by Euler, however few its steps.
        straight = straight + velocity / steps
    assert torch.allclose(straight, x @ first.T, atol=1e-13)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_round_is_optimal_where_covariances_commute(seed):
    basis = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    noise, data = (
        basis @ torch.diag(torch.tensor(v, dtype=torch.float64)) @ basis.T for v in ([1.0, 2.0, 0.3], [0.1, 5.0, 2.0])
    )
    assert torch.allclose(rectified_map(noise, data), optimal_map(noise, data), atol=1e-9)


def test_straight_is_not_optimal_where_they_do_not():
    """Costs 7 of independent pairs, 1.719696 after a round, which a second leaves straight as it is, 1.704112 of transport."""
    found, best = rectified_map(S0, S1), optimal_map(S0, S1)
    assert torch.allclose(found @ S0 @ found.T, S1, atol=1e-12)
    assert float((found - found.T).abs().max()) > 0.1
    assert coupling_cost(S0, S1, torch.zeros(2, 2, dtype=torch.float64)) == pytest.approx(7.0, abs=1e-12)
    assert coupling_cost(S0, S1, found) == pytest.approx(1.719696, abs=1e-6)
    assert coupling_cost(S0, S1, best) == pytest.approx(1.704112, abs=1e-6)
    assert torch.allclose(best @ S0 @ best.T, S1, atol=1e-12)
    assert torch.allclose(best, best.T, atol=1e-12)


def test_on_the_line_the_flow_is_optimal_for_every_convex_cost():
    """The flow is increasing there, and so it couples as sorting does."""
    field = diffode.exact_field("bimodal1d", "rectified_flow")
    x = field.prior(2000, generator=0)
    ends = diffode.flow(field)(x, field.path.t_max, field.path.t_min)
    order = x[:, 0].argsort()
    assert bool((ends[order][1:] > ends[order][:-1]).all())
    shuffled = ends[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    for power in (1.0, 1.5, 2.0, 4.0):
        costs = [float((other - x).abs().pow(power).mean()) for other in (ends, shuffled)]
        assert costs[0] <= costs[1]


def test_rounds_make_costs_fall_no_further_than_to_the_optimum():
    assert coupling_cost(S0, S1, optimal_map(S0, S1)) < coupling_cost(S0, S1, rectified_map(S0, S1)) < 7.0


def test_wrong_arguments_are_named():
    draws = torch.zeros(4, 1, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="rectified flow"):
        straightness(diffode.exact_field("gauss1d", "edm"), draws, draws)
    with pytest.raises(ArgumentError, match="noise and data"):
        straightness(diffode.exact_field("gauss1d", "rectified_flow"), draws, draws[:2])
    with pytest.raises(ArgumentError, match="covariances"):
        rectified_map(torch.eye(2), torch.eye(3))


def test_independent_lines_cross_by_half_of_pi():
    assert gaussian_straightness(3.0, 2.0) == pytest.approx((6 * (2 - math.pi / 2), 3 * math.pi))
