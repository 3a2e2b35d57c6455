"""Trained grids against published ones for one solver.

``python benchmarks/grids.py [--solver SPEC] [--nfe N ...] [--targets NAME ...]``. For each target and number of evaluations, on
EDM from 80 to 0.002, the mean end-point error of the solver over 256 test starts in units of the target's scale: on the
published grids (karras, log-SNR, and the AYS tables stretched over the range), on the best polynomial grid in hindsight, and on
those laid by DMN, GITS, LD3 and direct search, trained on other starts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch

from diffode import fields, grids, paths, solvers
from diffode.flows import reference
from diffode.learned.grids import levels

EDM = paths.get("edm")
POLYNOMIALS = [f"karras:rho={rho}" for rho in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 9, 12, 16, 24)]
TARGETS = ("bimodal1d", "ring8", "spiral", "line16", "gauss64-powerlaw", "digits-gmm10")


def makers(field: fields.ExactField, nfe: int, solver: str) -> dict[str, Callable[[], grids.Times]]:
    """The grids by name, made when called."""
    published = {name: lambda name=name: grids.get(name, EDM, nfe) for name in ("karras", "log_snr")}
    ays = {name: lambda name=name: grids.get(name, EDM, nfe, fit=True) for name in ("ays_sd15", "ays_sdxl", "ays_svd")}
    return {
        **published,
        **ays,
        "dmn": lambda: levels.dmn(EDM, nfe, solver=solver),
        "gits": lambda: levels.gits(field, nfe),
        "ld3": lambda: levels.ld3(field, nfe, solver=solver, seconds=20),
        "search": lambda: levels.search(field, nfe, solver=solver),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", default="dpmpp:order=2")
    parser.add_argument("--nfe", type=int, nargs="*", default=[6, 10])
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    chosen = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; solver {chosen.solver}\n")
    heading = ["target", "NFE", "best polynomial", *makers(None, 1, chosen.solver)]  # type: ignore[arg-type]
    print("| " + " | ".join(heading) + " |\n" + "|---" * len(heading) + "|")
    recipe = solvers.get(chosen.solver)
    began = time.perf_counter()
    for name, nfe in itertools.product(chosen.targets, chosen.nfe):
        field = fields.exact_field(name, EDM)
        x = EDM.prior((256, field.target.dim), generator=424_242)

        def error(times: grids.Times, field: fields.ExactField = field, x: torch.Tensor = x) -> float:
            first = float(times[0])
            # A table that begins elsewhere than the path does is not run from where the path begins.
            exact = reference(field, x, first, float(times[-1]), 1e-8).x
            return float((recipe.tableau(EDM, times).run(field, x) - exact).norm(dim=1).mean()) / field.scale

        best = min(error(grids.get(grid, EDM, nfe)) for grid in POLYNOMIALS)
        row = [best, *(error(make()) for make in makers(field, nfe, chosen.solver).values())]
        print(f"| {name} | {nfe} | " + " | ".join(f"{value:.2e}" for value in row) + " |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
