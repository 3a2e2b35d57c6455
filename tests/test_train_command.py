"""``diffode train``: outputs are tried first, progress is readable, Ctrl-C keeps the best so far, grids become files."""

import itertools
import json
import os
import re
import signal
import time

import pytest
import torch
from click.testing import CliRunner
from commandline import diffode

from diffode import learned, output_files
from diffode.cli import train_command, training_log
from diffode.errors import ArgumentError
from diffode.learned import limit, load_checkpoint, load_grid
from diffode.learned.tables import published

RING = ("--target", "ring8", "--nfe", "3", "--points", "16")


def run(*arguments, code=0):
    """The command in this process, on ring8."""
    steps = ("--steps", "8") if arguments[0].startswith(("bespoke", "ld3")) else ()
    done = CliRunner().invoke(train_command.command, [arguments[0], *RING, *steps, *arguments[1:]])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(published, "ATTEMPTS", 2)


def test_an_output_that_can_not_be_written_is_said_before_any_work(tmp_path, monkeypatch):
    """Also to the superuser, whom no permission stops: opening is what is tried."""

    def full(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(output_files.FilePath, "write_bytes", full)
    monkeypatch.setattr(learned, "train", lambda *_, **__: pytest.fail("training began"))
    for spec in ("bespoke", "ld3"):
        arguments = [spec, *RING, "--output", str(tmp_path / "x.safetensors")]
        said = CliRunner().invoke(train_command.command, arguments).exception
        assert isinstance(said, ArgumentError)
        assert "x.safetensors' can't be written: Read-only file system; the disk is mounted read-only" in str(said)


def test_the_log_says_in_words_what_was_done_and_json_stays_clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("bespoke", "--output", "b.safetensors", "--json")
    facts = json.loads(done.stdout)
    assert facts["stopped by"] == "counts"
    lines = done.stderr.splitlines()
    looks = [line for line in lines if line.startswith("look ahead from ")]
    assert len(looks) == 2
    assert all(" step" in line and line.endswith(" of the scale") for line in looks)
    assert any(line.startswith("train from ") for line in lines)
    assert lines[-1].startswith("error, step by step: ")
    assert "universal:member" not in done.stderr
    again = run("bespoke", "--output", "b.safetensors", "--force").stdout
    assert "all steps were taken: the same seed gives the same numbers again" in again
    assert "than the error of what it began from" in again
    assert "of the data's scale" in again
    # The second training gave the same table to the last bit.
    assert f"{facts['held-out error']:.4g}" in again


def test_of_two_charts_that_were_compared_the_better_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--target", "spiral", "--nfe", "1", "--points", "16", "--steps", "1", "--output", "s.safetensors", "--force"]
    done = CliRunner().invoke(train_command.command, ["bespoke:chart=gaussian", *few])
    kind = learned.load(tmp_path / "s.safetensors").statistics.kind
    words = {"scale": "scale: one variance for all directions", "full": "full: a variance for each direction"}
    assert re.search(rf"^statistics +{words[kind]}$", done.stdout, re.MULTILINE)
    for chart in ("the covariance", "the scale alone"):
        assert f", in the chart of {chart}: 1 step" in done.stderr
    alone = CliRunner().invoke(train_command.command, ["bespoke:chart=gaussian,statistics=scale", *few, "--json"])
    assert json.loads(alone.stdout)["statistics"] == "scale"


def test_names_and_curves_are_shown_in_words_and_bars():
    assert training_log.in_words("look ahead from universal") == "look ahead from the universal table for all data"
    assert training_log.in_words("universal:member=3,scale=1e-05") == "member 3 of the universal codebook, in units of 1e-05"
    assert training_log.curve([]) == training_log.curve([0.0, float("inf")]) == ""
    assert training_log.curve([2.0, 2.0]) == "▁▁"
    assert len(training_log.curve([1 / k for k in range(1, 500)])) == 40


def test_ctrl_c_keeps_the_best_so_far_and_says_so(tmp_path, monkeypatch):
    """The signal comes with the third step after looking ahead."""
    original = training_log.TrainingLog.step

    def step(self, step):
        original(self, step)
        if step.stage.startswith("train from") and step.number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training_log.TrainingLog, "step", step)
    monkeypatch.chdir(tmp_path)
    done = run("bespoke", "--output", "c.safetensors", "--json", code=130)
    assert "ending after this step with what is best so far" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["stopped by"] == "request"
    assert facts["steps"] == 3
    assert load_checkpoint(tmp_path / "c.safetensors").stopped_by == "request"


def test_ctrl_c_with_nothing_to_keep_writes_nothing_and_promises_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learned, "train", interrupted)
    # A job in the background of a shell begins with interruptions ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = run("bespoke", code=130)
    assert "interrupted; nothing was written, and the same command begins anew" in done.stderr
    assert not list(tmp_path.iterdir())
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_ctrl_c_twice_ends_at_once():
    with training_log.TrainingLog() as log, training_log.interrupts(log) as asked:
        log.step(learned.Step("train from ddim @ karras", 1, None, 0.5))
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_trained_grid_becomes_a_file_on_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = json.loads(run("ld3:solver=ipndm", "--output", "g.safetensors", "--json").stdout)
    stored = load_grid(tmp_path / "g.safetensors")
    assert facts["file"] == "trained:file=g.safetensors"
    assert facts["grid"].split() == [f"{t:.10g}" for t in stored.times.tolist()]
    assert stored.target == "ring8"
    assert stored.held_out_error == facts["held-out error"]
    how = ("--solver", facts["solver"], "--grid", facts["file"], "--nfe", "3", "--json")
    assert json.loads(diffode("sample", "ring8", *how, cwd=tmp_path).stdout)["nfe"] == 3
    assert "say where to write it" in str(run("gits", "--force", code=1).exception)
    assert "write over it with --force" in str(run("gits", "--output", "g.safetensors", code=1).exception)
    assert "gits does not take" in str(run("gits:foo=1", code=1).exception)


def test_decoupled_levels_become_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = json.loads(run("ld3_decoupled", "--json").stdout)
    assert facts["solver"] == "bespoke:file=ld3_decoupled-ring8-3.safetensors"
    assert torch.isfinite(load_checkpoint(tmp_path / "ld3_decoupled-ring8-3.safetensors").stages.weights).all()
    assert facts["held-out error"] < facts["its error"]


def test_a_limit_of_seconds_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run("bespoke", "--seconds", "0.1", "--output", "s.safetensors").stdout
    assert "the limit of seconds, before all steps were taken: another machine may get further or less far" in shown


def of_map(*words):
    words = ["shortcut:width=8,depth=1,batch=8", "--target", "ring8", "--nfe", "1,2", "--steps", "9", *words]
    return CliRunner().invoke(train_command.command, words)


def test_a_flow_map_is_written_with_its_picture_and_neither_overwrites_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.png").write_text("precious")
    for words in ((), ("--json",)):
        said = of_map("--output", "mine.safetensors", *words).exception
        assert isinstance(said, ArgumentError)
        assert "'mine.png' exists" in str(said)
    assert (tmp_path / "mine.png").read_text() == "precious"
    facts = json.loads(of_map("--output", "map.safetensors", "--json").stdout)
    assert facts["solver"] == "map:file=map.safetensors"
    assert facts["held-out error of 2 jumps"] == learned.load("map.safetensors").held_out[2]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "exists" in str(of_map("--output", "map.safetensors").exception)
    assert of_map("--output", "map.safetensors", "--force").exit_code == 0


def test_an_interrupted_flow_map_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = json.loads(of_map("--output", "whole.safetensors", "--json").stdout)
    with monkeypatch.context() as patch:
        # A clock that is at the limit after four steps.
        calls = itertools.count(1)
        patch.setattr(limit.Limit, "elapsed", property(lambda _: float(next(calls))))
        part = of_map("--output", "part.safetensors", "--seconds", "4", "--json")
    assert json.loads(part.stdout)["stopped by"] == "seconds"
    assert json.loads(part.stdout)["steps"] < 9
    assert "--resume goes on" in part.stderr
    rest = json.loads(of_map("--output", "part.safetensors", "--resume", "--json").stdout)
    assert rest["steps"] == whole["steps"] == 9
    assert rest["held-out error of 2 jumps"] == whole["held-out error of 2 jumps"]
    assert not (tmp_path / "part.interrupted.safetensors").exists()
    said = of_map("--output", "none.safetensors", "--resume").exception
    assert "no interrupted training" in str(said)
    assert "not both" in str(of_map("--output", "none.safetensors", "--resume", "--force").exception)
    (tmp_path / "folder.interrupted.safetensors").mkdir()
    assert "is a folder" in str(of_map("--output", "folder.safetensors").exception)


def test_numbers_of_evaluations_are_told():
    for nfe in ("0", "1,1", "a", "1,,2", "201", ""):
        words = ["shortcut", "--target", "ring8", "--nfe", nfe]
        assert CliRunner().invoke(train_command.command, words).exit_code == 2
    said = CliRunner().invoke(train_command.command, ["bespoke", "--target", "ring8", "--nfe", "1,2"]).exception
    assert "one number of evaluations for bespoke" in str(said)


def test_ratios_for_several_numbers_are_a_file_that_runs_between_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("--target", "ring8", "--guide", "label=three,weight=1", "--nfe", "4,6", "--points", "8", "--json")
    done = CliRunner().invoke(train_command.command, ["dc:weights=1+2", *asked, "--output", "r.safetensors"])
    assert done.exit_code == 0, (done.output, done.exception)
    facts = json.loads(done.stdout)
    assert facts["solver"] == "dc_regressed:file=r.safetensors,weight=1.0"
    assert facts["evaluations"] == "4 to 6, weights 1 to 2"
    assert facts["steps"] == 2 * (2 + 4)
    assert learned.load("r.safetensors").content.at(5, 1.5)
    again = CliRunner().invoke(train_command.command, ["dc", *asked[:-1]])
    assert again.exit_code == 0
    assert (tmp_path / "dc-ring8-guided-label-three-weight-1.0-4-6.safetensors").is_file()
    wrong = CliRunner().invoke(train_command.command, ["ld3", "--target", "ring8", "--nfe", "4,6"])
    assert "dc and flow maps take several" in str(wrong.exception)


@pytest.mark.parametrize("spec", ["universal:chart=gaussian", "bespoke:chart=gaussian", "ld3:jump=auto", "amed:jump=auto"])
def test_what_a_guided_target_can_not_tell_is_refused_with_what_the_command_line_can_do(tmp_path, monkeypatch, spec):
    """Statistics are an argument in Python alone, so that to do without comes first; what is said to do then runs."""
    monkeypatch.chdir(tmp_path)
    guided = ("--guide", "label=three,weight=2")
    said = str(run(spec, *guided, code=1).exception)
    assert re.search("a guided field knows none: leave jump= and the chart of the Gaussian .* out; or in Python pass", said)
    if spec.startswith("universal"):
        assert "held-out error" in run("universal", *guided).stdout
