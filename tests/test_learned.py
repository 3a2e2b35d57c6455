"""Trained samplers: the common form, exact derivatives, Gauss-Newton, what training promises, files."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffode
from diffode import Field, paths, solvers, testing
from diffode.errors import ArgumentError, BudgetError, FieldError, NumericalError
from diffode.learned import limit, published, train_gaussian, train_table, training
from diffode.learned.family import random_mixture
from diffode.learned.gauss_newton import Problem, _normal_equations, fit
from diffode.learned.limit import Limit
from diffode.learned.parameters import Levels, Table, from_shares, to_shares
from diffode.learned.problems import problem_for
from diffode.learned.sensitivities import Recording
from diffode.learned.training import output_weights
from diffode.randomness import keyed
from diffode.solvers.ranged import Ranged
from diffode.tableau.stages import Stages, count_of, from_vector, noise_function, to_vector

EDM = paths.get("edm")
ZOO = ["ddim", "edm_heun", "rk4:chart=noise", "dpm:order=3", "dpmpp:order=3", "unipc:order=3", "ipndm:order=4", "deis:order=3",
       "dpmpp_s:order=3", "lms", "dpm_m:order=3", "amed"]  # fmt: skip


def stages_of(spec, steps=3, path="edm", grid="karras"):
    return Stages.of(solvers.get(spec).tableau(paths.get(path), grid, steps))


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("spec", ZOO)
def test_every_published_sampler_has_the_common_form(spec, path):
    table = solvers.get(spec).tableau(paths.get(path), "karras", 4)
    field = diffode.exact_field("ring8", path)
    x = field.prior(6, generator=0)
    end = table.run(field, x)
    stages = Stages.of(table)
    assert stages.nfe == table.nfe
    again = stages.tableau(field.path)
    assert again.nfe == table.nfe
    torch.testing.assert_close(again.run(field, x), end, rtol=1e-9, atol=1e-9)
    alphas = [field.path.alpha(table.rows[i].time) for i in (0, -1)]
    torch.testing.assert_close(stages.run(noise_function(field), x / alphas[0]) * alphas[1], end, rtol=1e-9, atol=1e-9)


def test_rescaling_data_and_levels_changes_nothing():
    stages = stages_of("unipc:order=2")
    small = diffode.GaussianMixture([0.3, 0.7], [[0.0, 1.0], [2.0, -1.0]], [0.1, 0.3])
    large = diffode.GaussianMixture([0.3, 0.7], [[0.0, 10.0], [20.0, -10.0]], [10.0, 30.0])
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80
    ends = [s.run(noise_function(diffode.exact_field(t, "edm")), z * u)
            for t, s, u in ((small, stages, 1), (large, stages.scaled(10), 10))]  # fmt: skip
    torch.testing.assert_close(ends[1], 10 * ends[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", ["ddpm", "heun", "euler"])
def test_tables_without_a_common_form_are_refused(spec):
    with pytest.raises(ArgumentError, match="has no common form"):
        stages_of(spec)


def perturbed(stages, k, h):
    vector = to_vector(stages)
    vector[k] += h
    return from_vector(vector, stages.nfe, float(stages.levels[0]), float(stages.levels[-1]))


@pytest.mark.parametrize("target", ["ring8", "digits-gmm10"])
def test_derivatives_of_a_run_are_exact(target):
    """Against central differences of the run itself, whose own error is near 1e-8 here."""
    field = diffode.exact_field(target, "edm")
    noise, stages = noise_function(field), stages_of("unipc:order=2", 4)
    start = field.path.prior((3, field.dim), generator=0)
    directions = torch.randn(3, 2, field.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = Recording(noise, start, stages).gradients(directions)
    assert found.shape == (3, 2, count_of(stages.nfe))
    for k in range(found.shape[2]):
        h = 1e-6
        difference = (perturbed(stages, k, h).run(noise, start) - perturbed(stages, k, -h).run(noise, start)) / (2 * h)
        expected = torch.einsum("bsd,bd->bs", directions, difference)
        assert float((found[:, :, k] - expected).abs().max()) < 1e-6 * float(expected.abs().max()) + 1e-9


def parameter_sets():
    origin = stages_of("unipc:order=2", 4)
    yield "all", Table(origin)
    yield "consistent", Table(origin, consistent=True)
    yield "weights", Table(origin, levels=False, scales=False)
    yield "parallel", Table(origin, groups=(1, 2, 1))
    yield "parallel consistent", Table(origin, groups=(1, 2, 1), consistent=True)

    def write(levels):
        return Stages.of(solvers.get("lms:order=3").tableau(EDM, levels))

    yield "grid", Levels(origin.levels, write)


@pytest.mark.parametrize(("name", "parameters"), list(parameter_sets()), ids=lambda p: p if isinstance(p, str) else "")
def test_parameters_know_their_derivatives(name, parameters):
    values, first, last = parameters.start, 80.0, 0.002
    jacobian = parameters.jacobian(values, first, last)
    for k in range(len(values)):
        shift = torch.zeros_like(values)
        shift[k] = h = 1e-6 * max(1.0, abs(float(values[k])))
        up, down = (to_vector(parameters.stages(values + sign * shift, first, last)) for sign in (1, -1))
        torch.testing.assert_close(jacobian[:, k], (up - down) / (2 * h), rtol=1e-5, atol=1e-6 * float(jacobian.abs().max()))


def test_shares_of_levels_go_there_and_back():
    levels = torch.tensor([80.0, 10.0, 3.0, 0.5, 0.002], dtype=torch.float64)
    torch.testing.assert_close(from_shares(to_shares(levels), 80.0, 0.002), levels, rtol=1e-12, atol=0)
    any_values = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)
    assert bool((from_shares(any_values, 80.0, 0.002).diff() < 0).all())


def test_a_consistent_table_follows_constant_noise_exactly():
    origin = Table(stages_of("ipndm:order=3", 4), consistent=True)
    values = origin.start + 0.1 * torch.randn(
        len(origin.start), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    stages = origin.stages(values, 80.0, 0.002)
    z, e = torch.ones(2, 3, dtype=torch.float64), torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    end = stages.run(lambda x, rho: e.expand_as(x), z)
    torch.testing.assert_close(end, z + (0.002 - 80.0) * e, rtol=1e-12, atol=1e-12)


def test_evaluations_of_a_group_do_not_use_each_other():
    table = Table(stages_of("lms:order=3", 5), groups=(1, 2, 2))
    stages = table.stages(table.start, 80.0, 0.002)
    # Evaluation 2 is made at row 1, evaluation 4 at row 3: neither may use the one before it.
    assert stages.weights[1, 1] == 0
    assert stages.weights[3, 3] == 0
    assert stages.weights[0, 0] != 0
    assert stages.weights[4, 4] != 0
    with pytest.raises(ArgumentError, match="groups must be sizes"):
        Table(stages_of("lms:order=3", 5), groups=(2, 2))
    with pytest.raises(ArgumentError, match="first group of 1"):
        Table(stages_of("lms:order=3", 5), groups=(2, 3), consistent=True)


def test_the_derivatives_of_a_ranged_sampler():
    generator = torch.Generator().manual_seed(0)
    ranged = Ranged(
        3, (2.0, 800.0), (1e-5, 0.04), 64, 0.1 * torch.randn(9, count_of(3), generator=generator, dtype=torch.float64)
    )
    jacobian = ranged.jacobian(30.0, 0.01, 5)
    flat = ranged.coefficients.reshape(-1)
    for k in range(0, len(flat), 7):
        shift = torch.zeros_like(flat)
        shift[k] = 1e-6
        ends = [to_vector(Ranged(3, ranged.first, ranged.last, 64, (flat + s * shift).reshape(9, -1)).stages(30.0, 0.01, 5))
                for s in (1, -1)]  # fmt: skip
        torch.testing.assert_close(jacobian[:, k], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)


def gaussian_problem(variance=0.7, dim=1):
    """A Gaussian without sampling: one start of one standard deviation, followed exactly."""

    def noise(z, rho):
        return z * rho / (variance + rho**2)

    start = torch.full((1, dim), math.sqrt(variance + 25.0), dtype=torch.float64)
    end = torch.full((1, dim), math.sqrt(variance + 0.01), dtype=torch.float64)
    return Problem(noise, start, end, 1.0, 5.0, 0.1)


def test_a_gaussian_is_learned_exactly():
    """The affine flow of one Gaussian is in the family: training reaches rounding."""
    problem = gaussian_problem()
    edm = paths.get("edm:sigma_max=5,sigma_min=0.1")
    origin = Stages.of(solvers.get("ddim").tableau(edm, "karras", 2))
    found = fit(Table(origin), [problem], [problem])
    assert found.training[0] > 1e-2
    assert min(found.held_out) < 1e-13


def test_two_gaussian_directions_by_levels_alone_match_a_direct_search():
    """One inner level is free: its optimum is found by golden-section search on the same loss."""
    from scipy.optimize import minimize_scalar

    problems = [gaussian_problem(v) for v in (0.05, 1.0)]

    def write(levels):
        return Stages.of(solvers.get("ddim").tableau(EDM, levels))

    levels = Levels(torch.tensor([5.0, 1.0, 0.1], dtype=torch.float64), write)
    found = fit(levels, problems, problems)

    def loss(log_level):
        own = to_shares(torch.tensor([5.0, math.exp(log_level), 0.1], dtype=torch.float64))
        return sum(p.error(levels.stages(own, 5.0, 0.1)) for p in problems) / 2

    direct = minimize_scalar(loss, bounds=(math.log(0.15), math.log(4.5)), method="bounded", options={"xatol": 1e-10})
    assert min(found.held_out) == pytest.approx(direct.fun, rel=1e-6)


@pytest.mark.parametrize("target", ["ring8", "line16"])
def test_the_gradient_of_the_loss_is_exact_in_any_unit_and_dimension(target):
    """In 16 dimensions four directions a sample are enough, the first being that of the error."""
    field = diffode.exact_field(target, "edm")
    problem = problem_for(field, EDM, field.dim, 40, 1)
    table = Table(stages_of("ipndm:order=3", 4).scaled(1 / field.scale))
    first, last = problem.first, problem.last
    gradient, _ = _normal_equations(table, table.start, [problem], "mean", 0.0, 4, torch.Generator().manual_seed(0))

    def ends(values):
        return table.stages(values, first, last).scaled(field.scale).run(problem.noise, problem.start) - problem.end

    length = ends(table.start).norm(dim=1)
    weight = 1 / length.clamp(min=0.02 * float(length.median())) / (len(length) * field.scale)
    for k in range(len(table.start)):
        shift = torch.zeros_like(table.start)
        shift[k] = h = 1e-6
        both = [float((weight * ends(table.start + s * shift).square().sum(1)).sum()) / 2 for s in (1, -1)]
        assert float(gradient[k]) == pytest.approx(
            (both[0] - both[1]) / (2 * h), rel=1e-4, abs=1e-6 * float(gradient.abs().max())
        )


def test_the_curvature_from_random_directions_is_unbiased():
    """Its mean over 300 draws against the curvature of all 16 directions; each entry's own noise is near 5 %."""
    field = diffode.exact_field("line16", "edm")
    problem = problem_for(field, EDM, 16, 20, 1)
    table = Table(stages_of("ddim", 2).scaled(1 / field.scale))
    generator = torch.Generator().manual_seed(0)

    def curvature(count):
        return _normal_equations(table, table.start, [problem], "mean", 0.0, count, generator)[1]

    full = curvature(16)
    mean = sum(curvature(3) for _ in range(300)) / 300
    assert float((mean - full).norm() / full.norm()) < 0.02


def test_training_stops_when_held_out_starts_no_longer_gain():
    """Held out is a Gaussian of quite another variance, for which every step is a step away."""
    problem, other = gaussian_problem(0.01, 1), gaussian_problem(40.0, 1)
    origin = Table(Stages.of(solvers.get("ddim").tableau(EDM, [5.0, 2.0, 1.0, 0.5, 0.1])))
    found = fit(origin, [gaussian_problem(0.02), problem, gaussian_problem(0.3)], [other], patience=3)
    after = len(found.held_out) - 1 - found.held_out.index(min(found.held_out))
    assert after <= 4


def test_training_does_not_begin_a_step_that_the_time_is_too_short_for(monkeypatch):
    """A clock that stands still but for the steps, which take 1 second, then 3, then 1."""
    now = [0.0]
    monkeypatch.setattr(limit.time, "perf_counter", lambda: now[0])
    table = Table(Stages.of(solvers.get("ddim").tableau(EDM, [5.0, 2.0, 1.0, 0.5, 0.1])))
    problems = [gaussian_problem(0.02)]

    def pass_time(step, training, held):
        now[0] += {2: 3.0}.get(step, 1.0)

    # After the third step 5 seconds are gone, and another may take 3.
    found = fit(table, problems, problems, steps=7, limit=Limit(7.5), progress=pass_time)
    assert len(found.training) == 1 + 3
    assert found.stopped_by == "seconds"
    whole = fit(table, problems, problems, steps=3, limit=Limit(7.5))
    assert (len(whole.training), whole.stopped_by) == (1 + 3, "counts")


def test_a_ranged_sampler_with_constant_coefficients_is_the_sampler_it_came_from():
    stages = stages_of("lms:order=3", 4)
    found = Ranged.constant(stages, (2.0, 800.0), (1e-5, 0.04), 64).stages(80.0, 0.002, 3)
    torch.testing.assert_close(to_vector(found), to_vector(stages), rtol=1e-12, atol=1e-12)


def test_training_beats_every_published_start_on_starts_it_has_not_seen():
    trained = train_table("ring8", 6, points=1024, seed=3)
    checkpoint = trained.checkpoint
    # 3.8 times smaller: it begins from the member of the codebook that is best on these starts.
    assert checkpoint.held_out_error < checkpoint.start_error / 3
    field = diffode.exact_field("ring8", "edm")
    x = EDM.prior((300, 2), generator=99)
    exact = diffode.reference(field, x, 80.0, 0.002, 1e-8).x
    table = checkpoint.stages.scaled(checkpoint.scale).tableau(EDM)
    error = float((table.run(field, x) - exact).norm(dim=1).mean()) / field.scale
    assert error == pytest.approx(checkpoint.held_out_error, rel=0.5)
    # The history is that of mean errors of the end on either side; it ends at, or passes, what is returned.
    assert min(trained.held_out) == pytest.approx(checkpoint.held_out_error, rel=0.2)
    # 1,024 starts are few for 32 numbers: on themselves the error is 0.6 times that on others.
    assert min(trained.training) == trained.training[-1] < checkpoint.held_out_error


def test_a_history_counts_ends_alone_and_candidates_that_overflow_are_passed_over(monkeypatch):
    """The first of three candidates can't be trained from; the others are."""
    original, called = training.fit, []

    def failing(table, problems, held_out, **options):
        called.append(options["start"])
        if len(called) in (1, 4):
            raise NumericalError("training can't begin")
        return original(table, problems, held_out, **options)

    monkeypatch.setattr(training, "fit", failing)
    monkeypatch.setattr(published, "ATTEMPTS", 3)
    trained = train_table("ring8", 4, points=256)
    assert len(called) == 5
    stages = trained.checkpoint.stages
    field = diffode.exact_field("ring8", "edm")
    problem = problem_for(field, EDM, (2,), 256, keyed(0, "train_table", "training"))
    assert min(trained.training) <= problem.error(stages) < trained.training[0]
    assert trained.training[0] < trained.checkpoint.start_error
    monkeypatch.setattr(training, "fit", lambda *a, **k: failing_always())
    with pytest.raises(NumericalError, match="every published sampler overflows on ring8"):
        train_table("ring8", 4, points=64)


def failing_always():
    raise NumericalError("training can't begin")


def test_a_table_trained_on_a_spectrum_has_the_error_that_propagation_finds():
    """Eight directions and five evaluations: no table is exact, and the best published one is far off."""
    spectrum = torch.arange(1, 9, dtype=torch.float64) ** -2
    trained = train_gaussian(spectrum, 5, path="vp")
    checkpoint = trained.checkpoint
    assert checkpoint.held_out_error < checkpoint.start_error / 20
    law = checkpoint.stages.scaled(checkpoint.scale).tableau(paths.get("vp")).propagate(0.0, spectrum)
    path = paths.get("vp")
    deviation = [(path.alpha(t) ** 2 * spectrum + path.sigma(t) ** 2).sqrt() for t in (path.t_max, path.t_min)]
    found = float((law.gain.abs() * deviation[0] - deviation[1]).abs().mean())
    assert found / path.alpha(path.t_min) / checkpoint.scale == pytest.approx(checkpoint.held_out_error, rel=1e-6)
    for wrong in ([], [-1.0], [[1.0]], "abc"):
        with pytest.raises(ArgumentError, match="eigenvalues must be"):
            train_gaussian(wrong, 4)


def test_training_on_another_path_and_an_own_field():
    exact = diffode.exact_field("bimodal1d", "rectified_flow")
    field = Field.from_velocity(exact.velocity, exact.path, scale=exact.scale)
    trained = train_table(field, 4, dim=1, points=192)
    assert trained.checkpoint.held_out_error < trained.checkpoint.start_error / 2
    with pytest.raises(ArgumentError, match="dim is needed"):
        train_table(field, 4)


def test_what_can_not_be_trained_is_said():
    blind = Field.from_noise(lambda x, t: torch.from_numpy(x.detach().numpy() * 0.1), EDM)
    with pytest.raises(FieldError, match="can't be differentiated"):
        train_table(blind, 3, dim=1, points=8)
    with pytest.raises(ArgumentError, match="points must be"):
        train_table("ring8", 3, points=2)
    with pytest.raises(ArgumentError, match="seconds must be"):
        train_table("ring8", 3, seconds=0)
    with pytest.raises(ArgumentError, match="nfe must be"):
        train_table("ring8", 0)
    with pytest.raises(BudgetError, match="no run of exactly 3"):
        train_table("ring8", 3, start="edm_heun @ karras", points=8)
    with pytest.raises(NumericalError, match="can't begin"):
        fit(Table(Stages.of(solvers.get("ddim").tableau(EDM, "karras", 2))), [explosive()], [explosive()])


def explosive():
    return Problem(lambda z, rho: z * 1e300, torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1), 1.0, 80.0, 0.002)


def test_the_family_is_reproducible_and_of_unit_scale():
    for seed in range(20):
        target = random_mixture(seed)
        assert target.scale == pytest.approx(1, rel=1e-9)
        assert 1 <= target.dim <= 64
        assert 1 <= target.count <= 40
    assert random_mixture(7).content() == random_mixture(7).content()
    assert len({random_mixture(s).content() for s in range(20)}) == 20


@pytest.mark.parametrize("view", ["denoised", "noise", "score"])
def test_a_field_without_gradients_is_refused_whatever_view_it_gives(view):
    exact = diffode.exact_field("bimodal1d", "edm")
    blind = getattr(Field, f"from_{view}")(torch.no_grad()(getattr(exact, view)), EDM, scale=exact.scale)
    with pytest.raises(FieldError, match="can't be differentiated"):
        train_table(blind, 3, dim=1, points=8)
    with pytest.raises(FieldError, match="can't be differentiated"):
        diffode.learned.train_amed(blind, 2, dim=1, points=8, rounds=1)


@given(testing.solvers(), testing.fields(max_dim=3, max_modes=3), testing.seeds(), st.integers(2, 5))
def test_any_deterministic_sampler_is_its_common_form(solver, field, seed, steps):
    path = field.path
    table = solver.tableau(path, testing.random_times(seed, path, steps))
    if table.prediction not in ("noise", "denoised"):
        with pytest.raises(ArgumentError, match="no common form"):
            Stages.of(table)
        return
    x = field.prior(3, generator=seed % 2**31)
    first, last = path.alpha(path.t_max), path.alpha(path.t_min)
    stages = Stages.of(table)
    end = stages.run(noise_function(field), x / first) * last
    size = float(x.abs().max()) / first
    torch.testing.assert_close(end / size, table.run(field, x) / size, rtol=0, atol=1e-10)
    assert Stages.of(stages.tableau(path)).levels.allclose(stages.levels)


def test_weights_in_pictures_do_not_depend_on_how_the_start_is_shared():
    """Scales and first weights that trade z_0 against rho_0 e_0 leave them, and Euler's are differences of levels."""
    stages = stages_of("ddim")
    levels = stages.levels
    expected = torch.cat([levels[1:2], levels[2:] - levels[1:-1]]) / levels[:-1]
    torch.testing.assert_close(output_weights(stages), expected)
    weights = stages.weights.clone()
    weights[:, 0] -= 20 * levels[0]
    torch.testing.assert_close(output_weights(Stages(stages.scales + 20, weights, levels)), expected)
