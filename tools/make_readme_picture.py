"""Draw docs/schedules.png, the picture of the README, from the curves that ship: a second, and no run.

python tools/make_readme_picture.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure

from diffode import plot
from diffode.studies.question import path_of_schedule
from diffode.studies.ranking import best_methods, mean_curves
from diffode.studies.shipped import shipped_curves

OUT = Path(__file__).parent.parent / "docs" / "schedules.png"
PANELS = {"sdxl": "schedule of SD 1.5 and SDXL", "flux": "flow matching, as Flux", "edm": "EDM"}
#: What most programs run, and the simplest, on the grid that most programs lay.
KNOWN = ("ddim @ karras:to_zero=true", "dpmpp:order=2 @ karras:to_zero=true")


def main() -> None:
    shipped = shipped_curves("schedules")
    if shipped is None:
        sys.exit("no curves ship: python tools/make_shipped.py schedules")
    own = {name: [c for c in shipped.curves if c.path == path_of_schedule(name)] for name in PANELS}
    chosen = {name: [*KNOWN, *(m for m in best_methods(curves, 1) if m not in KNOWN)] for name, curves in own.items()}
    looks = plot.looks(m for methods in chosen.values() for m in methods)
    with plot.style():
        figure = Figure(figsize=(13.5, 3.9), layout="constrained")
        for panel, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            means = mean_curves(own[name])
            short = {m: m.replace(":to_zero=true", "").replace(",to_zero=true", "") for m in chosen[name]}
            plot.error_curves(
                {short[m]: means[m] for m in chosen[name]}, ax=panel, styles={short[m]: looks[m] for m in chosen[name]}
            )
            panel.set_title(title)
    print(plot.save(figure, OUT, dpi=130))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
