"""Labels beside the ends of curves, instead of a legend: moved apart when they are drawn, at whatever size that is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform

#: Gap between the axes and the labels, in points.
_GAP = 12.0
#: Distance between the lines of neighbouring labels, in heights of the font.
_LEADING = 1.22
#: Sizes of the font, in points: the first that fits is taken, and the last if none does.
_FONTS = (7.0, 6.0, 5.0)


@dataclass(frozen=True)
class Label:
    """A text beside the point (x, y) at which a curve ends, in data coordinates."""

    text: str
    x: float
    y: float
    colour: str


#: Marks between the words of a spec, after which its name may break, as a class of characters of a regular expression.
MARKS = r",:=_@/+"


def in_lines(text: str, most: int) -> str:
    """A caption in lines of at most ``most`` characters, which break after spaces and marks, and never inside a word.

    >>> in_lines("universal:member=18,scale=1.7, NFE 6", 20)
    'universal:member=18,\\nscale=1.7, NFE 6'
    """
    lines = [""]
    for piece in re.findall(rf"[^\s{MARKS}]*[\s{MARKS}]*", text):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones, in squares, that are a gap apart and in the same order.

    In sorted order the k-th place less k gaps must not fall: isotonic regression, by pooling neighbours that would.

    >>> spread([0.0, 0.1, 5.0], 1.0)
    [-0.45, 0.55, 5.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[tuple[float, int]] = []
    for k, i in enumerate(order):
        mean, count = wanted[i] - k * gap, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    lifted = [mean for mean, count in pools for _ in range(count)]
    places = [0.0] * len(wanted)
    for k, i in enumerate(order):
        places[i] = lifted[k] + k * gap
    return places


class EndLabels(Artist):
    """Labels at the right of axes, one for each curve, with a thin line from the curve's end to its label."""

    def __init__(self, ax: Axes, labels: Sequence[Label]):
        super().__init__()
        self.labels = tuple(labels)
        # The clip box of axes would hide what lies beside them.
        self.set_clip_on(False)
        self.set_zorder(5)
        ax.add_artist(self)
        self.set_clip_path(None)

    def boxes(self, renderer: Any) -> list[Bbox]:
        """Where the labels lie, in pixels."""
        return [text.get_window_extent(renderer) for text, _ in self._placed(renderer)]

    def get_window_extent(self, renderer: Any = None) -> Bbox:
        """The box around all labels, in pixels, for which layouts leave room."""
        boxes = self.boxes(renderer)
        return Bbox.union(boxes) if boxes else Bbox.null()

    def get_tightbbox(self, renderer: Any = None) -> Bbox:
        """As the window extent: nothing of it is clipped."""
        return self.get_window_extent(renderer)

    def draw(self, renderer: Any) -> None:
        """Draw the labels and their lines."""
        if not self.get_visible():
            return
        for text, line in self._placed(renderer):
            line.draw(renderer)
            text.draw(renderer)

    def _placed(self, renderer: Any) -> list[tuple[Text, Line2D]]:
        ax = self.axes
        if not isinstance(ax, Axes) or not self.labels:
            return []
        figure = ax.get_figure(root=True)
        if figure is None:
            return []
        # An SVG or PDF renderer counts 72 dots an inch.
        pixels = renderer.points_to_pixels(1.0) if renderer is not None else figure.dpi / 72
        box = ax.get_window_extent(renderer)
        fitting = [f for f in _FONTS if len(self.labels) * f * _LEADING * pixels <= box.height]
        font = fitting[0] if fitting else _FONTS[-1]
        ends = ax.transData.transform([(label.x, label.y) for label in self.labels])
        gap = font * _LEADING * pixels
        wanted = [min(max(float(y), box.y0 + gap / 2), box.y1 - gap / 2) for y in ends[:, 1]]
        places = _inside(spread(wanted, gap), gap, box.y0, box.y1)
        left = box.x1 + _GAP * pixels
        placed = []
        for label, (x, y), place in zip(self.labels, ends, places, strict=True):
            text = Text(left, place, label.text, color=label.colour, fontsize=font, va="center_baseline", ha="left")
            inner = min(max(float(y), box.y0), box.y1)
            middle = box.x1 + 0.25 * _GAP * pixels
            line = Line2D([float(x), middle, left - 1.5 * pixels], [inner, inner, place], color=label.colour, lw=0.5, alpha=0.7)
            for artist in (text, line):
                artist.set_transform(IdentityTransform())
                artist.set_figure(figure)
            placed.append((text, line))
        return placed


def _inside(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved into a range, still a gap apart; where they don't fit, they stick out evenly."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    low, high = low + gap / 2, high - gap / 2
    missing = (len(places) - 1) * gap - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    at = high
    for i in reversed(order):
        at = min(at, found[i])
        found[i], at = at, at - gap
    at = low
    for i in order:
        at = max(at, found[i])
        found[i], at = at, at + gap
    return found
