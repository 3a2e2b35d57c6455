"""Run the tutorials as programs, without a notebook: every code cell of a page in turn, a process for each page.

`make tutorials` runs all; names of pages run those. Fails if a page fails, and prints how long each took.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def program_of(page: Path) -> str:
    """The code of a page, cell after cell."""
    return "\n".join(CELL.findall(page.read_text(encoding="utf-8")))


def main(names: list[str]) -> int:
    pages = [PAGES / f"{name}.md" for name in names] or sorted(PAGES.glob("*.md"))
    failed = 0
    for page in pages:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tutorial.py"
            file.write_text(f"import matplotlib\nmatplotlib.use('Agg')\n{program_of(page)}", encoding="utf-8")
            run = subprocess.run([sys.executable, str(file)], cwd=folder, check=False, stdout=subprocess.DEVNULL)
        failed += run.returncode != 0
        print(f"{page.stem:20s} {'ok' if run.returncode == 0 else 'FAILED'} {time.monotonic() - begun:6.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pages, all unless given")
    sys.exit(main(parser.parse_args().names))
