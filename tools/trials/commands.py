"""Trials of command lines: every sub-command with words that are valid, odd, and contradictory, run in this process."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import click

from diffode.cli.main import command as diffode_group
from diffode.cli.main import main
from trials.draw import Draw
from trials.material import KINDS, material
from trials.trial import Names, Trial

#: Words for any option or argument.
ODD_WORDS = (
    "", " ", "-1", "0", "1.5", "nan", "inf", "1e400", "9" * 40, "x", "é", "\u202e", "--", "-", "a,b", "a:b", ":", "x.npy", ".",
    "..", "/", "/dev/null", "/dev/zero", "/nonexistent/x.npy", "folder", "x" * 300, "*", "%s", "$HOME", "None", "[1]", "a\nb",
)  # fmt: skip
#: Sensible words by the name of a parameter; those that cost time are small. ``@kind`` is a file of that kind.
WORDS: dict[str, tuple[str, ...]] = {
    "suite": ("@suite", "@suite", "@suite", "nosuch", "@store", "@table"),
    "target": ("gauss1d", "ring8", "moons", "gauss2d", "trained:ring8", "@function:noise", "@function:broken", "ring9"),
    "truth": ("ring8", "gauss1d", "nosuch"),
    "field": ("gauss1d", "trained:ring8", "@function:noise", "@function:broken", "@function:nosuch", "math:sin", "ring8"),
    "sampler": ("ddim", "dpmpp:order=2", "@function:noise", "diffusers:DDIMScheduler", "math:sin", "nosuch"),
    "spec": ("gauss1d", "ddim", "karras", "edm", "gits", "dmn", "bespoke", "amed", "universal", "search", "ld3",
             "bespoke:file=@checkpoint"),
    "kind": ("noise", "velocity", "denoised", "score", "nosuch", "solvers", "paths", "grids", "targets", "metrics", "suites"),
    "solver": ("ddim", "dpmpp:order=2", "euler_ancestral", "rk_adaptive", "scipy:RK45", "bespoke:file=@checkpoint",
               "conditioned:file=@conditioned"),
    "path": ("edm", "vp", "rectified_flow", "edm:sigma_max=3", "nosuch", "vp:beta_min=-1"),
    "grid": ("karras", "log_snr", "time_uniform:to_zero=true", "shift:s=0", "nosuch"),
    "nfe": ("1", "4", "6", "12"),
    "steps": ("1", "5", "50"),
    "points": ("1", "8", "20", "64"),
    "seed": ("0", "7"), "seeds": ("0", "7"), "jobs": ("1",), "top": ("1", "100"), "order": ("1", "2"),
    "seconds": ("0.1", "0.3"),
    "dim": ("2", "1x2", "0", "2x", "3x32x32"), "scale": ("1.0", "1e-300", "0"),
    "output": ("out", "out.npy", "out.safetensors", "@suite", "folder/x.npy"), "store": ("s.sqlite", "@store", "@table"),
    "picture": ("p.png", "folder", ""), "data": ("@array", "@arrays", "@suite"), "imports": ("@function", "math", "nosuch"),
    "options": ("order=2", "x", "=", "num_train_timesteps=-1"), "density": ("math:sin", "@function:noise"),
}  # fmt: skip
_ALLOWED, _SUBPROCESS, _PATIENCE = {0, 1, 2, 3}, 0.03, 120


class Ended(NamedTuple):
    """How a command ended: its exit code (None if it did not exit), and what it printed."""

    code: int | None
    said: str


def trial(draw: Draw) -> Trial:
    """A command line."""
    name = draw.pick(sorted(diffode_group.list_commands(None)))  # type: ignore[arg-type]
    found = diffode_group.get_command(None, name)  # type: ignore[arg-type]
    words = [name, *(_words(draw, found.params) if isinstance(found, click.Command) else ())]
    if draw.chance(0.05):
        words = draw.pick(([], ["--nosuch"], ["--version"], [name, "--help"], [draw.pick(ODD_WORDS)], [name[:-1], *words[1:]]))
    elsewhere = ", elsewhere=True" if draw.chance(_SUBPROCESS) else ""
    return Trial(f"ended = command({words!r}{elsewhere})\n", look)


def _words(draw: Draw, parameters: list[click.Parameter]) -> Iterator[str]:
    for parameter in parameters:
        if isinstance(parameter, click.Argument):
            if draw.chance(0.95):
                yield _word(draw, parameter)
        elif draw.chance(0.9 if parameter.required else 0.25):
            for _ in range(draw.pick((1, 1, 1, 2)) if parameter.multiple else 1):
                yield draw.pick(parameter.opts) if draw.chance(0.98) else "--nosuch"
                if not getattr(parameter, "is_flag", False) and draw.chance(0.98):
                    yield _word(draw, parameter)
    if draw.chance(0.05):
        yield draw.pick(ODD_WORDS)


def _word(draw: Draw, parameter: click.Parameter) -> str:
    if draw.chance(0.12):
        return draw.pick(ODD_WORDS)
    if isinstance(parameter.type, click.Choice):
        return str(draw.pick(list(parameter.type.choices)))
    return draw.pick(WORDS.get(parameter.name or "", ODD_WORDS))


def command(words: list[str], *, elsewhere: bool = False) -> Ended:
    """Run ``diffode`` with these words in an empty folder, in this process or in one of its own."""
    words = [_with_files(word) for word in words]
    with tempfile.TemporaryDirectory(prefix="diffode-trial-") as folder, contextlib.chdir(folder):
        os.mkdir("folder")
        if elsewhere:
            return _elsewhere(words)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                main(words)
            except SystemExit as end:
                return Ended(end.code if isinstance(end.code, int) else None, said.getvalue())
        return Ended(None, said.getvalue())


def _elsewhere(words: list[str]) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "diffode", *words],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_PATIENCE,
    )
    return Ended(done.returncode, done.stdout + done.stderr)


def _with_files(word: str) -> str:
    """The word with ``@kind`` replaced by the name of a file."""
    before, sign, after = word.partition("@")
    kind, colon, rest = after.partition(":")
    return f"{before}{material(kind)}{colon}{rest}" if sign and kind in KINDS else word


def look(names: Names) -> Iterator[str]:
    """It ends with one of the promised codes, and says why if it did not do its work."""
    ended = names["ended"]
    if ended.code not in _ALLOWED:
        yield f"exit code: {ended.code}: {ended.said[-300:]}"
    if "Traceback (most recent call last)" in ended.said:
        yield f"traceback: {ended.said[-300:]}"
    if ended.code in (2, 3) and not ended.said.strip():
        yield f"silence: exit code {ended.code} without a word"
