"""Write docs/parallel.md: solvers that are parallel in time, calls made against calls that wait: ``make parallel``.

The page's text is tools/parallel_page.md, its numbers come from runs; a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from string import Template

import diffode

OUT = Path(__file__).parent.parent / "docs"
TARGETS = ("ring8", "spiral", "digits-gmm10")
STEPS, STARTS = 100, 64
SOLVERS = (
    "picard:tolerance=0",
    "picard:tolerance=0.001",
    "picard:tolerance=0.01",
    "picard:window=25,tolerance=0.01",
    "picard:memory=3,tolerance=0.01",
    "picard:window=25,memory=3,tolerance=0.01",
    "parareal:tolerance=0.01",
    "parareal:blocks=20,tolerance=0.01",
)
#: What is run with as many calls as this one has latency.
INSTEAD = "dpmpp:order=2"


def rows(target: str) -> list[str]:
    """The lines of a target."""
    field = diffode.exact_field(target, "edm")
    x = field.prior(STARTS, generator=0)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-9).x
    sequential = diffode.solve(field, x, solver="ddim", grid="karras", steps=STEPS)

    def line(solver: str, run: diffode.Solution, latency: int) -> str:
        away, error = (float((run.x - end).norm(dim=1).mean()) / field.scale for end in (sequential.x, exact))
        return f"| {target} | `{solver}` | {run.nfe} | {latency} | {away:.1e} | {error:.1e} |"

    lines, waited = [line("ddim", sequential, sequential.nfe)], 0
    for solver in SOLVERS:
        run = diffode.solve(field, x, solver=solver, grid="karras", steps=STEPS)
        lines.append(line(solver, run, run.latency or run.nfe))
        waited = run.latency or 0 if solver == "picard:tolerance=0.01" else waited
    lines.append(line(INSTEAD, diffode.solve(field, x, solver=INSTEAD, grid="karras", nfe=waited), waited))
    return lines


def main() -> None:
    header = ["| target | solver | NFE | latency | away | error |", "|---|---|---|---|---|---|"]
    text = Template((Path(__file__).parent / "parallel_page.md").read_text(encoding="utf-8"))
    table = "\n".join([*header, *(line for target in TARGETS for line in rows(target))])
    (OUT / "parallel.md").write_text(text.substitute(runs=table, steps=STEPS, starts=STARTS), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
