"""Axes of numbers of evaluations and of errors: every number a tick, and a range that one failure does not stretch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, Formatter, NullFormatter, NullLocator

from diffode.plot.appearance import STYLE

#: Lengths of the whiskers beyond which an error counts as an outlier, in interquartile ranges (Tukey's outer fence).
_WHISKERS = 3.0
#: Least interquartile range, as a factor of the errors: curves that hardly fall are no reason to cut others.
_LEAST_RANGE = 3.0
#: Room beyond the lowest and the highest error, as a share of the range of logarithms.
_MARGIN = 0.06
#: Width of a digit and gap between two labels, in sizes of the font.
_DIGIT, _BETWEEN = 0.62, 0.45


class SpacedLabels(Formatter):
    """Labels of fixed ticks, of which those are left out that would touch another; the first and the last stay."""

    def __init__(self, ticks: Sequence[float]):
        self.ticks = list(ticks)

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of one tick."""
        return f"{x:g}"

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """The labels of all ticks, at the present size of the axes."""
        texts = [f"{v:g}" for v in values]
        ax = getattr(self.axis, "axes", None)
        figure = ax.get_figure(root=True) if isinstance(ax, Axes) else None
        if not isinstance(ax, Axes) or figure is None:
            return texts
        places = ax.transData.transform([(v, ax.get_ylim()[0]) for v in values])[:, 0]
        pixels = STYLE["xtick.labelsize"] * figure.dpi / 72
        return [text if keep else "" for text, keep in zip(texts, shown(places.tolist(), texts, pixels), strict=True)]


def shown(places: Sequence[float], texts: Sequence[str], font: float) -> list[bool]:
    """Which labels of ticks at rising places, centred there, fit beside each other; the first and last always do.

    >>> shown([0, 10, 12, 40], ["4", "5", "6", "8"], 10)
    [True, False, True, True]
    """
    halves = [font * _DIGIT * len(text) / 2 for text in texts]

    def apart(i: int, j: int) -> bool:
        return places[j] - places[i] >= halves[i] + halves[j] + font * _BETWEEN

    last = len(places) - 1
    keep = [i in (0, last) for i in range(len(places))]
    before = 0
    for i in range(1, last):
        if apart(before, i) and apart(i, last):
            keep[i], before = True, i
    return keep


def set_evaluations(ax: Axes, nfe: Iterable[float], label: str = "NFE") -> None:
    """A logarithmic horizontal axis on which every number of evaluations is a tick."""
    ticks = sorted({float(n) for n in nfe})
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(SpacedLabels(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    if ticks[0] < ticks[-1]:
        reach = (ticks[-1] / ticks[0]) ** 0.03
        ax.set_xlim(ticks[0] / reach, ticks[-1] * reach)
    else:
        ax.set_xlim(ticks[0] / 1.5, ticks[0] * 1.5)
    ax.set_xlabel(label)


def robust_limits(values: Iterable[float]) -> tuple[float, float] | None:
    """Limits of a logarithmic axis that hold all values but far outliers above, which are to be shown at its edge.

    Small errors are no failures: a curve that converges is seen to its end.

    Args:
        values: errors; those that are not positive and finite have no part.

    Returns:
        The limits, or None if no value is positive and finite.

    >>> low, high = robust_limits([1e-4, 1e-3, 1e-2, 1e-1, 1e12])
    >>> low < 1e-4, 1e-1 < high < 1
    (True, True)
    """
    logs = sorted(math.log(v) for v in values if 0 < v < math.inf)
    if not logs:
        return None
    lower, upper = _quantile(logs, 0.25), _quantile(logs, 0.75)
    fence = _WHISKERS * max(upper - lower, math.log(_LEAST_RANGE))
    inside = [v for v in logs if v <= upper + fence]
    margin = max(_MARGIN * (inside[-1] - inside[0]), 0.1)
    low, high = max(inside[0] - margin, -700.0), min(inside[-1] + margin, 700.0)
    return math.exp(low), math.exp(high)


def _quantile(values: Sequence[float], share: float) -> float:
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
