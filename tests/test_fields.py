"""Fields: conversions between views, counting, the one-time probe."""

import contextlib
import math
import re

import pytest
import torch

import diffode
from diffode import Field, paths
from diffode.errors import ArgumentError, FieldError
from diffode.fields import PREDICTIONS
from diffode.fields.own import own_field
from diffode.verify.field.contract import contract

MAKERS = {
    "velocity": Field.from_velocity,
    "noise": Field.from_noise,
    "denoised": Field.from_denoised,
    "score": Field.from_score,
}


@pytest.mark.parametrize("path_name", paths.names())
@pytest.mark.parametrize("known", PREDICTIONS)
def test_any_view_determines_all_others(known, path_name):
    exact = diffode.exact_field("pinwheel", path_name)
    field = MAKERS[known](getattr(exact, known), exact.path)
    for rho in (20.0, 1.0, 0.05):
        t = exact.path.time_from_rho(rho)
        x = exact.marginal(10, t, generator=1)
        for wanted in PREDICTIONS:
            expected = getattr(exact, wanted)(x, t)
            assert torch.allclose(getattr(field, wanted)(x, t), expected, rtol=1e-9, atol=1e-9 * expected.abs().max())


def test_per_row_times_convert_row_by_row():
    exact = diffode.exact_field("ring8", "vp")
    field = Field.from_noise(exact.noise, exact.path)
    t = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(field.velocity(x, t), exact.velocity(x, t), rtol=1e-10)


def test_velocity_at_alpha_zero_still_gives_the_denoised_point():
    """x_1 = eps on the straight path: D = x - v there, with no division by alpha."""
    field = Field.from_velocity(lambda x, t: x - 3.0, paths.get("rectified_flow"))
    assert torch.allclose(
        field.denoised(torch.ones(1, 2, dtype=torch.float64), 1.0), torch.full((1, 2), 3.0, dtype=torch.float64)
    )


def test_divergence_of_a_wrapped_field_is_the_exact_one():
    exact = diffode.exact_field("pinwheel", "vp")
    field = Field.from_velocity(exact.velocity, exact.path)
    x = exact.marginal(5, 0.4, generator=0)
    assert torch.allclose(field.divergence(x, 0.4), exact.divergence(x, 0.4), rtol=1e-10)


def test_evaluations_are_counted_on_the_field():
    field = Field.from_velocity(lambda x, t: -x)
    x = torch.ones(3, 2)
    field.velocity(x, 0.5)
    field.velocity(x, 0.5)
    assert field.nfe == 2


def test_images_go_through_exact_fields():
    field = diffode.exact_field("digits-gmm10", "edm")
    x = field.prior(3, generator=0)
    flat, image = field.denoised(x, 80.0), field.denoised(x.reshape(3, 8, 8), 80.0)
    assert torch.equal(image.reshape(3, 64), flat)


def test_scale_is_the_root_mean_variance():
    field = diffode.exact_field("gauss2d", "edm")
    assert field.scale == pytest.approx(((4 + 4e-4) / 2) ** 0.5)


def start():
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, t: x[:, :1], "returned shape"),
        (lambda x, t: x.float(), "cast its answer"),
        (lambda x, t: x.to("meta"), "move its answer with"),
        (lambda x, t: x / 0, "non-finite"),
        (lambda x, t: x.cumsum(0), "depends on the other rows"),
        (lambda x, t: x - x.mean(0), "depends on the other rows"),
        (lambda x, t: x.numpy(), "must return a tensor"),
        (lambda x, t: x.mul_(2), "writes into its x"),
    ],
)
def test_the_probe_names_a_broken_contract(function, message):
    with pytest.raises(FieldError, match=message):
        diffode.solve(Field.from_velocity(function), start(), solver="euler", grid=[1.0, 0.5])


def test_the_probe_runs_once_is_not_counted_and_can_be_declined():
    calls = []
    field = Field.from_velocity(lambda x, t: calls.append(len(x)) or -x)
    for _ in range(2):
        assert diffode.solve(field, start(), solver="euler", grid=[1.0, 0.5, 0.0]).nfe == 2
    assert calls == [2, 1, 1, 4, 4, 4, 4]
    calls.clear()
    field = Field.from_velocity(lambda x, t: calls.append(len(x)) or -x, probe=False)
    diffode.solve(field, start(), solver="euler", grid=[1.0, 0.5])
    assert calls == [4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Field.from_velocity(3), "callable"),
        (lambda: Field.from_noise(lambda x, t: x, None), "needs path="),
        (lambda: Field.from_velocity(lambda x, t: x, 3), "path must be a diffode path"),
        (lambda: Field.from_velocity(lambda x, t: x, scale=0), "scale must be a positive number"),
        (lambda: Field.from_velocity(lambda x, t: x).noise(start(), 0.5), "has no path"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(make, message):
    with pytest.raises((ArgumentError, FieldError), match=message):
        make()


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.zeros(3, 3), 1.0, r"x must be \(B, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), 1.0, "float32 or float64"),
        (torch.zeros(3, 2), -1.0, "t must be a finite time >= 0"),
        (torch.zeros(3, 2), float("nan"), "t must be a finite"),
        (torch.zeros(3, 2), torch.ones(2), "a time per row"),
        (torch.zeros(3, 2), None, "must be a number or a tensor"),
        (torch.zeros(3, 2), "a", "must be a number or a tensor"),
        (torch.zeros(3), 1.0, r"x must be \(B, 2\)"),
    ],
)
def test_exact_fields_check_their_input(x, t, message):
    with pytest.raises(ArgumentError, match=message):
        diffode.exact_field("ring8", "edm").velocity(x, t)


@pytest.mark.parametrize("path_name", paths.names())
def test_fields_reach_both_ends_of_every_path(path_name):
    """At sigma = 0 a density has all its views; its velocity there is alpha' x - (sigma^2)'/2 score."""
    field = diffode.exact_field("pinwheel", path_name)
    x = field.target.sample(5, generator=0)
    near = 1e-9
    assert torch.allclose(field.velocity(x, 0.0), field.velocity(x, near), rtol=1e-4, atol=1e-4)
    assert torch.allclose(field.divergence(x, 0.0), field.divergence(x, near), rtol=1e-4, atol=1e-4)
    assert torch.allclose(field.denoised(x, 0.0), x)
    if field.path.t_max < 1:
        assert torch.isfinite(field.velocity(x, 1.0)).all()


def test_where_a_field_is_not_defined_it_says_so():
    points = diffode.exact_field("digits-empirical", "edm")
    with pytest.raises(ArgumentError, match="point masses have no field"):
        points.score(torch.zeros(1, 64), 0.0)
    flow = diffode.exact_field("ring8", "rectified_flow")
    with pytest.raises(FieldError, match="alpha is 0"):
        flow.divergence(torch.zeros(1, 2), 1.0)
    with pytest.raises(ArgumentError, match="beyond the noise end"):
        flow.velocity(torch.zeros(1, 2), 1.5)
    with pytest.raises(ArgumentError, match="beyond the noise end"):
        diffode.solve(flow, torch.zeros(1, 2), solver="euler", grid=[1.5, 0.5])


def test_a_shape_that_changes_in_mid_run_is_noticed_though_it_broadcasts():
    def shifty(x, t):
        return -x if t > 0.5 else -x[:1]

    field = Field.from_velocity(shifty)
    x = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    with pytest.raises(FieldError, match=r"returned shape \(1, 2\) for x of shape \(3, 2\)"):
        diffode.solve(field, x, solver="euler", grid=[1.0, 0.6, 0.4, 0.2])


def test_the_probe_finds_its_faults_in_a_batch_of_two_and_of_one():
    coupled = Field.from_noise(lambda x, t: x - x.mean(0), paths.get("edm"))
    with pytest.raises(FieldError, match="depends on the other rows"):
        coupled.check_once(torch.tensor([[1.0], [2.0]], dtype=torch.float64), 1.0)
    silent = Field.from_noise(lambda x, t: x * torch.nan, paths.get("edm"))
    with pytest.raises(FieldError, match="non-finite"):
        silent.check_once(torch.ones(1, 2, dtype=torch.float64), 1.0)


def test_the_probe_of_times_looks_at_batches_of_any_size():
    single = Field.from_noise(lambda x, t: x * float(torch.as_tensor(t).reshape(-1)[0]), paths.get("edm"))
    for count in (1, 5):
        with pytest.raises(FieldError, match="a time for every row"):
            single.check_times(torch.ones(count, 2, dtype=torch.float64), 2.0, 1.0)
    single.check_times(torch.ones(0, 2, dtype=torch.float64), 2.0, 1.0)


def test_an_answer_that_is_no_tensor_is_named():
    with pytest.raises(FieldError, match="returned a NoneType"):
        Field.from_noise(lambda x, t: None, paths.get("edm")).noise(torch.ones(1, 2), 1.0)


@pytest.mark.parametrize("leak", [1e-3, 1e-5, 1e-7])
def test_a_small_leak_between_rows_is_found_unless_it_is_rounding(leak):
    exact = diffode.exact_field("ring8", "edm")

    def leaking(x, t):
        return exact.noise(x, t) + leak * x.mean(0) / 80

    with pytest.raises(FieldError, match="depends on the other rows"):
        diffode.solve(diffode.Field.from_noise(leaking, exact.path), exact.prior(4, generator=0), solver="ddim", nfe=3)

    def single(x, t):
        return exact.noise(x.float(), t).to(x.dtype)

    field = diffode.Field.from_noise(single, exact.path)
    diffode.solve(field, exact.prior(4, generator=0), solver="ddim", nfe=3)
    assert 1e-9 < field.same_rows(exact.prior(4, generator=0), 80.0) < 1e-3


def test_a_check_of_rows_that_passes_gives_no_advice():
    from diffode.verify.field.contract import contract

    exact = diffode.exact_field("ring8", "edm")
    (check,) = [c for c in contract(exact, exact.prior(3, generator=0), 80.0) if c.name.startswith("rows")]
    assert check.passed
    assert not check.detail


def test_a_field_that_is_zero_is_a_field():
    """Nothing is relative to its largest answer."""
    still = Field.from_velocity(lambda x, t: torch.zeros_like(x), paths.get("edm"))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(diffode.solve(still, x, solver="euler", nfe=4).x, x)
    assert diffode.solve(still, x, solver="rk_adaptive", grid=[80.0, 0.002]).x.allclose(x)


def test_rounding_in_a_field_is_seen_as_it_is():
    """Second differences of a smooth function show none, those of float32 its seven digits, at any size of x."""
    path = paths.get("edm")
    for size in (1e-3, 1.0, 80.0):
        x = size * torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        double = Field.from_noise(lambda x, t: torch.tanh(x / (1 + t)), path)
        single = Field.from_noise(lambda x, t: torch.tanh(x / (1 + t)).float().double(), path)
        assert double.rounding(x, size) < 2e-11
        assert 1e-9 < single.rounding(x, size) < 1e-6
        assert math.isfinite(Field.from_noise(lambda x, t: 0 * x, path).rounding(x, size))


def test_a_network_in_float32_behind_a_cast_is_not_called_coupled():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
    )

    def velocity(x, t):
        column = torch.as_tensor(t, dtype=torch.float32).expand(len(x))[:, None]
        return net(torch.cat([x.float(), column], 1)).to(x.dtype)

    field = diffode.Field.from_velocity(velocity, diffode.paths.get("rectified_flow"))
    x = field.path.prior((7, 2), generator=0)
    with torch.no_grad():
        assert diffode.solve(field, x, solver="dpmpp:order=2", nfe=5).success
        assert diffode.solve(field, x, solver="rk_adaptive:rtol=1e-3,atol=1e-3").success


def test_a_kind_that_is_said_twice_is_no_contradiction():
    exact = diffode.exact_field("ring8", "edm")
    own = Field.from_noise(exact.noise, exact.path)
    assert own_field(own, "noise", exact.path).prediction == "noise"
    assert own_field(own, None, exact.path).prediction == "noise"
    with pytest.raises(ArgumentError, match="this field gives its noise"):
        own_field(own, "score", exact.path)


@pytest.mark.parametrize("view", ["velocity", "noise", "denoised", "score"])
def test_every_kind_of_own_function_is_taken_as_it_is_named(view, exact):
    from diffode.fields.own import own_field

    made = getattr(diffode.Field, f"from_{view}")(getattr(exact, view), exact.path)
    assert made.scale == 1
    own = own_field(getattr(exact, view), view, exact.path)
    assert own.prediction == made.prediction == view
    x = torch.ones(2, 1, dtype=torch.float64)
    torch.testing.assert_close(own.denoised(x, 0.5), exact.denoised(x, 0.5), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(lambda: Field(lambda x, t: x, prediction="noize"), "prediction must be one of", id="a view that is none"),
        pytest.param(
            lambda: Field.from_noise(3, paths.get("edm")), "function must be callable", id="a field that is no function"
        ),
    ],
)
def test_fields_made_of_nothing_sensible_are_refused(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


def test_rounding_of_zero_is_no_difference_but_a_small_answer_is_one():
    """A velocity of 1e-17 of x that changes with the batch is 0; one of 1e-9 is a field that does not take rows alone."""
    for size, passes in ((1e-17, True), (1e-9, False)):
        field = Field.from_velocity(lambda x, t, size=size: size * x * (1 + 0.1 * len(x)), "vp")
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        checks = {check.name: check.passed for check in contract(field, x, 0.5)}
        assert checks["rows independent of their batch"] is passes
        with contextlib.nullcontext() if passes else pytest.raises(FieldError):
            diffode.solve(field, x, solver="euler", grid=[0.5, 0.3])
