"""The figures of a report: sample clouds and trajectories over the density, images; and how its page draws curves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from diffode import plot, solvers, targets
from diffode.errors import ArgumentError, TrainedElsewhereWarning
from diffode.fields import ExactField, Field
from diffode.fields.own import FieldText
from diffode.fields.problem_text import field_of_text, parts_of
from diffode.flows import reference
from diffode.plot.appearance import DASHES
from diffode.plot.labels import in_lines
from diffode.plot.space import is_shape_of_images, law_of
from diffode.studies.paste import method_parts
from diffode.studies.problem import field_of, starts, tolerance_of, untold

#: Number of points of a cloud.
_CLOUD = 500
#: Number of images in a row, and least of them for a budget.
_IMAGES, _LEAST_IMAGES = 16, 4
#: Images of a picture of samples, at most.
_MOST_IMAGES = 64
#: Seed of the noise of a run.
_SEED = 0
#: Lengths of strokes and gaps of the dashes of :mod:`diffode.plot`, as SVG writes them.
_STROKES = dict(zip(map(str, DASHES), ("", "9 4", "2 3", "10 3 2 3"), strict=True))


#: Largest number of characters in a line above a panel of 3.4 inches.
_TITLE = 36


def page_looks(methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour, dash and marker of each method, in the words of a page's script."""
    return {
        method: {"colour": look.colour, "dash": _STROKES[str(look.dash)], "marker": look.marker}
        for method, look in plot.looks(methods).items()
    }


def draw_clouds(target: str, path: str, methods: Sequence[str], nfe: int) -> Figure:
    """End points and trajectories of a 2-D target over its density: the exact flow, then each solver at one NFE."""
    field = field_of_text(target, path)
    on = field.require_path("a picture")
    first, last = on.t_max, on.t_min
    start = starts(target, path, 0, _CLOUD, first, f"{target} cloud")
    law = law_of(field)
    # A hundred steps of order 3 err by less than the width of a line.
    exact = solvers.solve(field, start, solver="unipc:order=3", grid="karras", steps=100, keep="all")
    runs = [("exact flow", exact, reference(field, start, first, last, 1e-5).x)]
    for method in methods:
        solver, grid = method_parts(method)
        solution = solvers.solve(field, start, solver=solver, grid=grid, nfe=nfe, keep="all", generator=_SEED)
        runs.append((f"{method}, NFE {solution.nfe}", solution, solution.x))
    with plot.style():
        figure = Figure(figsize=(3.4 * len(runs), 3.8), layout="constrained")
        for panel, (title, solution, ends) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
            plot.trajectories(solution, field, ax=panel, ends=False)
            plot.cloud(ends, ax=panel, window=plot.window_of(ends, law))
            panel.set_title(in_lines(title, _TITLE))
        caption = f"{target} on {path}: end points over the density, and trajectories in units of their spread"
        figure.suptitle(in_lines(caption, _TITLE * len(runs)))
    return figure


def shape_of_images(target: str) -> tuple[int, ...] | None:
    """The shape in which a target's samples, or those of a network that ships, are shown as images; None if they are none."""
    if not FieldText.names(target):
        name: str = parts_of(target)[0]
    elif target.startswith("trained:"):
        name = str(field_of(target, None).facts["target"])  # type: ignore[attr-defined]
    else:
        return None
    shape = targets.card(name).shape
    return shape if is_shape_of_images(shape) else None


def draw_images(target: str, path: str, methods: Sequence[str], budgets: Sequence[int]) -> Figure:
    """Samples of images from the same starts: a row for the exact flow and one for each solver, a column for each budget.

    A run that a budget does not allow leaves its place empty.
    """
    field = field_of(target, path)
    on = field.require_path("a picture")
    each = max(_LEAST_IMAGES, _IMAGES // len(budgets))
    start = starts(target, path, 0, each, on.t_max, f"{untold(target)} images")
    exact = reference(field, start, on.t_max, on.t_min, tolerance_of(target, path, 1e-6)).x
    shape, limit = shape_of_images(target) or (field.dim or 1, 1), float(exact.abs().quantile(0.99))
    with plot.style():
        size = (0.8 * each * len(budgets) + 1.8, 0.85 * (len(methods) + 1) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(methods) + 1, len(budgets), squeeze=False)
        for row, method in enumerate(["exact flow" if isinstance(field, ExactField) else "its own flow", *methods]):
            for panel, nfe in zip(panels[row], budgets, strict=True):
                ends = exact if not row else _ends(field, start, method, nfe)
                if ends is None:
                    panel.set(xticks=[], yticks=[])
                    panel.spines[:].set_visible(False)
                else:
                    plot.images(ends, shape, ax=panel, columns=each, limit=limit)
                if not row:
                    panel.set_title(f"NFE {nfe}")
            panels[row][0].set_ylabel(in_lines(method, _TITLE), rotation=0, ha="right", va="center")
        figure.suptitle(f"{target} on {path}")
    return figure


def _ends(field: Field, start: Tensor, method: str, nfe: int) -> Tensor | None:
    """The ends of a method's run with a budget; None if it has none for that budget."""
    solver, grid = method_parts(method)
    try:
        with warnings.catch_warnings():
            # Whatever such a warning says of a run is seen in its pictures.
            warnings.simplefilter("ignore", TrainedElsewhereWarning)
            return solvers.solve(field, start, solver=solver, grid=grid, nfe=nfe, generator=_SEED).x
    except ArgumentError:
        return None


def draw_samples(points: Tensor, field: Field, shape: Sequence[int] | None, title: str) -> Figure:
    """A picture of samples: images of a ``shape``, a cloud over the density, a histogram, or the first two coordinates.

    The density is shown where it is known: for exact fields, and for fields that approximate one.
    """
    with plot.style():
        figure = Figure(figsize=(5, 5), layout="constrained")
        if is_shape_of_images(shape):
            plot.images(points[:_MOST_IMAGES], shape, ax=figure.subplots())
        else:
            plot.cloud(points, field, ax=figure.subplots())
        figure.suptitle(title)
    return figure
