"""What is known of memories as theorems: error bounds, closures, exactness; and what does not hold of published systems."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from diffode import hippo
from diffode.hippo.polynomials import gauss


def mean_square_error(memory, c, fn, now=1.0, breaks=()):
    """The mean square over [0, now] of what a memory of legs leaves out, by exact quadrature between breaks."""
    edges = np.unique(np.concatenate([[0.0, now], breaks]))
    x, w = gauss(200)
    points = edges[:-1, None] + np.diff(edges)[:, None] * x
    weights = np.diff(edges)[:, None] * w
    gap = memory.reconstruct(c, points.ravel(), now) - fn(points.ravel())
    return float(weights.ravel() @ gap**2) / now


@given(
    st.integers(1, 40),
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True),
    st.lists(st.floats(-1, 1), min_size=7, max_size=7),
    st.floats(0.2, 5),
)
def test_the_error_of_lipschitz_signals_is_never_above_its_bound(order, knots, slopes, now):
    """sqrt(mean square) <= t L / sqrt(6 N (N + 1)), for signals of any slopes up to L between any knots."""
    edges = now * np.concatenate([[0], np.sort(knots), [1]])
    values = np.concatenate([[0], np.cumsum(np.diff(edges) * slopes[: len(edges) - 1])])
    signal = lambda t: np.interp(t, edges, values)  # noqa: E731
    memory = hippo.get("legs", order)
    # Lines between knots are exactly what the first-order hold takes.
    c = memory.run(values, edges, "foh")
    lipschitz = max(abs(slope) for slope in slopes[: len(edges) - 1])
    bound = now * lipschitz / math.sqrt(6 * order * (order + 1))
    assert math.sqrt(mean_square_error(memory, c, signal, now, edges)) <= bound * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("order", [8, 16, 64])
def test_the_bound_is_near_what_triangle_waves_reach(order):
    """The worst of them has seven tenths of it, so that a smaller constant than half would be wrong."""
    memory, worst = hippo.get("legs", order), 0.0
    for teeth in np.arange(order // 2, 2 * order):
        edges = np.concatenate([[0], (np.arange(teeth) + 0.5) / teeth, [1]])
        values = np.concatenate([[0.0], 0.5 / teeth * (-1.0) ** np.arange(teeth), [0.0]])
        c = memory.run(values, edges, "foh")
        worst = max(worst, mean_square_error(memory, c, lambda t, e=edges, v=values: np.interp(t, e, v), 1.0, edges))
    share = math.sqrt(worst) * math.sqrt(6 * order * (order + 1))
    assert 0.65 <= share <= 1


@pytest.mark.parametrize(("order", "derivative"), [(3, 1), (8, 1), (8, 3), (20, 5), (33, 2)])
def test_the_sharp_bound_is_an_equality_for_the_first_polynomial_left_out(order, derivative):
    """||f - P f||^2 <= (N-k)!/(N+k)! int (1-x^2)^k (f^(k))^2 on [-1, 1], equal for f = P_N."""
    x, w = gauss(80)
    z, weights = 2 * x - 1, 2 * w
    f = np.polynomial.Legendre.basis(order)
    inside = weights @ ((1 - z**2) ** derivative * f.deriv(derivative)(z) ** 2)
    bound = math.exp(math.lgamma(order - derivative + 1) - math.lgamma(order + derivative + 1)) * inside
    assert weights @ f(z) ** 2 == pytest.approx(bound, rel=1e-12)
    assert np.abs(hippo.get("legs", order).project(lambda r: f(2 * r - 1), 1.0)).max() <= 1e-13


@given(st.integers(2, 30), st.integers(1, 4), st.floats(0.5, 30), st.floats(0, 3))
def test_the_sharp_bound_holds_of_smooth_signals(order, derivative, frequency, phase):
    if derivative > order:
        return
    memory, (x, w) = hippo.get("legs", order), gauss(120)
    c = memory.sine(frequency, 1.0, phase=phase)
    error = 2 * mean_square_error(memory, c, lambda t: np.sin(frequency * t + phase))
    derived = (frequency / 2) ** derivative * np.sin(frequency * x + phase + derivative * np.pi / 2)
    inside = 2 * w @ ((1 - (2 * x - 1) ** 2) ** derivative * derived**2)
    bound = math.exp(math.lgamma(order - derivative + 1) - math.lgamma(order + derivative + 1)) * inside
    assert error <= bound * (1 + 1e-9) + 1e-25


@pytest.mark.parametrize("order", [1, 5, 20])
def test_legs_reproduces_polynomials_at_every_time(order):
    memory, times = hippo.get("legs", order), np.linspace(0, 3, 40) ** 1.5
    signal = lambda t: (t / 3 - 0.4) ** (order - 1)  # noqa: E731
    if order <= 4:
        states = memory.run(signal(times), times, "cubic", "all")
        for k in (1, 7, 39):
            at = times[k] * np.array([0.0, 0.3, 1.0])
            np.testing.assert_allclose(memory.reconstruct(states[k], at, times[k]), signal(at), atol=1e-11)
    for now in (0.1, 2.0):
        at = now * np.array([0.0, 0.3, 1.0])
        c = memory.solution(signal, now)
        np.testing.assert_allclose(memory.reconstruct(c, at, now), signal(at), atol=1e-11)


@pytest.mark.parametrize("order", [1, 5, 12])
def test_legt_reproduces_polynomials_once_transients_have_gone(order):
    """The closure is exact on polynomials of degree below N: the ODE that starts with their coefficients keeps to them."""
    memory = hippo.get("legt:window=0.7", order)
    signal = lambda t: (t - 0.8) ** (order - 1)  # noqa: E731
    times = np.linspace(1.0, 2.0, 101)
    held = memory.run(signal(times), times, f"poly:degree={min(9, order - 1)}", start=memory.project(signal, 1.0))
    assert np.abs(held - memory.project(signal, 2.0)).max() <= (1e-11 if order <= 10 else 1e-6)
    # A degree more, and it does not.
    more = lambda t: t**order  # noqa: E731
    held = memory.run(more(times), times, f"poly:degree={min(9, order)}", start=memory.project(more, 1.0))
    if order < 10:
        assert np.abs(held - memory.project(more, 2.0)).max() >= 1e-6


@pytest.mark.parametrize("spec", ["legt:window=0.6", "fout:window=0.6"])
@pytest.mark.parametrize("rate", [-0.3, 2.1j])
def test_the_answer_to_exponentials_is_projection_and_closure(spec, rate):
    memory = hippo.get(spec, 9)
    wave = lambda t: np.exp(rate * t).real  # noqa: E731
    long = memory.solution(wave, 0.0, since=-25.0)
    np.testing.assert_allclose(long, (memory.transfer(rate)).real, atol=1e-9)
    closure = np.abs(memory.transfer(rate) - memory.exponential(complex(rate), 0.0)).max()
    # Polynomials of a high degree are near an exponential, and the ends of a Fourier series are not.
    assert closure < 1e-6 if spec.startswith("legt") else closure > 1e-4


def fourier(order, gain):
    """A and B of the Fourier window of length 1 with its rank-one term times a gain: 2 is fout, 1 the published system."""
    memory = hippo.get("fout", order)
    normal, factor = memory.measure.normal_form(order)
    return normal - gain / 2 * factor @ factor.T, gain / 2 * memory.B


@pytest.mark.parametrize("turns", [8, 32])
@pytest.mark.parametrize("rate", [3j, -1.0])
def test_the_published_fourier_window_does_not_hold_what_is_not_periodic(turns, rate):
    """Its closure takes (u(t) + u(t-w))/2 for u(t-w). Twice the gain is right; where all is periodic both are."""
    memory = hippo.get("fout", 2 * turns + 1)
    projected = memory.exponential(complex(rate), 0.0)
    errors = {}
    for gain in (1, 2):
        a, b = fourier(memory.order, gain)
        answer = np.linalg.solve(rate * np.eye(memory.order) - a, b)
        errors[gain] = float(np.linalg.norm(answer - projected))
    np.testing.assert_allclose(fourier(memory.order, 2)[0], memory.A, atol=1e-10)
    assert errors[1] > 0.4
    assert errors[2] < 0.05
    if rate == 3j and turns == 8:
        assert errors[1] == pytest.approx(0.502, abs=0.2)
    periodic = 2j * np.pi * 3
    for gain in (1, 2):
        a, b = fourier(memory.order, gain)
        answer = np.linalg.solve(periodic * np.eye(memory.order) - a, b)
        assert np.abs(answer - memory.exponential(periodic, 0.0)).max() <= 1e-12


def test_the_fourier_system_of_scaled_time_is_stable_and_does_not_hold_its_projection():
    """A_{nk} = -n/(n-k), i pi n - 1 on the diagonal, with 1/t: all eigenvalues have real part -1, the error stays above."""
    for count in (4, 16, 64):
        n, k = np.mgrid[-count : count + 1, -count : count + 1]
        off = np.where(n == k, 1, n - k)
        a = np.where(n == k, 1j * np.pi * n - 1, -n / off)
        assert np.abs(np.linalg.eigvals(a).real + 1).max() <= 1e-10
    # On u = e^{-t}: coefficients at t = 1, from exact ones at t = 0.05, against the projection on e^{2 pi i n s/t}.
    count = 8
    n, k = np.mgrid[-count : count + 1, -count : count + 1]
    a = np.where(n == k, 1j * np.pi * n - 1, -n / np.where(n == k, 1, n - k))
    x, w = gauss(80)

    def projection(t):
        return (w * np.exp(-t * x)) @ np.exp(-2j * np.pi * x[:, None] * np.arange(-count, count + 1))

    state, clock = projection(0.05), np.linspace(np.log(0.05), 0, 4001)
    step = clock[1] - clock[0]
    moved = linalg.expm(step * a)
    half = linalg.expm(step / 2 * a)
    for tau in clock[:-1]:
        # Simpson's rule on the input, whose error is far below the truncation's.
        ones = np.ones(2 * count + 1)
        u = [np.exp(-np.exp(tau + f * step)) for f in (0, 0.5, 1)]
        state = moved @ state + step / 6 * (u[0] * moved @ ones + 4 * u[1] * half @ ones + u[2] * ones)
    assert np.linalg.norm(state - projection(1.0)) >= 0.05


def test_mamba_input_matrix_has_the_wrong_gain_at_rest():
    """B = Delta B in place of the zero-order hold's: the gain at rest is z/(1 - e^{-z}) times too large, z = |lambda| Delta."""
    for z, gain in ((0.1, 1.05), (1.0, 1.58), (5.0, 5.03)):
        moved, held = hippo.get("lagt:beta=1", 1).measure.cell(1, z, 0)
        assert held[0, 0] / (1 - moved[0, 0]) == pytest.approx(1.0, rel=1e-13)
        assert z / (1 - moved[0, 0]) == pytest.approx(gain, abs=0.006)


def test_the_clipped_start_of_s4_is_not_legs():
    """S4 clamps the rotated B to an imaginary part of 2: most of the kernel is gone at small lags."""
    memory = hippo.get("legs", 64)
    form = memory.dplr()
    b = form.vectors.conj().T @ memory.B
    # Each eigenvector in the phase that makes B imaginary, so that the clip acts fully.
    phase = 1j * np.conj(b) / np.abs(b)
    vectors = form.vectors * phase.conj()
    b = vectors.conj().T @ memory.B
    clipped = b.real + 1j * b.imag.clip(-2, 2)
    assert (np.abs(b.imag) > 2).mean() > 0.3
    lag = 0.1
    exact = memory.kernel(lag)
    gone = linalg.expm(lag * memory.A) @ (vectors @ clipped)
    unclipped = linalg.expm(lag * memory.A) @ (vectors @ b)
    assert np.linalg.norm(unclipped - exact) <= 1e-10 * np.linalg.norm(exact)
    assert np.linalg.norm(gone - exact) >= 0.1 * np.linalg.norm(exact)


def test_the_diagonal_of_legs_does_not_come_near_its_impulse_response():
    """The limit of S4D-LegS is weak: in L2 the response stays 69 % off at n = 0, for every N."""
    w = np.linspace(-2000, 2000, 40_001)
    for order in (16, 64):
        true = hippo.get("legs", order).transfer(1j * w)[:, 0]
        diagonal = hippo.s4d_transfer(1j * w, order)[:, 0]
        share = math.sqrt((np.abs(diagonal - true) ** 2).sum() / (np.abs(true) ** 2).sum())
        assert share == pytest.approx(0.69, abs=0.03)
