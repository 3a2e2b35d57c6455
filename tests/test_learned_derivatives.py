"""What training rests on: exact derivatives of a run, of parameters and of the loss; an unbiased curvature."""

import pytest
import torch
from test_common_form import stages_of

import diffode
from diffode import paths, solvers
from diffode.errors import ArgumentError
from diffode.learned.fitting.gauss_newton import normal_equations
from diffode.learned.fitting.parameters import Levels, Table, from_shares, to_shares
from diffode.learned.fitting.problems import problem_for
from diffode.learned.fitting.sensitivities import Recording
from diffode.solvers.trained.ranged import Ranged
from diffode.tableau.stages import Stages, count_of, from_vector, noise_function, to_vector

EDM = paths.get("edm")


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
    with pytest.raises(ArgumentError, match="groups must be integers"):
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


def test_a_ranged_sampler_with_constant_coefficients_is_the_sampler_it_came_from():
    stages = stages_of("lms:order=3", 4)
    found = Ranged.constant(stages, (2.0, 800.0), (1e-5, 0.04), 64).stages(80.0, 0.002, 3)
    torch.testing.assert_close(to_vector(found), to_vector(stages), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", ["ring8", "line16"])
def test_the_gradient_of_the_loss_is_exact_in_any_unit_and_dimension(target):
    """In 16 dimensions four directions a sample are enough, the first being that of the error."""
    field = diffode.exact_field(target, "edm")
    problem = problem_for(field, EDM, field.dim, 40, 1)
    table = Table(stages_of("ipndm:order=3", 4).scaled(1 / field.scale))
    first, last = problem.first, problem.last
    gradient, _ = normal_equations(table, table.start, [problem], "mean", 0.0, 4, torch.Generator().manual_seed(0))

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


def test_the_gradient_of_the_mean_logarithm_is_that_of_each_error_over_it():
    """d log(e + floor) = de/(e + floor), on problems whose scales and errors differ."""
    floor, problems = 3e-3, [problem_for(diffode.exact_field(name, "edm"), EDM, 2, 30, 1) for name in ("ring8", "moons")]
    table = Table(stages_of("ipndm:order=3", 4).scaled(1 / 3))

    def gradient(chosen, loss):
        return normal_equations(table, table.start, chosen, loss, floor, 2, torch.Generator().manual_seed(0))[0]

    errors = [problem.error(table.stages(table.start, problem.first, problem.last)) for problem in problems]
    assert errors[1] > 1.2 * errors[0] or errors[0] > 1.2 * errors[1]
    expected = sum(gradient([one], "mean") / (error + floor) for one, error in zip(problems, errors, strict=True)) / 2
    torch.testing.assert_close(gradient(problems, "log"), expected, rtol=1e-9, atol=1e-12)


def test_the_curvature_from_random_directions_is_unbiased():
    """Its mean over 300 draws against the curvature of all 16 directions; each entry's own noise is near 5 %."""
    field = diffode.exact_field("line16", "edm")
    problem = problem_for(field, EDM, 16, 20, 1)
    table = Table(stages_of("ddim", 2).scaled(1 / field.scale))
    generator = torch.Generator().manual_seed(0)

    def curvature(count):
        return normal_equations(table, table.start, [problem], "mean", 0.0, count, generator)[1]

    full = curvature(16)
    mean = sum(curvature(3) for _ in range(300)) / 300
    assert float((mean - full).norm() / full.norm()) < 0.02
