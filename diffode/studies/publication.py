"""A suite's ranking for papers: tables as LaTeX, Markdown and CSV, and curves as PDF, SVG or PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Literal, get_args

from matplotlib.figure import Figure

from diffode import plot, solvers
from diffode.errors import ArgumentError, suggestion
from diffode.output_files import unwritable, write_whole
from diffode.studies.answer import counted, plain
from diffode.studies.paste import method_parts
from diffode.studies.ranking import Curve, best_methods, budgets, in_units, is_length, mean_curves, standings, unranked
from diffode.studies.recommendation import recommend
from diffode.studies.report_content import figure_names

#: The form of a file.
Format = Literal["pdf", "svg", "png", "csv", "latex", "markdown"]
#: Formats of pictures.
_PICTURES = ("pdf", "svg", "png")
#: Number of methods at each budget that a table and a picture show of many; all of a few are shown.
_FIRST, _FEW = 3, 8
#: Characters that LaTeX reads as commands, with what prints them.
_LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def publish(
    name: str,
    curves: Sequence[Curve],
    folder: str | FilePath,
    formats: Sequence[str],
    *,
    command: str,
    metric: str = "endpoint",
    shown: Sequence[str] = (),
) -> list[FilePath]:
    """Write a suite's ranking and curves in some formats, and return the files.

    Pictures are ``curves.pdf`` (the geometric mean over all problems) and ``curves-TARGET.pdf`` for every target; tables are
    ``ranking.tex``, ``ranking.md`` and ``ranking.csv``. Each file is replaced whole.

    Args:
        name: name of the suite, for captions.
        curves: its curves.
        folder: folder of the files, made if missing.
        formats: ``pdf``, ``svg``, ``png``, ``csv``, ``latex``, ``markdown``.
        command: the command that makes the results again, named in captions.
        metric: the metric of the errors, for captions.
        shown: methods, or solvers on all their grids, that pictures and the LaTeX and Markdown tables show beside the best:
            these show methods that are among the first three at some budget, and all if there are eight at most.

    Raises:
        ArgumentError: for another format, a method to show that has no result, without curves, if no method has a result on
            all problems, so that the ranking is empty and nothing chooses what is drawn, or if the folder can't be written.
    """
    for one in formats:
        if one not in get_args(Format):
            raise ArgumentError(f"format must be one of {', '.join(get_args(Format))}, got {one!r:.60}")
    if not curves:
        raise ArgumentError(f"suite {name!r} has no result that could be ranked; {command} makes them, or says why it can't")
    if reason := unranked(curves):
        raise ArgumentError(_advised(name, reason))
    methods = chosen_methods(curves, shown)
    place = FilePath(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(place, error, "folder of the exports") from error
    caption = _caption(name, curves, metric, len(methods))
    tables: Mapping[str, tuple[str, Callable[[], str]]] = {
        "csv": ("ranking.csv", lambda: as_csv(curves)),
        "latex": ("ranking.tex", lambda: as_latex(curves, methods, caption, command)),
        "markdown": ("ranking.md", lambda: as_markdown(curves, methods, caption, command)),
    }
    made = []
    for one in dict.fromkeys(formats):
        if one in _PICTURES:
            drawn = _draw(curves, methods, place, one, metric)
            if not drawn:
                raise ArgumentError(
                    _advised(name, "no method has the same number of evaluations on all problems of any target")
                )
            made += drawn
        else:
            file, text = tables[one]
            write_whole(place / file, text().encode("utf-8", "backslashreplace"), "table")
            made.append(place / file)
    return made


def _advised(name: str, reason: str) -> str:
    """The message of a ranking, or of pictures, that would be empty."""
    return (
        f"suite {name!r}: {reason}. Give all its studies the same solvers, grids and nfe; or write the results themselves, "
        "diffode export SUITE --csv FILE, or the page with a plot of each target, diffode report SUITE without --format"
    )


def chosen_methods(curves: Sequence[Curve], shown: Sequence[str] = ()) -> list[str]:
    """The methods that pictures and tables show: all of a few, else the best at some budget, and those that are asked for.

    Raises:
        ArgumentError: if a solver or method that is asked for has no curve.
    """
    known = list(dict.fromkeys(c.method for c in curves))
    best = best_methods(curves, _FIRST)
    found = [*best, *(m for m in known if len(known) <= _FEW and m not in best)]
    for asked in shown:
        own = [m for m in known if _is_meant(m, asked)]
        if not own:
            names = list(dict.fromkeys(method_parts(m)[0] for m in known))
            raise ArgumentError(f"nothing of solver {asked!r} is stored{suggestion(asked, names)}; solvers: {', '.join(names)}")
        found += [m for m in own if m not in found]
    return found


def _is_meant(method: str, asked: str) -> bool:
    """Whether a text asks for a method: the method, its solver in any spelling, or the name of a family."""
    solver, grid = method_parts(method)
    if asked in (method, solver, solver.partition(":")[0]):
        return True
    wanted, between, on = asked.partition(" @ ")
    return solvers.plain_spec(solver) == solvers.plain_spec(wanted) and (not between or on == grid)


def _draw(curves: Sequence[Curve], methods: Sequence[str], place: FilePath, ending: str, metric: str) -> list[FilePath]:
    styles = plot.looks(methods)
    label = "mean end-point error / scale" if metric == "endpoint" else f"{metric} / scale" if is_length(metric) else metric
    means = mean_curves(curves)
    known = [m for m in methods if m in means]
    drawn: dict[str, dict[str, tuple[list[int], list[float]]]] = {"curves": {m: means[m] for m in known}} if known else {}
    for target, name in figure_names(c.target for c in curves).items():
        of_target = mean_curves([c for c in curves if c.target == target])
        drawn[f"curves-{name}"] = {m: of_target[m] for m in methods if m in of_target}
    made = []
    for name, whole in drawn.items():
        # A jump that is exact, as on a single Gaussian, costs no evaluation, and an axis of NFE has no place for it.
        points = {m: kept for m, (nfe, errors) in whole.items() if (kept := _spent(nfe, errors))[0]}
        if not points:
            continue
        with plot.style():
            figure = Figure(figsize=plot.SIZES["page"], layout="constrained")
            plot.error_curves(points, ax=figure.subplots(), styles=styles, ylabel=label)
        made.append(plot.save(figure, place / f"{name}.{ending}"))
    return made


def _spent(nfe: Sequence[int], errors: Sequence[float]) -> tuple[list[int], list[float]]:
    """The points of a curve that cost an evaluation."""
    some = [(n, e) for n, e in zip(nfe, errors, strict=True) if n > 0]
    return [n for n, _ in some], [e for _, e in some]


def _caption(name: str, curves: Sequence[Curve], metric: str, shown: int) -> str:
    problems, targets, paths = (
        counted(len({getattr(c, what) for c in curves}), what) for what in ("problem", "target", "path")
    )
    count = len({c.method for c in curves})
    left_out = "" if shown == count else f" Shown are {shown} of {count} methods, the best at some number of evaluations first."
    what = "Mean end-point error" if metric == "endpoint" else f"Metric {metric}"
    return (
        f"{what}{in_units(metric)}, geometric mean over {problems} ({targets}, {paths}) "
        f"of the suite {name}, by number of evaluations. The best at each is bold.{left_out}"
    )


def _ranked(curves: Sequence[Curve], methods: Sequence[str]) -> tuple[list[int], list[tuple[str, list[tuple[str, bool]]]]]:
    """Budgets, and by method an error at each with whether it is the best."""
    run = budgets(curves)
    by_budget = [{s.method: s.error for s in standings(curves, nfe)} for nfe in run]
    rows = []
    for method in methods:
        cells = [
            (plain(errors[method], 2), errors[method] == min(errors.values())) if method in errors else ("", False)
            for errors in by_budget
        ]
        rows.append((method, cells))
    return run, rows


def as_markdown(curves: Sequence[Curve], methods: Sequence[str], caption: str, command: str) -> str:
    """The ranking as a table in Markdown, with its caption and the command that makes it again."""
    run, rows = _ranked(curves, methods)
    lines = [f"| solver | {' | '.join(f'NFE {n}' for n in run)} |", f"|---|{'---:|' * len(run)}"]
    for method, cells in rows:
        shown = (f"**{text}**" if best else text for text, best in cells)
        lines.append(f"| `{method.replace('|', chr(92) + '|')}` | {' | '.join(shown)} |")
    return "\n".join(["", *lines, "", f"{caption} Made by `{command}`.", ""]).lstrip("\n")


def as_latex(curves: Sequence[Curve], methods: Sequence[str], caption: str, command: str) -> str:
    """The ranking as a LaTeX table, which needs the package booktabs."""
    run, rows = _ranked(curves, methods)
    lines = [
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{in_latex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(run)}}}", r"\toprule", f"NFE & {' & '.join(map(str, run))} \\\\", r"\midrule",
    ]  # fmt: skip
    for method, cells in rows:
        shown = (rf"\textbf{{{text}}}" if best else text for text, best in cells)
        lines.append(rf"\texttt{{{in_latex(method)}}} & {' & '.join(shown)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", f"% made by: {' '.join(command.split())}", ""])


def in_latex(text: str) -> str:
    """A text as LaTeX prints it.

    >>> print(in_latex("a_b & 5 %"))
    a\\_b \\& 5 \\%
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def as_csv(curves: Sequence[Curve]) -> str:
    """The ranking as CSV: a line for each budget and method, with rank, error and all that says how sure it is."""
    text = io.StringIO(newline="")
    writer = None
    for nfe in budgets(curves):
        try:
            ranked = recommend(curves, nfe)
        except ArgumentError:  # No method has a result within this budget on all problems.
            continue
        for rank, advice in enumerate(ranked, start=1):
            solver, grid = method_parts(advice.method)
            row = {"nfe": nfe, "rank": rank, "solver": solver, "grid": grid, **asdict(advice)}
            if writer is None:
                writer = csv.DictWriter(text, list(row))
                writer.writeheader()
            writer.writerow(row)
    return text.getvalue()
