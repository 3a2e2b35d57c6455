"""Orders as measured, and exact analysis on Gaussians against Monte Carlo and closed forms."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from solver_list import DETERMINISTIC

import diffode
from diffode import solvers, verify
from diffode.errors import ArgumentError
from diffode.numerics.orders import fit_order

#: Deterministic solvers with their documented orders (``convergence_order``).
ORDERS = [
    "ddim", "heun:chart=noise", "midpoint:chart=data", "rk4:chart=noise", "ab:order=3,chart=data",
    "dpm:order=2", "dpm:order=3", "dpm_m:order=2,lower_order_final=never", "dpmpp:order=2", "dpmpp:order=3",
    "dpmpp:order=3,form=consistent", "dpmpp_s:order=2", "dpmpp_s:order=3", "ipndm:order=3", "ipndm_v:order=3", "lms:order=3",
    "deis:order=2", "deis:order=3", "unipc:order=2,lower_order_final=never", "unipc:order=3,lower_order_final=never",
    "er_sde:order=2,form=consistent,scale=ode", "er_sde:order=3,form=consistent,scale=ode", "sa:tau=0,predictor=2,corrector=2",
]  # fmt: skip
#: (target, grid, solver): methods of order four, those that start with Euler steps on a ramp; and other targets and grids.
FOURTH = ["lms:order=4", "deis:order=4", "ipndm_v:form=consistent", "ab:order=4,chart=data"]
SDES = ["ddpm", "euler_maruyama", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa",
        "seeds_1", "seeds_2", "er_sde_1", "er_sde_2"]  # fmt: skip
#: Weak orders on Gaussians as documented: measured once on finer grids than here and rounded.
WEAK = {
    "ddpm": 1, "euler_ancestral": 1, "euler_maruyama": 1, "er_sde_1": 1, "dpm2_ancestral": 2, "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2, "dpmpp_2m_sde": 2, "dpmpp_2m_sde:form=heun": 2, "dpmpp_3m_sde": 2, "dpmpp_3m_sde:form=consistent": 2,
    "sa": 2, "sa:form=consistent,predictor=2,corrector=1": 3,
    "er_sde:order=2,form=consistent": 2,
}  # fmt: skip


#: The others' orders on the Karras grid are measured in test_solvers.py.
ENOUGH = {"ddim", "rk4:chart=noise", "dpmpp:order=3,form=consistent"}


def test_an_order_has_the_interval_of_a_regression():
    """Against scipy: the slope's standard error times the quantile of Student's t for n - 2 degrees of freedom."""
    steps, noise = [8, 16, 32, 64, 128], [0.01, -0.02, 0.015, 0.0, -0.01]
    errors = [n**-2.5 * math.exp(e) for n, e in zip(steps, noise, strict=True)]
    line = stats.linregress(np.log(steps), np.log(errors))
    found = fit_order(steps, errors)
    margin = stats.t.ppf(0.975, 3) * line.stderr
    assert found.used == tuple(steps)
    assert (found.slope, found.low, found.high) == pytest.approx((-line.slope, -line.slope - margin, -line.slope + margin))


@pytest.mark.parametrize(
    "spec", [pytest.param(s, marks=pytest.mark.slow) if s in DETERMINISTIC and s not in ENOUGH else s for s in ORDERS]
)
def test_measured_orders_are_the_documented_ones(spec):
    """On one target and grid here; benchmarks/orders.py measures three targets on two grids."""
    claimed = solvers.get(spec).convergence_order
    # Those that are measured in the slow run alone are measured to finer steps.
    fine = claimed >= 4 or (spec in DETERMINISTIC and spec not in ENOUGH)
    found = verify.order(spec, grid="log_snr", steps=(128, 256, 512, 1024, *([2048] if fine else [])))
    assert abs(found.slope - claimed) < 0.15, found


@pytest.mark.parametrize(
    ("target", "grid", "finest"),
    [("bimodal1d", "log_snr", 2048), pytest.param("ring8", "karras", 4096, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("spec", FOURTH)
def test_fourth_orders_show_when_the_start_is_ramped(spec, target, grid, finest):
    steps = [finest >> k for k in (3, 2, 1, 0) if finest >> k >= 512]
    found = verify.order(spec, target=target, grid=grid, steps=steps, points=8, ramped=True)
    assert abs(found.slope - 4) < 0.15, found


@pytest.mark.parametrize("order", [5, 6])
def test_orders_five_and_six_come_from_the_same_recipe(order):
    found = verify.order(f"ab:order={order},chart=noise", grid="log_snr", steps=(256, 512, 1024), points=8, ramped=True,
                         tolerance=1e-13)  # fmt: skip
    assert abs(found.slope - order) < 0.15, found


def test_without_a_ramp_the_euler_start_rules_in_the_end():
    plain, ramped = (verify.order("deis:order=4", target="ring8", grid="log_snr", steps=(512, 1024, 2048), points=16, ramped=r)
                     for r in (False, True))  # fmt: skip
    assert plain.slope < 2.6
    assert plain.errors[-1] > 10 * ramped.errors[-1]


def test_the_published_ipndm_v_is_third_order_on_log_snr_grids_only():
    solver = solvers.get("ipndm_v:order=4")
    assert (solver.order_on("log_snr"), solver.order_on("karras:rho=5")) == (3, 2)
    for grid in ("log_snr", "karras"):
        found = verify.order(solver, grid=grid, steps=(1024, 2048, 4096), points=8)
        assert abs(found.slope - solver.order_on(grid)) < 0.15, found


@pytest.mark.parametrize("target", ["ring8", "spiral"])
@pytest.mark.parametrize("spec", ["heun:chart=noise", "dpm:order=3", "dpmpp:order=3,form=consistent", "ipndm:order=4", "amed"])
def test_orders_on_other_targets_and_the_karras_grid(spec, target):
    found = verify.order(spec, target=target, grid="karras", steps=(256, 512, 1024), points=16)
    assert abs(found.slope - solvers.get(spec).convergence_order) < 0.15, found


@pytest.mark.parametrize("spec", [pytest.param(s, marks=pytest.mark.slow) if s == "seeds_2" else s for s in SDES])
def test_strong_order_on_one_brownian_path_is_one(spec):
    # SEEDS-2 nears its order from above, on finer grids than the others.
    found = verify.strong_order(spec, steps=(32, 64, 128, *([256] if spec == "seeds_2" else [])), points=400)
    assert abs(found.slope - 1) < 0.2, found


@pytest.mark.parametrize(("spec", "expected"), WEAK.items())
def test_weak_order_without_sampling(spec, expected):
    assert abs(verify.weak_order(spec, steps=(256, 512, 1024)).slope - expected) < 0.05


def test_the_rule_drops_round_off_and_the_pre_asymptotic():
    steps = [2**k for k in range(3, 12)]
    errors = [max(n**-2.0, 1e-6) + (0.3 if n < 32 else 0) for n in steps]
    found = verify.fit_order(steps, errors, floor=1e-7)
    assert found.slope == pytest.approx(2, abs=1e-9)
    assert found.used == (32, 64, 128, 256, 512)
    assert found.low <= found.slope <= found.high
    with pytest.raises(ArgumentError, match="only 0 of 3 levels"):
        verify.fit_order([1, 2, 4], [1e-16, 1e-16, 1e-16], floor=1e-16)
    with pytest.raises(ArgumentError, match="three increasing numbers"):
        verify.fit_order([4, 2], [1.0, 1.0])


@pytest.mark.parametrize(("call", "options", "message"), [
    (verify.order, {"steps": ()}, "three increasing"), (verify.order, {"grid": [80.0, 1.0]}, "family of grids"),
    (verify.order, {"points": 0}, "points must"), (verify.strong_order, {"seed": -1}, "seed must"),
    (verify.strong_order, {"steps": (4, 2, 1)}, "three increasing"),
    (verify.weak_order, {"eigenvalues": "abc"}, "must be numbers"), (verify.weak_order, {"mean": [1.0]}, "must be numbers"),
])  # fmt: skip
def test_wrong_arguments_are_named(call, options, message):
    with pytest.raises(ArgumentError, match=message):
        call("ddim" if call is verify.order else "ddpm", **options)
    with pytest.raises(ArgumentError, match=">= 0"):
        verify.fit_order([1, 2, 4], [1.0, -1.0, 0.1])


@pytest.mark.parametrize("spec", ["ddpm", "dpmpp_2m_sde", "sa"])
def test_the_parts_of_an_sde_solvers_error_vanish_with_what_causes_them(spec):
    """On a short path the normal prior is far off; an SDE forgets it, and its discretisation part goes to 0 all the same."""
    errors = [verify.gaussian(spec, "vp:beta_max=4", "log_snr", [1.0], mean=2.0, steps=n).split for n in (100, 1000)]
    assert errors[1].discretisation < errors[0].discretisation / 8
    assert errors[1].prior == pytest.approx(errors[0].prior, rel=0.2)
    assert all(e.total <= e.prior + e.truncation + e.discretisation + 1e-12 for e in errors)


def test_variances_of_degenerate_data_lose_no_digits():
    """Low-rank data and a last step to sigma = 0: a deterministic solver's variance is exactly gain^2 times the start's."""
    for spec, path in (("deis", "vp"), ("ipndm", "rectified_flow"), ("lms", "edm")):
        found = verify.gaussian(spec, path, "karras:to_zero=true", [1.0, 1e-12, 0.0], steps=10)
        start = diffode.paths.get(path).sigma(diffode.paths.get(path).t_max) ** 2
        torch.testing.assert_close(found.law.variance, found.law.gain**2 * start, rtol=1e-14, atol=0)
        assert math.isfinite(found.w2)


@pytest.mark.parametrize(("spec", "h"), [(s, h) for s in ("ddim", "heun:chart=noise", "dpm:order=2") for h in (0.3, 2.0)])
def test_growth_of_one_step_methods_is_their_stability_function(spec, h):
    kappa = torch.tensor([-1.0, 0.0, 0.3, 0.9, 1.0, 1.5], dtype=torch.float64)
    q = 1 - kappa
    euler = 1 - q * (1 - math.exp(-h))
    expected = {
        "ddim": euler,
        # x + (rho' - rho)(e + e')/2 with e = q x/rho.
        "heun:chart=noise": 1 + (math.exp(-h) - 1) * q * (1 + euler * math.exp(h)) / 2,
        "dpm:order=2": 1 + (math.exp(-h) - 1) * q * math.exp(h / 2) * (1 - q * (1 - math.exp(-h / 2))),
    }[spec]
    torch.testing.assert_close(verify.growth(spec, h, kappa), expected.abs(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("h", [0.4, 1.0, 3.0])
def test_growth_of_two_step_exponential_adams_is_the_root_of_its_recurrence(h):
    """y'' = e^-h y' + k [(1 - e^-h) + (phi - 1) ...]: weights 1 - e^-h of D and h phi_2(-h) of its slope."""
    kappa = torch.tensor([-1.0, 0.2, 0.6, 0.95, 1.3], dtype=torch.float64)
    bend = (h - 1 + math.exp(-h)) / h
    for k, found in zip(kappa.tolist(), verify.growth("ab:order=2,chart=data", h, kappa).tolist(), strict=True):
        roots = np.roots([1, -(math.exp(-h) + k * (1 - math.exp(-h) + bend)), k * bend])
        assert found == pytest.approx(max(abs(roots)), rel=1e-6)


def test_a_deviation_that_a_step_removes_does_not_grow():
    """Euler's factor 1 - (1 - kappa)(1 - e^-h) has a zero at kappa = -e^-h/(1 - e^-h)."""
    zero = -math.exp(-1) / (1 - math.exp(-1))
    found = verify.growth("ddim", 1.0, [zero, zero - 1e-5, zero + 1e-3])
    assert bool((found < 1e-2).all())


def test_growth_checks_its_arguments():
    with pytest.raises(ArgumentError, match="chooses its own steps"):
        verify.growth("rk_adaptive", 0.1, [0.0])
    with pytest.raises(ArgumentError, match="step must lie in"):
        verify.growth("ddim", 0.0, [0.0])
    for step in (1e-320, 1e-13):
        with pytest.raises(ArgumentError, match=r"step must lie in \[1e-12, 5\], got 1e-"):
            verify.growth("ddim", step, [0.0])
    assert float(verify.growth("ddim", 1e-12, [0.0])) == pytest.approx(1, abs=1e-6)
    for step in ([], "1", None, True):
        with pytest.raises(ArgumentError, match="step must be a number"):
            verify.growth("ddim", step, [0.0])
    for kappa in ("x", None, -1):
        with pytest.raises(ArgumentError, match=r"kappa must be a vector \(K,\) of finite numbers, got"):
            verify.growth("ddim", 0.1, kappa)
    with pytest.raises(ArgumentError, match="kappa must be"):
        verify.growth("ddim", 0.1, [[math.nan]])


def test_order_and_noise_do_not_mix():
    with pytest.raises(ArgumentError, match="draws noise; use weak_order or strong_order"):
        verify.order("ddpm")
    with pytest.raises(ArgumentError, match="draws no noise; use order"):
        verify.strong_order("ddim")


@pytest.mark.parametrize("spec", ["ddim", "dpmpp_2m_sde", "sa"])
def test_gaussian_analysis_agrees_with_a_million_samples(spec):
    """Means within 4 standard errors sqrt(v/n), variances within 4 v sqrt(2/n)."""
    eigenvalues, mean, n = torch.tensor([0.3, 2.0], dtype=torch.float64), 0.5, 1_000_000
    found = verify.gaussian(spec, "vp", "log_snr", eigenvalues, mean=mean, steps=6)
    target = diffode.GaussianMixture([1.0], torch.full((1, 2), mean), eigenvalues[None])
    field = diffode.exact_field(target, "vp")
    start = field.path.prior((n, 2), generator=0)
    x = diffode.solve(field, start, solver=spec, grid="log_snr", steps=6, generator=1).x
    law = found.law
    assert bool(((x.mean(0) - law.mean).abs() < 4 * (law.variance / n).sqrt()).all())
    assert bool(((x.var(0) - law.variance).abs() < 4 * law.variance * math.sqrt(2 / n)).all())


def test_gaussian_analysis_splits_and_vanishes_with_the_step():
    coarse, fine = (verify.gaussian("heun:chart=noise", "vp", "log_snr", [1.0, 0.1], mean=1.0, steps=n) for n in (10, 1000))
    assert fine.split.discretisation < coarse.split.discretisation / 5_000
    assert coarse.split.prior == pytest.approx(fine.split.prior, rel=1e-12)
    assert coarse.w2 <= sum(coarse.split[:3]) + 1e-12
    assert coarse.nfe == 20
    # The mean that is left is that of the prior, 3 alpha(1), and the same for as many steps.
    assert 0 < fine.mean_error < 1e-2
    assert fine.mean_error == pytest.approx(float((fine.law.mean - 1.0).norm()), rel=1e-12)
    one = verify.gaussian("ddim", "edm", [2.0, 1.0], [0.7])
    # Euler in rho from 2 to 1 on N(0, .7): x (1 - rho/(c + rho^2)), with the prior's variance 4.
    gain = 1 - 2 / (0.7 + 4)
    assert float(one.law.variance) == pytest.approx(4 * gain**2, rel=1e-13)
    assert one.w2 == pytest.approx(abs(2 * gain - math.sqrt(0.7)), rel=1e-12)
    assert one.covariance_error == pytest.approx(abs(4 * gain**2 - 0.7), rel=1e-12)


def test_gaussian_analysis_checks_its_eigenvalues():
    with pytest.raises(ArgumentError, match="eigenvalues must be a vector"):
        verify.gaussian("ddim", "vp", "log_snr", [[1.0]], steps=3)
    with pytest.raises(ArgumentError, match="eigenvalues must be finite and >= 0"):
        verify.gaussian("ddim", "vp", "log_snr", [-1.0], steps=3)
    with pytest.raises(ArgumentError, match="eigenvalues must be numbers"):
        verify.gaussian("ddim", "vp", "log_snr", "one", steps=3)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: verify.order(
                "ddim", field=diffode.Field.from_denoised(lambda x, t: 0 * x, diffode.paths.get("edm")), grid="karras"
            ),
            "field must be an exact field",
            id="an order on a field of one's own",
        ),
    ],
)
def test_orders_are_measured_on_exact_fields(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
