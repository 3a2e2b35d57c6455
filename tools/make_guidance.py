"""Write docs/guidance.md and its pictures: samplers and laws under guidance, on exact fields: ``make guidance``.

The page is tools/guidance_page.md with numbers of the suite ``guidance`` and of exact laws; a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

import diffode
from diffode import metrics, plot
from diffode.fields import GuidedField
from diffode.metrics import Outcome, tilted_law
from diffode.plot.appearance import DASHES, PALETTE
from diffode.solvers.solution import Solution
from diffode.studies import Store, load_suite, run_suite
from diffode.studies.guided_ranking import by_weight, sentence
from diffode.studies.problem import field_of, starts
from diffode.studies.ranking import Curve, curves, error_within
from diffode.tableau import Tableau
from diffode.targets import GaussianMixture
from diffode.verify import guided_law

OUT = Path(__file__).parent.parent / "docs"
WEIGHTS = (1.0, 2.0, 4.0, 7.5, 15.0)
USUAL = ("ddim", "edm_heun", "dpmpp:order=2", "dpmpp:order=3", "ipndm:order=3", "unipc:order=3", "lms:order=4")
#: Guided targets for which a table is trained.
TRAINED = ("ring8 guided label=three,weight=7.5", "moons guided label=upper,weight=7.5")
#: Points of the exact guided flow on ring8.
POINTS = 1500
#: Guidance of ring8 whose laws are measured: a name, and the arguments of ``guide``.
KINDS = (
    ("weight 1", 1.0, {}),
    ("weight 2", 2.0, {}),
    ("weight 4", 4.0, {}),
    ("weight 7.5", 7.5, {}),
    ("weight 15", 15.0, {}),
    ("weight 7.5, interval 0.3 to 2", 7.5, {"interval": (0.3, 2.0)}),
    ("weight 7.5, interval 2 to 80", 7.5, {"interval": (2.0, 80.0)}),
    ("weight 7.5, rescaled, phi 0.7", 7.5, {"kind": "rescaled"}),
    ("weight 7.5, projected, eta 0", 7.5, {"kind": "projected"}),
    ("weight 7.5, projected, eta 0, norm 1", 7.5, {"kind": "projected", "norm": 1.0}),
    ("weight 2, auto, blur 0.3", 2.0, {"kind": "auto", "blur": 0.3}),
)


def number(value: float) -> str:
    text = f"{value:.2g}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def table_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def suite_curves() -> list[Curve]:
    """The curves of the suite ``guidance``, computed anew."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.sqlite"
        summary = run_suite(load_suite("guidance"), file)
        with Store(file) as store:
            return curves(store.get(summary.cells))


def usual(all_curves: Sequence[Curve]) -> str:
    """Geometric mean errors of eight evaluations on karras by weight."""
    rows = []
    for solver in USUAL:
        row = [f"`{solver}`"]
        for weight in WEIGHTS:
            own = [
                c for c in all_curves if c.solver == solver and c.grid == "karras" and c.target.endswith(f"weight={weight!r}")
            ]
            errors = [error_within(c, 8 if weight == 1 else 16) for c in own]
            row.append(number(float(np.exp(np.mean(np.log([e for e in errors if e is not None]))))))
        rows.append(row)
    return table_of(["solver", *(f"weight {w:g}" for w in WEIGHTS)], rows)


def standings(all_curves: Sequence[Curve]) -> str:
    rows = [
        [f"{one.weight:g}", str(one.evaluations), *(f"`{s.method}` {number(s.error)}" for s in one.best[:3])]
        for one in by_weight(all_curves)
        if one.evaluations in (8, 16, 32)
    ]
    return table_of(["weight", "evaluations", "best", "second", "third"], rows)


def trained(all_curves: Sequence[Curve]) -> str:
    """Mean end-point errors with eight evaluations at weight 7.5, of the suite's best run and of a trained jump table."""
    rows = []
    for text in TRAINED:
        own = [c for c in all_curves if c.target == text]
        best = min(own, key=lambda c: error_within(c, 16) or np.inf)
        field, x = field_of(text, "edm"), starts(text, "edm", 0, 64, 80.0)
        table = diffode.learned.train("jump", text, 8, seed=0)
        run = diffode.solve(field, x, solver=table.solver, nfe=table.nfe * field.calls)
        ends = diffode.reference(field, x, float(run.times[0]), float(run.times[-1]), 1e-8).x
        error = float((run.x - ends).norm(dim=1).mean()) / field.scale
        rows.append([f"`{text}`", f"`{best.method}` {number(error_within(best, 16) or np.inf)}", number(error), str(run.nfe)])
    return table_of(["problem", "best of the suite", "jump table, trained", "NFE"], rows)


def gaussians(weight: float) -> GuidedField:
    narrow, wide = (
        diffode.exact_field(GaussianMixture([1.0], [[0.0]], [c]), "edm:sigma_min=1e-4,sigma_max=1e4") for c in (1.0, 2.0)
    )
    return diffode.guide(narrow, wide, weight)


def tableau(solver: str, field: GuidedField, steps: int) -> Tableau:
    path = field.require_path("a table")
    return diffode.solvers.table_solver(solver).tableau(path, "log_snr", steps)


def laws() -> str:
    """Variances of two Gaussians under guidance: three closed forms, and what solvers leave."""
    rows = []
    for weight in (1.0, 2.0, 3.0, 7.5):
        field = gaussians(weight)
        flow, sde, tilted = 2 ** (1 - weight), (2 - 2 ** (2 - 2 * weight)) / (2 * weight - 1), 2 / (weight + 1)
        row = [f"{weight:g}", *(f"{value:.4f}" for value in (flow, sde, tilted))]
        for solver, steps in (("ddim", 50), ("ddim", 1000), ("edm_heun", 1000), ("ddpm", 50), ("ddpm", 1000)):
            row.append(f"{float(guided_law(tableau(solver, field, steps), field).sampled.variance):.4f}")
        rows.append(row)
    header = ["weight", "flow", "SDE", "tilted", "DDIM, 50", "DDIM, 1000", "Heun, 1000", "DDPM, 50", "DDPM, 1000"]
    return table_of(header, rows)


def plus_plus() -> str:
    """Variances that CFG++ with lambda = 0.5 leaves, by the number of steps."""
    row, weights = [], []
    counts = (25, 50, 100, 200, 400)
    for steps in counts:
        plain = gaussians(1.0)
        made = tableau("ddim", plain, steps)
        field = diffode.guide(*plain.members, 0.5, kind="cfg++", grid=made.output_times)
        weights.append(f"{float(field.weight.at(1e4)):.2g}")
        row.append(f"{float(guided_law(made, field).sampled.variance):.3g}")
    return table_of(["steps", *map(str, counts)], [["weight of a step", *weights], ["variance", *row]])


def ring(weight: float, options: dict[str, object]) -> GuidedField:
    target = diffode.targets.get("ring8")
    one, other = diffode.exact_field(target.given("three"), "edm"), diffode.exact_field(target, "edm")
    return diffode.guide(one, None if options.get("kind") == "auto" else other, weight, **options)


def flowed(field: GuidedField) -> Outcome:
    """The exact flow of points of the conditional law at the first time, as if a solver had found it."""
    x = field.prior(POINTS, generator=0)
    ends = diffode.reference(field, x, 80.0, 0.002, 1e-7).x
    times = torch.tensor([80.0, 0.002], dtype=torch.float64)
    return Outcome(field, x, Solution(ends, None, times, 0, torch.zeros(len(x), dtype=torch.int8), "", None))


def of_kinds() -> tuple[str, dict[str, torch.Tensor]]:
    """What the exact guided flow makes of ring8, and its end points."""
    rows, ends = [], {}
    for name, weight, options in KINDS:
        run = flowed(ring(weight, options))
        ends[name] = run.end
        found = (metrics.measure(spec, run).value for spec in ("mode_weights", "shrinkage:within=true", "moments"))
        rows.append([name, *map(number, found)])
    return table_of(["exact flow with", "mode weights", "shrinkage", "moments (W2)"], rows), ends


def draw_ring(ends: dict[str, torch.Tensor]) -> None:
    law = ring(1.0, {}).truth
    shown = ("weight 1", "weight 2", "weight 7.5", "weight 15", "weight 7.5, interval 0.3 to 2", "weight 7.5, projected, eta 0")
    with plot.style():
        figure, panels = plt.subplots(2, 3, figsize=(10.5, 7), layout="constrained")
        for panel, name in zip(panels.flat, shown, strict=True):
            plot.density(law, 0.002, ax=panel)
            plot.cloud(ends[name], ax=panel, window=plot.window_of(ends["weight 1"], law))
            panel.set_title(name)
    plot.save(figure, OUT / "guidance_ring.png", dpi=100)


def draw_laws() -> None:
    weights = np.linspace(1, 8, 57)
    lines = {
        "guided flow, 2^(1-w)": 2 ** (1 - weights),
        "guided SDE": (2 - 2 ** (2 - 2 * weights)) / (2 * weights - 1),
        "tilted, 2/(w+1)": 2 / (weights + 1),
    }
    with plot.style():
        figure, panel = plt.subplots(figsize=(6.4, 4), layout="constrained")
        for (name, values), colour, dash in zip(lines.items(), PALETTE, DASHES, strict=False):
            panel.semilogy(weights, values, color=colour, ls=dash, label=name)
        for solver, marker in (("ddim", "o"), ("ddpm", "s")):
            for steps, face in ((50, "none"), (1000, "0.2")):
                at = np.arange(1, 9)
                fields = [gaussians(float(w)) for w in at]
                found = [float(guided_law(tableau(solver, f, steps), f).sampled.variance) for f in fields]
                label = f"{solver.upper()}, {steps} steps"
                panel.plot(at, found, marker, mfc=face, mec="0.2", ls="", ms=5, label=label)
        panel.set(xlabel="weight", ylabel="variance", title="N(0, 1) guided against N(0, 2)")
        panel.legend()
    plot.save(figure, OUT / "guidance_laws.png", dpi=110)


def main() -> None:
    all_curves = suite_curves()
    kinds, ends = of_kinds()
    draw_ring(ends)
    draw_laws()
    field = ring(15.0, {})
    tilted, conditional = tilted_law(field, 0.002), tilted_law(ring(1.0, {}), 0.002)
    distance = number(float((tilted.mean - conditional.mean).norm()))
    text = (Path(__file__).parent / "guidance_page.md").read_text(encoding="utf-8")
    page = Template(text).substitute(
        answer=sentence(by_weight(all_curves)), standings=standings(all_curves), usual=usual(all_curves),
        trained=trained(all_curves), laws=laws(), kinds=kinds, plus_plus=plus_plus(), tilted_distance=distance,
    )  # fmt: skip
    (OUT / "guidance.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
