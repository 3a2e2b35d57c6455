"""Mutation testing: which lines tell the tests of a change, and which changes are not worth trying."""

import ast
import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "mutate.py"))
TEXT = """
STEPS = 3
OTHER = 4

@dataclass(frozen=True)
class Rule:
    order: int = 2

    def twice(self, by=2.0):
        return (by *
            2)

def first(x):
    return x[:STEPS]

def last(x):
    if x:
        return x[OTHER:]
"""


def _line(text):
    return next(number for number, line in enumerate(TEXT.splitlines(), start=1) if text in line)


@pytest.mark.parametrize(
    ("changed", "tried"),
    [
        ("return (by", ["return (by"]),
        ("if x", ["if x"]),
        ("STEPS = 3", ["x[:STEPS]"]),
        ("OTHER = 4", ["x[OTHER:]"]),
        ("by=2.0", ["return (by", "2)"]),
        ("order: int", ["return (by", "2)"]),
        ("@dataclass", ["return (by", "2)"]),
    ],
)
def test_a_change_is_tried_by_what_runs_it_or_what_it_says(changed, tried):
    around = (lines for lines in TOOL["surroundings"](ast.parse(TEXT), _line(changed)) if lines)
    assert next(around) == {_line(text) for text in tried}


@pytest.mark.parametrize(
    ("before", "harmless"),
    [
        ("@dataclass(frozen=True", True),
        ("    for a, b in zip(x, y, strict=True", True),
        ("    return [a for a in zip(x, y, strict=False", False),
        ("_AT_ONCE = 2**22", True),
        ("_LEAST_CHUNK_ROWS = 256", True),
        ("_BLOCK_NUMBERS = 256", False),
        ("    @override", True),
        ("_STEPS = 3", False),
    ],
)
def test_a_change_on_which_no_result_depends_is_not_tried(before, harmless):
    assert bool(TOOL["HARMLESS"].search(before)) == harmless
