"""Universal tables in the Gaussian's chart, tuned: chosen, refined by differences of runs, judged on other starts."""

import json
import math
import re
import warnings

import pytest
import torch
from commandline import diffode as command

import diffode
from diffode import Field, GaussianMixture, fields, paths, solvers
from diffode.errors import ArgumentError, BudgetError, NumericalError, StatisticsWarning
from diffode.fields.estimated import breadth_beside
from diffode.fields.problem_text import field_of_text
from diffode.learned import condition, load, train_table, tune_universal
from diffode.learned.fitting.chart import ChartTable, in_chart
from diffode.learned.fitting.differences import end_derivatives, equations_by_differences
from diffode.learned.fitting.gauss_newton import normal_equations
from diffode.learned.fitting.problems import problem_for
from diffode.learned.fitting.sensitivities import Recording
from diffode.learned.request import Request
from diffode.learned.tables import in_chart as beginnings
from diffode.learned.tables.in_chart import ADAMS
from diffode.learned.tables.tuning_in_chart import best_tables
from diffode.learned.universal.batches import UNITS
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages

EDM = paths.get("edm")


@pytest.fixture(scope="module")
def spiral():
    """Starts of a mixture in the chart of its Gaussian, and the best tables for them."""
    field = diffode.exact_field("spiral", EDM)
    known = Statistics.of_target("spiral")
    problem = in_chart(problem_for(field, EDM, 2, 120, 3), field, known)
    return problem, best_tables(problem, known, Request.of("tune_universal", field), 4)


def test_derivatives_by_differences_are_those_of_the_backward_pass(spiral):
    problem, found = spiral
    stages = found[0].stages.scaled(problem.unit)
    recording = Recording(problem.noise, problem.start, stages)
    exact = recording.gradients(torch.eye(2).double().expand(120, 2, 2)).permute(2, 0, 1)
    every = torch.ones(len(exact), dtype=torch.bool)
    by_differences = end_derivatives(problem.noise, problem.start, stages, every)
    # Rounding of 1e-16 over steps of 1e-7, and curvature times these steps.
    largest = exact.abs().amax((1, 2), keepdim=True).clamp(min=1e-3)
    assert float(((by_differences - exact) / largest).abs().max()) < 1e-4
    some = every.clone()
    some[::2] = False
    left = end_derivatives(problem.noise, problem.start, stages, some)
    assert torch.equal(left[some], by_differences[some])
    assert not left[~some].any()


@pytest.mark.parametrize("most", [2**23, 100])
def test_normal_equations_by_differences_are_the_exact_ones(spiral, monkeypatch, most):
    monkeypatch.setattr("diffode.learned.fitting.differences._MOST_NUMBERS", most)
    problem, found = spiral
    table = ChartTable(found[0].stages)
    gradient, curvature = equations_by_differences(table, table.start, problem)
    exact = normal_equations(table, table.start, [problem], "mean", 0.0, 4, torch.Generator())
    size = exact[1].diagonal().sqrt()
    error = problem.error(found[0].stages)
    assert float(((gradient - exact[0]) / size).abs().max()) < 1e-4 * math.sqrt(error)
    assert float(((curvature - exact[1]) / size / size[:, None]).abs().max()) < 1e-4


def test_the_step_of_a_difference_follows_the_precision():
    exact = Stages(torch.tensor([1.0, 1.0]), torch.tensor([[0.0, 0.0], [0.0, 0.7]]), torch.tensor([9.0, 1.0, 0.1]).double())
    start = torch.tensor([[0.3], [-2.0]])
    found = end_derivatives(lambda z, rho: rho * torch.sin(z), start, exact, torch.ones(6, dtype=torch.bool), 3e-4)
    # z_2 = z_0 + 0.7 sin(z_1) with z_1 = c_1 z_0 = z_0; by c_1 the derivative is 0.7 cos(z_0) z_0.
    assert found.dtype == torch.float32
    assert torch.allclose(found[0], 0.7 * torch.cos(start) * start, rtol=2e-3)
    assert torch.allclose(found[5], 0.7 * torch.sin(start), rtol=2e-3)


def test_the_best_tables_come_first_and_universal_ones_in_other_units_are_among_them(spiral):
    problem, found = spiral
    errors = [problem.error(one.stages) for one in found]
    assert errors == sorted(errors) == [one.error for one in found]
    assert found[0].name.startswith("universal:chart=gaussian in units of")
    assert len({one.name for one in found}) == len(found) == 8


@pytest.fixture(scope="module")
def tuned():
    """What is found for a field that can't be differentiated, and that field."""
    exact = diffode.exact_field("spiral", EDM)

    def denoise(x, t):
        return exact.denoised(x.detach(), t).detach()

    field = Field.from_denoised(denoise, path=EDM, scale=exact.scale)
    field.nfe = 7
    known = Statistics.of_target("spiral")
    return field, tune_universal(field, 4, dim=2, chart="gaussian", statistics=known)


def test_a_field_need_not_be_differentiable_and_its_count_stays(tuned):
    field, found = tuned
    assert field.nfe == 7
    assert found.nfe == 4
    # The best hand-made solver of hundreds, chosen on its test starts, has 0.04; the untuned table 0.012.
    assert found.errors.after < 0.006 < found.errors.before


def test_the_error_told_is_that_of_starts_which_neither_chose_nor_decided(tuned, tmp_path):
    _, found = tuned
    found.save(tmp_path / "spiral.safetensors")
    again = load(tmp_path / "spiral.safetensors")
    exact = diffode.exact_field("spiral", EDM)
    x = exact.prior(4096, generator=99)
    run = diffode.solve(exact, x, **again.arguments)
    assert run.nfe == 4
    end = diffode.flows.reference(exact, x, EDM.t_max, EDM.t_min).x
    error = float((run.x - end).norm(dim=1).mean()) / exact.scale
    # Means of 256 starts scatter by a tenth.
    assert found.errors.after == pytest.approx(error, rel=0.5)
    assert min(found.history.held_out) < found.history.held_out[0]
    assert found.history.error == tuple(sorted(found.history.error, reverse=True))


def test_each_error_is_that_of_starts_of_its_own():
    """One set of starts is fitted, a second decides between steps, and a third tells the error."""
    found = tune_universal("moons", 3, chart="gaussian", points=48, statistics="full")
    request = Request.of("tune_universal", "moons", path=EDM)
    known = Statistics.of_target("moons")

    def error(stages, stream):
        return in_chart(request.problem(48, stream), request.field, known).error(stages)

    assert found.errors.after == pytest.approx(error(found.content.stages, "held out"), rel=1e-9)
    assert min(found.history.held_out) == pytest.approx(error(found.content.stages, "deciding"), rel=1e-9)
    assert found.history.error[0] == pytest.approx(error(found.origin, "choice"), rel=1e-9)
    plain = solvers.informed("universal:chart=gaussian", known).stages(3, 80.0, 0.002).stages
    assert found.errors.before == pytest.approx(error(plain.scaled(1 / request.field.scale), "held out"), rel=1e-9)


def test_one_gaussian_is_exact_with_one_evaluation():
    found = tune_universal("gauss2d", 1, chart="gaussian", points=16)
    assert found.errors.after < 1e-9


def test_data_too_wide_for_universal_tables_take_a_method_after_a_jump():
    stages = []
    found = tune_universal("stiff-pair", 3, chart="gaussian", points=64, progress=lambda step: stages.append(step.stage))
    assert found.errors.before is None
    assert stages[-1].startswith("refine ab:")
    assert found.errors.after < 1e-6


def test_tables_are_told_as_they_are_compared_with_the_least_error_so_far():
    steps = []
    tune_universal("moons", 2, chart="gaussian", points=16, steps=1, statistics="full", progress=steps.append)
    compared = [step for step in steps if step.stage == "compare tables, in the chart of the covariance"]
    assert [step.number for step in compared] == list(range(1, compared[0].total + 1))
    # Universal tables come first, in some units and for some numbers of directions, and Adams methods after them.
    assert ADAMS < compared[0].total <= ADAMS + 7 * len(UNITS)
    errors = [step.error for step in compared]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] < math.inf


def test_methods_are_told_one_by_one_and_a_stop_among_them_ends_the_comparison(monkeypatch):
    """Of data that no universal table fits, Adams methods alone are compared, and one must have run before the end."""
    steps, method = [], beginnings._method

    def without_the_first(problem, statistics, path, nfe, solver, grid):
        if solver == "ab:order=1,chart=gaussian_angle,jump=0.016" and grid != "karras:rho=5":
            raise ArgumentError("the level lies above the path's first")
        return method(problem, statistics, path, nfe, solver, grid)

    monkeypatch.setattr(beginnings, "_method", without_the_first)
    arguments = {"chart": "gaussian", "points": 16, "steps": 1, "statistics": "full"}
    tune_universal("stiff-pair", 3, **arguments, progress=steps.append)
    compared = [step for step in steps if step.stage.startswith("compare tables")]
    assert [step.number for step in compared] == list(range(1, ADAMS + 1))
    assert [step.number for step in compared if step.error == math.inf] == [1, 2, 3]
    steps.clear()
    found = tune_universal("stiff-pair", 3, **arguments, progress=steps.append, stop=lambda: True)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert (found.stopped_by, found.history.steps) == ("request", 0)
    assert math.isfinite(found.errors.after)


def test_the_chart_is_that_of_the_statistics_that_are_asked_for():
    target = GaussianMixture([0.5, 0.5], [[-3.0, 0.0], [3.0, 0.0]], [[0.01, 0.5], [0.01, 0.5]])
    arguments = {"chart": "gaussian", "points": 32, "steps": 2}
    kinds = [tune_universal(target, 2, statistics=kind, **arguments).content.statistics.kind for kind in ("full", "scale")]
    assert kinds == ["full", "scale"]
    either = tune_universal(target, 2, **arguments)
    both = [tune_universal(target, 2, statistics=kind, **arguments) for kind in ("full", "scale")]
    assert min(either.history.held_out) == min(min(one.history.held_out) for one in both)


def test_steps_only_help_and_the_same_seed_gives_the_same_table():
    one, again, more = (tune_universal("moons", 3, chart="gaussian", points=48, steps=n, statistics="full") for n in (1, 1, 5))
    assert torch.equal(one.content.stages.weights, again.content.stages.weights)
    assert one.history.steps == 1
    assert min(more.history.held_out) < min(one.history.held_out)


def test_a_request_to_stop_leaves_the_best_so_far():
    steps = []
    arguments = {"chart": "gaussian", "points": 48, "statistics": "full"}

    def refining():
        return sum(step.stage.startswith("refine") for step in steps) > 1

    found = tune_universal("moons", 3, progress=steps.append, stop=refining, **arguments)
    assert (found.stopped_by, found.history.steps) == ("request", 2)
    assert math.isfinite(found.errors.after)
    steps.clear()
    at_once = tune_universal("moons", 3, progress=steps.append, stop=lambda: True, **arguments)
    assert (at_once.stopped_by, at_once.history.steps, len(steps)) == ("request", 0, 1)
    assert found.errors.after < at_once.errors.after <= at_once.errors.before


@pytest.mark.parametrize("seed", [0, 3])
def test_starts_that_chose_nothing_never_find_the_untuned_table_better(seed):
    """With very few starts a fit of them can be worse than what was there."""
    known = Statistics.of_target("moons").reduced("scale")
    found = tune_universal("moons", 4, chart="gaussian", statistics=known, points=8, steps=1, seed=seed)
    request = Request.of("tune_universal", "moons", path=EDM, seed=seed)
    deciding = in_chart(request.problem(8, "deciding"), request.field, known)
    plain = solvers.informed("universal:chart=gaussian", known).stages(4, 80.0, 0.002).stages
    assert deciding.error(found.content.stages) <= deciding.error(plain.scaled(1 / request.field.scale)) * (1 + 1e-12)


def test_a_network_in_float32_is_refined_as_one_in_float64_is():
    """Its answers are rounded to 6e-8, though the states are of float64, so that differences have to be longer."""
    exact, known = diffode.exact_field("moons", EDM), Statistics.of_target("moons")
    field = Field.from_denoised(lambda x, t: exact.denoised(x.float(), t).to(x.dtype), path=EDM, scale=known)
    arguments = {"chart": "gaussian", "points": 128, "statistics": "full"}
    found, fine = tune_universal(field, 8, dim=2, **arguments), tune_universal("moons", 8, **arguments)
    assert found.errors.after < 1.5 * fine.errors.after < 0.75 * found.errors.before


def test_a_budget_without_a_table_is_refused_before_the_field_is_asked_for_much():
    calls = []
    exact = diffode.exact_field("moons", EDM)

    def denoised(x, t):
        calls.append(len(x))
        return exact.denoised(x, t)

    field = Field.from_denoised(denoised, path=EDM, scale=Statistics.of_target("moons"))
    with pytest.raises(BudgetError):
        tune_universal(field, 13, dim=2, chart="gaussian")
    assert len(calls) < 10


def test_errors_that_are_not_finite_are_no_success():
    """A field without an answer beyond some points has none for starts of the test, though it has for those of the choice."""
    exact, known = diffode.exact_field("moons", EDM), Statistics.of_target("moons")

    def denoised(x, t):
        found = exact.denoised(x, t)
        lost = ((x - found).norm(dim=1) > 3.2 * t) & (torch.as_tensor(t) < 0.5)
        return torch.where(lost[:, None], torch.nan, found)

    field = Field.from_denoised(denoised, path=EDM, scale=known, probe=False)
    refused = 0
    for seed in range(2):
        try:
            found = tune_universal(field, 2, dim=2, chart="gaussian", points=24, steps=1, seed=seed)
        except NumericalError:
            refused += 1
        else:
            assert math.isfinite(found.errors.after)
    assert refused


def test_a_saved_one_is_shown_with_the_range_of_its_numbers(tmp_path):
    file = tmp_path / "moons.safetensors"
    tune_universal("moons", 2, chart="gaussian", points=16, steps=1, statistics="full").save(file)
    shown = command("show", f"bespoke:file={file}")
    assert re.search(r"x2 .*\([-+.\de]+ to [-+.\de]+\) m1", shown.stdout)
    # Nothing is run, so that there is nothing to warn of.
    assert shown.stderr == ""
    told = json.loads(command("show", f"bespoke:file={file}", "--json").stdout)
    assert len(told["tableau"][-1]["noise"]["1"]) == 2
    assert (told["chart"], told["statistics"]) == ("gaussian", "full: a variance for each direction")


def test_a_table_for_data_in_many_dimensions_is_shown_with_the_chart_that_it_is_in(tmp_path):
    known, file = Statistics.of_target("digits-gmm10", "scale"), tmp_path / "digits.safetensors"
    stages = Stages(*(torch.tensor(part).double() for part in ([1.0, 1.0], [[0.0, 0.0], [0.0, -1.0]], [80.0, 1.0, 0.002])))
    facts = {"path": "edm", "target": "digits-gmm10", "begun_from": "ddim", "held_out_error": 1.0, "start_error": 1.0}
    facts |= {"seconds": 1.0, "seed": 0}
    for statistics, chart in ((known, "gaussian"), (None, "noise")):
        Checkpoint(stages=stages, scale=known.scale, statistics=statistics, **facts).save(file)
        told = json.loads(command("show", f"bespoke:file={file}", "--json").stdout)
        assert told["chart"] == chart
        assert told.get("statistics") == (None if statistics is None else "scale: one variance for all directions")


@pytest.mark.parametrize(("spec", "chart"), [("universal:chart=gaussian", "gaussian"), ("ddim:jump=auto", "noise")])
def test_a_solver_whose_table_is_made_of_the_statistics_of_a_run_is_shown_without_it(spec, chart):
    shown = command("show", spec).stdout
    assert re.search(rf"^chart +{chart}$", shown, re.MULTILINE)
    assert "\nIts tableau is made of mean and covariance of the data, which a run takes from its field" in shown
    for without in ("rk_adaptive", "rk_adaptive:jump=2", "picard:jump=auto"):
        shown = command("show", without).stdout
        assert "It has no tableau" in shown
        assert ("Its jump is made of mean and covariance of the data" in shown) is ("jump" in without)


def test_what_a_file_holds_is_no_option_that_is_shown(tmp_path):
    file = tmp_path / "conditioned.safetensors"
    table = tune_universal("moons", 1, chart="gaussian", points=16, steps=1, statistics="full")
    condition(table, "moons", points=32, steps=1, units=2).save(file)
    told = json.loads(command("show", f"conditioned:file={file}", "--json").stdout)
    assert (told["chart"], told["statistics"]) == ("gaussian", "full: a variance for each direction")
    assert told["options"] == {"analytic_first_step": False, "jump": None, "file": str(file)}
    assert "tensor(" not in command("show", f"conditioned:file={file}").stdout


def test_a_network_that_knows_no_statistics_is_asked_for_them():
    exact = diffode.exact_field("spiral", EDM)
    field = Field.from_denoised(exact.denoised, path=EDM, scale=exact.scale)
    with pytest.raises(ArgumentError, match="pass statistics="):
        tune_universal(field, 3, dim=2, chart="gaussian", points=16)
    with pytest.raises(ArgumentError, match=r"statistics must be one of scale, .* got 'wide'"):
        tune_universal(field, 3, dim=2, chart="gaussian", statistics="wide", points=16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chart": "gauss"}, "chart"),
        ({"statistics": "scale"}, "statistics and steps go with chart='gaussian'"),
        ({"steps": 3}, "statistics and steps go with chart='gaussian'"),
        ({"chart": "gaussian", "steps": 0}, "steps"),
        ({"chart": "gaussian", "statistics": "wide"}, "wide"),
        ({"chart": "gaussian", "statistics": Statistics.of_target("gauss1024-lowrank")}, "1024|coordinates"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        tune_universal("ring8", 4, points=16, **arguments)


def test_budgets_without_a_table_are_refused():
    with pytest.raises(BudgetError, match="nfe 1 to 12, not for 13"):
        tune_universal("ring8", 13, chart="gaussian", points=16)


def test_states_of_any_shape_are_tuned():
    known = Statistics.of_target("digits-gmm10")
    exact = fields.exact_field("digits-gmm10", EDM)

    def denoise(x, t):
        return exact.denoised(x.reshape(len(x), -1), t).reshape(x.shape)

    field = Field.from_denoised(denoise, path=EDM, scale=exact.scale)
    found = tune_universal(field, 2, dim=(1, 8, 8), chart="gaussian", statistics=known, points=128, steps=3)
    assert found.errors.after < found.errors.before


def _told_nothing(name, path="edm"):
    exact = diffode.exact_field(name, path)
    return Field.from_denoised(exact.denoised, path=exact.path), Statistics.of_target(name)


@pytest.mark.parametrize("name", ["ring8", "gauss1d", "grid25", "digits-gmm10", "gmm40-50d", "stiff-pair", "line16"])
@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
def test_the_breadth_of_answers_at_high_noise_tells_statistics_of_another_unit(name, path):
    field, own = _told_nothing(name, path)
    shape = (own.dim,)
    assert 0.8 < breadth_beside(field, own, shape) < 1.4
    assert breadth_beside(field, own.scaled(100.0), shape) < 0.05
    assert breadth_beside(field, own.scaled(0.01), shape) > 12
    assert field.nfe == 0


def test_statistics_of_another_unit_are_warned_of_where_a_network_tells_that():
    field, own = _told_nothing("moons")
    arguments = {"dim": 2, "chart": "gaussian", "points": 16, "steps": 1}
    for unit in (100.0, 0.01):
        with pytest.warns(StatisticsWarning, match=r"^statistics are of data of scale .*: give those of what it denoises"):
            tune_universal(field, 1, statistics=own.scaled(unit), **arguments)
    with pytest.warns(StatisticsWarning) as caught:
        train_table(field, 1, statistics=own.scaled(100.0), dim=2, chart="gaussian", points=16, steps=1)
    assert [one.filename for one in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for unit in (1.0, 2.7, 0.4):
            tune_universal(field, 1, statistics=own.scaled(unit), **arguments)
        tune_universal(field, 1, statistics=own.reduced("scale"), **arguments)
        # What a guided field answers is of no data, and the class's own statistics serve it well.
        guided = field_of_text("ring8 guided label=three,weight=20", "edm")
        tune_universal(guided, 1, statistics=guided.conditional.statistics, **(arguments | {"dim": None}))
