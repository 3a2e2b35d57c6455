"""Everything scales: data in another unit give the same answers in that unit, from 1e-9 to 1e9."""

import math

import numpy as np
import pytest
import torch
from test_mixture import KINDS, random_mixture

import diffode
from diffode import GaussianMixture, LowRank
from diffode.flows import reference
from diffode.metrics import Outcome, error_split, measure

UNITS = (1e-9, 3e-4, 1e9)


def mixture(kind, unit, dim=5):
    weights, means, covariances = random_mixture(kind, dim=dim)
    if isinstance(covariances, LowRank):
        return GaussianMixture(weights, means * unit, LowRank(covariances.factors * unit, covariances.noise * unit**2))
    return GaussianMixture(weights, means * unit, covariances * unit**2)


def close(found, expected, tolerance=1e-9):
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", KINDS)
def test_fields_scale_with_the_data(kind, unit):
    one, other = (diffode.exact_field(mixture(kind, u), "edm") for u in (1.0, unit))
    assert other.scale == pytest.approx(unit * one.scale, rel=1e-12)
    assert other.target.components.shared == one.target.components.shared
    x = one.marginal(6, 0.3, generator=0)
    close(other.denoised(unit * x, unit * 0.3), unit * one.denoised(x, 0.3))
    close(other.noise(unit * x, unit * 0.3), one.noise(x, 0.3))
    close(other.score(unit * x, unit * 0.3), one.score(x, 0.3) / unit)
    close(other.divergence(unit * x, unit * 0.3), one.divergence(x, 0.3) / unit)
    close(other.log_prob(unit * x, unit * 0.3) + 5 * math.log(unit), one.log_prob(x, 0.3))
    single = x.float()
    # Both are within 2e-4 of the exact answer.
    close(other.noise((unit * x).float(), unit * 0.3), one.noise(single, 0.3), 4e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_references_scale_with_the_data(unit):
    """By closed form, by a quantile map, by integration: the method is the same in every unit."""
    tilted = np.array([[1.0, 0.4], [0.4, 0.5]])
    direction = np.linalg.eigh(tilted)[1][:, 1]
    targets = (
        lambda u: GaussianMixture([1.0], [[3.0 * u, -u]], tilted[None] * u**2),
        lambda u: GaussianMixture([0.3, 0.7], [2 * u * direction, -u * direction], np.stack([tilted] * 2) * u**2),
        lambda u: GaussianMixture([0.5, 0.5], [[-u, 0.0], [u, 0.0]], np.array([[0.1, 0.1], [0.9, 0.4]]) * u**2),
    )
    for make, method in zip(targets, ("closed-form", "quantile", "dop853"), strict=True):
        one, other = (diffode.exact_field(make(u), "edm") for u in (1.0, unit))
        x = one.marginal(4, 20.0, generator=0)
        first, second = reference(one, x, 20.0, 0.0, 1e-8), reference(other, unit * x, unit * 20.0, 0.0, 1e-8)
        assert first.method == second.method == method
        close(second.x, unit * first.x, 1e-7)


def test_components_of_small_units_are_not_taken_for_equal():
    """Variances (1e-15, 1e-15) and (9e-15, 4e-15): the flow is no quantile map; in units of 1e-7 it is integrated as it is."""
    field = diffode.exact_field(GaussianMixture([0.5, 0.5], [[-1e-7, 0], [1e-7, 0]], [[1e-15, 1e-15], [9e-15, 4e-15]]), "edm")
    large = diffode.exact_field(GaussianMixture([0.5, 0.5], [[-1.0, 0], [1.0, 0]], [[0.1, 0.1], [0.9, 0.4]]), "edm")
    assert field.target.line is None
    x = large.marginal(5, 10.0, generator=0)
    close(reference(field, 1e-7 * x, 1e-6, 1e-9).x, 1e-7 * reference(large, x, 10.0, 1e-2).x, 1e-8)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_metrics_scale_with_the_data(unit):
    found = []
    for u in (1.0, unit):
        field = diffode.exact_field(mixture("diagonal", u, dim=2), "edm")
        x = u * diffode.exact_field(mixture("diagonal", 1.0, dim=2), "edm").marginal(10, 50.0, generator=0)
        run = Outcome(field, x, diffode.solve(field, x, solver="ddim", grid=[50.0 * u, 5.0 * u, u, 0.1 * u]), tolerance=1e-8)
        values = [measure(name, run).value / u for name in ("endpoint", "moments", "sliced_w2")]
        values += [measure("energy_distance", run).value / u**0.5, measure("mmd", run).value]
        split = error_split(field, run.solution.tableau, x[:2] / (50 * u), 1e-7)
        found.append(torch.tensor([*values, *(part / u for part in split)], dtype=torch.float64))
    assert found[1].tolist() == pytest.approx(found[0].tolist(), rel=1e-5)


@pytest.mark.parametrize("place", [1e5, -1e6])
@pytest.mark.parametrize("kind", ["common", "isotropic", "full"])
def test_float32_keeps_its_digits_wherever_the_data_lie(kind, place):
    """The promised 2e-4, at points that are numbers of float32: modes around 1e5 had 3e-3."""
    weights, means, covariances = random_mixture(kind, dim=6)
    field = diffode.exact_field(GaussianMixture(weights, means * 4 + place + 0.3, covariances), "edm")
    x = field.marginal(30, 2.0, generator=0, dtype=torch.float32)
    for view in ("noise", "score"):
        single, double = getattr(field, view)(x, 2.0).double(), getattr(field, view)(x.double(), 2.0)
        assert ((single - double).norm(dim=1) / double.norm(dim=1)).max() < 2e-4


def test_near_components_among_distant_ones_keep_their_digits():
    """One variance of 1e-14, pairs 1e-6 apart in clusters far from each other, D = 8, against mpmath: it was 3.6e-5."""
    from test_low_rank import exact_views, relative

    draw = np.random.default_rng(2)
    centres = draw.normal(size=(3, 8)) * 0.02
    means = np.concatenate([centres, centres + 1e-6 * draw.normal(size=(3, 8)) / 8**0.5])
    x, nothing = means[0] + 1e-7 * draw.normal(size=8), np.zeros((6, 8, 1))
    _, score, _, _ = exact_views(np.full(6, 1 / 6), means, nothing, np.full(6, 1e-14), x, 0.0)
    target = GaussianMixture(np.full(6, 1 / 6), means, np.full(6, 1e-14))
    found = target.noised_view(torch.from_numpy(x)[None], 1.0, 0.0, 0.0, 1.0)[0].numpy()
    # Rounding of the means, 2e-18, over the width.
    assert relative(found, score) < 1e-9


def test_variances_given_one_by_one_are_positive_each_for_itself():
    target = GaussianMixture([1.0], [[0.0, 0.0]], [[1e-20, 1.0]])
    found = target.log_prob(torch.tensor([[1e-10, 1.0]], dtype=torch.float64))
    assert float(found) == pytest.approx(-1 - math.log(2 * math.pi) + 10 * math.log(10), rel=1e-13)
    full = GaussianMixture([1.0], [[0.0, 0.0]], LowRank(np.array([[[0.0], [1.0]]]), [1e-20]))
    assert float(full.log_prob(torch.tensor([[1e-10, 1.0]], dtype=torch.float64))) == pytest.approx(float(found), rel=1e-13)
    for wrong in ([[0.0, 1.0]], [[1e-310, 1.0]], [[1e301, 1.0]]):
        with pytest.raises(diffode.errors.ArgumentError, match="covariances"):
            GaussianMixture([1.0], [[0.0, 0.0]], wrong)
    with pytest.raises(diffode.errors.ArgumentError, match="means must stay below"):
        GaussianMixture([1.0], [[1e200, 0.0]], [1.0])


def test_a_single_point_mass_has_scale_1_and_a_field():
    """D = m whatever x is, and the flow from sigma z ends at m."""
    field = diffode.exact_field(GaussianMixture.from_points([[1.0, -2.0]]), "edm")
    assert field.scale == 1
    x = field.prior(3, generator=0)
    point = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    close(field.denoised(x, 80.0), point.expand(3, 2), 1e-14)
    end = diffode.solve(field, x, solver="dpmpp:order=2", nfe=6).x
    close((end - point) / 0.002, (x - point) / 80, 1e-9)
    close(reference(field, x, 80.0, 0.002).x - point, (x - point) * 0.002 / 80, 1e-9)


def test_equal_means_with_one_covariance_have_no_line_and_a_flow():
    two = GaussianMixture([0.5, 0.5], [[1.0, 2.0]] * 2, [0.3, 0.3])
    one = GaussianMixture([1.0], [[1.0, 2.0]], [0.3])
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert two.line is None
    ends = [reference(diffode.exact_field(t, "edm"), x, 5.0, 0.01, 1e-9).x for t in (two, one)]
    close(ends[0], ends[1], 1e-8)
