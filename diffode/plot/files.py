"""Pictures as files: PNG, PDF or SVG by the name's ending, whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path as FilePath
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffode.errors import ArgumentError
from diffode.file_names import place_of
from diffode.output_files import write_whole
from diffode.plot.appearance import STYLE

#: Endings of pictures, with what makes the same picture the same bytes at any time.
_ENDINGS: dict[str, dict[str, Any]] = {
    ".png": {},
    ".pdf": {"metadata": {"CreationDate": None}},
    ".svg": {"metadata": {"Date": None}},
}
#: Dots an inch of a picture in dots.
_DOTS = 200


def figure_of(drawn: object) -> Figure:
    """The figure of a picture given as a figure, as axes, or as an array or list of axes; ArgumentError for anything else."""
    first = drawn
    while not isinstance(first, Figure | Axes) and hasattr(first, "__len__") and hasattr(first, "__getitem__") and len(first):
        if isinstance(first, str | dict):
            break
        first = first[0]
    figure = first.get_figure(root=True) if isinstance(first, Axes) else first
    if not isinstance(figure, Figure):
        raise ArgumentError(f"picture must be a figure or axes of Matplotlib, got {type(drawn).__name__}")
    return figure


def save(picture: object, file: str | os.PathLike[str], *, dpi: float = _DOTS, tight: bool = False) -> FilePath:
    """Write a picture as PNG, PDF or SVG, by the ending of the name; the file holds all of it, or what it held before.

    Args:
        picture: a figure, axes, or several axes of one figure.
        file: its name, ending in ``.png``, ``.pdf`` or ``.svg``.
        dpi: dots an inch, of PNG and of what is drawn in dots inside the others.
        tight: whether the page is cut to what is drawn; by default it has the size in inches that was asked for.

    Returns:
        The file's place.

    Raises:
        ArgumentError: for another ending, a wrong ``dpi``, or a file that can't be written.
    """
    place = place_of(file, "picture file")
    figure = figure_of(picture)
    ending = place.suffix.lower()
    if ending not in _ENDINGS:
        raise ArgumentError(f"picture file must end in .png, .pdf or .svg, got {str(file)!r:.100}")
    if isinstance(dpi, bool) or not isinstance(dpi, int | float) or not 10 <= dpi <= 2400:
        raise ArgumentError(f"dpi must be a number from 10 to 2400, got {dpi!r:.60}")
    drawn = io.BytesIO()
    texts: dict[Any, Any] = {key: STYLE[key] for key in ("pdf.fonttype", "svg.fonttype", "svg.hashsalt")}
    with matplotlib.rc_context(texts):
        figure.savefig(drawn, format=ending[1:], dpi=dpi, bbox_inches="tight" if tight else None, **_ENDINGS[ending])
    write_whole(place, drawn.getvalue(), "picture")
    return place
