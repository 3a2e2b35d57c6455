"""The parts of a training of flow maps: laws of times, sources of states, losses, optimisers."""

import math

import pytest
import torch

from diffode.learned.maps import laws
from diffode.learned.maps.losses import NORMS, loss_of, weigher
from diffode.learned.maps.optimisers import OPTIMISERS, Optimisers, orthogonal
from diffode.learned.maps.residuals import Term
from diffode.learned.maps.sources import Sources
from diffode.learned.request import Request


@pytest.fixture(scope="module")
def sources():
    return Sources(Request.of("test", "bimodal1d"), 64)


@pytest.mark.parametrize("law", laws.LAWS)
def test_laws_lie_between_the_ends(sources, law):
    first, last = sources.angles
    a = laws.one(sources, 5000, law).double()
    assert float(a.max()) <= first
    assert float(a.min()) >= last - 1e-9
    if law == "uniform":
        assert float(a.mean()) == pytest.approx((first + last) / 2, abs=0.03)
    else:
        # MeanFlow's logit-normal times; lognormal levels of iCT and sCM, in units of data of scale 1/2 there. The middle of a
        # normal law is hardly touched by cutting it at the ends.
        mean, deviation = {
            "logit_normal": (-0.4, 1.0),
            "lognormal": (-0.4069, 2.0),
            "scm": (-0.3069, 1.4),
            "edm": (-0.5069, 1.2),
        }[law]
        assert float(a.tan().log().median()) == pytest.approx(mean, abs=0.1 * deviation)
        inside = ((a.tan().log() - mean).abs() < deviation).double().mean()
        assert float(inside) == pytest.approx(0.683, abs=0.04)


def test_two_angles_fall_and_shares_are_kept(sources):
    first, last = sources.angles
    a, b = laws.two(sources, 20_000, "uniform", same=0.3, ends=0.25)
    assert bool((a >= b).all())
    assert float((a == b).double().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((a == torch.tensor(first, dtype=a.dtype)).double().mean()) == pytest.approx(0.25, abs=0.02)
    apart = a != b
    assert float((b[apart] == torch.tensor(last, dtype=b.dtype)).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_dyadic_steps_are_halves_of_the_path(sources):
    first, last = sources.angles
    a, r, b = (angle.double() for angle in laws.dyadic(sources, 3000))
    steps = (first - last) / (a - b)
    assert torch.allclose(steps, 2 ** steps.log2().round(), rtol=1e-3)
    assert set(steps.log2().round().int().tolist()) == set(range(7))
    assert torch.allclose(r, (a + b) / 2, atol=1e-5)
    places = (first - a) / (a - b)
    assert torch.allclose(places, places.round(), atol=2e-3)


def test_noised_data_have_the_law_of_the_field(sources):
    a = torch.full((40_000,), 0.7)
    noised = sources.noised(a)
    assert torch.allclose(noised.at(a), noised.y)
    assert float(noised.y.double().var()) == pytest.approx(1.0, abs=0.03)
    # The mean of the conditional velocity given y is the field's: their difference is uncorrelated with any function of y.
    difference = (noised.velocity(a) - sources.velocity(noised.y, a)).double()
    for function in (torch.ones_like, torch.sin, torch.tanh, lambda y: y):
        probe = function(noised.y.double())
        assert abs(float((difference * probe).mean())) < 5 * float((difference * probe).std()) / 200


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_steps_of_the_teacher_have_their_order(kind, order):
    sources = Sources(Request.of("test", "bimodal1d"), 16, torch.float64)
    known = sources.trajectories
    errors = []
    for count in (32, 64):
        angles, y = torch.linspace(1.2, 0.6, count + 1, dtype=torch.float64), None
        begin = int((known.angles - 1.2).abs().argmin())
        y = known.states[begin].clone()
        levels = torch.linspace(float(known.angles[begin]), float(known.angles[begin + 6]), count + 1, dtype=torch.float64)
        for k in range(count):
            y = sources.step(y, levels[k].expand(16), levels[k + 1].expand(16), kind)
        errors.append(float((y - known.states[begin + 6]).abs().mean()))
        assert len(angles) == count + 1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("norm", NORMS)
def test_losses_are_small_for_small_residuals_and_have_gradients(norm):
    weights = weigher()
    span = torch.full((8,), 1.0), torch.full((8,), 0.5)
    values = []
    for size in (1.0, 0.1):
        residual = (size * torch.ones(8, 3)).requires_grad_(True)
        loss = loss_of([Term(residual, 1.0, span)], norm, 0.5, weights)
        loss.backward()
        assert torch.isfinite(residual.grad).all()
        values.append(float(loss.detach()))
    assert values[1] < values[0]


def test_losses_by_hand():
    residual = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert float(loss_of([Term(residual)], "squared", 1.0, weigher())) == pytest.approx(25 / 2 / 2)
    assert float(loss_of([Term(residual, torch.tensor([2.0, 1.0]))], "squared", 1.0, weigher())) == pytest.approx(12.5)
    assert float(loss_of([Term(residual)], "distance", 1.0, weigher())) == pytest.approx(12.5**0.5 / 2, rel=1e-5)
    assert float(loss_of([Term(residual)], "adaptive", 1.0, weigher())) == pytest.approx(12.5 / 12.51 / 2, rel=1e-6)
    # Two terms are weighed by their rows.
    both = loss_of([Term(residual), Term(torch.ones(6, 2))], "squared", 1.0, weigher())
    assert float(both) == pytest.approx((12.5 + 6) / 8)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_optimisers_go_down_a_badly_scaled_bowl(kind):
    torch.manual_seed(0)
    scales = torch.logspace(0, 3, 6)[:, None] * torch.logspace(0, 1, 4)
    matrix, vector = torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(5))
    optimisers = Optimisers([matrix, vector], kind, 2e-2)

    def bowl():
        return (scales * matrix.square()).mean() + vector.square().mean()

    before = float(bowl().detach())
    for step in range(500):
        optimisers.step(bowl(), 1 - step / 500, 1e9)
    assert float(bowl().detach()) < 1e-2 * before


def test_orthogonal_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((8, 8), (4, 9), (9, 4)):
        matrix = torch.randn(*shape)
        found = orthogonal(matrix)
        assert torch.linalg.svdvals(found).max() < 1.3
        assert torch.linalg.svdvals(found).min() > 0.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert float((found * (u @ v)).sum() / found.norm() / (u @ v).norm()) > 0.97
