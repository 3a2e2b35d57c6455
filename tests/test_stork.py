"""STORK: the stability polynomial of its stages, their shares of a step, and what is left of both with virtual evaluations."""

import math

import numpy as np
import pytest
import torch
from scipy.special import eval_gegenbauer

import diffode
from diffode import solvers, verify
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.solvers.stork import gegenbauer


def grown(solver, product, steps=1):
    """The factor by which steps of length 1 multiply the solution of dx/dt = -product x, in falling time."""
    field = Field.from_velocity(lambda x, t: -product * x, probe=False)
    x = torch.ones(1, 1, dtype=torch.float64)
    return float(diffode.solve(field, x, solver=solver, grid=[float(steps - i) for i in range(steps + 1)]).x)


@pytest.mark.parametrize("stages", [2, 3, 7, 20])
def test_evaluated_stages_have_the_gegenbauer_polynomial_for_stability(stages):
    b = 4 * (stages - 1) * (stages + 4) / (3 * stages * (stages + 1) * (stages + 2) * (stages + 3))
    a, w = 1 - (stages + 1) * (stages + 2) / 2 * b, 6 / ((stages + 4) * (stages - 1))
    solver = solvers.get("stork", virtual=False, stages=stages, form="consistent")
    for z in (-0.3, -2.0, -0.7 * 2 / w, -1.1 * 2 / w, 0.4):
        assert grown(solver, z) == pytest.approx(a + b * eval_gegenbauer(stages, 1.5, 1 + w * z), rel=1e-10)
    # The interval of stability, -2/w = -(s + 4)(s - 1)/3 long, ends there or a little beyond.
    inside = [abs(grown(solver, -share * 2 / w)) for share in np.linspace(0.01, 0.999, 40)]
    assert max(inside) <= 1
    assert abs(grown(solver, -1.5 * 2 / w)) > 1


def test_virtual_stages_lend_no_stability():
    """A step is a linear multistep method: with one past point, y + h (f + (f - f_past)/2), stable for -1 <= h k <= 0 alone."""
    virtual = solvers.get("stork", taylor=1, form="consistent")
    with_stages = solvers.get("stork", virtual=False, form="consistent", stages=50)
    assert abs(grown(virtual, -0.95, steps=200)) < 1e-3
    assert abs(grown(virtual, -1.1, steps=200)) > 1e3
    assert abs(grown(with_stages, -600.0, steps=200)) < 1e-3
    for taylor in (1, 2, 3):
        assert abs(grown(solvers.get("stork", taylor=taylor), -3.0, steps=100)) > 1e10


@pytest.mark.parametrize("stages", [3, 10, 50])
def test_shares_of_stages_are_those_of_gegenbauer_not_of_legendre(stages):
    weights, own = gegenbauer(stages)[-1], gegenbauer(stages).sum(axis=1)[:-1]
    consistent, published = (solvers.get("stork", stages=stages, form=form).nodes for form in ("consistent", "published"))
    np.testing.assert_allclose(consistent, own, rtol=1e-10, atol=1e-13)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert weights @ consistent == pytest.approx(0.5, abs=1e-12)
    # RKL2: c_j = (j^2 + j - 2)/(s^2 + s - 2) and c_1 = c_2/3.
    assert published[2] == pytest.approx(3 * published[1])
    assert weights @ published == pytest.approx({3: 0.362963, 10: 0.465371, 50: 0.489620}[stages], abs=1e-6)


def test_virtual_evaluations_at_even_steps_are_the_published_taylor_expansion():
    """With m = exp(t), past slopes and their even differences, the stages one by one as in the code's loop."""
    s, h = 12, 0.1
    values = [math.exp(-k * h) for k in range(3)]
    first = (3 * values[0] - 4 * values[1] + values[2]) / (2 * h)
    second = (values[0] - 2 * values[1] + values[2]) / h**2
    solver = solvers.get("stork", stages=s)
    b = [1, 1 / 3, *(4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3)) for j in range(2, s + 1))]
    w = 6 / ((s + 4) * (s - 1))
    earlier, before = 0.0, h * w * values[0]
    for j in range(2, s + 1):
        mu, nu = (2 * j + 1) * b[j] / (j * b[j - 1]), -(j + 1) * b[j] / (j * b[j - 2])
        gamma = -mu * w * (1 - j * (j + 1) * b[j - 1] / 2)
        time = solver.nodes[j - 1] * h
        slope = values[0] + time * first + time**2 / 2 * second
        earlier, before = before, mu * before + nu * earlier + h * (mu * w * slope + gamma * values[0])
    table = solver.tableau(None, [0.3, 0.2, 0.1, 0.0])
    weights = table.rows[3].evaluations
    # The velocity chart runs in falling time, whose slopes have the other sign.
    found = -sum(float(weights[row]) * values[2 - row] for row in (0, 1, 2))
    assert found == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "order"), [("form=consistent,stages=5", 2), ("form=consistent,taylor=1", 2), ("stages=3", 1),
                           ("form=consistent,virtual=false,stages=4", 2)],
)  # fmt: skip
def test_errors_fall_with_the_order_of_the_form(options, order):
    """With two past points the error of second order is small beside that of third, of which 0.2 is left here."""
    found = verify.order(f"stork:chart=noise,{options}", grid="log_snr", steps=(256, 512, 1024, 2048), points=8)
    assert -0.15 < found.slope - order < 0.25


def test_a_step_costs_one_evaluation_and_ends_at_the_denoised_point():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    for chart in ("noise", "data"):
        solver = solvers.get("stork", chart=chart)
        run = diffode.solve(field, x, solver=solver, grid="karras:to_zero=true", steps=9, keep="all")
        assert run.nfe == 9
        torch.testing.assert_close(run.x, field.denoised(run.states[-2], float(run.times[-2])), rtol=1e-10, atol=1e-10)
    assert diffode.solve(field, x, solver="stork:virtual=false,stages=5,chart=noise", grid="karras", steps=4).nfe == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [({"stages": 1}, "stages must be an integer from 2"), ({"taylor": 4}, "taylor must be one of 1, 2, 3"),
     ({"chart": "gaussian"}, "chart must be one of"), ({"form": "taylor"}, "form must be one of")],
)  # fmt: skip
def test_wrong_options_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        solvers.get("stork", **options)
