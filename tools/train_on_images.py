"""Train solvers for the network for Fashion-MNIST, and try them on it: ``python tools/train_on_images.py [--nfe N ...]``.

An hour of one core. Beside docs/images.md, images_learned.json has the mean distances to the network's own flow, in
units of the scale, on the starts of the suite ``images``; every training takes other starts. For each number of evaluations:

* *tuned*: the member of the codebook that suits the network best, chosen on 24 starts (``tune_universal``), and the universal
  table in the Gaussian's chart, refined on as many;
* *AMED*: predictors on iPNDM, two evaluations a step, trained on trajectories of the network (``train_amed``);
* *table of the mixture*: a table in the Gaussian's chart, trained on ``fashion-mfa`` (``train_table``), which then runs on
  the network;
* *table of the network*: the same, trained on the network.

Rows that are there already are not made again. ``python tools/make_images.py`` writes the page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diffode.errors import BudgetError
from diffode.fields import trained
from diffode.learned import Trained, train_amed, train_table, tune_universal
from diffode.studies import Store, parse_suite, run_suite

NETWORK, MIXTURE = "trained:fashion-unet", "fashion-mfa"
ROWS = Path(__file__).parent.parent / "docs" / "images_learned.json"
#: Most seconds of a training of a table, and of AMED's predictors; the choice of a member ends by itself.
TABLE, AMED = 240.0, 180.0


def tuned(nfe: int) -> Trained:
    return tune_universal(trained("fashion-unet"), nfe, points=24)


def tuned_in_chart(nfe: int) -> Trained:
    return tune_universal(trained("fashion-unet"), nfe, chart="gaussian", points=24, seconds=TABLE)


def on_ipndm(nfe: int) -> Trained:
    return train_amed(trained("fashion-unet"), nfe // 2, host="ipndm", order=3, analytic_first_step=False, teacher=4,
                      points=128, batch=64, seconds=AMED)  # fmt: skip


def of_the_mixture(nfe: int) -> Trained:
    return train_table(MIXTURE, nfe, chart="gaussian", seconds=TABLE)


def of_the_network(nfe: int) -> Trained:
    return train_table(trained("fashion-unet"), nfe, chart="gaussian", points=48, seconds=TABLE)


#: What is trained, by what the page calls it: its function, and the solver that reads its file; none where a spec says it all.
TRAININGS: dict[str, tuple[Callable[[int], Trained], str]] = {
    "`universal`, tuned": (tuned, ""),
    "`universal:chart=gaussian`, tuned": (tuned_in_chart, "bespoke"),
    "AMED on `ipndm:order=3`": (on_ipndm, "amed_learned"),
    "table trained on the mixture": (of_the_mixture, "bespoke"),
    "table trained on the network": (of_the_network, "bespoke"),
}


def error_of(spec: str, target: str, nfe: int) -> float:
    """The mean distance of the suite's 48 ends to the target's own flow, in units of the scale."""
    study = {"targets": [target], "solvers": [spec], "nfe": [nfe]}
    defaults = {"paths": ["edm"], "grids": ["karras"], "seeds": [0], "points": 48, "dtype": "float64", "metrics": ["endpoint"],
                "tolerance": 1e-4}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        summary = run_suite(parse_suite({"name": "learned", "defaults": defaults, "study": [study]}), Path(folder) / "r.sqlite")
        with Store(Path(folder) / "r.sqlite") as store:
            (result,) = store.get(summary.cells)
    value = result.value("endpoint")
    if value is None or result.nfe_counted != nfe:
        raise SystemExit(f"{spec} on {target} with {nfe}: {result.status}, {result.reason}, {result.nfe_counted} evaluations")
    return value / float(result.scale or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfe", nargs="*", type=int, default=[4, 8])
    parser.add_argument("--rows", type=Path, default=ROWS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(chosen.rows.read_text(encoding="utf-8")) if chosen.rows.is_file() else []
    for nfe in chosen.nfe:
        for name, (make, reader) in TRAININGS.items():
            if any((row["name"], row["nfe"]) == (name, nfe) for row in rows):
                continue
            began = time.process_time()
            try:
                made = make(nfe)
            except BudgetError as refused:
                print(f"{name}: {refused}", flush=True)
                continue
            seconds = time.process_time() - began
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "solver.safetensors"
                if reader:
                    made.save(file)
                spec = f"{reader}:file={file}" if reader else made.solver.spec
                errors = {target: error_of(spec, target, nfe) for target in (NETWORK, MIXTURE)}
            rows.append({
                "name": name, "nfe": nfe, "network": errors[NETWORK], "mixture": errors[MIXTURE],
                "before": made.errors.before, "after": made.errors.after, "seconds": round(seconds), "ended": made.stopped_by,
            })  # fmt: skip
            chosen.rows.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
