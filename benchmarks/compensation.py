"""DC-Solver's ratios against UniPC on the same grid, on starts that no training saw: ``python benchmarks/compensation.py``.

Three targets, four numbers of evaluations, three seeds of the training; a few minutes.
"""

from __future__ import annotations

import argparse

import diffode
from diffode import reference
from diffode.learned import train_compensation

TARGETS = ("ring8", "spiral", "digits-gmm10")
BUDGETS = (5, 6, 8, 10)
SEEDS = (0, 1, 2)
#: Number of starts of the comparison, and their seed, which no training has.
STARTS, UNSEEN = 2000, 97


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="log_snr", help="the grid of both")
    parser.add_argument("--points", type=int, default=10, help="trajectories of a training")
    chosen = parser.parse_args()
    print(f"| target, {chosen.grid} | NFE | unipc | dc, three seeds | best of the seeds / unipc | worst |")
    print("|---|---|---|---|---|---|")
    for target in TARGETS:
        field = diffode.exact_field(target, "edm")
        x = field.prior(STARTS, generator=UNSEEN)
        exact = reference(field, x, field.path.t_max, field.path.t_min, 1e-7).x

        def error(field: diffode.Field = field, x=x, exact=exact, **given: object) -> float:
            end = diffode.solve(field, x, **given).x
            return float((end - exact).flatten(1).norm(dim=1).mean()) / field.scale

        for nfe in BUDGETS:
            plain = error(solver="unipc:order=3", grid=chosen.grid, nfe=nfe)
            found = [
                error(**train_compensation(target, nfe, grid=chosen.grid, points=chosen.points, seed=seed).arguments)
                for seed in SEEDS
            ]
            told = ", ".join(f"{value:.3g}" for value in found)
            print(
                f"| `{target}` | {nfe} | {plain:.3g} | {told} | {min(found) / plain:.2f} | {max(found) / plain:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
