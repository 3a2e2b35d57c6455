"""Skip-Tuning: scaled skips of a network and of exact denoisers, and where they help."""

import itertools
import math

import pytest
import torch
from scipy.optimize import brentq

import diffode
from diffode import fields, solvers
from diffode.errors import ArgumentError


def levels(count, first=80.0, last=0.002):
    """Karras's levels and then 0."""
    ends = first ** (1 / 7), last ** (1 / 7)
    return [*((ends[0] + k / (count - 1) * (ends[1] - ends[0])) ** 7 for k in range(count)), 0.0]


def test_factors_lie_on_a_line():
    found = fields.skip_factors(5, 0.6, 0.9)
    assert (found[0], found[-1]) == (0.6, 0.9)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert gaps == pytest.approx([0.075] * 4)
    assert fields.skip_factors(1, 0.7) == [0.7]


@pytest.mark.parametrize("make", [lambda: fields.exact_field("ring8", "edm"), lambda: fields.trained("digits-gmm10")])
def test_a_factor_of_one_is_the_field_itself(make):
    field = make()
    assert fields.skip_tuned(field, 1) is field


def test_the_network_s_bridge_alone_is_scaled():
    field = fields.trained("digits-gmm10")
    tuned = fields.skip_tuned(field, 0.8)
    x = field.truth.prior(3, generator=0)
    before = field.denoised(x, 2.0)
    changed = tuned.denoised(x, 2.0)
    assert float((changed - before).abs().max()) > 1e-3
    # The shipped field is shared, and stays as it is.
    assert torch.equal(field.denoised(x, 2.0), before)
    # A factor that goes to 1 goes to the network: the answer is continuous in it.
    near = fields.skip_tuned(field, 1 + 1e-9).denoised(x, 2.0)
    assert torch.allclose(near, before, atol=1e-6)


@pytest.mark.parametrize(("kind", "path"), [
    ("isotropic", "edm"), ("diagonal", "edm"), ("full", "rectified_flow"),
    *(pytest.param(kind, path, marks=pytest.mark.slow)
      for kind, path in (("full", "edm"), ("isotropic", "rectified_flow"), ("diagonal", "rectified_flow"))),
])  # fmt: skip
def test_the_split_denoiser(kind, path):
    """sum w_i [t^2/v_i mu_i + rho s_i^2/v_i x], written out component by component."""
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[-2.0, 1.0, 0.0], [1.0, 0.5, -1.0]], dtype=torch.float64)
    root = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariances = {
        "isotropic": torch.tensor([0.4, 0.9], dtype=torch.float64),
        "diagonal": torch.tensor([[0.4, 0.1, 1.0], [0.9, 2.0, 0.3]], dtype=torch.float64),
        "full": root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64),
    }[kind]
    whole = {
        "isotropic": covariances.reshape(-1, 1, 1) * torch.eye(3),
        "diagonal": torch.diag_embed(covariances),
        "full": covariances,
    }[kind]
    field = diffode.exact_field(diffode.GaussianMixture(weights, means, covariances), path)
    x, t, rho = torch.tensor([[0.3, -0.2, 1.0], [2.0, 0.0, 0.5]], dtype=torch.float64), 0.4, 1.3
    level = field.path.sigma(t) / field.path.alpha(t)
    clean, eye = x / field.path.alpha(t), torch.eye(3, dtype=torch.float64)
    logs, parts = [], []
    for weight, mean, own in zip(weights, means, whole, strict=True):
        total = own + level**2 * eye
        logs.append(weight.log() + torch.distributions.MultivariateNormal(mean, total).log_prob(clean))
        inverse = torch.linalg.inv(total)
        parts.append(mean @ (level**2 * inverse).T + rho * clean @ (own @ inverse).T)
    known = (torch.stack(logs).softmax(0)[..., None] * torch.stack(parts)).sum(0)
    assert torch.allclose(fields.skip_tuned(field, rho).denoised(x, t), known, atol=1e-12)
    per_row = fields.skip_tuned(field, rho).denoised(x, torch.full((2,), t, dtype=torch.float64))
    assert torch.allclose(per_row, known, atol=1e-12)


@pytest.mark.parametrize(("count", "best"), [(3, 1.697), (5, 1.307), (9, 1.089), (17, 1.033), (33, 1.014)])
def test_the_best_factor_of_euler_on_a_gaussian(count, best):
    """That with which N steps give the exact variance, from the exact law at 80; it goes to 1 as steps do."""
    field = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0]], [1.0]), "edm")
    x, grid = torch.ones(1, 1, dtype=torch.float64), torch.tensor(levels(count), dtype=torch.float64)

    def gap(rho):
        end = solvers.solve(fields.skip_tuned(field, rho), x, solver="euler:chart=noise", grid=grid).x
        return float(end) * math.sqrt(80.0**2 + 1) - 1

    assert brentq(gap, 0.9, 2.0) == pytest.approx(best, abs=6e-4)


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match="rho must be a positive number"):
        fields.skip_tuned(fields.exact_field("ring8", "edm"), 0.0)
    with pytest.raises(ArgumentError, match="count"):
        fields.skip_factors(0, 1.0)
    for field in (fields.trained("ring8"), fields.exact_field(diffode.GaussianMixture.from_points([[0.0], [1.0]]), "edm")):
        with pytest.raises(ArgumentError, match="UNet"):
            fields.skip_tuned(field, 0.9)
