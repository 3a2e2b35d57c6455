"""The error of a memory in its parts: projection (measure and order), closure (the ODE's window), discretisation (the hold)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffode.errors import ArgumentError
from diffode.hippo.arguments import number_of, signal_of, times_of
from diffode.hippo.holds import Hold, polynomials
from diffode.hippo.memory import Memory
from diffode.hippo.polynomials import gauss
from diffode.hippo.signals import Signal

Array = np.ndarray[Any, Any]

#: Panels of 8 nodes on which reconstructions are compared.
_PANELS = 500
#: Most samples at which reconstructions of sampled signals are compared.
_MOST_POINTS = 20_000
#: Gauss nodes of a step in the projection of a sampled signal: where steps are long beside the basis functions, and else.
_NODES = (24, 6)
#: Share of a wave of the last basis function that a short step has.
_SHORT = 0.05
#: Numbers of basis functions that are held at once.
_AT_ONCE = 2**22
#: Tolerance of exact coefficients.
_TOLERANCE = 1e-10
#: Share of a signal, at its end, on which a measure without a window is looked at.
_LAST_PART = 0.25


@dataclass(frozen=True)
class Errors:
    """Root mean square errors over what a memory covers, relative to that of the signal there.

    Attributes:
        total: of what the run's memory reconstructs.
        projection: of what the exact coefficients reconstruct: the measure's and the order's share.
        closure: between these and what the ODE makes of the signal: the share of what it takes for the leaving signal.
        discretisation: between that and the run: the hold's share.
    """

    total: float
    projection: float
    closure: float
    discretisation: float


@dataclass(frozen=True)
class Reconstruction:
    """A memory of a signal at its last time, beside the signal.

    Attributes:
        times: where they are compared, (n,).
        signal: its values, (n,).
        values: what the memory reconstructs there, (n,).
        coefficients: the memory, (N,).
        errors: the error and its parts.
        note: that a window, or the span that was asked for, is longer than what there is to compare; else empty.
    """

    times: Array
    signal: Array
    values: Array
    coefficients: Array
    errors: Errors
    note: str = ""


def of_known(memory: Memory, signal: Signal, samples: int, hold: str | Hold, *, span: float | None = None) -> Reconstruction:
    """The memory at time 1 of a signal that is known on [0, 1], from its samples at equal steps.

    Args:
        memory: the memory.
        signal: the signal.
        samples: number of steps.
        hold: the rule for steps.
        span: the last part of [0, 1] that is compared; by default the window, 1 for ``legs``, 1/4 for ``lagt``.
    """
    times = np.linspace(0, 1, samples + 1)
    found = memory.run(signal(times), times, hold)
    answer, exact = _exact(memory, signal)
    length, note = _span(memory, 1.0, span)
    edges = np.unique(
        np.concatenate([1 - length * np.linspace(0, 1, _PANELS + 1), [b for b in signal.breaks if b > 1 - length]])
    )
    x, w = gauss(8)
    at = (edges[:-1, None] + np.diff(edges)[:, None] * x).ravel()
    weights = (np.diff(edges)[:, None] * w).ravel()
    return replace(_compared(memory, 1.0, at, signal(at), weights, (found, answer, exact)), note=note)


@functools.lru_cache(maxsize=64)
def _exact(memory: Memory, signal: Signal) -> tuple[Array, Array]:
    """What the ODE makes of a signal on [0, 1], and its projection: kept for runs with other holds and steps."""
    answer = memory.solution(signal, 1.0, breaks=signal.breaks, tolerance=_TOLERANCE)
    return answer, memory.project(signal, 1.0, since=0.0, breaks=signal.breaks, tolerance=_TOLERANCE)


def of_samples(memory: Memory, u: Any, times: Any, hold: str | Hold, *, span: float | None = None) -> Reconstruction:
    """The memory at the last time of a sampled signal (L,), L >= 2; between its samples it is taken for cubics through four.

    Args:
        memory: the memory.
        u: samples, (L,).
        times: their times, or one step; ``legs`` counts from the first of them.
        hold: the rule for steps, whose discretisation is measured against the cubics.
        span: the last part of the signal that is compared; by default as for :func:`of_known`.
    """
    values = signal_of(u).astype(np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ArgumentError(f"u must be a signal of shape (L,) with L >= 2, got shape {values.shape}")
    own = times_of(times, len(values))
    own = own - own[0]
    now = float(own[-1])
    found = memory.run(values, own, hold)
    answer = memory.run(values, own, "cubic")
    exact = answer if memory.measure.closed else _projected(memory, values, own)
    length, note = _span(memory, now, span)
    inside = np.flatnonzero(own >= now - length * (1 + 1e-12))
    kept = inside[np.unique(np.linspace(0, len(inside) - 1, min(len(inside), _MOST_POINTS)).round().astype(int))]
    gaps = np.diff(own[kept], prepend=own[kept][0], append=own[kept][-1])
    # Weights of the trapezoid rule; those of a single point are nothing, and any other do.
    weights = (gaps[1:] + gaps[:-1]) / 2 if len(kept) > 1 else np.ones(1)
    return replace(_compared(memory, now, own[kept], values[kept], weights, (found, answer, exact)), note=note)


def _span(memory: Memory, whole: float, span: float | None) -> tuple[float, str]:
    """The length of the last part of a signal that is compared, and a note where that is less than was asked for."""
    measure = memory.measure
    own = whole if measure.logarithmic else measure.window
    window = min(own, whole)
    if span is None and math.isinf(own):
        return whole * _LAST_PART, ""
    asked = own if span is None else number_of(span, "span", 0.0)
    if asked <= window * (1 + 1e-12):
        return min(asked, window), ""
    longer = f"the window {asked:g} of {measure.spec}" if span is None else f"the span {asked:g}"
    shorter = "the signal" if own >= whole else f"the window of {measure.spec}"
    return window, f"{longer} is longer than {shorter}: the last {window:g} is compared"


def _compared(
    memory: Memory, now: float, at: Array, signal: Array, weights: Array, memories: tuple[Array, Array, Array]
) -> Reconstruction:
    found, answer, exact = (memory.reconstruct(c, at, now) for c in memories)

    largest = float(np.abs(signal).max(initial=0.0)) or 1.0

    def size(values: Array) -> float:
        # In units of the largest value, since squares of tiny ones are 0.
        return math.sqrt(weights @ (values / largest) ** 2 / weights.sum())

    # A signal that is 0 where it is looked at has no relative error.
    unit = size(signal) or 1.0
    gaps = (found - signal, exact - signal, answer - exact, found - answer)
    errors = Errors(*(size(gap) / unit for gap in gaps))
    return Reconstruction(at, signal, found, memories[0], errors)


def _projected(memory: Memory, u: Array, times: Array) -> Array:
    """The exact coefficients at the last time of the cubics through samples, by quadrature of every step in the window."""
    now = float(times[-1])
    first = now - memory.measure.window
    a = polynomials(u[:, None], times, 3)[:, 0]
    begin = max(0, int(np.searchsorted(times, first, side="right")) - 1)
    low, width = np.maximum(times[begin:-1], first), np.diff(times)[begin:]
    length = times[begin + 1 :] - low
    x, w = gauss(_NODES[int(length.max() * memory.order / memory.measure.window < _SHORT)])
    found = np.zeros(memory.order)
    many = max(1, _AT_ONCE // (len(x) * memory.order))
    for k in range(0, len(low), many):
        part = slice(k, k + many)
        points = low[part, None] + length[part, None] * x
        place = (points - times[begin:-1][part, None]) / width[part, None]
        values = np.einsum("cqi,ci->cq", place[..., None] ** np.arange(4), a[begin:][part])
        lag = (now - points).clip(0, memory.measure.window)
        found += (values * w * length[part, None]).ravel() @ memory.projection_kernel(lag.ravel())
    return found
