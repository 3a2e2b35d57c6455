"""Write the curves that ship, diffode/studies/shipped/SUITE.json: a run of the suite, about a minute on two cores.

python tools/make_shipped.py schedules
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffode.studies import Store, load_suite, run_suite
from diffode.studies.ranking import curves
from diffode.studies.shipped import FOLDER, write_shipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="schedules")
    parser.add_argument("--store", type=Path, default=Path("diffode-report/results.sqlite"))
    options = parser.parse_args()
    suite = load_suite(options.suite)
    options.store.parent.mkdir(parents=True, exist_ok=True)
    summary = run_suite(suite, options.store)
    print(f"{summary.computed:,} computed in {summary.seconds:.0f} s, {summary.stored:,} stored, {summary.failed} failed")
    with Store(options.store) as store:
        results = store.get(summary.cells)
    if summary.failed or len(results) < len(suite.cells):
        sys.exit("runs failed or are missing: nothing is written")
    told = results[0].environment or {}
    made_with = ", ".join(f"{key} {value}" for key, value in told.items() if key != "processor")
    FOLDER.mkdir(exist_ok=True)
    write_shipped(suite, curves(results), made_with, FOLDER / f"{suite.name}.json")
    print(FOLDER / f"{suite.name}.json", (FOLDER / f"{suite.name}.json").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
