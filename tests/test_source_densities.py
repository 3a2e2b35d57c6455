"""Sources of which a density is all that is known: what is taken, and what is refused by name."""

import pytest
from test_sources import own_density, points

import diffode
from diffode import sources
from diffode.errors import ArgumentError, FieldError
from diffode.targets import GaussianMixture


def test_a_density_of_ones_own_is_looked_at():
    with pytest.raises(FieldError, match="sum over the last axis"):
        diffode.exact_field(points(), "edm", sources.Density(lambda u: -u.square()))
    field = diffode.exact_field(points(), "edm", sources.Density(own_density))
    with pytest.raises(ArgumentError, match="draw="):
        field.prior(3, generator=0)
    drawing = sources.Density(own_density, draw=lambda source, n, dim: source.standard_normal((n, dim)))
    assert diffode.exact_field(points(), "edm", drawing).prior(3, generator=0).shape == (3, 2)


@pytest.mark.parametrize(
    ("law", "draw", "message"),
    [
        (lambda u: u.sum(-1) * float("nan"), None, "it gives NaN"),
        (lambda u: u.foo, None, "law can't be asked.*foo"),
        (lambda u: {}["x"], None, "law can't be asked"),
        (lambda u: -u.square().sum(-1) / 2, lambda g: 1, "draw can't be asked for 2 points: TypeError"),
        (lambda u: -u.square().sum(-1) / 2, lambda g, n, d: "a", "draw can't be asked for 2 points: ValueError"),
        (lambda u: -u.square().sum(-1) / 2, 3, "draw must be a function"),
    ],
)
def test_densities_of_ones_own_that_are_none_are_named(law, draw, message):
    points = GaussianMixture.from_points([[-1.0, 0.0], [1.0, 1.0]])
    with pytest.raises((ArgumentError, FieldError), match=message):
        diffode.exact_field(points, "rectified_flow", source=sources.Density(law, draw=draw)).prior(2, generator=0)
