"""Studies: runs that resume, fail, are left out, and take what a user brings to their workers."""

import re
from dataclasses import replace

import pytest
from commandline import diffode
from small_suite import SMALL, SOLVER, report_page, small

from diffode import metrics
from diffode.errors import ArgumentError
from diffode.makers import option_names
from diffode.metrics.measurement import Needs
from diffode.studies import Store, keyed_cells, load_suite, parse_suite, run_suite
from diffode.studies.runner import check_metrics


def test_a_second_run_does_nothing_and_force_recomputes(tmp_path):
    file, suite = tmp_path / "store.sqlite", small()
    first = run_suite(suite, file, jobs=1)
    assert (first.total, first.computed, first.failed) == (8, 8, 0)
    assert run_suite(suite, file, jobs=1).computed == 0
    assert run_suite(suite, file, jobs=1, force=True).computed == 8


def test_results_are_the_same_in_one_process_and_in_two(tmp_path):
    suite = small()
    values = []
    for jobs in (1, 2):
        file = tmp_path / f"{jobs}.sqlite"
        run_suite(suite, file, jobs=jobs)
        with Store(file) as store:
            values.append([(r.cell, r.nfe_counted, r.value("endpoint")) for r in store.get(keyed_cells(suite))])
    assert values[0] == values[1]


def test_rows_carry_what_is_needed_to_judge_them(tmp_path):
    run_suite(small(), tmp_path / "s.sqlite", jobs=1)
    with Store(tmp_path / "s.sqlite") as store:
        results = store.get(keyed_cells(small()))
    for result in results:
        assert result.nfe_counted <= result.cell.nfe
        assert result.seconds > 0
        assert result.threads == 1
        assert {"torch", "diffode", "processor", "python"} <= result.environment.keys()
        assert result.measurements[0].floor >= 0


def test_a_failed_cell_is_a_row_with_a_reason_and_is_tried_again(tmp_path):
    suite = parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["rk4", "ddim"], "nfe": [3]}]})
    assert run_suite(suite, tmp_path / "s.sqlite", jobs=1).failed == 1
    with Store(tmp_path / "s.sqlite") as store:
        failed = [r for r in store.get(keyed_cells(suite)) if r.status == "failed"]
    assert "possible budgets" in failed[0].reason
    assert run_suite(suite, tmp_path / "s.sqlite", jobs=1).computed == 1
    page = report_page(suite, tmp_path)
    assert "possible budgets" in page


@pytest.mark.parametrize(
    ("metric", "target", "words"),
    [
        ("frechet", "ring8", "28 x 28 = 784 grey values"),
        ("w2", "ring8", "exact on a line"),
        ("gaussian_error", "ring8", "needs a target of one Gaussian"),
        ("gaussian_error", "trained:ring8", "needs an exact field"),
        ("tilted", "ring8", "a field that diffode.guide makes"),
        ("tilted", "digits-gmm10 guided label=3,weight=2", "normalised in one or two dimensions, got 64"),
        ("model", "gauss1d", "this field is exact, so that its own error is 0"),
        ("push_forward_kl:max_dim=1", "ring8", "takes dim <= 1"),
        ("w1", "gauss1d from student:dof=8", "mixtures of Gaussians, whose quantiles are known"),
    ],
)
def test_a_metric_that_can_not_measure_on_a_target_is_refused_before_anything_runs(tmp_path, metric, target, words):
    suite = parse_suite({**SMALL, "study": [{"targets": ["gauss1d", target], "solvers": ["ddim"], "metrics": [metric]}]})
    if metric == "model":
        suite = parse_suite({**SMALL, "study": [{"targets": ["trained:ring8"], "solvers": ["ddim"], "metrics": [metric]}]})
        check_metrics(suite)
        suite = replace(suite, cells=tuple(replace(c, target=target) for c in suite.cells))
    if metric in ("w2", "tilted"):
        suite = replace(suite, cells=tuple(c for c in suite.cells if c.target == target))
    with pytest.raises(ArgumentError, match=f"metric '{metric}' can't measure on target '") as said:
        run_suite(suite, tmp_path / "s.sqlite", jobs=1)
    assert words in str(said.value)
    assert not (tmp_path / "s.sqlite").exists()


def test_an_option_of_a_metric_out_of_its_range_is_refused_before_anything_runs():
    """Every option of every metric but ``outcome``, in a suite's file and in a suite of cells."""
    wrong = {
        "reduction": "meen", "part": "whole", "max_dim": 0, "projections": 0, "resamples": -1, "epsilon": -0.1, "within": 2,
    }  # fmt: skip
    asked = set()
    for name in metrics.names():
        # Other tests may have registered metrics of their own.
        if metrics.registry.entry(name).make.__module__.partition(".")[0] != "diffode":
            continue
        for option in set(option_names(metrics.registry.entry(name).make)) - {"outcome"}:
            for value in (wrong[option], "'a'", "none"):
                spec = f"{name}:{option}={value}"
                with pytest.raises(ArgumentError, match=rf"^suite, study 1: {option} must be "):
                    parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["ddim"], "metrics": [spec]}]})
            asked.add(option)
    assert asked == set(wrong)
    with pytest.raises(ArgumentError, match=r"outcome is the run that metric 'endpoint' measures, and no option"):
        parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["ddim"], "metrics": ["endpoint:outcome=3"]}]})
    suite = small()
    with pytest.raises(ArgumentError, match="resamples must be 0"):
        check_metrics(replace(suite, cells=tuple(replace(c, metrics=("mmd:resamples=-1",)) for c in suite.cells)))
    with pytest.raises(ArgumentError, match="takes up to 4,096 points, got points = 4,097"):
        check_metrics(replace(suite, cells=tuple(replace(c, metrics=("assigned_w2",), points=4097) for c in suite.cells)))


def test_a_metric_is_asked_of_every_path_of_a_target(monkeypatch):
    """One that measures on the last path alone is refused for the first."""

    def fits(field):
        if field.path.name == "vp":
            raise ArgumentError("not on vp")

    for place in ("diffode.studies.runner.metrics.needs_of", "diffode.metrics.measurement.needs_of"):
        monkeypatch.setattr(place, lambda metric: Needs(fits=fits))
    suite = parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["ddim"], "paths": ["vp", "edm"]}]})
    with pytest.raises(ArgumentError, match="can't measure on target 'gauss1d': not on vp"):
        check_metrics(suite)


def test_the_metrics_of_the_suites_that_ship_fit_their_targets():
    for name in ("quick", "gaussian", "guidance", "networks", "bridges", "maps"):
        check_metrics(load_suite(name))


def test_a_report_of_failures_alone_says_why_and_not_to_run_it(tmp_path):
    """An odd budget fits no step of a method of four evaluations."""
    suite = parse_suite({**SMALL, "study": [{"targets": ["gauss1d"], "solvers": ["rk4"], "nfe": [3]}]})
    run_suite(suite, tmp_path / "results.sqlite", jobs=1)
    (tmp_path / "small.toml").write_text(
        'name = "small"\n[[study]]\ntargets = ["gauss1d"]\nsolvers = ["rk4"]\nnfe = [3]\npaths = ["edm"]\n'
        'grids = ["karras"]\nseeds = [0]\npoints = 16\ntolerance = 1e-6\n'
    )
    page = diffode("report", "small.toml", "--output", ".", cwd=tmp_path)
    assert "gauss1d on edm (all its stored runs failed)" in page.stderr
    for command in (("report", "small.toml", "--format", "csv"), ("recommend", "--suite", "small.toml", "--nfe", "3")):
        said = diffode(*command, "--output", ".", cwd=tmp_path, code=2).stderr
        assert "all 1 stored runs of suite 'small' failed with: BudgetError" in said
        assert "first" not in said
    missing = diffode("report", "quick", "--output", ".", cwd=tmp_path, code=2).stderr
    assert missing.splitlines() == [
        "diffode: nothing of suite 'quick' is stored in results.sqlite; run it first: diffode bench quick"
    ]


def test_runs_that_can_not_succeed_are_left_out_and_said_once(tmp_path):
    """A solver that draws noise does not follow the flow that the endpoint metric compares with."""
    study = {"targets": ["gauss1d"], "solvers": ["ddim", "ddpm", "torchsde:euler"], "nfe": [4]}
    summary = run_suite(parse_suite({**SMALL, "study": [study]}), tmp_path / "s.sqlite", jobs=1)
    assert (summary.total, summary.computed, summary.failed) == (1, 1, 0)
    assert [cell.solver for cell, _ in summary.senseless] == ["ddpm", "torchsde:euler"]
    assert "ddpm does not follow since it draws noise" in summary.senseless[0][1]
    suite = parse_suite({**SMALL, "study": [{**study, "metrics": ["moments"], "solvers": ["ddpm", "ddim:eta=0"]}]})
    assert run_suite(suite, tmp_path / "s.sqlite", jobs=1).senseless == ()
    with pytest.raises(ArgumentError, match="makes sense: total compares with the exact flow"):
        run_suite(parse_suite({**SMALL, "study": [{**study, "solvers": ["ddpm"], "metrics": ["total"]}]}), tmp_path / "x")


@pytest.mark.parametrize("solver", ["rk_adaptive", "sde_adaptive", "scipy:RK45", "torchdiffeq:dopri5"])
def test_solvers_that_choose_their_own_steps_are_left_out_and_those_of_a_grid_are_not(solver, tmp_path):
    study = {"targets": ["gauss1d"], "solvers": [solver, "torchdiffeq:euler", "ddim"], "nfe": [4], "metrics": ["moments"]}
    summary = run_suite(parse_suite({**SMALL, "study": [study]}), tmp_path / "s.sqlite", jobs=1)
    assert (summary.total, summary.computed, summary.failed) == (2, 2, 0)
    ((cell, reason),) = summary.senseless
    assert cell.solver == solver
    assert "chooses its own steps" in reason


KILLED = """
import os, signal
import diffode

def killed(outcome):
    os.kill(os.getpid(), signal.SIGKILL)

diffode.metrics.register("killed", killed)
"""


def test_a_killed_worker_is_an_error_that_says_how_to_go_on(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "suite.toml").write_text(
        '[[study]]\ntargets = ["gauss1d", "ring8"]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\n'
        'points = 4\nsolvers = ["ddim"]\nmetrics = ["endpoint", "killed"]\n'
    )
    done = diffode("bench", "suite.toml", "--import", "killed.py", "--jobs", "2", cwd=tmp_path, code=2)
    assert "worker processes was killed" in done.stderr
    assert "Traceback" not in done.stderr


EXTENSION = (
    SOLVER.replace("FACTOR", "1.0")
    + """
diffode.targets.register("own", lambda: diffode.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1]))
diffode.metrics.register("constant", lambda outcome, value=VALUE: diffode.metrics.Measurement("constant", value))
"""
)


def test_extensions_reach_the_workers_and_the_report_and_are_versioned(tmp_path):
    """A user's solver, target and metric in two processes, drawn too; a changed metric is measured again."""
    (tmp_path / "suite.toml").write_text(
        '[[study]]\ntargets = ["own", "gauss1d"]\npaths = ["edm"]\ngrids = ["karras"]\nnfe = [4]\nseeds = [0]\n'
        'points = 4\nsolvers = ["ddim", "mine"]\nmetrics = ["endpoint", "endpoint:reduction=max", "constant"]\n'
    )
    source, drawn = tmp_path / "mine.py", tmp_path / "diffode-report/suite/figures/clouds-own.png"
    again = ("--jobs", "1", "--no-report")
    for value, computed, options in (("1.0", 4, ("--jobs", "2")), ("1.0", 0, again), ("2.0", 4, again)):
        source.write_text(EXTENSION.replace("VALUE", value))
        done = diffode("bench", "suite.toml", "--import", "mine.py", *options, cwd=tmp_path)
        assert f"{computed} computed" in done.stderr
        assert drawn.is_file()
    source.write_text(EXTENSION.replace("VALUE", "float('nan')"))
    done = diffode("bench", "suite.toml", "--import", "mine.py", "--jobs", "1", cwd=tmp_path, code=3)
    assert "4 failed" in done.stderr
    # With every run failed there is nothing to draw, and the report says why.
    assert not drawn.is_file()


def test_two_extensions_of_one_name_are_both_imported(tmp_path):
    from diffode import metrics
    from diffode.extensions import import_extension

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(
            f"import diffode\ndiffode.metrics.register('metric_of_{folder}', lambda outcome: 0.0)\n"
        )
        import_extension(str(tmp_path / folder / "mine.py"))
    assert {"metric_of_a", "metric_of_b"} <= set(metrics.names())
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ArgumentError, match="ZeroDivisionError"):
        import_extension(str(tmp_path / "broken.py"))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(lambda: run_suite(load_suite("quick"), "unused.sqlite", jobs=0), "jobs must be >= 1", id="no workers"),
    ],
)
def test_a_run_needs_workers(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
