"""Signals on [0, 1] that are known at every time, to measure memories with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from diffode.errors import ArgumentError
from diffode.hippo.arguments import number_of, numbers_of, order_of
from diffode.specs import Registry

Array = np.ndarray[Any, Any]

#: Steps of the Mackey-Glass equation for its delay.
_STEPS_A_DELAY = 340
#: Its delay, in its own time, and how much of that goes by before the signal begins.
_DELAY, _BEFORE = 17.0, 300.0
#: Waves of a heartbeat: place in the beat, width, height (P, Q, R, S, T), after McSharry et al. (2003).
_WAVES = ((0.20, 0.025, 0.15), (0.36, 0.010, -0.15), (0.40, 0.012, 1.0), (0.44, 0.010, -0.25), (0.66, 0.040, 0.3))


@dataclass(frozen=True)
class Signal:
    """A signal: ``signal(times)`` gives its values.

    Attributes:
        spec: the spec that makes it.
        fn: the function, of an array of times.
        breaks: the times at which it jumps.
    """

    spec: str
    fn: Callable[[Array], Array] = field(repr=False)
    breaks: tuple[float, ...] = ()

    def __call__(self, times: Any) -> Array:
        """Values at times, in their shape."""
        at = numbers_of(times, "times")
        return numbers_of(self.fn(at), f"signal {self.spec!r}")


registry: Registry[Signal] = Registry("signal", Signal)


def get(spec: str | Signal, **options: Any) -> Signal:
    """The signal that a spec describes: sine, white, step, mackey_glass, ecg, or a place of your own.

    >>> get("sine:frequency=2")([0.0, 0.125]).round(9).tolist()
    [0.0, 1.0]
    """
    return spec if isinstance(spec, Signal) else registry.make(spec, **options)


def sine(frequency: float = 3.0) -> Signal:
    """A sine of a frequency in cycles on [0, 1]."""
    turn = 2 * np.pi * number_of(frequency, "frequency of signal 'sine'", 0.0)
    return Signal(f"sine:frequency={frequency!r}" if frequency != 3 else "sine", lambda t: np.sin(turn * t))


def white(band: float = 20.0, seed: int = 0) -> Signal:
    """White noise below a frequency in cycles on [0, 1]: 64 waves of random frequency and phase, of mean square 1."""
    draw = np.random.Generator(np.random.PCG64(order_of(seed, "seed of signal 'white'", 0, 2**63 - 1)))
    turns = 2 * np.pi * number_of(band, "band of signal 'white'", 0.0) * draw.random(64)
    phases = 2 * np.pi * draw.random(64)
    options = {key: value for key, value, usual in (("band", band, 20.0), ("seed", seed, 0)) if value != usual}

    def waves(t: Array) -> Array:
        return np.asarray(sum(np.sin(turn * t + phase) for turn, phase in zip(turns, phases, strict=True)) / np.sqrt(32))

    return Signal("white" + _written(options), waves)


def step(at: float = 0.375) -> Signal:
    """0 before a time, 1 from it on."""
    place = number_of(at, "at of signal 'step'")
    return Signal("step" + _written({"at": at} if at != 0.375 else {}), lambda t: np.where(t >= place, 1.0, 0.0), (place,))


def mackey_glass(span: float = 600.0) -> Signal:
    """The Mackey-Glass equation x' = 0.2 y/(1 + y^10) - x/10, y = x(s - 17), over a span of s, of mean 0 and mean square 1."""
    length = number_of(span, "span of signal 'mackey_glass'", 0.0)
    if length > 1e4:
        raise ArgumentError(f"span of signal 'mackey_glass' must be at most 10000, got {length:g}")
    curve = _mackey_glass(length)
    return Signal("mackey_glass" + _written({"span": span} if span != 600 else {}), lambda t: curve(t.clip(-0.01, 1.01)))


@functools.lru_cache(maxsize=4)
def _mackey_glass(span: float) -> CubicSpline:
    """A spline through the solution by classical Runge-Kutta steps, a 340th of the delay each."""
    h = _DELAY / _STEPS_A_DELAY
    count = int((_BEFORE + 1.02 * span) / h) + 2
    x = np.full(count + _STEPS_A_DELAY + 1, 1.2)

    def rate(now: float, late: float) -> float:
        return 0.2 * late / (1 + late**10) - 0.1 * now

    for k in range(_STEPS_A_DELAY, len(x) - 1):
        j = k - _STEPS_A_DELAY
        early, late = x[j], x[j + 1]
        # The delayed value halfway, from the cubic through its neighbours.
        middle = (9 * (early + late) - x[max(j - 1, 0)] - x[j + 2]) / 16
        k1 = rate(x[k], early)
        k2 = rate(x[k] + h / 2 * k1, middle)
        k3 = rate(x[k] + h / 2 * k2, middle)
        x[k + 1] = x[k] + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(x[k] + h * k3, late))
    own = x[_STEPS_A_DELAY:]
    times = (np.arange(len(own)) * h - _BEFORE) / span
    kept = own[(times >= 0) & (times <= 1)]
    return CubicSpline(times, (own - kept.mean()) / kept.std())


def ecg(beats: float = 10.0) -> Signal:
    """A heartbeat of five waves, so many times on [0, 1]; each beat is the same."""
    rate = number_of(beats, "beats of signal 'ecg'", 0.0)

    def waves(t: Array) -> Array:
        place = rate * t
        turn = place - np.floor(place)
        # The waves of the beats before and after reach into this one.
        return np.asarray(
            sum(
                height * np.exp(-0.5 * ((turn - at - shift) / width) ** 2)
                for at, width, height in _WAVES
                for shift in (-1, 0, 1)
            )
        )

    return Signal("ecg" + _written({"beats": beats} if beats != 10 else {}), waves)


def _written(options: dict[str, Any]) -> str:
    return ":" + ",".join(f"{key}={value!r}" for key, value in options.items()) if options else ""


for _name, _make in (("sine", sine), ("white", white), ("step", step), ("mackey_glass", mackey_glass), ("ecg", ecg)):
    registry.register(_name, _make)
