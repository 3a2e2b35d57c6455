"""Exponential Runge-Kutta methods: stiff order conditions as identities of phi functions, and what they say of errors."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

import diffode
from diffode import grids, paths, solvers, verify
from diffode.errors import ArgumentError
from diffode.numerics import exponential_butcher as tableaus
from diffode.numerics.butcher import KUTTA
from diffode.numerics.exponential import phi
from diffode.numerics.exponential_butcher import METHODS, ExponentialButcher

#: Classical and stiff order: Hochbruck and Ostermann 2005, section 5, where they discuss each method.
ORDERS = {
    "etd2": (2, 2), "etd3": (3, 2), "etd4": (4, 2), "krogstad": (4, 3), "strehmel_weiner": (4, 3),
    "hochbruck_ostermann_3": (3, 3), "hochbruck_ostermann_4": (4, 4), "lawson_2": (2, 1), "lawson_4": (4, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_stiff_orders_are_those_that_the_paper_states(name):
    method = tableaus.get(name)
    assert (method.order, method.stiff_order) == ORDERS[name]


@pytest.mark.parametrize("nodes", [(0.3,), (0.5,), (1.0,)])
def test_the_second_order_family_has_its_stiff_order_for_every_node(nodes):
    assert tableaus.get("etd2", nodes).stiff_order == 2


@pytest.mark.parametrize("nodes", [(1 / 3, 2 / 3), (0.5, 1.0), (0.4, 0.9)])
def test_the_third_order_family_has_its_stiff_order_for_all_nodes(nodes):
    """The published slip, c_3^3 for c_3^2 in gamma, is harmless at c_3 = 1 alone."""
    c2, c3 = nodes
    method = tableaus.get("hochbruck_ostermann_3", nodes)
    assert method.stiff_order == 3
    slip = (3 * c3**3 - 2 * c3) / (c2 * (2 - 3 * c2))
    assert (tableaus.res_gamma(*nodes) == pytest.approx(slip)) == (c3 == 1)


def test_weights_of_cox_and_matthews_are_their_closed_forms():
    """Kassam and Trefethen 2005, (2.5), in fifty digits."""
    method = tableaus.get("etd4")
    for z in (-8.0, -0.6, 1.1):
        with mpmath.workdps(50):
            e, half = mpmath.exp(mpmath.mpf(z)), mpmath.exp(mpmath.mpf(z) / 2)
            b1 = (-4 - z + e * (4 - 3 * z + z**2)) / mpmath.mpf(z) ** 3
            b2 = 2 * (2 + z + e * (-2 + z)) / mpmath.mpf(z) ** 3
            b4 = (-4 - 3 * z - z**2 + e * (4 - z)) / mpmath.mpf(z) ** 3
            a41 = (half - 1) / z * (half - 1)
            a43 = 2 * (half - 1) / z
        assert method.step(z) == pytest.approx([float(v) for v in (b1, b2, b2, b4)], rel=1e-12)
        assert method.stage(3, z) == pytest.approx([float(a41), 0.0, float(a43)], rel=1e-12)


def test_a_wrong_coefficient_is_named_with_its_condition():
    good = tableaus.get("krogstad")
    with pytest.raises(ArgumentError, match="is not of order 4: tree"):
        ExponentialButcher(good.nodes, good.stages, (*good.weights[:3], ((-1.0, 2, 1.0), (4.1, 3, 1.0))), 4, "a slip")
    with pytest.raises(ArgumentError, match="nodes of a slip must be"):
        ExponentialButcher((0.0, 0.5, 0.5, 0.9), good.stages, good.weights, 4, "a slip")
    # A slip that z = 0 does not show costs stiff order, though it keeps the classical one: phi_2(z/2) becomes phi_2(z).
    half = tuple(tuple((f, k, 1.0 if k == 2 else c) for f, k, c in entry) for entry in good.stages[1])
    moved = ExponentialButcher(good.nodes, (good.stages[0], half, good.stages[2]), good.weights, 4, "a slip")
    assert (moved.order, moved.stiff_order) == (4, 2)


def heat_errors(name, steps=(16, 32, 64)):
    """End errors for u_t = u_xx + 1/(1 + u^2) + f with the solution x(1 - x)e^t (Hochbruck and Ostermann 2005, example 6.2)."""
    points = 60
    x = np.arange(1, points + 1) / (points + 1)
    laplace = (np.diag(np.full(points - 1, 1.0), 1) + np.diag(np.full(points - 1, 1.0), -1) - 2 * np.eye(points)) * (
        points + 1
    ) ** 2
    eigenvalues, basis = np.linalg.eigh(laplace)
    method, exact = tableaus.get(name), x * (1 - x)

    def source(t, u):
        solution = exact * math.exp(t)
        return 1 / (1 + u**2) + solution + 2 * math.exp(t) - 1 / (1 + solution**2)

    errors = []
    for count in steps:
        h = 1 / count
        rows = [np.array([method.stage(i, z) for z in h * eigenvalues]) for i in range(1, len(method.nodes))]
        last = np.array([method.step(z) for z in h * eigenvalues])
        decays = [np.exp(c * h * eigenvalues) for c in (*method.nodes, 1.0)]
        u = basis.T @ exact
        for step in range(count):
            found = [basis.T @ source(step * h, basis @ u)]
            for node, row, decay in zip(method.nodes[1:], rows, decays[1:-1], strict=True):
                inner = decay * u + h * sum(row[:, j] * found[j] for j in range(len(found)))
                found.append(basis.T @ source((step + node) * h, basis @ inner))
            u = decays[-1] * u + h * sum(last[:, j] * found[j] for j in range(len(found)))
        errors.append(np.abs(basis @ u - exact * math.e).max())
    return errors


def test_errors_of_a_stiff_problem_fall_with_the_stiff_order():
    """Between it and the classical one: the paper's figure 1 has 2.5 to 3 for etd4, and 4 for the method of five stages."""
    slopes = {name: -np.polyfit(np.log([16, 32, 64]), np.log(heat_errors(name)), 1)[0] for name in METHODS}
    for name, (classical, stiff) in ORDERS.items():
        assert stiff - 0.3 < slopes[name] < classical + 0.3, (name, slopes)
    assert slopes["hochbruck_ostermann_4"] > slopes["etd4"] + 0.5


@pytest.mark.parametrize("chart", ["data", pytest.param("noise_log_snr", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_measured_orders_are_the_classical_ones(method, chart):
    solver = solvers.get("exponential_rk", method=method, chart=chart)
    found = verify.order(solver, target="ring8", steps=(128, 256, 512, 1024), points=8, tolerance=1e-13)
    assert abs(found.slope - ORDERS[method][0]) < 0.15


def rows_agree(first, second, path="vp", grid="karras"):
    one, other = (solvers.table_solver(spec).tableau(path, grid, 5) for spec in (first, second))
    assert len(one.rows) == len(other.rows)
    for a, b in zip(one.rows, other.rows, strict=True):
        assert a.time == pytest.approx(b.time, rel=1e-13)
        assert a.states == pytest.approx(b.states, rel=1e-12)
        assert a.evaluations == pytest.approx(b.evaluations, rel=1e-11, abs=1e-13)
    return True


@pytest.mark.parametrize("grid", ["karras", "karras:to_zero=true"])
def test_neighbours_of_the_same_coefficients_write_the_same_rows(grid):
    assert rows_agree("exponential_rk:method=etd2,c2=0.5", "dpmpp_s:order=2,form=taylor", grid=grid)
    assert rows_agree("exponential_rk:method=etd2,c2=0.3,chart=noise_log_snr", "dpm:order=2,form=taylor,r=0.3")
    assert rows_agree("exponential_rk:method=etd2", "exp_heun_2_x0", grid=grid)
    assert rows_agree("res_m:order=2", "dpmpp:order=2,form=taylor,lower_order_final=never", grid=grid)


def test_lawsons_method_is_kuttas_in_the_log_snr():
    """d(x/sigma)/d lambda = e^lambda D, by Kutta's tableau, on a one-dimensional mixture."""
    field = diffode.exact_field("bimodal1d", "edm")
    times = grids.get("karras", paths.get("edm"), 6)
    x = field.prior(4, generator=0)
    found = diffode.solve(field, x, solver="exponential_rk:method=lawson_4", grid=times).x

    def rate(z, lam):
        sigma = math.exp(-lam)
        return field.denoised(z * sigma, sigma) / sigma

    lambdas = [-math.log(t) for t in times.tolist()]
    z = x / float(times[0])
    for a, b in itertools.pairwise(lambdas):
        z = KUTTA.step(rate, z, a, b - a)
    torch.testing.assert_close(found, z * float(times[-1]), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("form", "order"), [("published", 2), ("consistent", 3)])
def test_res_3m_is_third_order_with_the_square_that_its_public_code_lacks(form, order):
    solver = solvers.get("res_m", form=form)
    found = verify.order(solver, target="ring8", steps=(128, 256, 512, 1024), points=8, tolerance=1e-12, ramped=True)
    assert solver.convergence_order == order
    assert abs(found.slope - order) < 0.15


def test_res_3m_weights_are_exact_to_phi_2():
    """With c_2, c_3 of past points: constants and lines are integrated exactly, parabolas at z = 0."""
    chart = diffode.charts.get("data", "edm")
    lambdas = (0.0, -0.3, -0.9)
    past, t = [math.exp(-value) for value in lambdas], math.exp(-0.4)
    weights = solvers.get("res_m", form="consistent").weights(chart, past, t)
    scale = 0.4 * chart.weight(t)
    assert math.fsum(weights) == pytest.approx(scale * phi(1, -0.4), rel=1e-13)
    assert math.fsum(w * value / 0.4 for w, value in zip(weights, lambdas, strict=True)) == pytest.approx(scale * phi(2, -0.4))
    ratio = math.fsum(w * (value / 0.4) ** 2 for w, value in zip(weights, lambdas, strict=True)) / (scale * phi(2, -0.4))
    assert ratio == pytest.approx((1 / 3) / (1 / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "etd5"}, "method must be one of etd2, etd3"),
        ({"method": "etd2", "c3": 1.0}, "nodes of etd2 must be 1 different numbers"),
        ({"method": "etd2", "c2": 0}, "c2 must be a number in (0, 1]"),
        ({"method": "krogstad", "c2": 0.5}, "left out, since the method has none"),
        ({"method": "hochbruck_ostermann_3", "c2": 2 / 3, "c3": 0.5}, "there is no method hochbruck_ostermann_3 with nodes"),
        ({"c2": "half"}, "c2 must be a number"),
        ({"chart": "velocity"}, "chart must be one of data, noise_log_snr"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ArgumentError) as caught:
        solvers.get("exponential_rk", **options)
    assert words in str(caught.value)
