"""The report folder: an offline page, the same figures as PNG, and all numbers as CSV."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from string import Template

from joblib import Parallel, delayed
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from diffode import plot, targets
from diffode.errors import ArgumentError, DiffodeError
from diffode.extensions import import_extension
from diffode.fields.own import FieldText
from diffode.fields.problem_text import parts_of
from diffode.output_files import unwritable
from diffode.plot import Look
from diffode.studies import figures
from diffode.studies.exported import write_csv
from diffode.studies.further import further, own_costs
from diffode.studies.guided_ranking import HEADER, by_weight, sentence
from diffode.studies.problem import bridge_of
from diffode.studies.ranking import LEVELS, Curve, budgets, curves, prices, splits, standings
from diffode.studies.report_content import KINDS, check_report, figure_names, made_of
from diffode.studies.report_folder import FIGURES, PAGE, TABLE, is_current, new_report, say_made_of
from diffode.studies.store import Result
from diffode.studies.suite import Suite

_TEMPLATE = FilePath(__file__).parent / "page.html"
#: NFE of the samples that are shown.
_SHOWN_NFE = 8
#: Dots an inch of a picture.
_DOTS = 110
#: Number of the best methods whose samples are shown.
_SHOWN_METHODS = 2
#: Number of pictures that are drawn in about the time that a process takes to start.
_PICTURES = 3
#: The metric that ranks, in words and as the label of an axis.
_MEASURES = {
    "endpoint": (
        "Mean Euclidean distance between where the solver and where the exact flow take the same start",
        "mean end-point error",
    )
}


def write_report(
    suite: Suite, results: Sequence[Result], folder: str | FilePath, *, command: str, jobs: int | None = None
) -> FilePath:
    """Write ``index.html``, ``figures/*.png`` and ``results.csv`` into a folder, and return the page.

    The new report takes the place of the old one when it is finished, see :mod:`diffode.studies.report_folder`; other files in
    the folder stay, and an old report that was made of the same is left as it is. A figure that can't be drawn is a line on the
    page.

    Args:
        suite: the suite of the results.
        results: stored results, failed ones included.
        folder: the report's folder, made if missing. Files that an earlier report has listed as its own are replaced.
        command: the command that makes this report again, shown on the page.
        jobs: processes that draw; the number of cores by default.

    Raises:
        ArgumentError: if there is nothing to report, the folder can't be written, or a file is in the way that is no report's.
    """
    if not results:
        raise ArgumentError(f"nothing is stored for suite {suite.name!r}; run it first: diffode bench {suite.name}")
    place = FilePath(folder)
    check_report(suite, place)
    content = made_of(suite, results, command)
    if is_current(place, content):
        return place / PAGE
    all_curves = curves(results)
    with new_report(place) as made:
        try:
            write_csv(results, made / TABLE)
            (made / FIGURES).mkdir()
            missing = draw_figures(all_curves, made / FIGURES, suite.imports, jobs or os.cpu_count() or 1)
            page = _page(suite, results, all_curves, made / FIGURES, missing, command)
            (made / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
            if not missing:
                say_made_of(made, content)
        except OSError as error:
            raise unwritable(place, error, "report folder") from error
    return place / PAGE


def draw_figures(all_curves: Sequence[Curve], folder: FilePath, imports: Sequence[str], jobs: int) -> dict[str, str]:
    """Draw all figures; returns the reasons for those that failed, by the names of their files."""
    styles = plot.looks(c.method for c in all_curves)
    work = {}
    for target, name in figure_names(c.target for c in all_curves).items():
        own = [c for c in all_curves if c.target == target]
        work[f"curves-{name}.png"] = delayed(_save_curves)(target, own, styles, folder / f"curves-{name}.png")
        kind = kind_of_cloud(target)
        if kind:
            work[f"{kind}-{name}.png"] = delayed(_save_samples)(kind, target, own, folder / f"{kind}-{name}.png", imports)
    try:
        reasons = Parallel(n_jobs=max(1, min(jobs, len(work) // _PICTURES)))(work.values())
    except Exception as error:  # A drawing process was killed, for instance when memory ran out.
        reasons = [f"{type(error).__name__}: {error}"] * len(work)
    # A process may have finished some figures before it was killed.
    return {name: reason for name, reason in zip(work, reasons, strict=True) if reason and not (folder / name).is_file()}


def kind_of_cloud(target: str) -> str | None:
    """The kind of a target's pictures: clouds, images, or None."""
    # Pictures show the exact law beside a solver's samples, and a field may have none.
    if FieldText.names(target) or bridge_of(target) is not None:
        return None
    try:
        data = parts_of(target)[0]
        return "clouds" if targets.get(data).dim == 2 else "images" if targets.card(data).shape else None
    except DiffodeError:  # The target of stored results may no longer exist.
        return None


def _save_curves(target: str, own: Sequence[Curve], styles: Mapping[str, Look], file: FilePath) -> str | None:
    return _drawn(lambda: figures.draw_curves(target, own, styles), file)


def _save_samples(kind: str, target: str, own: Sequence[Curve], file: FilePath, imports: Sequence[str]) -> str | None:
    def draw() -> Figure:
        for module in imports:
            import_extension(module)
        path = own[0].path
        paint = figures.draw_clouds if kind == "clouds" else figures.draw_images
        return paint(target, path, _shown_solvers(own, path), _SHOWN_NFE)

    return _drawn(draw, file)


def _drawn(draw: Callable[[], Figure], file: FilePath) -> str | None:
    """Draw and write a figure; returns the reason if that fails, since a report needs its numbers more than a picture."""
    try:
        plot.save(draw(), file, dpi=_DOTS, tight=True)
    except Exception as error:  # A solver, a target or a field of anyone's may raise anything.
        return f"{type(error).__name__}: {error}"
    return None


def _shown_solvers(own: Sequence[Curve], path: str) -> list[str]:
    """DDIM, or else Euler, which everybody knows, then the best methods at the shown NFE, all on the Karras grid."""
    here = [c for c in own if c.path == path and c.grid == "karras"]
    known = [s for s in ("ddim", "euler") if any(c.solver == s for c in here)][:1]
    best = [s.method for s in standings(here, _SHOWN_NFE) if s.method not in known]
    return known + best[:_SHOWN_METHODS]


def _page(
    suite: Suite,
    results: Sequence[Result],
    all_curves: Sequence[Curve],
    folder: FilePath,
    missing: Mapping[str, str],
    command: str,
) -> str:
    good = [r for r in results if r.status == "ok"]
    failed = [r for r in results if r.status != "ok"]
    solver_names = list(dict.fromkeys(c.solver for c in all_curves))
    data = {
        "curves": [
            {
                "target": c.target,
                "path": c.path,
                "grid": c.grid,
                "solver": c.solver,
                "nfe": c.nfe,
                "error": c.error,
                "floor": c.floor,
            }
            for c in all_curves
        ],
        "looks": figures.page_looks(solver_names),
        "budgets": budgets(all_curves),
    }
    problems = {c.problem for c in all_curves}
    counts = (
        f"{len(good):,} runs: {len(solver_names)} solvers on {len({t for t, _ in problems})} targets and "
        f"{len({p for _, p in problems})} paths, {sum(r.seconds or 0 for r in good):.0f} s of solving; "
        f"{len(failed)} of {len(results):,} results are failures."
    )
    metric = suite.cells[0].metrics[0]
    measure, label = _MEASURES.get(metric, (f"The metric {metric}, the first of the suite", metric))
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(suite.name),
        summary=html.escape(suite.summary),
        counts=html.escape(counts),
        measure=html.escape(measure),
        label=html.escape(label),
        plotly=get_plotlyjs(),
        # "</" would end the script element, and "<!--" would change how it is read, anywhere inside it.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        standings="".join(_standings_table(all_curves, nfe) for nfe in budgets(all_curves)),
        prices=_prices_table(all_curves),
        split=_split_table(results) + _guided_table(all_curves),
        further=_further_tables(results),
        costs=_costs_table(results),
        samples=_pictures(folder, missing, tuple(f"{kind}-" for kind in KINDS))
        or "<p>No two-dimensional or image targets in this suite.</p>",
        figures=_pictures(folder, missing, ("curves-",)),
        failures=_failures(failed),
        command=html.escape(command),
        environment=_environment(results),
    )


def _standings_table(all_curves: Sequence[Curve], nfe: int) -> str:
    rows = [[s.method, f"{s.error:.2e}", f"{s.wins}/{s.problems}"] for s in standings(all_curves, nfe)[:6]]
    return f"<div><h3>NFE {nfe}</h3>{table(['solver', 'error', 'best on'], rows, best_first=True)}</div>" if rows else ""


def _split_table(results: Sequence[Result]) -> str:
    """The errors of solver and model, for trained networks whose exact field is known."""
    rows = [
        [s.target, s.path, str(s.nfe), s.method, f"{s.solver:.2e}", f"{s.model:.2e}", f"{s.total:.2e}"] for s in splits(results)
    ]
    if not rows:
        return ""
    note = (
        "<h2>Solver's error and model's error</h2><p>The best solver at each budget: its distance to the network's own flow, "
        "the network's flow to the exact one, and the solver's end points to the exact flow, in units of the scale.</p>"
    )
    return note + table(["network", "path", "NFE", "best solver", "solver's error", "model's error", "together"], rows)


def _guided_table(all_curves: Sequence[Curve]) -> str:
    """The best solvers at each weight of guidance and each budget."""
    found = by_weight(all_curves)
    if not found:
        return ""
    note = (
        "<h2>Guidance: the best solver by weight</h2><p>Geometric mean of the error over the guided problems, in units of the "
        f"scale. A guided evaluation makes two network calls, at weight 1 one. <b>{html.escape(sentence(found))}</b></p>"
    )
    return note + table(HEADER, [one.row for one in found])


def _further_tables(results: Sequence[Result]) -> str:
    """The metrics that do not rank, folded."""
    parts = []
    for one in further(results):
        rows = [[method, *("" if value is None else f"{value:.3g}" for value in values)] for method, values in one.rows]
        parts.append(
            f"<div><h3>{html.escape(one.metric)} on {html.escape(one.target)}, {html.escape(one.path)}</h3>"
            f"{table(['solver', *(f'NFE {n}' for n in one.nfe)], rows)}<p class=note>floor {one.floor:.3g}</p></div>"
        )
    if not parts:
        return ""
    note = (
        "<h2>Other metrics</h2><p class=note>In their own units, by target. The floor is what an exact sampler with as many "
        "points has. Solvers that draw noise, and maps that do so beyond one jump, follow no flow and are found here alone.</p>"
    )
    return f"{note}<details><summary>Show the tables</summary><div class=tables>{''.join(parts)}</div></details>"


def _costs_table(results: Sequence[Result]) -> str:
    """What trained solvers cost."""
    rows = [
        [
            one.solver, one.target, one.asks,
            "not counted" if one.cost.multiply_adds is None else f"{one.cost.multiply_adds:,}",
            "-" if one.cost.training is None else f"{one.cost.training:.0f} s",
        ]
        for one in own_costs(results)
    ]  # fmt: skip
    if not rows:
        return ""
    note = (
        "<h2>What trained solvers cost</h2><p class=note>An evaluation asks the field, or a network of the solver's own in its "
        "place; products (multiply-adds) are those of its own networks, for one row and one evaluation. All other solvers have "
        "neither.</p>"
    )
    return note + table(["solver", "target", "an evaluation asks", "own products", "training took"], rows)


def _prices_table(all_curves: Sequence[Curve]) -> str:
    by_level = [{p.method: p for p in prices(all_curves, level)} for level in LEVELS]
    rows = []
    for method in by_level[-1]:
        row = [method]
        for level in by_level:
            row += [
                "-" if math.isinf(level[method].nfe) else f"{level[method].nfe:.1f}",
                f"{level[method].reached}/{level[method].problems}",
            ]
        rows.append(row)
    return table(["solver", *(h for level in LEVELS for h in (f"NFE to {level:g}", "reached"))], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], best_first: bool = False) -> str:
    """An HTML table of texts; ``best_first`` marks the first row."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(f"<td{' class=text' if len(cell) > 60 else ''}>{html.escape(cell)}</td>" for cell in row)
        body += f"<tr{' class=best' if best_first and i == 0 else ''}>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _pictures(folder: FilePath, missing: Mapping[str, str], prefixes: tuple[str, ...]) -> str:
    """The PNG files with given prefixes, inside the page, and a line for each that could not be drawn."""
    parts = []
    for file in sorted(f for f in folder.glob("*.png") if f.name.startswith(prefixes)):
        name = html.escape(file.stem.partition("-")[2])
        encoded = base64.b64encode(file.read_bytes()).decode()
        parts.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{encoded}"><figcaption>{name}</figcaption></figure>'
        )
    for file_name, reason in missing.items():
        if file_name.startswith(prefixes):
            parts.append(f"<p>Figure {html.escape(file_name)} could not be drawn: {html.escape(reason[:500])}</p>")
    return "".join(parts)


def _failures(failed: Sequence[Result]) -> str:
    if not failed:
        return "<p>None.</p>"
    rows = [
        [r.cell.target, r.cell.path, r.cell.grid, r.cell.solver, str(r.cell.nfe), str(r.cell.seed), r.reason] for r in failed
    ]
    note = "" if len(rows) <= 200 else f"<p>The first 200 of {len(rows)}; all are in results.csv.</p>"
    return note + table(["target", "path", "grid", "solver", "NFE", "seed", "reason"], rows[:200])


def _environment(results: Sequence[Result]) -> str:
    """All combinations of versions and hardware in the results."""
    seen: dict[str, int] = {}
    for r in results:
        described = ", ".join(f"{k} {v}" for k, v in (r.environment or {}).items()) + f", {r.threads} thread(s) a process"
        seen[described] = seen.get(described, 0) + 1
    return table(["versions and hardware", "results"], [[text, str(count)] for text, count in seen.items()])
