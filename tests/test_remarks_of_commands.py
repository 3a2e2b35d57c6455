"""What commands say unasked: where samples begin, which grid is not used, which training was for nothing, what is done now."""

import json

import pytest
import torch
from click.testing import CliRunner
from commandline import diffode as diffode_command

import diffode
from diffode import learned, solvers, targets
from diffode.cli import (
    bench_command,
    check_map_command,
    list_command,
    sample_command,
    show_command,
    train_command,
    verify_command,
)
from diffode.cli.list_command import rows_of
from diffode.cli.remembered import is_of_package
from diffode.errors import ArgumentError, GridWarning, UnknownNameError
from diffode.studies import load_suite
from diffode.studies.low_starts import low_starts


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, *words, code=0):
    done = CliRunner().invoke(command.command, list(map(str, words)))
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.mark.parametrize(
    ("grid", "first"),
    [("ddim_uniform", 80 * (2 - 1 / 1) / 999), ("ays_sdxl", 14.615), ("karras", None), ("normal", None)],
)
def test_samples_that_begin_below_the_noisiest_time_are_said_to(grid, first):
    """ddim_uniform takes every 1000/n-th of a thousand times from the second on, so that one step begins near the data."""
    words = ("ring8", "--solver", "ddim", "--grid", grid, "--nfe", 1 if grid == "ddim_uniform" else 10, "-n", 8)
    done = run(sample_command, *words, "--json")
    facts = json.loads(done.stdout)
    if first is None:
        assert facts["remarks"] == []
        assert facts["from"] == pytest.approx(80)
        return
    assert facts["from"] == pytest.approx(first, rel=0.03)
    (remark,) = facts["remarks"]
    assert remark.startswith(f"grid '{grid}' begins at t={facts['from']:.4g}, noise level")
    assert remark in done.stderr


@pytest.mark.parametrize("solver", ["shipped_map:method=reflow", "universal"])
def test_a_grid_that_is_not_used_is_named(solver):
    words = ("ring8", "--solver", solver, "--nfe", 4, "-n", 8, "--json")
    assert json.loads(run(sample_command, *words).stdout)["remarks"] == []
    (remark,) = json.loads(run(sample_command, *words, "--grid", "log_snr").stdout)["remarks"]
    assert "lays its own levels: --grid log_snr gives no more than their ends" in remark
    assert (
        json.loads(run(sample_command, "ring8", "--solver", "ddim:jump=auto", "--grid", "log_snr", "--json").stdout)["remarks"]
        == []
    )


def test_a_map_that_is_given_a_named_grid_warns_and_makes_the_same_run():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    own = diffode.solve(field, x, solver="shipped_map:method=reflow", nfe=2)
    with pytest.warns(GridWarning, match="lays its own times, and grid 'log_snr' is not used"):
        same = diffode.solve(field, x, solver="shipped_map:method=reflow", grid="log_snr", nfe=2)
    assert torch.equal(own.x, same.x)


def test_a_training_whose_grid_is_worse_than_one_that_costs_nothing_gives_that_and_says_so():
    """GITS follows Euler's steps of the guided flow, whose cost is not the error."""
    words = ("gits", "--target", "ring8", "--guide", "label=three,weight=7.5", "--nfe", 8, "--json")
    facts = json.loads(run(train_command, *words).stdout)
    assert facts["held-out error"] == facts["its error"]
    assert (
        facts["note"] == "the training found nothing better than ddim on the grid karras, which no training costs: this is that"
    )
    given = diffode.grids.get("karras", diffode.paths.get("edm"), 8)
    assert [float(t) for t in facts["grid"].split()] == pytest.approx(given.tolist(), rel=1e-9)
    better = json.loads(run(train_command, "gits", "--target", "gauss2d", "--nfe", 4, "--json").stdout)
    assert better["held-out error"] < better["its error"]
    assert "note" not in better


def test_a_network_that_ships_is_shown_and_trained_for():
    told = json.loads(run(show_command, "trained:ring8", "--json").stdout)
    field = diffode.fields.trained("ring8")
    assert told["parameters"] == f"{sum(p.numel() for p in field.denoiser.parameters()):,}"
    assert told["scale"] == pytest.approx(field.scale, rel=1e-6)
    assert [[row["sigma/scale"], row["error/scale"]] for row in told["times"]] == field.facts["errors"]
    wrong = CliRunner().invoke(show_command.command, ["trained:digits"]).exception
    assert isinstance(wrong, UnknownNameError)
    assert "did you mean 'digits-gmm10'" in str(wrong)
    found = json.loads(run(train_command, "gits", "--target", "trained:ring8", "--nfe", 4, "--json").stdout)
    same = learned.train("gits", field, 4)
    assert found["grid"] == " ".join(f"{t:.10g}" for t in same.grid.tolist())
    exact = learned.train("gits", "ring8", 4)
    assert found["grid"] != " ".join(f"{t:.10g}" for t in exact.grid.tolist())
    with pytest.raises(ArgumentError, match="leave source and guidance out"):
        learned.train("gits", "trained:ring8 from student:dof=8", 4)


def test_lists_and_cards_have_the_same_tags():
    listed = {row["name"]: row["tags"] for row in list_command.rows_of("targets")}
    for name in ("ring8", "digits-gmm10", "digits-empirical", "gauss2d"):
        assert ", ".join(json.loads(run(show_command, name, "--json").stdout)["tags"]) == listed[name]
    assert "images" in targets.tags("digits-gmm10")


def test_the_parts_of_a_judgement_are_told_as_they_begin():
    done = run(check_map_command, "shipped_map:method=reflow", "--target", "bimodal1d", "--points", 16, "--draws", 64, "--json")
    assert "verdict" in json.dumps(json.loads(done.stdout))

    for part in (
        "exact trajectories to t=",
        "its contract",
        "its jumps against the flow",
        "identities",
        "the law of its points",
    ):
        assert part in done.stderr


def test_verify_says_that_a_guided_field_obeys_none_of_its_equations():
    done = run(verify_command, "ring8", "--guide", "label=three,weight=2", code=2)
    assert "--guide is of no use here: a guided field is no field of a law that is noised" in done.output


def test_a_warning_is_one_line_of_words_on_stderr():
    """Without a line of the source, with the text alone."""
    done = diffode_command("sample", "images-mfa", "--solver", "universal", "--nfe", 4, "-n", 2)
    (line,) = [line for line in done.stderr.splitlines() if "64 dimensions" in line]
    assert line.startswith("warning: the universal tables were trained in up to 64 dimensions")
    assert ".py" not in done.stderr
    assert "warning" not in done.stdout


def test_a_suite_that_is_refused_shows_no_progress(here):
    """On a terminal a bar would stay there above the error, which is its only line."""
    (here / "wrong.toml").write_text(
        '[[study]]\ntargets = ["gauss1d"]\npaths = ["edm"]\ngrids = ["karras"]\nsolvers = ["ddim"]\nnfe = [4]\nseeds = [0]\n'
        'metrics = ["frechet"]\n'
    )
    terminal = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "1", "TTY_COMPATIBLE": "1"}
    for words in (("wrong.toml",), ("quick", "--engine", "none")):
        done = CliRunner().invoke(bench_command.command, words, env=terminal)
        assert isinstance(done.exception, ArgumentError)
        assert done.output == ""


def test_a_suites_grids_that_begin_below_the_noisiest_time_are_said_to(here):
    """Published levels begin at 14.6 of 80 and the second of a thousand times below it; bridges have no noise levels."""
    (here / "low.toml").write_text(
        '[[study]]\ntargets = ["gauss1d"]\npaths = ["edm"]\ngrids = ["karras", "ays_sdxl", "ddim_uniform"]\n'
        'solvers = ["ddim", "universal"]\nnfe = [4, 1]\nseeds = [0]\npoints = 8\n'
        '[[study]]\nbridges = ["*"]\ngrids = ["time_uniform"]\nsolvers = ["heun"]\nnfe = [2]\nseeds = [0]\npoints = 8\n'
    )
    first, second = low_starts(load_suite("low.toml"))
    assert first.startswith("grid 'ays_sdxl' on edm begins at t=14.6")
    # With one step ddim_uniform begins at the second of its thousand times, whose level is 0.082.
    assert second.startswith("grid 'ddim_uniform' on edm begins at t=0.08208, noise level 0.08208 of 80: ")
    assert low_starts(load_suite("quick")) == []
    (here / "one.toml").write_text((here / "low.toml").read_text().partition("[[study]]\nbridges")[0])
    done = run(bench_command, "one.toml", "--jobs", 1, "--no-report", "--json")
    assert json.loads(done.stdout)["remarks"] == [first, second]
    assert first in done.stderr


def test_an_adaptive_solver_samples_without_a_budget_and_refuses_one(tmp_path):
    file = str(tmp_path / "x.npy")
    done = run(sample_command, "ring8", "--solver", "rk_adaptive:rtol=1e-3,atol=1e-3", "-n", 5, "--output", file)
    assert "on edm, NFE " in done.output
    words = ("ring8", "--solver", "rk_adaptive", "--nfe", 20, "-n", 5, "--output", file)
    refused = CliRunner().invoke(sample_command.command, list(map(str, words)))
    assert "can't be given a budget, nfe=20" in str(refused.exception)


def test_a_plug_in_that_is_broken_is_a_row_of_the_list(monkeypatch):
    class Broken:
        name, value = "broken", "mine:broken"

        def load(self):
            raise SystemExit(3)

    monkeypatch.setattr(solvers.registry, "_plugins", {**solvers.registry._plugins, "broken": Broken()})
    rows = {row["name"]: row for row in rows_of("solvers")}
    assert "can't be loaded from 'mine:broken', as an installed package names it: SystemExit: 3" in rows["broken"]["summary"]
    assert rows["heun"]["summary"]
    assert not is_of_package(solvers.registry, "broken")


def test_a_solver_with_tables_for_some_budgets_shows_the_one_nearest_to_what_was_asked(tmp_path):
    file = tmp_path / "dc.safetensors"
    learned.train("dc", "bimodal1d", (5, 7), points=2).save(file)
    for words, nfe in (((), 5), (("--steps", 6), 6), (("--steps", 50), 7)):
        shown = json.loads(run(show_command, f"dc_regressed:file={file}", *words, "--json").output)
        assert shown["NFE of this run"] == nfe
        assert shown["title"].startswith("Tableau on edm, its own levels, ")
