"""The page of a report: what to take, in a sentence; the curves, in pictures that answer to a pointer and to keys; the tables.

The page is one file that needs no network: ``page.html`` with the style of ``page.css`` and the pictures of ``page.js``, which
draws SVG itself.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from string import Template

from diffode.plot.labels import MARKS
from diffode.studies import figures
from diffode.studies.answer import alike, answers, counted, in_a_sentence, plain
from diffode.studies.cell import Result
from diffode.studies.failures import grouped
from diffode.studies.further import further, own_costs
from diffode.studies.guided_ranking import HEADER, by_weight, sentence
from diffode.studies.question import tags_of
from diffode.studies.ranking import (
    Curve,
    budgets,
    curves_of_note,
    in_units,
    is_length,
    price_table,
    splits,
    standings,
    unranked,
)
from diffode.studies.report_folder import FIGURES
from diffode.studies.suite import Suite

_HERE = FilePath(__file__).parent
#: Largest number of curves on a page; of a larger suite those of the best methods are drawn.
_MOST_CURVES = 12_000
#: Largest size of all pictures inside a page, in bytes; the others are read from the folder beside it.
_MOST_PICTURES = 2_500_000
#: Digits of an error that a page draws.
_DIGITS = 4
#: The metric that ranks, in words and as the label of an axis.
_MEASURES = {
    "endpoint": (
        "Mean Euclidean distance between where the solver and where the exact flow take the same start",
        "mean end-point error",
    )
}


def page_of(
    suite: Suite,
    results: Sequence[Result],
    all_curves: Sequence[Curve],
    folder: FilePath,
    missing: Mapping[str, str],
    command: str,
) -> str:
    """The page of a report, as HTML.

    Args:
        suite: the suite of the results.
        results: all results, failed ones included.
        all_curves: their curves.
        folder: the folder of the pictures, which lies beside the page as ``figures``.
        missing: reasons for pictures that are missing, by the names of their files.
        command: the command that makes the report again.
    """
    failed = [r for r in results if r.status != "ok"]
    metric = suite.cells[0].metrics[0]
    measure, label = _MEASURES.get(metric, (f"The metric {metric}, the first of the suite", metric))
    if is_length(metric):
        measure, label = f"{measure}, in units of the target's root mean variance", f"{label} / scale"
    drawn = curves_of_note(all_curves, _MOST_CURVES)
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        title=html.escape(suite.name),
        summary=html.escape(suite.summary),
        answer=_answer(all_curves, metric),
        alike=_alike(all_curves),
        counts=html.escape(_counts(results, all_curves, len(all_curves) - len(drawn))),
        measure=html.escape(measure),
        # "</" would end the script element, and "<!--" would change how it is read, anywhere inside it.
        data=json.dumps(page_data(drawn, label), separators=(",", ":")).replace("<", "\\u003c"),
        standings="".join(_standings_table(all_curves, nfe) for nfe in budgets(all_curves)),
        prices=_prices_table(all_curves),
        split=_split_table(results) + _guided_table(all_curves),
        further=_further_tables(results),
        costs=_costs_table(results),
        samples=_pictures(folder, missing) or "<p>No two-dimensional or image targets in this suite.</p>",
        failures=_failures(failed),
        command=html.escape(command),
        environment=_environment(results),
    )


def page_data(drawn: Sequence[Curve], label: str) -> dict[str, object]:
    """What the page's script draws: names once, curves by their numbers."""
    targets, paths, methods = (list(dict.fromkeys(key(c) for c in drawn)) for key in (_target, _path, _method))
    looks = figures.page_looks(methods)
    place = [{name: i for i, name in enumerate(names)} for names in (targets, paths, methods)]
    return {
        "label": label,
        "budgets": budgets(drawn),
        "targets": targets,
        "paths": paths,
        "tags": [tags_of(target) for target in targets],
        "methods": [{"name": m, "family": _family(m), **looks[m]} for m in methods],
        "curves": [
            [place[0][c.target], place[1][c.path], place[2][c.method], c.nfe, [_short(e) for e in c.error], _short(c.floor)]
            for c in drawn
        ],
    }


def _target(c: Curve) -> str:
    return c.target


def _path(c: Curve) -> str:
    return c.path


def _method(c: Curve) -> str:
    return c.method


def _family(method: str) -> str:
    """The solver's name without its options and its grid."""
    return method.partition(" @ ")[0].partition(":")[0]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")


def _counts(results: Sequence[Result], all_curves: Sequence[Curve], left_out: int) -> str:
    good = [r for r in results if r.status == "ok"]
    problems = {c.problem for c in all_curves}
    told = (
        f"{counted(len(good), 'run')}: {counted(len({c.solver for c in all_curves}), 'solver')} on "
        f"{counted(len({t for t, _ in problems}), 'target')} and {counted(len({p for _, p in problems}), 'path')}, "
        f"{sum(r.seconds or 0 for r in good):.0f} s of solving; "
        f"{len(results) - len(good)} of {counted(len(results), 'result')} failed."
    )
    return f"{told} The plot shows the best methods; {left_out:,} curves of others are in results.csv." if left_out else told


def _answer(all_curves: Sequence[Curve], metric: str) -> str:
    """What to take at each NFE: a sentence and a table."""
    found = answers(all_curves)
    if not found:
        reason = unranked(all_curves)
        return f"<p class=answer>{reason[:1].upper()}{reason[1:]}.</p>"
    rows = [
        [
            str(a.nfe),
            a.best.method,
            plain(a.best.error, 2),
            "-" if a.best.low is None or a.best.high is None else f"{plain(a.best.low)} to {plain(a.best.high)}",
            f"{a.best.first:.0%}",
            ", ".join(m.method for m in a.as_good[:3]) + (f" and {len(a.as_good) - 3} more" if len(a.as_good) > 3 else "")
            or "none",
        ]
        for a in found
    ]
    note = (
        f"Errors are geometric means over all problems (pairs of target and path){in_units(metric)}. The next "
        "problem's interval holds the error on one more problem of this kind with a probability of 95 % (Student's t in the "
        "logarithm: the spread between problems). First: the share of resamples of the problems in which the method is first. "
        "As good: methods whose ratio to it is 1 or less in some of the middle 95 % of them."
    )
    # Weights of guidance are problems of their own, so that the answer is that for the weight that people ask about.
    said = sentence(by_weight(all_curves)) or in_a_sentence(found, metric)
    header = ["NFE", "take", "error", "next problem's", "first", "as good on other problems, perhaps"]
    shown = table(header, rows, text_columns=(1, 5), stacked=True)
    return f"<p class=answer>{html.escape(said)}</p>{shown}<p class=note>{html.escape(note)}</p>"


def _alike(all_curves: Sequence[Curve]) -> str:
    """What to take on targets of a kind, by their tags."""
    found = alike(all_curves)
    if not found:
        return ""
    rows = [
        [tag, str(count), *(f"{a.best.method} ({plain(a.best.error)})" if a else "" for a in of_tag)]
        for tag, count, of_tag in found
    ]
    header = ["targets", "number", *(f"NFE {a.nfe}" for a in found[0][2] if a)]
    columns = range(2, len(header))
    return (
        "<h2>On targets like yours</h2><p class=note>The best method on the targets with a tag, and its error.</p>"
        f"{table(header, rows, text_columns=columns)}"
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
    return table(*price_table(all_curves))


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    best_first: bool = False,
    text_columns: Sequence[int] = (),
    stacked: bool = False,
) -> str:
    """An HTML table of texts, which scrolls in a box of its own where it is wider than the page.

    ``best_first`` marks the first row, ``text_columns`` wrap, and a ``stacked`` table has its rows as blocks where there is no
    room for columns.
    """
    head = "".join(
        f"<th scope=col{' class=text' if i in text_columns else ''}>{html.escape(h)}</th>" for i, h in enumerate(header)
    )
    names = [f' data-label="{html.escape(h)}"' if stacked else "" for h in header]
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(
            f"<td{' class=text' if len(cell) > 60 or i in text_columns else ''}{names[i]}>{html.escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        body += f"<tr{' class=best' if best_first and number == 0 else ''}>{cells}</tr>"
    kind = " class=stacked" if stacked else ""
    return f"<div class=scroll><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def breakable(name: str) -> str:
    """A name in HTML that may break after a mark between words, which comes before a break inside of one.

    >>> breakable("ipndm:order=3,jump=auto")
    'ipndm:<wbr>order=<wbr>3,<wbr>jump=<wbr>auto'
    """
    return re.sub(rf"([{MARKS}])(?=\S)", r"\1<wbr>", name)


def _pictures(folder: FilePath, missing: Mapping[str, str]) -> str:
    """The pictures of samples, and a line for each that could not be drawn."""
    parts, inside = [], 0
    for file in sorted(folder.glob("*.png")):
        name, content = html.escape(file.stem.partition("-")[2]), file.read_bytes()
        source = f"{FIGURES}/{html.escape(file.name)}"
        if inside + len(content) <= _MOST_PICTURES:
            inside += len(content)
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        parts.append(
            f'<figure><img alt="{name}" src="{source}" loading="lazy"><figcaption>{breakable(name)}</figcaption></figure>'
        )
    absent = (
        f"<p>Figure {html.escape(name)} could not be drawn: {html.escape(reason[:500])}</p>" for name, reason in missing.items()
    )
    return "".join([*parts, *absent])


def _failures(failed: Sequence[Result]) -> str:
    if not failed:
        return "<p>None.</p>"
    rows = [
        [g.reason, str(g.runs), _some(g.solvers), _some(g.targets), _some(g.paths), ", ".join(map(str, g.nfe))]
        for g in grouped(failed)
    ]
    note = "<p class=note>By reason, the most frequent first; every failed run is a line of results.csv.</p>"
    return note + table(["reason", "runs", "solvers", "targets", "paths", "NFE"], rows, text_columns=(0, 2, 3, 5))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _environment(results: Sequence[Result]) -> str:
    """All combinations of versions and hardware in the results."""
    seen: dict[str, int] = {}
    for r in results:
        described = ", ".join(f"{k} {v}" for k, v in (r.environment or {}).items()) + f", {r.threads} thread(s) a process"
        seen[described] = seen.get(described, 0) + 1
    return table(["versions and hardware", "results"], [[text, str(count)] for text, count in seen.items()])
