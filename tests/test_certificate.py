"""The certificate's bounds lie above the true distances, and say with what confidence and what they rest on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffode
from diffode import Field, paths
from diffode.errors import ArgumentError, FieldError
from diffode.verify.theory import affine, bounds
from diffode.verify.theory.score_error import score_error


@settings(max_examples=4)
@given(
    st.sampled_from(["edm", "edm:sigma_max=5", "vp", "rectified_flow", "vp_cosine"]),
    st.floats(0.2, 1.5),
    st.floats(-0.3, 0.3),
    st.floats(-1.0, 1.0),
    st.integers(1, 3),
)
def test_bounds_lie_above_the_true_distance_for_affine_errors_on_gaussians(path, factor, shift, mean, dim):
    """The learned score is the exact one times a factor, and shifted, in axes of unequal variances."""
    variances = [[0.7, 0.1, 2.0][:dim]]
    exact = diffode.exact_field(diffode.GaussianMixture([1.0], [[mean] * dim], variances), path)
    learned = Field.from_score(lambda x, t: factor * exact.score(x, t) + shift, exact.path)
    found = bounds.certificate(exact, learned)
    assert (found.confidence, found.lipschitz_kind, found.proved) == (1.0, "exact", True)
    for bound, true in ((found.flow, found.true.flow), (found.sde, found.true.sde)):
        assert bound.integral >= true * (1 - 1e-6) - 1e-9
        assert bound.by_loss >= bound.integral * (1 - 1e-6)


def test_the_error_of_a_score_is_that_of_its_integral():
    """Against the trapezoid rule over the density on a line; draws give an upper limit, too small in one case of a hundred."""
    exact = diffode.exact_field("bimodal1d", "vp")
    t = exact.path.time_from_rho(0.4)
    learned = Field.from_score(lambda x, t: exact.score(x, t) + torch.sin(3 * x), exact.path)
    line = torch.linspace(-8, 8, 40_001, dtype=torch.float64)[:, None]
    density = exact.log_prob(line, t).exp()
    true = math.sqrt(float(torch.trapezoid(density * torch.sin(3 * line)[:, 0] ** 2, line[:, 0])))
    found = score_error(exact, learned, t, exact.marginal(4, t, generator=0), 0.99)
    assert found.method == "quadrature"
    assert true * (1 - 1e-12) <= found.value < 1.001 * true
    many = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0] * 4], [[1.0] * 4]), "vp")
    bent = Field.from_score(lambda x, t: many.score(x, t) + torch.sin(3 * x), many.path)
    # Of x with variance v each coordinate has E sin(3 x)^2 = (1 - e^(-18 v))/2, and v = 1 on this path.
    expected = math.sqrt(2 * (1 - math.exp(-18)))
    limits = [score_error(many, bent, t, many.marginal(400, t, generator=k), 0.99) for k in range(60)]
    assert {limit.method for limit in limits} == {"draws"}
    assert sum(limit.value < expected for limit in limits) <= 4
    assert sum(limit.value for limit in limits) / 60 < 1.1 * expected


@pytest.mark.parametrize("name", ["bimodal1d", "ring8", "line16"])
def test_the_lipschitz_constant_of_a_mixture_is_bounded_by_its_parameters(name):
    shared = diffode.targets.get(name)
    if not shared.components.shared:
        shared = diffode.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [0.2, 0.2])
    field = diffode.exact_field(shared, "vp")
    constant = bounds.mixture_lipschitz(field)
    for rho in (0.05, 0.5, 5.0):
        t = field.path.time_from_rho(rho)
        x = field.marginal(60, t, generator=0)
        middle = field.path.alpha(t) * (shared.means[:1] + shared.means[1:2]) / 2
        assert bounds.one_sided_lipschitz(field, torch.cat([x, middle]), t) <= constant(t) * (1 + 1e-12) + 1e-9
    if name == "bimodal1d":
        # Of two modes in one dimension the constant is reached between them, where both are as likely: a bound that is met.
        equal = diffode.exact_field(diffode.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.2, 0.2]), "vp")
        t = equal.path.time_from_rho(0.3)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        assert bounds.mixture_lipschitz(equal)(t) == pytest.approx(bounds.one_sided_lipschitz(equal, zero, t), rel=1e-12)


def test_a_certificate_says_what_it_rests_on():
    exact = diffode.exact_field("bimodal1d", paths.get("edm:sigma_max=2"))
    bent = Field.from_score(lambda x, t: exact.score(x, t) + 0.1 * torch.sin(x), exact.path)
    found = bounds.certificate(exact, bent, nodes=9)
    assert (found.confidence, found.lipschitz_kind, found.proved) == (1.0, "estimate", False)
    given_one = bounds.certificate(exact, bent, nodes=9, lipschitz=lambda t: 1.0)
    assert (given_one.lipschitz_kind, given_one.exact_error, given_one.proved) == ("given", False, False)
    # A bend between the points of the quadrature and of the draws would not be seen; an affine error is known everywhere.
    shifted = Field.from_score(lambda x, t: exact.score(x, t) + 0.1, exact.path)
    assert bounds.certificate(exact, shifted, nodes=9, lipschitz=lambda t: 1.0).proved
    for broken in (math.inf, math.nan):
        with pytest.raises(ArgumentError, match="lipschitz must return a finite number"):
            bounds.certificate(exact, shifted, nodes=9, lipschitz=lambda t, value=broken: value)
    many = diffode.exact_field("line16", exact.path)
    wavy = Field.from_score(lambda x, t: many.score(x, t) + 0.1 * torch.sin(x), exact.path)
    assert bounds.certificate(many, wavy, nodes=9, lipschitz=lambda t: 0.0, confidence=0.9).confidence == 0.9
    assert bounds.certificate(many, many, nodes=9).lipschitz_kind == "bound"
    with pytest.raises(ArgumentError, match="confidence must lie"):
        bounds.certificate(exact, bent, confidence=1.0)


@pytest.mark.parametrize("path", ["rectified_flow", "trigonometric", "vp_cosine"])
def test_the_certificate_of_a_shifted_gaussian_is_an_equality_on_every_path(path):
    """The flow's bound is met by a score that is off by a constant shift of the mean, whatever the schedule."""
    right, shifted = (diffode.exact_field(diffode.GaussianMixture([1.0], [[m]], [[0.25]]), path) for m in (0.0, 0.3))
    on = right.path
    found = bounds.certificate(
        right, shifted, lipschitz=lambda t: -1 / (0.25 * on.alpha(t) ** 2 + on.sigma(t) ** 2), coupled=16
    )
    # Starts are the same, and the shift moves all ends alike.
    assert found.flow.integral == pytest.approx(found.coupled, rel=1e-4)


LAM, END = 0.7, 5.0
TOP = LAM + END**2
#: True distances, by flow and by SDE, of a score that is 1.2 times the exact one.
SCALED = (0.253127, 0.128642)


@pytest.fixture(scope="module")
def gaussian():
    path = paths.get(f"edm:sigma_min=1e-5,sigma_max={END}")
    return diffode.exact_field(diffode.GaussianMixture([1.0], [[0.3]], [[LAM]]), path)


@pytest.mark.parametrize("delta", [0.1, -0.4])
def test_w2_bounds_of_a_shifted_score_are_equalities(gaussian, delta):
    """The table of the closed forms: true W2 = bound for the flow, and for the SDE."""
    learned = Field.from_score(lambda x, t: gaussian.score(x, t) + delta, gaussian.path)
    found = bounds.certificate(gaussian, learned, points=8, lipschitz_points=2, coupled=64)
    flow = abs(delta) * math.sqrt(LAM) * (math.sqrt(TOP) - math.sqrt(LAM))
    sde = abs(delta) * LAM * math.log(TOP / LAM)
    assert found.flow.integral == pytest.approx(flow, rel=1e-5)
    assert found.coupled == pytest.approx(flow, rel=1e-5)
    assert found.true == pytest.approx((flow, sde), rel=1e-6)
    assert found.sde.integral == pytest.approx(sde, rel=1e-5)
    assert found.flow.by_loss > found.flow.integral
    assert found.sde.by_loss > found.sde.integral
    assert found.loss == pytest.approx(delta**2 * END**2 / 2, rel=5e-5)


def test_w2_bounds_of_a_scaled_score_are_the_tables(gaussian):
    """eta = 0.2: flow .253127 = .253127; SDE .128642 <= .219855 <= .267580."""
    learned = Field.from_score(lambda x, t: 1.2 * gaussian.score(x, t), gaussian.path)
    found = bounds.certificate(gaussian, learned, points=8, lipschitz_points=2)
    assert found.flow.integral == pytest.approx(0.253127, abs=2e-6)
    assert found.sde.integral == pytest.approx(0.219855, abs=2e-6)
    assert found.sde.by_loss == pytest.approx(0.267580, rel=2e-3)
    assert found.true == pytest.approx(SCALED, abs=6e-7)
    assert found.flow.integral >= found.true.flow
    shifted = bounds.certificate(gaussian, learned, points=8, lipschitz=lambda t: -1.2 / (LAM + t**2), prior_distance=0.5)
    growth = (LAM / TOP) ** 0.6
    assert shifted.flow.prior == pytest.approx(0.5 * growth, rel=1e-5)
    assert shifted.flow.integral - found.flow.integral == pytest.approx(0.5 * growth, rel=1e-4)


# On "edm" there is no drift; what else could be wrong there is seen in one dimension.
@pytest.mark.parametrize("path", ["vp", pytest.param("edm", marks=pytest.mark.slow)])
def test_the_true_distance_in_many_dimensions_is_that_of_draws(path):
    """An affine score that rotates and shifts, on a Gaussian of three unequal axes; the flow by a run, the SDE by draws."""
    exact = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.3, -0.2, 1.0]], [[0.2, 1.0, 3.0]]), path)
    turn = torch.tensor([[0.0, 0.1, 0.0], [-0.1, 0.0, 0.05], [0.02, 0.0, 0.1]], dtype=torch.float64)
    learned = Field.from_score(lambda x, t: exact.score(x, t) @ (torch.eye(3).double() + turn).T + 0.05, exact.path)
    found = bounds.certificate(exact, learned, points=64, lipschitz_points=2, nodes=65)
    assert found.true.flow < found.flow.integral
    assert found.true.sde < found.sde.integral
    start = exact.marginal(10_000, exact.path.t_max, generator=0)
    truth = exact.path.alpha(exact.path.t_min) * exact.target.mean, exact.target.covariance
    for distance, solver, steps in zip(found.true, ("rk4:chart=data", "ddim:eta=1"), (60, 600), strict=True):
        draws = {} if solver == "rk4:chart=data" else {"generator": 2}
        end = diffode.solve(learned, start, solver=solver, grid="log_snr", steps=steps, **draws).x
        assert diffode.metrics.gaussian_w2(end.mean(0), torch.cov(end.T), *truth) == pytest.approx(distance, abs=0.06)


def test_a_true_distance_is_not_made_up(gaussian):
    two = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 1.0]]), gaussian.path)
    three = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0] * 3], [[1.0] * 3]), gaussian.path)
    middle = [gaussian.path.time_from_rho(r) for r in (0.11, 0.1)]
    bent = {
        "everywhere": (gaussian, lambda x, t: gaussian.score(x, t) + 1e-3 * torch.sin(x)),
        "far out": (two, lambda x, t: two.score(x, t) + (two.denoised(x, t).clamp(-2.5, 2.5) - two.denoised(x, t)) / t**2),
        "off the axes": (two, lambda x, t: two.score(x, t) + 0.1 * (x[:, :1] * x[:, 1:] * (x[:, :1] - x[:, 1:]))),
        "in products": (three, lambda x, t: three.score(x, t) + 0.3 * (x[:, :1] * x[:, 1:2] - x[:, 1:2] * x[:, 2:])),
        "for a while": (
            gaussian, lambda x, t: gaussian.score(x, t) + (0.1 * torch.sin(x) if middle[1] < t < middle[0] else 0 * x),
        ),
        "not, but growing without end": (gaussian, lambda x, t: 1e3 * x),
    }  # fmt: skip
    for where, (exact, score) in bent.items():
        assert affine.gaussian_distances(exact, Field.from_score(score, exact.path), exact.path.t_min) is None, where
    ring = diffode.exact_field("ring8", gaussian.path)
    assert bounds.certificate(ring, ring, points=8, lipschitz_points=2).true is None


def test_true_distances_of_a_score_in_single_precision_are_those_of_double(gaussian):
    """Rounding must not keep the integration from its end."""
    single = Field.from_score(lambda x, t: (1.2 * gaussian.score(x, t)).float().double(), gaussian.path)
    assert affine.gaussian_distances(gaussian, single, gaussian.path.t_min) == pytest.approx(SCALED, rel=1e-5)
    # Times rounded to a thousandth, as models trained at discrete steps have them.
    stepped = Field.from_score(lambda x, t: 1.2 * gaussian.score(x, max(round(t * 1000) / 1000, 1e-5)), gaussian.path)
    exact = Field.from_score(lambda x, t: 1.2 * gaussian.score(x, t), gaussian.path)
    found, smooth = (affine.gaussian_distances(gaussian, one, 0.01) for one in (stepped, exact))
    assert found == pytest.approx(smooth, rel=3e-4)
    assert found != smooth


def test_the_mixture_bound_is_valid_and_loose():
    """Common covariance, exact score up to a shift: the bound holds, by an exponential factor."""
    exact = diffode.exact_field("bimodal1d", paths.get("edm:sigma_max=20"))
    learned = Field.from_score(lambda x, t: exact.score(x, t) + 0.02, exact.path)
    found = bounds.certificate(exact, learned, coupled=256, points=32)
    assert 0 < found.coupled < found.flow.integral
    assert float(found.lipschitz.max()) > 0 > float(found.lipschitz[-1])


def test_wrong_arguments_of_a_certificate_are_named(gaussian):
    other = Field.from_score(lambda x, t: -x, paths.get("edm"))
    with pytest.raises(ArgumentError, match="same path"):
        bounds.certificate(gaussian, other)
    same = Field.from_score(lambda x, t: -torch.sin(x).detach(), gaussian.path)
    with pytest.raises(FieldError, match="give lipschitz="):
        bounds.certificate(gaussian, same)
    for wrong in ({"nodes": 3}, {"points": 1}, {"lipschitz_points": 0}, {"prior_distance": -1.0}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
            bounds.certificate(gaussian, same, **wrong)
