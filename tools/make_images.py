"""Write docs/images.md and its pictures: solvers on the network for Fashion-MNIST: ``python tools/make_images.py``.

The page is tools/images_page.md with numbers of the suite ``images``. ``--samples 10000`` (``make images``) takes so many
samples for its laws; ``--results FILE`` keeps results there and takes what it holds.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

from diffode import plot
from diffode.errors import FieldError
from diffode.fields import estimate_statistics, trained
from diffode.metrics.frechet import SHIPPED, shipped
from diffode.studies import Store, figures, load_suite, run_suite
from diffode.studies.cell import Result

HERE = Path(__file__).parent
OUT = HERE.parent / "docs"
NETWORK, MIXTURE = "trained:fashion-unet", "fashion-mfa"
WEIGHTS = HERE.parent / "diffode" / "fields" / "weights" / "fashion-unet.safetensors"
SHOWN = (
    "ddim", "dpmpp:order=2", "ipndm:order=3 @ karras:rho=3", "ipndm:order=3,jump=auto @ karras:rho=3",
    "unipc:order=2,chart=gaussian_angle,jump=auto @ karras:rho=3", "universal", "universal:chart=gaussian",
)  # fmt: skip
BUDGETS = (2, 4, 8, 20)


def kind_of(solver: str) -> str:
    """What a solver starts from and what of it was learned."""
    if solver.startswith("universal"):
        return "universal, Gaussian chart" if "chart=gaussian" in solver else "universal"
    return "Gaussian chart" if "chart=gaussian" in solver else "jump" if "jump=" in solver else "hand-made"


def measured(samples: int, file: Path) -> list[Result]:
    """The results of the suite with so many samples for its laws."""
    suite = load_suite("images")
    cells = tuple(replace(cell, points=samples) if cell.metrics == ("frechet",) else cell for cell in suite.cells)
    summary = run_suite(replace(suite, cells=cells), file, progress=lambda done, of: print(f"{done}/{of}", flush=True))
    with Store(file) as store:
        found = store.get(summary.cells)
    for result in found:
        if result.status != "ok":
            print(f"failed: {result.cell.target} {result.cell.method} {result.cell.nfe}: {result.reason}")
    return found


def errors(results: Sequence[Result], target: str, metric: str) -> dict[str, dict[int, float]]:
    """Values by method and budget; those of ``endpoint`` in units of the scale."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        value = result.value(metric)
        # A budget that a solver can't use up whole is another one.
        if result.cell.target == target and value is not None and result.nfe_counted == result.cell.nfe:
            unit = float(result.scale or 1) if metric == "endpoint" else 1.0
            found.setdefault(result.cell.method, {})[result.cell.nfe] = value / unit
    return found


def table_of(found: dict[str, dict[int, float]], quote: str = "`") -> str:
    """A row for each method, its name in quotes, the best of a budget in bold."""
    budgets = sorted({nfe for row in found.values() for nfe in row})
    best = {nfe: min(row.get(nfe, math.inf) for row in found.values()) for nfe in budgets}
    lines = [["", *(f"NFE {nfe}" for nfe in budgets)], ["---"] * (len(budgets) + 1)]
    for method, row in found.items():
        cells = [
            "" if nfe not in row else f"**{row[nfe]:.3g}**" if row[nfe] == best[nfe] else f"{row[nfe]:.3g}" for nfe in budgets
        ]
        lines.append([f"{quote}{method}{quote}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gains(results: Sequence[Result]) -> str:
    """The best of each kind of solver against the best hand-made one, on the network and on the mixture."""
    lines = [["", "field", *(f"NFE {nfe}" for nfe in (2, 4, 6, 8, 10, 20))], ["---"] * 8]
    for kind in ("jump", "Gaussian chart", "universal", "universal, Gaussian chart"):
        for target, name in (
            (NETWORK, "network"),
            (f"{NETWORK},statistics=scale", "network, scale alone"),
            (MIXTURE, "mixture"),
        ):
            plain, own = errors(results, target.partition(",")[0], "endpoint"), errors(results, target, "endpoint")
            row = []
            for nfe in (2, 4, 6, 8, 10, 20):
                hand = [v[nfe] for method, v in plain.items() if kind_of(method) == "hand-made" and nfe in v]
                other = [v[nfe] for method, v in own.items() if kind_of(method) == kind and nfe in v]
                row.append(f"{min(hand) / min(other):.2f}" if hand and other else "")
            if any(row):
                lines.append([kind, name, *row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def trainings(results: Sequence[Result], field: str) -> str:
    """What was trained for the network or for the mixture, on one of the two, beside the best hand-made runs."""
    rows = json.loads((OUT / "images_learned.json").read_text(encoding="utf-8"))
    found = errors(results, {"network": NETWORK, "mixture": MIXTURE}[field], "endpoint")
    budgets = sorted({row["nfe"] for row in rows})
    table: dict[str, dict[int, float]] = {}
    for kind, name in (("hand-made", "best hand-made"), ("jump", "best after a jump")):
        own = [values for method, values in found.items() if kind_of(method) == kind]
        table[name] = {nfe: min(values[nfe] for values in own if nfe in values) for nfe in budgets}
    for row in rows:
        table.setdefault(row["name"], {})[row["nfe"]] = row[field]
    return table_of(table, "")


def levels() -> str:
    """Loss and distance to the exact denoiser of the points by noise level."""
    facts = trained("fashion-unet").facts
    rows = [["noise level/scale", "test loss", "distance to the exact denoiser"], ["---"] * 3]
    for (level, loss), (_, error) in zip(facts["losses"], facts["errors"], strict=True):
        rows.append([f"{level:.3g}", f"{loss:.3g}", f"{error:.3g}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def probing() -> str:
    """What an estimate of the statistics from the network's answers says."""
    try:
        found = estimate_statistics(trained("fashion-unet"), "low_rank", rank=32)
    except FieldError as error:
        return (
            f"`estimate_statistics` refuses: {error}. What the network has learned of the data's covariance is smaller at high "
            "noise than the errors of its answers, which the loss hardly sees."
        )
    true = trained("fashion-unet").statistics
    return f"{found}; the largest variances are off by {float((found.variances[:8] / true.variances[:8] - 1).abs().max()):.0%}."


def draw(methods: Sequence[str], file: Path) -> None:
    """The picture of samples by solver and budget."""
    plot.save(figures.draw_images(NETWORK, "edm", methods, BUDGETS), file, dpi=60, tight=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000, help="samples of a law")
    parser.add_argument("--results", type=Path, help="file in which results are kept")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measured(chosen.samples, chosen.results or Path(folder) / "results.sqlite")
    field, seen = trained("fashion-unet"), shipped()
    coupled = [r for r in results if r.cell.metrics == ("endpoint",) and r.cell.target == NETWORK]
    page = Template((HERE / "images_page.md").read_text(encoding="utf-8")).substitute(
        parameters=f"{sum(p.numel() for p in field.denoiser.parameters()):,}",
        size=f"{WEIGHTS.stat().st_size / 2**20:.1f}", steps=f"{field.facts['steps']:,}", rows=field.facts["rows"],
        accuracy=f"{seen.facts['accuracy']:.1%}", classifier_size=f"{SHIPPED.stat().st_size / 2**20:.1f}", levels=levels(),
        coupled_points=coupled[0].cell.points,
        floor=f"{max(m.floor for r in coupled for m in r.measurements) / float(coupled[0].scale or 1):.2g}",
        coupled=table_of(errors(results, NETWORK, "endpoint")),
        scale=table_of(errors(results, f"{NETWORK},statistics=scale", "endpoint")),
        probing=probing(), mixture=table_of(errors(results, MIXTURE, "endpoint")), gains=gains(results),
        samples=f"{chosen.samples:,}",
        law_floor=f"{seen.floor(chosen.samples):.2g}", halves=f"{seen.facts['halves']:.2g}",
        laws=table_of(errors(results, NETWORK, "frechet")), on_network=trainings(results, "network"),
        on_mixture=trainings(results, "mixture"),
    )  # fmt: skip
    (OUT / "images.md").write_text(page, encoding="utf-8")
    draw(SHOWN, OUT / "images_by_solver.png")
    print("written:", OUT / "images.md")


if __name__ == "__main__":
    main()
