"""Write the pages of what is registered: docs/targets.md with its picture, docs/paths_and_grids.md and docs/methods.md.

``python tools/make_reference.py [--check]`` takes seconds. With ``--check`` nothing is written, and pages that no longer
say what is registered are named (`tests/test_reference_pages.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import diffode
from diffode import grids, paths, plot, targets
from diffode.cli.list_command import options_of_maker, rows_of
from diffode.cli.methods_told import LAW_ONLY
from diffode.cli.plain_text import plain_text
from diffode.learned.maps.table import MAP_METHODS, SHARED
from diffode.specs import Registry

DOCS = Path(__file__).parent.parent / "docs"
#: Time of EDM's path at which densities are drawn: nearly that of the data.
CLEAN = 0.05
#: Columns of the picture of targets.
COLUMNS = 4
#: What a map learns from, by the name of its teacher.
LEARNS = {"exact": "the field", "none": "data", "own": "data and itself"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def targets_page() -> str:
    rows = []
    for name in targets.names():
        target, card = targets.get(name), targets.card(name)
        mixture = target.as_mixture()
        count = "" if mixture is None else f"{mixture.count:,}"
        rows.append((f"`{name}`", str(target.dim), count, f"{target.scale:.4g}", card.summary, ", ".join(targets.tags(target))))
    return f"""# Targets

The laws of data that are registered, each a mixture of Gaussians (or points, which are Gaussians of no width), so that scores,
velocities, densities and flows are exact. `diffode show NAME` has a target's whole card with its licence and source, `diffode
list targets` this table. Your own: `diffode.GaussianMixture(weights, means, covariances)`, a file of samples, or `diffode new
target NAME`.

![Densities of the targets in one and two dimensions](targets.png)

{table(("name", "D", "components", "scale", "what it is", "tags"), rows)}

*Scale* is the root mean variance of a coordinate, the unit of most errors. *exact-flow* has its flow in closed form (a
Gaussian, a line, a mixture along one line); others are integrated, with an estimate of the error.

Written by `python tools/make_reference.py`.
"""


def targets_picture() -> None:
    shown = [name for name in targets.names() if targets.get(name).dim <= 2]
    figure, axes = plt.subplots(
        -(-len(shown) // COLUMNS), COLUMNS, figsize=(10, 2.6 * -(-len(shown) // COLUMNS)), layout="constrained"
    )
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, shown, strict=False):
        field = diffode.exact_field(name, "edm")
        plot.density(field, CLEAN * field.scale, ax=ax)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(""), ax.set_ylabel("")
        ax.tick_params(labelsize=6)
    plot.save(figure, DOCS / "targets.png", dpi=90)
    plt.close(figure)


def registered(registry: Registry) -> Iterable[tuple[str, str, str]]:
    """Names, summaries and options of what a registry holds."""
    for name in registry.names():
        entry = registry.entry(name)
        options = options_of_maker(entry.make)
        yield (
            f"`{name}`",
            plain_text(entry.summary),
            ", ".join(f"`{k}={v}`" for k, v in options.items() if k not in entry.preset),
        )


def paths_page() -> str:
    return f"""# Paths and grids

A path says how data become noise, x_t = alpha(t) x_0 + sigma(t) eps; a grid where the times of a run lie on it. `diffode show
NAME` prints formulas with a table of alpha, sigma and rho, or of levels. Options follow a colon: `karras:rho=5`,
`ddpm:schedule=scaled_linear`.

## Paths

{table(("name", "what it is", "options"), registered(paths.registry))}

Of your own: `diffode.paths.FunctionPath(alpha, sigma)`, or a table of noise levels, `diffode.paths.Tabulated(alphas_cumprod)`.

## Grids

{table(("name", "what it is", "options"), registered(grids.registry))}

A list of times is a grid too: `solve(field, x, solver="unipc", grid=[80.0, 5.0, 0.5, 0.002])`.

Written by `python tools/make_reference.py`.
"""


def methods_page() -> str:
    rows = list(rows_of("methods"))
    solvers = [(f"`{row['name']}`", row["summary"]) for row in rows if row["name"] not in MAP_METHODS]
    maps = []
    for name, row in MAP_METHODS.items():
        kind = "a generator" if row.one_jump else "to its end only" if row.defaults["fixed_end"] else "any two times"
        learns = " or ".join(LEARNS[teacher] for teacher in row.teachers)
        maps.append((f"`{name}`", f"`{row.objective}`", learns, kind + (", the law alone" if row.law_only else ""), row.source))
    departures = [(f"`{name}`", row.departures) for name, row in MAP_METHODS.items() if row.departures]
    return f"""# Methods of training

Every way to train is a name for `diffode.learned.train(name, field, nfe)` and `diffode train NAME --target T --nfe N`; `diffode
show NAME` tells of one with its options.

## Solvers and grids

{table(("name", "what it gives"), solvers)}

What they gain, measured: [learned.md](learned.md), [learned_cells.md](learned_cells.md), [heads.md](heads.md).

## Flow maps

{SHARED}
Phi(x, s->t) is the map, sg a number without a gradient, D_s the derivative along a trajectory, v_c the velocity of data and
noise. *The law alone*: {LAW_ONLY}.

{table(("name", "makes small", "learns from", "goes to", "source"), maps)}

What differs from the papers:

{table(("name", "departures"), departures)}

What they learn, measured: [flow_maps.md](flow_maps.md), [few_step.md](few_step.md).

Written by `python tools/make_reference.py`.
"""


#: The pages by their names.
PAGES = {"targets": targets_page, "paths_and_grids": paths_page, "methods": methods_page}


def main(check: bool) -> int:
    written = {DOCS / f"{name}.md": page() for name, page in PAGES.items()}
    if check:
        old = [file.name for file, text in written.items() if file.read_text(encoding="utf-8") != text]
        print(f"no longer true: {', '.join(old)}; run python tools/make_reference.py" if old else "all pages are true")
        return 1 if old else 0
    for file, text in written.items():
        file.write_text(text, encoding="utf-8")
    targets_picture()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and name pages that are no longer true")
    sys.exit(main(parser.parse_args().check))
