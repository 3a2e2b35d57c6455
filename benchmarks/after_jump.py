"""What training gains after a jump and in the Gaussian's chart: grids, AMED and conditioned tables, with three seeds.

``python benchmarks/after_jump.py [--columns NAME ...] [--targets NAME ...] [--nfe N ...] [--seeds N ...] [--rows FILE]``. For
each target and number of evaluations, on EDM from 80 to 0.002, mean end-point errors over 256 test starts that no training saw,
in units of the target's scale:

* *hand*: the best of the solvers and grids of ``benchmarks/learned.py``, in hindsight; *jump*: that of the solvers, jumps and
  grids of ``benchmarks/universal.py``, in hindsight too;
* the trained columns below, each with the seeds.

Rows are appended to FILE as they are made; rows that are there already are not made again. Tables that other columns are
conditioned on are kept in a folder beside it. It prints tables in Markdown: the mean over the seeds, the largest of them where
that is more than a tenth above it, and a star where ``--seconds`` ended a training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from learned import EDM, TEST_SEED, hand_made
from universal import best_after_jump

from diffode import fields, solve, targets
from diffode.errors import ArgumentError
from diffode.flows import reference
from diffode.learned import Checkpoint, Trained, condition, load_checkpoint, train_amed, train_grid, train_table
from diffode.solvers import informed, table_solver
from diffode.statistics import Statistics

TARGETS = ("spiral", "ring8", "digits-gmm10", "patches-gmm")
ANGLE = "ab:order=2,chart=gaussian_angle"

Row = dict[str, Any]


class Asked(NamedTuple):
    """A training: the field, the evaluations, the seed, a limit of seconds, and the folder of tables."""

    field: fields.ExactField
    name: str
    nfe: int
    seed: int
    seconds: float
    tables: Path

    def table(self, chart: str) -> Checkpoint:
        """A table for this field, trained unless it is there."""
        file = self.tables / f"{self.name}-{self.nfe}-{chart}-{self.seed}.safetensors"
        if not file.is_file():
            train_table(self.name, self.nfe, chart=chart, seed=self.seed, seconds=self.seconds).save(file)
        return load_checkpoint(file)


def grid(solver: str) -> Callable[[Asked], Trained | Checkpoint]:
    """The training of a grid for a solver."""

    def make(asked: Asked) -> Trained | Checkpoint:
        return train_grid("ld3", asked.field, asked.nfe, solver=solver, seed=asked.seed, seconds=asked.seconds)

    return make


def table(chart: str) -> Callable[[Asked], Trained | Checkpoint]:
    """The training of a table in a chart."""

    def make(asked: Asked) -> Trained | Checkpoint:
        return asked.table(chart)

    return make


def amed(**options: Any) -> Callable[[Asked], Trained | Checkpoint]:
    """The training of AMED's plug-in on iPNDM-2, towards the end of the run."""

    def make(asked: Asked) -> Trained | Checkpoint:
        return train_amed(
            asked.field, (asked.nfe + 1) // 2, host="ipndm", order=2, analytic_first_step=asked.nfe % 2 == 1, per_step=False,
            points=512, batch=128, rounds=200, seed=asked.seed, seconds=asked.seconds, **options,
        )  # fmt: skip

    return make


def conditioned(chart: str) -> Callable[[Asked], Trained | Checkpoint]:
    """The conditioning of a table in a chart."""

    def make(asked: Asked) -> Trained | Checkpoint:
        return condition(asked.table(chart), asked.field, seed=asked.seed, seconds=asked.seconds)

    return make


#: What is trained, by column.
COLUMNS: dict[str, Callable[[Asked], Trained | Checkpoint]] = {
    "grid": grid("ipndm:order=3"),
    "grid, jump": grid("ipndm:order=3,jump=auto"),
    "grid, chart": grid(f"{ANGLE},jump=auto"),
    "grid, chart without jump": grid(ANGLE),
    "amed": amed(),
    "amed, jump": amed(jump="auto"),
    "amed, chart": amed(chart="gaussian"),
    "amed, chart, wide": amed(chart="gaussian", direction_range=0.6, time_range=0.6),
    "table": table("noise"),
    "table, chart": table("gaussian"),
    "conditioned": conditioned("noise"),
    "conditioned, chart": conditioned("gaussian"),
}

#: The columns of each table that is printed, beside those without training.
KINDS = (
    ("grid", "grid, jump", "grid, chart", "grid, chart without jump"),
    ("amed", "amed, jump", "amed, chart", "amed, chart, wide"),
    ("table", "table, chart", "conditioned", "conditioned, chart"),
)


def error_of(found: Trained | Checkpoint, asked: Asked, x: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean end-point error of what was trained."""
    if isinstance(found, Checkpoint):
        end = found.table().tableau(EDM).run(asked.field, x)
    else:
        run = solve(asked.field, x, **found.arguments)
        if run.nfe != asked.nfe:
            raise ValueError(f"{found} costs {run.nfe} evaluations, not {asked.nfe}")
        end = run.x
    return float((end - exact).norm(dim=1).mean()) / asked.field.scale


def without_training(name: str, nfe: int, column: str, x: torch.Tensor, exact: torch.Tensor) -> Row:
    """The best hand-made solver in hindsight, without or with a jump."""
    field = fields.exact_field(name, EDM)
    if column == "hand":
        found = hand_made(field, x, exact, nfe)
        return {"error": found["hand"], "name": found["hand_name"]}
    known = Statistics.of_target(name)

    def error(solver: str, statistics: Statistics, grid: str, rows: int) -> float:
        own = table_solver(informed(solver, statistics)).within(EDM, grid, nfe)
        value = float((own.run(field, x[:rows]) - exact[:rows]).norm(dim=1).mean()) / field.scale
        return value if math.isfinite(value) else math.inf

    best, name_of_best = best_after_jump(error, known, len(x))
    return {"error": best, "name": name_of_best}


def shown(rows: list[Row]) -> str:
    """The mean over the seeds, the largest where it stands out, and a star where the limit of seconds ended a training."""
    known = [row["error"] for row in rows if row["error"] is not None]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    limited = any(row.get("stopped_by") == "seconds" for row in rows)
    return f"{mean:.2g}" + (f" (to {max(known):.2g})" if max(known) > 1.1 * mean else "") + ("*" if limited else "")


def report(rows: dict[tuple[str, int, str, int], Row]) -> None:
    """A table for each kind of training, with a line for each target and number of evaluations."""
    for kind in KINDS:
        columns = [column for column in ("hand", "jump", *kind) if any(key[2] == column for key in rows)]
        print("| target | NFE | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
        cells = {key[:2] for key in rows if key[2] in kind}
        for name, nfe in sorted(cells, key=lambda cell: (targets.names().index(cell[0]), cell[1])):
            found = [[row for key, row in rows.items() if key[:3] == (name, nfe, column)] for column in columns]
            print(f"| {name} | {nfe} | " + " | ".join(map(shown, found)) + " |")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = ["hand", "jump", *COLUMNS]
    parser.add_argument("--columns", nargs="*", default=everything, choices=everything)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--nfe", type=int, nargs="*", default=[2, 4, 6])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=math.inf, help="most seconds a training; its counts alone by default")
    parser.add_argument("--starts", type=int, default=256)
    parser.add_argument("--rows", default="diffode-report/after_jump.jsonl")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    file = Path(chosen.rows)
    tables = file.with_name(f"{file.stem}-tables")
    tables.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, int, str, int], Row] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        one = json.loads(line)
        rows[one["target"], one["nfe"], one["column"], one["seed"]] = one
    for name, nfe, column in itertools.product(chosen.targets, chosen.nfe, chosen.columns):
        field = fields.exact_field(name, EDM)
        x = EDM.prior((chosen.starts, field.target.dim), generator=TEST_SEED)
        exact = None
        for seed in chosen.seeds if column in COLUMNS else (0,):
            if (name, nfe, column, seed) in rows:
                continue
            exact = reference(field, x, EDM.t_max, EDM.t_min, 1e-9).x if exact is None else exact
            began = time.process_time()
            made: Row = {"target": name, "nfe": nfe, "column": column, "seed": seed, "error": None}
            if column in COLUMNS:
                asked = Asked(field, name, nfe, seed, chosen.seconds, tables)
                try:
                    found = COLUMNS[column](asked)
                    made["error"], made["stopped_by"] = error_of(found, asked, x, exact), found.stopped_by
                except ArgumentError as refused:
                    # No grid of one step is trained, for one.
                    made["refused"] = str(refused)
            else:
                made |= without_training(name, nfe, column, x, exact)
            made["seconds"] = time.process_time() - began
            rows[name, nfe, column, seed] = made
            with file.open("a") as opened:
                opened.write(json.dumps(made) + "\n")
            print(json.dumps(made), flush=True)
    report(rows)


if __name__ == "__main__":
    main()
