"""Floors of metrics that compare with exact draws, which cells of a study share."""

import diffode
from diffode.metrics import Outcome, measure


def test_floors_that_are_kept_are_those_of_the_run_that_asks():
    """Seed, number of points and last time fix the draws behind a floor; runs that differ in one of them do not share it."""
    field = diffode.exact_field("ring8", "edm")

    def floor(field, seed=0, points=60, last=0.002):
        x = field.prior(points, generator=1)
        run = Outcome(field, x, diffode.solve(field, x, solver="ddim", grid=[80.0, last]), seed=seed)
        return measure("mode_weights", run).floor

    asked = [{}, {"seed": 1}, {"points": 61}, {"last": 30.0}, {}]
    found = [floor(field, **one) for one in asked]
    assert found == [floor(diffode.exact_field("ring8", "edm"), **one) for one in asked]
    assert len(set(found)) == 4
