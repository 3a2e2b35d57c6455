"""What learning gains: trained tables and the universal ones against every hand-made solver, on starts not trained on.

``make learned`` or ``python benchmarks/learned.py [--seconds S] [--nfe N ...] [--targets NAME ...] [--rows FILE]``. For each
target and number of evaluations, on EDM from 80 to 0.002:

* *hand-made*: the best of all solvers and grids below in hindsight, that is, chosen on the very test starts (rho tuned; eight
  finalists on 64 of them, the best on all), and the best of them on the grid they are published with (karras, rho = 7);
* *bespoke*: a table trained for this target and number on other starts (``diffode.learned.train_table``);
* *chart* (with ``--chart yes``; ``only`` makes this column and *hand-made* alone): a table in the chart of the data's Gaussian
  (``train_table(..., chart="gaussian")``), grown from the largest smaller one that is there;
* *conditioned* (with ``--conditioned``): that table made to depend on the sample (``diffode.learned.condition``);
* *universal*: the table that ships, which has seen none of these targets; *tuned*: the member of its codebook, which has not
  either, that is best on 256 other starts (``diffode.learned.tune_universal``), as rho is tuned for hand-made solvers.

``--bespoke no`` leaves the training out and measures the hand-made solvers and the universal tables alone.

The work of a training is counted, so that rows do not depend on the machine; ``--seconds`` limits it, and rows then say so.

Errors are mean end-point errors over 256 test starts (``--starts``) in units of the target's scale. Rows are appended to FILE
as they are made, and trained tables kept in a folder beside it; columns and tables that are there already are not made again,
and of two rows for the same cell the later one counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffode import engines, fields, paths, solvers, targets
from diffode.errors import ArgumentError
from diffode.flows import reference
from diffode.learned import train_table, tune_universal
from diffode.learned.conditional.conditioning import condition
from diffode.solvers.trained.checkpoints import Checkpoint, load_checkpoint
from diffode.tableau.stages import Stages, noise_function

SOLVERS = (
    "ddim", "ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "ipndm_v:order=3", "ipndm_v:order=4", "ipndm_v:form=consistent",
    "lms:order=2", "lms:order=3", "deis:order=2", "deis:order=3", "deis:order=4", "dpm_m:order=2", "dpm_m:order=3",
    "dpmpp:order=2", "dpmpp:order=2,lower_order_final=always", "dpmpp:order=3", "dpmpp:order=3,lower_order_final=always",
    "dpmpp:order=3,form=consistent", "unipc:order=1", "unipc:order=2", "unipc:order=3", "ab:order=2,chart=data",
    "ab:order=3,chart=noise_log_snr", "edm_heun", "midpoint:chart=noise", "dpm:order=2", "dpm:order=3", "dpmpp_s:order=2",
    "dpmpp_s:order=3",
)  # fmt: skip
GRIDS = (
    *(f"karras:rho={rho}" for rho in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 9, 12, 16, 24)), "log_snr", "kl_optimal", "shift:s=1",
    "shift:s=3", "time_quadratic", *(f"polyexponential:rho={rho}" for rho in (0.5, 0.7, 0.85, 1.2, 1.5)),
)  # fmt: skip
CHOOSING, TEST_SEED = 64, 424_242
EDM = paths.get("edm")

Row = dict[str, Any]


def hand_made(field: fields.ExactField, x: torch.Tensor, exact: torch.Tensor, nfe: int) -> Row:
    """The best solver and grid on the test starts, and the best on the usual grid."""

    def error(stages: Stages, rows: int) -> float:
        end = stages.run(noise_function(field), x[:rows])
        value = float((end - exact[:rows]).norm(dim=1).mean()) / field.scale
        return value if math.isfinite(value) else math.inf

    found = []
    for solver, grid in itertools.product(SOLVERS, GRIDS):
        try:
            stages = Stages.of(solvers.get(solver).within(EDM, grid, nfe))
        except ArgumentError:
            continue
        found.append((error(stages, CHOOSING), f"{solver} @ {grid}", stages))
    found.sort(key=lambda item: item[0])
    best = min((error(stages, len(x)), name) for _, name, stages in found[:8])
    usual = [item for item in found if item[1].endswith("@ karras:rho=7")]
    untuned = min((error(stages, len(x)), name) for _, name, stages in usual[:4])
    return {"hand": best[0], "hand_name": best[1], "untuned": untuned[0], "untuned_name": untuned[1]}


def charted(tables: Path, name: str, nfe: int, seconds: float, points: int | None) -> Checkpoint:
    """The table in the Gaussian's chart, trained unless it is there."""
    table = tables / f"{name}-{nfe}-chart.safetensors"
    if not table.is_file():
        smaller = [file for n in range(1, nfe) if (file := tables / f"{name}-{n}-chart.safetensors").is_file()]
        less = load_checkpoint(smaller[-1]) if smaller else None
        train_table(name, nfe, chart="gaussian", smaller=less, points=points, seconds=seconds).save(table)
    return load_checkpoint(table)


def filled(
    known: Row,
    tables: Path,
    name: str,
    nfe: int,
    starts: int,
    seconds: float,
    points: int | None,
    bespoke: bool,
    conditioned: bool,
    chart: str,
) -> Row:
    """A row with the columns that it lacks."""
    wanted = (
        {"hand", "chart"}
        if chart == "only"
        else {"hand", "tuned"}
        | ({"chart"} if chart == "yes" else set())
        | ({"bespoke"} if bespoke else set())
        | ({"conditioned"} if bespoke and conditioned else set())
    )
    if wanted <= known.keys():
        return known
    field = fields.exact_field(name, EDM)
    x = EDM.prior((starts, field.target.dim), generator=TEST_SEED)
    reached = reference(field, x, EDM.t_max, EDM.t_min, 1e-9)
    exact = reached.x

    def error(end: torch.Tensor) -> float:
        return float((end - exact).norm(dim=1).mean()) / field.scale

    made: Row = {"target": name, "nfe": nfe, "starts": starts, "components": getattr(field.target, "count", None), **known}
    if "hand" not in made:
        made |= hand_made(field, x, exact, nfe)
    if "chart" in wanted - made.keys():
        own = charted(tables, name, nfe, seconds, points)
        made["chart"] = error(own.table().tableau(EDM).run(field, x))
        made["chart_seconds"], made["chart_start"], made["chart_stopped_by"] = own.seconds, own.begun_from, own.stopped_by
    table = tables / f"{name}-{nfe}.safetensors"
    conditioning = bespoke and conditioned and "conditioned" not in made
    if bespoke and ("bespoke" not in made or (conditioning and not table.is_file())):
        if not table.is_file():
            train_table(name, nfe, points=points, seconds=seconds).save(table)
        checkpoint = load_checkpoint(table)
        made["seconds"], made["start"] = checkpoint.seconds, checkpoint.begun_from
        made["stopped_by"] = checkpoint.stopped_by
        made["bespoke"] = error(checkpoint.stages.scaled(field.scale).run(noise_function(field), x))
        made.pop("conditioned", None)
        conditioning = conditioned
    if conditioning:
        found = condition(load_checkpoint(table), field, seconds=seconds)
        with torch.no_grad():
            made["conditioned"] = error(found.solver.table.run(noise_function(field), x)[0])
        made["conditioned_seconds"], made["conditioned_stopped_by"] = found.seconds, found.stopped_by
    made["floor"] = float(reached.errors.mean()) / field.scale
    if "tuned" in wanted - made.keys():
        made |= universal(field, nfe, x, error)
    return made


def cell(asked: list[Any]) -> Row | None:
    """:func:`filled` for a cell as plain data; None where nothing is missing."""
    known, tables, name, nfe, starts, seconds, points, bespoke, conditioned, chart = asked
    made = filled(known, Path(tables), name, nfe, starts, float(seconds), points, bespoke, conditioned, chart)
    return None if made is known else made


def universal(field: fields.ExactField, nfe: int, x: torch.Tensor, error: Callable[[torch.Tensor], float]) -> Row:
    """The one table for all data, and the member of its codebook that suits the field."""
    made: Row = {"universal": None, "tuned": None}
    try:
        table = solvers.get("universal").for_field(field.scale, field.target.dim).within(EDM, "karras", nfe)
        made["universal"] = error(table.run(field, x))
    except ArgumentError as refused:
        made["refused"] = str(refused)
    try:
        tuned = tune_universal(field, nfe)
        made["tuned"] = error(tuned.solver.within(EDM, "karras", nfe).run(field, x))
        made["tuned_name"], made["tuned_seconds"] = tuned.solver.spec, tuned.seconds
    except ArgumentError as refused:
        made["refused"] = str(refused)
    return made


def geometric(values: list[float]) -> str:
    return (
        f"{math.exp(sum(map(math.log, values)) / len(values)):.2f} (least {min(values):.2f}, {len(values)} cells)"
        if values
        else "-"
    )


def times(r: Row, what: str, than: str = "hand") -> float:
    """How many times smaller than the best hand-made solver's an error is, at least as far as the reference tells."""
    return r[than] / max(r[what], r["floor"])


def gained(r: Row) -> float | None:
    """How many times smaller than its table's a conditioned table's error is, unless the table is exact already."""
    if not r.get("conditioned") or r["bespoke"] <= 10 * r["floor"]:
        return None
    return float(r["bespoke"] / max(r["conditioned"], r["floor"]))


def factor(r: Row | None, what: str) -> str:
    """How many times smaller than hand-made a column's error is (a conditioned table's than that without), as text."""
    if r is None or not r.get(what):
        return ""
    value = gained(r) if what == "conditioned" else times(r, what)
    return "" if value is None else f"{value:.3g}"


def by_target(rows: list[Row]) -> None:
    """A line for each target: factors by number of evaluations."""
    cells = {(r["target"], r["nfe"]): r for r in rows}
    nfes = sorted({nfe for _, nfe in cells})
    columns = [c for c in ("bespoke", "chart", "conditioned", "tuned") if any(r.get(c) for r in rows)]
    heads = "".join(f" {what} {nfe} |" for what in columns for nfe in nfes)
    print(f"| target |{heads}\n" + "|---" * (1 + len(columns) * len(nfes)) + "|")
    for name in dict.fromkeys(r["target"] for r in rows):
        print(f"| {name} |" + "".join(f" {factor(cells.get((name, nfe)), what)} |" for what in columns for nfe in nfes))
    print()


def by_cell(rows: list[Row]) -> None:
    """A line for each target and number of evaluations: errors, and by how much they are smaller."""
    columns = [c for c in ("bespoke", "chart", "conditioned", "universal", "tuned") if any(r.get(c) for r in rows)]
    heads = "".join(f" {c} | x smaller{' than bespoke' if c == 'conditioned' else ''} |" for c in columns)
    print(f"| target | NFE | best hand-made (in hindsight) | error |{heads} training, s |")
    print("|---" * (5 + 2 * len(columns)) + "|")
    for r in rows:
        shown = "".join(f" {r[c]:.2e} | {factor(r, c)} |" if r.get(c) else " - | |" for c in columns)
        print(f"| {r['target']} | {r['nfe']} | `{r['hand_name']}` | {r['hand']:.2e} |{shown} {r.get('seconds', 0):.0f} |")
    print()


def report(rows: list[Row]) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}\n")
    by_cell(rows)
    by_target(rows)
    columns = [c for c in ("bespoke", "chart", "universal", "tuned") if any(r.get(c) for r in rows)]
    for nfe in (*sorted({r["nfe"] for r in rows}), None):
        own = [r for r in rows if nfe in (None, r["nfe"])]
        label = f"NFE {nfe}" if nfe else "all"
        for what in columns:
            known = [r for r in own if r.get(what)]
            mixtures = [times(r, what) for r in known if r["components"] != 1]
            everything, usual = [times(r, what) for r in known], [times(r, what, "untuned") for r in known]
            print(f"{label}: {what}, mixtures {geometric(mixtures)}; with Gaussians {geometric(everything)}; "
                  f"against the best on karras, rho = 7 {geometric(usual)}")  # fmt: skip
        both = [value for r in own if (value := gained(r)) is not None]
        if both:
            print(f"{label}: conditioned against bespoke {geometric(both)}, above 1.3 in {sum(v >= 1.3 for v in both)}")
    refused = sorted({r["target"] for r in rows if "tuned" in r and not (r["universal"] and r["tuned"])})
    print(f"in no mean of universal tables, which do not know their levels: {', '.join(refused) or 'none'}")
    print("\nHeld out: of bespoke tables the test starts; of universal ones every target, and for tuning the test starts.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="most seconds a table; by default its counted steps alone end a training",
    )
    parser.add_argument("--nfe", type=int, nargs="*", default=[4, 6, 8, 10])
    parser.add_argument("--targets", nargs="*", default=targets.names())
    parser.add_argument("--starts", type=int, default=256, help="test starts")
    parser.add_argument("--points", type=int, help="starts to train on; by default as many as suit the field")
    parser.add_argument("--bespoke", choices=("yes", "no"), default="yes", help="train a table for each target")
    parser.add_argument("--conditioned", action="store_true", help="condition each table on the sample as well")
    parser.add_argument("--chart", choices=("yes", "no", "only"), default="no", help="train tables in the Gaussian's chart")
    parser.add_argument("--engine", help="what computes: local (default), dask, dask://HOST:PORT; others need a shared disk")
    parser.add_argument("--jobs", type=int, default=None, help="worker processes of engines that begin their own")
    parser.add_argument("--rows", default="diffode-report/learned.jsonl")
    parser.add_argument("--tables", help="folder of the trained tables; by default one beside the rows")
    chosen = parser.parse_args()
    file = Path(chosen.rows)
    tables = Path(chosen.tables) if chosen.tables else file.with_name(f"{file.stem}-tables")
    tables.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, int], Row] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        one = json.loads(line)
        if one["starts"] != chosen.starts:
            parser.error(f"{file} holds rows of {one['starts']} test starts: give another file as --rows")
        rows[one["target"], one["nfe"]] = one
    cells = list(itertools.product(chosen.nfe, chosen.targets))
    how = [
        chosen.starts,
        str(chosen.seconds),
        chosen.points,
        chosen.bespoke == "yes" and chosen.chart != "only",
        chosen.conditioned,
        chosen.chart,
    ]
    asked = [[rows.get((name, nfe), {}), str(tables.resolve()), name, nfe, *how] for nfe, name in cells]
    for number, made in engines.each(cell, asked, engine=chosen.engine, jobs=chosen.jobs):
        nfe, name = cells[number]
        if made is None:
            continue
        rows[name, nfe] = made
        with file.open("a") as opened:
            opened.write(json.dumps(made) + "\n")
        print(
            f"{name} {nfe}:",
            *(f"{c} {made[c]:.2e}" for c in ("hand", "bespoke", "chart", "universal", "tuned") if made.get(c)),
            flush=True,
        )
    report([rows[name, nfe] for nfe, name in itertools.product(chosen.nfe, chosen.targets)])


if __name__ == "__main__":
    main()
