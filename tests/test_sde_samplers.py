"""Restart, predictor-corrector, consistency sampling, diffusion coefficients of one's own, and adaptive steps for SDEs."""

import itertools
import math

import pytest
import torch

import diffode
from diffode import solvers
from diffode.errors import ArgumentError, BudgetError, NumericalError
from diffode.randomness import RowNoise
from diffode.solvers.adaptive_sde import Increments
from diffode.solvers.euler_maruyama import FORMS, EulerMaruyama


def variance_of(field, table, start):
    """The variance of the end for a field linear in x (one dimension): every source of noise sent through alone."""
    rows = 1 + table.draws
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[0] = start
    noise = torch.zeros(table.draws, rows, 1, dtype=torch.float64)
    for k in range(table.draws):
        noise[k, 1 + k] = 1
    return float(table.run(field, x, noise=noise).square().sum())


# Restart


def test_restart_is_the_published_algorithm():
    """Algorithm 1 of arXiv 2306.14878 written out: EDM's Heun loop, up by noise at the nearest level, down again."""
    field = diffode.exact_field("ring8", "edm")
    levels = diffode.grids.get("karras:to_zero=true", field.path, 12).tolist()
    x = start = field.prior(6, generator=0)
    noise = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nearest = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.06))

    def heun(x, s, t):
        d = (x - field.denoised(x, s)) / s
        euler = x + (t - s) * d
        return euler if t == 0 else x + (t - s) * (d + (euler - field.denoised(euler, t)) / t) / 2

    for i in range(12):
        x = heun(x, levels[i], levels[i + 1])
        if i + 1 == nearest:
            low = levels[nearest]
            ladder = [(0.3 ** (1 / 7) + j / 4 * (low ** (1 / 7) - 0.3 ** (1 / 7))) ** 7 for j in range(4)] + [low]
            for k in range(3):
                x = x + noise[k] * 1.003 * math.sqrt(0.3**2 - low**2)
                for s, t in itertools.pairwise(ladder):
                    x = heun(x, s, t)
    spec = "restart:low=0.06,high=0.3,repeats=3,inner=4,inflation=1.003"
    run = diffode.solve(field, start, solver=spec, grid=levels, noise=noise)
    torch.testing.assert_close(run.x, x, rtol=1e-11, atol=1e-11)
    assert run.nfe == 2 * 12 - 1 + 3 * 2 * 4


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
def test_restart_keeps_the_law_and_forgets_the_start(path):
    on = diffode.paths.get(path)
    high = solvers.get("restart:low=0.5,high=20,repeats=1,inner=400")
    law = high.tableau(on, "log_snr", 400).propagate(0.5, [0.64])
    plain = solvers.get("edm_heun").tableau(on, "log_snr", 400).propagate(0.5, [0.64])
    exact = on.alpha(on.t_min) ** 2 * 0.64 + on.sigma(on.t_min) ** 2
    assert float(law.variance) == pytest.approx(exact, rel=2e-3)
    assert float(law.mean) == pytest.approx(on.alpha(on.t_min) * 0.5, rel=2e-3)
    assert float(law.gain) < 0.1 * float(plain.gain)


def test_a_restart_fits_budgets_and_grids_without_its_level_have_none():
    on = diffode.paths.get("edm")
    solver = solvers.get("restart")
    for nfe in (12, 20, 45):
        assert nfe - 2 < solver.within(on, "karras", nfe).nfe <= nfe
    assert solver.tableau(on, [80.0, 5.0, 1.0]).draws == 0
    with pytest.raises(BudgetError):
        solver.within(diffode.paths.get("edm"), "karras", 1)
    for bad in ("low=0", "high=0.01", "repeats=-1", "inner=0", "inner=1.5", "inflation=nan"):
        with pytest.raises(ArgumentError):
            solvers.get(f"restart:{bad}")


# Predictor-corrector


def test_predictor_corrector_is_the_published_loop():
    """score_sde's pc_sampler with corrector 'ald' and predictor 'ancestral_sampling' on a VE process, levels not rounded."""
    field = diffode.exact_field("ring8", "edm")
    levels = [80.0, 20.0, 4.0, 0.8, 0.1]
    x = start = field.prior(5, generator=0)
    noise = torch.randn(12, 5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draw = iter(noise)
    for s, t in itertools.pairwise(levels):
        for _ in range(2):
            step = 2 * (0.2 * s) ** 2
            x = x + step * field.score(x, s) + math.sqrt(2 * step) * next(draw)
        x = x + field.score(x, s) * (s**2 - t**2) + math.sqrt(t**2 * (s**2 - t**2) / s**2) * next(draw)
    run = diffode.solve(field, start, solver="pc:snr=0.2,corrections=2", grid=levels, noise=noise)
    torch.testing.assert_close(run.x, x, rtol=1e-11, atol=1e-11)
    assert run.nfe == 12


def test_langevin_steps_of_a_fixed_size_leave_the_bias_that_is_documented():
    """On a point mass x/sigma becomes (1 - 2 r^2) x + 2 r z, whose stationary variance is 1/(1 - r^2)."""
    r = 0.3
    table = solvers.get(f"pc:snr={r},corrections=400,eta=0").tableau(diffode.paths.get("edm"), [1.0, 0.5])
    law = table.propagate(0.0, [0.0], start="prior")
    assert float(law.variance) == pytest.approx(0.25 / (1 - r**2), rel=1e-10)


def test_without_corrections_the_predictor_is_left():
    on = diffode.paths.get("vp")
    plain = solvers.get("euler_ancestral").tableau(on, "karras", 6)
    for spec in ("pc:corrections=0", "pc:snr=0"):
        table = solvers.get(spec).tableau(on, "karras", 6)
        assert table.rows == plain.rows
    for bad in ("snr=1", "snr=-0.1", "corrections=-1", "corrections=0.5", "eta=-1"):
        with pytest.raises(ArgumentError):
            solvers.get(f"pc:{bad}")


# Consistency sampling


@pytest.mark.parametrize(("path", "end"), [("edm", 0.0), ("edm", 0.002), ("vp", 0.0)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_true_consistency_function_is_sampled_exactly_with_any_number_of_steps(path, end, steps):
    """For N(0, c) trajectories end at x/alpha sqrt((c + end^2)/(c + rho^2)): every sample has variance c + end^2."""
    on, c = diffode.paths.get(path), 0.64
    field = diffode.Field.from_denoised(
        lambda x, t: x / on.alpha(t) * math.sqrt((c + end**2) / (c + on.rho(t) ** 2)), on, probe=False
    )
    times = [*diffode.grids.get("karras", on, steps).tolist()[:-1], on.time_from_rho(end)]
    table = solvers.get(f"lcm:end={end}").tableau(on, times)
    first = on.alpha(times[0]) * math.sqrt(c + on.rho(times[0]) ** 2)
    scale = on.alpha(times[-1])
    assert variance_of(field, table, first) == pytest.approx(scale**2 * (c + end**2), rel=1e-9)
    assert (table.nfe, table.draws) == (steps, steps - 1)


def test_latent_consistency_sampling_is_the_public_loop():
    field = diffode.exact_field("ring8", "edm")
    levels = [80.0, 10.0, 1.0, 0.1, 0.0]
    x = start = field.prior(4, generator=0)
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for k in range(4):
        x = field.denoised(x, levels[k]) + (levels[k + 1] * noise[k] if levels[k + 1] else 0)
    torch.testing.assert_close(diffode.solve(field, start, solver="lcm", grid=levels, noise=noise).x, x)
    for bad in ("end=-1", "end=inf", "end=true"):
        with pytest.raises(ArgumentError):
            solvers.get(f"lcm:{bad}")


# Diffusion coefficients


def own(t):
    return 0.3 + t


def constant(value):
    return lambda t: value


@pytest.mark.parametrize("diffusion", [*FORMS, own, f"{__file__}:own"])
def test_every_diffusion_coefficient_leaves_the_law_of_the_data(diffusion):
    """The law's error on a Gaussian is of first order in the step: halved from 400 to 800 steps, and small."""
    on = diffode.paths.get("rectified_flow:t_min=0.05")
    exact = on.alpha(0.05) ** 2 * 0.64 + on.sigma(0.05) ** 2
    solver = EulerMaruyama(diffusion=diffusion)
    laws = [solver.tableau(on, "time_uniform", n).propagate(0.5, [0.64]) for n in (400, 800)]
    errors = [float(law.variance) - exact for law in laws]
    assert abs(errors[1]) < 0.01 * exact
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert float(laws[1].mean) == pytest.approx(0.95 * 0.5, abs=1e-3)


def test_the_noise_of_a_step_is_the_coefficient_at_its_start():
    on = diffode.paths.get("rectified_flow")
    for diffusion, g in (("constant", math.sqrt(2)), ("linear", math.sqrt(2 * 0.8)), (own, 1.1), ("sigma", math.sqrt(2 * 0.8)),
                         ("decreasing", (1 - math.cos(0.8 * math.pi)) / math.sqrt(2)),
                         ("increasing_decreasing", math.sqrt(2) * math.sin(0.8 * math.pi)),
                         ("path", on.diffusion(0.8))):  # fmt: skip
        table = EulerMaruyama(diffusion=diffusion, eta=0.5).tableau(on, [0.8, 0.55])
        assert table.rows[1].draws[0] == pytest.approx(0.5 * g * 0.5, rel=1e-12)


def test_wrong_diffusion_coefficients_are_named():
    on = diffode.paths.get("rectified_flow")
    for diffusion, words in (
        ("nonsense", "must be one of"),
        (3, "a name or a function"),
        (f"{__file__}:math", "not a function"),
    ):
        with pytest.raises(ArgumentError, match=words):
            EulerMaruyama(diffusion=diffusion).tableau(on, "time_uniform", 3)
    for function, words in (
        (lambda t: -1.0, "finite and >= 0"),
        (lambda t: math.nan, "finite"),
        (lambda t: 1 / 0, "fails at t"),
    ):
        with pytest.raises(ArgumentError, match=words):
            EulerMaruyama(diffusion=function).tableau(on, "time_uniform", 3)
    with pytest.raises(ArgumentError, match="times from 0 to 1"):
        solvers.get("euler_maruyama:diffusion=linear").tableau(diffode.paths.get("edm"), "karras", 3)


def test_a_coefficient_of_ones_own_is_part_of_the_solvers_content():
    first, second = (EulerMaruyama(diffusion=g) for g in (own, lambda t: 2.0))
    assert first.content() != second.content() != EulerMaruyama().content() == ""
    assert first.content() == EulerMaruyama(diffusion=f"{__file__}:own").content()
    made = [EulerMaruyama(diffusion=constant(value)).content() for value in (1.0, 2.0, 1.0)]
    assert made[0] == made[2] != made[1]


# Adaptive steps


def test_increments_of_rejected_steps_stay_brownian():
    """Steps are rejected for the sign and size of their noise, which biases whoever draws anew.

    Over n = 20,000 rows the mean of W(1) errs by 0.0071 and its variance by 0.01; redrawing moves the mean by more than 0.5.
    """
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    increments = Increments(torch.zeros(n, 1, dtype=torch.float64))
    total, at = torch.zeros(n, 1, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    middle = torch.full((n, 1), math.nan, dtype=torch.float64)
    step, active = torch.full((n,), 0.25, dtype=torch.float64), torch.arange(n)
    while len(active):
        z = torch.randn(len(active), 1, generator=generator, dtype=torch.float64)
        wish = torch.minimum(step[active], torch.where(at[active] < 0.5, 0.5, 1.0) - at[active])
        h, w = increments.take(active, wish, z)
        good = (w[:, 0] < 0.3 * h.sqrt()) | (h < 0.02)
        total[active] += torch.where(good[:, None], w, 0.0)
        at[active] += torch.where(good, h, 0.0)
        half = (at - 0.5).abs() < 1e-9
        middle = torch.where(half[:, None] & middle.isnan(), total, middle)
        increments.give_back(active[~good], h[~good], w[~good])
        step[active] = torch.where(good, 0.25, 0.5 * h)
        active = active[at[active] < 1 - 1e-9]
    assert abs(float(total.mean())) < 4 * n**-0.5
    assert abs(float(total.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float(middle.var()) - 0.5) < 4 * 0.5 * (2 / n) ** 0.5
    # What comes after the middle knows nothing of what came before.
    assert abs(float(((total - middle) * middle).mean())) < 4 * 0.5 * n**-0.5


def test_halves_of_a_rejected_increment_are_independent():
    """Of a bridge without its middle's variance, or with too much of it, both halves' variances or their covariance err."""
    n = 20_000
    generator = torch.Generator().manual_seed(1)
    increments, rows = Increments(torch.zeros(n, 1, dtype=torch.float64)), torch.arange(n)

    def taken(length):
        z = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return increments.take(rows, torch.full((n,), length, dtype=torch.float64), z)

    _, whole = taken(0.25)
    increments.give_back(rows, torch.full((n,), 0.25, dtype=torch.float64), whole)
    (length, first), (rest, second) = taken(0.125), taken(0.125)
    assert (length.unique().tolist(), rest.unique().tolist()) == ([0.125], [0.125])
    torch.testing.assert_close(first + second, whole, rtol=0, atol=1e-15)
    for half in (first, second):
        assert abs(float(half.mean())) < 4 * (0.125 / n) ** 0.5
        assert abs(float(half.var()) / 0.125 - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((first * second).mean())) < 4 * 0.125 * n**-0.5


def replayed(velocity, x, begin, end, rtol, atol):
    """The published algorithm for one number without noise, with a stack of the lengths that rejected steps leave."""
    length = begin - end

    def ladder(step):
        return length * 2 ** (math.floor(2 * math.log2(step / length)) / 2)

    at, last, step, stack, accepted, rejected = begin, x, ladder(0.01 * length), [], 0, 0
    while at > end:
        h = min(step, at - end)
        if stack and stack[-1] <= h * (1 + 1e-12):
            h = stack.pop()
        elif stack:
            stack[-1] -= h
        there = end if h >= (at - end) * (1 - 1e-12) else at - h
        first = -h * velocity(x, at)
        second = -h * velocity(x + first, there)
        ratio = abs(second - first) / 2 / max(atol, rtol * max(abs(x + first), abs(last)))
        factor = min(max(0.9 * max(ratio, 1e-10) ** -0.9, 0.2), 5.0)
        if ratio <= 1:
            x, last, at, accepted = x + (first + second) / 2, x + first, there, accepted + 1
            step = ladder(max(h * factor, step) if h < step * (1 - 1e-12) else h * factor)
        else:
            rejected += 1
            stack.append(h)
            step = ladder(h * min(factor, 0.9))
    return x, accepted, rejected


@pytest.mark.parametrize("begin", [80.0, 2.0])
def test_steps_are_controlled_as_published(begin):
    """Beside an independent loop; the last step's size counts where a state falls fast, and rejections where a mode is left."""
    field = diffode.exact_field("bimodal1d", "edm")
    x = begin * torch.tensor([[-1.3], [0.02], [0.9]], dtype=torch.float64)
    run = diffode.solve(field, x, solver="sde_adaptive:eta=0,rtol=0.02,atol=0.001", grid=[begin, 0.01])

    def velocity(y, t):
        return float(field.velocity(torch.tensor([[y]], dtype=torch.float64), t))

    for row in range(3):
        end, accepted, rejected = replayed(velocity, float(x[row]), begin, 0.01, 0.02, 0.001)
        assert (int(run.accepted[row]), int(run.rejected[row])) == (accepted, rejected)
        assert float(run.x[row]) == pytest.approx(end, rel=1e-9)
    assert int(run.rejected.sum()) > 3


def test_states_of_an_adaptive_run_can_be_differentiated():
    field = diffode.exact_field("gauss1d", "vp")
    x = field.prior(3, generator=0).requires_grad_()
    run = diffode.solve(field, x, solver="sde_adaptive:rtol=0.1,atol=0.1", grid=[1.0, 0.5, 0.001], generator=1, keep="all")
    (slope,) = torch.autograd.grad(run.states[1].sum(), x)
    assert torch.isfinite(slope).all()
    assert (slope != 0).all()


def test_adaptive_steps_give_the_law_of_the_data():
    """Mean and variance over 3,000 rows err by 0.0146 and 2.6 %; the tolerance's own bias is below that."""
    field = diffode.exact_field("gauss1d", "vp")
    x = field.prior(3_000, generator=0)
    run = diffode.solve(field, x, solver="sde_adaptive:rtol=0.02,atol=0.02", generator=1)
    assert run.success
    assert abs(float(run.x.mean()) - 0.5) < 4 * 0.0146
    assert abs(float(run.x.var()) / 0.64 - 1) < 4 * 0.026
    assert int(run.rejected.sum()) > 1000
    assert run.nfe == 2 * int((run.accepted + run.rejected).max())


def test_a_row_of_an_adaptive_run_does_not_depend_on_its_batch():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(12, generator=0)
    solver = "sde_adaptive:rtol=0.05,atol=0.05"
    grid = [80.0, 1.0, 0.002]
    seeds = list(range(12))
    together = diffode.solve(field, x, solver=solver, grid=grid, generator=seeds)
    for row in (0, 5, 11):
        alone = diffode.solve(field, x[row : row + 1], solver=solver, grid=grid, generator=[seeds[row]])
        assert int(alone.accepted[0]) == int(together.accepted[row])
        torch.testing.assert_close(alone.x[0], together.x[row], rtol=1e-8, atol=1e-8)


def test_without_noise_the_flow_is_left_and_tolerances_decide():
    field = diffode.exact_field("bimodal1d", "vp")
    x = field.prior(8, generator=0)
    true = diffode.reference(field, x, 1.0, field.path.t_min).x
    errors = [
        float((diffode.solve(field, x, solver=f"sde_adaptive:eta=0,rtol={tol},atol={tol}").x - true).abs().max())
        for tol in (1e-2, 1e-4)
    ]
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 10


def test_adaptive_steps_fail_in_words():
    field = diffode.exact_field("gauss1d", "vp")
    x = field.prior(3, generator=0)
    with pytest.raises(ArgumentError, match="draws noise; pass generator="):
        diffode.solve(field, x, solver="sde_adaptive")
    with pytest.raises(ArgumentError, match="some noise at the last time"):
        diffode.solve(field, x, solver="sde_adaptive", grid=[1.0, 0.0], generator=0)
    with pytest.raises(NumericalError, match="raise max_steps"):
        diffode.solve(field, x, solver="sde_adaptive:max_steps=4", generator=0)

    def broken(x, t):
        return torch.where(t.reshape(-1, 1) < 0.5, math.nan, -x) if isinstance(t, torch.Tensor) else -x

    bad = diffode.Field.from_score(broken, field.path, probe=False)
    run = diffode.solve(bad, x, solver="sde_adaptive", generator=0, on_failure="return")
    assert run.status.tolist() == [1, 1, 1]
    assert bool(run.x.isnan().all())
    for bad_option in ("rtol=0", "first_step=-1", "max_steps=0", "eta=-1"):
        with pytest.raises(ArgumentError):
            solvers.get(f"sde_adaptive:{bad_option}")


def test_noise_has_no_last_draw_for_runs_of_unknown_length():
    noise = RowNoise(torch.zeros(2, 2, dtype=torch.float64), 2**40, 0)
    assert not torch.equal(noise(10**9), noise(10**9 + 1))


def test_edms_churn_is_at_most_the_root_of_two():
    """gamma <= sqrt(2) - 1, table 5 of arXiv 2206.00364: a level is raised to sqrt(2) times itself at most."""
    path = diffode.paths.get("edm")
    table = diffode.solvers.get("edm_stochastic:churn=1000,noise_to=500").tableau(path, [10.0, 1.0, 0.1])
    assert float(table.times[1]) == pytest.approx(10 * math.sqrt(2), rel=1e-12)
