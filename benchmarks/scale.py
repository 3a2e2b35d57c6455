"""The growth laws of diffode: ``make scale`` or ``python benchmarks/scale.py [--least] [--figure FILE]``; a few minutes.

How time grows with the points of a run, the modes and dimensions of a target, the steps of a grid, and the cells of a study
(planned, stored and ranked; their results are made up, so that nothing is computed). Everything is the median CPU time of one
thread, prints with what it ran on, and is drawn as ``docs/scale.png``. The exponent is the slope of the last octaves.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

import diffode
from diffode import GaussianMixture, plot
from diffode.metrics import Measurement
from diffode.studies import Result, Store, keyed_cells, parse_suite
from diffode.studies.cell_keys import environment, processor_name
from diffode.studies.ranking import budgets, curves, standings

#: Solvers of the study whose cells are counted.
SOLVERS = ("ddim", "heun", "dpmpp:order=2", "dpmpp:order=3", "ipndm:order=3", "deis:order=3", "unipc:order=2", "unipc:order=3")


def mixture(modes: int, dim: int) -> GaussianMixture:
    """A mixture of isotropic modes."""
    means = 3 * torch.randn(modes, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(torch.full((modes,), 1 / modes, dtype=torch.float64), means, torch.full((modes,), 0.25))


def solved(target: GaussianMixture, points: int, steps: int) -> Callable[[], object]:
    """A run of DPM-Solver++ 2M."""
    field = diffode.exact_field(target, "edm")
    x = field.prior(points, generator=0)
    return lambda: diffode.solve(field, x, solver="dpmpp:order=2", grid="karras", steps=steps)


def studied(cells: int) -> Callable[[], object]:
    """A study of about so many cells: keys, rows into a store and out of it, curves and standings."""
    nfe = [4, 5, 6, 8, 10, 12, 16, 20, 25, 32]
    seeds = list(range(max(1, cells // (2 * 2 * len(SOLVERS) * len(nfe)))))
    lists = {"targets": ["ring8", "gauss1d"], "paths": ["edm", "vp"], "grids": ["karras"], "solvers": list(SOLVERS)}
    content = {"name": "scale", "study": [{**lists, "nfe": nfe, "seeds": seeds}]}

    def study() -> None:
        keyed = keyed_cells(parse_suite(content))
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "s.sqlite") as store:
            store.done(keyed)
            for begin in range(0, len(keyed), 100):
                store.put_all(
                    Result(
                        key, c, "ok", "", c.nfe, c.nfe, 1e-3, 1.0, 1, environment(), (Measurement("endpoint", 1 / c.nfe**2),)
                    )
                    for key, c in keyed[begin : begin + 100]
                )
            found = curves(store.get(keyed))
            for budget in budgets(found):
                standings(found, budget)

    return study


def measured(make: Callable[[int], Callable[[], object]], sizes: Sequence[int]) -> list[float]:
    """Median CPU seconds at each size; a call of less than a tenth of a second is repeated."""
    found = []
    for size in sizes:
        call = make(size)
        times: list[float] = []
        while len(times) < 3 or (sum(times) < 0.3 and len(times) < 30):
            began = time.process_time()
            call()
            times.append(time.process_time() - began)
            if times[-1] > 2:
                break
        found.append(statistics.median(times[1:] or times))
    return found


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log time in log size over the last three sizes."""
    return math.log(seconds[-1] / seconds[-3]) / math.log(sizes[-1] / sizes[-3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--figure", default=str(Path(__file__).parents[1] / "docs" / "scale.png"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    most = 3 if chosen.least else 99
    laws = {
        "points (8 modes, 2-D, 20 steps)": (lambda n: solved(mixture(8, 2), n, 20), (100, 1000, 10_000, 100_000, 1_000_000)),
        "modes (2-D, 10,000 points, 20 steps)": (lambda n: solved(mixture(n, 2), 10_000, 20), (1, 4, 16, 64, 256, 1024)),
        "dimensions (16 modes, 1,000 points, 20 steps)": (
            lambda n: solved(mixture(16, n), 1000, 20),
            (2, 8, 32, 128, 512, 2048),
        ),
        "steps (8 modes, 2-D, 1,000 points)": (lambda n: solved(mixture(8, 2), 1000, n), (10, 30, 100, 300, 1000, 3000)),
        "cells of a study (nothing computed)": (studied, (320, 3200, 32_000, 100_160)),
    }
    where = f"one thread of {processor_name() or platform.machine()}, {platform.system()}"
    print(f"diffode {diffode.__version__}, torch {torch.__version__}, {where}; CPU time\n")
    print("| what grows | sizes | seconds | exponent at the end |\n|---|---|---|---|")
    looks, lines = plot.looks(laws), []
    for name, (make, all_sizes) in laws.items():
        sizes = all_sizes[:most]
        with contextlib.redirect_stderr(io.StringIO()):
            seconds = measured(make, sizes)
        slope = exponent(sizes, seconds)
        lines.append((sizes, seconds, {**looks[name].line, "label": f"{name}: exponent {slope:.2f}"}))
        told = " / ".join(f"{s:.2g}" for s in seconds)
        print(f"| {name} | {' / '.join(f'{n:,}' for n in sizes)} | {told} | {slope:.2f} |", flush=True)
    with plot.style():
        drawn = Figure(figsize=plot.SIZES["page"], layout="constrained")
        axis = drawn.subplots()
        for sizes, seconds, line in lines:
            axis.loglog(sizes, seconds, **line)
        axis.set(xlabel="size", ylabel="CPU seconds, one thread", title="How time grows")
        axis.grid(True)
        axis.legend()
    plot.save(drawn, chosen.figure, dpi=110)


if __name__ == "__main__":
    main()
