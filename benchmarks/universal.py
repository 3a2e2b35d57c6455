"""Universal tables in the Gaussian's chart, untuned, against hand-made solvers that are tuned, without and with a jump.

``python benchmarks/universal.py [--nfe N ...] [--targets NAME ...] [--starts N] [--rows FILE] [--learned FILE]``. For each
target and number of evaluations, on EDM from 80 to 0.002, mean end-point errors over 256 test starts in units of its scale:

* *hand-made*: the best of the solvers and grids of ``benchmarks/learned.py``, in hindsight, and the best on karras, rho = 7;
* *jump*: the best of the solvers below after a jump along the flow of the data's Gaussian, its level and grid in hindsight;
* *universal*: ``universal:chart=gaussian`` with the data's covariance, and given the scale alone; no target was trained on;
* *tuned*: what ``tune_universal(target, nfe, chart="gaussian")`` gives on 512 other starts.

Rows are appended to FILE as they are made; columns that are there already are not made again, nor are those without a table of
the rows in the file of ``--learned``, which ``benchmarks/learned.py`` or an earlier run of this script wrote.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from learned import CHOOSING, EDM, TEST_SEED, geometric, hand_made

from diffode import fields, targets
from diffode.errors import ArgumentError
from diffode.flows import reference
from diffode.learned import tune_universal
from diffode.solvers import informed, table_solver
from diffode.statistics import Statistics

SOLVERS = (
    "ddim", "ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "deis:order=3", "dpmpp:order=2", "unipc:order=2",
    "ab:order=2,chart=gaussian_angle", "unipc:order=2,chart=gaussian_angle",
)  # fmt: skip
JUMPS, EXPONENTS = (0.5, 1, 1.5, 2, 3, 5), (2, 3, 5, 7)

#: Columns of tables, in words.
NAMES = {
    "covariance": "universal, given the covariance",
    "scale": "universal, given the scale",
    "tuned": "tuned",
}

Row = dict[str, Any]


def measured(name: str, nfe: int, starts: int, known_columns: Row) -> Row:
    """The row of a target and a number of evaluations, some of whose columns may be known."""
    field = fields.exact_field(name, EDM)
    known = Statistics.of_target(name)
    x = EDM.prior((starts, field.target.dim), generator=TEST_SEED)
    reached = reference(field, x, EDM.t_max, EDM.t_min, 1e-9)

    def error(solver: str, statistics: Statistics, grid: str, rows: int) -> float:
        table = table_solver(informed(solver, statistics)).within(EDM, grid, nfe)
        value = float((table.run(field, x[:rows]) - reached.x[:rows]).norm(dim=1).mean()) / field.scale
        return value if math.isfinite(value) else math.inf

    made: Row = {"target": name, "nfe": nfe, "starts": starts, "floor": float(reached.errors.mean()) / field.scale}
    made |= known_columns
    if "hand" not in made:
        made |= hand_made(field, x, reached.x, nfe)
    if "jump" not in made:
        made["jump"], made["jump_name"] = best_after_jump(error, known, starts)
    for column, statistics in (("covariance", known), ("scale", known.reduced("scale"))):
        if column in made:
            continue
        try:
            made[column] = error("universal:chart=gaussian", statistics, "karras", starts)
        except ArgumentError as refused:
            made[column], made["refused"] = None, str(refused)
    if "tuned" not in made:
        tuned = tune_universal(name, nfe, chart="gaussian")
        run = tuned.content.table().tableau(EDM).run(field, x)
        made["tuned"] = float((run - reached.x).norm(dim=1).mean()) / field.scale
        made["tuned_kind"], made["tuned_seconds"] = tuned.content.statistics.kind, tuned.seconds
    return made


def best_after_jump(
    error: Callable[[str, Statistics, str, int], float], known: Statistics, starts: int
) -> tuple[float | None, str]:
    """The least error of a solver, jump and grid on the test starts, and their names; None if none fits the budget.

    ``error`` gives that of a solver's spec with statistics, on a grid, of so many rows.
    """
    found = []
    for solver, jump, exponent in itertools.product(SOLVERS, JUMPS, EXPONENTS):
        spec = f"{solver}{',' if ':' in solver else ':'}jump={jump}"
        try:
            found.append((error(spec, known, f"karras:rho={exponent}", CHOOSING), spec, f"karras:rho={exponent}"))
        except ArgumentError:
            continue
    found.sort()
    return min(((error(spec, known, grid, starts), f"{spec} @ {grid}") for _, spec, grid in found[:8]), default=(None, ""))


def report(rows: list[Row]) -> None:
    """A line for each row, and geometric means of how many times smaller the errors are."""
    print(f"refused, since the first level is no higher than the data: {[r['target'] for r in rows if not r['covariance']]}\n")
    print("| target | NFE | best hand-made | with jump | karras, rho = 7 | universal | scale alone | tuned |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        shown = (
            f"{r[column]:.3g}" if r[column] else "-" for column in ("hand", "jump", "untuned", "covariance", "scale", "tuned")
        )
        print(f"| {r['target']} | {r['nfe']} | {' | '.join(shown)} |")
    for nfe in sorted({r["nfe"] for r in rows}):
        own = [r for r in rows if r["nfe"] == nfe and not r["target"].startswith("gauss")]
        print(f"NFE {nfe}, mixtures:")
        for column, than in itertools.product(("covariance", "scale", "tuned"), ("hand", "jump", "untuned")):
            values = [r[than] / max(r[column], r["floor"]) for r in own if r[than] and r[column]]
            print(f"  {NAMES[column]}, against {than}: {geometric(values)}")


def kept(file: Path) -> dict[tuple[str, int], Row]:
    """The rows of a file by target and number of evaluations."""
    rows = map(json.loads, file.read_text().splitlines() if file.is_file() else ())
    return {(row["target"], row["nfe"]): row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfe", type=int, nargs="*", default=[2, 3, 4, 6, 8, 10])
    parser.add_argument("--targets", nargs="*", default=targets.names())
    parser.add_argument("--starts", type=int, default=256)
    parser.add_argument("--rows", default="diffode-report/universal.jsonl")
    parser.add_argument("--learned", help="rows of benchmarks/learned.py or of this script for the same starts")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    file = Path(chosen.rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    known = kept(file)
    columns = {
        cell: {name: value for name, value in row.items() if name.startswith(("hand", "untuned", "jump"))}
        for cell, row in (kept(Path(chosen.learned)) if chosen.learned else {}).items()
        if row["starts"] == chosen.starts
    }
    rows = []
    for nfe, name in itertools.product(chosen.nfe, chosen.targets):
        if "tuned" not in known.get((name, nfe), {}):
            known[name, nfe] = measured(name, nfe, chosen.starts, known.get((name, nfe)) or columns.get((name, nfe), {}))
            with file.open("a") as opened:
                opened.write(json.dumps(known[name, nfe]) + "\n")
        rows.append(known[name, nfe])
    report(rows)


if __name__ == "__main__":
    main()
