"""References: closed forms against integration, group property, and the error estimate."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given

import diffode
from diffode import Field, paths, testing
from diffode.errors import ArgumentError, NumericalError
from diffode.flows import flow_states
from diffode.flows.integrated import integrated_flow
from diffode.numerics.quantiles import quantile_map

METHODS = {
    "gauss1d": "closed-form", "gauss2d": "closed-form", "gauss64-powerlaw": "closed-form", "gauss1024-lowrank": "closed-form",
    "bimodal1d": "quantile", "stiff-pair": "quantile", "line16": "quantile", "ring8": "dop853", "digits-empirical": "dop853",
}  # fmt: skip


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m != "dop853"])
def test_closed_forms_agree_with_integration(name, path):
    field = diffode.exact_field(name, path)
    start, stop = field.path.time_from_rho(20.0), field.path.time_from_rho(0.05)
    x = field.marginal(6, start, generator=2)
    end = diffode.reference(field, x, start, stop)
    assert end.method == METHODS[name]
    integrated, errors = integrated_flow(field, x, start, stop, 1e-12, False, x.shape[1:])
    assert (end.x - integrated).abs().max() < 1e-9 * max(1.0, field.scale)
    assert end.error_estimate < 1e-10 * max(1.0, field.scale)
    assert errors.max() < 1e-9 * max(1.0, field.scale)


# Points are integrated as "ring8" is, in 64 dimensions.
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "digits-empirical" else n for n in METHODS])
def test_there_and_back_again(name):
    field = diffode.exact_field(name, "edm")
    x = field.marginal(5, 0.05, generator=1)
    up = diffode.reference(field, x, 0.05, 60.0, 1e-12)
    back = diffode.reference(field, up.x, 60.0, 0.05, 1e-12)
    assert (back.x - x).abs().max() < 1e-8 * max(1.0, field.scale)


def test_integration_agrees_with_a_run_of_high_order():
    """The eighth-order reference against four thousand steps of UniPC-3 on ring8."""
    field = diffode.exact_field("ring8", "vp")
    x = field.prior(10, generator=0)
    end = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-12)
    fine = diffode.solve(field, x, solver="unipc:order=3", grid="log_snr", steps=4000).x
    assert (end.x - fine).abs().max() < 1e-8


def test_the_error_estimate_bounds_the_error():
    field = diffode.exact_field("grid25", "edm")
    x = field.prior(20, generator=0)
    best = diffode.reference(field, x, 80.0, 0.002, 1e-13, use_cache=False).x
    for tolerance in (1e-6, 1e-8, 1e-10):
        end = diffode.reference(field, x, 80.0, 0.002, tolerance, use_cache=False)
        errors = (end.x - best).norm(dim=1)
        assert (errors <= end.errors + 1e-11).all()
        assert end.error_estimate < 1e3 * tolerance


@pytest.mark.parametrize("name", ["gauss2d", "bimodal1d", "ring8", "digits-empirical"])
def test_flows_go_on_to_zero_noise(name):
    field = diffode.exact_field(name, "edm")
    x = field.prior(4, generator=0)
    near = diffode.reference(field, x, 80.0, 1e-5, 1e-10).x
    assert (diffode.reference(field, x, 80.0, 0.0, 1e-10).x - near).abs().max() < 1e-4


def test_the_gaussian_flow_changes_log_density_by_the_eigenvalues():
    """log p_u(Phi(x)) - log p_t(x) = -1/2 sum log(l_i(u)/l_i(t))."""
    field = diffode.exact_field("gauss64-powerlaw", "edm")
    x = field.marginal(3, 5.0, generator=0)
    end = diffode.reference(field, x, 5.0, 0.1).x
    change = field.log_prob(end, 0.1) - field.log_prob(x, 5.0)
    expected = -0.5 * ((field.target.variance + 0.01) / (field.target.variance + 25)).log().sum()
    assert torch.allclose(change, expected.expand(3), rtol=1e-12)


def test_quantiles_hold_far_into_both_tails():
    law = (np.array([0.3, 0.7]), np.array([-1.0, 2.0]), np.array([0.5, 1.0]))
    x = np.array([-30.0, -8.0, 0.0, 9.0, 40.0])
    y, errors = quantile_map(law, law, x)
    assert np.allclose(y, x, rtol=1e-12, atol=1e-12)
    assert errors.max() < 1e-10


def test_a_user_field_without_a_path_is_integrated():
    field = Field.from_velocity(lambda x, t: -x)
    end = diffode.reference(field, torch.ones(2, 3, dtype=torch.float64), 1.0, 0.0, 1e-11)
    assert end.method == "dop853"
    assert (end.x - np.e).abs().max() < 1e-9
    assert field.nfe == 0


def test_images_keep_their_shape_and_dtype():
    field = diffode.exact_field("digits-gmm10", "edm")
    x = field.prior(2, generator=0, dtype=torch.float32).reshape(2, 8, 8)
    end = diffode.reference(field, x, 80.0, 1.0, 1e-6)
    assert (end.x.shape, end.x.dtype) == (x.shape, torch.float32)


def test_integrated_references_are_cached_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path))
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    first = diffode.reference(field, x, 80.0, 1.0)
    (file,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr("scipy.integrate.solve_ivp", None)
    assert torch.equal(diffode.reference(field, x, 80.0, 1.0).x, first.x)
    with pytest.raises(TypeError):
        diffode.reference(field, x, 80.0, 0.9)
    monkeypatch.undo()
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path))
    file.write_bytes(b"damaged")
    assert torch.equal(diffode.reference(field, x, 80.0, 1.0).x, first.x)
    monkeypatch.setenv("DIFFODE_CACHE", "/proc/nowhere")
    assert torch.equal(diffode.reference(field, x, 80.0, 1.0).x, first.x)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gauss2d", "edm"), ("gauss2d", "vp"), ("line16", "edm"), ("ring8", "edm"), ("ring8", "vp"),
        # Paths are told apart by the others, in fewer dimensions.
        pytest.param("line16", "vp", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_states_at_many_times_are_those_of_references(name, path):
    field = diffode.exact_field(name, path)
    times = [field.path.time_from_rho(rho) for rho in (40.0, 3.0, 0.7, 0.01)]
    x = field.marginal(5, times[0], generator=1)
    states = flow_states(field, x, times, 1e-9)
    assert torch.equal(states[0], x)
    assert field.nfe == 0
    for t, state in zip(times[1:], states[1:], strict=True):
        exact, _ = integrated_flow(field, x, times[0], t, 1e-12, False, x.shape[1:])
        assert (state - exact).abs().max() < 1e-8 * field.scale
    torch.testing.assert_close(flow_states(field, x, times[::3], 1e-9)[1], states[-1], rtol=0, atol=1e-7)


def test_states_are_those_of_any_field_in_any_shape_and_dtype():
    """Of a normal law with variance 4 the exact flow shrinks x by sqrt((4 + u^2)/(4 + t^2))."""
    field = Field.from_denoised(lambda x, t: 4 * x / (4 + t**2), paths.get("edm"))
    x = field.path.prior((2, 3, 5), generator=0).float()
    states = flow_states(field, x, [80.0, 9.0, 1.0])
    assert (states.shape, states.dtype) == ((3, 2, 3, 5), torch.float32)
    for t, state in zip((80.0, 9.0, 1.0), states, strict=True):
        torch.testing.assert_close(state, x * ((4 + t**2) / (4 + 80.0**2)) ** 0.5, rtol=1e-5, atol=1e-5)
    with pytest.raises(ArgumentError, match="must have a path"):
        flow_states(Field.from_velocity(lambda x, t: -x), x, [1.0, 0.5])
    singular = Field.from_denoised(lambda x, t: x / (t > 5), paths.get("edm"))
    for call in (lambda: flow_states(singular, x, [80.0, 9.0, 1.0]), lambda: diffode.reference(singular, x, 80.0, 1.0, 1e-6)):
        with pytest.raises(NumericalError, match="non-finite values"):
            call()
        assert singular.nfe == 0
    for times in ([80.0], [80.0, 80.0], [80.0, 80.0, 1.0], [80.0, 1.0, 9.0], []):
        with pytest.raises(ArgumentError, match="times must fall or rise"):
            flow_states(field, x, times)


def test_states_at_two_times_are_cached_and_split_by_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path))
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(7, generator=0)
    whole = flow_states(field, x, (80.0, 1.0), 1e-10)
    with monkeypatch.context() as broken:
        broken.setattr("scipy.integrate.solve_ivp", None)
        assert torch.equal(flow_states(field, x, (80.0, 1.0), 1e-10), whole)
        for other in ((80.0, 0.9), (80.0, 5.0, 1.0)):
            with pytest.raises(TypeError):
                flow_states(field, x, other, 1e-10)
    monkeypatch.setattr("diffode.flows.integrated.STATE_SIZE", 6)
    for times in ((80.0, 1.0), (80.0, 5.0, 1.0)):
        pieces = flow_states(field, x, times, 1.1e-10)
        torch.testing.assert_close(pieces[[0, -1]], whole, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 1e-20}, "tolerance must lie"),
        ({"tolerance": "fine"}, "tolerance must be a number, got 'fine'"),
        ({"tolerance": None}, "tolerance must be a number, got None"),
        ({"start": [[1.0]]}, r"start must be a number, got \[\[1.0\]\]"),
        ({"stop": torch.ones(2)}, "stop must be a number"),
        ({"stop": True}, "stop must be a number, got True"),
        ({"start": float("nan")}, "start must be a finite time"),
        ({"stop": -1.0}, "stop must be a finite time"),
        ({"x": torch.full((2, 2), float("inf"))}, "x must be a finite float32"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    given = {"x": torch.ones(2, 2), "start": 1.0, "stop": 0.5, **arguments}
    with pytest.raises(ArgumentError, match=message):
        diffode.reference(diffode.exact_field("ring8", paths.get("edm")), **given)


@pytest.mark.parametrize("name", ["bimodal1d", "line16"])
def test_points_hundreds_of_deviations_out_are_followed(name):
    """Far out the nearest tail decides: the flow is that of its one component, here against integration."""
    field = diffode.exact_field(name, "edm")
    x = field.prior(3, generator=0) * 100
    end = diffode.reference(field, x, 80.0, 0.002)
    integrated, _ = integrated_flow(field, x, 80.0, 0.002, 1e-11, False, x.shape[1:])
    assert end.method == "quantile"
    assert (end.x - integrated).abs().max() < 1e-7 * integrated.abs().max()


def test_a_field_that_gives_nan_is_named_not_waited_for():
    with pytest.raises(NumericalError, match="non-finite"):
        diffode.reference(Field.from_velocity(lambda x, t: x * torch.nan), torch.ones(1, 2), 1.0, 0.0)
    with pytest.raises(ArgumentError, match="2 numbers a row"):
        diffode.reference(diffode.exact_field("gauss2d", "edm"), torch.ones(1, 3), 1.0, 0.5)
    with pytest.raises(ArgumentError, match="float32 or float64"):
        diffode.reference(diffode.exact_field("gauss2d", "edm"), torch.ones(1, 2, dtype=torch.int64), 1.0, 0.5)


@given(testing.fields(max_dim=2, max_modes=3), testing.seeds())
def test_the_flow_of_any_mixture_composes_and_goes_back(field, seed):
    t, x = testing.levels(field, seed, 3)
    path = field.path
    middle, end = (path.time_from_rho(0.3 * path.rho(t)), path.time_from_rho(0.1 * path.rho(t)))
    middle, end = max(middle, path.t_min), max(end, path.t_min)
    direct = diffode.reference(field, x, t, end, 1e-9, use_cache=False)
    half = diffode.reference(field, x, t, middle, 1e-9, use_cache=False)
    both = diffode.reference(field, half.x, middle, end, 1e-9, use_cache=False)
    back = diffode.reference(field, direct.x, end, t, 1e-9, use_cache=False)
    size = field.scale + path.sigma(t)
    torch.testing.assert_close(both.x / size, direct.x / size, rtol=0, atol=1e-6)
    # Backwards the flow spreads: errors grow by as much as it contracted.
    torch.testing.assert_close(back.x / size, x / size, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: diffode.reference(lambda x, t: x, torch.zeros(1, 2), 1.0, 0.5),
            "field must be a diffode field",
            id="a reference of a function",
        ),
    ],
)
def test_a_reference_is_of_a_field(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


@pytest.mark.parametrize("known", [True, False])
def test_values_that_are_not_finite_are_named_with_the_time_and_the_number_of_rows(known):
    """The second of three rows gives NaN below t = 1: the time is that of the field, also where log-SNR is the variable."""
    exact = diffode.exact_field("ring8", "edm")

    def lost(x, t):
        answer = exact.velocity(x, t).clone()
        if t < 1:
            answer[1] = math.nan
        return answer

    field = Field.from_velocity(lost, exact.path if known else None, probe=False)
    x = exact.prior(3, generator=0)
    with pytest.raises(NumericalError, match=r"^the field gave non-finite values at t=0\.\d+, in 1 of 3 rows$") as caught:
        diffode.reference(field, x, 80.0, 0.1)
    assert 0.1 <= float(str(caught.value).partition("t=")[2].partition(",")[0]) < 1
