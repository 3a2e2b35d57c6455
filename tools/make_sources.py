"""Write docs/sources.md and its pictures: solvers on fields whose noise is no normal one: ``make sources``.

The page's text is tools/sources_page.md, its numbers come from runs against exact ends; a few minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D

import diffode
from diffode import plot
from diffode.fields import ExactField
from diffode.paths import FunctionPath
from diffode.plot.appearance import DASHES, PALETTE
from diffode.plot.scales import set_evaluations
from diffode.sources import StudentT
from diffode.targets import GaussianMixture

OUT = Path(__file__).parent.parent / "docs"
#: Degrees of freedom of PFGM++; infinity is EDM.
DEGREES = (float("inf"), 1024.0, 128.0, 16.0, 2.0)
EDM_SOLVERS = ("ddim", "dpmpp:order=2", "ipndm:order=3", "edm_heun")
EDM_NFE = (5, 9, 17, 33, 65)
STARTS = 60
#: Solvers between two mixtures, each with its grid.
PAIRS = (
    ("ddim", "time_uniform"),
    ("heun", "time_uniform"),
    ("ipndm:order=3", "time_uniform"),
    ("dpmpp:order=2", "time_uniform"),
    ("dpmpp:order=2", "log_snr"),
    ("unipc:order=3", "log_snr"),
    ("ipndm:order=3", "log_snr"),
)
PAIR_NFE = (10, 20, 40, 80, 160, 320, 640)


def number(value: float) -> str:
    return f"{value:.2g}" if 0.01 <= value < 1000 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def degrees() -> dict[tuple[str, float], list[float]]:
    """Mean end-point errors on ring8 by solver and degrees of freedom, at each NFE."""
    found = {}
    for dof in DEGREES:
        field = diffode.exact_field("ring8", "edm", StudentT(dof))
        x = field.prior(STARTS, generator=0)
        exact = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-9).x
        for solver in EDM_SOLVERS:
            errors = []
            for nfe in EDM_NFE:
                end = diffode.solve(field, x, solver=solver, grid="karras", nfe=nfe).x
                errors.append(float((end - exact).norm(dim=1).mean()))
            found[solver, dof] = errors
    return found


def two_mixtures() -> ExactField:
    """Three components of data from two of noise, on the line."""
    data = GaussianMixture([0.3, 0.5, 0.2], [[-2.0], [0.5], [3.0]], [0.09, 0.16, 0.04])
    noise = GaussianMixture([0.4, 0.6], [[-3.0], [2.0]], [0.25, 0.49])
    return diffode.exact_field(data, "rectified_flow", noise)


def grids() -> dict[tuple[str, str], list[float]]:
    """Largest end-point errors of 41 starts between the two mixtures, by solver and grid, at each NFE."""
    field = two_mixtures()
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)[:, None]
    exact = diffode.reference(field, x, 0.999, 0.001).x
    found = {}
    for solver, grid in PAIRS:
        ends = (diffode.solve(field, x, solver=solver, grid=grid, nfe=nfe).x for nfe in PAIR_NFE)
        found[solver, grid] = [float((end - exact).abs().max()) for end in ends]
    return found


def trajectories() -> None:
    """Four constructions of an ODE for the same points: straight lines, circles, exponentials, lines of force."""
    points = GaussianMixture.from_points([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]])
    circle = FunctionPath(torch.cos, torch.sin, t_min=0.01, t_max=1.55)
    growing = FunctionPath(torch.ones_like, torch.expm1, t_min=0.01, t_max=2.0)
    cases = (
        ("straight lines, normal noise", diffode.exact_field(points, "rectified_flow")),
        ("circles, logistic noise", diffode.exact_field(points, circle, "density:law=logistic")),
        ("exponentials, Laplace noise", diffode.exact_field(points, growing, "density:law=laplace")),
        ("lines of force (Poisson flow)", diffode.exact_field(points, "edm:sigma_max=8", "student:dof=1")),
    )
    with plot.style():
        figure, panels = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
        for panel, (title, field) in zip(panels, cases, strict=True):
            x = field.prior(40, generator=1)
            x = x[x.norm(dim=1) < 14]
            grid = "log_snr" if "lines of" in title else "time_uniform"
            run = diffode.solve(field, x, solver="ipndm:order=3", grid=grid, steps=120, keep="all")
            for i in range(len(x)):
                panel.plot(run.states[:, i, 0], run.states[:, i, 1], color=PALETTE[0], lw=0.7)
            panel.plot(points.means[:, 0], points.means[:, 1], "o", color=PALETTE[1], ms=5)
            panel.set(title=title, xlim=(-7, 7), ylim=(-7, 7), aspect="equal", xticks=[], yticks=[])
            panel.spines[:].set_visible(True)
    plot.save(figure, OUT / "sources_trajectories.png", dpi=110)


def curves(by_degrees: dict[tuple[str, float], list[float]], by_grid: dict[tuple[str, str], list[float]]) -> None:
    with plot.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        colours = dict(zip((solver for solver in EDM_SOLVERS if solver != "edm_heun"), PALETTE, strict=False))
        dashes = dict(zip(DEGREES, (*DASHES, (0, (1, 3))), strict=True))
        for (solver, dof), errors in by_degrees.items():
            if solver in colours:
                left.loglog(EDM_NFE, errors, color=colours[solver], ls=dashes[dof])
        set_evaluations(left, EDM_NFE)
        left.set(title="ring8, EDM's levels: D changes hardly anything", ylabel="mean end-point error")
        # A colour for each solver, a dash for each D.
        keys = [Line2D([], [], color=colour, label=solver) for solver, colour in colours.items()]
        keys += [Line2D([], [], color="0.4", ls=dash, label=f"D = {dof:g}") for dof, dash in dashes.items()]
        left.legend(handles=keys, ncol=2)
        named = {f"{solver}, {grid}": (PAIR_NFE, errors) for (solver, grid), errors in by_grid.items()}
        plot.error_curves(named, ax=right, ylabel="largest end-point error")
        right.set_title("from one mixture to another: the grid changes much")
    plot.save(figure, OUT / "sources_errors.png", dpi=110)


def main() -> None:
    by_degrees, by_grid = degrees(), grids()
    curves(by_degrees, by_grid)
    trajectories()
    rows = [
        [f"`{solver}`", "inf (EDM)" if np.isinf(dof) else f"{dof:g}", *map(number, by_degrees[solver, dof])]
        for solver in EDM_SOLVERS
        for dof in DEGREES
    ]
    of_degrees = table(["solver", "D", *(f"NFE {n}" for n in EDM_NFE)], rows)
    lines = [[f"`{solver}`", f"`{grid}`", *map(number, errors)] for (solver, grid), errors in by_grid.items()]
    of_grids = table(["solver", "grid", *(f"NFE {n}" for n in PAIR_NFE)], lines)
    text = (Path(__file__).parent / "sources_page.md").read_text(encoding="utf-8")
    (OUT / "sources.md").write_text(Template(text).substitute(degrees=of_degrees, grids=of_grids), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
