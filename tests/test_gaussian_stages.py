"""The common form in the Gaussian's chart: the same numbers for all directions, and tables with a coefficient for each."""

import pytest
import torch

import diffode
from diffode import paths, solvers
from diffode.errors import ArgumentError
from diffode.solvers.informed import informed
from diffode.statistics import Statistics
from diffode.tableau.gaussian_stages import GaussianStages, deviation_function, landed
from diffode.tableau.stages import Stages, noise_function

PATHS = ("edm", "vp", "rectified_flow")
SPECS = (
    "ab:order=2,chart=gaussian_angle",
    "ab:order=3,chart=gaussian",
    "unipc:order=2,chart=gaussian_asinh",
    "heun:chart=gaussian",
)


def random_form(known, path, nfe, seed):
    """Random numbers of a table with ``nfe`` evaluations between the ends of a path."""
    generator = torch.Generator().manual_seed(seed)
    first, last = path.rho(path.t_max), path.rho(path.t_min)
    weights = torch.randn(nfe + 1, nfe + 1, generator=generator).double().tril() * 0.3
    weights[:, 0] = 0
    inner = torch.linspace(1.2, -2.5, nfe).double().exp() * known.scale
    levels = torch.cat([torch.tensor([first], dtype=torch.float64), inner, torch.tensor([last], dtype=torch.float64)])
    return GaussianStages(Stages(torch.rand(nfe + 1, generator=generator).double() + 0.5, weights, levels), known)


@pytest.mark.parametrize("name", ["digits-gmm10", "spiral"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spec", SPECS)
def test_the_form_of_a_published_method_writes_its_table_again(name, path, spec):
    known, field = Statistics.of_target(name), diffode.exact_field(name, path)
    table = informed(f"{spec},jump=1", known).tableau(path, "karras:rho=3", 3)
    form = GaussianStages.of(table)
    again = form.tableau(path)
    x = field.prior(4, generator=0)
    assert again.nfe == form.nfe == table.nfe
    torch.testing.assert_close(again.run(field, x), table.run(field, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["full", "scale", "diagonal"])
@pytest.mark.parametrize("path", PATHS)
def test_a_table_runs_as_the_form_does_by_hand(kind, path):
    """The recursion in the points where the Gaussian's flow would land, written out, ends where the table ends."""
    field = diffode.exact_field("digits-gmm10", path)
    on, known = field.path, Statistics.of_target("digits-gmm10").reduced(kind)
    form = random_form(known, on, 3, 5)
    x = field.prior(6, generator=1)
    mean, covariance = known.mean, known.covariance
    values, vectors = torch.linalg.eigh(covariance)
    last = on.rho(on.t_min)

    def factor(level):
        return vectors @ torch.diag(((values + last**2) / (values + level**2)).sqrt()) @ vectors.T

    noise, levels = noise_function(field), form.stages.levels.tolist()
    w0 = (x / on.alpha(on.t_max) - mean) @ factor(levels[0])
    answers = []
    for i in range(4):
        w = form.stages.scales[i] * w0 + sum((form.stages.weights[i, j + 1] * e for j, e in enumerate(answers)), 0.0)
        level = levels[i + 1]
        z = mean + w @ torch.linalg.inv(factor(level))
        of_gaussian = mean + (z - mean) @ covariance @ torch.linalg.inv(covariance + level**2 * torch.eye(64).double())
        denoised = z - level * noise(z, level)
        answers.append((of_gaussian - denoised) / level @ factor(level))
    torch.testing.assert_close(form.tableau(on).run(field, x), on.alpha(on.t_min) * z, rtol=1e-8, atol=1e-8)


def test_the_deviation_is_what_changes_the_landing_point_along_the_flow():
    """dw/drho = e, by a central difference of the exact flow."""
    field = diffode.exact_field("spiral", "edm")
    known, (high, middle, low) = Statistics.of_target("spiral"), (0.7001, 0.7, 0.6999)
    x = 0.7 * torch.randn(8, 2, generator=torch.Generator().manual_seed(3)).double()
    upper, lower = (diffode.reference(field, x, middle, level, 1e-12).x for level in (high, low))
    slope = (landed(known, upper, high, 0.002) - landed(known, lower, low, 0.002)) / (high - low)
    answer = deviation_function(field, known, 80.0, 0.002, (2,))(landed(known, x, middle, 0.002), middle)
    torch.testing.assert_close(answer, slope, rtol=1e-5, atol=1e-6)


def test_one_gaussian_does_not_move_in_the_chart_and_any_unit_scales_of_one_are_exact():
    field = diffode.exact_field("gauss64-powerlaw", "vp")
    known = Statistics.of_target("gauss64-powerlaw")
    form = random_form(known, field.path, 2, 1)
    form = GaussianStages(Stages(torch.ones(3).double(), form.stages.weights, form.stages.levels), known)
    x = field.prior(16, generator=0)
    end = form.tableau("vp").run(field, x)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min).x
    torch.testing.assert_close(end, exact, rtol=1e-10, atol=1e-10)


def test_data_larger_by_a_factor_have_the_same_form_in_that_unit():
    field, edm = diffode.exact_field("moons", "edm"), paths.get("edm")
    form = random_form(Statistics.of_target("moons"), edm, 2, 2)
    large = diffode.Field.from_denoised(lambda x, t: 3 * field.denoised(x / 3, t / 3), paths.get("edm:t_min=0.006,t_max=240"))
    x = field.prior(5, generator=0)
    end = form.scaled(3.0).tableau(large.path).run(large, 3 * x)
    torch.testing.assert_close(end, 3 * form.tableau(edm).run(field, x), rtol=1e-9, atol=1e-9)


def test_a_saved_table_and_a_gaussian_carried_through_it_agree_with_the_run(tmp_path):
    known, edm = Statistics.of_target("gauss2d"), paths.get("edm")
    form = random_form(known, edm, 2, 3)
    table = form.tableau(edm)
    table.save(tmp_path / "t.safetensors")
    field, x = diffode.exact_field("gauss2d", edm), edm.prior((4, 2), generator=0)
    torch.testing.assert_close(diffode.Tableau.load(tmp_path / "t.safetensors").run(field, x), table.run(field, x))
    spread = table.propagate(known.mean_along(2), known.variances).variance.sqrt()
    torch.testing.assert_close(spread, form.stages.scales[-1] * (known.variances + 0.002**2).sqrt(), rtol=1e-10, atol=0)


def test_tables_that_have_no_such_form_are_refused():
    known = Statistics.of_target("digits-gmm10")
    for solver, said in (
        ("ipndm:order=3,jump=1", "other numbers in other directions"),
        ("ab:order=2,chart=gaussian_angle", "does not begin with a jump"),
        ("ab:order=2,chart=gaussian,eta=1,jump=1", "deterministic"),
    ):
        with pytest.raises(ArgumentError, match=said):
            GaussianStages.of(informed(solver, known).tableau("edm", "karras:rho=3", 3))
    with pytest.raises(ArgumentError, match="no common form"):
        GaussianStages.of(solvers.get("heun").tableau("edm", "karras", 3))
    good = random_form(known, paths.get("edm"), 2, 0).stages
    with pytest.raises(ArgumentError, match="no weight of the start's evaluation"):
        GaussianStages(Stages(good.scales, torch.ones(3, 3).double().tril(), good.levels), known)
    with pytest.raises(ArgumentError, match="below the first"):
        GaussianStages(Stages(good.scales, good.weights, good.levels.flip(0)), known)
