"""Tables trained in the Gaussian's chart: what is free, the same end after growing, exact Gaussians, files, and refusals."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import diffode
from diffode import Field, paths, solvers
from diffode.errors import ArgumentError, BudgetError, FileFormatError, TrainedElsewhereWarning
from diffode.learned import condition, load, train, train_table
from diffode.learned.fitting.chart import HIGHEST, ChartTable, in_chart
from diffode.learned.fitting.gauss_newton import normal_equations
from diffode.learned.fitting.problems import problem_for
from diffode.learned.limit import Limit
from diffode.learned.tables.in_chart import chart_candidates, gaussians, grown
from diffode.learned.tables.training import output_weights
from diffode.randomness import keyed
from diffode.statistics import Statistics
from diffode.tableau.gaussian_stages import START, GaussianStages, landed
from diffode.tableau.stages import Stages

EDM = paths.get("edm")


@pytest.fixture(scope="module")
def spiral():
    return train_table("spiral", 3, chart="gaussian", points=192, steps=12)


@pytest.fixture(scope="module")
def problem():
    field = diffode.exact_field("moons", "edm")
    return in_chart(problem_for(field, EDM, 2, 48, keyed(1, "chart")), field, Statistics.of_target("moons"))


@pytest.fixture(scope="module")
def origin(problem):
    """A table of two evaluations with numbers of no method."""
    weights = torch.zeros(3, 3, dtype=torch.float64)
    weights[1:, 1] = torch.tensor([-0.3, -0.5])
    weights[2, 2] = -0.1
    levels = torch.tensor([problem.first, 0.8, 0.2, problem.last], dtype=torch.float64)
    return Stages(torch.tensor([1.0, 0.98, 1.01], dtype=torch.float64), weights, levels)


def test_it_jumps_and_is_several_times_better_than_the_best_solver_of_hundreds_after_a_jump(spiral):
    field = diffode.exact_field("spiral", "edm")
    x = field.path.prior((512, 2), generator=11)
    exact = diffode.reference(field, x, 80.0, 0.002).x
    run = diffode.solve(field, x, **spiral.arguments)
    error = float((run.x - exact).norm(dim=1).mean()) / field.scale
    # Adams in the chart after the best of eight jumps reaches 0.017 at four evaluations.
    assert run.nfe == spiral.nfe == 3
    assert error < 0.008
    assert error == pytest.approx(spiral.errors.after, rel=0.25)
    table = spiral.solver.tableau("edm", [80.0, 0.002])
    assert table.evaluated[0] == 1
    assert table.directed
    assert EDM.rho(table.rows[1].time) < 3 * field.scale


def test_the_field_is_asked_as_often_as_the_table_says_and_not_at_the_start(spiral):
    asked = []
    field = diffode.exact_field("spiral", "edm")

    def noise(x, t):
        asked.append(float(t))
        return field.noise(x, t)

    told = Field.from_noise(noise, "edm", scale=field.scale)
    spiral.solver.tableau("edm", [80.0, 0.002]).run(told, field.path.prior((3, 2), generator=0))
    assert len(asked) == 3
    assert max(asked) < 5.0


def test_one_gaussian_is_exact_with_one_evaluation():
    assert train_table("gauss2d", 1, chart="gaussian", points=32, steps=2).errors.after < 1e-12


def test_errors_in_the_chart_are_errors_of_the_points(problem, origin):
    """Its table, run on the field, has the error that the training counts."""
    field, known = diffode.exact_field("moons", "edm"), Statistics.of_target("moons")
    plain = problem_for(field, EDM, 2, 48, keyed(1, "chart"))
    table = GaussianStages(origin.scaled(field.scale), known).tableau(EDM)
    error = float((table.run(field, plain.start) - plain.end).norm(dim=1).mean()) / field.scale
    assert problem.error(origin) == pytest.approx(error, rel=1e-10)


def test_the_gradient_of_every_free_number_is_that_of_differences_the_first_level_included(problem, origin):
    table = ChartTable(origin)
    values = table.start
    # Scales of two states, three weights and two levels, the first among them.
    assert len(values) == 7
    gradient, _ = normal_equations(table, values, [problem], "mean", 0.0, 4, keyed(0, "directions"))
    for k in range(len(values)):
        shift = torch.zeros_like(values)
        shift[k] = 1e-5
        up, down = (problem.error(table.stages(values + s * shift, problem.first, problem.last)) for s in (1, -1))
        assert float(gradient[k]) == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-8)


def test_states_in_between_and_their_gradient_are_those_of_the_exact_flow_in_the_chart(origin):
    """The states that count are where the flow would land, and their error has the gradient of differences."""
    field, known = diffode.exact_field("moons", "edm"), Statistics.of_target("moons")
    plain = problem_for(field, EDM, 2, 24, keyed(1, "chart"), 0.5)
    both = in_chart(plain, field, known)
    level = 0.5 * field.scale
    exact = diffode.reference(field, plain.start, 80.0, level, 1e-10).x
    torch.testing.assert_close(both.trajectory.at(level)[0], landed(known, exact, level, 0.002), rtol=1e-3, atol=1e-3)
    table = ChartTable(origin)
    gradient, _ = normal_equations(table, table.start, [both], "mean", 0.0, 4, keyed(0, "directions"))
    for k in range(len(gradient)):
        shift = torch.zeros_like(gradient)
        shift[k] = 1e-5
        up, down = (both.error(table.stages(table.start + s * shift, both.first, both.last)) for s in (1, -1))
        assert float(gradient[k]) == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-6)


def test_levels_stay_below_the_start_and_above_the_end(problem, origin):
    table = ChartTable(origin)
    far = table.start
    far[-2:] = torch.tensor([99.0, -99.0])
    levels = table.stages(table.confined(far, problem.first, problem.last), problem.first, problem.last).levels
    assert problem.last * (1 - 1e-9) <= float(levels[2]) < float(levels[1]) < problem.first * (1 - 1e-5)


def test_a_grown_table_has_one_evaluation_more_and_the_same_end(problem, origin):
    tables = list(grown(origin))
    assert [table.nfe - 1 for table in tables] == [3, 3, 3]
    for table in tables:
        assert problem.error(table) == pytest.approx(problem.error(origin), rel=1e-12)
        assert bool((table.levels.diff() < 0).all())
        assert not table.weights[:, 0].any()
    assert [int((table.weights[-1, 1:] == 0).nonzero()) for table in tables] == [0, 1, 2]


def test_nothing_grows_between_the_start_and_a_first_level_that_lies_there(problem, origin):
    """At the start the field of the chart is 0 and has no gradient, so that no table there can be trained."""
    first = origin.levels.clone()
    first[1] = first[0] * HIGHEST
    squeezed = replace(origin, levels=first)
    for _ in range(2):
        tables = list(grown(squeezed))
        assert len(tables) == squeezed.nfe - 1
        squeezed = tables[0]
        assert bool((squeezed.levels[1:] < START * squeezed.levels[0]).all())
        table = ChartTable(squeezed)
        gradient, _ = normal_equations(table, table.start, [problem], "mean", 0.0, 4, keyed(0, "directions"))
        assert bool(gradient.isfinite().all())


def test_a_table_two_of_whose_levels_have_met_grows_too(problem, origin):
    levels = origin.levels.clone()
    levels[2] = levels[1]
    met = Stages(origin.scales, origin.weights, levels)
    for table in grown(met):
        assert problem.error(table) == pytest.approx(problem.error(met), rel=1e-12)


def test_growing_from_a_smaller_table_is_no_worse_than_it(spiral):
    four, again = (
        train_table("spiral", 4, chart="gaussian", points=192, smaller=spiral, steps=8, stop=_after(30)) for _ in range(2)
    )
    assert four.errors.after < spiral.errors.after
    assert torch.equal(four.content.stages.weights, again.content.stages.weights)


@pytest.fixture(scope="module")
def sharp():
    """Twelve modes that are almost points in 24 dimensions, of a spectrum that decays."""
    draws = torch.randn(12, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    means = draws * torch.arange(1, 25) ** -0.5
    return diffode.targets.GaussianMixture(torch.full((12,), 1 / 12), means, torch.full((12,), 1e-6))


def test_the_chart_of_the_scale_alone_is_taken_where_it_gives_the_better_table(sharp):
    found, given = (train_table(sharp, 2, chart="gaussian", points=96, steps=8, statistics=kind) for kind in (None, "scale"))
    full = train_table(sharp, 2, chart="gaussian", points=96, steps=8, statistics="full")
    assert found.content.statistics.kind == "scale"
    # Modes without width are told by one evaluation at a high level, whose answer all directions share: by nearly half.
    assert found.errors.after == pytest.approx(given.errors.after, rel=0.02)
    assert found.errors.after < 0.7 * full.errors.after
    # Read on another machine, the statistics are the same but for rounding.
    rounded = replace(found.content, statistics=found.content.statistics.scaled(1 + 1e-12))
    assert rounded.statistics.content != found.content.statistics.content
    three = train_table(sharp, 3, chart="gaussian", points=96, steps=1, smaller=rounded)
    assert (three.content.statistics.kind, three.content.begun_from[:12]) == ("scale", "grown from 2")
    begun = train_table(sharp, 2, chart="gaussian", points=64, steps=1, begin_from="ab:order=1,chart=gaussian,jump=1")
    assert begun.content.statistics.kind == "full"


def test_on_data_of_another_scale_no_move_is_advised_since_the_mean_and_covariance_are_of_its_own(spiral):
    field = diffode.exact_field("ring8", "edm")
    with pytest.warns(TrainedElsewhereWarning, match="mean and covariance of its own: train it on this field"):
        diffode.solve(field, field.prior(2, generator=0), **spiral.arguments)


def test_a_table_grows_in_its_own_chart_alone(problem, spiral):
    known = Statistics.of_target("moons")
    found = chart_candidates(problem, known, EDM, 4, None, spiral.content, Limit())
    assert {one.name.rpartition(",")[0] for one in found if "grown" in one.name} == {"grown from 1 evaluation"}


def test_the_chart_of_the_covariance_is_taken_where_it_gives_the_better_table():
    found, scale = (train_table("line16", 2, chart="gaussian", points=64, steps=4, statistics=kind) for kind in (None, "scale"))
    assert found.content.statistics.kind == "full"
    assert found.errors.after < 0.6 * scale.errors.after


def test_data_alike_in_all_directions_have_one_chart_and_gaussians_theirs():
    for name, charts in (("ring8", 1), ("spiral", 2), ("gauss64-powerlaw", 1)):
        assert len(gaussians(Statistics.of_target(name))) == charts


def _after(calls):
    """A request to stop at the so-manieth step."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def test_by_name_with_the_scale_alone_and_from_one_method():
    found = train("bespoke:chart=gaussian,statistics=scale", "spiral", 2, points=64, steps=5)
    assert found.content.statistics.kind == "scale"
    method = "ab:order=2,chart=gaussian,jump=1"
    one = train_table("ring8", 2, chart="gaussian", points=32, steps=1, begin_from=method)
    assert one.facts.begun_from == f"{method} @ karras:rho=3"


def test_a_file_holds_the_statistics_and_runs_anywhere_by_its_name(spiral, tmp_path):
    file = tmp_path / "spiral.safetensors"
    spiral.save(file)
    field = diffode.exact_field("spiral", "edm")
    x = field.path.prior((20, 2), generator=2)
    expected = diffode.solve(field, x, **spiral.arguments).x
    assert torch.equal(diffode.solve(field, x, solver=f"bespoke:file={file}", nfe=3).x, expected)
    read = load(file)
    assert (read.nfe, read.errors) == (3, spiral.errors)
    assert read.content.statistics.content == spiral.content.statistics.content
    assert solvers.get(f"bespoke:file={file}").content() == spiral.solver.content()
    moved = replace(spiral.content, statistics=spiral.content.statistics.scaled(1.01))
    assert type(spiral.solver)(table=moved).content() != spiral.solver.content()


def test_data_of_another_scale_take_the_same_table_in_their_unit(spiral, tmp_path):
    file = tmp_path / "spiral.safetensors"
    spiral.save(file)
    field = diffode.exact_field("spiral", "edm")
    large = Field.from_denoised(
        lambda x, t: 4 * field.denoised(x / 4, t / 4), "edm:t_min=0.008,t_max=320", scale=4 * field.scale
    )
    x = field.path.prior((5, 2), generator=2)
    solver = solvers.get(f"bespoke:file={file},scale={4 * field.scale!r}")
    torch.testing.assert_close(
        diffode.solve(large, 4 * x, solver=solver, nfe=3).x, 4 * diffode.solve(field, x, **spiral.arguments).x
    )
    with pytest.warns(TrainedElsewhereWarning, match="trained on data of scale"):
        diffode.solve(large, 4 * x, solver=f"bespoke:file={file}", nfe=3, grid=[80.0, 0.002])


def test_files_whose_statistics_or_form_are_wrong_are_refused(spiral, tmp_path):
    good = tmp_path / "good.safetensors"
    spiral.save(good)
    with safe_open(good, framework="pt") as content:
        facts = json.loads(content.metadata()["diffode"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    nan = tensors["statistics_mean"] * math.nan
    wrong_weights = tensors["weights"].clone()
    wrong_weights[2, 0] = 1.0
    for k, (told, changed) in enumerate((
        ({}, {"statistics_mean": None}), ({}, {"statistics_mean": nan}), ({}, {"statistics_mean": nan[:1]}),
        ({}, {"statistics_variances": -tensors["statistics_variances"]}), ({}, {"statistics_matrix": None}),
        ({}, {"statistics_matrix": 2 * tensors["statistics_matrix"]}), ({}, {"statistics_more": torch.zeros(2)}),
        ({"statistics": None}, {}), ({"statistics": [1]}, {}), ({"statistics": {**facts["statistics"], "kind": "odd"}}, {}),
        ({}, {"weights": wrong_weights}), ({}, {"levels": tensors["levels"].flip(0)}), ({}, {"scales": tensors["scales"][:-1]}),
    )):  # fmt: skip
        parts = {name: part for name, part in {**tensors, **changed}.items() if part is not None}
        file = tmp_path / f"bad{k}.safetensors"
        save_file({n: p.contiguous() for n, p in parts.items()}, str(file), metadata={"diffode": json.dumps({**facts, **told})})
        with pytest.raises(FileFormatError):
            solvers.get(f"bespoke:file={file}")


def test_wrong_arguments_name_the_fix(spiral):
    unknown = Field.from_denoised(diffode.exact_field("ring8", "edm").denoised, "edm", scale=1.0)
    three = Statistics.of_covariance(torch.zeros(3), torch.eye(3))
    for options, said in (
        ({"chart": "gauss"}, "chart must be one of noise, gaussian"),
        ({"statistics": "scale"}, "go with chart='gaussian'"),
        ({"chart": "gaussian", "consistent": True}, "leave them out"),
        ({"chart": "gaussian", "groups": (1, 2)}, "leave them out"),
        ({"chart": "gaussian", "statistics": three}, "3 coordinates"),
        ({"chart": "gaussian", "statistics": "odd"}, "statistics must be one of"),
        ({"chart": "gaussian", "statistics": Statistics.of_target("ring8").scaled(9.0)}, "another unit"),
        ({"chart": "gaussian", "smaller": spiral}, "same statistics"),
        ({"chart": "gaussian", "begin_from": "ipndm"}, "does not begin with a jump|no common form"),
    ):
        with pytest.raises(ArgumentError, match=said):
            train_table("ring8", 4, points=32, **options)
    with pytest.raises(ArgumentError, match="fewer evaluations than nfe=3"):
        train_table("spiral", 3, points=32, chart="gaussian", smaller=spiral)
    with pytest.raises(BudgetError, match="no run of exactly 3"):
        train_table("ring8", 3, points=32, chart="gaussian", begin_from="heun:chart=gaussian,jump=1")
    with pytest.raises(ArgumentError, match="has to know mean and covariance"):
        train_table(unknown, 2, dim=2, points=32, chart="gaussian")
    with pytest.raises(ArgumentError, match="condition a table that was trained on this field"):
        condition(spiral, "line16", points=32)
    with pytest.raises(ArgumentError, match="2 coordinates, but rows have 3"):
        diffode.solve(Field.from_denoised(lambda x, t: x, "edm"), torch.ones(1, 3).double(), **spiral.arguments)


def test_a_field_with_given_statistics_and_rows_of_a_shape_trains_too():
    exact = diffode.exact_field("gmm40-50d", "edm")
    known = Statistics.of_target("gmm40-50d", "low_rank", rank=8)
    image = Field.from_denoised(lambda x, t: exact.denoised(x.flatten(1), t).reshape(x.shape), "edm", scale=known)
    trained = train_table(image, 1, dim=(2, 5, 5), points=32, steps=3, chart="gaussian")
    x = image.first_noise((4, 2, 5, 5), generator=0)
    assert diffode.solve(image, x, **trained.arguments).x.shape == x.shape
    assert trained.errors.after < trained.errors.before


def test_weights_for_the_picture_leave_out_the_start(spiral):
    stages = spiral.content.stages
    shown = output_weights(stages, in_chart=True)
    torch.testing.assert_close(shown, stages.weights[-1, 1:] / stages.levels[1:-1])
