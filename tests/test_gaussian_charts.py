"""Charts of the data's Gaussian: exact on Gaussians, orders, the angle clock, the reverse SDE, and what they ask for."""

import itertools
import math

import pytest
import torch

import diffode
from diffode import Statistics, Tableau, paths, solvers
from diffode.errors import ArgumentError
from diffode.gaussian_charts import gaussian_charts
from diffode.maps import AngleClock
from diffode.solvers import informed

RECIPES = ("euler", "heun", "rk4", "ab:order=3", "unipc:order=2", "unipc:order=3,corrector=false")
#: A path of three decades, so that orders are seen with few steps.
NARROW = "edm:sigma_min=0.05,sigma_max=20"


def in_chart(recipe, chart, **options):
    chosen = {"chart": chart, **options}
    return recipe + ("," if ":" in recipe else ":") + ",".join(f"{k}={v}" for k, v in chosen.items())


@pytest.mark.parametrize("chart", gaussian_charts)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gaussian_is_exact_with_one_step_and_into_the_data(recipe, chart):
    for target, path in (("gauss2d", "vp"), ("gauss64-powerlaw", "rectified_flow")):
        field = diffode.exact_field(target, path)
        x = field.prior(3, generator=0)
        for grid, steps, last in (("karras", 1, field.path.t_min), ("karras:rho=3,to_zero=true", 3, 0.0)):
            run = diffode.solve(field, x, solver=in_chart(recipe, chart), grid=grid, steps=steps)
            exact = diffode.reference(field, x, field.path.t_max, last).x
            assert float((run.x - exact).abs().max()) < 2e-12


@pytest.mark.parametrize("chart", gaussian_charts)
@pytest.mark.parametrize(
    ("recipe", "order"),
    [
        ("euler", 1), ("heun", 2), ("rk4", 4), ("ab:order=2", 2), ("ab:order=3", 3),
        ("unipc:order=2,lower_order_final=never", 3), ("unipc:order=3,lower_order_final=never", 4),
    ],
)  # fmt: skip
def test_recipes_keep_their_order(recipe, order, chart):
    """Some fall faster at first, where a term of higher order is the larger one."""
    field = diffode.exact_field("bimodal1d", NARROW)
    x = field.prior(16, generator=0)
    exact = diffode.reference(field, x, 20.0, 0.05).x
    coarse, fine = (
        float((diffode.solve(field, x, solver=in_chart(recipe, chart), grid="karras", steps=n).x - exact).norm(dim=1).mean())
        for n in (64, 128)
    )
    assert order - 0.6 < math.log2(coarse / fine) < order + 0.7


def test_the_last_step_in_log_rho_takes_half_of_what_falls_with_the_square_of_the_level():
    """D_G - D = a rho^2 + b rho^4 near the data: a is integrated exactly, and the error falls as rho^4."""
    field = diffode.exact_field("bimodal1d", "edm")
    errors = []
    for level in (0.04, 0.02):
        x = field.marginal(16, level, generator=0)
        table = informed("euler:chart=gaussian", field.statistics).tableau("edm", [level, 0.0])
        errors.append(float((table.run(field, x) - diffode.reference(field, x, level, 0.0).x).abs().mean()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3), errors


def test_the_scale_alone_makes_the_angle_chart_the_angle_clock():
    """Euler in y of the angle clock, whose velocity comes from another implementation."""
    field = diffode.exact_field("moons", "vp")
    clock = AngleClock.of(field)
    known = Statistics.of_target("moons", "scale")
    table = informed("euler:chart=gaussian_angle", known).tableau("vp", "karras:rho=2", 4)
    x = field.prior(5, generator=0)
    y = clock.state(x, field.path, 1.0)
    times = table.output_times.tolist()
    for s, t in itertools.pairwise(times):
        angles = torch.full((5,), clock.angle(field.path, s), dtype=torch.float64)
        y = y + (clock.angle(field.path, t) - clock.angle(field.path, s)) * clock.velocity(field, y, angles)
    assert torch.allclose(table.run(field, x), clock.point(y, field.path, times[-1]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("chart", gaussian_charts)
def test_the_rows_are_the_equation_of_the_chart(chart):
    """One Euler step by the formula dy/dlog rho = (D_G - D)/sqrt(L + rho^2), with matrices, on a path with alpha != 1."""
    field = diffode.exact_field("digits-gmm10", "vp")
    known, path = field.statistics, field.path
    s, t = path.time_from_rho(2.0), path.time_from_rho(1.5)
    x = field.marginal(3, s, generator=0)
    mean, cov, unit = known.mean, known.covariance, torch.eye(64, dtype=torch.float64)

    def root(level, power):
        values, vectors = torch.linalg.eigh(cov + level**2 * unit)
        return (vectors * values.pow(power)) @ vectors.T

    z = x / path.alpha(s) - mean
    gap = mean + z @ cov @ root(2.0, -1.0) - field.denoised(x, s)
    c = known.scale
    length = {
        "gaussian": math.log(1.5 / 2.0),
        "gaussian_angle": (math.atan(1.5 / c) - math.atan(2.0 / c)) * (2.0 / c + c / 2.0),
        "gaussian_asinh": (math.asinh(30 / c) - math.asinh(40 / c)) * math.sqrt(1 + (c / 40) ** 2),
    }[chart]
    y = z @ root(2.0, -0.5) + length * gap @ root(2.0, -0.5)
    expected = path.alpha(t) * (mean + y @ root(1.5, 0.5))
    table = informed(f"euler:chart={chart}", known).tableau(path, [s, t])
    assert torch.allclose(table.run(field, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chart", gaussian_charts)
def test_the_reverse_sde_leaves_a_gaussian_its_law(chart, eta):
    known = Statistics.of_target("gauss2d")
    for path in ("edm", "vp"):
        for grid, last in (("karras", None), ("karras:to_zero=true", 0.0)):
            table = informed(f"ab:order=2,chart={chart},eta={eta}", known).tableau(path, grid, 5)
            law = table.propagate(known.mean_along(2), known.variances)
            end = table.path.t_min if last is None else last
            assert table.draws == (5 if last is None else 4)
            assert torch.allclose(law.variance, known.deviations(table.path, end).square(), rtol=1e-12, atol=0)
            assert torch.allclose(law.mean, table.path.alpha(end) * known.mean_along(2), rtol=1e-12, atol=1e-12)


def test_with_noise_the_start_is_forgotten_as_the_sde_says():
    """The gain of the exact reverse SDE of a Gaussian: (S_t/S_s)(S_t alpha_s/(S_s alpha_t))^eta."""
    known, path = Statistics.of_target("gauss2d"), paths.get("vp")
    table = informed("ab:order=1,chart=gaussian,eta=1", known).tableau(path, "karras", 4)
    s, t = table.ends
    fall = known.deviations(path, t) / known.deviations(path, s)
    gain = table.propagate(known.mean_along(2), known.variances).gain
    assert torch.allclose(gain, fall**2 * path.alpha(s) / path.alpha(t), rtol=1e-12, atol=0)


def test_the_law_of_the_reverse_sde_comes_near_that_of_the_data():
    """Mean and covariance of ring8 from 4,000 starts; their standard errors are about 0.06 and 0.2 (the variance is 12.6)."""
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4000, generator=0)
    run = diffode.solve(field, x, solver="ab:order=2,chart=gaussian_angle,eta=1,jump=3", nfe=40, generator=1)
    assert run.tableau.draws == 40
    assert float(run.x.mean(0).abs().max()) < 0.25
    assert float((torch.cov(run.x.T) - field.target.covariance).abs().max()) < 0.8
    modes = (torch.atan2(run.x[:, 1], run.x[:, 0]) / (math.pi / 4)).round().remainder(8)
    shares = torch.bincount(modes.long(), minlength=8) / 4000
    assert float((shares - 1 / 8).abs().max()) < 0.025
    # Single points of the noise are a standard deviation off the circle, and no more.
    exact = (field.target.sample(4000, generator=2).norm(dim=1)).std()
    assert float(run.x.norm(dim=1).std() / exact) == pytest.approx(1.0, abs=0.15)


def test_noise_converges_on_one_path_to_one_solution():
    """With eta -> 0 the ODE is left."""
    field = diffode.exact_field("moons", "edm")
    x = field.prior(4, generator=0)
    runs = [
        diffode.solve(field, x, solver=f"ab:order=2,chart=gaussian_asinh,eta={eta}", nfe=8, generator=1).x
        for eta in (1e-12, 1e-9)
    ]
    plain = diffode.solve(field, x, solver="ab:order=2,chart=gaussian_asinh", nfe=8).x
    assert float((runs[0] - plain).abs().max()) < 1e-4
    assert float((runs[1] - plain).abs().max()) > float((runs[0] - plain).abs().max())


@pytest.mark.parametrize("target", ["spiral", "moons", "digits-gmm10"])
def test_the_chart_gains_over_the_jump_alone_with_two_evaluations(target):
    field = diffode.exact_field(target, "edm")
    x = field.path.prior((48, field.dim), generator=3)
    exact = diffode.reference(field, x, 80.0, 0.002).x

    def error(solver):
        return float((diffode.solve(field, x, solver=solver, nfe=2).x - exact).norm(dim=1).mean())

    assert error("ab:order=2,chart=gaussian_angle,jump=auto") < 0.8 * error("ipndm:order=3,jump=auto")


def test_a_table_in_a_chart_comes_back_from_its_file(tmp_path):
    field = diffode.exact_field("digits-gmm10", "vp")
    known = Statistics.of_target("digits-gmm10", "low_rank", rank=6)
    table = informed("ab:order=2,chart=gaussian_angle,eta=1,jump=2", known).tableau("vp", "karras:rho=3", 3)
    table.save(tmp_path / "table.safetensors")
    found = Tableau.load(tmp_path / "table.safetensors")
    x = field.prior(2, generator=0)
    noise = torch.randn(3, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.run(field, x, noise=noise), table.run(field, x, noise=noise))


def test_a_run_upwards_and_down_again_returns():
    field = diffode.exact_field("ring8", NARROW)
    x = field.marginal(4, 0.05, generator=0)
    up = diffode.solve(field, x, solver="rk4:chart=gaussian_asinh", grid="karras", steps=60, upwards=True)
    down = diffode.solve(field, up.x, solver="rk4:chart=gaussian_asinh", grid="karras", steps=60)
    assert float((down.x - x).abs().max()) < 1e-3


def test_solvers_with_other_statistics_have_other_contents():
    contents = {informed("heun:chart=gaussian", Statistics.of_target(name)).content() for name in ("ring8", "moons", "spiral")}
    assert len(contents) == 3
    assert solvers.get("heun:chart=noise").content() == ""
    told = informed("heun:chart=gaussian", Statistics.of_target("ring8"))
    assert told.spec == "heun:chart=gaussian"
    assert informed(told, Statistics.of_target("moons")) is told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.get("heun:chart=gaussian").tableau("edm", "karras", 2), r"solvers\.informed\(solver, statistics\)"),
        (lambda: solvers.get("heun:chart=gauss"), "chart must be one of velocity, .*gaussian_asinh"),
        (lambda: solvers.get("unipc:chart=noise"), "chart must be one of data, noise_log_snr, gaussian"),
        (lambda: solvers.get("ab:order=2,chart=data,eta=1"), "eta > 0 goes with a chart of the data's Gaussian"),
        (lambda: solvers.get("ab:order=2,chart=gaussian,eta=-1"), "eta must be a number >= 0"),
        (lambda: solvers.get("lms:statistics=3"), "statistics"),
        (
            lambda: informed("heun:chart=gaussian", Statistics.of_target("ring8")).tableau("rectified_flow", [1.0, 0.5]),
            "is singular on this grid",
        ),
    ],
)  # fmt: skip
def test_what_a_chart_can_not_do_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
