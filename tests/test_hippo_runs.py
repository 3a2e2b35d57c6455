"""Runs of memories: holds and their measured orders, irregular times, and scans that all give the same numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal as scipy_signal

from diffode import hippo
from diffode.hippo import scan
from diffode.hippo.holds import polynomials
from diffode.hippo.legs import joined
from diffode.numerics.orders import fit_order

SPECS = ["legs", "legt:window=0.7", "lagt:scale=0.2", "fout:window=0.7"]
HOLDS = ["euler", "backward", "trapezoid", "gbt:theta=0.7", "zoh", "foh", "cubic", "poly:degree=2"]
WRONG = ["bilinear_held", "hippo_code", "scipy_foh"]
RANDOM = np.random.default_rng(20240229)


def one_by_one(memory, u, times, hold):
    """Every state, (L, N), a cell a step: what the fast ways are held against."""
    rule = hippo.hold_of(hold)
    steps, a = memory.measure.steps(times), rule.pieces(u[:, None], times)
    state = np.zeros(memory.order)
    if memory.measure.logarithmic and times[0] == 0:
        state[0] = u[0]
    states = [state]
    for step, own in zip(steps, a, strict=True):
        moved, inputs = rule.cell(memory.measure, memory.order, step)
        states.append(moved @ states[-1] + inputs @ own[0])
    return np.array(states)


GRIDS = {
    "uniform": np.linspace(0, 2, 150),
    "begun later": np.linspace(1, 2, 150),
    "geometric": np.geomspace(0.5, 2, 60),
    "irregular": np.concatenate([[0], np.cumsum(RANDOM.random(80) + 0.05) / 40]),
    "two steps": np.cumsum(np.where(np.arange(90) % 3, 0.02, 0.035)),
}


#: Every measure with every hold, and on every grid, but not all three at once: steps of their own take a second each.
RUNS = [(spec, hold, list(GRIDS)[(2 * i + j) % len(GRIDS)]) for i, spec in enumerate(SPECS) for j, hold in enumerate(HOLDS)]


def test_runs_have_all_pairs_of_measure_hold_and_grid():
    assert len({run[:2] for run in RUNS}) == len(SPECS) * len(HOLDS)
    assert len({run[::2] for run in RUNS}) == len(SPECS) * len(GRIDS)


@pytest.mark.parametrize(("spec", "hold", "grid"), RUNS)
def test_every_way_of_running_gives_the_same_states(spec, hold, grid):
    memory, times = hippo.get(spec, 9), GRIDS[grid]
    u, weights = RANDOM.standard_normal(len(times)), RANDOM.standard_normal(9)
    exact = one_by_one(memory, u, times, hold)
    near = {"rtol": 0, "atol": 1e-11 * np.abs(exact).max()}
    np.testing.assert_allclose(memory.run(u, times, hold, "all"), exact, **near)
    np.testing.assert_allclose(memory.run(u, times, hold), exact[-1], **near)
    np.testing.assert_allclose(memory.run(u, times, hold, 7), exact[::7], **near)
    np.testing.assert_allclose(np.concatenate(list(memory.states(u, times, hold))), exact, **near)
    np.testing.assert_allclose(memory.readout(u, times, weights, hold), exact @ weights, rtol=0, atol=3 * near["atol"])


@pytest.mark.parametrize("hold", ["zoh", "cubic"])
@pytest.mark.parametrize(
    "times", [np.linspace(0, 1, 5002), *(np.linspace(0, 1, 5002) ** p for p in (1.3, 1.005)), np.linspace(0.2, 1, 5002)]
)
def test_long_histories_of_legs_are_joined_from_blocks(times, hold):
    memory, u = hippo.get("legs", 24), RANDOM.standard_normal(5002)
    every = memory.run(u, times, hold, "all")
    np.testing.assert_allclose(memory.run(u, times, hold), every[-1], atol=1e-12)
    np.testing.assert_allclose(memory.run(u, times, hold, 100), every[::100], atol=1e-12)
    np.testing.assert_allclose(memory.run(u, times, hold, 2500), every[::2500], atol=1e-12)


@pytest.mark.parametrize("spec", ["legt", "legs"])
def test_long_runs_of_unequal_steps_keep_strides_of_any_length(spec, monkeypatch):
    """States come in parts; a stride may end in any of them, or in none."""
    monkeypatch.setattr("diffode.hippo.runs._AT_ONCE", 5 * 16)
    memory, times = hippo.get(spec, 5), np.cumsum(RANDOM.uniform(0.01, 0.02, 400))
    u = RANDOM.standard_normal(400)
    every = memory.run(u, times, "foh", "all")
    for stride in (1, 3, 16, 17, 100, 399):
        np.testing.assert_allclose(memory.run(u, times, "foh", stride), every[::stride], atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_long_runs_of_equal_steps_keep_strides_of_any_length(spec):
    memory, times = hippo.get(spec, 5), np.linspace(0.5, 1, 20_000) if spec != "legs" else np.geomspace(0.5, 1, 20_000)
    u = RANDOM.standard_normal(20_000)
    every = memory.run(u, times, "foh", "all")
    for stride in (3, 1000, 9000):
        np.testing.assert_allclose(memory.run(u, times, "foh", stride), every[::stride], atol=1e-11)
    np.testing.assert_allclose(memory.run(u, times, "foh"), every[-1], atol=1e-11)


def test_channels_are_runs_of_their_own_and_starts_go_on():
    for spec in SPECS:
        memory, times = hippo.get(spec, 7), np.linspace(0.1, 1, 40)
        u = RANDOM.standard_normal((40, 3))
        whole = memory.run(u, times, "foh", "all")
        assert whole.shape == (40, 3, 7)
        np.testing.assert_allclose(whole[:, 1], memory.run(u[:, 1], times, "foh", "all"), atol=1e-13)
        # A run that is cut goes on from its own state.
        later = memory.run(u[20:], times[20:], "foh", start=whole[20])
        np.testing.assert_allclose(later, whole[-1], atol=1e-13)
        weights = RANDOM.standard_normal((2, 7))
        expected = np.einsum("lcn,pn->lcp", whole, weights)
        np.testing.assert_allclose(memory.readout(u, times, weights, "foh"), expected, atol=1e-12)
        begun = memory.readout(u[20:], times[20:], weights, "foh", start=whole[20])
        np.testing.assert_allclose(begun, expected[20:], atol=1e-12)


def smooth(t):
    return np.cos(3 * t) + np.exp(-t) / 2


#: Rule, order for a smooth signal, and for legs (None where there is no form).
ORDERS = [("euler", 1, 1), ("backward", 1, 1), ("gbt:theta=0.7", 1, 1), ("bilinear_held", 1, 1), ("hippo_code", 1, 1),
          ("scipy_foh", 1, None), ("zoh", 1, 1), ("trapezoid", 2, 2), ("foh", 2, 2), ("poly:degree=2", 3, 3),
          ("cubic", 4, 4)]  # fmt: skip


@pytest.mark.parametrize(("hold", "order", "of_legs"), ORDERS)
def test_orders_are_those_claimed_and_public_rules_are_of_order_1(hold, order, of_legs):
    """Against the ODE's own exact answer, from exact memories at the first time."""
    cases = [("legt", 0.0, 2.0, order), ("lagt:scale=0.5", 0.0, 2.0, order), ("legs", 1.0, 2.0, of_legs)]
    for spec, first, last, expected in cases:
        if expected is None:
            with pytest.raises(ValueError, match="scipy_foh"):
                hippo.get(spec, 8).run([1.0, 2.0], [1.0, 2.0], hold)
            continue
        memory = hippo.get(spec, 8)
        exact = memory.solution(smooth, last)
        start = memory.solution(smooth, first) if spec == "legs" else None
        steps = [200, 400, 800, 1600]
        errors = []
        for count in steps:
            times = np.linspace(first, last, count + 1)
            errors.append(float(np.linalg.norm(memory.run(smooth(times), times, hold, start=start) - exact)))
        assert fit_order(steps, errors, 1e-14).slope == pytest.approx(expected, abs=0.1), (spec, errors)
        assert hippo.hold_of(hold).order == expected


def test_errors_are_those_published():
    """legt N = 8, w = 1 at T = 2, in K = 50 and 800 steps."""
    memory = hippo.get("legt", 8)
    exact = memory.solution(smooth, 2.0)
    table = {
        "euler": (0.32, 5.3e-3),
        "backward": (0.081, 5.3e-3),
        "bilinear_held": (0.042, 2.6e-3),
        "scipy_foh": (0.11, 0.010),
        "trapezoid": (1.3e-3, 4.8e-6),
        "zoh": (0.041, 2.6e-3),
        "foh": (8.4e-4, 3.3e-6),
        "cubic": (2.3e-6, 3.3e-11),
    }
    for hold, expected in table.items():
        for steps, error in zip((50, 800), expected, strict=True):
            times = np.linspace(0, 2, steps + 1)
            found = np.linalg.norm(memory.run(smooth(times), times, hold) - exact)
            assert found == pytest.approx(error, rel=0.06), (hold, steps)


def test_rules_of_scipy_are_what_public_rules_say():
    """A and B of ``cont2discrete`` without its C and D are the wrong rules, with them the right ones."""
    memory, h = hippo.get("legt", 6), 0.03
    a, b = memory.A, memory.B[:, None]
    for method, wrong in (("bilinear", "bilinear_held"), ("foh", "scipy_foh")):
        moved, inputs, *_ = scipy_signal.cont2discrete((a, b, np.eye(6), np.zeros((6, 1))), h, method)
        own_moved, own_inputs = hippo.hold_of(wrong).cell(memory.measure, 6, h)
        np.testing.assert_allclose(own_moved, moved, atol=1e-13)
        np.testing.assert_allclose(own_inputs, np.column_stack([inputs, 0 * inputs]), atol=1e-13)


def test_public_rules_of_legs_are_their_formulas():
    """hippo-code: A/t' on both sides, input at the end; the blog: A/t and A/t', input at the beginning."""
    memory, unit, r = hippo.get("legs", 6), np.eye(6), 0.8
    late, early = 1 - r, (1 - r) / r
    left = np.linalg.inv(unit - late / 2 * memory.A)
    for hold, before, ends in (("hippo_code", late, 1.0), ("bilinear_held", early, 0.0)):
        moved, inputs = hippo.hold_of(hold).cell(memory.measure, 6, r)
        np.testing.assert_allclose(moved, left @ (unit + before / 2 * memory.A), atol=1e-13)
        np.testing.assert_allclose(inputs, np.outer(left @ memory.B * before, [1.0, ends]), atol=1e-13)


@pytest.mark.parametrize("spec", SPECS)
def test_zero_order_hold_is_exact_on_steps(spec):
    memory, times = hippo.get(spec, 33), np.linspace(0, 1, 257)
    step = hippo.signals.get("step:at=0.375")  # on the grid
    exact = memory.solution(step, 1.0, breaks=step.breaks)
    assert np.abs(memory.run(step(times), times, "zoh") - exact).max() <= 1e-11
    assert np.abs(memory.run(step(times), times, "foh") - exact).max() >= 1e-4


@pytest.mark.parametrize(("hold", "degree"), [("zoh", 0), ("foh", 1), ("poly:degree=2", 2), ("cubic", 3), ("poly:degree=7", 7)])
@pytest.mark.parametrize("spec", SPECS)
def test_polynomial_holds_are_exact_on_their_polynomials_at_irregular_times(spec, hold, degree):
    memory, times = hippo.get(spec, 9), GRIDS["irregular"]
    exact = memory.solution(lambda t: (0.3 - t) ** degree, float(times[-1]))
    assert np.abs(memory.run((0.3 - times) ** degree, times, hold) - exact).max() <= 1e-11


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_signals_have_holds_of_lower_degree(count):
    times = np.array([0.0, 0.3, 0.4, 0.9, 1.0])[:count]
    for spec in SPECS:
        memory = hippo.get(spec, 5)
        for hold in ("zoh", "cubic", "trapezoid"):
            assert memory.run(np.ones(count), times, hold, "all").shape == (count, 5)
        exact = memory.solution(lambda t: t ** min(3, count - 1), times[-1]) if count > 1 else None
        if exact is not None:
            np.testing.assert_allclose(memory.run(times ** min(3, count - 1), times, "cubic"), exact, atol=1e-12)


def test_polynomials_of_steps_go_through_their_samples():
    times, u = GRIDS["irregular"], RANDOM.standard_normal((81, 2))
    for degree in (1, 2, 3, 6, 9):
        a = polynomials(u, times, degree)
        np.testing.assert_allclose(a[..., 0], u[:-1], atol=1e-12)
        np.testing.assert_allclose(a.sum(axis=-1), u[1:], atol=1e-9)


@given(st.floats(1e-3, 1e3), st.integers(1, 20), st.sampled_from(["zoh", "foh", "cubic", "trapezoid", "backward"]))
def test_legs_has_no_unit_of_time(unit, order, hold):
    memory, u = hippo.get("legs", order), np.sin(np.arange(30.0))
    times = np.arange(30.0)
    np.testing.assert_allclose(memory.run(u, unit * times, hold), memory.run(u, times, hold), atol=1e-12)


@given(st.floats(0.05, 20), st.sampled_from(["legt:window={}", "lagt:scale={}", "fout:window={}"]))
def test_other_measures_scale_with_their_unit(unit, form):
    u, times = np.sin(np.arange(30.0)), np.linspace(0, 2, 30)
    one = hippo.get(form.format(0.5), 7).run(u, times, "foh")
    other = hippo.get(form.format(0.5 * unit), 7).run(u, unit * times, "foh")
    np.testing.assert_allclose(one, other, atol=1e-11)


def test_joining_histories_is_associative():
    """Eight stretches at order 256, joined as a chain and as a tree."""
    order = 256
    memory, edges = hippo.get("legs", order), np.sort(RANDOM.random(9))
    own = [RANDOM.standard_normal((1, order)) / order for _ in range(8)]
    width = np.diff(edges)

    def joint(early, late):
        (one, long), (other, more) = early, late
        ratio = np.array([long / (long + more)])
        return joined(order, ratio, one[None], other[None])[0], long + more

    chain = (own[0], width[0])
    for k in range(1, 8):
        chain = joint(chain, (own[k], width[k]))
    parts = list(zip(own, width, strict=True))
    while len(parts) > 1:
        parts = [joint(parts[k], parts[k + 1]) for k in range(0, len(parts), 2)]
    assert np.abs(chain[0] - parts[0][0]).max() <= 2e-12
    assert memory.order == order


@pytest.mark.parametrize("order", [5, 64])
@pytest.mark.parametrize("length", [1, 2, 100, 1023])
def test_scan_kernel_transforms_and_cauchy_sums_agree(order, length):
    """The trapezoid rule with a held input, on all four matrices; legs on plain time, as in S4."""
    h, weights = 0.01, RANDOM.standard_normal(order + 1)
    for spec in ("legs", "legt:window=0.7", "lagt:scale=0.3", "fout"):
        memory = hippo.get(spec, order + (spec == "fout" and order % 2 == 0))
        c = weights[: memory.order]
        unit = np.eye(memory.order)
        m = np.linalg.solve(unit - h / 2 * memory.A, unit + h / 2 * memory.A)
        g = np.linalg.solve(unit - h / 2 * memory.A, h * memory.B)[:, None]
        u = RANDOM.standard_normal((length, 1, 1))
        start = np.zeros((1, memory.order))
        states = scan.looped(m, g, u, start)
        scale = 1e-11 * max(1.0, np.abs(states @ c).max())
        kernel = scan.kernel(c[None], m, g, length)
        cauchy = hippo.cauchy_kernel(memory, c, h, length)
        np.testing.assert_allclose(np.concatenate(list(scan.states(m, g, u, start))), states, atol=scale)
        np.testing.assert_allclose(kernel[:, 0, 0], cauchy, atol=1e-11 * max(1.0, np.abs(kernel).max()))
        np.testing.assert_allclose(scan.convolved(kernel, u)[:, 0, 0], (states @ c)[:, 0], atol=scale)
        np.testing.assert_allclose(scan.last(m, g, u, start), states[-1], atol=scale)


def test_the_response_is_what_a_pulse_leaves():
    for spec in SPECS[1:]:
        memory, weights = hippo.get(spec, 9), RANDOM.standard_normal(9)
        times = 0.01 * np.arange(200)
        pulse = memory.readout(np.eye(200)[0], times, weights, "zoh")
        np.testing.assert_allclose(memory.response(weights, 0.01, 199)[:, 0, 0], pulse[1:], atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_float32_signals_have_float32_memories(spec):
    memory, times = hippo.get(spec, 33), np.linspace(0, 2, 2000)
    u = np.sin(9 * times)
    for hold in ("zoh", "trapezoid"):
        single = memory.run(u.astype(np.float32), times, hold, "all")
        assert single.dtype == np.float32
        assert np.abs(single - memory.run(u, times, hold, "all")).max() <= 1e-4
        assert memory.run(u.astype(np.float32), times, hold).dtype == np.float32
        assert memory.readout(u.astype(np.float32), times, np.ones(33), hold).dtype == np.float32


def test_integers_are_numbers_too():
    assert hippo.get("legs", 4).run([1, 2, 3], [1, 2, 3]).dtype == np.float64


def test_steps_that_differ_by_rounding_alone_share_their_matrices():
    """Three steps again and again, as a table of times gives them, and times in float32."""
    times = np.cumsum(np.tile([0.1, 0.2, 0.3], 60)) + 5
    measure = hippo.get("legt", 4).measure
    assert len(np.unique(np.diff(times))) > 8
    steps = measure.steps(times)
    assert len(np.unique(steps)) == 3
    assert steps.sum() == pytest.approx(times[-1] - times[0], rel=1e-14)
    u = np.sin(times)
    exact = one_by_one(hippo.get("legt", 4), u, times, "foh")
    np.testing.assert_allclose(hippo.get("legt", 4).run(u, times, "foh", "all"), exact, atol=1e-12)
    single = np.linspace(0, 1, 1001, dtype=np.float32)
    memory, wave = hippo.get("legt:window=0.3", 4), np.sin(np.arange(1001))
    np.testing.assert_array_equal(memory.run(wave, single), memory.run(wave, np.linspace(0, 1, 1001)))


def test_a_step_stands_for_times_from_0_on():
    memory, u = hippo.get("legt", 4), np.sin(np.arange(50))
    np.testing.assert_array_equal(memory.run(u, 0.1), memory.run(u, 0.1 * np.arange(50)))
