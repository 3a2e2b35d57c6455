"""The figures of a report: error curves, sample clouds and trajectories over the density, images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from diffode import solvers, targets
from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.fields.problem_text import field_of_text, parts_of
from diffode.flows import reference
from diffode.output_files import write_whole
from diffode.solvers import Solution
from diffode.studies.problem import starts
from diffode.studies.ranking import Curve

#: Number of points of a cloud.
_CLOUD = 500
#: Number of trajectories over a density.
_TRAJECTORIES = 24
#: Number of images in a row.
_IMAGES = 12
#: Pixels of a density along each side.
_RESOLUTION = 200
#: Seed of the noise of a run.
_SEED = 0


def colours(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same in every figure of a report."""
    palette = [*colormaps["tab20"].colors[::2], *colormaps["tab20"].colors[1::2]]  # type: ignore[attr-defined]
    codes = ["#" + "".join(f"{round(255 * c):02x}" for c in rgb) for rgb in palette]
    return {method: codes[i % len(codes)] for i, method in enumerate(methods)}


def save(figure: Figure, file: FilePath, dpi: int = 110, *, tight: bool = True) -> None:
    """Write a figure as PNG, whole or not at all; ArgumentError if the file can't be written."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight" if tight else None)
    write_whole(file, drawn.getvalue(), "picture")


def draw_curves(target: str, own: Sequence[Curve], palette: Mapping[str, str]) -> Figure:
    """Error against NFE of every method, with a panel for each path."""
    paths = list(dict.fromkeys(c.path for c in own))
    figure = Figure(figsize=(4.4 * len(paths) + 2.4, 4.2), layout="constrained")
    panels = figure.subplots(1, len(paths), sharey=True, squeeze=False)[0]
    for panel, path in zip(panels, paths, strict=True):
        for curve in own:
            if curve.path == path:
                panel.loglog(curve.nfe, curve.error, "o-", ms=3, lw=1.2, color=palette[curve.method], label=curve.method)
        ticks = sorted({n for c in own for n in c.nfe if n in (4, 6, 8, 10, 20, 32, 50, 100)})
        panel.set_xticks(ticks, [str(n) for n in ticks])
        panel.minorticks_off()
        panel.set(title=path, xlabel="NFE")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean end-point error / scale")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    figure.suptitle(target if len(target) < 70 else target[:67] + "...")
    return figure


def draw_clouds(target: str, path: str, methods: Sequence[str], nfe: int) -> Figure:
    """End points and trajectories of a 2-D target over its density: the exact flow, then each solver at one NFE."""
    field = field_of_text(target, path)
    first, last = field.path.t_max, field.path.t_min
    start = starts(target, path, 0, _CLOUD, first, f"{target} cloud")
    runs: list[tuple[str, Tensor, Tensor]] = [
        ("exact flow", reference(field, start, first, last, 1e-5).x, _exact_lines(field, start[:_TRAJECTORIES]))
    ]
    for method in methods:
        solution = solvers.solve(field, start, solver=method, nfe=nfe, keep="all", generator=_SEED)
        runs.append((f"{method}, NFE {solution.nfe}", solution.x, _lines(field, solution)))
    figure = Figure(figsize=(3.6 * len(runs), 3.8), layout="constrained")
    window = _window(field)
    for panel, (title, cloud, lines) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        _density(panel, field, window)
        for i in range(lines.shape[1]):
            panel.plot(lines[:, i, 0], lines[:, i, 1], color="#d62728", lw=0.6, alpha=0.7)
        panel.plot(cloud[:, 0], cloud[:, 1], ".", color="black", ms=1.6, alpha=0.7)
        panel.set(title=title, xlim=window[:2], ylim=window[2:], xticks=[], yticks=[], aspect="equal")
        panel.title.set_fontsize(9)
    figure.suptitle(
        f"{target} on {path}: end points over the density, and trajectories of x/alpha/sqrt(1 + rho^2/scale^2)", fontsize=10
    )
    return figure


def draw_images(target: str, path: str, methods: Sequence[str], nfe: int) -> Figure:
    """Samples of an image target: a row for the exact flow and one for each solver, from the same starts."""
    shape = targets.card(parts_of(target)[0]).shape
    field = field_of_text(target, path)
    first, last = field.path.t_max, field.path.t_min
    start = starts(target, path, 0, _IMAGES, first, f"{target} images")
    rows = [("exact flow", reference(field, start, first, last, 1e-6).x)]
    for method in methods:
        solution = solvers.solve(field, start, solver=method, nfe=nfe, generator=_SEED)
        rows.append((f"{method}\nNFE {solution.nfe}", solution.x))
    limit = float(rows[0][1].abs().quantile(0.99))
    figure = Figure(figsize=(0.8 * _IMAGES + 1.6, 0.85 * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), _IMAGES, squeeze=False)
    for row, (title, images) in zip(panels, rows, strict=True):
        for panel, image in zip(row, images, strict=True):
            panel.imshow(image.reshape(shape or (-1, 1)).numpy(), cmap="gray", vmin=-limit, vmax=limit)
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(f"{target} on {path}", fontsize=10)
    return figure


def draw_samples(points: Tensor, field: Field, shape: Sequence[int] | None, title: str) -> Figure:
    """A picture of samples: images of a ``shape``, a cloud over the density, a histogram, or the first two coordinates.

    The density is shown where it is known: for exact fields, and for fields that approximate one.
    """
    law = field if isinstance(field, ExactField) else field.truth
    images, points = None if shape is None else _as_images(points, shape), points.flatten(1)
    figure = Figure(figsize=(5, 5), layout="constrained")
    if images is not None:
        side = min(8, math.ceil(len(points) ** 0.5))
        for panel, image in zip(figure.subplots(side, side, squeeze=False).flat, images, strict=False):
            panel.imshow(image, cmap="gray")
        for panel in figure.axes:
            panel.set(xticks=[], yticks=[])
    elif points.shape[1] == 1:
        panel = figure.subplots()
        panel.hist(points[:, 0].numpy(), bins=80, density=True, color="0.7", label="samples")
        x = torch.linspace(float(points.min()), float(points.max()), 800, dtype=torch.float64)
        if law is not None:
            panel.plot(x, law.log_prob(x[:, None], law.path.t_min).exp(), color="#d62728", lw=1, label="density")
        panel.legend(frameon=False)
    else:
        panel = figure.subplots()
        if law is not None and law.target.dim == 2:
            window = _window(law)
            _density(panel, law, window)
            panel.set(xlim=window[:2], ylim=window[2:])
        panel.plot(points[:, 0], points[:, 1], ".", color="black", ms=2)
        panel.set(aspect="equal", xlabel="x1", ylabel="x2")
    figure.suptitle(title, fontsize=9)
    return figure


def _as_images(points: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Rows as images (n, height, width) or (n, height, width, 3); None if their shape is not that of images."""
    if len(shape) == 2:
        return points.reshape(-1, *shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    coloured = points.reshape(-1, *shape).permute(0, 2, 3, 1)
    low, high = coloured.amin(), coloured.amax()
    return ((coloured - low) / (high - low).clamp(min=1e-12)) if shape[0] == 3 else coloured[..., 0]


def _window(field: ExactField) -> tuple[float, float, float, float]:
    """A square around the data, with a margin."""
    data = field.target.sample(2000, generator=0)
    low, high = data.amin(0), data.amax(0)
    centre, half = (low + high) / 2, 0.58 * float((high - low).max())
    return float(centre[0]) - half, float(centre[0]) + half, float(centre[1]) - half, float(centre[1]) + half


def _density(panel: Axes, field: ExactField, window: tuple[float, float, float, float]) -> None:
    """Draw the data's density; noise of half a pixel makes the narrowest modes visible."""
    x = torch.linspace(window[0], window[1], _RESOLUTION, dtype=torch.float64)
    y = torch.linspace(window[2], window[3], _RESOLUTION, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    pixel = (window[1] - window[0]) / _RESOLUTION
    log_density = field.target.noised_log_prob(points, 1.0, pixel / 2).reshape(_RESOLUTION, _RESOLUTION)
    shade = (log_density - log_density.max()).clamp(min=-8).numpy()
    panel.imshow(shade, extent=window, origin="lower", cmap="Blues", aspect="auto", vmin=-8, vmax=1)


def _in_window(field: ExactField, x: Tensor, t: float) -> Tensor:
    """x/alpha divided by its spread relative to the data's, so that a whole trajectory fits the window of the data."""
    rho = field.path.rho(t)
    return x / field.path.alpha(t) / math.sqrt(1 + (rho / field.scale) ** 2)


def _exact_lines(field: ExactField, start: Tensor) -> Tensor:
    """The exact flow as smooth lines, (times, points, 2): a hundred steps of order 3 err by less than the width of a line."""
    return _lines(field, solvers.solve(field, start, solver="unipc:order=3", grid="karras", steps=100, keep="all"))


def _lines(field: ExactField, solution: Solution) -> Tensor:
    """The first trajectories of a solution that kept its states, (times, points, 2)."""
    if solution.states is None:
        raise ArgumentError('trajectories need a solution made with keep="all"')
    pairs = zip(solution.states[:, :_TRAJECTORIES], solution.times, strict=True)
    return torch.stack([_in_window(field, x, float(t)) for x, t in pairs])
