"""Mutation testing: are the tests able to fail?

``python tools/mutate.py [--sample N] [--seed S] [--modules NAME ...] [--contexts FOLDER] [--output FILE]``. cosmic-ray changes
one operator, number or keyword of the numerical core at a time, in a copy of the repository. First coverage notes there which
tests run which line, and pytest how long they take. A mutant is then tried by the tests that run its line, slow ones among
them, the quickest first, until one fails; it has to pass without the change. ``--contexts`` names the folder where the notes
are kept, or lie from an earlier run. Printed are the share killed, and every survivor with its line. Needed are ``cosmic-ray``
and ``pytest-cov``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: Rooms and modules of the numerical core.
CORE = (
    "numerics", "hippo", "native", "paths", "maps", "charts.py", "gaussian_charts.py", "grid_menus.py", "grid_rules.py",
    "grids.py", "randomness.py", "flows", "tableau", "targets", "statistics", "fields", "bridges", "solvers", "sources",
    "metrics", "learned/conditional", "learned/fitting", "learned/grids", "learned/heads", "learned/maps", "learned/tables",
    "learned/universal", "verify/field", "verify/maps", "verify/theory", "verify/sampler",
)  # fmt: skip
#: The room whose functions run as machine code, which coverage does not see, and the files of tests for it.
MACHINE_CODE, ITS_TESTS = "diffode/native/", ("native", "native_wide", "machine_code", "exact_fields")
#: Operators whose mutation says little, as those of annotations, or nothing, as == where objects are one; and those that no
#: programmer would write for another.
DULL = re.compile("_(BitOr|BitAnd|BitXor|RShift|LShift|Is_Eq|IsNot_NotEq)|_(FloorDiv|Mod|Pow)$")
#: The line up to the end of a change on which no result depends.
HARMLESS = re.compile(
    # Nobody writes to a value, and lengths that are promised to be equal are.
    r"\b(frozen|strict)=True$|"
    # These say what a method is, to those who read.
    r"^\s*@(override|overload)$|"
    # The size of the pieces in which something is computed is a matter of memory and speed, except that of random streams.
    r"^_?(AT_ONCE|BLOCK|BLOCK_DISTANCES|\w*CHUNK\w*|TOGETHER|\w*ROWS_OF_A_THREAD) = "
)
#: Seconds that the tests of a mutant may have taken together, and seconds after which one that does not end is killed.
SECONDS, PATIENCE = 60.0, 300.0
IGNORED = (".git", ".venv", "__pycache__", "diffode-report", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache")
CONFIG = "[run]\nsource = diffode\nrelative_files = true\n"


@dataclass(frozen=True)
class Mutant:
    module: str
    operator: str
    occurrence: int
    line: int


def files(place: str) -> list[str]:
    """The modules of a room, or that module, from the repository's folder on."""
    whole = ROOT / "diffode" / place
    inside = [whole] if whole.is_file() else sorted(whole.rglob("*.py"))
    return [file.relative_to(ROOT).as_posix() for file in inside if file.stem != "__init__"]


def mutants(module: str) -> Iterator[Mutant]:
    """The mutants of a module that are worth trying."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast_from_path(ROOT / module)))
    text = (ROOT / module).read_text(encoding="utf-8").splitlines()
    for name in operator_names():
        if DULL.search(name) or get_operator(name).arguments():
            continue
        places = (place for node in nodes for place in get_operator(name)().mutation_positions(node))
        for occurrence, ((line, _), (last, end)) in enumerate(places):
            if not HARMLESS.search(text[line - 1][: end if last == line else None]):
                yield Mutant(module, name, occurrence, line)


def pytest_runtest_setup() -> None:
    """Where this file is a plugin of pytest, caches are emptied: a line would be run by the first test alone that needs it."""
    from diffode.solvers import kept_tables

    # Tests play users who may not write what others own, while coverage goes on; SQLite makes files that others may not write.
    notes = Path(os.environ["COVERAGE_FILE"])
    for file in notes.parent.glob(f"{notes.name}*"):
        # A journal of SQLite may be gone by now.
        with contextlib.suppress(FileNotFoundError):
            file.chmod(0o666)
    kept_tables.forget()
    core = tuple(f"diffode.{place.removesuffix('.py').replace('/', '.')}" for place in CORE)
    for name, module in list(sys.modules.items()):
        for value in list(vars(module).values()) if name.startswith(core) else ():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


def pytest(copy: Path, *arguments: str, limit: float | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments]
    # The copy comes before the repository, also for the commands that tests start, and may hold what Python compiled.
    paths = os.pathsep.join([str(copy), str(copy / "tools"), os.environ.get("PYTHONPATH", "")])
    around = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "", **environment}
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=limit, env=around, umask=0)


def note(copy: Path, folder: Path) -> None:
    """Run all tests, and keep in a folder which lines each of them ran, and how long it took."""
    config = folder / "config"
    config.write_text(CONFIG)
    folder.chmod(0o777)
    done = pytest(
        copy, "-p", "mutate", "-n", "2", "--dist", "loadfile", "--durations=0", "--durations-min=0", "--cov",
        f"--cov-config={config}", "--cov-context=test", "--cov-report=", COVERAGE_FILE=str(folder / "coverage"),
    )  # fmt: skip
    if done.returncode:
        said = folder / "failed"
        said.write_text(done.stdout + done.stderr, encoding="utf-8")
        raise SystemExit(f"tests fail without a change; {said} holds what pytest said, which ends:\n{done.stdout[-3000:]}")
    (folder / "durations").write_text(done.stdout, encoding="utf-8")


class Contexts:
    """Which tests run a line, and how long they take."""

    def __init__(self, folder: Path, copy: Path):
        from coverage import CoverageData

        self.data = CoverageData(str(folder / "coverage"))
        self.data.read()
        self.seconds: dict[str, float] = defaultdict(float)
        text = (folder / "durations").read_text(encoding="utf-8")
        # Notes may be older than the tests.
        present = set(pytest(copy, "--collect-only").stdout.splitlines())
        for seconds, test in re.findall(r"^([\d.]+)s (?:setup|call|teardown) +(\S.*)$", text, re.MULTILINE):
            if test in present:
                self.seconds[test] += float(seconds)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests of a mutant, the quickest first, as many as the seconds allow."""
        if mutant.module.startswith(MACHINE_CODE):
            found = self._of({f"tests/test_{name}.py" for name in ITS_TESTS})
        else:
            ran = self.data.contexts_by_lineno(mutant.module)
            tree = ast.parse((ROOT / mutant.module).read_text(encoding="utf-8"))
            around = (self._running(ran[line] for line in lines & ran.keys()) for lines in surroundings(tree, mutant.line))
            found = next(filter(None, around), set())
        chosen, seconds = [], 0.0
        for test in sorted(found, key=lambda test: (self.seconds[test], test)):
            seconds += self.seconds[test]
            if seconds > SECONDS and chosen:
                break
            chosen.append(test)
        return chosen

    def _running(self, contexts: Iterable[list[str]]) -> set[str]:
        """The tests of these contexts; what a fixture runs may have been made for any test of its file."""
        parts = {context.rpartition("|")[::2] for some in contexts for context in some if context}
        alone = {test for test, part in parts if part == "run" and test in self.seconds}
        return alone | self._of({test.split("::")[0] for test, part in parts if part == "setup"})

    def _of(self, names: set[str]) -> set[str]:
        return {test for test in self.seconds if test.split("::")[0] in names}


def surroundings(tree: ast.Module, line: int) -> Iterator[set[int]]:
    """A line, then what stands around it, from inside out, without what runs when the module is imported.

    Around a constant stands what uses its name.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {n for function in functions for n in range(function.body[0].lineno, function.end_lineno + 1)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    yield inside & {line}
    # Outer statements are walked before inner ones.
    for statement in reversed([node for node in ast.walk(tree) if isinstance(node, ast.stmt)]):
        first = min([statement.lineno, *(mark.lineno for mark in getattr(statement, "decorator_list", []))])
        own = set(range(first, statement.end_lineno + 1))
        if line not in own:
            continue
        if isinstance(statement, ast.Assign | ast.AnnAssign) and not own & inside:
            bound = {name.id for name in names if name.lineno in own and isinstance(name.ctx, ast.Store)}
            yield inside & {name.lineno for name in names if name.id in bound}
        yield inside & own
    yield inside


def outcome(copy: Path, mutant: Mutant, tests: list[str]) -> dict[str, Any]:
    """What becomes of a mutant; ``by`` is the test that killed it, if one did."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    file = copy / mutant.module
    before = file.read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
    found = {**asdict(mutant), "tests": len(tests), "killed": False, "late": False, "by": "", "change": changed(before, after)}
    if not tests:
        return found
    file.write_text(after, encoding="utf-8")
    try:
        done = these(copy, tests, PATIENCE)
    except subprocess.TimeoutExpired:
        return {**found, "killed": True, "late": True}
    finally:
        file.write_text(before, encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
    by = [test for test in tests if failed and f"{failed[1]} - ".startswith(f"{test} - ")]
    return {**found, "killed": done.returncode != 0, "by": by[0] if by else ""}


def these(copy: Path, tests: list[str], limit: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run these tests alone, in their order."""
    names = copy / "tests-to-run"
    names.write_text("\n".join(tests), encoding="utf-8")
    return pytest(copy, f"@{names}", limit=limit)


def changed(before: str, after: str) -> list[str]:
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    return [f"{sign}{text}" for pair in pairs if pair[0] != pair[1] for sign, text in zip("-+", pair, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="*", default=CORE, choices=CORE, metavar="NAME")
    parser.add_argument("--contexts", metavar="FOLDER")
    parser.add_argument("--output", default="mutation.json")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as temporary:
        copy, folder = Path(temporary) / "copy", Path(asked.contexts or temporary)
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*IGNORED))
        if not (folder / "durations").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            note(copy, folder.resolve())
        contexts = Contexts(folder, copy)
        modules = [module for place in asked.modules for module in files(place)]
        # The number of lines stands for that of mutants, which take minutes to list.
        sizes = [len((ROOT / module).read_text(encoding="utf-8").splitlines()) for module in modules]
        shares = Counter(draw.choices(modules, sizes, k=asked.sample))
        sample: list[Mutant] = []
        for module in sorted(shares):
            every = list(mutants(module))
            sample += draw.sample(every, min(shares[module], len(every)))
        # What was done when a run is ended early is a sample too.
        draw.shuffle(sample)
        found = []
        for mutant in sample:
            tests = contexts.tests(mutant)
            found.append(one := outcome(copy, mutant, tests))
            Path(asked.output).write_text(json.dumps(found, indent=1))
            if not one["killed"]:
                change = "".join(f"\n    {line}" for line in one["change"])
                print(f"survived {len(tests)} tests: {mutant.module}:{mutant.line} {mutant.operator}{change}", flush=True)
        killers = sorted({one["by"] for one in found if one["by"]})
        if killers and (unchanged := these(copy, killers)).returncode:
            raise SystemExit(f"tests fail without a change:\n{unchanged.stdout[-3000:]}")
    killed, late = (sum(one[word] for one in found) for word in ("killed", "late"))
    print(f"\n{killed} of {len(found)} killed: {100 * killed / len(found):.0f} %; {late} of these by {PATIENCE:.0f} seconds")


if __name__ == "__main__":
    main()
