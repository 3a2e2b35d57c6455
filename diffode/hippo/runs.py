"""Runs of a memory along a signal: the last state, every state, or one of every few."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diffode.errors import ArgumentError
from diffode.hippo import scan
from diffode.hippo.arguments import equal_steps, finite, numbers_of, order_of, signal_of, times_of
from diffode.hippo.holds import Hold, Polynomial, hold_of
from diffode.hippo.legs import LegS, join, joined, parts
from diffode.hippo.measure import Measure
from diffode.input_files import shown

Array = np.ndarray[Any, Any]
Keep = Literal["last", "all"] | int

#: Longest block whose coefficients are computed by one product.
_BLOCK = 1024
#: Longest block of equal steps that is read at its end.
_LONGEST = 4096
#: Numbers of states that are put together before they are handed on.
_AT_ONCE = 2**22
_REMEDY = "take a shorter step, another hold (zoh, foh, cubic are exact for their inputs) or smaller numbers"


@dataclass(frozen=True)
class Run:
    """A checked request: a signal u (L, channels) at times (L,), with its polynomials a (L - 1, channels, q) and first state.

    ``held`` says whether u had no axis of channels, which the states then lack too.
    """

    measure: Measure
    order: int
    hold: Hold
    u: Array
    times: Array
    steps: Array
    a: Array
    first: Array
    held: bool

    @property
    def step(self) -> float | None:
        """The step, if all of them (but one from time 0, for ``legs``) are the same; else None."""
        inner = self.steps[self.skipped :]
        if not len(inner):
            return None
        begin, end = self.times[self.skipped], self.times[-1]
        if not equal_steps(inner, 1.0 if self.measure.logarithmic else max(abs(begin), abs(end))):
            return None
        return float((begin / end) ** (1 / len(inner)) if self.measure.logarithmic else (end - begin) / len(inner))

    @property
    def skipped(self) -> int:
        """Number of steps, 0 or 1, that begin at time 0 of a logarithmic clock."""
        return int(self.measure.logarithmic and len(self.steps) > 0 and self.steps[0] == 0)

    def cell(self, step: float) -> tuple[Array, Array]:
        """(M, G) in the precision of the signal."""
        moved, inputs = self.hold.cell(self.measure, self.order, step)
        return moved.astype(self.u.dtype, copy=False), inputs.astype(self.u.dtype, copy=False)


def prepared(measure: Measure, order: int, u: Any, times: Any, hold: str | Hold, start: Any) -> Run:
    """A request, checked; ArgumentError for a wrong one."""
    signal = signal_of(u)
    own = times_of(times, len(signal))
    rule = hold_of(hold)
    channels = signal.reshape(len(signal), -1)
    kind = channels.dtype
    steps = measure.steps(own)
    if start is None:
        first = np.zeros((channels.shape[1], order), kind)
        if measure.logarithmic and own[0] == 0:
            # All the past is one moment.
            first[:, 0] = channels[0]
    else:
        if measure.logarithmic and own[0] == 0:
            raise ArgumentError(f"start must be left out where times begin at 0: measure {measure.name!r} has no earlier past")
        wanted = (order,) if signal.ndim == 1 else (channels.shape[1], order)
        given = numbers_of(start, "start")
        if given.shape != wanted:
            raise ArgumentError(f"start must be the memory at the first time, of shape {wanted}; got shape {given.shape}")
        first = given.reshape(-1, order).astype(kind)
    with np.errstate(all="ignore"):
        a = finite(rule.pieces(channels, own), "the signal between its samples", "take a lower degree, or smaller numbers")
    return Run(measure, order, rule, channels, own, steps, a.astype(kind, copy=False), first, signal.ndim == 1)


def run(wanted: Run, keep: Keep) -> Array:
    """The states that are kept: (channels, N) for ``"last"``, else (kept, channels, N); without channels if u has none."""
    with np.errstate(all="ignore"):
        found = _run(wanted, keep)
    checked(found)
    return found[..., 0, :] if wanted.held else found


def streamed(wanted: Run) -> Iterator[Array]:
    """What :func:`run` keeps with ``"all"``, in parts."""
    parts_of_run = every(wanted)
    while True:
        with np.errstate(all="ignore"):
            part = next(parts_of_run, None)
        if part is None:
            return
        checked(part)
        yield part[..., 0, :] if wanted.held else part


def checked(found: Array) -> Array:
    """States or readouts; NumericalError with a remedy unless all are finite."""
    return finite(found, "the memory", _REMEDY)


def _run(wanted: Run, keep: Keep) -> Array:
    length = len(wanted.u)
    if isinstance(keep, str):
        if keep not in ("last", "all"):
            raise ArgumentError(
                f"keep must be 'last', 'all' or a stride (keep=100 gives every hundredth state), got {shown(keep)}"
            )
        stride = 1 if keep == "all" else max(1, length - 1)
    else:
        stride = order_of(keep, "keep (a stride)", 1, 2**62)
    if stride == 1:
        whole = np.empty((length, *wanted.first.shape), wanted.u.dtype)
        place = 0
        for part in every(wanted):
            whole[place : place + len(part)] = part
            place += len(part)
        return whole[-1] if keep == "last" else whole
    found = wanted.first[None]
    if stride < length:
        found = np.concatenate([found, _ends(wanted, stride)])
    return found[-1] if keep == "last" else found


def every(wanted: Run) -> Iterator[Array]:
    """Every state, that of the first time too, in parts (n, channels, N) that follow each other."""
    yield wanted.first[None]
    skipped, state = wanted.skipped, wanted.first
    if skipped:
        moved, inputs = wanted.cell(0.0)
        state = state @ moved.T + wanted.a[0] @ inputs.T
        yield state[None]
    rest = wanted.a[skipped:]
    if not len(rest):
        return
    step = wanted.step
    if step is not None:
        yield from scan.states(*wanted.cell(step), rest, state)
        return
    walk = wanted.hold.walked(wanted.measure, wanted.steps[skipped:], rest.astype(np.float64), state.astype(np.float64))
    many = max(1, _AT_ONCE // state.size)
    while part := list(itertools.islice(walk, many)):
        yield np.stack(part).astype(wanted.u.dtype, copy=False)


def _ends(wanted: Run, stride: int) -> Array:
    """The states after every ``stride`` steps, (n, channels, N)."""
    count = len(wanted.steps) // stride
    step = wanted.step
    if step is not None and not wanted.skipped:
        cell = wanted.cell(step)
        if stride <= _LONGEST:
            return scan.ends(*cell, wanted.a, wanted.first, stride)
        found, state = [], wanted.first
        for k in range(count):
            state = scan.last(*cell, wanted.a[k * stride : (k + 1) * stride], state)
            found.append(state)
        return np.array(found).reshape(count, *wanted.first.shape)
    if isinstance(wanted.measure, LegS) and isinstance(wanted.hold, Polynomial):
        return _histories(wanted, stride).astype(wanted.u.dtype, copy=False)
    kept = np.empty((count, *wanted.first.shape), wanted.u.dtype)
    place = 0
    for part in every(wanted):
        index = np.arange(max(stride, -(-place // stride) * stride), place + len(part), stride)
        kept[index // stride - 1] = part[index - place]
        place += len(part)
    return kept


def _histories(wanted: Run, stride: int) -> Array:
    """The memories of ``legs`` after every ``stride`` steps: each stretch is projected, then joined to what was before."""
    count, order = len(wanted.steps) // stride, wanted.order
    times = wanted.times[: count * stride + 1 : stride]
    late = _stretches(wanted, stride, count)
    found = np.empty_like(late)
    state = wanted.first.astype(np.float64)[None]
    for k, ratio in enumerate(times[:-1] / times[1:]):
        state = late[k : k + 1] if ratio == 0 else joined(order, np.array([ratio]), state, late[k : k + 1])
        found[k] = state[0]
    return found


def _stretches(wanted: Run, stride: int, count: int) -> Array:
    """The Legendre coefficients of the signal on each of ``count`` stretches of ``stride`` steps, (count, channels, N)."""
    order, a, times = wanted.order, wanted.a, wanted.times[: count * stride + 1]
    steps = np.diff(times)
    alike = equal_steps(steps, times[-1])
    if stride > _BLOCK:
        return np.stack([
            _in_halves(order, a[k : k + stride], times[k : k + stride + 1], alike) for k in range(0, count * stride, stride)
        ])  # fmt: skip
    inputs = a[: count * stride].reshape(count, stride, a.shape[1], -1).transpose(0, 2, 1, 3).reshape(count, a.shape[1], -1)
    if alike:
        return np.asarray(inputs.astype(np.float64) @ _moments(order, np.linspace(0, 1, stride + 1), a.shape[2] - 1))
    found = np.empty((count, a.shape[1], order))
    for k in range(count):
        own = times[k * stride : (k + 1) * stride + 1]
        found[k] = inputs[k].astype(np.float64) @ _moments(order, (own - own[0]) / (own[-1] - own[0]), a.shape[2] - 1)
    return found


def _moments(order: int, edges: Array, degree: int) -> Array:
    """The integrals of phi_n times the powers of the place in a cell, over the cells between edges: (cells * q, N)."""
    return parts(order, edges[:-1], np.diff(edges), degree).transpose(0, 2, 1).reshape(-1, order)


def readouts(wanted: Run, c: Array) -> Array:
    """The readouts C c of every state, (L, channels, p): without the states where all steps are alike."""
    step = wanted.step
    if step is None or wanted.skipped:
        return np.concatenate([part @ c.T for part in every(wanted)])
    moved, inputs = wanted.cell(step)
    length = len(wanted.a)
    found = np.empty((length + 1, wanted.first.shape[0], len(c)), wanted.u.dtype)
    found[0] = wanted.first @ c.T
    found[1:] = scan.convolved(scan.kernel(c, moved, inputs, length), wanted.a)
    if wanted.first.any():
        start = scan.kernel(c, moved, moved @ wanted.first.T, length)
        found[1:] += start.transpose(0, 2, 1)
    return found


def _in_halves(order: int, a: Array, times: Array, alike: bool) -> Array:
    """The Legendre coefficients of a long stretch, (channels, N): of blocks first, and then of pairs, again and again."""
    whole = len(a) // _BLOCK * _BLOCK
    inputs = (
        a[:whole].reshape(-1, _BLOCK, a.shape[1], a.shape[2]).transpose(0, 2, 1, 3).reshape(-1, a.shape[1], _BLOCK * a.shape[2])
    )
    edges = [float(t) for t in times[: whole + 1 : _BLOCK]]
    if alike:
        moments = _moments(order, np.linspace(0, 1, _BLOCK + 1), a.shape[2] - 1)
        found = list(inputs.astype(np.float64) @ moments)
    else:
        found = []
        for k, own in enumerate(inputs):
            there = times[k * _BLOCK : (k + 1) * _BLOCK + 1]
            places = (there - there[0]) / (there[-1] - there[0])
            found.append(own.astype(np.float64) @ _moments(order, places, a.shape[2] - 1))
    if whole < len(a):
        there = times[whole:]
        own = a[whole:].transpose(1, 0, 2).reshape(a.shape[1], -1).astype(np.float64)
        found.append(own @ _moments(order, (there - there[0]) / (there[-1] - there[0]), a.shape[2] - 1))
        edges.append(float(times[-1]))
    halves = [matrix.T for matrix in join(order, 0.5)]
    while len(found) > 1:
        pairs = []
        for k in range(0, len(found) - 1, 2):
            ratio = (edges[k + 1] - edges[k]) / (edges[k + 2] - edges[k])
            if math.isclose(ratio, 0.5, rel_tol=0, abs_tol=1e-15) or (alike and k + 2 < len(found)):
                pairs.append(found[k] @ halves[0] + found[k + 1] @ halves[1])
            else:
                pairs.append(joined(order, np.array([ratio]), found[k][None], found[k + 1][None])[0])
        found, edges = pairs + found[len(found) // 2 * 2 :], edges[::2] + ([edges[-1]] if len(found) % 2 else [])
    return np.asarray(found[0])
