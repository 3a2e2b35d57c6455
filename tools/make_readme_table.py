"""Write the README's table of errors from what ``diffode bench quick`` has stored.

diffode bench quick && python tools/make_readme_table.py [--store diffode-report/results.sqlite]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffode.studies import Store, keyed_cells, load_suite
from diffode.studies.publication import as_markdown
from diffode.studies.ranking import best_methods, coverage, curves

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- table of bench quick -->\n", "<!-- end of it -->\n"
#: What is given the data's mean and covariance.
INFORMED = ("universal:chart=gaussian", "ipndm:order=3,jump=auto", "ab:order=2,chart=gaussian_angle")
#: What most programs run, and the simplest.
KNOWN = ("dpmpp:order=2", "ddim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="diffode-report/results.sqlite")
    store = parser.parse_args().store
    suite = load_suite("quick")
    if not Path(store).is_file():
        sys.exit(f"nothing is stored in {store}: diffode bench quick")
    with Store(store) as stored:
        results = stored.get(keyed_cells(suite))
    if coverage(suite.cells, results).sentence:
        sys.exit(f"{store} has a part of the suite: diffode bench quick")
    measured = curves(results)
    plain = best_methods([c for c in measured if c.method not in INFORMED], 1)
    shown = [*INFORMED, *plain, *(m for m in KNOWN if m not in plain)]
    targets, paths = (len({getattr(c, what) for c in measured}) for what in ("target", "path"))
    caption = (
        f"Mean end-point error in units of the data's scale, geometric mean over {targets} targets on {paths} paths, by number "
        "of evaluations on the grid karras. The first three know the data's mean and covariance; `universal` has seen none of "
        "these targets, and beyond 10 evaluations its error is that with 10."
    )
    table = as_markdown([c for c in measured if c.method in shown], shown, caption, "diffode bench quick")
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        sys.exit("README.md has no place for the table")
    README.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
