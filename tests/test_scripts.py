"""Scripts beside the package: each says how it is called, and begins nothing before it has read its arguments."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def calls_in(node):
    """The names of what is called within a piece of code."""
    return {ast.unparse(call.func).rpartition(".")[2] for call in ast.walk(node) if isinstance(call, ast.Call)}


def begins(script):
    """Whether a script has a block that runs it, and whether what it runs there parses arguments."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    block = next((one for one in tree.body if isinstance(one, ast.If) and "__main__" in ast.unparse(one.test)), None)
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    if block is None or "main" not in functions:
        return False, False
    return True, "parse_args" in calls_in(block) | calls_in(functions["main"])


SCRIPTS = sorted(file for folder in ("benchmarks", "tools") for file in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", [one for one in SCRIPTS if begins(one)[0]], ids=lambda one: one.stem)
def test_a_script_parses_its_arguments_so_that_help_begins_no_work(script):
    assert begins(script)[1]
    assert "sys.argv" not in script.read_text(encoding="utf-8")


def test_scripts_are_found():
    assert sum(begins(one)[0] for one in SCRIPTS) > 30
