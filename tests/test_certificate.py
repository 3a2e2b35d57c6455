"""The certificate's bounds lie above the true distances, and say with what confidence and what they rest on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffode
from diffode import Field, paths
from diffode.errors import ArgumentError
from diffode.verify.theory import bounds
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


def test_bounds_of_a_scaled_score_are_those_of_the_closed_form():
    """N(0, .7), VE to T = 5, score 1.2 s: .253127 = .253127 for the flow, .128642 <= .219855 for the SDE."""
    exact = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [[0.7]]), paths.get("edm:sigma_min=1e-5,sigma_max=5"))
    learned = Field.from_score(lambda x, t: 1.2 * exact.score(x, t), exact.path)
    found = bounds.certificate(exact, learned)
    assert found.flow.integral == pytest.approx(0.253127, abs=2e-6)
    assert found.sde.integral == pytest.approx(0.219855, abs=2e-6)
    assert found.flow.integral >= found.true.flow


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
