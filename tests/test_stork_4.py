"""STORK-4: the derivatives of its code, the orders that they leave, and the stability of what virtual stages are."""

import itertools
import math

import numpy as np
import pytest
import torch

import diffode
from diffode import solvers, verify
from diffode.errors import ArgumentError
from diffode.fields import Field

TIMES = [1.0, 0.83, 0.71, 0.52, 0.3]


def slopes_taken(times, values, taylor):
    """The code's derivatives at the last time but one, from the values there and before, by its own formulas."""
    lengths = [a - b for a, b in itertools.pairwise(times)]
    v = values[::-1]
    h1, h2 = lengths[-2], lengths[-3]
    if taylor == 2:
        first = (-v[2] + 4 * v[1] - 3 * v[0]) / (2 * h1)
        return first, 2 / (h1 * h2 * (h1 + h2)) * (v[2] * h1 - v[1] * (h1 + h2) + v[0] * h2), 0.0
    h3 = lengths[-4]
    whole = h1 * h2 * h3
    one, two, three = (v[k] - v[0] for k in (1, 2, 3))
    first = (h2 * h3 * one - h1 * h3 * two + h1 * h2 * three) / whole
    second = 2 * ((h2 + h3) * one - (h1 + h3) * two + (h1 + h2) * three) / whole
    return first, second, 6 * ((h2 - h3) * one + (h3 - h1) * two + (h1 - h2) * three) / whole


@pytest.mark.parametrize("taylor", [2, 3])
def test_a_published_step_is_the_codes_taylor_expansion_integrated_exactly(taylor):
    times, values = TIMES[3 - taylor :], [math.sin(3 * t) for t in TIMES[3 - taylor : 4]]
    first, second, third = slopes_taken(times, values, taylor)
    # Any method of order 4 integrates a cubic exactly; h is negative in the time of the path.
    h = times[-1] - times[-2]
    expected = h * values[-1] + h**2 / 2 * first + h**3 / 6 * second + h**4 / 24 * third
    weights = solvers.get("stork_4", taylor=taylor).tableau(None, times).rows[len(times) - 1].evaluations
    found = sum(float(weights[row]) * value for row, value in enumerate(values))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("taylor", [2, 3])
def test_a_consistent_step_integrates_polynomials_of_its_degree_exactly(taylor):
    times = TIMES[3 - taylor :]
    weights = solvers.get("stork_4", taylor=taylor, form="consistent").tableau(None, times).rows[len(times) - 1].evaluations
    for power in range(taylor + 2):
        found = sum(float(weights[row]) * t**power for row, t in enumerate(times[:-1]))
        exact = (times[-1] ** (power + 1) - times[-2] ** (power + 1)) / (power + 1)
        assert (found == pytest.approx(exact, rel=1e-12)) is (power <= taylor)


def test_the_consistent_form_is_an_adams_method_of_the_clock_whatever_the_stages():
    path, times = diffode.paths.get("edm"), [9.0, 5.0, 3.0, 1.0, 0.4, 0.1]
    for taylor in (2, 3):
        own = solvers.get("stork_4", taylor=taylor, form="consistent", chart="noise").tableau(path, times)
        adams = solvers.get("lms", order=taylor + 1).tableau(path, times)
        assert own.nfe == adams.nfe == 5
        for a, b in zip(own.rows[1:], adams.rows[1:], strict=True):
            assert set(a.evaluations) == set(b.evaluations)
            for row, weight in a.evaluations.items():
                assert float(weight) == pytest.approx(float(b.evaluations[row]), rel=1e-11)


def grown(solver, product, steps):
    """The factor by which steps of length 1 multiply the solution of dx/dt = -product x, in falling time."""
    field = Field.from_velocity(lambda x, t: -product * x, probe=False)
    x = torch.ones(1, 1, dtype=torch.float64)
    return float(diffode.solve(field, x, solver=solver, grid=[float(steps - i) for i in range(steps + 1)]).x)


@pytest.mark.parametrize(("taylor", "end"), [(2, 6 / 11), (3, 3 / 10)])
def test_the_interval_of_stability_is_that_of_adams_bashforth(taylor, end):
    """At its end the root -1 enters: 1 + 1 = z sum b_j (-1)^(j+1), with 6/11 for three points and 3/10 for four."""
    solver = solvers.get("stork_4", taylor=taylor, form="consistent")
    for share in np.linspace(0.1, 0.98, 8):
        assert abs(grown(solver, -share * end, 800)) < 0.1
    assert abs(grown(solver, -1.03 * end, 800)) > 1e3


def test_even_steps_hide_what_the_published_first_derivative_lacks():
    even = [4.0, 3.0, 2.0, 1.0, 0.5]
    tables = [
        solvers.get("stork_4", form=form).tableau(None, even[:4]).rows[3].evaluations for form in ("published", "consistent")
    ]
    for row in range(3):
        assert float(tables[0][row]) == pytest.approx(float(tables[1][row]), rel=1e-12)
    # With three derivatives a linear slope, m = t, has them wrong on even steps: 2 in place of 1, and 8/h in place of 0.
    weights = solvers.get("stork_4", taylor=3).tableau(None, [4.0, 3.0, 2.0, 1.0, 0.0]).rows[4].evaluations
    found = sum(float(weights[row]) * t for row, t in enumerate([4.0, 3.0, 2.0, 1.0]))
    assert found == pytest.approx(-1.0 + 2 / 2 - 8 / 6, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "order"), [("", 2), ("taylor=3", 1), ("form=consistent", 3), ("taylor=3,form=consistent", 4)]
)  # fmt: skip
def test_errors_fall_with_the_order_of_the_derivatives(options, order):
    spec = f"stork_4:chart=noise,{options}".rstrip(",")
    assert solvers.get(spec).convergence_order == order
    found = verify.order(spec, grid="log_snr", steps=(256, 512, 1024, 2048), points=8, ramped=order > 2)
    assert found.slope == pytest.approx(order, abs=0.15)


def test_a_step_costs_one_evaluation_and_ends_at_the_denoised_point():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    run = diffode.solve(field, x, solver="stork_4:chart=data,taylor=3", grid="karras:to_zero=true", steps=9, keep="all")
    assert run.nfe == 9
    torch.testing.assert_close(run.x, field.denoised(run.states[-2], float(run.times[-2])), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"taylor": 1}, "taylor must be one of 2, 3"), ({"chart": "gaussian"}, "chart must be one of"),
     ({"form": "taylor"}, "form must be one of")],
)  # fmt: skip
def test_wrong_options_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        solvers.get("stork_4", **options)
