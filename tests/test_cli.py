"""The command line as a user meets it: in processes of its own."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from commandline import diffode

from diffode import paths, solvers, targets

SUITE = """
name = "tiny"
summary = "for the tests"
[[study]]
targets = ["ring8"]
paths = ["edm"]
grids = ["karras"]
nfe = [4, 8]
seeds = [0]
points = 16
tolerance = 1e-6
solvers = ["ddim", "dpmpp:order=2"]
"""


def test_help_is_instant_and_importing_loads_no_torch():
    """0.3 s is promised; it takes 0.06 s, and the way it could break is by importing PyTorch."""
    code = "import sys, diffode, diffode.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    began = time.perf_counter()
    command = [sys.executable, "-m", "diffode", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - began < 5
    assert all(word in shown for word in ("bench", "report", "list", "show", "sample", "Example"))


@pytest.mark.parametrize("command", ["bench", "report", "list", "show", "sample"])
def test_every_command_has_help_with_an_example(command):
    assert "Example:" in diffode(command, "--help").stdout


def test_bench_ranks_reports_and_resumes(tmp_path):
    (tmp_path / "tiny.toml").write_text(SUITE)
    first = diffode("bench", "tiny.toml", "--jobs", "1", cwd=tmp_path)
    assert "Best solver at each NFE" in first.stdout
    assert "4 computed" in first.stderr
    assert (tmp_path / "diffode-report/tiny/index.html").is_file()
    again = diffode("bench", "tiny.toml", "--jobs", "1", "--json", "--no-report", cwd=tmp_path)
    assert "0 computed" in again.stderr
    answer = json.loads(again.stdout)
    assert set(answer["standings"]) == {"4", "8"}
    assert answer["failures"] == []
    assert "diffode bench tiny.toml" in (tmp_path / "diffode-report/tiny/index.html").read_text()
    assert "tiny/index.html" in diffode("report", "tiny.toml", cwd=tmp_path).stdout
    seeded = diffode("bench", "tiny.toml", "--jobs", "1", "--seed", "5", "--no-report", cwd=tmp_path)
    assert "4 computed" in seeded.stderr


def test_lists_are_complete():
    listed = json.loads(diffode("list", "--json").stdout)
    for kind, registry in (("targets", targets), ("solvers", solvers)):
        # Other tests may have registered more in this process.
        assert {row["name"] for row in listed[kind]} <= set(registry.names())
        assert len(listed[kind]) >= 16
    assert [row["name"] for row in listed["paths"]] == paths.names()
    assert all(row["summary"] for rows in listed.values() for row in rows)
    assert "ring8" in diffode("list", "targets").stdout


def test_show_prints_cards_and_tableaux():
    card = diffode("show", "digits-gmm10").stdout
    assert "CC BY 4.0" in card
    shown = diffode("show", "dpmpp:order=2", "--steps", "2").stdout
    assert "arXiv 2211.01095" in shown
    assert "x2" in shown
    table = json.loads(diffode("show", "euler", "--json").stdout)
    assert len(table["tableau"]) == 4


@pytest.mark.parametrize("target", ["ring8", "gauss1d", "digits-gmm10", "line16"])
def test_sample_writes_points_and_a_picture(target, tmp_path):
    out = diffode("sample", target, "-n", "50", "--nfe", "6", "--output", "out/s.npy", "--json", cwd=tmp_path)
    facts = json.loads(out.stdout)
    points = np.load(tmp_path / "out/s.npy", allow_pickle=False)
    assert points.shape == (50, targets.get(target).dim)
    assert np.isfinite(points).all()
    assert (tmp_path / "out/s.png").stat().st_size > 1000
    assert facts["nfe"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bnech"], "did you mean 'bench'"),
        (["bench", "quik"], "did you mean 'quick'"),
        (["bench", "none.toml"], "can't be read"),
        (["bench", "quick", "--jobs", "0"], "--jobs"),
        (["report", "quick"], "run diffode bench quick first"),
        (["show", "dpmp"], "did you mean 'dpm"),
        (["sample", "ring9"], "did you mean 'ring8'"),
        (["sample", "ring8", "--solver", "heun", "--nfe", "1"], "possible budgets: 2"),
        (["sample", "ring8", "--path", "vpp"], "did you mean 'vp'"),
        (["sample", "ring8", "--output", "points.txt"], "must end in .npy"),
        (["sample", "ring8", "--output", "/proc/nowhere/x.npy"], "can't be written"),
        (["list", "things"], "Invalid value"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(arguments, message, tmp_path):
    done = diffode(*arguments, cwd=tmp_path, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_store_exits_with_2_and_is_left_alone(tmp_path):
    (tmp_path / "tiny.toml").write_text(SUITE)
    (tmp_path / "store.sqlite").write_text("not a database at all" * 100)
    done = diffode("bench", "tiny.toml", "--store", "store.sqlite", cwd=tmp_path, code=2)
    assert "move it away" in done.stderr
    assert (tmp_path / "store.sqlite").read_text().startswith("not a database")


def test_sample_with_noise_claims_no_end_point_error(tmp_path):
    out = diffode(
        "sample", "ring8", "-n", "20", "--solver", "dpmpp_2m_sde", "--nfe", "6", "--output", "s.npy", "--json", cwd=tmp_path
    )
    assert json.loads(out.stdout)["mean_endpoint_error"] is None
    again = diffode("sample", "ring8", "-n", "20", "--solver", "dpmpp_2m_sde", "--nfe", "6", "--output", "s.npy", cwd=tmp_path)
    assert "it draws noise" in again.stdout


def test_samples_on_a_published_table_start_from_its_own_level(tmp_path):
    """The standard deviation of N(.5, .64) is 0.8; from the wrong level it was 4.4 and 0.1."""
    for grid in ("ays_sd15", "ays_svd"):
        diffode("sample", "gauss1d", "--grid", grid, "--nfe", "12", "-n", "4000", "--output", "s.npy", cwd=tmp_path)
        assert abs(np.load(tmp_path / "s.npy").std() - 0.8) < 0.1


def test_json_is_json_even_with_infinite_options():
    shown = json.loads(diffode("show", "sa", "--json").stdout, parse_constant=lambda name: pytest.fail(name))
    assert shown["options"]["tau_to"] == "inf"


def test_recommend_uses_results_of_ones_own_solvers_and_seeds(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import diffode\nfrom dataclasses import dataclass\n"
        "from diffode.solvers.runge_kutta import Euler\n"
        "diffode.solvers.register('mine', Euler, chart='noise')\n"
    )
    (tmp_path / "tiny.toml").write_text(SUITE.replace('"ddim", "dpmpp:order=2"', '"mine"'))
    own = ("--import", "mine.py", "--seed", "7")
    diffode("bench", "tiny.toml", "--jobs", "1", "--no-report", *own, cwd=tmp_path)
    assert "take mine" in diffode("recommend", "--suite", "tiny.toml", "--nfe", "5", *own, cwd=tmp_path).stdout
    assert "mine" in diffode("recommend", "--suite", "tiny.toml", "--nfe", "5", cwd=tmp_path, code=2).stderr
    assert "--suite FILE.toml" in diffode("recommend", "--nfe", "5", cwd=tmp_path, code=2).stderr


def test_the_exact_errors_of_a_gaussian_suite_rank(tmp_path):
    (tmp_path / "g.toml").write_text(
        SUITE.replace('"ring8"', '"gauss2d"').replace('"ddim"', '"ddpm", "ddim"').replace(
            "points = 16", 'points = 2\nmetrics = ["gaussian_error:part=discretisation"]')
    )  # fmt: skip
    ranked = json.loads(diffode("bench", "g.toml", "--jobs", "1", "--no-report", "--json", cwd=tmp_path).stdout)
    assert [row["solver"] for row in ranked["standings"]["8"]] == ["dpmpp:order=2", "ddim", "ddpm"]
    assert not ranked["failures"]


def test_train_writes_a_sampler_that_bench_and_sample_take(tmp_path):
    options = ("--target", "bimodal1d", "--nfe", "4", "--seconds", "120", "--points", "128", "--output", "b.safetensors")
    facts = json.loads(diffode("train", "bespoke", *options, "--json", cwd=tmp_path).stdout)
    # The best of hundreds of published samplers has 0.065. The counts of steps end the run, after a few seconds where the
    # machine is free; a limit of time that ended it would make the result hang on how busy the machine is.
    assert facts["stopped by"] == "counts"
    assert facts["held-out error"] < 0.02
    assert facts["times smaller"] > 1
    assert (tmp_path / "b.png").stat().st_size > 10_000
    sampled = diffode("sample", "bimodal1d", "--solver", facts["solver"], "--nfe", "4", "--json", cwd=tmp_path)
    assert json.loads(sampled.stdout)["mean_endpoint_error"] < 0.05
    suite = (
        SUITE.replace('"ring8"', '"bimodal1d"').replace("nfe = [4, 8]", "nfe = [4]").replace('"ddim"', f'"{facts["solver"]}"')
    )
    (tmp_path / "own.toml").write_text(suite)
    ranked = json.loads(diffode("bench", "own.toml", "--jobs", "1", "--no-report", "--json", cwd=tmp_path).stdout)
    assert ranked["standings"]["4"][0]["solver"] == facts["solver"]


@pytest.mark.parametrize("spec", ["gits", "dmn", "ld3:solver=ipndm", "search:solver=ddim"])
def test_train_finds_grids(spec, tmp_path):
    facts = json.loads(diffode("train", spec, "--target", "bimodal1d", "--nfe", "4", "--json", cwd=tmp_path).stdout)
    times = [float(t) for t in facts["grid"].split()]
    assert times == sorted(times, reverse=True)
    assert len(times) == 5
    # GITS and DMN optimise something else than the error.
    assert spec in ("gits", "dmn") or facts["held-out error"] < facts["its error"]


def test_train_writes_amed_and_names_what_is_wrong(tmp_path):
    assert "nfe" in diffode("train", "amed:host=euler,rounds=20", "--target", "bimodal1d", "--nfe", "3", cwd=tmp_path).stdout
    assert (tmp_path / "amed-bimodal1d-3.safetensors").is_file()
    again = ("train", "amed:rounds=1", "--target", "bimodal1d", "--nfe", "3")
    assert "write over it with --force" in diffode(*again, cwd=tmp_path, code=2).stderr
    named = "amed_learned:file=amed-bimodal1d-3.safetensors"
    run = diffode("sample", "bimodal1d", "--solver", named, "--nfe", "3", "--json", cwd=tmp_path)
    assert json.loads(run.stdout)["nfe"] == 3
    assert "did you mean 'bespoke'" in diffode("train", "bespok", "--target", "ring8", "--nfe", "4", code=2).stderr
    assert (
        "does not take the option 'foo'" in diffode("train", "bespoke:foo=1", "--target", "ring8", "--nfe", "4", code=2).stderr
    )
    assert "does not take" in diffode("train", "ld3:foo=1", "--target", "ring8", "--nfe", "4", code=2).stderr
    own = ("--target", "ring8", "--nfe", "4")
    assert "a step for each evaluation" in diffode("train", "gits:solver=edm_heun", *own, code=2).stderr
    assert "writes no file" in diffode("train", "universal", *own, "--force", code=2).stderr
    assert "begin_from must be" in diffode("train", "bespoke:start=5", *own, code=2).stderr
    assert "must end in .safetensors" in diffode(
        "train", "bespoke", "--target", "ring8", "--nfe", "4", "--output", "x.pt", code=2
    ).stderr  # fmt: skip


def test_a_file_with_a_comma_in_its_name_runs_by_the_spec_that_is_printed(tmp_path):
    own = ("--target", "ring8", "--nfe", "4", "--points", "8", "--output", "a,b.safetensors", "--json")
    facts = json.loads(diffode("train", "gits", *own, cwd=tmp_path).stdout)
    assert facts["file"] == "trained:file='a,b.safetensors'"
    how = ("--solver", facts["solver"], "--grid", facts["file"], "--nfe", "4", "--json")
    assert json.loads(diffode("sample", "ring8", *how, cwd=tmp_path).stdout)["nfe"] == 4


def test_cards_are_json_and_adaptive_solvers_have_no_tableau():
    card = json.loads(diffode("show", "ring8", "--json").stdout)
    assert card["name"] == "ring8"
    assert card["content"] == targets.get("ring8").content()
    assert "steps depend on the solution" in diffode("show", "rk_adaptive").stdout


def test_a_misspelt_command_is_answered_with_the_right_one():
    assert "did you mean 'bench'" in diffode("bnech", code=2).stderr


def test_show_names_what_is_wrong_with_a_known_name_and_knows_papers_names_and_lists_of_times():
    assert "'order' is not of the form key=value" in diffode("show", "dpmpp:order", code=2).stderr
    assert "no option 'oder'" in diffode("show", "dpmpp:oder=2", code=2).stderr
    assert "did you mean 'dpmpp'" in diffode("show", "dpmp", code=2).stderr
    told = json.loads(diffode("show", "DPM++ 2M", "--json").stdout)
    assert told["spec"] == "dpmpp:lower_order_final=never"
    listed = json.loads(diffode("show", "dpmpp", "--grid", "0.7,0.2,0.1", "--json").stdout)
    assert [row["time"] for row in listed["tableau"]] == [0.7, 0.2, 0.1]
