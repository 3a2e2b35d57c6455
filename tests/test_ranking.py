"""Rankings: the price of an error between budgets, and standings over problems."""

import pytest

from diffode.metrics import Measurement
from diffode.studies import Result
from diffode.studies.ranking import Curve, curves, in_units, prices, standings
from diffode.studies.suite import Cell


def curve(solver, errors, target="a"):
    return Curve(target, "edm", "karras", solver, (4, 8, 16), tuple(errors), 0.0, (4, 8, 16))


def test_the_price_of_an_error_is_interpolated():
    """Errors falling as 1/NFE^2 from 1 at 4: 0.01 costs 40."""
    c = Curve("a", "edm", "karras", "x", (4, 16, 64), (1.0, 1 / 16, 1 / 256), 0.0, (4, 16, 64))
    assert c.nfe_to_reach(0.01) == pytest.approx(40)
    assert c.nfe_to_reach(2.0) == 4
    assert c.nfe_to_reach(1e-9) == float("inf")
    bumpy = curve("x", [1e-3, 1.0, 1e-3])
    assert bumpy.nfe_to_reach(0.01) > 8


def test_standings_rank_by_geometric_mean_and_count_wins():
    all_curves = [
        curve("x", [1, 0.1, 0.01]),
        curve("y", [2, 0.2, 0.02]),
        curve("x", [1, 1, 1], "b"),
        curve("y", [1, 1e-4, 1], "b"),
    ]
    first = standings(all_curves, 8)[0]
    assert (first.method, first.wins, first.problems) == ("y", 1, 2)
    assert first.error == pytest.approx((0.2 * 1e-4) ** 0.5)
    assert prices(all_curves, 0.05)[0].reached == 1


@pytest.mark.parametrize(("metric", "error"), [("endpoint", 0.25), ("mode_weights", 0.5), ("frechet", 0.5), ("of_mine", 0.25)])
def test_lengths_are_ranked_in_units_of_the_scale_and_other_values_as_they_are(metric, error):
    cell = Cell("ring8", "edm", 0, "karras", "ddim", 4, 8, "float64", (metric,), 1e-6)
    result = Result("0", cell, "ok", "", 4, 4, 0.1, 2.0, 1, {}, (Measurement(metric, 0.5, 0.125),))
    (curve,) = curves([result])
    assert curve.error == (error,)
    assert curve.floor == 0.25 * error
    assert in_units(metric) == ("" if error == 0.5 else " in units of the data's scale")
