"""Charts: exponential functions, moments and Adams weights against quadrature."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

import diffode
from diffode import charts, paths
from diffode.errors import ArgumentError
from diffode.numerics.exponential import phi


@given(st.integers(0, 5), st.floats(-40, 40).filter(lambda z: z == 0 or abs(z) > 1e-12))
def test_phi_has_full_precision_everywhere(k, z):
    """Against 150 digits; phi_3 by recursion would lose half of them at z = 1e-3."""
    with mpmath.workdps(150):
        exact = mpmath.exp(z) - mpmath.fsum(mpmath.mpf(z) ** j / mpmath.factorial(j) for j in range(k))
        exact = exact / mpmath.mpf(z) ** k if z else 1 / mpmath.factorial(k)
        error = abs(phi(k, z) / exact - 1)
    assert error < 1e-13


@pytest.mark.parametrize("z", [1e-12, -1e-7, 1e-3, -0.01, 0.3])
def test_phi_3_near_zero(z):
    exact = sum(z**j / math.factorial(j + 3) for j in range(12))
    assert phi(3, z) == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("path_name", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("name", list(charts.charts))
def test_adams_weights_integrate_the_interpolation_polynomial(name, path_name):
    """S(t) times the integral of each Lagrange polynomial against d theta, by adaptive quadrature in the log-SNR or t."""
    path = paths.get(path_name)
    chart = charts.get(name, path)
    nodes = [path.time_from_rho(rho) for rho in (1.0, 1.9, 4.0)]
    s, t = nodes[0], path.time_from_rho(0.6)
    for used in (nodes[:1], nodes[:2], nodes, [*nodes, t]):
        weights = chart.adams(used, s, t)
        taus = [chart.variable(node) for node in used]
        for j, weight in enumerate(weights):
            arguments = (chart, path, name, taus, j)
            expected = chart.scale(t) * quad(integrand, *limits(path, name, s, t), arguments, epsabs=0, epsrel=1e-12)[0]
            assert weight == pytest.approx(expected, rel=1e-9)


def limits(path, name, s, t):
    return (s, t) if name == "velocity" else (path.log_snr(s), path.log_snr(t))


def integrand(y, chart, path, name, taus, j):
    time = y if name == "velocity" else path.time_from_log_snr(y)
    tau = chart.variable(time)
    lagrange = np.prod([(tau - other) / (taus[j] - other) for i, other in enumerate(taus) if i != j])
    # d theta/dy: 1 for t, -rho for rho in the log-SNR, 1/rho for 1/rho.
    slope = {"velocity": 1.0, "data": math.exp(y)}.get(name, -math.exp(-y))
    return lagrange * slope


@pytest.mark.parametrize("name", [n for n in charts.charts if n != "velocity"])
def test_clocks_invert(name):
    path = paths.get("vp")
    chart = charts.get(name, path)
    for rho in (50.0, 1.0, 0.01):
        t = path.time_from_rho(rho)
        assert chart.time(chart.clock(t)) == pytest.approx(t, rel=1e-11)


def test_a_step_to_zero_noise_returns_the_denoised_point():
    path = paths.get("vp")
    s = 0.3
    for name in ("noise", "noise_log_snr", "data"):
        chart = charts.get(name, path)
        assert math.isfinite(chart.advance(s, 0.0))
        assert chart.ends_singular(0.0)
    data = charts.get("data", path)
    assert (data.ratio(s, 0.0), data.advance(s, 0.0)) == (0.0, 1.0)
    assert charts.StochasticDataChart(path, 0.5).exponential(1, s, 0.0) == 1.0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_of_tensors_is_that_of_numbers_and_has_a_derivative_at_0(k):
    """phi_k(z) = sum z^j/(j + k)!, so phi_k'(0) = 1/(k + 1)!."""
    z = torch.tensor([-30.0, -1.2, -0.3, 0.0, 0.7, 2.5], dtype=torch.float64, requires_grad=True)
    value = phi(k, z)
    expected = torch.tensor([phi(k, float(v)) for v in z.detach()], dtype=torch.float64)
    torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert float(slope[3]) == pytest.approx(1 / math.factorial(k + 1), rel=1e-12)
    h = 1e-6
    numeric = [(phi(k, float(v) + h) - phi(k, float(v) - h)) / (2 * h) for v in z.detach()]
    assert slope.tolist() == pytest.approx(numeric, rel=1e-7, abs=1e-10)


def test_the_noise_of_a_step_is_that_of_the_reverse_sde():
    """alpha^2 eta (rho_s^2 - rho_t^2) in the noise chart, sigma^2 (1 - exp(-2 eta h)) in the data chart, h in the log-SNR."""
    path = paths.get("vp")
    s, t, eta = 0.6, 0.25, 0.8
    rho = path.rho(s), path.rho(t)
    noise = charts.StochasticNoiseChart(path, eta)
    assert noise.spread(s, t) ** 2 == pytest.approx(path.alpha(t) ** 2 * eta * (rho[0] ** 2 - rho[1] ** 2), rel=1e-12)
    data = charts.StochasticDataChart(path, eta)
    step = path.log_snr(t) - path.log_snr(s)
    assert data.spread(s, t) ** 2 == pytest.approx(path.sigma(t) ** 2 * (1 - math.exp(-2 * eta * step)), rel=1e-12)


def test_a_chart_without_its_path_says_so():
    with pytest.raises(ArgumentError, match="needs a path"):
        charts.get("noise", None).scale(0.5)
    with pytest.raises(ArgumentError, match="chart must be one of"):
        charts.get("nose", None)


def test_phi_0_is_the_exponential_of_tensors_too():
    z = torch.tensor([-3.0, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(phi(0, z), z.exp())


ODE = [lambda path, name=name: charts.get(name, path) for name in charts.charts]
SDE = [lambda path, cls=cls: cls(path, 0.7) for cls in (charts.StochasticDataChart, charts.StochasticNoiseChart)]


@pytest.mark.parametrize("path_name", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("make", [*ODE, *SDE], ids=[*charts.charts, "data_sde", "noise_sde"])
def test_numbers_for_rows_are_those_of_each_row(make, path_name):
    """A chart at times of every row, or at one time and one of every row, answers as at the times of each."""
    path = paths.get(path_name)
    chart = make(path)
    s, t = ([path.time_from_rho(rho) for rho in levels] for levels in ((4.0, 1.9, 0.5), (1.1, 1.0, 0.1)))
    rows, later = (torch.tensor(times, dtype=torch.float64) for times in (s, t))
    for of_one in (chart.scale, chart.clock, chart.variable, lambda time: chart.time(chart.clock(time))):
        torch.testing.assert_close(
            of_one(rows), torch.tensor([of_one(time) for time in s], dtype=torch.float64), rtol=1e-12, atol=0
        )
    of_steps = [
        chart.advance,
        chart.ratio,
        lambda a, b: torch.stack([torch.as_tensor(m, dtype=torch.float64) for m in chart.moments(a, b, 3)]),
    ]
    if isinstance(chart, charts.ExponentialChart):
        of_steps += [lambda a, b, k=k: chart.exponential(k, a, b) for k in (1, 2, 3)]
    for of_step in of_steps:
        for first, second, pairs in (
            (rows, later, zip(s, t, strict=True)), (rows, t[2], [(a, t[2]) for a in s]), (s[0], later, [(s[0], b) for b in t]),
        ):  # fmt: skip
            each = [torch.as_tensor(of_step(a, b), dtype=torch.float64) for a, b in pairs]
            torch.testing.assert_close(of_step(first, second), torch.stack(each, -1), rtol=1e-11, atol=1e-300)
    assert [chart.ends_singular(torch.zeros(2, dtype=torch.float64)), chart.ends_singular(rows)] == [
        chart.ends_singular(0.0), False,
    ]  # fmt: skip


@pytest.mark.parametrize("make", [*ODE, *SDE], ids=[*charts.charts, "data_sde", "noise_sde"])
def test_steps_of_rows_to_no_noise_have_the_limit_of_steps_of_one(make):
    chart = make(paths.get("edm"))
    rows, none = torch.tensor([2.0, 0.7], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for of_step in (chart.advance, chart.ratio):
        expected = torch.tensor([of_step(time, 0.0) for time in rows.tolist()], dtype=torch.float64)
        torch.testing.assert_close(of_step(rows, none), expected, rtol=1e-12, atol=0)
    if isinstance(chart, charts.StochasticDataChart):
        assert torch.equal(chart.exponential(1, rows, none), chart.advance(rows, none))


def test_an_exponential_integrator_takes_no_chart_without_exponentials():
    edm = paths.get("edm")
    for name in charts.charts:
        chart = charts.get(name, edm)
        if name in ("data", "noise_log_snr"):
            assert charts.exponential_chart(chart) is chart
        else:
            with pytest.raises(ArgumentError, match=rf"\(noise_log_snr, data\), got '{name}'"):
                charts.exponential_chart(chart)


@pytest.mark.parametrize("spec", [
    "ddim", "ab:order=3,chart=data", "ab:order=3,chart=noise_log_snr", "dpmpp:order=3", "dpmpp_s:order=2", "dpm_m:order=3",
    "res_m:order=3", "exponential_rk", "gradient_estimation", "heunpp2", "seeds_2", "er_sde_3", "dpmpp_2m_sde", "dpmpp_3m_sde",
])  # fmt: skip
def test_a_run_that_ends_without_noise_ends_at_the_denoised_point_of_its_last_state(spec):
    """Whatever was known before: the log-SNR of the end is infinite, and no polynomial in it reaches there."""
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(5, generator=0)
    states = diffode.solve(field, x, solver=spec, grid=[80.0, 20.0, 5.0, 1.0, 0.3, 0.0], keep="all", generator=0).states
    torch.testing.assert_close(states[-1], field.denoised(states[-2], 0.3), rtol=0, atol=1e-13)
