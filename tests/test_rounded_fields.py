"""Fields whose answers are rounded, as a network's in float32: nothing asks their flow for digits that they do not have."""

import math

import pytest
import torch

import diffode
from diffode.flows import flow_states, reachable
from diffode.learned import train


class Rounded:
    """The denoiser of ring8 to a multiple of ``unit``, and how often it was called."""

    def __init__(self, unit):
        self.exact, self.unit, self.calls = diffode.exact_field("ring8", "edm"), unit, 0

    def __call__(self, x, t):
        self.calls += 1
        return (self.exact.denoised(x, t) / self.unit).round() * self.unit

    @property
    def field(self):
        return diffode.Field.from_denoised(self, "edm", scale=self.exact.scale)


@pytest.mark.parametrize("unit", [1e-9, 5e-6])
def test_a_tolerance_is_no_smaller_than_a_hundred_roundings(unit):
    field = Rounded(unit).field
    size = float(diffode.exact_field("ring8", "edm").target.means.abs().max())
    found = reachable(field, 1e-12, (2,))
    # A second difference of rounded values is one or two units, and answers lie at or inside the largest mean.
    assert 50 * unit / size <= found <= 1000 * unit / size
    assert reachable(field, 1e-3, (2,)) == 1e-3


def test_exact_fields_and_guided_ones_are_followed_as_asked():
    field = diffode.exact_field("ring8", "edm")
    assert reachable(field, 1e-13) == 1e-13
    given = diffode.exact_field(diffode.targets.get("ring8").given("three"), "edm")
    assert reachable(diffode.guide(given, field, 2.0), 1e-13) == 1e-13


@pytest.mark.parametrize(("method", "most"), [
    ("amed", 20_000), ("bespoke", 2_500), ("flow_map:width=8,depth=1,batch=8", 20_000),
    ("reflow:width=8,depth=1,batch=8", 20_000),
])  # fmt: skip
def test_trainings_take_few_evaluations_of_a_rounded_field(method, most):
    """Asked for their digits all the same, a table takes three times as many, and the others a hundred times."""
    rounded = Rounded(5e-6)
    budget = {} if ":" in method else {"points": 32}
    trained = train(method, rounded.field, 2, dim=2, steps=1, **budget)
    assert math.isfinite(trained.errors.after)
    assert rounded.calls < most


def test_states_of_a_rounded_flow_are_exact_to_its_rounding():
    rounded = Rounded(5e-6)
    field = rounded.field
    x = field.path.prior((32, 2), generator=3)
    found = flow_states(field, x, (80.0, 1.0, 0.002))
    exact = flow_states(rounded.exact, x, (80.0, 1.0, 0.002))
    assert rounded.calls < 400
    assert float((found - exact).norm(dim=-1).max()) < 0.01 * field.scale
    assert torch.isfinite(found).all()
