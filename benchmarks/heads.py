"""Few-step generators: jump tables, heads and maps on nodes, for NFE 1, 2 and 4.

``python benchmarks/heads.py [--targets NAME ...] [--methods jump head] [--nfe N ...] [--seeds S ...] [--save FOLDER]``. Each
cell is trained by counts, on one thread, and run on the 256 starts of `learned.py` (seed 424242) and on 4,096 others (seed 77):
mean end-point errors in units of the scale, with two standard errors. Rows are added to ``--rows`` as they are made, and
what is there is not made again; ``--save`` also writes each file. All takes about half an hour of one core: seconds of CPU
stand in the rows, a digits cell with heads takes about 80, others at most 50.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

from diffode import fields, paths, solve
from diffode.flows import reference
from diffode.learned import train

EDM = paths.get("edm")
TARGETS = ("bimodal1d", "ring8", "digits-gmm10")
#: Starts of a test: number and seed.
TESTS = ((256, 424_242), (4096, 77))
NODES = ("nodes:count=33", "nodes:count=129", "nodes:count=257")


def measured(name: str, method: str, nfe: int, seed: int, save: Path | None) -> dict[str, Any]:
    """A row: errors with two standard errors on both sets of starts, and what the training said."""
    field = fields.exact_field(name, EDM)
    began = time.process_time()
    trained = train(method, field, nfe, seed=seed)
    seconds = time.process_time() - began
    row: dict[str, Any] = {
        "target": name, "method": method, "nfe": nfe, "seed": seed, "seconds": round(seconds, 1),
        "before": trained.errors.before, "held_out": trained.errors.after,
        "training": getattr(trained.content, "training_error", None), "products": trained.solver.multiply_adds,
    }  # fmt: skip
    for count, test_seed in TESTS:
        x = EDM.prior((count, field.target.dim), generator=test_seed)
        exact = reference(field, x, EDM.t_max, EDM.t_min, 1e-9 if field.target.dim < 4 else 1e-6).x
        error = (solve(field, x, **trained.arguments).x - exact).norm(dim=1) / field.scale
        row[f"error_{count}"], row[f"two_sigma_{count}"] = float(error.mean()), 2 * float(error.std()) / count**0.5
    if save is not None:
        trained.save(save / f"{name}-{method.partition(':')[0]}-{nfe}-{seed}.safetensors")
    return row


def report(rows: list[dict[str, Any]]) -> None:
    print(
        "| target | method | NFE | seed | 256 starts | 4,096 starts | training | CPU s | multiply-adds |\n" + "|---" * 9 + "|"
    )
    for r in sorted(rows, key=lambda r: (TARGETS.index(r["target"]), r["method"], r["nfe"], r["seed"])):
        errors = " | ".join(f"{r[f'error_{n}']:.2g} ± {r[f'two_sigma_{n}']:.1g}" for n, _ in TESTS)
        training = "" if r["training"] is None else f"{r['training']:.2g}"
        print(f"| {r['target']} | {r['method']} | {r['nfe']} | {r['seed']} | {errors} | {training} | {r['seconds']:.0f} | "
              f"{r['products']} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=TARGETS, choices=TARGETS)
    parser.add_argument("--methods", nargs="*", default=["jump", "head", "nodes"], choices=["jump", "head", "nodes"])
    parser.add_argument("--nfe", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rows", default="diffode-report/heads.jsonl")
    parser.add_argument("--save", type=Path, default=None, help="folder for the files")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    file = Path(chosen.rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    known = {(r["target"], r["method"], r["nfe"], r["seed"]) for r in rows}
    cells = [
        (target, method, nfe, seed)
        for target, seed, nfe, method in itertools.product(chosen.targets, chosen.seeds, chosen.nfe, chosen.methods)
        if method != "nodes"
    ]
    if "nodes" in chosen.methods:
        cells += [(t, m, 1, 0) for t in chosen.targets if t != "digits-gmm10" for m in NODES]
    for cell in cells:
        if cell in known:
            continue
        row = measured(*cell, chosen.save)
        rows.append(row)
        with file.open("a") as opened:
            opened.write(json.dumps(row) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
