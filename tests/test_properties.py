"""Properties of random mixtures, paths, grids and solvers: equations, metamorphic relations, identities of solvers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import diffode
from diffode import Field, paths, solvers, targets, testing
from diffode.targets import GaussianMixture
from diffode.verify.field import equations, weak
from diffode.verify.field.likelihood import hutchinson


def close(a, b, relative, size=None):
    scale = float((b if size is None else size).abs().max())
    assert float((a - b).abs().max()) <= relative * max(scale, 1e-300)


def at(field, seed):
    t, x = testing.levels(field, seed)
    return equations.Points((t,), (x,))


@given(testing.fields(), testing.seeds())
def test_both_equations_and_the_score(field, seed):
    where = at(field, seed)
    for check in equations.pointwise(field, where):
        assert check.passed, check


@given(testing.fields(max_dim=2, max_modes=3), testing.seeds())
def test_weak_form_on_polynomials_is_exact(field, seed):
    check = weak.polynomial_check(field, at(field, seed).times[0])
    assert check.passed, check


@given(testing.fields(max_dim=6), testing.seeds())
def test_characteristic_function(field, seed):
    check = weak.fourier_check(field, at(field, seed).times[0], seed % 1000)
    assert check.passed, check


@given(testing.fields(max_dim=5), testing.seeds())
def test_hutchinson_over_all_signs_is_the_divergence(field, seed):
    t, x = testing.levels(field, seed, 3)
    signs = torch.tensor(list(np.ndindex(*[2] * field.dim)), dtype=torch.float64) * 2 - 1
    found = hutchinson(field, x, t, signs[:, None].expand(-1, len(x), -1))
    exact = field.divergence(x, t)
    close(found, exact, 1e-11, exact.abs() + abs(field.path.drift(t)) * field.dim)


VIEWS = ("velocity", "noise", "denoised", "score")


def parts(target):
    """Weights, means and full covariances of a mixture."""
    vectors, values = weak.component_axes(target)
    return target.weights, target.means, torch.einsum("kij,kj,klj->kil", vectors, values, vectors)


@given(testing.fields(min_modes=2), testing.seeds())
def test_permuting_or_splitting_components_changes_nothing(field, seed):
    weights, means, covariances = parts(field.target)
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))
    permuted = GaussianMixture(weights[order], means[order], covariances[order])
    split = GaussianMixture(*(torch.cat([p, p[:1]]) for p in (torch.cat([weights[:1] / 2, weights[1:]]), means, covariances)))
    t, x = testing.levels(field, seed)
    for other in (permuted, split):
        again = diffode.ExactField(other, field.path)
        for view in VIEWS:
            exact = field.predict(view, x, t)
            close(again.predict(view, x, t), exact, 1e-9, exact.abs() + x.abs())
        close(again.log_prob(x, t), field.log_prob(x, t), 1e-9, field.log_prob(x, t).abs() + 1)


@given(testing.fields(), testing.seeds(), st.integers(-2, 2))
def test_rotating_shifting_and_scaling_a_target_moves_its_field_along(field, seed, power):
    weights, means, covariances = parts(field.target)
    draw = np.random.default_rng(seed)
    turn = torch.from_numpy(np.linalg.qr(draw.normal(size=(field.dim, field.dim)))[0])
    shift = torch.from_numpy(draw.normal(size=field.dim))
    path = field.path
    t, x = testing.levels(field, seed)
    alpha, sigma = path.alpha(t), path.sigma(t)
    moved = diffode.ExactField(GaussianMixture(weights, means @ turn.T + shift, turn @ covariances @ turn.T), path)
    close(moved.noise(x @ turn.T + alpha * shift, t), field.noise(x, t) @ turn.T, 1e-8, field.noise(x, t).abs() + 1)
    # Data and noise scaled together: the same noise prediction.
    factor = 2.0**power
    scaled = diffode.ExactField(GaussianMixture(weights, factor * means, factor**2 * covariances), path)
    u = path.time_from_rho(factor * path.rho(t))
    assume(path.sigma(u) > 0 and math.isfinite(path.rho(u)))
    z = x / alpha * factor * path.alpha(u)
    close(scaled.noise(z, u), field.noise(x, t), 1e-7, field.noise(x, t).abs() + 1)
    assert sigma > 0


@given(testing.mixtures(), testing.seeds())
def test_all_paths_are_one_field_in_the_noise_chart(target, seed):
    reference = diffode.ExactField(target, paths.get("edm"))
    rho, z = testing.levels(reference, seed)
    rho = min(max(rho, 0.02), 60.0)
    exact = reference.noise(z, rho)
    for name in paths.names():
        path = paths.get(name)
        t = path.time_from_rho(rho)
        close(diffode.ExactField(target, path).noise(z * path.alpha(t), t), exact, 1e-8, exact.abs() + 1)


@given(testing.fields(), testing.seeds())
def test_rows_do_not_depend_on_their_batch(field, seed):
    t, x = testing.levels(field, seed)
    for view in VIEWS:
        together = field.predict(view, x, t)
        close(torch.cat([field.predict(view, row[None], t) for row in x]), together, 1e-11)


@given(testing.fields(max_modes=1), testing.seeds())
def test_one_component_has_an_affine_field(field, seed):
    t, x = testing.levels(field, seed, 6)
    middle = field.velocity((x[:3] + x[3:]) / 2, t)
    ends = field.velocity(x, t)
    close(middle, (ends[:3] + ends[3:]) / 2, 1e-10, ends)


@given(testing.fields(), testing.seeds(), st.sampled_from(VIEWS), st.sampled_from(VIEWS))
def test_any_view_gives_any_other(field, seed, known, wanted):
    t, x = testing.levels(field, seed)
    own = Field(lambda y, s: field.predict(known, y, s), known, field.path, probe=False)
    exact = field.predict(wanted, x, t)
    path = field.path
    # What a conversion may lose: x and the known view enter divided by alpha or sigma.
    size = exact.abs() + (x.abs() + field.noise(x, t).abs()) * (1 / path.alpha(t) + 1 / path.sigma(t)) * (
        1 + abs(path.alpha_derivative(t)) + abs(path.sigma_derivative(t))
    )
    close(own.predict(wanted, x, t), exact, 1e-11, size)


@given(testing.solvers(), testing.paths(), testing.seeds(), st.integers(1, 6))
def test_point_masses_are_solved_by_every_solver_that_is_exact_for_them(solver, path, seed, steps):
    """The noise prediction of one point is constant along the flow: consistency of every row of a table in x/alpha."""
    point = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 2)))
    # Written down, not a target: one point has no scale of its own.
    field = Field.from_denoised(lambda x, t: point.expand_as(x), path, probe=False)
    assume(solver.chart_name != "velocity" and solver.name != "euler")
    table = solver.tableau(path, testing.random_times(seed, path, steps))
    noise = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(4, 2)))
    x = path.alpha(path.t_max) * point + path.sigma(path.t_max) * noise
    end = table.run(field, x)
    exact = path.alpha(path.t_min) * point + path.sigma(path.t_min) * noise
    assert float((end - exact).abs().max()) < 1e-8 * path.rho(path.t_max)


@given(testing.solvers(), testing.fields(max_dim=2, max_modes=3), testing.seeds(), st.integers(2, 6))
def test_runs_are_equivariant_under_shifts_of_the_data(solver, field, seed, steps):
    table = solver.tableau(field.path, testing.random_times(seed, field.path, steps))
    assume(solver.chart_name != "velocity" and solver.name != "euler")
    weights, means, covariances = parts(field.target)
    shift = torch.from_numpy(np.random.default_rng(seed).normal(size=field.dim))
    other = diffode.ExactField(GaussianMixture(weights, means + shift, covariances), field.path)
    x = field.prior(3, generator=torch.Generator().manual_seed(seed))
    first, last = field.path.alpha(field.path.t_max), field.path.alpha(field.path.t_min)
    end, moved = table.run(field, x), table.run(other, x + first * shift)
    assume(float(end.abs().max()) < 1e3)
    assert float((moved - last * shift - end).abs().max()) < 1e-6 * (1 + float(end.abs().max()))


@given(testing.solvers(stochastic=None), testing.paths(), testing.seeds(), st.integers(1, 5))
def test_tables_carry_gaussians_as_samples_do(solver, path, seed, steps):
    """A Gaussian's law after a table, exactly, against runs from unit starts and draws: a table is affine on Gaussians."""
    assume(solver.chart_name != "velocity")
    mean, variance = 0.4, 0.3
    field = diffode.ExactField(GaussianMixture([1.0], [[mean]], [variance]), path)
    times = testing.random_times(seed, path, steps)
    try:
        table = solver.tableau(path, times)
    except diffode.errors.ArgumentError:
        assume(False)
    law = table.propagate(mean, torch.tensor([variance], dtype=torch.float64), start="exact")
    first = path.alpha(times[0]) ** 2 * variance + path.sigma(times[0]) ** 2
    starts = torch.cat([torch.zeros(1 + table.draws, 1), torch.ones(1, 1)]).double()
    starts = torch.cat([starts[:1], starts[-1:], torch.zeros(table.draws, 1).double()])
    noise = torch.zeros(table.draws, len(starts), 1, dtype=torch.float64)
    for k in range(table.draws):
        noise[k, 2 + k] = 1.0
    ends = table.run(field, starts, noise=noise if table.draws else None)[:, 0]
    gain, kicks = float(ends[1] - ends[0]), ends[2:] - ends[0]
    assert float(law.mean) == pytest.approx(float(ends[0]) + gain * path.alpha(times[0]) * mean, rel=1e-6, abs=1e-8)
    assert float(law.variance) == pytest.approx(gain**2 * first + float(kicks.square().sum()), rel=1e-6)


@given(testing.solvers(), testing.grid_specs(), testing.paths(), st.integers(1, 30))
def test_budgets_are_kept(solver, grid, path, nfe):
    try:
        table = solver.within(path, grid, nfe)
    except diffode.errors.ArgumentError:
        return
    assert 1 <= table.nfe <= nfe
    field = diffode.ExactField(targets.get("gauss1d"), path)
    run = solvers.run_tableau(table, field, field.prior(2, generator=0), on_failure="return")
    assert run.nfe == table.nfe


@given(st.sampled_from(targets.names()), testing.paths())
def test_registered_targets_keep_their_contract(name, path):
    target = targets.get(name)
    assert target is targets.get(name) or target.content() == targets.get(name).content()
    assert target.scale == pytest.approx(math.sqrt(float(target.variance.mean())), rel=1e-10)
    field = diffode.exact_field(target, path)
    x = field.prior(3, generator=4)
    assert x.shape == (3, target.dim)
    assert bool(field.velocity(x, path.t_max).isfinite().all())
    assert torch.equal(x, field.prior(3, generator=4))


def test_examples_are_their_seed_and_integers():
    first, again = (testing.mixture(11, 3, 4, "full", 1) for _ in range(2))
    assert first.content() == again.content()
    for kind in testing.KINDS:
        assert testing.mixture(1, 3, 2, kind, 0).dim == 3
    for spec in testing.DETERMINISTIC + testing.STOCHASTIC:
        assert solvers.get(spec).stochastic is (spec in testing.STOCHASTIC)
