"""Write docs/few_step.md and its pictures: what few-step generators learn, in exact numbers: ``make few_step``.

The page's text is tools/few_step_page.md. Its figures come from ``diffode.verify.theory``, a few minutes on one core; its last
table from what ``benchmarks/maps.py`` left, if ``--results FILE`` names its results.jsonl, and otherwise stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from diffode import plot
from diffode.numerics.quantiles import Law, quantile_map
from diffode.plot.appearance import PALETTE
from diffode.verify.theory import consistency, one_step

HERE = Path(__file__).parent
OUT = HERE.parent / "docs"
sys.path.insert(0, str(HERE.parent))
FIRST, LAST = 80.0, 0.002
COUNTS = (2, 3, 5, 9, 17, 33, 65, 129)
MARK = "<!-- measured -->"


def figure(count: int = 2) -> tuple[plt.Figure, Sequence[Axes]]:
    made, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.2), layout="constrained")
    return made, np.atleast_1d(axes)


def saved(made: plt.Figure, name: str) -> None:
    plot.save(made, OUT / f"few_step_{name}.png", dpi=110)
    plt.close(made)


def named(axis: Axes, x: float, y: float, text: str, colour: str, **options: object) -> None:
    axis.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", color=colour, va="center", **options)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def modes(separation: float) -> Law:
    weights, means, widths = np.full(2, 0.5), np.array([-1.0, 1.0]), np.full(2, 1 / separation)
    return weights, means, widths


def slopes() -> str:
    """The exact one-step map of two modes, and the price of a bound on its slope."""
    made, (left, right) = figure()
    z = np.linspace(-3, 3, 1201)
    normal: Law = (np.ones(1), np.zeros(1), np.ones(1))
    for r, colour in zip((1, 2, 3, 4), PALETTE, strict=False):
        left.plot(z, quantile_map(normal, modes(r), z)[0], color=colour, lw=1.6)
        # The ends of the last two lie too near each other for two labels.
        named(left, 3, float(quantile_map(normal, modes(r), z[-1:])[0][0]) - (0.25 if r == 4 else 0), f"r = {r}", colour)
    left.set(xlabel="noise z", ylabel="data", title="The exact map")
    bounds = np.geomspace(1, 100, 60)
    for r, colour in zip((2, 3, 4, 6), PALETTE, strict=False):
        price = np.array([one_step.lipschitz_price(r, k) for k in bounds])
        right.loglog(bounds, np.where(price > 0, price, np.nan), color=colour, lw=1.6, label=f"r = {r}")
    right.loglog(bounds, 0.4 / bounds, color="0.6", lw=1, ls="--", label="$\\varphi(0)/K$")
    right.set(xlabel="bound K of the slope", ylabel="least mean error / scale", title="The price of a bound", ylim=(1e-4, 1))
    right.legend()
    saved(made, "slope")
    rows = [
        [str(r), f"{one_step.one_step_slope(r):.3g}", *(f"{one_step.lipschitz_price(r, k):.2g}" for k in (3.0, 10.0, 30.0))]
        for r in (1, 2, 3, 4, 5, 6)
    ]
    return table(["r", "slope of the exact map", "least error with K = 3", "K = 10", "K = 30"], rows)


def compressed() -> str:
    """Consistency training on a Gaussian: one evaluation with the error of N DDIM steps."""
    from diffode import grids

    made, (left, right) = figure()
    laid = {
        "equal angles": lambda n: consistency.best_levels(1.0, FIRST, LAST, n),
        "karras rho=7": lambda n: grids.get("karras", "edm", n - 1).tolist(),
        "log-SNR": lambda n: grids.get("log_snr", "edm", n - 1).tolist(),
    }
    ratios = {name: [1 - consistency.consistency_ratio(1.0, levels(n)) for n in COUNTS] for name, levels in laid.items()}
    steps = [n - 1 for n in COUNTS]
    for (name, errors), colour in zip(ratios.items(), PALETTE, strict=False):
        left.loglog(steps, errors, "o-", color=colour, ms=3.5, lw=1.4, label=name)
    left.set(xlabel="levels N of training", ylabel="$1 - A/A^*$", title="Slope of the fixed point", xticks=[1, 4, 16, 64])
    left.set_xticklabels(["1", "4", "16", "64"])
    left.minorticks_off()
    left.legend()
    for r, colour in zip((1.0, 3.0), PALETTE, strict=False):
        for kind, style in (("training", "o-"), ("euler", "s--")):
            counts = COUNTS[2:7]
            errors = [consistency.two_mode_error(r, laid["karras rho=7"](n), kind) for n in counts]
            right.loglog(
                [n - 1 for n in counts],
                errors,
                style,
                color=colour,
                ms=3.5,
                lw=1.4,
                label=f"r = {r:g}, {'CT' if kind == 'training' else 'CD'}",
            )
    right.set(
        xlabel="levels N of training",
        ylabel="mean error / scale",
        title="Two modes",
        xticks=[4, 16, 64],
        ylim=(0.01, 1),
        yticks=[0.01, 0.1, 1],
    )
    right.set_xticklabels(["4", "16", "64"])
    right.minorticks_off()
    right.legend()
    saved(made, "consistency")
    rows = [
        [
            str(n - 1),
            *(f"{ratios[name][COUNTS.index(n)]:.2g}" for name in laid),
            *(f"{consistency.two_mode_error(3.0, laid['karras rho=7'](n), kind):.2g}" for kind in ("training", "euler")),
        ]
        for n in (5, 9, 17, 33, 65)
    ]
    head = ["N", *(f"1 - A/A*, {name}" for name in laid), "two modes (r = 3, karras), CT", "CD"]
    return table(head, rows)


def noise() -> str:
    """The noise of what MeanFlow and improved MeanFlow regress on."""
    made, (only,) = figure(1)
    separations = np.linspace(0.5, 6, 45)
    found = [one_step.target_noise(float(r)) for r in separations]
    only.semilogy(separations, [one.mean_flow for one in found], color=PALETTE[1], lw=1.6)
    only.semilogy(separations, [one.improved for one in found], color=PALETTE[0], lw=1.6)
    named(only, 4.7, found[-8].mean_flow, "MeanFlow", PALETTE[1], ha="right")
    named(only, 4.4, found[-8].improved * 1.9, "improved MeanFlow", PALETTE[0], ha="center")
    only.set(xlabel="separation r", ylabel="variance of the target", title="From noise to data in one jump")
    saved(made, "noise")
    rows = []
    for r in (1.0, 2.0, 3.0, 4.0, 5.0):
        one = one_step.target_noise(r)
        rows.append([f"{r:g}", f"{one.mean_flow:.3g}", f"{one.improved:.3g}", f"{one.ratio:.4g}"])
    return table(["r", "MeanFlow", "improved MeanFlow", "ratio"], rows)


def stochastic() -> str:
    """More steps of a consistency sampler, with errors of the map that are alike at all levels or fall with the level."""
    made, (only,) = figure(1)
    steps, variance = np.arange(1, 17), 1.0
    rows = []
    cases = {
        "slope 2 % small everywhere": lambda level: 0.98,
        "10 % small at the top, 2 % below": lambda level: 0.90 if level == FIRST else 0.98,
        "error falls as the square of the level": lambda level: 1 - 0.1 * (level / (1 + level)) ** 2,
    }
    for (name, slope), colour in zip(cases.items(), PALETTE, strict=False):
        ends = []
        for count in steps:
            levels = np.geomspace(FIRST, 0.5, int(count)).tolist() if count > 1 else [FIRST]
            ends.append(abs(consistency.sampling_errors(variance, levels, [slope(level) for level in levels])[-1]))
        only.semilogy(steps, ends, "o-", ms=3, color=colour, lw=1.4, label=name)
        rows.append([name, *(f"{ends[k - 1]:.2g}" for k in (1, 2, 4, 8, 16))])
    only.set(
        xlabel="evaluations",
        ylabel="relative error of the variance",
        title="Multistep consistency sampling",
        xticks=[1, 2, 4, 8, 16],
        ylim=(2e-3, 0.4),
    )
    only.legend()
    saved(made, "stochastic")
    return table(["map", *(f"{k} evaluation{'' if k == 1 else 's'}" for k in (1, 2, 4, 8, 16))], rows)


def measured(results: str | None) -> str:
    """The table of the benchmark's results; that of the page as it stands without them."""
    if results is None:
        page = OUT / "few_step.md"
        return page.read_text(encoding="utf-8").split(MARK)[1].strip() if page.is_file() else ""
    from benchmarks.maps import tables

    lines = [json.loads(line) for line in Path(results).read_text(encoding="utf-8").splitlines()]
    return tables(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", help="results.jsonl of benchmarks/maps.py")
    chosen = parser.parse_args()
    page = (HERE / "few_step_page.md").read_text(encoding="utf-8")
    parts = {"slopes": slopes, "compressed": compressed, "noise": noise, "stochastic": stochastic}
    with plot.style():
        for name, make in parts.items():
            page = page.replace(f"{{{name}}}", make())
    page = page.replace("{measured}", f"{MARK}\n\n{measured(chosen.results)}\n\n{MARK}")
    (OUT / "few_step.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
