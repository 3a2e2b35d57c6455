"""Train the universal samplers that ship with diffode: ``python tools/train_universal.py NFE FILE`` (or ``--all``).

One table for each number of evaluations, its numbers polynomials in the levels of start and end, trained by Gauss-Newton on the
mean logarithm of the error over random mixtures. No target of the registry is used. Seeds are fixed.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffode import fields, paths, solvers
from diffode.learned.family import random_mixture
from diffode.learned.gauss_newton import Problem, fit
from diffode.learned.parameters import Parameters
from diffode.solvers.ranged import Ranged
from diffode.solvers.stages import Stages, noise_function

FIRST, LAST = (2.0, 800.0), (3e-6, 0.04)
TRAINING, HELD_OUT, POINTS = 1000, 120, 24
#: Starting tables to choose from: solver and grid.
STARTS = [
    (solver, grid)
    for solver in ("ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "deis:order=3", "deis:order=4", "lms:order=3",
                   "ab:order=3,chart=noise_log_snr", "dpmpp:order=2", "unipc:order=2")
    for grid in ("shift:s=1", "polyexponential:rho=0.7", "karras:rho=5", "karras:rho=7", "kl_optimal", "log_snr")
]  # fmt: skip
FLOOR = 2e-4
MOST = 64


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


def constant(stages: Stages) -> Tensor:
    """The coefficients of a sampler that does not depend on the levels."""
    from diffode.solvers.stages import to_vector

    vector = to_vector(stages)
    _, columns = torch.tril_indices(stages.nfe, stages.nfe)
    vector[torch.nonzero(columns == 0).reshape(-1) + stages.nfe] += float(stages.levels[0]) * stages.scales
    coefficients = torch.zeros(9, len(vector), dtype=torch.float64)
    coefficients[0] = vector
    return coefficients


def train(nfe: int, problems: list[Problem], held_out: list[Problem]) -> Ranged:
    middle = paths.EDM(t_min=0.003, t_max=100.0)
    candidates = []
    for solver, grid in STARTS:
        try:
            stages = Stages.of(solvers.get(solver).within(middle, grid, nfe))
        except ValueError:
            continue
        if stages.nfe != nfe:
            continue
        parameters = RangedParameters(Ranged(nfe, FIRST, LAST, MOST, constant(stages)))
        loss = sum(
            math.log(p.error(parameters.stages(parameters.start, p.first, p.last, p.dim)) + FLOOR) for p in problems[:60]
        )
        candidates.append((loss / 60, solver, grid, parameters))
    candidates.sort(key=lambda c: c[0])
    best = None
    for loss, solver, grid, parameters in candidates[:2]:
        print(f"nfe {nfe}: from {solver} @ {grid}, mean log error {loss:.3f}", flush=True)
        found = fit(parameters, problems, held_out, loss="log", floor=FLOOR, steps=STEPS, patience=8, directions=3, seed=nfe,
                    progress=lambda s, a, b: print(f"  {s} {a:.4f} {b:.4f}", flush=True))  # fmt: skip
        print(f"  held out {found.held_out[0]:.3f} -> {min(found.held_out):.3f} in {found.seconds:.0f} s", flush=True)
        if best is None or min(found.held_out) < best[0]:
            best = (min(found.held_out), parameters.ranged(found.values))
        if FAST:
            break
    return best[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    STEPS, FAST = 24, True
    began = time.time()
    problems = [problem(seed) for seed in range(TRAINING)]
    held_out = [problem(seed) for seed in range(10_000, 10_000 + HELD_OUT)]
    print(f"{TRAINING + HELD_OUT} mixtures in {time.time() - began:.0f} s", flush=True)
    for nfe in map(int, sys.argv[2:]):
        found = train(nfe, problems, held_out)
        torch.save({"c": found.coefficients}, f"{sys.argv[1]}-{nfe}.pt")
