"""The exact flow of guided fields: closed forms of two Gaussians, integration, jumps of the weight, derivatives."""

import math

import numpy as np
import pytest
import torch

import diffode
from diffode.fields import ExactField
from diffode.flows.guided import known_of, shared_basis
from diffode.flows.integrated import integrated_flow

GM = diffode.GaussianMixture


def gaussians(path, dim=3, seed=0):
    """Two Gaussians in one random basis, with means and widths apart."""
    draws = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=draws, dtype=torch.float64))[0]
    fields = []
    for _ in range(2):
        variances = torch.rand(dim, generator=draws, dtype=torch.float64) * 3 + 0.05
        mean = torch.randn(1, dim, generator=draws, dtype=torch.float64)
        whole = basis @ torch.diag(variances) @ basis.mT
        fields.append(diffode.exact_field(GM([1.0], mean, ((whole + whole.mT) / 2)[None]), path))
    return fields


def integrated(field, x, start, stop, tolerance=1e-12):
    return integrated_flow(field, x, start, stop, tolerance, False, x.shape[1:])[0]


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow", "trigonometric"])
@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 2.0, 7.5])
def test_the_flow_between_two_gaussians_is_what_integration_finds(path, weight):
    one, other = gaussians(path)
    on = one.path
    field = diffode.guide(one, other, weight)
    x = one.marginal(3, on.t_max, generator=1)
    found = diffode.reference(field, x, on.t_max, on.t_min)
    assert found.method == "closed-form"
    expected = integrated(field, x, on.t_max, on.t_min)
    assert float((found.x - expected).abs().max()) < 1e-12 * (1 + float(expected.abs().max()))


def test_the_counterexample_of_bradley_and_nakkiran_in_closed_form():
    """arXiv 2408.09000, section 3: N(0, 1) against N(0, 2) with weight w becomes N(0, 2^(1-w)) from infinite noise to none."""
    one, other = (diffode.exact_field(GM([1.0], [[0.0]], [c]), "edm:sigma_max=1e7") for c in (1.0, 2.0))
    x = torch.tensor([[1e7]], dtype=torch.float64)
    for weight in (0.0, 1.0, 2.0, 3.0, 7.5):
        end = diffode.reference(diffode.guide(one, other, weight), x, 1e7, 0.0).x
        assert float(end) ** 2 == pytest.approx(2 ** (1 - weight), rel=1e-12)


def test_equal_covariances_move_by_the_difference_of_the_means():
    """With one covariance c the offset's integral is elementary: sqrt(c + q_t) (1/sqrt(c + q_t) - 1/sqrt(c + q_s))."""
    c, weight, start, stop = 0.3, 4.0, 20.0, 0.1
    one, other = (diffode.exact_field(GM([1.0], [[m]], [c]), "edm") for m in (1.0, -0.5))
    x = torch.tensor([[3.0], [-7.0]], dtype=torch.float64)
    found = diffode.reference(diffode.guide(one, other, weight), x, start, stop).x
    # The guided field is the exact field of N(m, c), m = m_u + w (m_c - m_u), since the linear parts agree.
    moved = diffode.exact_field(GM([1.0], [[-0.5 + weight * 1.5]], [c]), "edm")
    assert float((found - diffode.reference(moved, x, start, stop).x).abs().max()) < 1e-13


def test_covariances_that_do_not_commute_are_integrated():
    one, _ = gaussians("edm", seed=0)
    _, other = gaussians("edm", seed=5)
    field = diffode.guide(one, other, 2.0)
    assert shared_basis(field) is None
    assert known_of(field) is None
    x = one.prior(2, generator=0)
    assert diffode.reference(field, x, 80.0, 0.002).method == "dop853"
    mixtures = diffode.guide(one, diffode.exact_field(GM([0.5, 0.5], [[0.0] * 3, [1.0] * 3], [1.0, 1.0]), "edm"), 2.0)
    assert known_of(mixtures) is None


@pytest.mark.parametrize("weight", [2.0, 7.5, 15.0])
def test_integrated_references_are_right_to_1e_8_and_say_so(weight):
    """On ring8 the estimate at 1e-10 lies above the distance to a run at 1e-13, and both lie below 1e-8."""
    ring = diffode.targets.get("ring8")
    field = diffode.guide(diffode.exact_field(ring.given("three"), "edm"), diffode.exact_field(ring, "edm"), weight)
    x = field.prior(16, generator=0)
    found, finer = (diffode.reference(field, x, 80.0, 0.002, tolerance) for tolerance in (1e-10, 1e-13))
    gap = (found.x - finer.x).norm(dim=1)
    assert float(gap.max()) < 1e-8
    assert bool((gap <= found.errors).all())
    assert found.error_estimate < 1e-6


def test_a_jump_of_the_weight_costs_no_digits():
    """Pieces are followed each by itself: closed forms composed, and integration that agrees to its tolerance."""
    one, other = gaussians("edm")
    field = diffode.guide(one, other, 5.0, interval=(0.3, 4.0))
    x = one.prior(3, generator=2)
    found = diffode.reference(field, x, 80.0, 0.002)
    assert found.method == "closed-form"
    point = x
    for part, begin, end in ((one, 80.0, 4.0), (diffode.guide(one, other, 5.0), 4.0, 0.3), (one, 0.3, 0.002)):
        point = diffode.reference(part, point, begin, end).x
    assert float((found.x - point).abs().max()) < 1e-13 * float(x.abs().max())
    assert float((found.x - integrated(field, x, 80.0, 0.002)).abs().max()) < 1e-11
    # Upwards the same pieces in reverse lead back, as far as the flow's contraction lets them.
    back = diffode.reference(field, found.x, 0.002, 80.0).x
    assert float((back - x).abs().max()) < 1e-6 * float(x.abs().max())


def test_weights_that_bend_are_integrated_piece_by_piece():
    one, other = gaussians("vp")
    on = one.path
    table = diffode.guide(one, other, {5.0: 1.0, 0.5: 4.0})
    smooth = diffode.guide(one, other, lambda rho: 1 + 3 * min(max(math.log(5.0 / rho) / math.log(10.0), 0.0), 1.0))
    assert [round(on.rho(end), 6) for _, _, end in table.pieces(on.t_max, on.t_min)][:2] == [5.0, 0.5]
    x = one.marginal(3, on.t_max, generator=1)
    found = diffode.reference(table, x, on.t_max, on.t_min, 1e-10)
    expected = diffode.reference(smooth, x, on.t_max, on.t_min, 1e-10)
    assert float((found.x - expected.x).norm(dim=1).max()) < 1e-8
    rows = found.x - diffode.solve(table, x, solver="rk4", grid="log_snr", steps=400).x
    # The bends leave rk4 second order: 6e-6 at 400 steps.
    assert float(rows.norm(dim=1).max()) < 3e-5


def test_the_exact_flow_of_a_guided_field_is_differentiable_with_a_time_for_every_row():
    one, other = gaussians("edm", dim=2)
    field = diffode.guide(one, other, 3.0)
    x = one.marginal(3, 5.0, generator=0).requires_grad_(True)
    s = torch.tensor([5.0, 4.0, 2.0], dtype=torch.float64)
    t = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    ends = diffode.flow(field)(x, s, t)
    for row in range(3):
        alone = diffode.reference(field, x[row : row + 1].detach(), float(s[row]), float(t.detach()[row])).x
        assert float((ends.detach()[row] - alone[0]).abs().max()) < 1e-12
    # d/dt Phi = v(Phi, t).
    (rate,) = torch.autograd.grad(ends.sum(), t, retain_graph=True)
    velocity = field.velocity(ends.detach(), t.detach()).sum(1)
    assert float((rate - velocity).abs().max()) < 1e-9


def test_conservation_the_divergence_is_the_rate_of_the_flow_s_volume():
    """d/dt log|det DPhi| = div v along the guided flow: probability is conserved, though no known law is transported."""
    one, other = gaussians("vp", dim=2)
    field = diffode.guide(one, other, 4.0)
    on = one.path
    begin, end = on.time_from_rho(10.0), on.time_from_rho(0.1)
    x = one.marginal(1, begin, generator=0)
    jacobian = torch.autograd.functional.jacobian(lambda p: diffode.flow(field)(p[None], begin, end)[0], x[0])
    nodes, shares = np.polynomial.legendre.leggauss(40)
    middle, half = (math.log(10.0) + math.log(0.1)) / 2, (math.log(0.1) - math.log(10.0)) / 2
    total = 0.0
    for node, share in zip(nodes.tolist(), shares.tolist(), strict=True):
        level, step = math.exp(middle + half * node), 1e-6
        t = on.time_from_rho(level)
        slope = (on.time_from_rho(level * math.exp(step)) - on.time_from_rho(level * math.exp(-step))) / (2 * step)
        place = diffode.reference(field, x, begin, t).x
        total += share * half * slope * float(field.divergence(place, t))
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(total, abs=1e-6)


def test_outside_its_interval_a_guided_field_is_the_conditional_one():
    one, other = gaussians("edm")
    parts = diffode.guide(one, other, 5.0, interval=(0.3, 4.0)).pieces(80.0, 0.002)
    assert [type(part) is ExactField for part, _, _ in parts] == [True, False, True]
    assert [(begin, end) for _, begin, end in parts] == [(80.0, 4.0), (4.0, 0.3), (0.3, 0.002)]
    assert len(diffode.guide(one, other, 5.0, interval=(0.3, 4.0)).pieces(3.0, 0.5)) == 1
