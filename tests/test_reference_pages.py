"""The pages of what is registered say what is registered."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
TOOL = runpy.run_path(str(DOCS.parent / "tools" / "make_reference.py"))


@pytest.mark.parametrize("name", TOOL["PAGES"])
def test_a_page_is_what_its_script_writes(name):
    written = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert written == TOOL["PAGES"][name](), f"docs/{name}.md is not up to date: run python tools/make_reference.py"
