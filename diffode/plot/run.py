"""Trajectories of a run over the density: along time in one dimension, in the plane in two, as a strip of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from matplotlib.axes import Axes
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.plot.appearance import EXACT, PALETTE, SHADES, axes_for, style
from diffode.plot.space import (
    BRIGHTEST,
    DEPTH,
    Window,
    angle_of,
    cloud,
    density_in,
    images,
    is_shape_of_images,
    law_of,
    plane,
    points_of,
    scale_at,
    shade,
    window_of,
)

#: Trajectories that are drawn unless a number is given.
_ROWS = 24
#: Times of a strip of images, at most.
_FRAMES = 8
#: Columns and rows of the density along time.
_COLUMNS, _HEIGHT = 240, 240


@runtime_checkable
class Run(Protocol):
    """What is drawn of a run: a :class:`diffode.Solution`."""

    @property
    def x(self) -> Tensor:
        """The end points, (B, *shape)."""

    @property
    def states(self) -> Tensor | None:
        """The states at every time, (steps + 1, B, *shape), if they were kept."""

    @property
    def times(self) -> Tensor:
        """The times, (steps + 1,)."""

    @property
    def nfe(self) -> int:
        """Network calls."""


def states_of(solution: object) -> Tensor:
    """The states (steps + 1, B, *shape) of a run as float64; ArgumentError if it is none or kept none."""
    if not isinstance(solution, Run):
        raise ArgumentError(f"solution must be a Solution of diffode.solve, got {type(solution).__name__}")
    if solution.states is None:
        raise ArgumentError('solution must hold its states for trajectories: make it with diffode.solve(..., keep="all")')
    points_of(solution.states[-1], "solution.states")
    return solution.states.detach().to("cpu", torch.float64)


def scaled_states(states: Tensor, times: Sequence[float], field: Field | None) -> Tensor:
    """States in units of their spread at each time relative to the data's, so that all times fit one window."""
    if field is None or field.path is None:
        return states
    units = torch.tensor([scale_at(field, t) for t in times], dtype=torch.float64)
    return states / units.reshape(-1, *(1,) * (states.ndim - 1))


def trajectories(
    solution: Run,
    field: Field | None = None,
    *,
    ax: Axes | None = None,
    size: object | None = None,
    rows: int = _ROWS,
    colour: str = PALETTE[1],
    ends: bool = True,
    shape: Sequence[int] | None = None,
) -> Axes:
    """The trajectories of a run that kept its states, over the density where that is known.

    In one dimension the horizontal axis is the angle arctan(rho/scale), from noise on the left to data on the right, with a
    tick at every time of the run; in two dimensions the plane is shown. Images become a strip: a row for each
    sample, from noise to data. States are divided by sqrt(alpha^2 + (sigma/scale)^2), so that every time fits one window.
    Without a path (a plain ODE, or no field) states are shown as they are, in one dimension against time.

    Args:
        solution: a run made with ``keep="all"``.
        field: the field that it followed; the density is shown for exact fields, and for fields that approximate one.
        ax, size: as in :func:`error_curves`.
        rows: number of trajectories that are drawn, the first ones; for images, rows of the strip.
        colour: of the trajectories.
        ends: whether all end points are shown as dots, in two dimensions.
        shape: of an image, for rows that are flat.

    Returns:
        The axes.

    Raises:
        ArgumentError: for a run without states or without a finite row, a field of another dimension, a number of coordinates
            above two without the shape of images, or a wrong argument.

    >>> import diffode
    >>> field = diffode.exact_field("bimodal1d", "vp")
    >>> run = diffode.solve(field, field.prior(10, generator=0), solver="ddim", nfe=5, keep="all")
    >>> len(trajectories(run, field).lines)
    10
    """
    states, law = states_of(solution), law_of(field)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ArgumentError(f"rows must be an integer >= 1 (the number of trajectories), got {rows!r:.60}")
    times = [float(t) for t in solution.times]
    scaled = scaled_states(states, times, field)
    shape = tuple(states.shape[2:]) if shape is None else tuple(shape)
    if is_shape_of_images(shape) and math.prod(shape) == states[0, 0].numel() > 2:
        return _strip(scaled, shape, ax, size, min(rows, 6))
    flat = scaled.flatten(2)
    dim = flat.shape[2]
    if dim > 2:
        raise ArgumentError(f"solution must have one or two coordinates a row, or give shape= of its images, got {dim}")
    if law is not None and law.dim != dim:
        raise ArgumentError(f"solution must have the field's {law.dim} coordinates a row, got {dim}")
    with style():
        ax = axes_for(ax, size or ("page" if dim == 1 else (3.4, 3.4)))
        if dim == 1:
            _along_time(ax, flat[:, :rows, 0], times, field, law, colour)
        else:
            window = window_of(flat[-1], law)
            if ends:
                cloud(flat[-1], law, ax=ax, window=window)
            elif law is not None:
                shade(ax, density_in(law, window, None), window)
            for i in range(min(rows, flat.shape[1])):
                ax.plot(flat[:, i, 0], flat[:, i, 1], color=colour, lw=0.7, alpha=0.8)
            plane(ax, window)
    return ax


def _along_time(
    ax: Axes, lines: Tensor, times: Sequence[float], field: Field | None, law: ExactField | None, colour: str
) -> None:
    known = field is not None and field.path is not None
    places = [angle_of(field, t) if field is not None and known else t for t in times]
    if law is not None:
        window = window_of(lines[:1], law)
        _shade_along(ax, law, window, (max(places), min(places)))
        ax.set_ylim(window.low[0], window.high[0])
    else:
        window = window_of(lines.reshape(-1, 1))
        ax.set_ylim(window.low[0], window.high[0])
    for i in range(lines.shape[1]):
        ax.plot(places, lines[:, i], color=colour, lw=0.9, alpha=0.85)
    ax.set_xlim(places[0], places[-1])
    ax.xaxis.remove_overlapping_locs = False
    ax.set_xticks(places, minor=True)
    if known:
        marks = [m for m in (math.pi / 2, math.pi / 4, 0.0) if min(places) - 0.05 <= m <= max(places) + 0.05]
        names = {math.pi / 2: "noise", math.pi / 4: "level = scale", 0.0: "data"}
        ax.set_xticks([min(max(m, min(places)), max(places)) for m in marks], [names[m] for m in marks])
        ax.set(xlabel="angle arctan(rho / scale); a small tick at every time", ylabel="x / spread at its time")
    else:
        ax.set(xlabel="t", ylabel="x")


def _shade_along(ax: Axes, law: ExactField, window: Window, angles: tuple[float, float]) -> None:
    """Draw the density in the unit of each time, one column an angle, each less its own maximum."""
    across = torch.linspace(*angles, _COLUMNS, dtype=torch.float64)
    sides = torch.linspace(window.low[0], window.high[0], _HEIGHT, dtype=torch.float64)
    blur = (window.high[0] - window.low[0]) / _HEIGHT / 2
    columns = []
    for angle in across.tolist():
        # On every path the law in this unit depends on the angle alone.
        alpha, sigma = math.cos(angle), law.scale * math.sin(angle)
        logs = law.target.noised_log_prob(sides[:, None], alpha, math.hypot(sigma, blur))
        columns.append((logs - logs.max()).clamp(min=-DEPTH))
    ax.pcolormesh(
        across.numpy(), sides.numpy(), torch.stack(columns, 1).numpy(), cmap=SHADES, vmin=-DEPTH, vmax=BRIGHTEST,
        shading="nearest", rasterized=True,
    )  # fmt: skip


def _strip(states: Tensor, shape: tuple[int, ...], ax: Axes | None, size: object | None, rows: int) -> Axes:
    """A row of images for each sample, at times from the first to the last."""
    count, rows = min(_FRAMES, len(states)), min(rows, states.shape[1])
    chosen = torch.linspace(0, len(states) - 1, count).round().long()
    own = states[chosen][:, :rows].transpose(0, 1).reshape(rows * count, -1)
    ax = images(own, shape, ax=ax, size=size or (0.85 * count, 0.85 * rows + 0.3), columns=count)
    ax.set_xlabel("noise  →  data", color=EXACT)
    return ax
