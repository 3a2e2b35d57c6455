"""What a jump along the data's Gaussian gains: mean end-point errors with and without it, and in charts of the Gaussian.

Run as ``python benchmarks/jump.py [TARGET ...]``; it prints the table of docs/jump.md.
"""

from __future__ import annotations

import argparse

import torch

import diffode

TARGETS = ("ring8", "gmm40", "spiral", "moons", "digits-gmm10", "patches-gmm")
BUDGETS = (2, 4, 6, 8, 10)
STARTS = 192
#: Solvers, each with and without a jump.
SOLVERS = ("ddim", "dpmpp:order=2", "ipndm:order=3")
#: Grids of which the best in hindsight stands for a solver without a jump; with one the grid is the usual one.
GRIDS = tuple(f"karras:rho={rho}" for rho in (3, 5, 7))


def main(targets: tuple[str, ...]) -> None:
    print("| target, solver | " + " | ".join(f"NFE {n}" for n in BUDGETS) + " |")
    print("|---|" + "---|" * len(BUDGETS))
    for name in targets:
        field = diffode.exact_field(name, "edm")
        x = field.path.prior((STARTS, field.target.dim), generator=1)
        exact = diffode.reference(field, x, field.path.t_max, field.path.t_min).x

        def error(solver: str, nfe: int, grid: str | None = None) -> float:
            run = diffode.solve(field, x, solver=solver, nfe=nfe, grid=grid)  # noqa: B023
            return float((run.x - exact).norm(dim=1).mean())  # noqa: B023

        for solver in SOLVERS:
            cells = []
            for nfe in BUDGETS:
                before = min(error(solver, nfe, grid) for grid in GRIDS)
                after = error(f"{solver}{',' if ':' in solver else ':'}jump=auto", nfe)
                cells.append(f"{before:.2g} → {after:.2g} ({before / after:.1f}\N{NO-BREAK SPACE}x)")
            print(f"| {name}, `{solver}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=TARGETS)
    main(tuple(parser.parse_args().targets))
