"""Values at the very ends of what is allowed, and just beyond."""

import math

import pytest
import torch

import diffode
from diffode import Field, GaussianMixture, paths
from diffode.errors import ArgumentError
from diffode.fields.own import own_field
from diffode.paths.given import Tabulated


@pytest.mark.parametrize("spec", [
    "vp_cosine:s=0", "vp_cosine:s=1", "vp_cosine:t_max=1.0001", "trigonometric:t_max=1.0001",
    "ddpm:beta_end=1", "ddpm:beta_end=1.5", "ddpm:beta_start=0", "ddpm:beta_start=0.03,beta_end=0.02",
    "ddpm:levels=1",
])  # fmt: skip
def test_options_of_paths_end_where_they_say(spec):
    with pytest.raises(ArgumentError, match=r"0 <|<= 1|need 0|levels must"):
        paths.get(spec)


def test_options_just_inside_are_taken():
    for spec in ("vp_cosine:s=0.999", "vp_cosine:s=1e-6", "ddpm:beta_end=0.5", "ddpm:levels=2"):
        assert paths.get(spec).t_max > 0


@pytest.mark.parametrize("last", [0.0, 2.0**-24])
def test_a_last_level_without_signal_is_an_infinite_one(last):
    """Zero terminal SNR, also where a library writes the smallest number of half precision instead of 0."""
    table = [0.9, 0.5, 0.1, last]
    path = Tabulated(table)
    assert path.t_max < len(table)
    shortened = Tabulated(table[:-1])
    assert path.rho(3.0) == pytest.approx(shortened.rho(3.0))


def test_the_number_of_samples_is_a_whole_one():
    ring = diffode.targets.get("ring8")
    assert ring.sample(0, generator=torch.Generator()).shape == (0, 2)
    for wrong in (2.5, "3", -1):
        with pytest.raises(ArgumentError, match="n must be"):
            ring.sample(wrong, generator=torch.Generator())


def test_weights_of_points_are_one_row():
    points = [[0.0], [1.0]]
    assert GaussianMixture.from_points(points, [0.25, 0.75]).mean == pytest.approx(0.75)
    with pytest.raises(ArgumentError, match="weights must"):
        GaussianMixture.from_points(points, [[0.25, 0.75]])


@pytest.mark.parametrize("variances", [[0.5, 0.5, 0.2], [0.2, 0.5, 0.5], [0.5, 0.2, 0.5]])
def test_one_variance_among_equal_ones_counts(variances):
    """Components of one common variance have a shorter formula, which must not be taken for those that share it in part."""
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    short = GaussianMixture([0.2, 0.3, 0.5], means, variances)
    long = GaussianMixture([0.2, 0.3, 0.5], means, [[v, v] for v in variances])
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for target, other in (
        (short, long),
        (GaussianMixture([0.2, 0.3, 0.5], means, [0.5] * 3), GaussianMixture([0.2, 0.3, 0.5], means, [[0.5, 0.5]] * 3)),
    ):
        one, two = (diffode.exact_field(t, "edm") for t in (target, other))
        torch.testing.assert_close(one.score(x, 0.7), two.score(x, 0.7), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.log_prob(x, 0.7), two.log_prob(x, 0.7), rtol=1e-12, atol=1e-12)


def test_a_field_that_is_zero_is_a_field():
    """Nothing is relative to its largest answer."""
    still = Field.from_velocity(lambda x, t: torch.zeros_like(x), paths.get("edm"))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(diffode.solve(still, x, solver="euler", nfe=4).x, x)
    assert diffode.solve(still, x, solver="rk_adaptive", grid=[80.0, 0.002]).x.allclose(x)


def test_a_kind_that_is_said_twice_is_no_contradiction():
    exact = diffode.exact_field("ring8", "edm")
    own = Field.from_noise(exact.noise, exact.path)
    assert own_field(own, "noise", exact.path).prediction == "noise"
    assert own_field(own, None, exact.path).prediction == "noise"
    with pytest.raises(ArgumentError, match="this field gives its noise"):
        own_field(own, "score", exact.path)


def test_rounding_in_a_field_is_seen_as_it_is():
    """Second differences of a smooth function show none, those of float32 its seven digits, at any size of x."""
    path = paths.get("edm")
    for size in (1e-3, 1.0, 80.0):
        x = size * torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        double = Field.from_noise(lambda x, t: torch.tanh(x / (1 + t)), path)
        single = Field.from_noise(lambda x, t: torch.tanh(x / (1 + t)).float().double(), path)
        assert double.rounding(x, size) < 2e-11
        assert 1e-9 < single.rounding(x, size) < 1e-6
        assert math.isfinite(Field.from_noise(lambda x, t: 0 * x, path).rounding(x, size))


def test_a_field_counts_over_runs():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(2, generator=0)
    for nfe in (4, 6):
        diffode.solve(field, x, solver="ddim", nfe=nfe)
    diffode.solve(field, x, solver="rk_adaptive", grid=[80.0, 70.0])
    assert field.nfe > 10
    adaptive = field.nfe - 10
    field.nfe = 5
    assert diffode.solve(field, x, solver="rk_adaptive", grid=[80.0, 70.0]).nfe == adaptive
    assert field.nfe == 5 + adaptive


def test_looking_for_what_failed_is_not_counted():
    path = paths.get("edm")
    field = Field.from_noise(lambda x, t: torch.where((x[:, :1] < 0) & torch.tensor(t < 20), math.nan, x / (1 + t)), path)
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    field.nfe = 3
    with pytest.raises(diffode.errors.NumericalError) as caught:
        diffode.solve(field, x, solver="ddim", nfe=6)
    assert caught.value.solution.status.tolist() == [0, 1]
    assert field.nfe == 3 + caught.value.solution.nfe == 9
