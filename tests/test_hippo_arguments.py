"""Wrong arguments of memories are refused by name, with the fix; no raw error, no number that is not finite."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffode import hippo
from diffode.errors import ArgumentError, DiffodeError, NumericalError, UnknownNameError

TIMES = np.linspace(0, 1, 5)


def refused(call, *words):
    with pytest.raises(ArgumentError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("order", [0, -1, 1.5, "8", None, True, 10**9, np.nan, [3]])
def test_orders_are_whole_numbers_from_1(order):
    refused(lambda: hippo.get("legs", order), "order", "1")


def test_fourier_memories_have_odd_orders():
    refused(lambda: hippo.get("fout", 64), "odd", "63", "65")
    refused(lambda: hippo.get("fout", 2), "take 1 or 3")


def test_unknown_names_are_met_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'legs'"):
        hippo.get("leqs", 4)
    with pytest.raises(UnknownNameError, match="did you mean 'cubic'"):
        hippo.get("legs", 4).run(TIMES, TIMES, "cubik")
    with pytest.raises(UnknownNameError, match="mackey_glass"):
        hippo.signals.get("mackey-glas")
    with pytest.raises(ArgumentError, match="did you mean 'window'"):
        hippo.get("legt:windw=2", 4)
    with pytest.raises(UnknownNameError, match="inv"):
        hippo.s4d("inverse", 4)


@pytest.mark.parametrize(
    "spec",
    ["legt:window=0", "legt:window=-1", "legt:window=nan", "legt:window=inf", "legt:window=a", "legt:window=none",
     "fout:window=0", "lagt:scale=0", "lagt:alpha=-1", "lagt:beta=-1", "lagt:alpha=1e9", "legt:window=true"],
)  # fmt: skip
def test_options_of_measures_have_bounds(spec):
    refused(lambda: hippo.get(spec, 5), *spec.partition(":")[2].split("=")[:1])


def test_measures_and_holds_go_as_objects_too():
    memory = hippo.get(hippo.LegT(window=2), 4)
    assert memory.measure.spec == "legt:window=2.0"
    refused(lambda: hippo.get(hippo.LegT(), 4, window=3), "window")
    refused(lambda: hippo.Memory("legs", 4), "measure")
    assert memory.run(TIMES, TIMES, hippo.Polynomial(3)).shape == (4,)
    for options in ({"degree": -1}, {"degree": 10}, {"degree": 1.5}):
        refused(lambda options=options: hippo.Polynomial(**options), "degree")
    refused(lambda: hippo.Rule(1.5), "theta")
    refused(lambda: hippo.hold_of("euler:theta=1"), "theta")
    refused(lambda: hippo.get("legs", 4).run(TIMES, TIMES, 3), "hold")
    refused(lambda: hippo.get(3, 4), "measure")


@pytest.mark.parametrize("spec", ["legs", "legt", "lagt", "fout"])
@pytest.mark.parametrize(
    ("u", "times", "words"),
    [
        ([1, np.nan, 3, 4, 5], TIMES, ("u", "nan", "1")),
        ([1, np.inf, 3, 4, 5], TIMES, ("u", "inf")),
        ([], [], ("u", "shape (0,)")),
        (np.zeros((5, 0)), TIMES, ("u", "shape")),
        (np.zeros((5, 2, 2)), TIMES, ("u", "shape")),
        (3.0, TIMES, ("u", "shape ()")),
        (["a"] * 5, TIMES, ("u", "numbers")),
        ([[1, 2], [3]], TIMES, ("u",)),
        (np.ones(5) * 1j, TIMES, ("u", "real")),
        (None, TIMES, ("u",)),
        (np.ones(5), TIMES[:4], ("times", "(5,)")),
        (np.ones(5), TIMES[::-1], ("times", "rise")),
        (np.ones(5), [0, 1, 1, 2, 3], ("times", "rise", "index 2")),
        (np.ones(5), [0, 1, np.nan, 2, 3], ("times", "nan")),
        (np.ones(5), 0.0, ("times", "> 0")),
        (np.ones(5), -1.0, ("times", "> 0")),
        (np.ones(5), "now", ("times",)),
        (np.ones(5), None, ("times",)),
        (np.ones(5) * 1e200, TIMES, ("u", "1e+150")),
    ],
)  # fmt: skip
def test_signals_and_times_are_checked(spec, u, times, words):
    refused(lambda: hippo.get(spec, 3).run(u, times), *words)


def test_a_tensor_that_wants_gradients_is_sent_to_the_layer():
    refused(lambda: hippo.get("legs", 3).run(torch.ones(5, requires_grad=True), TIMES), "u")
    assert hippo.get("legs", 3).run(torch.ones(5), TIMES).dtype == np.float32


def test_legs_has_no_time_before_0():
    memory = hippo.get("legs", 3)
    refused(lambda: memory.run(np.ones(5), TIMES - 1), "times", "negative", "legs")
    refused(lambda: memory.run(np.ones(5), TIMES, start=np.ones(3)), "start")
    refused(lambda: memory.project(np.sin, 0.0), "now")
    refused(lambda: memory.reconstruct(np.ones(3), -0.1, 1.0), "at", "before")
    refused(lambda: memory.propagator(1.5), "ratio")
    refused(lambda: memory.gradient(-1.0), "s")


def test_arguments_of_a_memory_are_checked():
    memory = hippo.get("legt:window=0.5", 3)
    refused(lambda: memory.run(np.ones(5), TIMES, keep="first"), "keep", "last")
    for keep in (0, -3, 2.5, None):
        refused(lambda keep=keep: memory.run(np.ones(5), TIMES, keep=keep), "keep")
    refused(lambda: memory.run(np.ones(5), TIMES, start=np.ones(4)), "start", "(3,)")
    refused(lambda: memory.run(np.ones((5, 2)), TIMES, start=np.ones(3)), "start", "(2, 3)")
    refused(lambda: memory.reconstruct(np.ones(4), 0.0), "c", "3")
    refused(lambda: memory.reconstruct(1.0, 0.0), "c")
    refused(lambda: memory.reconstruct(np.ones(3), 0.1), "at", "after now")
    refused(lambda: memory.reconstruct(np.ones(3), -0.6), "window")
    refused(lambda: memory.reconstruct(np.ones(3), np.zeros((2, 2))), "at")
    refused(lambda: memory.kernel(-1.0), "lag")
    refused(lambda: memory.kernel("a"), "lag")
    refused(lambda: memory.propagator(-1.0), "step")
    refused(lambda: memory.propagator(None), "step")
    refused(lambda: memory.power(-0.5, 1.0), "p")
    refused(lambda: memory.power(1e9, 1.0), "p")
    refused(lambda: memory.exponential("x", 1.0), "mu")
    refused(lambda: memory.exponential([1.0], 1.0), "mu")
    refused(lambda: memory.sine(np.inf, 1.0), "frequency")
    refused(lambda: memory.readout(np.ones(5), TIMES, np.ones(4)), "weights")
    refused(lambda: memory.response(np.ones(3), 0.1, 0), "length")
    refused(lambda: memory.project(3, 1.0), "fn", "function")
    refused(lambda: memory.project(lambda t: t[:2], 1.0), "fn")
    refused(lambda: memory.project(lambda t: t * np.nan, 1.0), "fn", "finite")
    refused(lambda: memory.project(np.sin, "soon"), "now")
    refused(lambda: memory.project(np.sin, 1.0, breaks=["a"]), "breaks")
    refused(lambda: memory.project(np.sin, 1.0, tolerance=0), "tolerance")
    refused(lambda: hippo.get("legs", 3).transfer(-1.0), "pole")
    refused(lambda: hippo.all_pass(-1.0, 3), "pole")
    refused(lambda: hippo.get("lagt", 3).exponential(-0.5, 0.0), "mu")
    refused(lambda: hippo.get("legt", 300).spectrum(), "order", "256")


#: Things that are no argument of anything here, or of little.
ODD = [None, "x", [], {}, object(), np.array([]), np.nan, np.inf, -1, 0, 1e300, 10**400, True, b"a", len, [[1, 2], [3]],
       np.array(["a"]), 1j, torch.tensor(float("nan"))]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=[str(i) for i in range(len(ODD))])
@pytest.mark.parametrize("spec", ["legs", "legt", "lagt:alpha=0.5", "fout"])
def test_odd_arguments_are_answered_or_refused_everywhere(spec, value):
    memory, ones, later = hippo.get(spec, 5), np.ones(6), 1 + np.linspace(0, 1, 6)
    calls = [
        memory.kernel, memory.projection_kernel, memory.dual, memory.propagator, memory.transfer, memory.gradient,
        lambda v: memory.gradient(0.0, v), lambda v: memory.reconstruct(v, 0.0), lambda v: memory.reconstruct(np.ones(5), v),
        lambda v: memory.reconstruct(np.ones(5), 0.0, v), lambda v: memory.project(np.sin, v),
        lambda v: memory.project(lambda s: v, 1.0), lambda v: memory.project(np.sin, 1.0, breaks=v),
        lambda v: memory.project(np.sin, 1.0, since=v), lambda v: memory.project(np.sin, 1.0, tolerance=v),
        lambda v: memory.solution(np.sin, 1.0, since=v), lambda v: memory.power(v, 1.0), lambda v: memory.power(1.0, v),
        lambda v: memory.exponential(v, 1.0), lambda v: memory.exponential(0.1, v), memory.sine,
        lambda v: memory.run(v, later), lambda v: memory.run(ones, v), lambda v: memory.run(ones, later, v),
        lambda v: memory.run(ones, later, keep=v), lambda v: memory.run(ones, later, start=v),
        lambda v: memory.readout(ones, later, v), lambda v: memory.response(v, 0.1, 4),
        lambda v: memory.response(np.ones(5), v, 4), lambda v: hippo.get(v, 5), lambda v: hippo.get(spec, v),
        lambda v: hippo.s4d(v, 5), lambda v: hippo.s4d("inv", v), lambda v: hippo.all_pass(v, 4),
        lambda v: hippo.s4d_transfer(v, 4), lambda v: hippo.cauchy_kernel(memory, v, 0.1, 8),
        lambda v: hippo.cauchy_kernel(memory, np.ones(5), v, 8), hippo.signals.get, hippo.signals.get("ecg"),
        hippo.signals.sine, hippo.signals.white, hippo.signals.step, hippo.LegT, hippo.LagT, hippo.Polynomial, hippo.Rule,
        hippo.Hippo, lambda v: hippo.Hippo(4, v), hippo.Hippo(4), lambda v: hippo.Hippo(4)(torch.ones(1, 3, 1), v),
    ]  # fmt: skip
    for call in calls:
        try:
            found = call(value)
        except DiffodeError:
            continue
        if isinstance(found, np.ndarray):
            assert np.isfinite(found).all()


def test_a_constant_function_may_answer_with_one_number():
    np.testing.assert_allclose(hippo.get("legs", 3).project(lambda t: 2.0, 1.0), [2, 0, 0], atol=1e-14)


def test_what_grows_beyond_all_numbers_is_an_error():
    """Euler's rule is unstable with long steps; exponentials overflow."""
    memory = hippo.get("legt:window=0.01", 64)
    with pytest.raises(NumericalError, match="shorter step"):
        memory.run(np.ones(500), np.linspace(0, 5, 500), "euler")
    with pytest.raises(NumericalError, match="shorter step"):
        memory.readout(np.ones(500), np.linspace(0, 5, 500), np.ones(64), "euler")
    with pytest.raises(NumericalError, match="shorter step"):
        list(memory.states(np.ones(500), np.linspace(0, 5, 500), "euler"))
    with pytest.raises(NumericalError):
        hippo.get("legs", 4).exponential(1e4, 1.0)
    with pytest.raises(NumericalError):
        hippo.get("legs", 4).power(9.0, 1e100)
    with pytest.raises(NumericalError, match="breaks"):
        hippo.get("legs", 4).project(lambda t: np.sign(t - 0.3), 1.0)
    np.testing.assert_allclose(hippo.get("legs", 1).project(lambda t: np.sign(t - 0.3), 1.0, breaks=[0.3]), [0.4])


@given(st.data())
def test_any_signal_has_an_answer_or_a_refusal(data):
    """Numbers of any size, times with any gaps."""
    spec = data.draw(st.sampled_from(["legs", "legt:window=0.3", "lagt:scale=2", "fout"]))
    order = data.draw(st.sampled_from([1, 3, 9]))
    hold = data.draw(st.sampled_from(["euler", "backward", "trapezoid", "zoh", "foh", "cubic", "hippo_code"]))
    gaps = data.draw(st.lists(st.floats(1e-12, 1e9), min_size=1, max_size=6))
    first = data.draw(st.sampled_from([0.0, 1e-9, 1.0]))
    times = first + np.concatenate([[0], np.cumsum(gaps)])
    u = data.draw(st.lists(st.floats(-1e100, 1e100), min_size=len(times), max_size=len(times)))
    try:
        found = hippo.get(spec, order).run(u, times, hold, data.draw(st.sampled_from(["last", "all", 2])))
    except DiffodeError:
        return
    assert np.isfinite(found).all()


def test_registered_measures_go_through_every_door():
    """A measure of a user's own: a leaky mean, the first Laguerre function alone."""

    class Leaky(hippo.LagT):
        """The first function of LagT."""

        name = "leaky"

    hippo.register("leaky", Leaky)
    try:
        assert "leaky" in hippo.names()
        np.testing.assert_allclose(hippo.get("leaky:scale=2", 1).propagator(2.0), [[np.exp(-0.5)]])
    finally:
        hippo.registry._entries.pop("leaky")
