"""Models of other libraries between two data sets, whose noise is a source."""

import warnings

import pytest
import torch

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, ConventionWarning, FieldError
from diffode.verify import check_field

EXACT = diffode.exact_field("ring8", "rectified_flow", "grid25")
DATA = EXACT.target.sample(512, generator=1)
SOURCE = EXACT.source.sample(512, 2, generator=2)


def theirs(x, t):
    """The exact velocity in the convention of flow_matching and torchcfm: data at t = 1."""
    return -EXACT.velocity(x, 1 - t)


@pytest.mark.parametrize("source", [SOURCE, "grid25"], ids=["points", "spec"])
@pytest.mark.parametrize("order", ["x, t", "t, x"])
def test_a_model_between_two_data_sets_is_read_as_it_is_meant(source, order):
    model = theirs if order == "x, t" else lambda t, x: theirs(x, t)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field = adapters.from_flow_matching(model, order=order, data=DATA, source=source)
        x = EXACT.prior(4, generator=0)
        found = diffode.solve(field, x, solver="heun", grid="time_uniform", steps=8)
    exact = diffode.solve(EXACT, x, solver="heun", grid="time_uniform", steps=8)
    assert torch.allclose(found.x, exact.x, atol=1e-12)
    with pytest.raises(FieldError, match="no multiple of the noise"):
        field.score(x, 0.5)
    with pytest.raises(ArgumentError, match="draws normal noise"):
        diffode.solve(field, x, solver="euler_ancestral", nfe=8, generator=0)


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [(lambda x, t: -theirs(x, t), "sign"), (lambda x, t: -theirs(x, 1 - t), "data lie at t = 0|the other way|lie at")],
    ids=["sign", "direction"],
)
def test_the_check_with_data_of_both_ends_names_the_mistake(wrong, fix):
    with pytest.warns(ConventionWarning, match=fix):
        adapters.from_flow_matching(wrong, data=DATA, source=SOURCE)


def test_normal_noise_would_blame_a_right_model():
    """Its noise is spread as the source is, by 2.8, so that against N(0, I) most of it seems unpredicted."""
    read = lambda x, t: EXACT.velocity(x, t)  # noqa: E731
    options = {"scale": EXACT.scale, "data": DATA}
    right = check_field(read, "velocity", "rectified_flow", 2, source=SOURCE, **options)
    blamed = check_field(read, "velocity", "rectified_flow", 2, **options)
    assert right.passed
    assert right.facts["loss"] < 0.8 < blamed.facts["loss"]


def test_source_goes_with_data():
    with pytest.raises(ArgumentError, match="needs data= too"):
        check_field(lambda x, t: x, "velocity", "rectified_flow", 2, scale=1.0, source=SOURCE)
    with pytest.raises(ArgumentError, match="source must be a finite tensor"):
        adapters.from_flow_matching(theirs, data=DATA, source=SOURCE[:3])
