"""The pages of what is registered say what is registered."""

from pathlib import Path

from commandline import program

TOOL = Path(__file__).parent.parent / "tools" / "make_reference.py"


def test_pages_are_what_their_script_writes():
    """In a process of its own, in which no other test has registered anything."""
    text = f"import runpy, sys\nsys.argv = ['make_reference', '--check']\nrunpy.run_path({str(TOOL)!r}, run_name='__main__')"
    assert "all pages are true" in program(text).stdout
