"""Answers of commands that are kept: the same, at once, and never those of another package."""

import json
import subprocess
import sys

import pytest

import diffode
from diffode.cli import remembered as module
from diffode.cli.remembered import remembered

ANSWER = {"a": [1, 2.5, None, True], "b": {0: "x", 1: ("y", float("inf"))}, "c": (), "tuple": {}}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files in the place of this one, and a cache of its own."""
    place = tmp_path / "package"
    place.mkdir()
    (place / "__init__.py").write_text("one")
    (place / "data.npz").write_text("two")
    monkeypatch.setattr(diffode, "__file__", str(place / "__init__.py"))
    monkeypatch.setenv("DIFFODE_CACHE", str(tmp_path / "cache"))
    return place


def asked(words=("list",), alone=True, found=ANSWER):
    """What is answered, and whether it was computed."""
    computed = []

    def answer():
        computed.append(1)
        return found, alone

    return remembered(words, answer), bool(computed)


def test_an_answer_is_computed_once_and_keeps_its_types(package):
    assert asked() == (ANSWER, True)
    found, computed = asked()
    assert not computed
    assert repr(found) == repr(ANSWER)
    assert asked(("list", "solvers"))[1]
    assert asked(("list", 3))[1] and asked(("list", "3"))[1]  # noqa: PT018


def test_whatever_may_change_an_answer_makes_it_anew(package, monkeypatch):
    asked()
    for change in (
        lambda: (package / "__init__.py").write_text("other"),
        lambda: (package / "new.py").write_text("other"),
        lambda: (package / "data.npz").unlink(),
        lambda: monkeypatch.setenv("DIFFODE_NATIVE", "0"),
        lambda: monkeypatch.setattr(sys, "version", "another"),
        lambda: monkeypatch.setattr(module.importlib.metadata, "entry_points", lambda group: [Point(group)]),
    ):
        assert not asked()[1]
        change()
        assert asked()[1]


class Point:
    def __init__(self, group):
        self.name, self.value = group, "plug_in:thing"


def test_what_a_users_files_say_and_what_is_damaged_is_asked_again(package, tmp_path):
    assert asked(alone=False)[1]
    assert asked(alone=False)[1]
    asked()
    (file,) = (tmp_path / "cache" / "answers").iterdir()
    whole = file.read_text()
    for damaged in (whole[:-2], whole.replace("2.5", "2.6"), "", "[]", json.dumps({"sum": 1}), "[" * 100_000):
        file.write_text(damaged)
        assert asked() == (ANSWER, True)
    assert not asked()[1]


def test_a_cache_that_can_not_be_written_only_costs_time(package, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert asked() == (ANSWER, True)
    assert asked() == (ANSWER, True)


RUN = """
import sys
from diffode.cli import main
sys.argv = ["diffode", *{words!r}]
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def run(words, tmp_path):
    import os

    done = subprocess.run(
        [sys.executable, "-c", RUN.format(words=words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "DIFFODE_CACHE": str(tmp_path / "cache")},
    )
    return done.stdout, done.stderr.split()[-1] == "True"


@pytest.mark.parametrize("words", [["show", "dpm:order=3", "--steps", "2"], ["list", "paths"]])
def test_commands_answer_again_without_torch(words, tmp_path):
    first, loaded = run(words, tmp_path)
    assert loaded
    assert first
    assert run(words, tmp_path) == (first, False)


@pytest.mark.parametrize(
    ("spec", "alone"),
    [
        ("dpmpp:order=2", True),
        ("ddim", True),
        ("bespoke:file = s.safetensors", False),
        ("euler_maruyama:diffusion=own.py:g", False),
        ("euler_maruyama:diffusion=mymod:g", False),
        ("plugged", False),
    ],
)
def test_only_what_is_made_of_numbers_and_words_by_this_package_is_kept(spec, alone, tmp_path, monkeypatch):
    from diffode import solvers

    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.safetensors").write_text("")
    monkeypatch.setattr(solvers.registry, "_entries", dict(solvers.registry._entries))
    made = type("Mine", (solvers.DDIM,), {"__module__": "diffode_extra", "name": "plugged"})
    solvers.register("plugged", made)
    assert module.is_of_package(solvers.registry, spec) is alone


def test_solvers_in_files_are_shown_as_they_are_now(tmp_path):
    (tmp_path / "mine.py").write_text(
        '"""Mine."""\nfrom diffode.solvers import DDIM\n\n\nclass Mine(DDIM):\n    """The first."""\n\n    name = "mine"\n'
    )
    first, _ = run(["show", "mine.py:Mine"], tmp_path)
    assert "The first." in first
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("first", "second"))
    second, loaded = run(["show", "mine.py:Mine"], tmp_path)
    assert loaded
    assert "The second." in second
