"""SDE solvers: exact noise, their deterministic limits, identities among them, one Brownian path, batches."""

import math

import pytest
import torch
from solver_list import STOCHASTIC

import diffode
from diffode import paths, solvers
from diffode.errors import ArgumentError
from diffode.solvers.ancestral import step_down
from diffode.tableau import BrownianPath

EDM = paths.get("edm")

#: Even pure noise is only approximated in the noise chart, where its prediction x/sigma is no constant, by Euler-Maruyama, by
#: EDM's sampler with its inflated noise, and by Langevin steps. A consistency sampler ends at a denoised point.
APPROXIMATE = ("seeds", "dpm2", "euler_maruyama", "pc", "lcm")
KEEPS_PURE_NOISE = [s for s in STOCHASTIC if not s.startswith(APPROXIMATE) and s != "edm_stochastic"]
#: SDE solvers at zero noise, and the deterministic solvers they then are.
LIMITS = [
    ("ddim:eta=0", "euler:chart=noise"),
    ("euler_ancestral:eta=0", "ddim"),
    ("dpm2_ancestral:eta=0", "dpm:order=2"),
    ("dpmpp_2s_ancestral:eta=0", "dpmpp_s:order=2"),
    ("dpmpp_sde:eta=0", "dpmpp_s:order=2"),
    ("dpmpp_2m_sde:eta=0", "dpmpp:order=2,lower_order_final=never"),
    ("dpmpp_2m_sde:form=heun,eta=0", "dpmpp:order=2,form=taylor,lower_order_final=never"),
    ("dpmpp_3m_sde:form=consistent,eta=0", "ab:chart=data,order=3"),
    ("edm_stochastic:churn=0", "edm_heun"),
    ("sa:tau=0,corrector=0,form=consistent", "ab:chart=data,order=3"),
    ("seeds_1:eta=0", "ddim"),
    ("seeds_2:eta=0", "dpm:order=2"),
    ("seeds_3:eta=0", "dpm:order=3"),
    ("er_sde_1:scale=ode", "ddim"),
]


def end(spec, path="edm", steps=9, grid="karras", **options):
    field = diffode.exact_field("ring8", path)
    return diffode.solve(field, field.prior(5, generator=1), solver=spec, grid=grid, steps=steps, **options).x


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize(("spec", "limit"), LIMITS)
def test_without_noise_an_sde_solver_is_its_deterministic_one(spec, limit, path):
    assert not solvers.get(spec).stochastic
    assert solvers.get(spec).tableau(paths.get(path), "karras", 5).draws == 0
    torch.testing.assert_close(end(spec, path), end(limit, path), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path_name", ["edm", "vp", "rectified_flow", "vp_cosine"])
@pytest.mark.parametrize("spec", KEEPS_PURE_NOISE)
def test_pure_noise_keeps_its_exact_variance(spec, path_name):
    """Data at one point 0 (variance 0): the exact law at t is N(0, sigma^2), and every step has to keep it.

    With D = 0 whatever x is, exponential and ancestral solvers have nothing to approximate.
    """
    path = paths.get(path_name)
    for grid in ("log_snr", "karras"):
        table = solvers.get(spec).tableau(path, grid, 12)
        law = table.propagate(0.0, [0.0])
        assert float(law.variance) == pytest.approx(path.sigma(table.rows[-1].time) ** 2, rel=1e-12)


@pytest.mark.parametrize("spec", ["seeds_1", "seeds_2", "seeds_3", "dpmpp_sde", "dpmpp_2m_sde"])
def test_the_noise_of_a_step_is_that_of_the_reverse_sde(spec):
    """With the prediction 0 what is left is x's decay and the noise: in the noise chart var(x/alpha) grows by rho_s^2 - rho_t^2
    at eta = 1, in the data chart var(x/sigma) by 1 - e^(-2h)."""
    path = paths.get("vp")
    table = solvers.get(spec).tableau(path, "karras", 4)
    _, _, noise = table.dense()
    first = table.outputs[1]
    s, t = table.rows[0].time, table.rows[first].time
    added = float(noise[first].square().sum())
    if spec.startswith("seeds"):
        expected = path.alpha(t) ** 2 * (path.rho(s) ** 2 - path.rho(t) ** 2)
    else:
        expected = path.sigma(t) ** 2 * -math.expm1(-2 * (path.log_snr(t) - path.log_snr(s)))
    assert added == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("spec", STOCHASTIC)
def test_samples_have_the_moments_that_propagation_says(spec):
    """20,000 runs on N(0.7, 0.4), four steps; a standard error of the mean and of the variance is sqrt(v/n) and v sqrt(2/n)."""
    target = diffode.GaussianMixture([1.0], [[0.7]], [0.4])
    field = diffode.exact_field(target, "vp")
    table = solvers.get(spec).tableau(field.path, "log_snr", 4)
    law = table.propagate(0.7, [0.4])
    n = 20_000
    x = diffode.solve(field, field.prior(n, generator=3), solver=spec, grid="log_snr", steps=4, generator=4).x
    variance = float(law.variance)
    assert abs(float(x.mean()) - float(law.mean)) < 4.5 * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 4.5 * variance * math.sqrt(2 / n)


def test_one_sampler_under_three_names():
    noise = torch.randn(9, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    runs = [end(s, noise=noise) for s in ("ddpm", "ddim:eta=1", "euler_ancestral")]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(runs[0], runs[2], rtol=1e-13, atol=1e-13)


def test_ddim_follows_the_papers_variance():
    """theory.md of DDIM(eta): variance (kappa + L K)^2 v_t + s^2 at lambda=.5, a=.6, b=.8, a'=.8, b'=.6 is .632195 without
    noise and .430244 with s = b'; here from a path through these two levels."""
    path = paths.get("vp")
    first, last = (path.time_from_log_snr(math.log(a / b)) for a, b in ((0.6, 0.8), (0.8, 0.6)))
    law = solvers.get("ddim").tableau(path, [first, last]).propagate(0.0, [0.5])
    assert float(law.variance) == pytest.approx(0.632195, abs=1e-6)


@pytest.mark.parametrize("spec", ["dpmpp_2m_sde", "dpmpp_sde", "euler_maruyama"])
def test_a_row_does_not_depend_on_the_size_of_the_batch(spec):
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(40, generator=0)
    whole = diffode.solve(field, x, solver=spec, grid="karras", steps=6, generator=5).x
    part = diffode.solve(field, x[:7], solver=spec, grid="karras", steps=6, generator=5).x
    torch.testing.assert_close(part, whole[:7], rtol=1e-10, atol=1e-10)


def test_a_refined_brownian_path_keeps_its_values():
    """A coarse increment is the sum of the fine ones: sqrt(q) xi = sum sqrt(q_j) xi_j over the parts."""
    path = paths.get("edm")
    fine, coarse = (solvers.get("dpmpp_2m_sde").tableau(path, "log_snr", n) for n in (8, 4))
    brownian = diffode.BrownianPath((3, 2), seed=1)
    b = brownian.draws(coarse)
    a = brownian.draws(fine)
    for i, (start, stop) in enumerate(coarse.spans):
        parts = [math.sqrt(r - q) * a[2 * i + j] for j, (q, r) in enumerate(fine.spans[2 * i : 2 * i + 2])]
        torch.testing.assert_close(math.sqrt(stop - start) * b[i], sum(parts), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(brownian.draws(coarse), b, rtol=0, atol=0)
    assert abs(float(a.std()) - 1) < 0.4
    with pytest.raises(ArgumentError, match="no increments of a Brownian motion"):
        brownian.draws(solvers.get("ddim").tableau(path, "karras", 4))


def test_rows_of_a_brownian_path_do_not_depend_on_the_batch():
    table = solvers.get("dpmpp_2m_sde").tableau(paths.get("edm"), "log_snr", 8)
    small, large = (diffode.BrownianPath((n, 2), seed=1).draws(table) for n in (3, 9))
    torch.testing.assert_close(large[:, :3], small, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ddim:eta=-1", "eta must be a number >= 0"),
        ("ddim:eta=much", "eta must be a number >= 0"),
        ("dpmpp_2m_sde:order=3", "order must be one of 1, 2"),
        ("sa:predictor=9", "predictor must be one of"),
        ("sa:tau=-1", "tau must be a number >= 0"),
        ("er_sde:scale=loud", "scale must be one of"),
        ("er_sde:points=0", "points must be an integer from 1"),
        ("er_sde:form=consistent,points=50", "points goes with form=published"),
        ("edm_stochastic:churn=-3", "churn must be a number >= 0"),
        ("ddpm:variance=medium", "variance must be one of"),
        ("dpm_fast:evaluations=0", "evaluations must be an integer >= 1"),
        ("dpm_fast:evaluations=100001", "evaluations must be an integer >= 1 and <= 100000, got 100001"),
        ("pc:corrections=1000000000", "corrections must be an integer >= 0 .* and <= 1000, got 1000000000"),
        ("restart:repeats=1000000000", "repeats times inner must be <= 100000"),
        ("restart:repeats=400,inner=251", "got 400 and 251"),
    ],
)
def test_options_out_of_range_say_so(spec, message):
    with pytest.raises(ArgumentError, match=message):
        solvers.get(spec)


def test_noise_must_be_given_and_fit():
    with pytest.raises(ArgumentError, match="pass generator= or noise="):
        end("dpmpp_2m_sde")
    with pytest.raises(ArgumentError, match="noise must have shape"):
        end("dpmpp_2m_sde", noise=torch.zeros(3, 5, 2, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="non-finite"):
        end("dpmpp_2m_sde", noise=torch.full((9, 5, 2), math.nan, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="needs a path"):
        diffode.solve(
            diffode.Field.from_velocity(lambda x, t: -x), torch.ones(1, 2), solver="ddpm", grid=[1.0, 0.5], generator=0
        )


@pytest.mark.parametrize("path_name", ["edm", "vp"])
@pytest.mark.parametrize(
    "spec",
    ["ddpm", "euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde:eta=0.5",
     "dpmpp_3m_sde", "sa", "seeds_1", "seeds_2", "seeds_3", "er_sde_1", "er_sde_2"],
)  # fmt: skip
def test_without_a_field_runs_on_one_brownian_path_end_together(spec, path_name):
    """With the prediction 0 only decay and noise are left, which are exact: halving the steps must change nothing."""
    path = paths.get(path_name)
    make = diffode.Field.from_noise if solvers.get(spec).chart_name.startswith("noise_log") else diffode.Field.from_denoised
    field = make(lambda x, t: 0 * x, path)
    tables = [solvers.get(spec).tableau(path, "log_snr", n) for n in (32, 16, 8)]
    brownian = diffode.BrownianPath((4, 2), seed=3)
    x = path.sigma(path.t_max) * torch.ones(4, 2, dtype=torch.float64)
    if tables[0].prediction == "noise" and not spec.startswith("seeds"):
        field = diffode.Field.from_noise(lambda x, t: x / path.sigma(t), path)
    ends = [table.run(field, x, noise=brownian.draws(table)) for table in tables]
    for end_ in ends[1:]:
        torch.testing.assert_close(end_, ends[0], rtol=1e-8, atol=1e-9)


def test_bridged_increments_are_independent_standard_normals():
    """Asked for the coarse path first: 2,000 rows, standard errors sqrt(2/n) of a variance and 1/sqrt(n) of a correlation."""
    path, n = paths.get("edm"), 2000
    fine, coarse = (solvers.get("dpmpp_2m_sde").tableau(path, "log_snr", steps) for steps in (64, 32))
    brownian = diffode.BrownianPath((n, 1), seed=5)
    brownian.draws(coarse)
    draws = brownian.draws(fine)[..., 0]
    covariance = draws @ draws.T / n
    assert float((covariance.diagonal() - 1).abs().max()) < 4.5 * math.sqrt(2 / n)
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 4.5 / math.sqrt(n)


@pytest.mark.parametrize("spec", STOCHASTIC)
def test_the_cost_is_the_one_that_is_stated(spec):
    solver = solvers.get(spec)
    table = solver.tableau(paths.get("edm"), "karras", 7)
    # A restart comes down again twice, by two steps each.
    again = 2 * 2 if spec == "restart" else 0
    assert table.nfe == (7 + again) * solver.nfe_per_step
    assert table.draws <= table.nfe


@pytest.mark.parametrize("path", ["vp", "vp_cosine"])
def test_ddpm_with_the_larger_variance_is_exact_on_standard_normal_data(path):
    """Ho et al., section 3.2: sigma_t^2 = beta_t is optimal for x_0 ~ N(0, I), whose variance stays 1 on VP paths."""
    for steps in (3, 20):
        law = solvers.get("ddpm:variance=large").tableau(paths.get(path), "time_uniform", steps).propagate(0.0, [1.0])
        torch.testing.assert_close(law.variance, torch.ones(1, dtype=torch.float64), rtol=1e-12, atol=0)


def test_eta_counts_where_alpha_is_zero():
    path = paths.get("rectified_flow:t_max=1")
    assert solvers.get("dpmpp_2m_sde:eta=0").tableau(path, "time_uniform", 5).draws == 0
    assert step_down(path, 1.0, 0.8, 0.0)[:2] == (0.8, 0.0)
    assert step_down(path, 1.0, 0.8, 0.5)[1] == pytest.approx(0.5 * path.rho(0.8), rel=1e-12)
    with pytest.raises(ArgumentError, match="alpha must not vanish at the first time"):
        solvers.get("dpmpp_2s_ancestral:eta=0.25").tableau(path, "time_uniform", 5)


@pytest.mark.parametrize("spec", ["dpmpp_2m_sde:eta=60", "sa:tau=8.5"])
def test_very_large_noise_scales_run(spec):
    assert bool(end(spec, generator=0).isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.get("sa:tau_from=5,tau_to=1"), "tau_from must not exceed tau_to"),
        (lambda: solvers.get("edm_stochastic:noise_from=5,noise_to=1"), "noise_from must not exceed noise_to"),
        (lambda: solvers.get(solvers.get("ddim"), order=2), "go with a spec"),
        (lambda: paths.get(paths.get("vp"), beta_max=3), "go with a spec"),
        (lambda: solvers.get("seeds_2:order=3"), "fixes its option 'order'"),
        (lambda: end("ddim", noise=torch.zeros(1, 5, 2, dtype=torch.float64)), "draws no noise"),
        (lambda: end("ddpm", noise=torch.zeros(9, 5, 2, dtype=torch.float64), generator=0), "not both"),
        (lambda: end("ddpm", noise=torch.zeros(9, 5, 2, dtype=torch.complex128)), "must be real"),
        (lambda: end("ddpm", generator=2**70), "fit in 64 bits"),
        (lambda: diffode.BrownianPath((3, 2), seed=-1), "seed must be"),
        (lambda: diffode.BrownianPath((-3, 2), seed=1), "shape must be"),
        (lambda: diffode.BrownianPath((3, 2), seed=1).draws("ddim"), "tableau must be one"),
        (lambda: solvers.get("amed", r=[[0.5] * 5] * 3, direction_scale=[[1.0] * 4] * 3), "of one shape"),
    ],
)
def test_options_and_noise_that_would_be_ignored_or_fail_are_named(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("spec", ["er_sde:order=2", "er_sde:order=3", "sa:predictor=3,corrector=0", "dpmpp_2m_sde"])
def test_a_last_step_to_no_noise_returns_the_denoised_point(spec):
    field = diffode.exact_field("ring8", "edm")
    times = [20.0, 3.0, 0.4, 0.1, 0.0]
    table = diffode.solvers.get(spec).tableau(field.path, times)
    noise = torch.randn(table.draws, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = field.marginal(5, 20.0, generator=0)
    run = diffode.solve(field, x, solver=spec, grid=times, noise=noise, keep="all")
    torch.testing.assert_close(run.x, field.denoised(run.states[-2], 0.1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", ["er_sde_1", "er_sde_2", "er_sde:form=consistent"])
def test_noise_scales_that_overflow_are_refused_without_a_word_of_numpy(spec):
    """phi(1e10) = 1e10 (exp(1e3) + 10) is no number of float64; a warning would fail this test."""
    with pytest.raises(ArgumentError, match=r"writes no table on this grid .*: row 1 .* has a non-finite coefficient"):
        solvers.get(spec).tableau(paths.get("edm"), [1e10, 8e9, 5e9, 1e9, 1.0])


def test_a_run_upwards_from_no_noise_is_refused_without_a_word_of_numpy():
    """phi(0) = 0, by which the ODE limit of ER-SDE divides at its first step upwards."""
    field = diffode.exact_field("ring8", "trigonometric")
    with pytest.raises(ArgumentError, match="is singular on this grid"):
        diffode.solve(field, torch.ones(2, 2), solver="er_sde_3:scale=ode", grid="ays_sd15", nfe=5, upwards=True)


def test_a_brownian_path_goes_on_before_its_beginning():
    """A run that starts at more noise than the one before finds new increments there, and the old ones where it was."""
    late, early = (solvers.get("ddim:eta=1").tableau(EDM, times) for times in ([5.0, 1.0, 0.5], [80.0, 20.0, 5.0, 1.0, 0.5]))
    path = BrownianPath((20_000, 1), seed=0)
    first = path.draws(late)
    both = path.draws(early)
    torch.testing.assert_close(both[-2:], first)
    assert float(both[0].std()) == pytest.approx(1, abs=0.03)
    assert abs(float((both[0] * both[1]).mean())) < 0.03
    assert abs(float((both[1] * first[0]).mean())) < 0.03
