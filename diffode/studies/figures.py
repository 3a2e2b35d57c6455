"""The figures of a report: sample clouds and trajectories over the density, images; and how its page draws curves."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from diffode import plot, solvers, targets
from diffode.fields import Field
from diffode.fields.problem_text import field_of_text, parts_of
from diffode.flows import reference
from diffode.plot.appearance import DASHES
from diffode.plot.space import is_shape_of_images, law_of
from diffode.studies.paste import method_parts
from diffode.studies.problem import starts

#: Number of points of a cloud.
_CLOUD = 500
#: Number of images in a row.
_IMAGES = 12
#: Images of a picture of samples, at most.
_MOST_IMAGES = 64
#: Seed of the noise of a run.
_SEED = 0
#: Lengths of strokes and gaps of the dashes of :mod:`diffode.plot`, as SVG writes them.
_STROKES = dict(zip(map(str, DASHES), ("", "9 4", "2 3", "10 3 2 3"), strict=True))


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
            panel.set_title(title)
        figure.suptitle(f"{target} on {path}: end points over the density, and trajectories in units of their spread")
    return figure


def draw_images(target: str, path: str, methods: Sequence[str], nfe: int) -> Figure:
    """Samples of an image target: a row for the exact flow and one for each solver, from the same starts."""
    shape = targets.card(parts_of(target)[0]).shape
    field = field_of_text(target, path)
    on = field.require_path("a picture")
    first, last = on.t_max, on.t_min
    start = starts(target, path, 0, _IMAGES, first, f"{target} images")
    rows = [("exact flow", reference(field, start, first, last, 1e-6).x)]
    for method in methods:
        solver, grid = method_parts(method)
        solution = solvers.solve(field, start, solver=solver, grid=grid, nfe=nfe, generator=_SEED)
        rows.append((f"{method}\nNFE {solution.nfe}", solution.x))
    limit = float(rows[0][1].abs().quantile(0.99))
    with plot.style():
        figure = Figure(figsize=(0.8 * _IMAGES + 1.6, 0.85 * len(rows) + 0.4), layout="constrained")
        for panel, (title, images) in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
            plot.images(images, shape or (field.dim or 1, 1), ax=panel, columns=_IMAGES, limit=limit)
            panel.set_ylabel(title, rotation=0, ha="right", va="center")
        figure.suptitle(f"{target} on {path}")
    return figure


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
