"""A picture of memories: the signal and what each keeps of it, the residual, the coefficients, error against order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from diffode.hippo.study import Reconstruction
from diffode.output_files import whole_file

#: Most points of a line.
_POINTS = 4000
#: Lowest value of axes of errors and coefficients, which rounding would fill.
_LOWEST = 1e-17

#: A memory in a picture: name of the measure, order, reconstruction.
Line = tuple[str, int, Reconstruction]


def draw_memories(title: str, lines: Sequence[Line]) -> Figure:
    """The picture, from reconstructions; signal, residual and coefficients show the largest order of each measure."""
    names = list(dict.fromkeys(name for name, _, _ in lines))
    colour = {name: colormaps["tab10"](i % 10) for i, name in enumerate(names)}
    largest = {name: max((line for line in lines if line[0] == name), key=lambda line: line[1]) for name in names}
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (signal, residual), (coefficients, error) = figure.subplots(2, 2)
    longest = max((found for _, _, found in largest.values()), key=lambda found: float(np.ptp(found.times)))
    shown = slice(None, None, max(1, len(longest.times) // _POINTS))
    signal.plot(longest.times[shown], longest.signal[shown], color="0.6", lw=2.5, label="signal")
    for name, order, found in largest.values():
        shown = slice(None, None, max(1, len(found.times) // _POINTS))
        style = {"color": colour[name], "lw": 1, "label": f"{name}, N = {order}"}
        signal.plot(found.times[shown], found.values[shown], **style)
        residual.plot(found.times[shown], (found.values - found.signal)[shown], **style)
        sizes = np.abs(found.coefficients).clip(_LOWEST)
        coefficients.semilogy(np.arange(order), sizes, ".", ms=4, color=colour[name], label=name)
    for name in names:
        own = sorted((order, found.errors) for key, order, found in lines if key == name)
        orders = [order for order, _ in own]
        error.loglog(orders, [max(e.total, _LOWEST) for _, e in own], "o-", ms=4, color=colour[name], label=name)
        error.loglog(orders, [max(e.projection, _LOWEST) for _, e in own], ":", lw=1, color=colour[name])
    low, high = float(longest.signal.min()), float(longest.signal.max())
    margin = 0.3 * (high - low) or max(1.0, 0.3 * abs(high))
    # A memory that overshoots at its ends must not hide the rest.
    signal.set(title="the signal, and what the memories hold of it", xlabel="time", ylim=(low - margin, high + margin))
    residual.set(title="residual", xlabel="time")
    coefficients.set(title="coefficients |c_n|", xlabel="n")
    ticks = sorted({order for _, order, _ in lines})
    error.set(title="relative error (dotted: of the exact projection)", xlabel="order N")
    error.set_xticks(ticks, [str(tick) for tick in ticks])
    error.minorticks_off()
    for panel in (signal, residual, coefficients, error):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, frameon=False)
    figure.suptitle(title)
    return figure


def save(figure: Figure, file: str | FilePath) -> None:
    """Write a figure as PNG, whole or not at all; ArgumentError if the file can't be written."""
    with whole_file(file, "picture") as handle:
        figure.savefig(handle, format="png", dpi=110)
