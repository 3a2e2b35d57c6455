"""Every code block of the documentation runs, every docstring example is true, every example and suite works."""

import doctest
import importlib
import pkgutil
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from commandline import script

import diffode
from diffode.studies import parse_suite

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(page.name, language, code) for page in PAGES for language, code in BLOCK.findall(page.read_text(encoding="utf-8"))]
MODULES = [m.name for m in pkgutil.walk_packages(diffode.__path__, "diffode.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b[1] == "python"], ids=lambda b: b[2].splitlines()[-1][:40])
def test_code_blocks_run(block, tmp_path):
    """In a process of its own: what a block registers stays there."""
    file = tmp_path / "block.py"
    file.write_text(block[2], encoding="utf-8")
    script(file, cwd=tmp_path)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b[1] == "toml"], ids=lambda b: b[0])
def test_suites_in_the_documentation_are_valid(block):
    assert parse_suite(tomllib.loads(block[2])).cells


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(importlib.import_module(name), name, extraglobs={"torch": torch}):
        # Even a docstring without examples costs a look at every file that a traceback could quote.
        if test.examples:
            runner.run(test)
    assert runner.summarize().failed == 0


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_run(page, tmp_path):
    tool = runpy.run_path(str(ROOT / "tools" / "run_tutorials.py"))
    file = tmp_path / "tutorial.py"
    file.write_text(f"import matplotlib\nmatplotlib.use('Agg')\n{tool['program_of'](page)}", encoding="utf-8")
    script(file, cwd=tmp_path)


def test_every_page_is_on_the_site_and_every_cell_in_its_tutorial():
    """A page that no list of pages names is found by nobody; a fence that the runner doesn't know would not be run."""
    listed = set()
    for page in (ROOT / "docs").rglob("*.md"):
        for names in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            listed |= {(page.parent / f"{name}.md").resolve() for name in names.split() if not name.startswith(":")}
    assert {page.resolve() for page in (ROOT / "docs").rglob("*.md")} - listed == {(ROOT / "docs" / "index.md").resolve()}
    program_of = runpy.run_path(str(ROOT / "tools" / "run_tutorials.py"))["program_of"]
    for page in TUTORIALS:
        text = page.read_text(encoding="utf-8")
        compile(program_of(page), page.name, "exec")
        assert text.count("```") == 2 * len(re.findall(r"^```\{code-cell\} python$", text, re.MULTILINE))


#: Examples that take less than a second.
QUICK = ("own_field.py", "into_other_libraries.py")
#: Arguments that spare an example most of its training.
LESS = {"diffusers_pipeline.py": ["20"], "score_error.py": ["0.4"]}


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=[] if file.name in QUICK else [pytest.mark.slow], id=file.name)
        for file in sorted((ROOT / "examples").glob("*.py"))
    ],
)
def test_examples_run(file, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(file), *LESS.get(file.name, [])])
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link
