"""How every picture looks: sizes in inches, fonts, and colours, markers and dashes that stay apart for every eye."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffode.errors import ArgumentError

#: Colours of Okabe and Ito without their yellow, which is lost on white (M. Okabe, K. Ito, "Color Universal Design", 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: Colours of what is no method: the law of the data, exact things, remarks.
SHADES, EXACT, REMARK = "Blues", "#000000", "#777777"
#: Shapes of points. Their number and that of the colours have no common divisor but that they differ in turn by the shift.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Dashes of lines; the first has none.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5)))
#: Names of sizes, with width and height in inches: a column of a page, a page's width, a slide.
SIZES = {"column": (3.4, 2.6), "page": (7.0, 4.2), "slide": (10.0, 5.6)}
#: Smallest and largest side of a picture, in inches.
_SIDES = (0.5, 60.0)

#: Settings of Matplotlib under which everything here is drawn.
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "pdf.fonttype": 42,  # Text stays text, which journals ask for.
    "svg.fonttype": "none",
    "svg.hashsalt": "diffode",
    "figure.dpi": 110,
    "image.interpolation": "nearest",
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash of a curve; ``line`` has them as arguments of Matplotlib."""

    colour: str
    marker: str
    dash: Any

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.5}
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, **edge}


def look(index: int) -> Look:
    """The look of curve number ``index``: colours repeat after 7, with other dashes and markers; looks repeat after 28.

    >>> look(0).colour, look(7).colour, look(0).dash == look(7).dash
    ('#0072B2', '#0072B2', False)
    """
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise ArgumentError(f"index must be an integer >= 0 (the number of a curve), got {index!r:.60}")
    turn = index // len(PALETTE)
    return Look(PALETTE[index % len(PALETTE)], MARKERS[(index + 3 * turn) % len(MARKERS)], DASHES[turn % len(DASHES)])


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in their order; give the same names to several pictures and they agree."""
    return {name: look(i) for i, name in enumerate(dict.fromkeys(names))}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """A block in which pictures of your own, made with Matplotlib, look like those of this room.

    >>> with style():
    ...     matplotlib.rcParams["pdf.fonttype"]
    42
    """
    interactive = matplotlib.is_interactive()
    try:
        with matplotlib.rc_context(STYLE):
            try:
                yield
            finally:
                # A notebook says by this that figures are shown, when the first one is made, which may be here.
                interactive = matplotlib.is_interactive()
    finally:
        matplotlib.interactive(interactive)


def inches(size: object) -> tuple[float, float]:
    """Width and height in inches, from a name (``"column"``, ``"page"``, ``"slide"``) or a pair of numbers.

    >>> inches("column"), inches((4, 3))
    ((3.4, 2.6), (4.0, 3.0))
    """
    if isinstance(size, str):
        if size in SIZES:
            return SIZES[size]
    elif isinstance(size, tuple | list) and len(size) == 2:
        numbers = [float(s) for s in size if isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s)]
        if len(numbers) == 2 and all(_SIDES[0] <= s <= _SIDES[1] for s in numbers):
            return numbers[0], numbers[1]
    named = ", ".join(repr(name) for name in SIZES)
    raise ArgumentError(f"size must be {named} or (width, height) in inches, each from 0.5 to 60, got {size!r:.60}")


def axes_for(ax: object, size: object) -> Axes:
    """The axes to draw on: those that were given, or new ones of a size, on a figure that notebooks show.

    Raises:
        ArgumentError: for an ``ax`` that is no Matplotlib axes, or a wrong size.
    """
    if ax is None:
        import matplotlib.pyplot

        return matplotlib.pyplot.subplots(figsize=inches(size), layout="constrained")[1]
    if not isinstance(ax, Axes):
        hint = "; of a figure, take figure.subplots()" if isinstance(ax, Figure) else ""
        raise ArgumentError(f"ax must be Matplotlib axes or None, got {type(ax).__name__}{hint}")
    return ax
