"""AMED as published against its hosts: ``python benchmarks/amed.py [--targets NAME ...]``, a few seconds a cell.

The paper's ordering (Zhou et al., arXiv 2312.00094, table 2): AMED-Solver below DPM-Solver-2 and AMED-Plugin below its host at
NFE 3, 5, 7, 9, both with the analytic first step, on the Karras grid. Mean end-point errors over 256 starts that were not
trained on, in units of the target's scale. Trained step by step on the exact flow, as the paper does, 300 rounds of 256
trajectories; the plug-in on iPNDM also end to end, which looks at the error of the last state alone.
"""

from __future__ import annotations

import argparse

import torch

from diffode import fields, paths, solvers
from diffode.flows import reference
from diffode.learned import train_amed

TARGETS = (
    "bimodal1d", "gauss2d", "line16", "ring8", "grid25", "spiral", "moons", "pinwheel", "rare", "digits-gmm10",
    "digits-lowrank",
)  # fmt: skip
EDM = paths.get("edm")
#: Host, its order, whether training goes step by step, and what it is compared with.
PAIRS = (
    (None, 2, True, "dpm:order=2"), ("ipndm", 3, True, "ipndm:order=3"), ("ipndm", 3, False, "ipndm:order=3"),
    ("euler", 2, True, "ddim"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    chosen = parser.parse_args()
    print(
        "| target | NFE | AMED-Solver | DPM-Solver-2 | plug-in on iPNDM-3 | end to end | iPNDM-3 | plug-in on Euler | Euler |"
    )
    print("|---" * 9 + "|")
    below = [0] * len(PAIRS)
    cells = 0
    for target in chosen.targets:
        field = fields.exact_field(target, EDM)
        x = EDM.prior((256, field.target.dim), generator=424_242)
        exact = reference(field, x, EDM.t_max, EDM.t_min, 1e-8).x
        for steps in (2, 3, 4, 5):
            texts: list[str] = []
            for k, (host, order, per_step, base) in enumerate(PAIRS):
                learned = train_amed(field, steps, host=host, order=order, per_step=per_step, points=1024, rounds=300).solver
                own = solvers.get(base, analytic_first_step=True).within(EDM, "karras", learned.nfe)
                with torch.no_grad():
                    ends = learned.run(field, x)[-1], own.run(field, x)
                errors = [float((end - exact).norm(dim=1).mean()) / field.scale for end in ends]
                below[k] += errors[0] < errors[1]
                if k and base == PAIRS[k - 1][-1]:
                    texts.pop()  # the host's error, once
                texts += [f"{e:.3g}" for e in errors]
            cells += 1
            print(f"| {target} | {2 * steps - 1} | " + " | ".join(texts) + " |", flush=True)
    for (host, _, per_step, base), count in zip(PAIRS, below, strict=True):
        name = ("AMED-Solver" if host is None else "AMED-Plugin") + ("" if per_step else ", end to end,")
        print(f"{name} below {base} in {count} of {cells} cells")


if __name__ == "__main__":
    main()
