"""Measures of memories: matrices, kernels, coefficients, propagators and structure, each against mathematics."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, linalg, special

from diffode import hippo
from diffode.hippo import legs
from diffode.hippo.polynomials import gauss, laguerre, legendre, legendre_of_exponential

SPECS = ["legs", "legt:window=0.7", "lagt", "lagt:alpha=0.5,beta=0.3,scale=0.4", "lagt:alpha=-0.5,beta=1", "fout:window=0.7"]
CLOSED = [spec for spec in SPECS if spec.startswith(("legs", "lagt"))]
ORDERS = [1, 3, 9, 33]


def size(values):
    return max(1.0, float(np.abs(values).max()))


def clock(memory, step):
    """A step as a length of the clock."""
    return -np.log(step) if memory.measure.logarithmic else step


@pytest.mark.parametrize("order", [3, 32])
def test_legs_and_legt_have_the_published_matrices(order):
    n, k = np.mgrid[:order, :order]
    both = np.sqrt((2 * n + 1.0) * (2 * k + 1))
    published = -np.where(n > k, both, np.where(n == k, n + 1.0, 0))
    np.testing.assert_allclose(hippo.get("legs", order).A, published, rtol=1e-14)
    translated = -both * np.where(k < n, 1.0, (-1.0) ** (n - k)) / 0.7
    np.testing.assert_allclose(hippo.get("legt:window=0.7", order).A, translated, rtol=1e-14)
    np.testing.assert_allclose(hippo.get("legt:window=0.7", order).B, np.sqrt(2 * n[:, 0] + 1) / 0.7, rtol=1e-14)
    np.testing.assert_allclose(hippo.get("lagt:scale=3", order).A, -(np.eye(order) / 2 + np.tri(order, k=-1)) / 3, rtol=1e-14)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_kernel_is_the_exponential_of_the_matrix_on_the_input(spec, order):
    memory = hippo.get(spec, order)
    lags = np.array([0.0, 0.03, 0.4, 0.7, 2.0])
    exact = np.stack([linalg.expm(x * memory.A) @ memory.B for x in lags])
    assert np.abs(memory.kernel(lags) - exact).max() <= 1e-12 * size(exact)


@pytest.mark.parametrize("spec", CLOSED)
@pytest.mark.parametrize("order", ORDERS)
def test_kernel_and_dual_are_biorthogonal(spec, order):
    """int K_m g_n dx = delta: what is reconstructed has the coefficients that it was reconstructed from."""
    memory = hippo.get(spec, order)
    if spec == "legs":
        r, w = gauss(order)
        lags, weights = -np.log(r), w / r
    else:
        alpha, scale = memory.measure.alpha, memory.measure.scale
        x, w = special.roots_genlaguerre(order, alpha)
        lags, weights = scale * x, scale * w * np.exp(x) * x**-alpha
    products = (memory.kernel(lags) * weights[:, None]).T @ memory.dual(lags)
    assert np.abs(products - np.eye(order)).max() <= 1e-11


def test_laguerre_functions_stay_right_where_the_exponential_alone_underflows():
    """At x = 1700, e^{-x/2} is 0 in float64, but the functions of order 500 are about 0.1 there."""
    found = laguerre(501, 0.0, 0.5, np.array([1700.0]))[:, 0]
    with mpmath.workdps(400):
        for n in (300, 420, 500):
            exact = mpmath.exp(-850) * mpmath.laguerre(n, 0, 1700)
            assert abs(found[n] - float(exact)) <= 1e-10 * max(abs(float(exact)), 1e-3)
    assert abs(found[500]) > 1e-2


@pytest.mark.parametrize("order", [8, 32])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.97])
def test_the_legs_propagator_is_the_exponential_to_the_last_digits(order, ratio):
    """mpmath in 60 digits: M(r) = e^{A ln(1/r)}, without an exponential of a matrix."""
    with mpmath.workdps(60):
        # The matrix in exact square roots: float64's entries are rounded.
        a = mpmath.matrix(order, order)
        for n in range(order):
            a[n, n] = -(n + 1)
            for k in range(n):
                a[n, k] = -mpmath.sqrt((2 * n + 1) * (2 * k + 1))
        exact = np.array((mpmath.expm(a * -mpmath.log(mpmath.mpf(ratio)))).tolist(), dtype=float)
    found = hippo.get("legs", order).propagator(ratio)
    assert np.abs(found - exact).max() <= 1e-13
    assert np.triu(found, 1).any() == np.False_


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("step", [0.2, 0.9])
def test_propagators_are_exponentials_and_compose(spec, step):
    memory = hippo.get(spec, 17)
    once = memory.propagator(step)
    np.testing.assert_allclose(once, linalg.expm(clock(memory, step) * memory.A), atol=1e-12)
    twice = step * step if memory.measure.logarithmic else 2 * step
    np.testing.assert_allclose(memory.propagator(twice), once @ once, atol=1e-12)


def test_a_long_step_of_legs_at_order_256_keeps_its_digits():
    one, two = 0.8, 0.65
    memory = hippo.get("legs", 256)
    assert np.abs(memory.propagator(one) @ memory.propagator(two) - memory.propagator(one * two)).max() <= 1e-11
    assert memory.propagator(0.0).any() == np.False_
    np.testing.assert_array_equal(memory.propagator(1.0), np.eye(256))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("step", [0.3, 0.95])
def test_a_step_is_exact_for_polynomial_inputs(spec, degree, step):
    """Against the exponential of the augmented matrix, in the clock; for legs against quadrature of the ODE in time."""
    memory = hippo.get(spec, 9)
    moved, inputs = memory.measure.cell(9, step, degree)
    np.testing.assert_allclose(moved, memory.propagator(step), atol=1e-13)
    for i in range(degree + 1):
        if spec == "legs":
            # dc/dt = (A c + B x^i)/t from t = step to 1, x = (t - step)/(1 - step).
            rate = lambda t, c, i=i: (memory.A @ c + memory.B * ((t - step) / (1 - step)) ** i) / t  # noqa: E731
            exact = integrate.solve_ivp(rate, (step, 1), np.zeros(9), rtol=1e-11, atol=1e-13, method="DOP853").y[:, -1]
        else:
            rate = lambda t, c, i=i: memory.A @ c + memory.B * (t / step) ** i  # noqa: E731
            exact = integrate.solve_ivp(rate, (0, step), np.zeros(9), rtol=1e-11, atol=1e-13, method="DOP853").y[:, -1]
        assert np.abs(inputs[:, i] - exact).max() <= 1e-9 * size(exact)


@pytest.mark.parametrize("power", [-0.25, 0.0, 0.5, 1.0, 2.3, 5.0])
def test_legs_has_powers_in_closed_form(power):
    """c_n = t^p sqrt(2n+1) prod (p-j) / prod (p+j+1), for real powers too."""
    found = hippo.get("legs", 12).power(power, 1.7)
    with mpmath.workdps(40):
        for n in range(12):
            shifted = lambda r, n=n: mpmath.sqrt(2 * n + 1) * mpmath.legendre(n, 2 * r - 1) * (1.7 * r) ** power  # noqa: E731
            # r = y^4 leaves no singular derivative that matters.
            exact = float(mpmath.quad(lambda y, f=shifted: 4 * y**3 * f(y**4), [0, 0.5, 1]))
            assert abs(found[n] - exact) <= 1e-12


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rate", [0.4, -0.2, 3j, -0.02 + 9j])
def test_exponentials_and_sines_have_closed_forms(spec, rate):
    """Against adaptive quadrature of the projection."""
    memory = hippo.get(spec, 21)
    found = memory.exponential(rate, 1.3)
    # Some of these grow backwards, so that more of the past counts.
    by_quadrature = memory.project(lambda s: np.exp(rate * s), 1.3, since=0 if spec == "legs" else -600)
    assert np.abs(found - by_quadrature).max() <= 1e-12 * size(found)
    phased = memory.sine(7.0, 1.3, phase=0.4)
    assert np.abs(phased - memory.project(lambda s: np.sin(7 * s + 0.4), 1.3)).max() <= 1e-12


@pytest.mark.parametrize("z", [0.3, -5.0, 60.0, -300.0, 40j, -2 + 7j, -300 + 20j])
def test_bessel_coefficients_have_all_their_digits(z):
    found = legendre_of_exponential(12, z)
    with mpmath.workdps(40):
        for n in (0, 1, 5, 11):
            integrand = lambda r, n=n: mpmath.legendre(n, 2 * r - 1) * mpmath.exp(mpmath.mpmathify(z) * r)  # noqa: E731
            exact = complex(mpmath.sqrt(2 * n + 1) * mpmath.quad(integrand, [0, 0.25, 0.5, 0.75, 1]))
            assert abs(found[n] - exact) <= 1e-12 * abs(exact)


def test_powers_of_other_measures_are_projections_of_a_signal_that_begins_at_0():
    for spec in SPECS[1:]:
        memory = hippo.get(spec, 9)
        for power, now in ((0.0, 0.4), (0.5, 0.4), (2.3, 0.7), (3.0, 2.0)):
            lag = lambda x, p=power, t=now: (t - x) ** p  # noqa: E731
            upper = min(memory.measure.window, now)
            exact = [
                integrate.quad(lambda x, n=n, m=memory, f=lag: m.projection_kernel(x)[n] * f(x), 0, upper, epsabs=1e-12)[0]
                for n in (0, 3, 8)
            ]
            assert np.abs(memory.power(power, now)[[0, 3, 8]] - exact).max() <= 1e-8


@pytest.mark.parametrize("spec", SPECS)
def test_the_transfer_function_is_the_resolvent_and_the_answer_to_exponentials(spec):
    memory = hippo.get(spec, 21)
    s = np.array([0.3 + 1j, 2.0, 9j])
    exact = np.stack([np.linalg.solve(value * np.eye(21) - memory.A, memory.B) for value in s])
    assert np.abs(memory.transfer(s) - exact).max() <= 1e-12 * size(exact)
    if memory.measure.closed and not memory.measure.logarithmic:
        np.testing.assert_allclose(memory.exponential(0.3, 1.0), memory.transfer(0.3).real * np.exp(0.3), atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("order", [1, 9, 33])
def test_ladders_give_products_and_solutions_with_the_matrix(spec, order):
    memory = hippo.get(spec, order)
    vectors = np.random.default_rng(1).standard_normal((order, 3))
    np.testing.assert_allclose(memory.measure.applied(order, vectors), memory.A @ vectors, atol=1e-12 * size(memory.A))
    for factor in (0.01, 0.3, 2.0):
        found = memory.measure.solved(order, factor, vectors)
        np.testing.assert_allclose(found - factor * memory.A @ found, vectors, atol=1e-12 * size(found) * size(memory.A))


@pytest.mark.parametrize("spec", ["legs", "legt", "lagt:beta=0", "lagt:beta=1", "lagt:beta=0.3,scale=2", "fout"])
@pytest.mark.parametrize("order", [1, 33])
def test_the_matrix_is_diagonal_plus_low_rank(spec, order):
    memory = hippo.get(spec, order)
    form = memory.dplr()
    assert np.abs(form.matrix() - memory.A).max() <= 1e-12 * size(memory.A)
    np.testing.assert_allclose(form.vectors.conj().T @ form.vectors, np.eye(order), atol=1e-12)
    # The normal part is a multiple of the identity plus a skew matrix.
    assert np.ptp(form.eigenvalues.real) == 0
    assert form.factor.shape[1] == (2 if spec == "legt" else 1)


#: Condition numbers of eigenvectors and spectral radii, from matrices in many digits.
CONDITIONS = [("legs", 8, 7.7e4), ("legs", 16, 8.3e10), ("legs", 32, np.inf), ("legt", 8, 2.8e3), ("legt", 16, 9.3e7),
              ("fout", 17, 13), ("fout", 65, 42)]  # fmt: skip


@pytest.mark.parametrize(("spec", "order", "condition"), CONDITIONS)
def test_eigenvectors_are_as_ill_conditioned_as_they_are(spec, order, condition):
    found = hippo.get(spec, order).spectrum()
    assert found.condition == pytest.approx(condition, rel=0.05)
    assert found.diagonalisable == (condition < 1e8)


def test_spectra_are_right_where_float64_gives_rounding():
    """legt at order 64: the radius is 120.92, NumPy says over 200."""
    memory = hippo.get("legt", 64)
    found = memory.spectrum().eigenvalues
    assert np.abs(found).max() == pytest.approx(120.92, abs=0.01)
    assert np.abs(np.linalg.eigvals(memory.A)).max() > 150
    # The sum of eigenvalues is the trace; and the scale is the window's.
    assert found.sum().real == pytest.approx(np.trace(memory.A), rel=1e-12)
    assert hippo.get("legt:window=2", 8).spectrum().abscissa == pytest.approx(-4.69 / 2, abs=0.01)
    np.testing.assert_allclose(hippo.get("legs", 8).spectrum().eigenvalues, -np.arange(1, 9.0))
    for order, abscissa in ((9, -1.05), (33, -0.67), (129, -0.46)):
        assert hippo.get("fout", order).spectrum().abscissa == pytest.approx(abscissa, abs=0.01)


@pytest.mark.parametrize("order", [15, 16, 17, 40])
def test_poles_of_legt_are_roots_of_the_pade_denominator(order):
    poles = hippo.get("legt:window=0.5", order).spectrum().eigenvalues * 0.5
    assert len(poles) == order
    with mpmath.workdps(80):
        _, bottom = mpmath.pade([(-1) ** k / mpmath.factorial(k) for k in range(2 * order)], order - 1, order)
        for pole in poles[:4]:
            value = mpmath.polyval(bottom[::-1], mpmath.mpmathify(complex(pole)))
            slope = mpmath.polyval(bottom[::-1], mpmath.mpmathify(complex(pole)), derivative=True)[1]
            assert abs(value / slope) <= 1e-12 * abs(pole)


@pytest.mark.parametrize("order", [2, 9, 32])
def test_the_diagonal_of_legs_answers_by_its_exact_law(order):
    """(s - A_D)^{-1} B/2 = (s - A)^{-1} B / (1 + Pi(s)), |Pi(i w)| = w/sqrt(N^2 + w^2), 1 - B^T (s - A)^{-1} B = Pi(s)."""
    form, b = hippo.get("legs", order).dplr(), hippo.get("legs", order).B
    s = np.array([0.3 + 2j, 40j, 1 + 100j, 3.7])
    diagonal = np.stack([form.vectors @ (form.vectors.conj().T @ b / 2 / (v - form.eigenvalues)) for v in s])
    assert np.abs(hippo.s4d_transfer(s, order) - diagonal).max() <= 1e-12 * size(diagonal)
    np.testing.assert_allclose(1 - hippo.get("legs", order).transfer(s) @ b, hippo.all_pass(s, order), atol=1e-12)
    w = np.array([0.1, 1.0, order, 1e3])
    np.testing.assert_allclose(np.abs(hippo.all_pass(1j * w, order)), w / np.hypot(order, w), rtol=1e-12)


def test_initialisations_of_s4d_are_the_published_ones():
    assert hippo.s4d("real", 3).tolist() == [-1, -2, -3]
    np.testing.assert_allclose(hippo.s4d("lin", 6), -0.5 + 1j * np.pi * np.arange(3))
    np.testing.assert_allclose(hippo.s4d("inv", 6), -0.5 + 6j / np.pi * (6 / (2 * np.arange(3) + 1) - 1))
    own, inverse = hippo.s4d("legs", 64), hippo.s4d("inv", 64)
    assert own[0].imag == pytest.approx(1303.3, abs=0.1)
    assert own[-1].imag == pytest.approx(0.264, abs=1e-3)
    assert inverse[0].imag / own[0].imag == pytest.approx(1 - 0.015, abs=1e-3)  # its largest frequency is right
    assert np.median(inverse.imag) / np.median(own.imag) == pytest.approx(0.779, abs=0.002)  # its median is not


@pytest.mark.parametrize("order", [4, 8, 12])
def test_what_legt_takes_for_the_leaving_signal_is_the_pade_approximant_of_the_delay(order):
    """In mpmath: sum (-1)^k sqrt(2k+1) c_k answers e^{st} with the [N-1/N] approximant of e^{-s}."""
    with mpmath.workdps(60):
        a, b = mpmath.matrix(order, order), mpmath.matrix(order, 1)
        for n in range(order):
            b[n] = mpmath.sqrt(2 * n + 1)
            for k in range(order):
                a[n, k] = -b[n] * mpmath.sqrt(2 * k + 1) * (1 if k < n else (-1) ** (n - k))
        np.testing.assert_allclose(hippo.get("legt", order).A, np.array(a.tolist(), float), rtol=1e-14)
        top, bottom = mpmath.pade([(-1) ** k / mpmath.factorial(k) for k in range(2 * order)], order - 1, order)
        for s in (mpmath.mpc(0, 3), mpmath.mpf("0.7"), mpmath.mpc(-1, 2)):
            state = mpmath.lu_solve(s * mpmath.eye(order) - a, b)
            estimate = sum((-1) ** k * mpmath.sqrt(2 * k + 1) * state[k] for k in range(order))
            assert abs(estimate - mpmath.polyval(top[::-1], s) / mpmath.polyval(bottom[::-1], s)) <= 1e-30


@pytest.mark.parametrize("order", [8, 64, 256])
def test_the_delay_of_legt_amplifies_no_frequency(order):
    memory = hippo.get("legt:window=0.5", order)
    w = np.array([0.3, 1.0, 2.0, 5.0]) * order
    estimate = memory.transfer(1j * w / 0.5) @ ((-1.0) ** np.arange(order) * np.sqrt(2 * np.arange(order) + 1))
    assert np.abs(estimate).max() <= 1 + 1e-12
    assert abs(estimate[0] - np.exp(-1j * w[0])) <= 1e-3


@given(st.integers(1, 40), st.floats(0.01, 1.0))
def test_legs_contracts_by_the_root_of_the_ratio(order, ratio):
    assert np.linalg.norm(hippo.get("legs", order).propagator(ratio), 2) <= np.sqrt(ratio) * (1 + 1e-10)


def test_the_contraction_is_sharp_in_the_limit():
    """||M(1/2)|| at N = 1, 2, 4, 8, 16 rises to sqrt(1/2)."""
    found = [np.linalg.norm(hippo.get("legs", n).propagator(0.5), 2) for n in (1, 2, 4, 8, 16)]
    np.testing.assert_allclose(found, [0.5, 0.68301, 0.707047, 0.70710678, 0.7071067812], atol=5e-6)
    assert np.linalg.norm(hippo.get("legs", 256).propagator(0.9), 2) <= np.sqrt(0.9) * (1 + 1e-10)


@pytest.mark.parametrize("order", [1, 8, 64])
def test_the_gradient_of_legs_at_its_ends_and_its_middle(order):
    """dc/du(s) has the size N/t exactly at s = 0 and s = t, and sqrt(2N/pi)/t about the middle."""
    memory, now = hippo.get("legs", order), 1.7
    ends = np.linalg.norm(memory.gradient([0.0, now], now), axis=-1)
    np.testing.assert_allclose(ends, order / now, rtol=1e-13)
    if order == 64:
        assert np.linalg.norm(memory.gradient(now / 2, now)) == pytest.approx(np.sqrt(2 * order / np.pi) / now, rel=0.01)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_what_a_short_pulse_leaves(spec):
    """The memory of a signal that is 1 on a short interval, over its length."""
    memory, now, width = hippo.get(spec, 9), 1.5, 1e-3
    middle = 1.2
    times = np.array([1e-6, middle - width / 2, middle + width / 2, now])
    pulse = memory.run([0.0, 1.0, 0.0, 0.0], times, "zoh") / width
    assert np.abs(pulse - memory.gradient(middle, now)).max() <= 1e-4 * size(pulse)


def test_gradients_of_held_signals_are_integrals_over_cells():
    memory, times = hippo.get("legs", 32), np.linspace(0, 2, 9)
    jacobian = np.stack([memory.run(np.eye(9)[k], times, "zoh") for k in range(8)])
    x, w = gauss(20)
    for k in range(8):
        points = times[k] + 0.25 * x
        np.testing.assert_allclose(jacobian[k], 0.25 * w @ memory.gradient(points, 2.0), atol=1e-13)


@pytest.mark.parametrize("spec", SPECS)
def test_what_a_memory_can_hold_it_holds(spec):
    """Polynomials of degree below N (of half a turn per window and more for fout: its own sines) are reproduced."""
    memory = hippo.get(spec, 9)
    if spec.startswith("fout"):
        signal = lambda s: 1 + np.sin(2 * np.pi * 3 * s / 0.7) - np.cos(2 * np.pi * s / 0.7)  # noqa: E731
    elif spec.startswith("lagt"):
        beta, scale = memory.measure.beta, memory.measure.scale
        decayed = lambda s: (1 - beta) / 2 * (s - 2) / scale  # noqa: E731
        alpha = memory.measure.alpha
        signal = lambda s: ((2 - s) / scale) ** alpha * np.exp(decayed(s)) * (1 + (2 - s) ** 2) * (s < 2)  # noqa: E731
        if alpha:
            # x^alpha is not smooth at the present: the coefficients come from Gauss-Laguerre nodes.
            x, w = special.roots_genlaguerre(40, alpha)
            lags = scale * x
            c = scale * (w * np.exp(x) * x**-alpha * signal(2 - lags)) @ memory.kernel(lags)
            at = 2 - scale * np.array([3.0, 1.0, 0.3])
            np.testing.assert_allclose(memory.reconstruct(c, at, 2.0), signal(at), atol=1e-9)
            return
    else:
        signal = lambda s: 1 - s + 0.3 * s**8  # noqa: E731
    at = np.array([1.4, 1.7, 1.99])
    np.testing.assert_allclose(memory.reconstruct(memory.project(signal, 2.0), at, 2.0), signal(at), atol=1e-10)


def test_polynomials_are_orthonormal():
    x, w = gauss(40)
    np.testing.assert_allclose((legendre(40, x) * w) @ legendre(40, x).T, np.eye(40), atol=1e-13)
    early, late = legs.join(12, 0.3)
    # A constant on both parts is that constant.
    np.testing.assert_allclose((early + late)[:, 0], np.eye(12)[0], atol=1e-14)
