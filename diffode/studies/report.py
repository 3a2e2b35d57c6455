"""The report folder: an offline page, the same figures as PNG, and all numbers as CSV."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

from joblib import Parallel, delayed
from matplotlib.figure import Figure

from diffode import plot, targets
from diffode.errors import ArgumentError, DiffodeError
from diffode.extensions import import_extension
from diffode.fields.own import FieldText
from diffode.fields.problem_text import parts_of
from diffode.output_files import unwritable
from diffode.studies import figures
from diffode.studies.exported import write_csv
from diffode.studies.page import page_of
from diffode.studies.problem import bridge_of
from diffode.studies.ranking import Curve, curves, standings
from diffode.studies.report_content import check_report, figure_names, made_of
from diffode.studies.report_folder import FIGURES, PAGE, TABLE, is_current, new_report, say_made_of
from diffode.studies.store import Result
from diffode.studies.suite import Suite

#: NFE of the clouds that are shown.
_SHOWN_NFE = 8
#: Most budgets of the images that are shown.
_SHOWN_BUDGETS = 4
#: Dots an inch of a picture.
_DOTS = 110
#: Number of the best methods whose samples are shown.
_SHOWN_METHODS = 2
#: Number of pictures that are drawn in about the time that a process takes to start.
_PICTURES = 3


def write_report(
    suite: Suite, results: Sequence[Result], folder: str | FilePath, *, command: str, jobs: int | None = None
) -> FilePath:
    """Write ``index.html``, ``results.csv`` and pictures of samples, ``figures/*.png``, into a folder, and return the page.

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
            missing = draw_figures(all_curves, made / FIGURES, suite.imports, jobs or os.cpu_count() or 1)
            page = page_of(suite, results, all_curves, made / FIGURES, missing, command)
            (made / PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
            if not missing:
                say_made_of(made, content)
        except OSError as error:
            raise unwritable(place, error, "report folder") from error
    return place / PAGE


def draw_figures(all_curves: Sequence[Curve], folder: FilePath, imports: Sequence[str], jobs: int) -> dict[str, str]:
    """Draw samples of the targets that can be shown; returns the reasons for those that failed, by the names of their files."""
    work = {}
    for target, name in figure_names(c.target for c in all_curves).items():
        own = [c for c in all_curves if c.target == target]
        kind = kind_of_cloud(target)
        if kind:
            work[f"{kind}-{name}.png"] = delayed(_save_samples)(kind, target, own, folder / f"{kind}-{name}.png", imports)
    if work:
        folder.mkdir(exist_ok=True)
    try:
        reasons = Parallel(n_jobs=max(1, min(jobs, len(work) // _PICTURES)))(work.values())
    except Exception as error:  # A drawing process was killed, for instance when memory ran out.
        reasons = [f"{type(error).__name__}: {error}"] * len(work)
    # A process may have finished some figures before it was killed.
    return {name: reason for name, reason in zip(work, reasons, strict=True) if reason and not (folder / name).is_file()}


def kind_of_cloud(target: str) -> str | None:
    """The kind of a target's pictures: clouds, images, or None."""
    if bridge_of(target) is not None:
        return None
    if FieldText.names(target):
        # Clouds show the exact law beside a solver's samples, and a field may have none; a network's images are its own.
        return "images" if target.startswith("trained:") and figures.shape_of_images(target) else None
    try:
        data = parts_of(target)[0]
        return "clouds" if targets.get(data).dim == 2 else "images" if targets.card(data).shape else None
    except DiffodeError:  # The target of stored results may no longer exist.
        return None


def _save_samples(kind: str, target: str, own: Sequence[Curve], file: FilePath, imports: Sequence[str]) -> str | None:
    def draw() -> Figure:
        for module in imports:
            import_extension(module)
        path = own[0].path
        if kind == "clouds":
            return figures.draw_clouds(target, path, _shown_methods(own, path, _SHOWN_NFE), _SHOWN_NFE)
        budgets = _shown_budgets(own, path)
        # The best at a budget in the middle, where solvers differ.
        return figures.draw_images(target, path, _shown_methods(own, path, budgets[len(budgets) // 2]), budgets)

    return _drawn(draw, file)


def _drawn(draw: Callable[[], Figure], file: FilePath) -> str | None:
    """Draw and write a figure; returns the reason if that fails, since a report needs its numbers more than a picture."""
    try:
        plot.save(draw(), file, dpi=_DOTS, tight=True)
    except Exception as error:  # A solver, a target or a field of anyone's may raise anything.
        return f"{type(error).__name__}: {error}"
    return None


def _shown_budgets(own: Sequence[Curve], path: str) -> list[int]:
    """Budgets of a problem's curves, few of them from the smallest to the largest; the usual one of curves without any."""
    known = sorted({n for c in own if c.path == path for n in c.budgets}) or [_SHOWN_NFE]
    if len(known) <= _SHOWN_BUDGETS:
        return known
    return [known[round(i * (len(known) - 1) / (_SHOWN_BUDGETS - 1))] for i in range(_SHOWN_BUDGETS)]


def _shown_methods(own: Sequence[Curve], path: str, nfe: int) -> list[str]:
    """DDIM, or else Euler, which everybody knows, then the best methods at an NFE."""
    here = [c for c in own if c.path == path]
    known = [c.method for s in ("ddim", "euler") for c in here if c.solver == s][:1]
    best = [s.method for s in standings(here, nfe) if s.method not in known]
    return known + best[:_SHOWN_METHODS]
