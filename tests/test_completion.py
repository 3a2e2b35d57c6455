"""The tab key: scripts that shells read, and names that come without waiting."""

import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from commandline import program

from diffode import paths, targets
from diffode.cli import completed
from diffode.cli.main import command
from diffode.studies import suite_names


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_one_that_the_shell_reads(shell, tmp_path):
    done = CliRunner().invoke(command, ["completion", shell])
    assert done.exit_code == 0, done.output
    assert f"_DIFFODE_COMPLETE={shell}_complete" in done.output
    if shutil.which(shell):
        (tmp_path / "script").write_text(done.output)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def completions(*words, cwd):
    """What bash gets for the last word, and which modules that took."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('LOADED', *[m for m in ('torch', 'numpy') if m in sys.modules]))\n"
        "from diffode.cli import main\nmain()"
    )
    given = {"_DIFFODE_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("diffode", *words)), "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, cwd=cwd, capture_output=True, text=True, check=True
    )
    *found, loaded = done.stdout.splitlines()
    assert loaded == "LOADED", "the tab key waits for no library"
    return [line.partition(",")[2] for line in found]


def test_commands_options_suites_targets_and_schedules_are_completed_without_pytorch(tmp_path):
    (tmp_path / "mine.toml").write_text("")
    assert completions("rec", cwd=tmp_path) == ["recommend"]
    assert completions("bench", "sche", cwd=tmp_path) == ["schedules"]
    assert completions("recommend", "--schedule", "s", cwd=tmp_path) == ["sd15", "sdxl"]
    assert completions("check", "ipn", cwd=tmp_path) == ["ipndm", "ipndm_v"]
    assert "--schedule" in completions("recommend", "--s", cwd=tmp_path)


def test_names_are_those_of_the_package_and_of_files(tmp_path, monkeypatch):
    def names(kind, begun=""):
        return [item.value for item in kind(None, None, begun)]

    assert names(completed.suites) == suite_names()
    assert set(names(completed.targets)) <= set(targets.names())
    assert len(names(completed.targets)) > 20
    # In a process of its own: other tests may have registered solvers here.
    registered = program("from diffode import solvers\nprint(*solvers.names())").stdout.split()
    assert set(names(completed.solvers)) == {name for name in registered if ":" not in name}
    assert set(completed.SCHEDULES) == {*paths.PUBLISHED, "edm"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "scheduler_config.json").write_text("")
    (tmp_path / "other.py").write_text("")
    assert names(completed.suites, "m") == names(completed.suites, "m")
    assert "mine.toml" in names(completed.suites, "mi")
    assert names(completed.schedules, "model/") == ["model/scheduler_config.json"]
    assert names(completed.schedules, "model/s") == ["model/scheduler_config.json"]
    assert names(completed.schedules, "nowhere/") == []
