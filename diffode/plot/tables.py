"""Pictures of solvers themselves: the tableau, and where a step makes deviations grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.plot.appearance import EXACT, REMARK, axes_for, style
from diffode.tableau import Tableau

#: Rows of a table up to which its numbers are written into the picture.
_WRITTEN = 9
#: Power of the coefficients' sizes that colours show, so that small ones are seen beside large ones.
_POWER = 1 / 3
#: Colours from negative to positive, apart for colour-blind eyes and in print.
_SIGNED = "PuOr_r"
#: Steps in log-SNR and slopes of the denoiser at which stability is shown.
_STEPS, _SLOPES = (0.1, 5.0, 40), (-1.5, 0.999, 120)


def tableau(table: Tableau, *, ax: Axes | None = None, size: object | None = None) -> Axes:
    """A table as a picture: the weights of earlier states, of evaluations and of noise draws, row by row.

    Colours show sign and size, each block relative to its largest weight; white is no weight. Short tables have their numbers
    written in. Rows that the field is asked at have a dot, rows that are times of the grid are bold.

    Args:
        table: a table, ``diffode.solvers.get("heun").tableau(path, grid, steps=4)`` or ``solution.tableau``.
        ax, size: as in :func:`error_curves`.

    Returns:
        The axes.

    Raises:
        ArgumentError: for anything but a table, or one whose coefficients differ between the rows of a batch.

    >>> import diffode
    >>> table = diffode.solvers.get("ddim").tableau(diffode.paths.get("vp"), "karras", steps=3)
    >>> [label.get_text() for label in tableau(table).get_xticklabels()][:4]
    ['x0', 'x1', 'x2', 'm0']
    """
    if not isinstance(table, Tableau):
        raise ArgumentError(f"table must be a Tableau, got {type(table).__name__}; a run has one if its solver writes one")
    table.one_for_all("a picture")
    rows = table.rows[1:]
    states = sorted({j for row in rows for j in row.states})
    draws = sorted({k for row in rows for k in row.draws})
    blocks = [
        ("x", states, [row.states for row in rows]),
        ("m", table.evaluated, [row.evaluations for row in rows]),
        ("xi", draws, [row.draws for row in rows]),
    ]
    blocks = [block for block in blocks if block[1]]
    columns = sum(len(block[1]) for block in blocks) + len(blocks) - 1
    shades, texts, names, places = np.full((len(rows), columns), np.nan), [], [], []
    left = 0
    for letter, indices, weights in blocks:
        largest = max(abs(float(w)) for row in weights for w in row.values()) or 1.0
        for across, index in enumerate(indices, left):
            names.append(f"{letter}{index}")
            places.append(across)
            for down, row in enumerate(weights):
                if index in row:
                    weight = float(row[index])
                    shades[down, across] = math.copysign((abs(weight) / largest) ** _POWER, weight)
                    texts.append((across, down, weight))
        left += len(indices) + 1
    with style():
        ax = axes_for(ax, size or (min(1.6 + 0.42 * columns, 12.0), min(1.1 + 0.3 * len(rows), 9.0)))
        ax.imshow(shades, cmap=_SIGNED, vmin=-1.25, vmax=1.25, aspect="auto")
        for across, down, weight in texts if len(rows) <= _WRITTEN else ():
            dark = abs(shades[down, across]) > 0.85
            ax.text(across, down, f"{weight:.3g}", ha="center", va="center", fontsize=6, color="white" if dark else EXACT)
        few = len(rows) <= 30
        ax.set_xticks(places if few else places[:: len(places) // 15], names if few else names[:: len(places) // 15])
        ax.xaxis.tick_top()
        listed = range(0, len(rows), 1 if few else len(rows) // 15)
        asked, outputs = set(table.evaluated), set(table.outputs)
        ax.set_yticks(listed, [f"x{i + 1}{' •' if i + 1 in asked else ''}   t = {float(rows[i].time):.3g}" for i in listed])
        for label, i in zip(ax.get_yticklabels(), listed, strict=True):
            label.set_fontweight("bold" if i + 1 in outputs else "normal")
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.set_title(f"{table.solver or 'table'}, NFE {table.nfe}: states x, {table.prediction} m", fontsize=8)
    return ax


def stability(
    growth: Callable[[float, Tensor], Tensor],
    *,
    ax: Axes | None = None,
    size: object = "column",
    steps: Sequence[float] | None = None,
    slopes: Sequence[float] | None = None,
    bar: bool = True,
) -> Axes:
    """Where a step makes a deviation grow: the growth a step, by step size and slope of the denoiser; the line is growth 1.

    Deviations between trajectories shrink in the exact flow for kappa < 1, so what lies in the orange, beyond the line, is the
    solver's fault.

    Args:
        growth: the growth of a step h at slopes kappa (K,), (K,):
            ``lambda h, kappa: diffode.verify.growth("dpmpp:order=2", h, kappa)``.
        ax, size: as in :func:`error_curves`.
        steps: steps h in log-SNR, rising; 40 from 0.1 to 5 if None.
        slopes: slopes kappa, rising; 120 from -1.5 to 0.999 if None.
        bar: whether a colour bar stands beside the axes.

    Returns:
        The axes.

    Raises:
        ArgumentError: for a growth that is no function, or gives other shapes; or steps or slopes that don't rise.
    """
    if not callable(growth):
        raise ArgumentError(f"growth must be a function of (h, kappa), as verify.growth for a solver, got {growth!r:.60}")
    across, kappa = _rising(steps, _STEPS, "steps"), _rising(slopes, _SLOPES, "slopes")
    columns: list[Any] = []
    for h in across.tolist():
        found = torch.as_tensor(growth(h, kappa), dtype=torch.float64)
        if found.shape != kappa.shape or bool(torch.isnan(found).any()) or bool((found < 0).any()):
            raise ArgumentError(f"growth must give a number >= 0 for each of {len(kappa)} slopes, got {found!r:.60} at h={h:g}")
        columns.append(found.clamp(max=1e2))
    grown = torch.stack(columns, 1)
    with style():
        ax = axes_for(ax, size)
        shown = ax.pcolormesh(
            across.numpy(),
            kappa.numpy(),
            grown.clamp(min=1e-3).log10().numpy(),
            cmap=_SIGNED,
            vmin=-1,
            vmax=1,
            shading="nearest",
            rasterized=True,
        )
        if float(grown.min()) < 1 < float(grown.max()):
            ax.contour(across.numpy(), kappa.numpy(), grown.numpy(), levels=[1.0], colors=EXACT, linewidths=1)
        ax.axhline(0, color=REMARK, lw=0.5, ls=":")
        ax.set(xlabel="step h in log-SNR", ylabel="slope kappa of the denoiser", ylim=(float(kappa[0]), float(kappa[-1])))
        figure = ax.get_figure()
        if bar and figure is not None:
            figure.colorbar(shown, ax=ax, label="log10 of the growth a step")
    return ax


def _rising(values: Sequence[float] | None, usual: tuple[float, float, int], name: str) -> Tensor:
    if values is None:
        return torch.linspace(*usual, dtype=torch.float64)
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        found = torch.zeros(0)
    if found.ndim != 1 or len(found) < 2 or not bool(torch.isfinite(found).all()) or not bool((found.diff() > 0).all()):
        raise ArgumentError(f"{name} must be two or more finite numbers that rise, got {values!r:.60}")
    return found
