"""The table and the picture of docs/bridges.md, from a store that ``diffode bench bridges --output FOLDER`` filled.

``python tools/make_bridges_page.py FOLDER/results.sqlite``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import diffode
from diffode import plot
from diffode.plot.appearance import PALETTE
from diffode.studies import Store, load_suite
from diffode.studies.runner import keyed_cells

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->"
SOLVERS = ("euler", "heun", "rk4", "ab:order=3", "ab:order=4")
BUDGETS = (8, 32)
DRAWN = ("eight_to_moons:coupling=independent", "eight_to_moons:coupling=optimal")


def table(store: str) -> str:
    """Mean end-point errors in units of the scale, on ``time_uniform``."""
    suite = load_suite("bridges")
    with Store(store) as opened:
        results = opened.get(keyed_cells(suite))
    found = {(r.cell.target, r.cell.solver, r.cell.nfe): r for r in results if r.cell.grid == "time_uniform"}
    head = [f"{solver}, {nfe}" for nfe in BUDGETS for solver in SOLVERS]
    lines = ["| bridge | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for target in dict.fromkeys(cell.target for cell in suite.cells):
        errors = []
        for nfe in BUDGETS:
            for solver in SOLVERS:
                result = found[target, solver, nfe]
                value = result.value("endpoint")
                errors.append("--" if value is None or not result.scale else f"{value / result.scale:.1e}")
        lines.append(f"| `{target.removeprefix('bridge:')}` | " + " | ".join(errors) + " |")
    return "\n".join(lines) + "\n"


def picture() -> Figure:
    """Exact trajectories of the same sources, with the draws at both ends."""
    with plot.style():
        return _drawn(Figure(figsize=(10, 5), layout="constrained"))


def _drawn(figure: Figure) -> Figure:
    for panel, name in zip(figure.subplots(1, 2), DRAWN, strict=True):
        bridge = diffode.bridges.get(name)
        start = bridge.prior(300, generator=0)
        run = diffode.solve(bridge, start, solver="rk4", grid="time_uniform", steps=60, keep="all")
        for line in run.states[:, :60].unbind(1):
            panel.plot(line[:, 0], line[:, 1], color=PALETTE[1], lw=0.6, alpha=0.6)
        for points, colour, label in ((start, "0.6", "source"), (run.x, PALETTE[0], "data")):
            panel.plot(points[:, 0], points[:, 1], ".", color=colour, ms=3, label=label)
        panel.set(title=name.partition("=")[2], aspect="equal", xticks=[], yticks=[])
        panel.spines[:].set_visible(True)
        panel.legend()
    return figure


def main(store: str) -> None:
    """Write the table into the page, and the picture beside it."""
    page = DOCS / "bridges.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    page.write_text(before + BEGIN + "\n" + table(store) + "\n" + END + rest.partition(END)[2], encoding="utf-8")
    plot.save(picture(), DOCS / "bridges.png", dpi=110)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="results.sqlite of the suite bridges")
    main(parser.parse_args().store)
