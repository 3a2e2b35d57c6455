"""AMED as published against its hosts: ``python benchmarks/amed.py [--targets NAME ...]``, a few seconds a cell.

The paper's ordering (Zhou et al., arXiv 2312.00094, table 2): AMED-Solver below DPM-Solver-2 and AMED-Plugin below its host at
NFE 3, 5, 7, 9, both with the analytic first step, on the Karras grid. Mean end-point errors over 256 starts that were not
trained on, in units of the target's scale. Trained step by step on the exact flow, 300 rounds of 256 trajectories.
"""

from __future__ import annotations

import argparse

import torch

from diffode import fields, paths, solvers
from diffode.learned import train_amed
from diffode.references import reference

TARGETS = (
    "bimodal1d", "gauss2d", "line16", "ring8", "grid25", "spiral", "moons", "pinwheel", "rare", "digits-gmm10",
    "digits-lowrank",
)  # fmt: skip
EDM = paths.get("edm")
PAIRS = ((None, 2, "dpm:order=2"), ("ipndm", 3, "ipndm:order=3"), ("euler", 2, "ddim"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    chosen = parser.parse_args()
    print("| target | NFE | AMED-Solver | DPM-Solver-2 | plug-in on iPNDM-3 | iPNDM-3 | plug-in on Euler | Euler |")
    print("|---|---|---|---|---|---|---|---|")
    below = [0] * len(PAIRS)
    cells = 0
    for target in chosen.targets:
        field = fields.exact_field(target, EDM)
        x = EDM.prior((256, field.target.dim), generator=424_242)
        exact = reference(field, x, EDM.t_max, EDM.t_min, 1e-8).x
        for steps in (2, 3, 4, 5):
            texts = []
            for k, (host, order, base) in enumerate(PAIRS):
                learned = train_amed(field, steps, host=host, order=order, points=1024, rounds=300).solver
                own = solvers.get(base, analytic_first_step=True).within(EDM, "karras", learned.nfe)
                with torch.no_grad():
                    ends = learned.run(field, x)[-1], own.run(field, x)
                errors = [float((end - exact).norm(dim=1).mean()) / field.scale for end in ends]
                below[k] += errors[0] < errors[1]
                texts += [f"{e:.3g}" for e in errors]
            cells += 1
            print(f"| {target} | {2 * steps - 1} | " + " | ".join(texts) + " |", flush=True)
    for (host, _, base), count in zip(PAIRS, below, strict=True):
        print(f"{'AMED-Solver' if host is None else 'AMED-Plugin'} below {base} in {count} of {cells} cells")


if __name__ == "__main__":
    main()
