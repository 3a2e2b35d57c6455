"""Curves: error against the number of evaluations of the field (NFE), and errors along a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from diffode.errors import ArgumentError
from diffode.plot.appearance import EXACT, REMARK, Look, axes_for, looks, style
from diffode.plot.labels import EndLabels, Label
from diffode.plot.scales import robust_limits, set_evaluations


@runtime_checkable
class Measured(Protocol):
    """A curve of a study: a method, its numbers of evaluations, and its errors."""

    @property
    def method(self) -> str:
        """Its label."""

    @property
    def nfe(self) -> Sequence[int]:
        """Numbers of evaluations."""

    @property
    def error(self) -> Sequence[float]:
        """An error for each of them."""


@runtime_checkable
class Historic(Protocol):
    """The errors of a training by step: of the starts to train on, and of held-out starts, which may be none."""

    @property
    def error(self) -> Sequence[float]:
        """Of the starts to train on."""

    @property
    def held_out(self) -> Sequence[float]:
        """Of held-out starts."""


Points = tuple[Sequence[float], Sequence[float]]


def error_curves(
    curves: Mapping[str, Points] | Iterable[Measured],
    *,
    ax: Axes | None = None,
    size: object = "page",
    floor: float | None = None,
    ylabel: str = "mean end-point error / scale",
    styles: Mapping[str, Look] | None = None,
    labels: bool = True,
) -> Axes:
    """Error against NFE, both logarithmic: every NFE is a tick, and each curve has its label at its end.

    Args:
        curves: by label, the numbers of evaluations and the errors, ``{"ddim": ([5, 10], [0.2, 0.1])}``; or the curves of a
            study, ``diffode.studies.curves(results)``, of one target and path. An error that is NaN or infinite is a run that
            failed. It is shown, as an error far above all others is, by a triangle at the upper edge.
        ax: axes to draw on; new ones if None.
        size: size of a new picture in inches, ``(width, height)``, or ``"column"``, ``"page"`` or ``"slide"``.
        floor: the error of the reference, in a shaded band below which errors mean nothing.
        ylabel: name of the error.
        styles: the look of each label, from :func:`looks`, where pictures are to agree.
        labels: whether curves are named at their ends; where several panels share a legend they need not be.

    Returns:
        The axes.

    Raises:
        ArgumentError: for curves without a point, of different lengths, with an NFE that is no positive number, with a negative
            error, or with one label for two of them; or another wrong argument.

    >>> ax = error_curves({"ddim": ([5, 10, 20], [0.2, 0.1, 0.05]), "heun": ([6, 10, 20], [0.1, 0.02, 0.005])})
    >>> [int(tick) for tick in ax.get_xticks()]
    [5, 6, 10, 20]
    """
    own = _checked(curves)
    chosen = _looks(own, styles)
    if floor is not None and (isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor < math.inf):
        raise ArgumentError(f"floor must be an error >= 0 or None, got {floor!r:.60}")
    with style():
        ax = axes_for(ax, size)
        set_evaluations(ax, [n for nfe, _ in own.values() for n in nfe])
        ax.set_yscale("log")
        limits = robust_limits([e for _, errors in own.values() for e in errors])
        low, high = limits or (0.1, 1.0)
        if floor and floor >= low / 1e3:
            low = min(low, floor / 1.5)
        names = []
        for name, (nfe, errors) in own.items():
            kept = [e if 0 < e < math.inf else math.nan for e in errors]
            ax.plot(nfe, kept, **chosen[name].line)
            _off_range(ax, nfe, errors, chosen[name], (low, high))
            shown = [(n, e) for n, e in zip(nfe, kept, strict=True) if not math.isnan(e)]
            end = shown[-1] if shown else (nfe[-1], low if errors[-1] == 0 else high)
            names.append(Label(name, float(end[0]), min(max(float(end[1]), low), high), chosen[name].colour))
        if floor and floor >= low:
            # A line of any dash could be a solver's.
            ax.axhspan(low, floor, color=REMARK, alpha=0.16, lw=0, zorder=1, gid="floor")
            ax.annotate(
                "error of the reference",
                (0.01, floor),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                color=REMARK,
                fontsize="small",
            )
        ax.set_ylim(low, high)
        if labels:
            EndLabels(ax, names)
        ax.set_ylabel(ylabel)
        ax.grid(True, which="major")
    return ax


def _off_range(ax: Axes, nfe: Sequence[float], errors: Sequence[float], own: Look, limits: tuple[float, float]) -> None:
    """Triangles at the edges of the axes for points above and below them, failed runs among those above."""
    across = blended_transform_factory(ax.transData, ax.transAxes)
    for n, error in zip(nfe, errors, strict=True):
        above, below = not error <= limits[1], error < limits[0]
        if above or below:
            ax.plot(
                [n], [0.985 if above else 0.015], marker="^" if above else "v", ms=5, ls="", color=own.colour,
                markerfacecolor="white", transform=across, clip_on=False, zorder=4, gid="off range",
            )  # fmt: skip


def _checked(curves: object) -> dict[str, Points]:
    """The curves by label, sorted by NFE."""
    if isinstance(curves, Mapping):
        given = list(curves.items())
    elif isinstance(curves, Iterable) and not isinstance(curves, str):
        given = []
        for curve in curves:
            if not isinstance(curve, Measured):
                raise ArgumentError(
                    f"curves must have a method, nfe and error, as those of a study; got {type(curve).__name__}"
                )
            given.append((curve.method, (curve.nfe, curve.error)))
    else:
        raise ArgumentError(f"curves must be a mapping of labels to (nfe, errors), or curves of a study, got {curves!r:.60}")
    own: dict[str, Points] = {}
    for name, points in given:
        label = str(name)
        if label in own:
            raise ArgumentError(
                f"curves must have labels that differ, got {label!r} twice: draw each target and path by itself"
            )
        own[label] = _points(label, points)
    if not own:
        raise ArgumentError("curves must hold one curve or more, got none: there is nothing to draw")
    return own


def _points(label: str, points: object) -> Points:
    if not isinstance(points, tuple | list) or len(points) != 2:
        raise ArgumentError(f"curves[{label!r}] must be a pair (nfe, errors), got {points!r:.60}")
    nfe, errors = (numbers(part, f"{what} of curve {label!r}") for part, what in zip(points, ("nfe", "errors"), strict=True))
    if len(nfe) != len(errors) or not nfe:
        raise ArgumentError(f"curve {label!r} must have an error for each NFE, got {len(nfe)} NFE and {len(errors)} errors")
    for n in nfe:
        if not 0 < n < math.inf:
            raise ArgumentError(f"nfe of curve {label!r} must be positive numbers, got {n:g}")
    for error in errors:
        if error < 0:
            raise ArgumentError(f"errors of curve {label!r} must not be negative, got {error:g}: give the absolute value")
    order = sorted(range(len(nfe)), key=lambda i: nfe[i])
    return [nfe[i] for i in order], [errors[i] for i in order]


def numbers(values: Any, what: str) -> list[float]:
    """Numbers from a sequence, an array or a tensor of one axis; ArgumentError, which calls them ``what``, for others."""
    try:
        found = [float(v) for v in values]
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"{what} must be a sequence of numbers, got {values!r:.60}") from None
    if isinstance(values, str):
        raise ArgumentError(f"{what} must be a sequence of numbers, got the text {values!r:.60}")
    return found


def _looks(own: Iterable[str], styles: Mapping[str, Look] | None) -> Mapping[str, Look]:
    if styles is None:
        return looks(own)
    if not isinstance(styles, Mapping) or not all(isinstance(value, Look) for value in styles.values()):
        raise ArgumentError(f"styles must give a Look for each label, as plot.looks(labels) does, got {styles!r:.60}")
    missing = [name for name in own if name not in styles]
    if missing:
        raise ArgumentError(f"styles must give a look for each label, {missing[0]!r} has none: make them by plot.looks(labels)")
    return styles


def losses(
    history: Historic | Any,
    *,
    ax: Axes | None = None,
    size: object = "column",
    before: float | None = None,
    xlabel: str = "step",
    ylabel: str = "mean error / scale",
) -> Axes:
    """The errors of a training, step by step, on a logarithmic axis: of the starts to train on, and of held-out starts.

    Args:
        history: a result of training (:class:`diffode.learned.Trained`), or its ``history``.
        ax, size: as in :func:`error_curves`.
        before: the error of what the training began from, drawn as a line; None takes it from a result of training, 0 draws
            none.
        xlabel, ylabel: names of the axes.

    Returns:
        The axes.

    Raises:
        ArgumentError: if there is no history, as of a grid whose search keeps none; or for a wrong argument.
    """
    if before is None and hasattr(history, "errors") and hasattr(history.errors, "before"):
        before = history.errors.before
    # A result is asked for its history first: it answers to the former names of that too, with a warning.
    own = getattr(history, "history", history)
    if not isinstance(own, Historic):
        raise ArgumentError(f"history must be a result of training or its history, got {type(history).__name__}")
    error, held_out = numbers(own.error, "history.error"), numbers(own.held_out, "history.held_out")
    if not error and not held_out:
        raise ArgumentError("history must hold the errors of steps, got none: this training keeps none")
    steps = getattr(own, "steps", 0) or max(len(error), len(held_out))
    with style():
        ax = axes_for(ax, size)
        labels = []
        for values, name, own_look in zip((error, held_out), ("training starts", "held-out starts"), looks("ab").values(),
                                          strict=True):  # fmt: skip
            if not values:
                continue
            kept = [v if 0 < v < math.inf else math.nan for v in values]
            # Errors of tables begin before the first step; those that are seen less often lie at equal distances.
            before_all = len(values) == steps + 1
            places = [float(k) if before_all else (k + 1) * steps / len(values) for k in range(len(values))]
            few = len(values) <= 40
            ax.plot(places, kept, color=own_look.colour, ls=own_look.dash, lw=1.2 if few else 0.7,
                    marker=own_look.marker if few else "", ms=3)  # fmt: skip
            last = next((i for i in reversed(range(len(kept))) if not math.isnan(kept[i])), None)
            if last is not None:
                labels.append(Label(name, places[last], kept[last], own_look.colour))
        limits = robust_limits([*error, *held_out, *([before] if before else [])])
        if limits:
            ax.set_yscale("log")
            ax.set_ylim(*limits)
        if before:
            ax.axhline(before, color=EXACT, lw=0.8, ls="--", zorder=1)
            labels.append(Label("before", ax.get_xlim()[1], before, EXACT))
        EndLabels(ax, labels)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_xlim(-0.02 * steps, 1.02 * steps)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid(True, which="major")
    return ax
