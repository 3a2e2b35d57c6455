"""Samples that move from noise to data, as a GIF or as a page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path as FilePath
from string import Template
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field
from diffode.file_names import place_of
from diffode.output_files import writable, write_whole
from diffode.plot.appearance import EXACT, PALETTE, inches, style
from diffode.plot.run import Run, scaled_states, states_of
from diffode.plot.space import Window, density_in, law_of, line_density, plane, shade, window_of

#: Pixels of a moving density along each side.
_RESOLUTION = 110
#: Bins of a moving histogram.
_BINS = 70
#: Share of the frames that show the end.
_REST = 0.15
#: Most frames of an animation, and dots an inch of each.
_MOST_FRAMES, _DOTS = 600, 100

_PAGE = Template("""<figure class="diffode-animation" style="max-width:${width}px;margin:0 auto;font-family:sans-serif">
<img alt="$title" style="width:100%;display:block">
<div style="display:flex;gap:.5em;align-items:center">
<button type="button" aria-label="play or pause" style="min-width:3em">&#9654;</button>
<input type="range" min="0" max="$last" value="0" style="flex:1" aria-label="frame"></div>
<script>(() => {
const root = document.currentScript.parentElement, image = root.querySelector("img");
const frames = [$frames].map(f => "data:image/png;base64," + f);
const range = root.querySelector("input"), button = root.querySelector("button");
let timer = null;
const show = i => { range.value = i; image.src = frames[i]; };
const stop = () => { clearInterval(timer); timer = null; button.innerHTML = "&#9654;"; };
button.onclick = () => {
  if (timer) return stop();
  button.innerHTML = "&#10074;&#10074;";
  timer = setInterval(() => show((+range.value + 1) % frames.length), $pause);
};
range.oninput = () => { stop(); show(+range.value); };
show(0);
})();</script></figure>
""")


def animate(
    solution: Run,
    field: Field | None = None,
    file: str | os.PathLike[str] = "samples.gif",
    *,
    seconds: float = 4.0,
    fps: int = 15,
    size: object = (3.6, 3.6),
    title: str = "",
) -> FilePath:
    """Write an animation of a run's samples, moving from noise to data over the density of each time.

    Every step takes the same part of it; within a step samples move on straight lines. Points are divided by
    sqrt(alpha^2 + (sigma/scale)^2), so that every time fits one window. No other program is needed.

    Args:
        solution: a run of one or two coordinates a row, made with ``keep="all"``.
        field: the field that it followed; its density is shown where it is known.
        file: ends in ``.gif``, or in ``.html`` for a piece of a page with a slider.
        seconds: length of the animation, in seconds.
        fps: frames a second.
        size: width and height in inches.
        title: above it.

    Returns:
        The file's place.

    Raises:
        ArgumentError: for a run without states, of more than two coordinates or without a finite row; another ending; more than
            600 frames; or a file that can't be written, of which it is tried before anything is drawn.
    """
    states, law = states_of(solution).flatten(2), law_of(field)
    place = place_of(file, "animation file")
    if place.suffix.lower() not in (".gif", ".html"):
        raise ArgumentError(f"animation file must end in .gif or .html, got {str(file)!r:.100}")
    dim = states.shape[2]
    if dim > 2 or (law is not None and law.dim != dim):
        raise ArgumentError(f"solution must have one or two coordinates a row, those of the field, got {dim}")
    count = _count(seconds, fps)
    sides = inches(size)
    writable(place, "animation")
    times = [float(t) for t in solution.times]
    scaled = scaled_states(states, times, field)
    frames = list(_frames(scaled, times, field, law, count, sides, title))
    if place.suffix.lower() == ".gif":
        write_whole(place, _gif(frames, 1000 / fps), "animation")
    else:
        write_whole(place, _page(frames, 1000 / fps, title, sides[0]).encode(), "animation")
    return place


def _count(seconds: object, fps: object) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ArgumentError(f"seconds must be a positive number, got {seconds!r:.60}")
    if isinstance(fps, bool) or not isinstance(fps, int) or not 1 <= fps <= 50:
        raise ArgumentError(f"fps must be an integer from 1 to 50 (frames a second), got {fps!r:.60}")
    count = max(2, round(seconds * fps))
    if count > _MOST_FRAMES:
        raise ArgumentError(f"seconds * fps must be at most {_MOST_FRAMES} frames, got {count}: lower one of them")
    return count


def _frames(
    states: Tensor, times: list[float], field: Field | None, law: ExactField | None, count: int, sides: tuple[float, float],
    title: str,
) -> Iterator[Image.Image]:  # fmt: skip
    window = window_of(states[-1], law)
    moving = max(2, round(count * (1 - _REST)))
    steps = len(times) - 1
    with style():
        figure = Figure(figsize=sides, dpi=_DOTS, layout="constrained")
        ax = figure.subplots()
        for i in range(count):
            clock = min(i / (moving - 1), 1.0) * steps
            before = min(int(clock), steps - 1)
            share = clock - before
            points = torch.lerp(states[before], states[before + 1], share)
            t = times[before] * (1 - share) + times[before + 1] * share
            ax.clear()
            _draw(ax, points[torch.isfinite(points).all(1)], law, t, window)
            ax.set_title(f"{title}{', ' if title else ''}t = {t:#.3g}")
            canvas = io.BytesIO()
            figure.savefig(canvas, format="png", dpi=_DOTS)
            with Image.open(canvas) as image:
                yield image.convert("RGB")


def _draw(ax: Axes, points: Tensor, law: ExactField | None, t: float, window: Window) -> None:
    if points.shape[1] == 2:
        if law is not None:
            shade(ax, density_in(law, window, t, _RESOLUTION), window)
        ax.plot(
            points[:, 0], points[:, 1], ".", color=EXACT, ms=min(4.0, max(1.5, 60 / math.sqrt(len(points)))), mew=0, alpha=0.8
        )
        plane(ax, window)
        return
    edges = (window.low[0], window.high[0])
    heights: Any = ax.hist(points[:, 0].numpy(), bins=_BINS, range=edges, density=True, color=PALETTE[5], alpha=0.6)[0]
    top = float(max(heights))
    if law is not None:
        top = max(top, line_density(ax, law, window, t, 1.2))
    ax.set(xlim=edges, ylim=(0, 1.08 * top), xlabel="x / spread at its time", ylabel="density")


def _gif(frames: list[Image.Image], pause: float) -> bytes:
    """All frames with the colours of the last one, whose shades are the most."""
    palette = frames[-1].quantize(128)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    written = io.BytesIO()
    reduced[0].save(written, format="GIF", save_all=True, append_images=reduced[1:], duration=round(pause), loop=0)
    return written.getvalue()


def _page(frames: list[Image.Image], pause: float, title: str, width: float) -> str:
    codes = []
    for frame in frames:
        written = io.BytesIO()
        frame.quantize(128).save(written, format="PNG", optimize=True)
        codes.append('"' + base64.b64encode(written.getvalue()).decode() + '"')
    return _PAGE.substitute(
        title=html.escape(title or "samples moving from noise to data", quote=True), last=len(frames) - 1,
        frames=",".join(codes), pause=round(pause), width=round(1.6 * 100 * width),
    )  # fmt: skip
