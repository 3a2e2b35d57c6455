"""IMM: the discrepancy of two laws and its gradient, in closed form and against autograd, and its term in groups."""

import math
from types import SimpleNamespace

import pytest
import torch
from maps_exact import GaussianStates, slope

from diffode.learned.maps import moments
from diffode.learned.maps.losses import loss_of, weigher
from diffode.learned.maps.residuals import Context, Term
from diffode.maps.parametrisations import PARAMETRISATIONS


def draw(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pairs", moments.PAIRS)
@pytest.mark.parametrize("dim", [1, 3])
def test_the_gradient_of_the_discrepancy_is_that_of_autograd(pairs, dim):
    x, y = draw(5, 4, dim).requires_grad_(True), draw(5, 4, dim, seed=1)
    width = 0.3 + draw(5, seed=2).abs()
    (known,) = torch.autograd.grad(moments.squared_discrepancy(x, y, width, pairs).sum(), x)
    found = moments.discrepancy_gradient(x.detach(), y, width, pairs)
    assert torch.allclose(found, known, atol=1e-14)
    # One group's points do not pull another's.
    alone = moments.discrepancy_gradient(x[2:3].detach(), y[2:3], width[2:3], pairs)
    assert torch.allclose(alone, found[2:3], atol=1e-15)


def test_the_discrepancy_by_hand():
    x, y = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[2.0], [3.0]]])
    e = [math.exp(-k / 2) for k in range(4)]
    width = torch.tensor([2.0])
    assert float(moments.squared_discrepancy(x, y, width)) == pytest.approx(
        (2 + 2 * e[1] + 2 + 2 * e[1] - 2 * (e[2] + e[3] + e[1] + e[2])) / 4
    )
    distinct = (2 * e[1] + 2 * e[1] - 2 * (e[3] + e[1])) / 2
    assert float(moments.squared_discrepancy(x, y, width, "distinct")) == pytest.approx(distinct)


def test_where_laws_are_equal_the_gradient_has_no_mean_over_distinct_pairs_alone():
    """Its mean against f(x) = x, the direction in which a law widens, in groups whose two sets are independent."""

    def mean(x, y, pairs):
        gradient = moments.discrepancy_gradient(x, y, torch.ones(len(x), dtype=torch.float64), pairs)
        each = (gradient * x).sum((1, 2))
        return float(each.mean()), float(each.std()) / len(each) ** 0.5

    x, y = draw(20_000, 4, 1), draw(20_000, 4, 1, seed=1)
    value, error = mean(x, y, "distinct")
    assert abs(value) < 4 * error
    # A point's pair with itself has no pull, so that all pairs hold the law too near the target's points.
    value, error = mean(x, y, "all")
    assert value > 20 * error
    # A law that is too wide is drawn together, one that is too narrow apart.
    for factor, sign in ((1.5, 1), (0.6, -1)):
        value, error = mean(factor * x, y, "distinct")
        assert sign * value > 20 * error
    # With its own points as target nothing pulls, whatever the pairs.
    for pairs in moments.PAIRS:
        assert float(moments.discrepancy_gradient(x[:9], x[:9], torch.ones(9, dtype=torch.float64), pairs).abs().max()) < 1e-15


def test_a_residual_toward_a_point_has_the_gradient_that_was_asked_for():
    points, gradient = draw(6, 3).requires_grad_(True), draw(6, 3, seed=1)
    loss_of([Term(moments.toward(points, gradient))], "squared", 1.0, weigher()).backward()
    assert torch.allclose(points.grad, gradient / 6, atol=1e-15)


def test_the_lower_angle_and_the_weight_of_imm():
    a = torch.tensor([1.5, 1.0, 0.02], dtype=torch.float64)
    r = moments.lower(a, (1.5264, 0.00056), 8)
    gap = (math.tan(1.5264) - math.tan(0.00056)) / 256
    assert r.tan().tolist() == pytest.approx([math.tan(1.5) - gap, math.tan(1.0) - gap, 0.0])
    # sigmoid(b - log SNR), half the rate of -log SNR = 2 log tan, and cos^a.
    found = moments.weight(torch.tensor([0.4], dtype=torch.float64), 1.0, 2.0)
    log_snr, rate = -2 * math.log(math.tan(0.4)), 2 / (math.sin(0.4) * math.cos(0.4))
    assert float(found) == pytest.approx(0.5 / (1 + math.exp(log_snr - 1)) * rate * math.cos(0.4) ** 2)


def test_imm_holds_each_group_at_its_own_angles():
    """A map that is exact has a residual only through its own pairs; the angles of a group are one."""
    seen = []

    def jump(y, a, b):
        seen.append((a, b))
        return slope(a, b, 0.5)[:, None] * y

    phi = lambda y, a, b: jump(y, a, b)  # noqa: E731
    phi.parametrisation = PARAMETRISATIONS["trig"]
    options = {"group": 4, "pairs": "all", "halvings": 8, "bias": 5.0, "power": 1.0, "law": "uniform", "ends": 0.5}
    (term,) = moments.moment_matching(Context(phi, phi, GaussianStates(0.5), options), 64)
    (a, b), (r, same) = seen
    assert term.residual.shape == (64, 1)
    assert torch.equal(b, same)
    assert bool((a >= r).all() and (r >= b).all())
    for angle in (a, r, b):
        assert torch.equal(angle.reshape(16, 4), angle.reshape(16, 4)[:, :1].expand(16, 4))
    # On a trajectory both jumps end at one point, so that the own pairs and the others cancel.
    assert float(term.residual.abs().max()) < 1e-12


class Beside(GaussianStates):
    """States of a Gaussian in two dimensions."""

    def noised(self, a):
        first, second = super().noised(a), super().noised(a)
        return SimpleNamespace(y=torch.cat([first.y, second.y], 1), at=lambda r: torch.cat([first.at(r), second.at(r)], 1))


@pytest.mark.parametrize("states", [GaussianStates, Beside])
def test_the_gradient_of_imm_is_that_of_the_mean_of_its_weighted_discrepancies(states):
    """By the factor of a map that only scales, held to another map's ends from the angles r."""
    factor, seen = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), []

    def scaled(factor):
        def phi(y, a, b):
            seen.append((y, a, b))
            return factor * slope(a, b, 0.5)[:, None] * y

        phi.parametrisation = PARAMETRISATIONS["trig"]
        return phi

    options = {"group": 4, "pairs": "all", "halvings": 3, "bias": 5.0, "power": 1.0, "law": "uniform", "ends": 0.5}
    terms = moments.moment_matching(Context(scaled(factor), scaled(1.1), states(0.5), options), 64)
    (found,) = torch.autograd.grad(loss_of(terms, "squared", 1.0, weigher()), factor)
    (y, a, b), (there, r, _) = seen
    gain = PARAMETRISATIONS["trig"].coefficients(a, b)[1].abs()
    made = (factor * slope(a, b, 0.5)[:, None] * y).reshape(16, 4, -1)
    target = (1.1 * slope(r, b, 0.5)[:, None] * there).reshape(16, 4, -1)
    each = moments.squared_discrepancy(made, target, (made.shape[2] * gain[::4]).clamp(min=1e-4))
    (known,) = torch.autograd.grad((moments.weight(a[::4], 5.0, 1.0) * each).mean(), factor)
    assert float(found) == pytest.approx(float(known), rel=1e-9)
    assert abs(float(known)) > 1e-6
