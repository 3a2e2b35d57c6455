"""Adaptive solvers and other libraries' integrators: accuracy, independence of rows, honest counts and limits."""

import math

import pytest
import torch

import diffode
from diffode import Field, solvers
from diffode.errors import ArgumentError, NumericalError

OWN = ["rk_adaptive", "rk_adaptive:pair=bosh3", "dpm_adaptive:rtol=1e-5,atol=1e-5"]


def start(path="edm", n=16):
    field = diffode.exact_field("ring8", path)
    return field, field.prior(n, generator=0)


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("pair", ["dopri5", "bosh3"])
def test_the_error_follows_the_tolerance(pair, path):
    field, x = start(path)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-12).x
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = diffode.solve(field, x, solver=solvers.get("rk_adaptive", pair=pair, rtol=tolerance, atol=tolerance))
        errors.append(float((found.x - exact).norm(dim=1).median()))
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 20
    assert errors[2] < 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_converges(order):
    field, x = start()
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-12).x
    found = diffode.solve(field, x, solver=solvers.get("dpm_adaptive", order=order, rtol=1e-5, atol=1e-5))
    assert float((found.x - exact).norm(dim=1).max()) < 1e-3


@pytest.mark.filterwarnings("ignore::diffode.errors.StartWarning")
@pytest.mark.parametrize("spec", OWN)
def test_rows_do_not_feel_each_other(spec):
    """Steps of a row alone and among others, one of them stiff by far, are the same."""
    field, x = start()
    crowd = torch.cat([x, 40 * x[:1]])
    among, alone = (diffode.solve(field, y, solver=spec) for y in (crowd, x[:5]))
    torch.testing.assert_close(among.x[:5], alone.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(among.accepted[:5], alone.accepted)
    assert torch.equal(among.rejected[:5], alone.rejected)


@pytest.mark.parametrize("spec", OWN)
def test_evaluations_are_counted_on_the_field(spec):
    field, x = start()
    calls = []
    counted = Field.from_noise(lambda y, t: (calls.append(len(y)), field.noise(y, t))[1], field.path, probe=False)
    found = diffode.solve(counted, x, solver=spec)
    assert found.nfe == len(calls) > 10
    assert calls[-1] < calls[0]
    assert int((found.accepted + found.rejected).max()) * solvers.get(spec).nfe_per_step <= found.nfe


def test_a_step_limit_gives_a_partial_result_with_a_status():
    field, x = start()
    with pytest.raises(NumericalError, match="did not get to the end"):
        diffode.solve(field, x, solver="rk_adaptive:max_steps=5")
    found = diffode.solve(field, x, solver="rk_adaptive:max_steps=5", on_failure="return")
    assert not found.success
    assert set(found.status.tolist()) == {2}
    assert bool(torch.isfinite(found.x).all())
    assert bool((found.reached > field.path.t_min).all())
    assert bool((found.accepted + found.rejected == 5).all())


def test_a_row_that_becomes_non_finite_is_marked_and_the_others_go_on():
    def broken(x, t):
        return torch.where(x[:, :1] > 1, torch.nan, 1.0) * -x

    field = Field.from_velocity(broken, probe=False)
    x = torch.tensor([[0.2], [2.0]], dtype=torch.float64)
    found = diffode.solve(field, x, solver="rk_adaptive:rtol=1e-9,atol=1e-9", grid=[1.0, 0.0], on_failure="return")
    assert found.status.tolist() == [0, 1]
    assert bool(found.x[1].isnan().all())
    assert "non-finite" in found.message
    assert float(found.x[0]) == pytest.approx(0.2 * math.e, rel=1e-7)


def test_a_row_at_the_step_limit_keeps_where_it_got_to_and_has_no_later_states():
    field, x = start(n=3)
    found = diffode.solve(field, x, solver="rk_adaptive:max_steps=5", grid=[80.0, 1.0, 0.002], keep="all", on_failure="return")
    assert found.status.tolist() == [2, 2, 2]
    assert bool(found.x.isfinite().all())
    assert bool((found.reached > 1).all())
    assert bool(found.states[1:].isnan().all())


@pytest.mark.parametrize("spec", ["scipy:RK45", "scipy:BDF", "torchdiffeq:dopri5", "torchdiffeq:rk4"])
def test_another_library_that_gives_up_is_a_failed_run_and_no_foreign_error(spec):
    exact, x = start(n=3)
    field = Field.from_noise(
        lambda y, t: exact.noise(y, t) * torch.where(torch.as_tensor(t).reshape(-1, 1) < 1, math.nan, 1.0),
        exact.path,
        probe=False,
    )
    found = diffode.solve(field, x, solver=spec, grid=[80.0, 20.0, 0.01], on_failure="return")
    assert found.status.tolist() == [1, 1, 1]
    with pytest.raises(NumericalError, match="non-finite"):
        diffode.solve(field, x, solver=spec, grid=[80.0, 20.0, 0.01])


@pytest.mark.parametrize("spec", ["scipy:RK45", "torchdiffeq:dopri5", "torchdiffeq:rk4", "torchdiffeq:euler"])
def test_an_error_of_a_users_field_is_not_said_to_be_another_librarys(spec):
    exact, x = start(n=3)

    def own(y, t):
        if float(torch.as_tensor(t).max()) < 1:
            raise ValueError("a bug of mine")
        return exact.noise(y, t)

    field = Field.from_noise(own, exact.path, probe=False)
    with pytest.raises(ValueError, match=r"^a bug of mine$"):
        diffode.solve(field, x, solver=spec, grid=[80.0, 20.0, 0.5, 0.01], on_failure="return")


@pytest.mark.parametrize(
    "method", ["torchdiffeq:dopri5", "torchdiffeq:adaptive_heun", "scipy:RK45", "scipy:LSODA", "scipy:Radau"]
)
def test_another_library_that_finds_no_end_is_stopped(method):
    exact, x = start(n=3)
    found = diffode.solve(exact, x, solver=f"{method},max_evaluations=20", grid=[80.0, 0.01], on_failure="return")
    assert found.status.tolist() == [1, 1, 1]
    assert found.nfe <= 20
    assert "no end after 20 evaluations" in found.message


def test_a_flow_that_overflows_in_another_library_is_a_failed_run_without_warnings():
    """The flow of dx/dt = -x from t = 1000 to 1 grows by exp(999)."""
    field = Field.from_velocity(lambda x, t: -x)
    found = diffode.solve(field, torch.ones(2, 1), solver="scipy:RK45", grid=[1000.0, 1.0], on_failure="return")
    assert found.status.tolist() == [1, 1]


@pytest.mark.parametrize("spec", ["scipy:RK45", "scipy:LSODA", "torchdiffeq:dopri5", "rk_adaptive"])
def test_times_that_rounding_makes_the_same_log_snr_have_the_same_state(spec):
    """The numbers beside 80 and log 80 lie 1.4e-14 and 9e-16 apart: the logarithm of the number below 80 is that of 80."""
    field, x = start(n=3)
    near = 80.0 * (1 - 2.0**-53)
    found = diffode.solve(field, x, solver=spec, grid=[80.0, near, 1.0], keep="all")
    assert math.log(near) == math.log(80.0)
    assert found.states.shape == (3, *x.shape)
    # A product and a quotient by alpha are between them.
    torch.testing.assert_close(found.states[1], x, rtol=1e-14, atol=0)
    # The solvers' own tolerances are 1e-6 (1e-4 for rk_adaptive).
    torch.testing.assert_close(found.x, diffode.reference(field, x, 80.0, 1.0).x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(diffode.solve(field, x, solver=spec, grid=[80.0, near]).x, x, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("function", "dtype", "count"), [
    (lambda y, t: -y * t, torch.float64, 2),
    (lambda y, t: -y * t, torch.float64, 3),
    (lambda y, t: -y * (t[:, None] if isinstance(t, torch.Tensor) else t), torch.float32, 3),
    (lambda y, t: -y * (t.mean() if isinstance(t, torch.Tensor) else t), torch.float64, 3),
])  # fmt: skip
def test_a_field_that_can_not_take_a_time_for_every_row_is_found_before_the_run(function, dtype, count):
    x = torch.arange(1.0, 2 * count + 1).reshape(count, 2).to(dtype)
    with pytest.raises(diffode.errors.FieldError, match=r"a time for every row.*reshape\(-1, 1\)"):
        diffode.solve(Field.from_velocity(function), x, solver="rk_adaptive", grid=[2.0, 0.5])
    assert diffode.solve(Field.from_velocity(function), x, solver="heun", grid=[2.0, 1.0, 0.5]).success


def test_image_shaped_and_empty_batches_go_through_every_direct_solver():
    exact = diffode.exact_field("ring8", "edm")
    field = Field.from_noise(lambda x, t: exact.noise(x.flatten(1), t).reshape(x.shape), exact.path)
    for spec in ("rk_adaptive", "dpm_adaptive", "scipy:RK45", "torchdiffeq:dopri5", "torchdiffeq:rk4", "torchsde:euler"):
        for n in (0, 2):
            x = torch.ones(n, 1, 1, 2, dtype=torch.float64)
            found = diffode.solve(field, x, solver=spec, grid=[80.0, 8.0, 1.0], generator=0)
            assert found.x.shape == x.shape, spec


@pytest.mark.parametrize(("method", "cost"), [("euler", 1), ("milstein", 1), ("srk", 9)])
def test_torchsde_is_charged_for_what_its_steps_use(method, cost):
    field, x = start(n=4)
    found = diffode.solve(field, x.float(), solver=f"torchsde:{method}", grid="log_snr", steps=10, generator=0)
    assert found.x.dtype == torch.float32
    assert found.nfe == 10 * cost == 10 * solvers.get(f"torchsde:{method}").nfe_per_step
    assert diffode.solve(field, x, solver=f"torchsde:{method},eta=0", grid="log_snr", steps=3).success


def test_direct_solvers_refuse_what_only_tables_have():
    field, x = start(n=2)
    for spec in ("rk_adaptive:analytic_first_step=true", "scipy:RK45,analytic_first_step=banana"):
        with pytest.raises(ArgumentError, match="writes no table"):
            diffode.solve(field, x, solver=spec)
    with pytest.raises(ArgumentError, match="end the grid before sigma = 0"):
        diffode.solve(field, x, solver="torchsde:srk", grid="karras:to_zero=true", steps=4, generator=0)


def test_a_grid_gives_the_states_at_its_times():
    field, x = start(n=4)
    grid = diffode.grids.get("karras", field.path, 4)
    found = diffode.solve(field, x, solver="rk_adaptive:rtol=1e-9,atol=1e-9", grid=grid, keep="all")
    for state, t in zip(found.states[1:], grid[1:].tolist(), strict=True):
        torch.testing.assert_close(state, diffode.reference(field, x, 80.0, t, 1e-12).x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(dtype):
    field, x = start(n=4)
    assert diffode.solve(field, x.to(dtype), solver="rk_adaptive").x.dtype == dtype
    assert diffode.solve(field, x.to(dtype).reshape(4, 1, 2), solver="rk_adaptive").x.shape == (4, 1, 2)
    assert diffode.solve(field, x[:0], solver="rk_adaptive").x.shape == (0, 2)


@pytest.mark.parametrize(
    "spec",
    ["torchdiffeq:dopri5", "torchdiffeq:bosh3", "torchdiffeq:dopri8", "scipy:RK45", "scipy:DOP853", "scipy:LSODA",
     "torchdiffeq:dopri5,variable=time"],
)  # fmt: skip
def test_adaptive_baselines_reach_the_reference(spec):
    field, x = start(n=4)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-12).x
    found = diffode.solve(field, x, solver=spec)
    assert float((found.x - exact).norm(dim=1).max()) < 1e-2
    assert found.nfe > 50


@pytest.mark.parametrize(
    ("baseline", "own"), [("torchdiffeq:euler", "euler"), ("torchdiffeq:rk4", None), ("torchdiffeq:midpoint", "midpoint")]
)
def test_fixed_step_baselines_agree_with_our_own(baseline, own):
    field, x = start("rectified_flow", n=4)
    found = diffode.solve(field, x, solver=baseline, grid="time_uniform", steps=12)
    assert found.nfe == {"euler": 12, "rk4": 48, "midpoint": 24}[baseline.split(":")[1]]
    if own:
        expected = diffode.solve(field, x, solver=own, grid="time_uniform", steps=12).x
        torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_torchsde_samples_the_target(method):
    field, x = start(n=200)
    found = diffode.solve(field, x, solver=f"torchsde:{method}", grid="karras", steps=60, generator=0)
    again = diffode.solve(field, x, solver=f"torchsde:{method}", grid="karras", steps=60, generator=0)
    torch.testing.assert_close(found.x, again.x, rtol=0, atol=0)
    assert float(field.target.log_prob(found.x).mean()) > float(field.target.log_prob(x / 80 * field.scale).mean())


def test_specs_of_baselines_are_read_and_written():
    solver = solvers.get("torchdiffeq:dopri5,rtol=1e-8")
    assert solver.spec == "torchdiffeq:dopri5,rtol=1e-08"
    assert solvers.get(solver.spec) == solver
    with pytest.raises(ArgumentError, match="did you mean 'torchdiffeq:dopri5'"):
        solvers.get("torchdiffeq:dopri55")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "rk_adaptive:rtol=0"}, "rtol must be a number > 0"),
        ({"solver": "rk_adaptive:max_steps=0"}, "max_steps must be an integer"),
        ({"solver": "rk_adaptive", "nfe": 10}, "can't be given a budget"),
        ({"solver": "rk_adaptive", "steps": 5}, "steps goes with a grid spec"),
        ({"solver": "rk_adaptive", "steps": 5, "grid": [80.0, 1.0]}, "explicit times have their own number"),
        ({"solver": "rk_adaptive", "noise": torch.zeros(1)}, "draws its own noise"),
        ({"solver": "rk_adaptive", "grid": "karras:to_zero=true", "steps": 4}, "infinite where sigma or alpha is 0"),
        ({"solver": "torchsde:euler", "grid": "karras", "steps": 4}, "pass generator="),
        ({"solver": "scipy:RK45,variable=place"}, "variable must be one of"),
        ({"solver": "torchdiffeq:dopri5,max_evaluations=0"}, "max_evaluations must be an integer"),
    ],
)
def test_wrong_arguments_say_so(arguments, message):
    field, x = start(n=2)
    with pytest.raises(ArgumentError, match=message):
        diffode.solve(field, x, **arguments)


def test_there_is_no_tableau_to_show():
    with pytest.raises(ArgumentError, match="has no tableau"):
        solvers.get("rk_adaptive").tableau(diffode.paths.get("edm"), "karras", 3)
    with pytest.raises(ArgumentError, match="dpm_adaptive' needs a path, such as"):
        diffode.solve(Field.from_velocity(lambda x, t: -x), torch.ones(1, 1), solver="dpm_adaptive", grid=[1.0, 0.0])


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_torchsde_follows_the_reverse_family(eta):
    """N(0.7, 0.4) along VP, 4,000 runs of 200 steps: the moments of the data within 5 standard errors and 2 % of bias."""
    target = diffode.GaussianMixture([1.0], [[0.7]], [0.4])
    field = diffode.exact_field(target, "vp")
    x = field.prior(4000, generator=1)
    found = diffode.solve(field, x, solver=f"torchsde:euler,eta={eta}", grid="log_snr", steps=200, generator=2).x
    assert abs(float(found.mean()) - 0.7) < 5 * math.sqrt(0.4 / 4000) + 0.02
    assert abs(float(found.var()) - 0.4) < 5 * 0.4 * math.sqrt(2 / 4000) + 0.008


@pytest.mark.parametrize("path", ["edm", "vp"])
@pytest.mark.parametrize(
    "spec",
    [
        "rk_adaptive:rtol=1e-8,atol=1e-8",
        # The other pair takes the same steps through the graph, with weights that the error's test knows.
        pytest.param("rk_adaptive:pair=bosh3,rtol=1e-6,atol=1e-6", marks=pytest.mark.slow),
        "dpm_adaptive:rtol=1e-5,atol=1e-5",
    ],
)
def test_a_run_can_be_differentiated_at_all_its_times(spec, path):
    """The flow of a Gaussian is affine: dx_u/dx_t = sqrt((alpha_u^2 c + sigma_u^2)/(alpha_t^2 c + sigma_t^2)) in each axis.

    The first step is too long, so that there are rejected attempts in the graph.
    """
    target = diffode.GaussianMixture([1.0], [[0.3, -0.2]], [[0.5, 2.0]])
    field = diffode.exact_field(target, path)
    on = field.path
    grid = [on.t_max, on.time_from_rho(1.0), on.time_from_rho(0.05)]
    spread = [(on.alpha(t) ** 2 * target.variance + on.sigma(t) ** 2).sqrt() for t in grid]
    x = field.prior(3, generator=0).requires_grad_(True)
    kept = diffode.solve(field, x, solver=f"{spec},first_step=3", grid=grid, keep="all")
    assert bool((kept.rejected > 0).all())
    last = diffode.solve(field, x, solver=f"{spec},first_step=3", grid=grid).x
    for state, wide in ((kept.states[1], spread[1]), (kept.states[2], spread[2]), (last, spread[2])):
        (gradient,) = torch.autograd.grad(state.sum(), x, retain_graph=True)
        torch.testing.assert_close(gradient, (wide / spread[0]).expand(3, 2), rtol=2e-4, atol=0)


def test_derivatives_by_parameters_are_those_of_finite_differences():
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)

    def end(weight):
        field = Field.from_velocity(lambda y, t: -torch.sin(weight * y), probe=False)
        return diffode.solve(field, x, solver="rk_adaptive:rtol=1e-10,atol=1e-10", grid=[1.0, 0.4, 0.0], keep="all").states

    weight = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    gradient = torch.stack([torch.autograd.grad(s, weight, retain_graph=True)[0] for s in end(weight)[1:].reshape(-1)])
    with torch.no_grad():
        difference = (end(1.3 + 1e-4) - end(1.3 - 1e-4))[1:].reshape(-1) / 2e-4
    torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=1e-6)


def test_a_rejected_attempt_that_met_nan_leaves_the_derivative_alone():
    """dx/dt = 1/(2 sqrt x) has no real value below 0, where the long first attempt lands."""
    field = Field.from_velocity(lambda y, t: 1 / (2 * y.sqrt()), probe=False)
    x = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    found = diffode.solve(field, x, solver="rk_adaptive:rtol=1e-10,atol=1e-10,first_step=5", grid=[0.4, 0.0])
    # Backwards in time x^1.5 falls at the rate 3/4, so x after t is (x^1.5 - 3 t/4)^(2/3) with the derivative sqrt(x/x_t).
    exact = (0.5**1.5 - 0.3) ** (2 / 3)
    assert float(found.x.detach()) == pytest.approx(exact, rel=1e-7)
    assert int(found.rejected) > 0
    (gradient,) = torch.autograd.grad(found.x.sum(), x)
    assert float(gradient) == pytest.approx(math.sqrt(0.5 / exact), rel=1e-6)


ADAPTIVE = ["rk_adaptive", "dpm_adaptive", "sde_adaptive", "scipy:RK45", "scipy:LSODA", "torchdiffeq:dopri5"]


@pytest.mark.parametrize("unit", [2.0**-24, 2.0**20])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_tolerances_have_the_units_of_the_data(name, unit):
    """Data and noise levels times a power of two, which rounds nothing, give the same steps and ends times that power."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.2]], dtype=torch.float64)
    variances = torch.tensor([[0.1, 0.1], [0.9, 0.4]], dtype=torch.float64)
    x = 10 * torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    runs = []
    for u in (1.0, unit):
        field = diffode.exact_field(diffode.GaussianMixture([0.5, 0.5], u * means, u**2 * variances), "edm")
        between = (10 * u, 0.001 * u)
        runs.append(diffode.solve(field, u * x, solver=name, between=between, generator=1))
    assert runs[0].nfe == runs[1].nfe
    torch.testing.assert_close(runs[1].x / unit, runs[0].x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["torchsde:euler", "torchsde:srk", "rk_adaptive", "scipy:RK45", "sde_adaptive"])
@pytest.mark.parametrize("path", ["rectified_flow:t_max=1", "trigonometric:t_max=1", "vp_cosine:t_max=1"])
def test_a_start_without_data_is_refused(name, path):
    field = diffode.exact_field("ring8", path)
    budget = {"nfe": 18, "grid": "time_uniform"} if name.startswith("torchsde") else {}
    with pytest.raises(ArgumentError, match=r"alpha|some data at the first"):
        diffode.solve(field, field.prior(2, generator=0), solver=name, generator=0, **budget)


def test_advice_for_a_start_without_data_runs():
    field = diffode.exact_field("ring8", "rectified_flow:t_max=1")
    x = field.prior(2, generator=0)
    with pytest.raises(ArgumentError, match="between=") as raised:
        diffode.solve(field, x, solver="rk_adaptive", grid=[1.0, 0.5, 0.01])
    low, high = sorted(float(t) for t in str(raised.value).partition("between=(")[2].strip(")").split(", "))
    assert diffode.solve(field, x, solver="rk_adaptive", between=(high, low)).accepted.min() > 0
    with pytest.raises(ArgumentError, match="between must be two times, the noisier first"):
        diffode.solve(field, x, solver="ddim", nfe=4, between=(0.1, 0.3))


def test_adaptive_solvers_end_their_progress_at_all_of_it(exact):
    seen = []
    x = exact.prior(2, generator=0)
    diffode.solve(exact, x, solver="rk_adaptive:rtol=1e-3,atol=1e-3", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
