"""AMED after a jump and in the Gaussian's chart: exact on one Gaussian, runs those of tables, exact gradients, files."""

import itertools
import json

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

import diffode
from diffode import Field, Statistics, paths, solvers
from diffode.cli import train_command
from diffode.errors import ArgumentError, BudgetError, FileFormatError
from diffode.learned import load, load_amed, train, train_amed
from diffode.learned.conditional.amed import LearnedAMED, Predictor, feature_width
from diffode.learned.conditional.amed_levels import AmedLevels
from diffode.learned.conditional.live import LiveWriter
from diffode.learned.fitting.problems import problem_for
from diffode.randomness import keyed
from diffode.tableau.gaussian_stages import GaussianStages, deviation_function, landed, raised
from diffode.tableau.stages import Stages

EDM = paths.get("edm")
SHORT = {"points": 64, "batch": 32, "rounds": 30, "per_step": False}


@pytest.fixture(scope="module")
def ring():
    return train_amed("ring8", 1, host="ipndm", analytic_first_step=False, chart="gaussian", **{**SHORT, "points": 128})


def untrained(times, host=None, analytic=False, in_chart=True, target="moons"):
    """One whose inner times lie at r = 1/2 in each step, with c = a = 1."""
    known, field = Statistics.of_target(target), diffode.exact_field(target, "edm")
    return field, known, LearnedAMED(
        predictor=Predictor(feature_width(field.dim)), times=tuple(times), levels=(times[0], times[-1]), unit=field.scale,
        host=host, analytic_first_step=analytic, statistics=known, in_chart=in_chart,
    )  # fmt: skip


@pytest.mark.parametrize("how", [{"chart": "gaussian"}, {"jump": "auto"}])
@pytest.mark.parametrize("host", [None, "euler"])
def test_one_gaussian_is_exact_with_one_evaluation(how, host):
    found = train_amed("gauss2d", 1, host=host, **how, **{**SHORT, "rounds": 3})
    field = diffode.exact_field("gauss2d", "edm")
    x = field.prior(20, generator=0)
    run = diffode.solve(field, x, **found.arguments)
    assert run.nfe == found.nfe == 1
    assert found.errors.after < 1e-10
    assert float((run.x - diffode.reference(field, x, 80.0, 0.002, 1e-12).x).abs().max()) < 1e-9


def test_it_is_better_than_what_it_began_from_on_starts_that_it_has_not_seen(ring):
    field = diffode.exact_field("ring8", "edm")
    x = field.path.prior((300, 2), generator=5)
    exact = diffode.reference(field, x, 80.0, 0.002).x
    run = diffode.solve(field, x, **ring.arguments)
    error = float((run.x - exact).norm(dim=1).mean()) / field.scale
    assert run.nfe == ring.nfe == 2
    assert error < 0.06 < ring.errors.before
    assert error == pytest.approx(ring.errors.after, rel=0.4)
    assert float(ring.solver.times[1]) < 10


@pytest.mark.parametrize(("host", "analytic"), [(None, False), (None, True), ("euler", False), ("dpm", True)])
def test_untrained_in_the_chart_it_is_a_table_there(host, analytic):
    """The rows of its recipe, written out by hand: an inner point at the geometric mean, and what the host makes of both."""
    levels = [80.0, 3.0, 0.5, 0.002]
    field, known, solver = untrained(levels, host, analytic)
    inner = [(a * b) ** 0.5 for a, b in itertools.pairwise(levels[1:])]
    at = [80.0, 3.0, inner[0], 0.5, inner[1], 0.002]
    weights = torch.zeros(5, 5, dtype=torch.float64)
    for begin in (1, 3):
        # Columns 1 and 3 are evaluations at the ends of steps, 2 and 4 those at inner points.
        whole, half = at[begin + 2] - at[begin], at[begin + 1] - at[begin]
        weights[begin:, begin] += half
        after = {None: (0.0, whole), "euler": (half, whole - half), "dpm": (0.0, whole)}[host]
        weights[begin + 1 :, begin] += after[0] - half
        weights[begin + 1 :, begin + 1] += after[1]
    if analytic:
        weights[:, 1] = 0
    stages = Stages(torch.ones(5).double(), weights, torch.tensor(at, dtype=torch.float64))
    x = field.path.prior((6, 2), generator=0)
    expected = GaussianStages(stages, known).tableau(EDM).run(field, x)
    torch.testing.assert_close(solver.run(field, x)[-1], expected, rtol=1e-10, atol=1e-10)


def test_untrained_after_a_jump_it_is_its_recipe_after_that_jump():
    field, known, solver = untrained([80.0, 3.0, 0.5, 0.002], "ipndm", in_chart=False)
    assert solver.chart_name == "noise"
    assert untrained([80.0, 3.0, 0.5, 0.002], "ipndm")[2].chart_name == "gaussian"
    x = field.path.prior((6, 2), generator=0)
    landed_at = known.flow(x, EDM, 80.0, 3.0)
    expected = solvers.get("amed:host=ipndm").tableau(EDM, [3.0, 0.5, 0.002]).run(field, landed_at)
    torch.testing.assert_close(solver.run(field, x)[-1], expected, rtol=1e-12, atol=1e-12)


def test_the_first_evaluation_of_an_analytic_step_after_a_jump_is_the_gaussians():
    """Its noise prediction, which the exact field of that Gaussian gives; and two rows of DPM-Solver-2 by hand."""
    field, known, solver = untrained([80.0, 3.0, 0.5], "dpm", analytic=True, in_chart=False)
    gaussian = diffode.exact_field(diffode.GaussianMixture([1.0], known.mean[None], known.covariance[None]), "edm")
    x = field.path.prior((6, 2), generator=0)
    begin = known.flow(x, EDM, 80.0, 3.0)
    middle = 1.5**0.5
    inner = begin + (middle - 3.0) * gaussian.noise(begin, 3.0)
    expected = begin + (0.5 - 3.0) * field.noise(inner, middle)
    torch.testing.assert_close(solver.run(field, x)[-1], expected, rtol=1e-10, atol=1e-10)


def test_the_trained_share_of_inner_times_is_the_predictors_first_answer():
    field, known, solver = untrained([80.0, 3.0, 0.5, 0.002])
    free = AmedLevels(known, field, EDM, 2, solver, 2.0)
    values = torch.tensor([0.3, -0.2, -0.7], dtype=torch.float64)
    predictor = free.solver(values).predictor
    with torch.no_grad():
        r, c, a = predictor(torch.ones(1, feature_width(2), dtype=torch.float64), (3.0, 0.5))
    assert float(r) == pytest.approx(float(torch.sigmoid(values[-1])), rel=1e-12)
    assert (float(c), float(a)) == (1.0, 1.0)
    assert float(solver.predictor.heads.bias[0].detach()) == 0.0
    assert free.solver(values).times == pytest.approx(free.times(values[:-1]))
    assert len(free.solver(values).times) == len(solver.times)


def test_in_the_chart_a_state_and_its_deviation_are_seen_in_units_of_the_data():
    field, _, solver = untrained([80.0, 3.0, 0.5, 0.002])
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    e = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    seen = solver.features(LiveWriter(field, "noise", w, 3.0, known=e), 0, 3.0)[0]
    state, deviation = w[0] / field.scale, e[0] * 3.0 / field.scale
    sizes = state.norm() / 2**0.5, deviation.norm() / 2**0.5
    torch.testing.assert_close(seen[:2], torch.stack(sizes))
    torch.testing.assert_close(seen[2], (state @ deviation) / (state.norm() * deviation.norm()))
    torch.testing.assert_close(seen[3:], torch.cat([state, deviation]))


def test_deviations_at_levels_of_rows_are_those_at_numbers_and_points_come_back():
    field, known = diffode.exact_field("gmm40", "edm"), Statistics.of_target("gmm40", "low_rank", rank=1)
    e = deviation_function(field, known, 80.0, 0.002, (2,))
    levels = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
    w = torch.cat([landed(known, x[k : k + 1], float(levels[k]), 0.002) for k in range(3)])
    alone = torch.cat([e(w[k : k + 1], float(levels[k])) for k in range(3)])
    torch.testing.assert_close(e(w, levels), alone, rtol=1e-9, atol=1e-12)
    assert not bool(e(w, 80.0).any())
    torch.testing.assert_close(raised(known, w[1:2], 2.0, 0.002), x[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("in_chart", [True, False])
def test_the_gradient_by_the_predictor_is_that_of_differences(in_chart):
    field, _, solver = untrained([80.0, 3.0, 0.5, 0.002], "ipndm", in_chart=in_chart)
    x = field.path.prior((5, 2), generator=1)
    bias = solver.predictor.heads.bias
    loss = solver.run(field, x)[-1].square().sum()
    gradient = torch.autograd.grad(loss, bias)[0]
    for k in (0, 1):
        both = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[k] += sign * 1e-5
                both.append(float(solver.run(field, x)[-1].square().sum()))
                bias[k] -= sign * 1e-5
        assert float(gradient[k]) == pytest.approx((both[0] - both[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_the_gradient_by_levels_and_the_share_of_inner_times_is_that_of_differences():
    field, known, solver = untrained([80.0, 3.0, 0.5, 0.002], "ipndm")
    free = AmedLevels(known, field, EDM, 2, solver, 2.0)
    problem = problem_for(field, EDM, 2, 48, keyed(1, "levels"))
    values = free.own("karras:rho=3")
    assert len(values) == 3
    assert free.times(values[:-1])[1] == pytest.approx(2 * known.largest)
    gradient, _ = free.equations(values, problem)
    for k in range(3):
        shift = torch.zeros_like(values)
        shift[k] = 1e-4
        up, down = (free.error(values + sign * shift, problem) for sign in (1, -1))
        assert float(gradient[k]) == pytest.approx((up - down) / 2e-4, rel=2e-3, abs=1e-7)


def test_a_file_gives_the_same_run_to_the_last_bit_and_runs_by_its_name(ring, tmp_path):
    file = tmp_path / "amed.safetensors"
    ring.save(file)
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(9, generator=2)
    expected = diffode.solve(field, x, **ring.arguments).x
    read = load(file)
    assert (read.nfe, read.errors, read.solver.in_chart) == (2, ring.errors, True)
    assert read.solver.content() == ring.solver.content()
    for how in ({"nfe": 2}, {}, {"grid": list(ring.solver.times)}):
        assert torch.equal(diffode.solve(field, x, solver=f"amed_learned:file={file}", **how).x, expected)
    with pytest.raises(BudgetError, match="trained for nfe=2 alone"):
        diffode.solve(field, x, solver=read.solver, nfe=3)
    images = Field.from_denoised(lambda x, t: field.denoised(x.flatten(1), t).reshape(x.shape), "edm", scale=field.scale)
    own = diffode.solve(images, x.reshape(-1, 1, 2), **read.arguments).x
    torch.testing.assert_close(own.flatten(1), expected, rtol=1e-12, atol=1e-12)


def test_statistics_with_more_coordinates_than_rows_train_too():
    """A vector and all that lies across it are three coordinates of a plane."""
    known = Statistics.of_target("ring8", "low_rank", rank=1)
    found = train_amed("ring8", 1, chart="gaussian", statistics=known, **{**SHORT, "points": 16, "rounds": 2})
    field = diffode.exact_field("ring8", "edm")
    assert diffode.solve(field, field.prior(3, generator=0), **found.arguments).nfe == 1


def test_spoilt_files_are_refused(ring, tmp_path):
    good = tmp_path / "good.safetensors"
    ring.save(good)
    with safe_open(good, framework="pt") as content:
        facts = json.loads(content.metadata()["diffode"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    for k, (told, changed) in enumerate((
        ({"statistics": None}, {}), ({}, {"statistics_mean": None}), ({"in_chart": 3}, {}), ({"times": [80.0, 0.002]}, {}),
        ({}, {"statistics_variances": -tensors["statistics_variances"]}), ({"host": "dpmpp"}, {}),
        ({"statistics": None}, {name: None for name in tensors if name.startswith("statistics")}),
    )):  # fmt: skip
        parts = {name: part for name, part in {**tensors, **changed}.items() if part is not None}
        file = tmp_path / f"bad{k}.safetensors"
        save_file(parts, str(file), metadata={"diffode": json.dumps({**facts, **told})})
        with pytest.raises(FileFormatError):
            load_amed(file)


def test_wrong_arguments_name_the_fix(ring):
    unknown = Field.from_denoised(diffode.exact_field("ring8", "edm").denoised, "edm", scale=1.0)
    three = Statistics.of_covariance(torch.zeros(3), torch.eye(3))
    for options, said in (
        ({"chart": "gauss"}, "chart must be one of noise, gaussian"),
        ({"statistics": "scale"}, "statistics go with jump=auto"),
        ({"jump": "far"}, "jump must be"),
        ({"jump": 900.0}, "give a jump in"),
        ({"jump": "auto", "statistics": three}, "3 coordinates"),
        ({"jump": "auto", "statistics": Statistics.of_target("ring8").scaled(9.0)}, "another unit"),
        ({"jump": "auto", "grid": [80.0, 1.0, 0.002]}, "grid must be a named one"),
        ({"chart": "gaussian", "host": "dpmpp", "analytic_first_step": False}, "take another host than dpmpp"),
        ({"chart": "gaussian", "hook": lambda x, t: x}, "leave the hook out"),
    ):
        with pytest.raises(ArgumentError, match=said):
            train_amed("ring8", 2, **{**SHORT, **options})
    with pytest.raises(ArgumentError, match="has to know mean and covariance"):
        train_amed(unknown, 2, dim=2, jump="auto", **SHORT)
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match="2 coordinates, but rows have 3"):
        diffode.solve(Field.from_denoised(lambda x, t: x, "edm"), torch.ones(1, 3).double(), **ring.arguments)
    with pytest.raises(ArgumentError, match=r"use x.double\(\)"):
        diffode.solve(field, field.prior(2, generator=0).float(), **ring.arguments)


def test_by_name_with_the_scale_alone_and_from_the_command_line(tmp_path, monkeypatch):
    found = train("amed:jump=auto,statistics=scale", "ring8", 1, points=32, steps=2)
    assert found.solver.statistics.kind == "scale"
    assert not found.solver.in_chart
    monkeypatch.chdir(tmp_path)
    asked = ["amed:chart=gaussian,host=ipndm", "--target", "ring8", "--nfe", "1", "--points", "8", "--steps", "2", "--json"]
    done = CliRunner().invoke(train_command.command, asked)
    assert done.exit_code == 0, (done.output, done.exception)
    facts = json.loads(done.stdout)
    assert facts["nfe"] == 1
    field = diffode.exact_field("ring8", "edm")
    assert diffode.solve(field, field.prior(2, generator=0), solver=facts["solver"], nfe=1).nfe == 1
