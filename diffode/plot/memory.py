"""A picture of memories: the signal and what each keeps of it, the residual, the coefficients, error against order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffode.errors import ArgumentError
from diffode.hippo.study import Reconstruction
from diffode.plot.appearance import inches, looks, style
from diffode.plot.labels import EndLabels, Label
from diffode.plot.scales import set_evaluations

#: Most points of a line.
_POINTS = 4000
#: Lowest value of axes of errors and coefficients, which rounding would fill.
_LOWEST = 1e-17

#: A memory in a picture: name of the measure, order, reconstruction.
Line = tuple[str, int, Reconstruction]


def memories(lines: Sequence[Line], title: str = "", *, figure: Figure | None = None, size: object = (11.0, 7.5)) -> Any:
    """What memories hold of a signal, in four pictures: the signal, residuals, coefficients, and error against order.

    Args:
        lines: for each memory the name of its measure, its order and its reconstruction
            (:func:`diffode.hippo.study.of_known` or ``of_samples``). Signal, residual and coefficients show the largest order
            of each measure.
        title: above the picture.
        figure: an empty figure to draw on; a new one if None.
        size: of a new figure, as in :func:`error_curves`.

    Returns:
        The axes, (2, 2): signal and residual above coefficients and errors.

    Raises:
        ArgumentError: for no lines, or other things than reconstructions.
    """
    own: list[Any] = list(lines) if isinstance(lines, list | tuple) else []
    right = [isinstance(line, tuple) and len(line) == 3 and isinstance(line[2], Reconstruction) for line in own]
    if not own or not all(right):
        raise ArgumentError(f"lines must be one or more (name, order, reconstruction), got {lines!r:.60}")
    if figure is None:
        import matplotlib.pyplot

        figure = matplotlib.pyplot.figure(figsize=inches(size), layout="constrained")
    if not isinstance(figure, Figure):
        raise ArgumentError(f"figure must be a Matplotlib figure or None, got {type(figure).__name__}")
    with style():
        return _draw(figure, own, title)


def _draw(figure: Figure, lines: Sequence[Line], title: str) -> Any:
    names = list(dict.fromkeys(name for name, _, _ in lines))
    own = looks(names)
    largest = {name: max((line for line in lines if line[0] == name), key=lambda line: line[1]) for name in names}
    axes = figure.subplots(2, 2)
    (signal, residual), (coefficients, error) = axes
    longest = max((found for _, _, found in largest.values()), key=lambda found: float(np.ptp(found.times)))
    shown = slice(None, None, max(1, len(longest.times) // _POINTS))
    signal.plot(longest.times[shown], longest.signal[shown], color="0.6", lw=2.5, label="signal")
    for name, order, found in largest.values():
        shown = slice(None, None, max(1, len(found.times) // _POINTS))
        line: dict[str, Any] = {"color": own[name].colour, "lw": 1, "label": f"{name}, N = {order}"}
        signal.plot(found.times[shown], found.values[shown], **line)
        residual.plot(found.times[shown], (found.values - found.signal)[shown], **line)
        sizes = np.abs(found.coefficients).clip(_LOWEST)
        coefficients.semilogy(np.arange(order), sizes, own[name].marker, ms=3, color=own[name].colour, mew=0, label=name)
    labels = []
    set_evaluations(error, {order for _, order, _ in lines}, "order N")
    for name in names:
        pairs = sorted((order, found.errors) for key, order, found in lines if key == name)
        orders, total = [order for order, _ in pairs], [max(e.total, _LOWEST) for _, e in pairs]
        error.semilogy(orders, total, **own[name].line)
        error.semilogy(orders, [max(e.projection, _LOWEST) for _, e in pairs], lw=0.7, color=own[name].colour)
        labels.append(Label(name, float(orders[-1]), total[-1], own[name].colour))
    EndLabels(error, labels)
    low, high = float(longest.signal.min()), float(longest.signal.max())
    margin = 0.3 * (high - low) or max(1.0, 0.3 * abs(high))
    # A memory that overshoots at its ends must not hide the rest.
    signal.set(title="the signal, and what the memories hold of it", xlabel="time", ylim=(low - margin, high + margin))
    residual.set(title="residual", xlabel="time")
    coefficients.set(title="coefficients |c_n|", xlabel="n")
    error.set(title="relative error (thin, without marks: of the exact projection)")
    for panel in (signal, residual, coefficients, error):
        panel.grid(True)
    for panel in (signal, coefficients):
        panel.legend()
    figure.suptitle(title)
    return axes
