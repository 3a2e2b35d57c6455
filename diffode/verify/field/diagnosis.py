r"""What is wrong with a user's field: the usual mistakes tried one by one, and judged by the noise the field fails to predict.

A function may be taken for another view than it is, have the other sign, run in another time (0 to 999, reversed, a noise
level), or want its input scaled. Each such reading turns it into a noise prediction :math:`\hat\epsilon`; the right reading is
the one with the smallest :math:`E|\hat\epsilon(\alpha x_0 + \sigma\epsilon) - \epsilon|^2` over noise levels around the data's
scale, which no wrong one can reach. Without data the x_0 are the field's own samples under that reading, and what counts
against it too is how far their spread is from the data's: a wrong reading may agree with itself on a collapsed set of points.
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

#: Noise levels in units of the data's scale; points at each, fewer where a point has many coordinates to average over.
_LEVELS, _POINTS, _FEWEST, _NUMBERS = (0.05, 0.3, 1.0, 3.0, 10.0, 30.0), 256, 32, 4096
#: A reading is as good as the best if its loss is not larger by more than this share and this much.
_SHARE, _MUCH = 1.15, 0.02
#: With data all readings are tried on the same points and noise, and none can be better than a right one.
_SHARE_ON_DATA, _MUCH_ON_DATA = 1.06, 0.01
#: A field that predicts noise at all has a loss below this: a constant prediction of 0 has 1.
_USEFUL = 0.85
_WORST = 4.0
_STEPS = 16
#: Rounds in which a field's own scale has to settle, and how far in its logarithm.
_SETTLING, _SETTLED = 5, 0.1
#: The views in the order in which equal ones are named: on EDM the velocity is the noise.
_KINDS: tuple[Prediction, ...] = ("noise", "denoised", "velocity", "score")

#: The check of how a function is read.
READING = "read as it is meant"

Function = Callable[[Tensor, "float | Tensor"], Tensor]


@dataclass(frozen=True)
class Reading:
    """How a function is read: which view, which sign, in which time, with which input."""

    kind: Prediction
    sign: int = 1
    time: str = "t"
    input: str = "x"

    def differences(self, other: Reading) -> int:
        """In how many respects it differs."""
        names = ("kind", "sign", "time", "input")
        count = sum(1 for name in names if getattr(self, name) != getattr(other, name))
        # Data at t = 1 turns the time and a velocity's sign together: one convention.
        backwards = self.kind == "velocity" and self.sign != other.sign and self.time == "1 - t" != other.time
        return count - int(backwards)


#: Times a network may have been trained with, by what is passed to it.
TIMES: dict[str, Callable[[Path, float], float]] = {
    "t": lambda path, t: t,
    "1 - t": lambda path, t: 1 - t,
    "999 t": lambda path, t: 999 * t,
    "1000 t": lambda path, t: 1000 * t,
    "sigma/alpha": lambda path, t: path.rho(t),
    "log(sigma/alpha)/4": lambda path, t: math.log(path.rho(t)) / 4,
}
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
    seed: int = 0,
) -> Report:
    """Find the usual mistakes in a field.

    Args:
        function: fn(x, t) as it would be given to :class:`diffode.Field`.
        kind: what it is said to give.
        path: the path it is said to be on, or its spec.
        dim: coordinates a row of x has, or the shape of a row.
        scale: root mean variance of the data; unless given, that of ``data``, or 1.
        data: some data (n, *shape), which makes the diagnosis surer; else the field's own samples.
        seed: of all draws.

    Returns:
        A report with advice that names what is wrong and the fix, and the facts ``"kind"``, ``"loss"`` (the share of the noise
        left unpredicted as it is said to be read), ``"best_reading"`` (a :class:`Reading`, None if none explains the function)
        and ``"best_loss"``.

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
    trial = _Trial(usable, path, shape, scale, data, seed)
    asked = Reading(kind)
    loss = trial.loss(asked)
    best = _best(trial, asked, loss)
    if not known and (best[0] != asked or best[1] >= _USEFUL):
        unsure = "the scale of its data is not known and taken for 1: give data (--data) or scale (--scale) to be surer"
        own = _at_its_own_scale(trial, asked)
        if own is not None and own.loss(asked) < _USEFUL and _best(own, asked, own.loss(asked))[0] == asked:
            # Another law than the data's may agree with itself: only its user can tell.
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
    seed: int = 0,
) -> float:
    """What a field leaves unpredicted of the noise, a share of it: what :func:`check_field` compares readings by."""
    return _Trial(function, path, tuple(shape), scale, data, seed).loss(Reading(kind))


def clearly_less(loss: float, other: float, on_data: bool) -> bool:
    """Whether one loss is smaller by more than two good readings may differ."""
    share, much = (_SHARE_ON_DATA, _MUCH_ON_DATA) if on_data else (_SHARE, _MUCH)
    return loss * share + much < other


def _best(trial: _Trial, asked: Reading, loss: float) -> tuple[Reading, float]:
    """The best of the readings that differ from the one asked for as little as possible: in one respect, or in two."""
    best = asked, loss
    every = [
        Reading(kind, sign, time, put)
        for kind, sign, time, put in itertools.product(_KINDS, (1, -1), TIMES, INPUTS)
        if trial.can(time)
    ]
    for count in (1, 2):
        nearest = min(((r, trial.loss(r)) for r in every if r.differences(asked) == count), key=lambda pair: pair[1])
        # A reading that is further away has to be better by a margin.
        if clearly_less(nearest[1], best[1], trial.on_data):
            best = nearest
    return best


def _at_its_own_scale(trial: _Trial, asked: Reading) -> _Trial | None:
    """A trial in units of the field's own samples, as it is asked to be read, if these settle on a scale."""
    for _ in range(_SETTLING):
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
    """What has to be changed, in words."""
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
    """The seed of a stream of its own for every seed and word."""
    return int(np.random.SeedSequence([seed, zlib.crc32(word.encode())]).generate_state(1, np.uint64)[0])


def _single(function: Function) -> Function:
    return lambda x, t: function(x.float(), t).to(x.dtype)


class _Trial:
    """A function read in several ways, and what each reading's noise prediction is worth."""

    def __init__(self, function: Function, path: Path, shape: tuple[int, ...], unit: float, data: Tensor | None, seed: int):
        self._function, self._path, self.unit, self._seed = function, path, unit, seed
        self._given, self.on_data = data, data is not None
        self._shape = shape
        self._points = max(_FEWEST, min(_POINTS, _NUMBERS // math.prod(shape)))
        self._data = None if data is None else data[: self._points].to(torch.float64)
        inside = (path.rho(path.t_min) * 1.0001, path.rho(path.t_max) * 0.9999)
        levels = [level * unit for level in _LEVELS if inside[0] <= level * unit <= inside[1]]
        if len(levels) < 2:
            raise ArgumentError(f"path {path.spec!r} has no noise levels around the data's scale {unit:g}: give scale=")
        self._times = [path.time_from_rho(level) for level in levels]
        self._known: dict[Reading, float] = {}

    def at(self, unit: float) -> _Trial:
        """The same trial at another scale."""
        return _Trial(self._function, self._path, self._shape, unit, self._given, self._seed)

    def spread(self, reading: Reading) -> float:
        """That of the field's own samples, in units of the scale; NaN if there are none."""
        try:
            with torch.no_grad():
                return float(self._samples(self._field(reading)).var(0).mean().sqrt()) / self.unit
        except Exception:  # a function may raise anything when it is read wrongly
            return math.nan

    def can(self, time: str) -> bool:
        """Whether a reading of the time makes sense on this path: reversal and timesteps are for times from 0 to 1."""
        return self._path.t_max <= 1 or time not in ("1 - t", "999 t", "1000 t")

    def loss(self, reading: Reading) -> float:
        """Mean squared error of its noise prediction a coordinate, over the levels; 4 at worst."""
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
            noise = normal(data.shape, generator=source)
            x = self._path.alpha(t) * data + self._path.sigma(t) * noise
            found = field.noise(x, t)
            error = float((found - noise).square().mean())
            if self._data is None:
                # A wrong reading may agree with its own samples, but not be calibrated too: E[e (eps - e)] = 0.
                error += abs(float((found * (noise - found)).mean()))
            total += min(error, _WORST) if math.isfinite(error) else _WORST
        return min(total / len(self._times), _WORST)

    def _field(self, reading: Reading) -> Field:
        path, unit = self._path, self.unit

        def read(x: Tensor, t: float | Tensor) -> Tensor:
            when = float(t)
            scaled = x * INPUTS[reading.input](path, when, unit)
            return reading.sign * self._function(scaled, TIMES[reading.time](path, when))

        return Field(read, reading.kind, path, scale=unit, probe=False)

    def _samples(self, field: Field) -> Tensor:
        """The field's own samples, from about the largest level that is looked at down to a tenth of the smallest."""
        path = self._path
        first = self._times[-1]
        last = max(path.time_from_rho(0.1 * path.rho(self._times[0])), path.t_min)
        start = math.hypot(path.sigma(first), path.alpha(first) * self.unit)
        x = start * normal((self._points, *self._shape), generator=generator_from(self._seed))
        ends = path.log_snr(first), path.log_snr(last)
        inner = [path.time_from_log_snr(ends[0] + (ends[1] - ends[0]) * k / _STEPS) for k in range(1, _STEPS)]
        end = solvers.solve(field, x, solver="dpmpp:order=2", grid=[first, *inner, last]).x
        return end / path.alpha(last)
