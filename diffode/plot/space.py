"""Pictures of laws and points in the space of data: densities, clouds, histograms, images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.plot.appearance import EXACT, PALETTE, SHADES, axes_for, style

#: Pixels of a density along each side.
_RESOLUTION = 200
#: Points at which a density on a line is shown.
_LINE = 800
#: Depth of the shades of a density, in natural logarithms below its maximum.
DEPTH = 8.0
#: Shade of the maximum, on the same scale: the darkest ones would hide what is drawn over them.
BRIGHTEST = 5.0
#: Number of draws of the data from which a window is laid, and the margin beside them, as a share of their range.
_DRAWS, _MARGIN = 2000, 0.16
#: A window of points goes no further than half their range beyond the middle nine tenths: a few that diverge must not shrink
#: the others to a dot.
_TAIL, _FENCE = 0.05, 0.5


@dataclass(frozen=True)
class Window:
    """A square, or an interval in one dimension: the lowest and highest coordinate on each axis."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top."""
        return self.low[0], self.high[0], self.low[1], self.high[1]


def law_of(field: object) -> ExactField | None:
    """The exact field whose law is known: the field itself, or the one that it approximates; None if it is not known.

    Raises:
        ArgumentError: for anything but a field or None.
    """
    if field is None:
        return None
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field or None, got {type(field).__name__}")
    return field if isinstance(field, ExactField) else field.truth


def points_of(points: object, name: str = "points") -> Tensor:
    """Points (B, *shape) as float64; ArgumentError for what is none, and for points of which none is finite."""
    try:
        found = torch.as_tensor(points).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"{name} must be a tensor (B, *shape) of numbers, got {type(points).__name__}") from None
    if found.ndim < 2 or not found.numel():
        raise ArgumentError(f"{name} must be a tensor (B, *shape) with a point in each row, got shape {tuple(found.shape)}")
    if not bool(torch.isfinite(found).flatten(1).all(1).any()):
        raise ArgumentError(f"{name} must hold finite rows, got none: every run failed, and there is nothing to draw")
    return found


def window_of(points: Tensor, law: ExactField | None = None) -> Window:
    """A window around the data of a law, or around points (B, D), with a margin; equal sides in two dimensions."""
    if law is not None:
        data = law.target.sample(_DRAWS, generator=0)
        low, high = data.amin(0), data.amax(0)
    else:
        finite = points[torch.isfinite(points).all(1)]
        lower, upper = finite.quantile(_TAIL, 0), finite.quantile(1 - _TAIL, 0)
        fence = _FENCE * (upper - lower).max()
        low, high = finite.amin(0).maximum(lower - fence), finite.amax(0).minimum(upper + fence)
    centre, half = (low + high) / 2, float((high - low).max()) * (0.5 + _MARGIN / 2)
    half = half if half > 0 else max(1.0, float(centre.abs().max()) * 0.1)
    return Window(tuple((centre - half).tolist()), tuple((centre + half).tolist()))


def scale_at(law: ExactField | Field, t: float) -> float:
    r"""The unit in which whole trajectories fit one window: :math:`\sqrt{\alpha^2 + \sigma^2/\mathrm{scale}^2}` at a time."""
    if law.path is None:
        return 1.0
    return math.hypot(law.path.alpha(t), law.path.sigma(t) / law.scale)


def angle_of(field: Field, t: float) -> float:
    """The angle of a time, from 0 (data) to pi/2 (noise): arctan of the noise level over the data's scale."""
    if field.path is None:
        raise ArgumentError(f"field must have a path for the angle of a time, got {field!r}")
    return math.atan2(field.path.sigma(t), field.path.alpha(t) * field.scale)


def density_in(law: ExactField, window: Window, t: float | None, resolution: int = _RESOLUTION) -> Tensor:
    """The logarithm of the density of a two-dimensional law, less its maximum and cut at ``-DEPTH``; rows are the second axis.

    Args:
        law: an exact field of two dimensions.
        window: the square, in units of :func:`scale_at`.
        t: the time; None for the law of the data.
        resolution: pixels on each side. Noise of half a pixel makes the narrowest modes visible.
    """
    sides = [torch.linspace(a, b, resolution, dtype=torch.float64) for a, b in zip(window.low, window.high, strict=True)]
    points = torch.stack(torch.meshgrid(*sides, indexing="xy"), -1).reshape(-1, 2)
    blur = (window.high[0] - window.low[0]) / resolution / 2
    alpha, sigma = _law_at(law, t)
    logs = law.target.noised_log_prob(points, alpha, math.hypot(sigma, blur)).reshape(resolution, resolution)
    return (logs - logs.max()).clamp(min=-DEPTH)


def _law_at(law: ExactField, t: float | None) -> tuple[float, float]:
    """Alpha and sigma at a time, in units of :func:`scale_at`."""
    if t is None:
        return 1.0, 0.0
    unit = scale_at(law, t)
    return law.path.alpha(t) / unit, law.path.sigma(t) / unit


def density(field: Field, t: float | None = None, *, ax: Axes | None = None, size: object = "column") -> Axes:
    """The density of a law in one or two dimensions: of the data, or at a time.

    Args:
        field: an exact field, or a field that approximates one, of one or two dimensions.
        t: a time of its path; None for the data. At a time, points are divided by sqrt(alpha^2 + (sigma/scale)^2), so that
            every time fits one window.
        ax, size: as in :func:`error_curves`.

    Returns:
        The axes.

    Raises:
        ArgumentError: for a field whose law is not known, more dimensions, or a time outside the path.
    """
    law = law_of(field)
    if law is None:
        raise ArgumentError(f"field must be an exact field, or approximate one, for its density, got {field!r}")
    if law.dim not in (1, 2):
        raise ArgumentError(f"field must have one or two dimensions for a picture of its density, got {law.dim}")
    if t is not None:
        if isinstance(t, bool) or not isinstance(t, int | float):
            raise ArgumentError(f"t must be a time or None, got {t!r:.60}")
        law.path.check_times(float(t))
    window = window_of(torch.zeros(1, 1), law)
    with style():
        ax = axes_for(ax, size)
        if law.dim == 2:
            shade(ax, density_in(law, window, t), window)
            plane(ax, window)
        else:
            line_density(ax, law, window, t, 1.0)
            ax.set(xlabel="x", ylabel="density", ylim=(0, None))
    return ax


def shade(ax: Axes, logs: Tensor, window: Window) -> Any:
    """Draw the logarithm of a density as shades; returns the image."""
    return ax.imshow(
        logs.numpy(), extent=window.extent, origin="lower", cmap=SHADES, aspect="auto", vmin=-DEPTH, vmax=BRIGHTEST
    )


def plane(ax: Axes, window: Window) -> None:
    """Axes of a plane: equal units, no ticks, a frame."""
    left, right, bottom, top = window.extent
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    for spine in ax.spines.values():
        spine.set(visible=True, color="#bbbbbb")


def line_density(ax: Axes, law: ExactField, window: Window, t: float | None, lw: float) -> float:
    """Draw the density of a law on a line, in units of :func:`scale_at`; returns its largest value."""
    x = torch.linspace(window.low[0], window.high[0], _LINE, dtype=torch.float64)
    alpha, sigma = _law_at(law, t)
    blur = (window.high[0] - window.low[0]) / _LINE / 2
    values = law.target.noised_log_prob(x[:, None], alpha, math.hypot(sigma, blur)).exp()
    ax.plot(x, values, color=EXACT, lw=lw)
    ax.set_xlim(window.low[0], window.high[0])
    return float(values.max())


def cloud(
    points: Tensor,
    field: Field | None = None,
    *,
    ax: Axes | None = None,
    size: object = (3.4, 3.4),
    window: Window | None = None,
    colour: str = EXACT,
) -> Axes:
    """Points: a histogram beside the density in one dimension, dots over it in two, the first two coordinates in more.

    Args:
        points: (B, *shape). Rows that are not finite are left out.
        field: the field whose law they are to have, if its density is to be shown.
        ax, size: as in :func:`error_curves`.
        window: what is shown; laid around the law's data, or the points, if None.
        colour: of the points.

    Returns:
        The axes.

    Raises:
        ArgumentError: for points that are no tensor (B, *shape) or hold no finite row, or a field of another dimension.
    """
    law, flat = law_of(field), points_of(points).flatten(1)
    flat = flat[torch.isfinite(flat).all(1)]
    if law is not None and law.dim != flat.shape[1]:
        raise ArgumentError(f"points must have the field's {law.dim} coordinates a row, got {flat.shape[1]}")
    with style():
        ax = axes_for(ax, size)
        if flat.shape[1] == 1:
            shown = window or window_of(flat, law)
            ax.hist(flat[:, 0].numpy(), bins=80, range=(shown.low[0], shown.high[0]), density=True, color=PALETTE[5], alpha=0.6)
            if law is not None:
                line_density(ax, law, shown, None, 1.2)
            ax.set(xlabel="x", ylabel="density")
            return ax
        plain = law is None or law.dim != 2
        shown = window or window_of(flat[:, :2], None if plain else law)
        if law is not None and law.dim == 2:
            shade(ax, density_in(law, shown, None), shown)
        ax.plot(flat[:, 0], flat[:, 1], ".", color=colour, ms=_dot(len(flat)), alpha=0.8, mew=0)
        plane(ax, shown)
        if flat.shape[1] > 2:
            ax.set(xlabel="first coordinate", ylabel="second coordinate")
    return ax


def _dot(count: int) -> float:
    """The size of a dot, in points, for a number of dots."""
    return min(5.0, max(1.5, 60 / math.sqrt(count)))


def images(
    points: Tensor,
    shape: Sequence[int] | None = None,
    *,
    ax: Axes | None = None,
    size: object = (5.0, 5.0),
    columns: int | None = None,
    limit: float | None = None,
) -> Axes:
    """Images side by side, on one pair of axes.

    Args:
        points: (B, *shape), or (B, D) with ``shape``.
        shape: of an image: (height, width), (1, height, width) or (3, height, width).
        ax, size: as in :func:`error_curves`.
        columns: images in a row; a square of images if None.
        limit: the value shown as white, its negative as black; the largest usual one (the quantile 0.99) if None. Colours are
            stretched over the values of all images.

    Returns:
        The axes.

    Raises:
        ArgumentError: for a shape that is none of images, or not that of the points; or another wrong argument.
    """
    own = points_of(points)
    if isinstance(columns, bool) or not (columns is None or (isinstance(columns, int) and columns > 0)):
        raise ArgumentError(f"columns must be an integer >= 1 or None, got {columns!r:.60}")
    shape = tuple(own.shape[1:] if shape is None else shape)
    if not is_shape_of_images(shape):
        raise ArgumentError(f"shape must be (height, width) or (1 or 3, height, width), got {shape}")
    if math.prod(shape) != own[0].numel():
        raise ArgumentError(f"shape {shape} has {math.prod(shape)} numbers, rows of points have {own[0].numel()}")
    across = columns or math.ceil(len(own) ** 0.5)
    canvas = montage(own, shape, across)
    with style():
        ax = axes_for(ax, size)
        if canvas.ndim == 3:
            finite = canvas[torch.isfinite(canvas)]
            low, high = finite.amin(), finite.amax()
            ax.imshow(((canvas - low) / (high - low).clamp(min=1e-12)).nan_to_num(nan=1.0).numpy())
        else:
            finite = own[torch.isfinite(own)].abs()
            # Quantiles of a tensor refuse more than 16 million numbers.
            bound = limit or float(finite[:: max(1, len(finite) // 10**6)].quantile(0.99)) or 1.0
            ax.imshow(canvas.numpy(), cmap="gray", vmin=-bound, vmax=bound)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
    return ax


def is_shape_of_images(shape: Sequence[int] | None) -> bool:
    """Whether rows of a shape are images: (height, width), (1, height, width) or (3, height, width)."""
    if shape is None or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        return False
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def montage(points: Tensor, shape: Sequence[int], columns: int) -> Tensor:
    """Images in rows of ``columns``, with gaps of NaN: (height, width), or (height, width, 3) in colour."""
    height, width = shape[-2:]
    channels = shape[0] if len(shape) == 3 else 1
    gap = max(1, round(max(height, width) / 14))
    rows = -(-len(points) // columns)
    canvas = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), torch.nan, dtype=torch.float64)
    for i, image in enumerate(points.reshape(-1, channels, height, width).permute(0, 2, 3, 1)):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas if channels == 3 else canvas[..., 0]
