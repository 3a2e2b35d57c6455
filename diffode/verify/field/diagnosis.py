r"""``check_field``: the usual mistakes in a user's field, each tried and judged by the noise that the field fails to predict.

A function may be taken for another view than it is, have the other sign, run in another time (0 to 999, reversed, a noise
level), or want its input scaled. Each such reading turns it into a noise prediction :math:`\hat\epsilon`; the right reading is
the one with the smallest :math:`E|\hat\epsilon(\alpha x_0 + \sigma\epsilon) - \epsilon|^2` over noise levels around the data's
scale, which no wrong one can reach. Without data the x_0 are the field's own samples under that reading. A difference of their
spread from the data's then counts against the reading too, since a wrong one may agree with itself on a collapsed set.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffode import solvers
from diffode.errors import ArgumentError
from diffode.fields import PREDICTIONS, Field, Prediction
from diffode.fields.model import Model
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.randomness import generator_from, normal
from diffode.verify.field.contract import contract
from diffode.verify.report import Check, Report

#: Noise levels in units of the data's scale.
_LEVELS = (0.05, 0.3, 1.0, 3.0, 10.0, 30.0)
#: Largest number of points at each level.
_MOST_POINTS = 256
#: Smallest number of points at each level.
_LEAST_POINTS = 32
#: Number of points times that of coordinates, which limits the points where each has many coordinates to average over.
_COORDINATES = 4096
#: Factor of the best loss in the bound below which another reading's loss is as good.
_FACTOR = 1.15
#: Addend in that bound.
_ADDEND = 0.02
#: The factor with data, where all readings share points and noise, so that none is better than a right one.
_FACTOR_ON_DATA = 1.06
#: The addend with data.
_ADDEND_ON_DATA = 0.01
#: Largest loss of a field that predicts noise at all; that of the constant 0 is 1.
_USEFUL = 0.85
#: Largest loss; worse ones count as this one.
_WORST = 4.0
#: Number of steps by which the field's own samples are drawn.
_STEPS = 16
#: Number of rounds in which a field's own scale has to settle.
_ROUNDS = 5
#: Largest change of its logarithm in a round when it has settled.
_SETTLED = 0.1
#: The views in the order in which equal ones are named: on EDM the velocity is the noise.
_KINDS: tuple[Prediction, ...] = ("noise", "denoised", "velocity", "score")

#: Name of the check of a function's reading.
READING = "read as it is meant"

#: A function of x and a time, as a user writes it.
Function = Callable[[Tensor, "float | Tensor"], Tensor]


@dataclass(frozen=True)
class Reading:
    """A reading of a function: its view, its sign, its time and its input."""

    kind: Prediction
    sign: int = 1
    time: str = "t"
    input: str = "x"

    def differences(self, other: Reading) -> int:
        """Number of respects in which two readings differ."""
        names = ("kind", "sign", "time", "input")
        count = sum(1 for name in names if getattr(self, name) != getattr(other, name))
        # The convention of data at t = 1 changes both the time and a velocity's sign, which counts once.
        backwards = self.kind == "velocity" and self.sign != other.sign and self.time == "1 - t" != other.time
        return count - int(backwards)


#: Times that a network may expect, by name.
TIMES: dict[str, Callable[[Path, float], float]] = {
    "t": lambda path, t: t,
    "1 - t": lambda path, t: 1 - t,
    "999 t": lambda path, t: 999 * t,
    "1000 t": lambda path, t: 1000 * t,
    "sigma/alpha": lambda path, t: path.rho(t),
    "log(sigma/alpha)/4": lambda path, t: math.log(path.rho(t)) / 4,
}
#: Factors of x in the input that a network may expect, by name.
INPUTS: dict[str, Callable[[Path, float, float], float]] = {
    "x": lambda path, t, unit: 1.0,
    "x/alpha": lambda path, t, unit: 1 / path.alpha(t),
    "x/sqrt(sigma^2 + (alpha scale)^2)": lambda path, t, unit: 1 / math.hypot(path.sigma(t), path.alpha(t) * unit),
}


def check_field(
    function: Function,
    kind: Prediction,
    path: Path | str,
    dim: int | Sequence[int],
    *,
    scale: float | None = None,
    data: Tensor | None = None,
    source: Tensor | None = None,
    seed: int = 0,
) -> Report:
    """Find the usual mistakes in a field.

    Args:
        function: fn(x, t) in the form for :class:`diffode.Field`.
        kind: view that it is meant to give.
        path: path that it is meant for, or its spec.
        dim: number of coordinates or shape of a row of x.
        scale: root mean variance of the data; unless given, that of ``data``, or 1.
        data: some data (n, *shape), which make the diagnosis surer than the field's own samples.
        source: points of the noise x_1, (n, *shape), where it is no normal one; with ``data`` alone. They are paired at random.
        seed: seed of all draws.

    Returns:
        A report whose advice names the mistakes and their fixes, with the facts ``"kind"``, ``"loss"`` (the share of the noise
        that is left unpredicted under the intended reading), ``"best_reading"`` (a :class:`Reading`, or None if none explains
        the function) and ``"best_loss"``.

    >>> import diffode
    >>> exact = diffode.exact_field("ring8", "vp")
    >>> check_field(lambda x, t: -exact.noise(x, t), "noise", exact.path, 2, scale=exact.scale).advice
    ('its sign is wrong: return -f(x, t)',)
    """
    if kind not in PREDICTIONS:
        raise ArgumentError(f"kind must be one of {', '.join(PREDICTIONS)}, got {kind!r}")
    path, shape = get_path(path), (dim,) if isinstance(dim, int) else tuple(dim)
    if data is not None and tuple(data.shape[1:]) != shape:
        raise ArgumentError(f"data must be (n, {', '.join(map(str, shape))}), got {tuple(data.shape)}")
    if source is not None and (data is None or tuple(source.shape[1:]) != shape):
        what = "data= too" if data is None else f"(n, {', '.join(map(str, shape))}), got {tuple(source.shape)}"
        raise ArgumentError(f"source must be points of the noise, and needs {what}")
    known, unsure = scale is not None or data is not None, ""
    if scale is None:
        scale = 1.0 if data is None else float(data.double().var(0).mean().sqrt())
    t = path.time_from_rho(min(max(scale, path.rho(path.t_min)), path.rho(path.t_max)))
    x = math.hypot(path.sigma(t), path.alpha(t) * scale) * normal((3, *shape), generator=generator_from(seed))
    owner = getattr(function, "__self__", function)
    name = getattr(function, "__name__", type(owner).__name__)
    if isinstance(owner, torch.nn.Module):
        # A network is called in its own dtype, as everywhere.
        network = Model(function, "the network")
        function = lambda x, t: network(x, x, t)  # noqa: E731
    report = functools.partial(_report, name, kind, path, data is not None)
    checks, advice = contract(Field(function, kind, path, scale=scale, probe=False), x, t), []
    usable = function
    if not all(check.passed for check in checks[:2]):
        usable = _single(function)
        retried = contract(Field(usable, kind, path, scale=scale, probe=False), x, t)
        if all(check.passed for check in retried[:2]):
            advice.append("it works in float32 only: use lambda x, t: f(x.float(), t).to(x.dtype)")
        else:
            told = dict.fromkeys(check.detail for check in checks[:2] if check.detail)
            return report(checks, math.inf, None, [*told])
    trial = _Trial(usable, path, shape, scale, data, seed, source)
    asked = Reading(kind)
    loss = trial.loss(asked)
    best = _best(trial, asked, loss)
    if not known and (best[0] != asked or best[1] >= _USEFUL):
        unsure = "the scale of its data is not known and taken for 1: give data (--data) or scale (--scale) to be surer"
        own = _at_its_own_scale(trial, asked)
        if own is not None and own.loss(asked) < _USEFUL and _best(own, asked, own.loss(asked))[0] == asked:
            # A field of another law than the data's may agree with itself, which only its user can see.
            settled = (
                f"as {kind} it is right for data of scale {own.unit:.3g} alone: if theirs is that, say so (scale, --scale)"
            )
            return report(checks, own.loss(asked), None, [*advice, f"{settled}; else give data (--data)"])
    found = best if best[1] < _USEFUL else None
    if found is None:
        advice.append(
            f"no reading of it predicts noise (losses {loss:.2f} as {kind}, {best[1]:.2f} at best; a constant has 1): is it "
            f"trained, on data of scale {scale:g}, for path {path.spec}?"
        )
    elif clearly_less(best[1], loss, data is not None):
        advice += _fixes(asked, best[0])
    if advice and unsure:
        advice.insert(0, unsure)
    return report(checks, loss, found, advice)


def _report(
    name: str,
    kind: Prediction,
    path: Path,
    on_data: bool,
    checks: Sequence[Check],
    loss: float,
    found: tuple[Reading, float] | None,
    advice: Sequence[str],
) -> Report:
    best = "" if found is None else f", {found[1]:.3f} at best (a constant: 1)"
    detail = f"noise left unpredicted: {loss:.3f} as it is read{best}" if math.isfinite(loss) else "it can't be called"
    if advice and not on_data:
        detail += "; judged by its own samples: give --data or --target to be surer"
    reading = Check(READING, loss, detail=detail, passed=not advice if math.isfinite(loss) else None)
    facts = {
        "kind": kind,
        "path": path.spec,
        "loss": loss,
        "best_reading": None if found is None else found[0],
        "best_loss": None if found is None else found[1],
    }
    return Report(f"{name} as {kind} on {path.spec}", (*checks, reading), tuple(advice), facts)


def unpredicted(
    function: Function,
    kind: Prediction,
    path: Path,
    shape: Sequence[int],
    *,
    scale: float = 1.0,
    data: Tensor | None = None,
    source: Tensor | None = None,
    seed: int = 0,
) -> float:
    """The share of the noise that a field leaves unpredicted, by which :func:`check_field` compares readings."""
    return _Trial(function, path, tuple(shape), scale, data, seed, source).loss(Reading(kind))


def clearly_less(loss: float, other: float, on_data: bool) -> bool:
    """Whether ``loss`` is smaller than ``other`` by more than the difference of two good readings."""
    share, much = (_FACTOR_ON_DATA, _ADDEND_ON_DATA) if on_data else (_FACTOR, _ADDEND)
    return loss * share + much < other


def _best(trial: _Trial, asked: Reading, loss: float) -> tuple[Reading, float]:
    """The best reading, and its loss, among those that differ from the intended one in one respect, or in two."""
    best = asked, loss
    every = [
        Reading(kind, sign, time, put)
        for kind, sign, time, put in itertools.product(_KINDS, (1, -1), TIMES, INPUTS)
        if trial.can(time)
    ]
    for count in (1, 2):
        nearest = min(((r, trial.loss(r)) for r in every if r.differences(asked) == count), key=lambda pair: pair[1])
        # A reading that differs in more respects has to be better by a margin.
        if clearly_less(nearest[1], best[1], trial.on_data):
            best = nearest
    return best


def _at_its_own_scale(trial: _Trial, asked: Reading) -> _Trial | None:
    """A trial at the scale of the field's own samples under the intended reading, if they settle on a scale."""
    for _ in range(_ROUNDS):
        spread = trial.spread(asked)
        if not 0 < spread < math.inf:
            return None
        try:
            trial = trial.at(trial.unit * spread)
        except ArgumentError:
            return None
        if abs(math.log(spread)) < _SETTLED:
            return trial
    return None


def _fixes(asked: Reading, right: Reading) -> list[str]:
    """The changes that make the intended reading right, in words."""
    fixes = []
    backwards = right.time == "1 - t" and right.kind == "velocity" and right.sign == -1
    if right.kind != asked.kind:
        fixes.append(f"it gives the {right.kind}, not the {asked.kind}: use Field.from_{right.kind} (--kind {right.kind})")
    if backwards:
        fixes.append("its time runs from noise to data, with data at t = 1: use lambda x, t: -f(x, 1 - t)")
    elif right.sign != asked.sign:
        fixes.append("its sign is wrong: return -f(x, t)")
    if right.time != asked.time and not backwards:
        words = {
            "1 - t": "its time runs the other way: call f(x, 1 - t)",
            "999 t": "it wants timesteps 0 to 999, not 0 to 1: call f(x, 999 * t)",
            "1000 t": "it wants timesteps 0 to 1000, not 0 to 1: call f(x, 1000 * t)",
            "sigma/alpha": "it wants the noise level, not the time: call f(x, path.rho(t))",
            "log(sigma/alpha)/4": "it wants EDM's c_noise: call f(x, torch.as_tensor(path.rho(t)).log() / 4)",
        }
        fixes.append(words[right.time])
    if right.input != asked.input:
        fixes.append(f"it wants its input scaled: call f({right.input}, t)")
    return fixes


def _stream(seed: int, word: str) -> int:
    """The seed of a separate stream for every seed and word."""
    return int(np.random.SeedSequence([seed, zlib.crc32(word.encode())]).generate_state(1, np.uint64)[0])


def _single(function: Function) -> Function:
    return lambda x, t: function(x.float(), t).to(x.dtype)


class _Trial:
    """A function with the losses of the noise predictions of its readings."""

    def __init__(
        self,
        function: Function,
        path: Path,
        shape: tuple[int, ...],
        unit: float,
        data: Tensor | None,
        seed: int,
        noise: Tensor | None = None,
    ):
        self._function, self._path, self.unit, self._seed = function, path, unit, seed
        self._given, self.on_data = data, data is not None
        self._shape = shape
        self._points = max(_LEAST_POINTS, min(_MOST_POINTS, _COORDINATES // math.prod(shape)))
        self._data = None if data is None else data[: self._points].to(torch.float64)
        self._noise = None if noise is None else noise.to(torch.float64)
        inside = (path.rho(path.t_min) * 1.0001, path.rho(path.t_max) * 0.9999)
        levels = [level * unit for level in _LEVELS if inside[0] <= level * unit <= inside[1]]
        if len(levels) < 2:
            raise ArgumentError(f"path {path.spec!r} has no noise levels around the data's scale {unit:g}: give scale=")
        self._times = [path.time_from_rho(level) for level in levels]
        self._known: dict[Reading, float] = {}

    def at(self, unit: float) -> _Trial:
        """The same trial at another scale."""
        return _Trial(self._function, self._path, self._shape, unit, self._given, self._seed, self._noise)

    def spread(self, reading: Reading) -> float:
        """Spread of the field's own samples, in units of the scale; NaN if there are none."""
        try:
            with torch.no_grad():
                return float(self._samples(self._field(reading)).var(0).mean().sqrt()) / self.unit
        except Exception:  # a function may raise anything when it is read wrongly
            return math.nan

    def can(self, time: str) -> bool:
        """Whether a reading of the time is possible on this path; reversal and timesteps need times from 0 to 1."""
        return self._path.t_max <= 1 or time not in ("1 - t", "999 t", "1000 t")

    def loss(self, reading: Reading) -> float:
        """Mean squared error of a coordinate of the noise prediction over the levels, at most 4."""
        if reading not in self._known:
            try:
                with torch.no_grad():
                    self._known[reading] = self._measured(reading)
            except Exception:  # a function may raise anything when it is read wrongly
                self._known[reading] = _WORST
        return self._known[reading]

    def _measured(self, reading: Reading) -> float:
        field = self._field(reading)
        data = self._samples(field) if self._data is None else self._data
        source, total = generator_from(_stream(self._seed, "noise")), 0.0
        if self._data is None:
            spread = float(data.var(0).mean().sqrt()) / self.unit
            total = len(self._times) * abs(math.log(spread)) if 0 < spread < math.inf else math.inf
        for t in self._times:
            noise, unit = self._drawn(data, source)
            x = self._path.alpha(t) * data + self._path.sigma(t) * noise
            found = field.noise(x, t)
            error = float((found - noise).square().mean()) / unit
            if self._data is None:
                # A wrong reading may agree with its own samples, but is not calibrated too, E[e (eps - e)] = 0.
                error += abs(float((found * (noise - found)).mean()))
            total += min(error, _WORST) if math.isfinite(error) else _WORST
        return min(total / len(self._times), _WORST)

    def _drawn(self, data: Tensor, source: torch.Generator) -> tuple[Tensor, float]:
        """The noise of the data, and its mean variance, which is the loss of the best constant."""
        if self._noise is None:
            return normal(data.shape, generator=source), 1.0
        chosen = torch.randint(len(self._noise), (len(data),), generator=source)
        return self._noise[chosen].to(data), float(self._noise.var(0, unbiased=False).mean()) or 1.0

    def _field(self, reading: Reading) -> Field:
        path, unit = self._path, self.unit

        def read(x: Tensor, t: float | Tensor) -> Tensor:
            when = float(t)
            scaled = x * INPUTS[reading.input](path, when, unit)
            return reading.sign * self._function(scaled, TIMES[reading.time](path, when))

        return Field(read, reading.kind, path, scale=unit, probe=False)

    def _samples(self, field: Field) -> Tensor:
        """The field's own samples, by a run from about the largest level of the trial to a tenth of the smallest."""
        path = self._path
        first = self._times[-1]
        last = max(path.time_from_rho(0.1 * path.rho(self._times[0])), path.t_min)
        start = math.hypot(path.sigma(first), path.alpha(first) * self.unit)
        x = start * normal((self._points, *self._shape), generator=generator_from(self._seed))
        ends = path.log_snr(first), path.log_snr(last)
        inner = [path.time_from_log_snr(ends[0] + (ends[1] - ends[0]) * k / _STEPS) for k in range(1, _STEPS)]
        end = solvers.solve(field, x, solver="dpmpp:order=2", grid=[first, *inner, last]).x
        return end / path.alpha(last)
