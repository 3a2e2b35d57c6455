"""Train the universal tables that ship with diffode: ``python tools/train_universal.py [NFE ...] [--output FILE]``.

One table for each number of evaluations, its numbers polynomials in the levels of start and end and in the dimension, trained
by Gauss-Newton on the mean logarithm of the error over random mixtures (``diffode.learned.universal.family``). No target of
the registry is used. Seeds are fixed and one thread computes, so that the same machine writes the same file: about four
minutes a table.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffode import fields, paths, solvers
from diffode.errors import BudgetError
from diffode.learned.fitting.gauss_newton import Problem, fit
from diffode.learned.fitting.parameters import Parameters
from diffode.learned.universal.family import random_mixture
from diffode.solvers.trained.checkpoints import load_ranged, save_ranged
from diffode.solvers.trained.ranged import Ranged
from diffode.tableau.stages import Stages, noise_function

FIRST, LAST = (2.0, 800.0), (3e-6, 0.04)
TRAINING, HELD_OUT, POINTS = 1000, 120, 24
#: Starting tables to choose from: solver and grid.
STARTS = [
    (solver, grid)
    for solver in ("ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "deis:order=3", "deis:order=4", "lms:order=3",
                   "ab:order=3,chart=noise_log_snr", "dpmpp:order=2", "unipc:order=2")
    for grid in ("shift:s=1", "polyexponential:rho=0.7", "karras:rho=5", "karras:rho=7", "kl_optimal", "log_snr")
]  # fmt: skip
#: Errors below this count little, so that easy mixtures do not rule.
FLOOR = 2e-4
MOST = 64
STEPS = 24


class RangedParameters(Parameters):
    """The coefficients of a :class:`Ranged`, as a vector."""

    def __init__(self, origin: Ranged):
        self.origin = origin

    @property
    def start(self) -> Tensor:
        return self.origin.coefficients.reshape(-1)

    def ranged(self, values: Tensor) -> Ranged:
        origin = self.origin
        return replace(origin, coefficients=values.reshape(origin.coefficients.shape))

    def stages(self, values: Tensor, first: float, last: float, dim: int) -> Stages:
        return self.ranged(values).stages(first, last, dim)

    def jacobian(self, values: Tensor, first: float, last: float, dim: int) -> Tensor:
        return self.ranged(values).jacobian(first, last, dim)


def problem(seed: int) -> Problem:
    """A mixture of the family with levels of start and end of its own, its starts and their exact ends."""
    rng = np.random.default_rng([5, seed])
    target = random_mixture(seed)
    first, last = (math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in (FIRST, LAST))
    if rng.random() < 0.25:
        # The published settings: EDM and linear VP on data of scale 1/2 and 1.
        first, last = ((160.0, 0.004), (80.0, 0.002), (152.0, 0.0105))[rng.integers(3)]
    path = paths.EDM(t_min=last, t_max=first)
    field = fields.exact_field(target, path)
    start = path.prior((POINTS, target.dim), generator=seed)
    # 600 evaluations of a fourth-order method: errors near 1e-6, far below those of what is trained.
    exact = solvers.get("rk4:chart=data").tableau(path, "log_snr", 150).run(field, start)
    return Problem(noise_function(field), start, exact, 1.0, first, last)


def train(nfe: int, problems: list[Problem], held_out: list[Problem]) -> Ranged:
    """The table for so many evaluations, from the published sampler that is best on the first mixtures."""
    middle = paths.EDM(t_min=0.003, t_max=100.0)
    candidates = []
    for solver, grid in STARTS:
        try:
            stages = Stages.of(solvers.get(solver).within(middle, grid, nfe))
        except BudgetError:
            continue
        if stages.nfe == nfe:
            parameters = RangedParameters(Ranged.constant(stages, FIRST, LAST, MOST))
            some = problems[:60]
            errors = [p.error(parameters.stages(parameters.start, p.first, p.last, p.dim)) for p in some]
            loss = sum(math.log(error + FLOOR) for error in errors) / len(some)
            candidates.append((loss, f"{solver} @ {grid}", parameters))
    loss, name, parameters = min(candidates, key=lambda candidate: candidate[0])
    print(f"nfe {nfe}: from {name}, mean log error {loss:.3f}", flush=True)

    def progress(step: int, training: float, held: float) -> None:
        print(f"  {step} {training:.4f} {held:.4f}", flush=True)

    found = fit(
        parameters, problems, held_out, loss="log", floor=FLOOR, steps=STEPS, patience=8, directions=3, seed=nfe,
        progress=progress,
    )  # fmt: skip
    print(f"  held out {found.held_out[0]:.3f} -> {min(found.held_out):.3f} in {found.seconds:.0f} s", flush=True)
    return parameters.ranged(found.values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nfe", nargs="*", type=int, default=list(range(3, 13)))
    place = Path(__file__).parent.parent / "diffode" / "solvers" / "trained"
    parser.add_argument("--output", default=str(place / "universal.safetensors"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.time()
    problems = [problem(seed) for seed in range(TRAINING)]
    held_out = [problem(seed) for seed in range(10_000, 10_000 + HELD_OUT)]
    print(f"{TRAINING + HELD_OUT} mixtures in {time.time() - began:.0f} s", flush=True)
    facts = {"script": "tools/train_universal.py", "mixtures": TRAINING, "points": POINTS, "floor": FLOOR}
    tables = load_ranged(chosen.output) if Path(chosen.output).is_file() else {}
    for nfe in chosen.nfe:
        tables[nfe] = train(nfe, problems, held_out)
        save_ranged(dict(sorted(tables.items())), facts, chosen.output)


if __name__ == "__main__":
    main()
