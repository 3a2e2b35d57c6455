"""Write docs/catalogue/: one page a family of solvers, generated from the solvers themselves and from exact runs.

``python tools/make_catalogue.py [orders.md] [--engine E] [--family F]`` takes a few minutes; ``orders.md`` is the output of
benchmarks/orders.py, whose measured orders then go into the pages. Without it the pages keep the orders that they have.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import diffode
from diffode import engines, fields, plot, solvers, verify
from diffode.errors import ArgumentError, BudgetError
from diffode.flows import reference
from diffode.metrics import gaussian_split
from diffode.numerics.exponential_butcher import METHODS
from diffode.solvers.solver import WritesTable

OUT = Path(__file__).parent.parent / "docs" / "catalogue"
TARGETS = ("ring8", "spiral", "digits-gmm10")
GAUSSIANS = ("gauss1d", "gauss2d", "gauss64-powerlaw")
STABILITY = """Growth of a deviation per step of length h in the log-SNR where the denoiser is linear, D = kappa x/alpha
(`diffode.verify.growth`). For Gaussian data kappa runs from 0 (pure noise) to 1 (data), and the exact factor
exp(-(1 - kappa) h) is below 1: violet. Orange, beyond the black line, the solver makes it grow. Noise is left out; DEIS is
shown at low noise, where its variable, the VP time, is asymptotically a power of rho."""
BUDGETS = (4, 6, 8, 12, 16, 24, 32, 48)
STEPS = (10, 50, 250, 1000)
#: Numbers of evaluations and errors by solver.
Curves = dict[str, list[tuple[int, float]]]
#: Families in the order of the index: file, title, specs shown.
FAMILIES = {
    "runge_kutta": ("Runge-Kutta", ("euler:chart=noise", "midpoint:chart=noise", "edm_heun", "ralston:chart=noise",
                                    "kutta3:chart=noise", "rk4:chart=noise", "heunpp2", "stork:chart=noise",
                                    "stork:chart=noise,virtual=false,stages=4,form=consistent", "stork_4:chart=noise",
                                    "stork_4:chart=noise,taylor=3,form=consistent")),
    "adams": ("Adams: AB, LMS, DEIS, iPNDM", ("ab:order=2,chart=noise", "ab:order=3,chart=data", "lms:order=4", "deis:order=3",
                                              "ipndm:order=3", "ipndm:order=4", "ipndm_v:order=3", "ipndm_v:order=4",
                                              "ipndm_v:form=consistent", "gradient_estimation")),
    "dpm": ("DPM-Solver, single step", ("dpm:order=2", "dpm:order=3", "dpm_fast", "dpmpp_s:order=2", "dpmpp_s:order=3")),
    "dpm_multistep": ("DPM-Solver, multistep", ("dpm_m:order=2", "dpmpp:order=2", "dpmpp:order=3",
                                                        "dpmpp:order=3,form=consistent", "res_m:order=3",
                                                        "res_m:order=3,form=consistent", "dpm_v3",
                                                        "dpm_v3:order=2,pseudo_corrector=true")),
    "exponential_runge_kutta": ("Exponential Runge-Kutta", tuple(f"exponential_rk:method={m}" for m in METHODS)),
    "unipc": ("UniPC", ("unipc:order=2", "unipc:order=3", "unipc:order=3,lower_order_final=never",
                        "unipc:order=3,variant=vary_coeff", "dc")),
    "ancestral": ("DDIM, DDPM, ancestral and EDM's churn", ("ddim", "ddim:eta=1", "ddpm", "euler_ancestral", "dpm2_ancestral",
                                                            "dpmpp_2s_ancestral", "edm_stochastic")),
    "restart": ("Restart, predictor-corrector, consistency", ("restart", "restart:low=0.5,high=5,inner=4", "pc",
                                                              "pc:snr=0.05,corrections=2", "pc_langevin", "lcm")),
    "exponential_sde": ("Exponential SDE solvers", ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde:form=heun", "dpmpp_3m_sde", "sa",
                                                    "seeds_1", "seeds_2", "seeds_3")),
    "er_sde": ("ER-SDE and Euler-Maruyama", ("er_sde_1", "er_sde_2", "er_sde_3", "er_sde:form=consistent", "euler_maruyama")),
    "amed": ("AMED, without learning", ("amed", "amed:host=euler", "amed:host=ipndm,order=3")),
    "implicit": ("Implicit Runge-Kutta", ("implicit_rk:stages=1", "implicit_rk:stages=2", "implicit_rk:method=radau,stages=1",
                                          "implicit_rk:method=radau,stages=2")),
    "parallel": ("Parallel in time", ("picard", "picard:memory=3", "picard:window=8", "picard:base=heun:chart=noise",
                                      "parareal", "parareal:base=heun:chart=noise")),
    "adaptive": ("Adaptive", ("rk_adaptive", "dpm_adaptive:order=2", "dpm_adaptive:order=3", "sde_adaptive:eta=0")),
}  # fmt: skip


def gaussian_row(spec: str) -> str:
    """The discretisation part of W2 on N(0, diag k^-2), k = 1..1000, along VP, as in arXiv 2405.14250."""
    spectrum = torch.arange(1, 1001, dtype=torch.float64) ** -2
    return " | ".join(
        f"{verify.gaussian(spec, 'vp', 'time_uniform', spectrum, steps=n).split.discretisation:.2e}" for n in STEPS
    )


def weak(spec: str) -> str:
    try:
        return f"{verify.weak_order(spec, steps=(256, 512, 1024, 2048)).slope:.2f}"
    except ArgumentError:
        return "exact"


def figure(name: str, specs: tuple[str, ...]) -> None:
    """End-point errors of the deterministic ones against NFE on three targets."""
    curves: dict[str, Curves] = {}
    for target in TARGETS:
        field = fields.exact_field(target, "edm")
        x = field.prior(128, generator=0)
        exact = reference(field, x, field.path.t_max, field.path.t_min, 1e-9).x
        for spec in specs:
            if not solvers.get(spec).stochastic:
                runs = runs_of(spec, field, x)
                errors = [(n, float((end - exact).norm(dim=1).mean()) / field.scale) for n, end in runs]
                curves.setdefault(target, {})[spec] = errors
    draw(curves, specs, "mean end-point error / scale", OUT / f"{name}.png")


def runs_of(spec: str, field: fields.ExactField, x: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """(NFE, ends) at every budget, or at every tolerance of an adaptive solver."""
    solver = solvers.get(spec)
    if isinstance(solver, solvers.DirectSolver) and not solver.takes_steps:
        by_tolerance = [solvers.get(spec, rtol=r, atol=r / 10) for r in (1e-1, 1e-2, 1e-3, 1e-4)]
        found = [diffode.solve(field, x, solver=solver) for solver in by_tolerance]
        return [(run.nfe, run.x) for run in found]
    if isinstance(solver, solvers.DirectSolver):
        # What a step costs depends on the solution, and is more than most budgets of the others.
        settled = [
            diffode.solve(field, x, solver=solver, grid="karras", steps=n, on_failure="return") for n in (4, 8, 16, 32, 64)
        ]
        return [(run.nfe, run.x) for run in settled]
    runs = []
    for nfe in BUDGETS:
        with contextlib.suppress(BudgetError):
            run = diffode.solve(field, x, solver=spec, nfe=nfe, grid="karras", on_failure="return")
            runs.append((run.nfe, run.x))
    return runs


def law_figure(name: str, specs: tuple[str, ...]) -> None:
    """Exact W2 errors on three Gaussians, SDE and ODE solvers on one scale."""
    curves: dict[str, Curves] = {}
    for target_name in GAUSSIANS:
        target = diffode.targets.get(target_name)
        eigenvalues, vectors = torch.linalg.eigh(target.covariance)
        for spec in specs:
            points = curves.setdefault(target_name, {}).setdefault(spec, [])
            for nfe in BUDGETS:
                with contextlib.suppress(BudgetError):
                    table = solvers.table_solver(spec).within(diffode.paths.get("edm"), "karras", nfe)
                    split = gaussian_split(table, target.mean @ vectors, eigenvalues)
                    points.append((table.nfe, split.discretisation / target.scale))
    draw(curves, specs, "discretisation part of W2 / scale", OUT / f"{name}_law.png")


def draw(curves: Mapping[str, Curves], specs: Sequence[str], label: str, file: Path) -> None:
    """A panel for each target, in which a solver looks the same as in the others; one legend names them for all."""
    looks = plot.looks(specs)
    with plot.style():
        drawn = Figure(figsize=(11, 3.9), layout="constrained")
        for axis, (target, own) in zip(drawn.subplots(1, len(curves)), curves.items(), strict=True):
            # Several budgets may lead to one run.
            points = {spec: tuple(zip(*sorted(dict(runs).items()), strict=True)) for spec, runs in own.items()}
            plot.error_curves(points, ax=axis, styles=looks, ylabel=label if target == next(iter(curves)) else "", labels=False)
            axis.set_title(f"{target}, EDM, Karras grid")
        handles = [
            Line2D([], [], label=spec, **looks[spec].line) for spec in specs if any(spec in own for own in curves.values())
        ]
        drawn.legend(handles=handles, loc="outside lower center", ncols=3)
    plot.save(drawn, file, dpi=90)


def stability_figure(name: str, specs: tuple[str, ...]) -> None:
    """Where a step in log-SNR makes a deviation grow that the exact flow shrinks."""
    columns = 3
    height = -(-len(specs) // columns)
    with plot.style():
        drawn = Figure(figsize=(11, 2.4 * height), layout="constrained")
        axes = drawn.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
        for place, (axis, spec) in enumerate(itertools.zip_longest(axes.flat, specs)):
            if spec is None:
                axis.set_visible(False)
                continue
            plot.stability(functools.partial(verify.growth, spec), ax=axis, bar=False)
            axis.set(title=spec, xlabel="step h in log-SNR" if place >= columns * (height - 1) else "", ylabel="")
            if place % columns == 0:
                axis.set_ylabel("kappa")
        drawn.colorbar(axes[0, 0].collections[0], ax=axes, label="log10 of the growth a step", shrink=0.8)
    plot.save(drawn, OUT / f"{name}_stability.png", dpi=80)


def measured_orders(file: str | None) -> tuple[str, dict[str, str]]:
    """Header and rows of the table that benchmarks/orders.py prints: from a file of it, or from the pages as they are."""
    sources = [Path(file)] if file else sorted(OUT.glob("*.md"))
    header, rows = "", {}
    for source in sources:
        _, found, table = source.read_text().partition("| solver | claimed | documented |")
        if found:
            title, *lines = (found + table).splitlines()
            header = title
            for line in itertools.takewhile(lambda line: line.startswith("|"), lines[1:]):
                rows[line.split("`")[1]] = line
    return header, rows


def page(name: str, title: str, specs: tuple[str, ...], header: str, orders: dict[str, str]) -> str:
    lines = [f"# {title}", "", "Generated by `python tools/make_catalogue.py`.", ""]
    made = [solvers.get(spec) for spec in specs]
    shown: set[type] = set()
    for solver in made:
        if type(solver) in shown:
            continue
        shown.add(type(solver))
        lines += [f"## `{solver.name}`", "", inspect.getdoc(type(solver)) or "", "", f"Source: {solver.reference}.", ""]
    lines += ["## Facts", ""]
    lines += [
        "| solver | chart | claimed order | documented order | NFE a step |",
        "|---|---|---|---|---|",
    ]
    for spec, solver in zip(specs, made, strict=True):
        cells = (solver.chart_name, solver.order, solver.convergence_order, solver.spends)
        told = ("none" if cell is None else str(cell) for cell in cells)
        lines.append(f"| `{spec}` | " + " | ".join(told) + " |")
    found = [spec for spec in orders if solvers.get(spec).name in {s.name for s in made}]
    if found:
        lines += ["", "Measured orders (`make orders`; * marks those further than 0.15 from the documented order):", "", header]
        lines += ["|" + "---|" * (header.count("|") - 1), *(orders[spec] for spec in found)]
    lines += _gaussian_table(specs, made)
    tables = tuple(spec for spec, solver in zip(specs, made, strict=True) if isinstance(solver, WritesTable))
    # The steps of these depend on the noise level itself, not on the ratio of two.
    uniform = tuple(spec for spec in tables if solvers.get(spec).name not in ("er_sde", "restart", "lcm"))
    if any(not s.stochastic for s in made):
        figure(name, specs)
        lines += ["", "Error against NFE of the deterministic ones:", "", f"![error against NFE]({name}.png)"]
    if any(s.stochastic for s in made):
        law_figure(name, tables)
        lines += ["", "Exact error of the output's law on Gaussians, for those that draw noise too:", ""]
        lines += [f"![W2 against NFE]({name}_law.png)"]
    if uniform:
        stability_figure(name, uniform)
        lines += ["", "## Stability in log-SNR", "", STABILITY, "", f"![stability]({name}_stability.png)"]
    return "\n".join(lines) + "\n"


def _gaussian_table(specs: tuple[str, ...], made: list[solvers.Solver]) -> list[str]:
    rows = [(spec, solver) for spec, solver in zip(specs, made, strict=True) if isinstance(solver, WritesTable)]
    if not rows:
        return []
    spectrum = torch.arange(1, 1001, dtype=torch.float64) ** -2
    split = verify.gaussian("ddim", "vp", "time_uniform", spectrum, steps=10).split
    lines = [
        "",
        "Discretisation part of the exact W2 error on a Gaussian of spectrum k^-2, k = 1..1000, on VP with uniform time",
    ]
    lines += [f"steps (nothing is sampled; the exact flow has {split.prior:.1e} from the normal prior, and every solver"]
    lines += [f"{split.truncation:.1e} from stopping at t = 0.001), and weak order on Gaussians:", ""]
    lines += ["| solver | " + " | ".join(f"{n} steps" for n in STEPS) + " | weak order |", "|---|" + "---|" * (len(STEPS) + 1)]
    return lines + [f"| `{spec}` | {gaussian_row(spec)} | {weak(spec)} |" for spec, _ in rows]


def family(asked: list[Any]) -> None:
    """Write the page of a family, and draw its figures."""
    name, header, orders = asked
    title, specs = FAMILIES[name]
    (OUT / f"{name}.md").write_text(page(name, title, specs, header, orders))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("orders", nargs="?", help="output of benchmarks/orders.py")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="write the page of this family alone; repeatable")
    parser.add_argument("--engine", help="what computes: local (default), dask, dask://HOST:PORT; others need a shared disk")
    chosen = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    header, orders = measured_orders(chosen.orders)
    # A page and its figures are written where they are made.
    wanted = chosen.family or list(FAMILIES)
    for number, _ in engines.each(family, [[name, header, orders] for name in wanted], engine=chosen.engine):
        print(wanted[number], flush=True)
    index = ["# The catalogue of solvers", "", "What is wrong in published code is in [solvers.md](../solvers.md).", ""]
    for name, (title, specs) in FAMILIES.items():
        index.append(
            f"* [{title}]({name}.md): " + ", ".join(f"`{s}`" for s in dict.fromkeys(solvers.get(s).name for s in specs))
        )
    index += ["", "```{toctree}", ":hidden:", "", *FAMILIES, "```"]
    (OUT / "index.md").write_text("\n".join(index) + "\n")


if __name__ == "__main__":
    main()
