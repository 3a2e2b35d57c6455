"""DC-Solver's ratios against UniPC on the same grid, on starts that no training saw: ``python benchmarks/compensation.py``.

Three targets, four numbers of evaluations, three seeds of the training; a few minutes. With ``--regression``, ratios for
numbers of evaluations and weights of guidance that were not trained for, beside those that are trained for them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import diffode
from diffode import reference
from diffode.fields.problem_text import field_of_text
from diffode.learned import train_compensation
from diffode.solvers import RegressedDC

TARGETS = ("ring8", "spiral", "digits-gmm10")
BUDGETS = (5, 6, 8, 10)
SEEDS = (0, 1, 2)
#: Number of starts of the comparison, and their seed, which no training has.
STARTS, UNSEEN = 2000, 97
#: Numbers of evaluations that are trained for, and those that are asked for.
TRAINED, ASKED = (5, 6, 8, 10, 12), (7, 9, 11)
#: Guided fields, weights that are trained for, and those that are asked for.
GUIDED = ("ring8 guided label=three,weight=1", "gmm40 guided label=northeast,weight=1", "digits-gmm10 guided label=3,weight=1")
WEIGHTS, ASKED_WEIGHTS = (1.0, 2.0, 4.0, 7.5), (1.0, 3.0, 6.0)


def error_on(field: diffode.Field) -> Callable[..., float]:
    """Mean end-point errors of runs on unseen starts, in units of the data's scale."""
    path = field.require_path("a comparison")
    x = field.first_noise((STARTS, field.dim), generator=UNSEEN)
    exact = reference(field, x, path.t_max, path.t_min, 1e-7).x

    def error(nfe: int, **given: Any) -> float:
        end = diffode.solve(field, x, nfe=nfe * field.calls, **given).x
        return float((end - exact).flatten(1).norm(dim=1).mean()) / field.scale

    return error


def ratios(grid: str, points: int) -> None:
    """Ratios for the number of evaluations that they were trained for."""
    print(f"| target, {grid} | NFE | unipc | dc, three seeds | best of the seeds / unipc | worst |")
    print("|---|---|---|---|---|---|")
    for target in TARGETS:
        error = error_on(diffode.exact_field(target, "edm"))
        for nfe in BUDGETS:
            plain = error(nfe, solver="unipc:order=3", grid=grid)
            trained = [train_compensation(target, nfe, grid=grid, points=points, seed=seed) for seed in SEEDS]
            found = [error(nfe, solver=one.solver, grid=grid) for one in trained]
            told = ", ".join(f"{value:.3g}" for value in found)
            print(
                f"| `{target}` | {nfe} | {plain:.3g} | {told} | {min(found) / plain:.2f} | {max(found) / plain:.2f} |",
                flush=True,
            )


def regression(grid: str, points: int) -> None:
    """Ratios by the polynomial: over the number of evaluations, and over it and the weight of guidance."""
    train = functools.partial(train_compensation, grid=grid, points=points)
    print(f"| target, {grid} | weight | NFE | unipc | dc, trained for it | regressed, all alike | dc_regressed | / unipc |")
    print("|---|---|---|---|---|---|---|---|")
    for target in (*TARGETS, *GUIDED):
        guided = target in GUIDED
        weights = {"weights": WEIGHTS} if guided else {}
        polynomial = train(target, TRAINED, **weights).content
        for weight in ASKED_WEIGHTS if guided else (None,):
            text = target if weight is None else target.replace("weight=1", f"weight={weight:g}")
            error = error_on(field_of_text(text, "edm"))
            for nfe in ASKED:
                plain = error(nfe, solver="unipc:order=3", grid=grid)
                own = error(nfe, solver=train(text, nfe).solver, grid=grid)
                alike = dataclasses.replace(polynomial, strengths={})
                two = [error(nfe, solver=RegressedDC(ratios=one, weight=weight)) for one in (alike, polynomial)]
                shown = "" if weight is None else f"{weight:g}"
                row = (f"`{target.removesuffix(',weight=1')}`", shown, str(nfe), f"{plain:.3g}", f"{own:.3g}")
                print(f"| {' | '.join(row)} | {two[0]:.3g} | {two[1]:.3g} | {two[1] / plain:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="log_snr", help="the grid of all")
    parser.add_argument("--points", type=int, default=10, help="trajectories of a training")
    parser.add_argument("--regression", action="store_true", help="what was not trained for")
    chosen = parser.parse_args()
    (regression if chosen.regression else ratios)(chosen.grid, chosen.points)


if __name__ == "__main__":
    main()
