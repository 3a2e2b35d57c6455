"""Pictures of the residual of an equation, over noise levels and in space."""

from __future__ import annotations

from pathlib import Path as FilePath

import torch
from matplotlib.figure import Figure

from diffode import plot
from diffode.paths import Path
from diffode.verify.field.equations import Residuals

#: Smallest residual in a picture, in place of smaller ones and of 0, which has no logarithm.
_LEAST = 1e-18


def draw_residuals(residuals: Residuals, path: Path, title: str, tolerance: float | None = None) -> Figure:
    """A figure of relative residuals against the noise level, and in one and two dimensions also in space."""
    with plot.style():
        return _drawn(residuals, path, title, tolerance)


def _drawn(residuals: Residuals, path: Path, title: str, tolerance: float | None) -> Figure:
    values = residuals.values.clamp(min=_LEAST).log10()
    levels = torch.tensor([path.rho(t) for t in residuals.times.tolist()], dtype=torch.float64)
    dim = residuals.points.shape[1]
    figure = Figure(figsize=(11, 4.2) if dim <= 2 else (6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if dim <= 2 else 1, squeeze=False)[0]
    panels[0].semilogx(levels, values, ".", ms=4, alpha=0.6, color=plot.PALETTE[0])
    if tolerance:
        panels[0].axhline(torch.tensor(tolerance).log10(), color=plot.PALETTE[1], lw=1, label=f"tolerance {tolerance:g}")
        panels[0].legend()
    panels[0].set(xlabel="noise level sigma/alpha", ylabel="log10 relative residual")
    panels[0].grid(True)
    if dim <= 2:
        # Points are in units of the law's spread at each level, so that all levels fit in one picture.
        known, place = torch.unique(levels, return_inverse=True)
        spread = torch.stack([residuals.points[levels == level].std(0).max().clamp(min=1e-300) for level in known])
        scaled = residuals.points / spread[place][:, None]
        across = levels.log10() if dim == 1 else scaled[:, 1]
        shown = panels[1].scatter(scaled[:, 0], across, c=values, s=14, cmap="viridis")
        panels[1].set(
            xlabel="x / spread at its level", ylabel="log10 sigma/alpha" if dim == 1 else "second coordinate / spread"
        )
        figure.colorbar(shown, ax=panels[1], label="log10 relative residual")
    figure.suptitle(title)
    return figure


def save_residuals(residuals: Residuals, path: Path, title: str, tolerance: float | None, file: FilePath) -> None:
    """Draw residuals and write them, as PNG, PDF or SVG by the ending of the file."""
    plot.save(draw_residuals(residuals, path, title, tolerance), file, dpi=100)
