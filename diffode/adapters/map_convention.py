r"""Which convention a model of two times keeps: the one that is named, or one that users of its library mistake for it.

Against a field, readings are compared by the distance of their points from the exact flow. Data alone give the law of a pair
:math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon` at two times, and with it, for every reading:

* the *diagonal*: a short jump of :math:`x_s` predicts :math:`x_t` of the same pair best if it follows the velocity;
* the *semigroup*: :math:`\Phi(\Phi(x, s \to r), r \to t) = \Phi(x, s \to t)`;
* of a consistency function, which has neither: it takes both points of a pair to one (Song et al., arXiv 2303.01469), points
  of little noise near their data, and every level to the data's mean and spread.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffode.errors import ArgumentError, ConventionWarning
from diffode.fields import ExactField, Field
from diffode.fields.model import Model
from diffode.flows import reference
from diffode.paths import Path
from diffode.randomness import generator_from, normal

#: Points at times t (B,) of x (B, *shape) at times s (B,).
Jump = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Noise levels, in units of the data's scale, at which jumps begin and end, beside the model's own ends.
_LEVELS = (2.5, 0.8, 0.25)
#: Relative length of a short jump.
_SHORT = 0.02
#: Least and largest number of rows, and the number of numbers in all of them that is wanted.
_ROWS = (16, 256)
_NUMBERS = 4096
#: A reading is better than another if its defect is less by this factor and by this much.
_FACTOR, _MUCH = 0.6, 0.03
#: Defect above which the named reading is told of although no other is better.
_BAD = 0.5
#: Tolerance of the trajectories of a field.
_TOLERANCE = 1e-6


class Phi(Protocol):
    """A map in the times of its own path."""

    def __call__(self, x: Tensor, s: float, t: float) -> Tensor:
        """The points at t of x (B, *shape) at s."""


@dataclass(frozen=True)
class _Pairs:
    """States at falling times, (M, B, *shape): of pairs of data and noise, or along exact trajectories.

    Attributes:
        path: the path.
        times: the times.
        states: the states.
        data: the data of the rows, if they are pairs.
        noise: their noise.
        scale: root mean variance of the data.
    """

    path: Path
    times: tuple[float, ...]
    states: Tensor
    scale: float
    data: Tensor | None = None
    noise: Tensor | None = None

    def size(self, t: float) -> float:
        return math.hypot(self.path.alpha(t) * self.scale, self.path.sigma(t))

    def at(self, t: float) -> Tensor:
        """The rows' states at another time."""
        if self.data is None or self.noise is None:
            raise ArgumentError("trajectories have states at their own times only")
        return self.path.alpha(t) * self.data + self.path.sigma(t) * self.noise


def check_convention(
    name: str,
    asked: Phi,
    readings: Mapping[str, Phi],
    path: Path,
    model: Model,
    *,
    fixed_end: bool,
    shape: tuple[int, ...] | None,
    data: Tensor | None,
    field: Field | None,
) -> tuple[int, ...] | None:
    """Compare readings of a model, and warn with the fix of the one that is clearly better than the one ``asked`` for.

    Returns:
        The shape of a row, which data and most fields tell.

    Raises:
        ArgumentError: for data that are none, or data and a field together.
    """
    if data is not None and field is not None:
        raise ArgumentError("give data= or field=, not both: a field says more")
    trial = _from_data(path, data) if data is not None else _from_field(path, field, shape)
    with torch.no_grad(), model.probing():
        if data is not None and not fixed_end:
            own, found = _on_pairs(asked, readings, trial)
        else:
            measure = _of_consistency if data is not None else _against_flow
            own = measure(asked, trial, fixed_end)
            # No reading is clearly better than one that is as good as this.
            more = {} if own < _MUCH else readings
            found = {sentence: _tried(lambda phi: measure(phi, trial, fixed_end), phi) for sentence, phi in more.items()}
    best = min(found, key=lambda sentence: (found[sentence], sentence.count(";")), default=None)
    # A reading that differs in more respects has to be better by more than rounding.
    for sentence in sorted(found, key=lambda sentence: sentence.count(";")):
        if best is not None and sentence.count(";") < best.count(";") and found[sentence] <= found[best] + _MUCH / 3:
            best = sentence
    named = best is not None and found[best] < min(_BAD, _FACTOR * own) and found[best] + _MUCH < own
    if not own >= 0 or own > _BAD or named:
        what = "of a state's size from the flow's ends" if data is None else "in its identities"
        advice = best if named else "no usual mistake explains it: are its path, its scale and its weights as given?"
        warnings.warn(
            f"{name} does not behave as its convention says (it errs by {own:.2g} {what}): {advice}",
            ConventionWarning,
            stacklevel=6,
        )
    return tuple(trial.states.shape[2:])


def _from_data(path: Path, data: object) -> _Pairs:
    if not isinstance(data, Tensor) or data.ndim < 2 or len(data) < 16 or not bool(torch.isfinite(data).all()):
        raise ArgumentError("data must be a finite tensor (n, *shape) of at least 16 points")
    if not data.is_floating_point():
        raise ArgumentError(f"data must be floating-point numbers, got {data.dtype}")
    known = data.detach().to("cpu", torch.float64)
    scale = float(known.var(0).mean().sqrt())
    if not scale > 0:
        raise ArgumentError("data must not all be the same point")
    rows = known[torch.arange(_count(known[0].numel())) % len(known)]
    noise = normal(rows.shape, generator=generator_from(0))
    times = _times(path, scale)
    states = torch.stack([path.alpha(t) * rows + path.sigma(t) * noise for t in times])
    return _Pairs(path, times, states, scale, rows, noise)


def _from_field(path: Path, field: object, shape: tuple[int, ...] | None) -> _Pairs:
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field, got {type(field).__name__}")
    on = field.require_path("the convention of a map")
    if shape is None:
        shape = tuple(field.shape) if field.shape is not None else None if field.dim is None else (field.dim,)
    if shape is None:
        raise ArgumentError("this field does not tell the shape of a row: give shape=")
    times = _times(path, field.scale, on)
    theirs = [on.time_from_log_snr(path.log_snr(t)) for t in times]
    count = _count(math.prod(shape))
    if isinstance(field, ExactField):
        start = field.marginal(count, theirs[0], generator=generator_from(0)).reshape(count, *shape)
    else:
        size = math.hypot(on.alpha(theirs[0]) * field.scale, on.sigma(theirs[0]))
        start = size * normal((count, *shape), generator=generator_from(0))
    states = [start]
    with field.uncounted():
        for s, t in itertools.pairwise(theirs):
            states.append(reference(field, states[-1], s, t, _TOLERANCE).x)
    of = zip(times, theirs, states, strict=True)
    own = [x * (math.hypot(path.alpha(a), path.sigma(a)) / math.hypot(on.alpha(b), on.sigma(b))) for a, b, x in of]
    return _Pairs(path, times, torch.stack(own), field.scale)


def _times(path: Path, scale: float, field_path: Path | None = None) -> tuple[float, ...]:
    """The ends and the levels between them; on a field's path, what both have."""
    high, low = path.log_snr(path.t_max), path.log_snr(path.t_min)
    if field_path is not None:
        high, low = max(high, field_path.log_snr(field_path.t_max)), min(low, field_path.log_snr(field_path.t_min))
    if not high < low:
        raise ArgumentError("the path of the field and that of the model share no noise level: give the field on path=")
    levels = [-math.log(level * scale) for level in _LEVELS]
    inner = [level for level in levels if high + 0.1 < level < low - 0.1]
    ends = [path.t_max if high == path.log_snr(path.t_max) else path.time_from_log_snr(high)]
    ends += [path.t_min if low == path.log_snr(path.t_min) else path.time_from_log_snr(low)]
    return (ends[0], *(path.time_from_log_snr(level) for level in inner), ends[1])


def _count(numbers: int) -> int:
    return max(_ROWS[0], min(_ROWS[1], _NUMBERS // max(1, numbers)))


def _on_pairs(asked: Phi, readings: Mapping[str, Phi], trial: _Pairs) -> tuple[float, dict[str, float]]:
    """The defects of a flow map and of its readings, judged by pairs.

    What no map can predict of a pair is the same for all: the best one's share of it is taken off.
    """
    of_asked = _unpredicted(asked, trial)
    left = {sentence: _tried(lambda phi: _unpredicted(phi, trial), phi) for sentence, phi in readings.items()}
    least = min((of_asked, *left.values()))
    own = of_asked - least + _broken(asked, trial)
    near = {sentence: value - least for sentence, value in left.items() if value - least + _MUCH < own}
    return own, {
        sentence: value + _tried(lambda phi: _broken(phi, trial), readings[sentence]) for sentence, value in near.items()
    }


def _tried(measure: Callable[[Phi], float], phi: Phi) -> float:
    """The defect of a reading; infinite if the model can't be called so."""
    try:
        return measure(phi)
    except Exception:  # anyone's model may raise anything for labels that it does not know
        return math.inf


def _against_flow(phi: Phi, trial: _Pairs, fixed_end: bool) -> float:
    """The mean distance from the exact flow, in sizes of a state.

    A consistency function goes to the end of its own path, which is nearly the same point as the end of the field's.
    """
    last = len(trial.times) - 1
    pairs = [(k, last) for k in range(last)]
    if not fixed_end:
        pairs += [(k, k + 1) for k in range(last - 1)]
    ends = [trial.path.t_min if fixed_end else trial.times[t] for _, t in pairs]
    found = [phi(trial.states[s], trial.times[s], end) for (s, _), end in zip(pairs, ends, strict=True)]
    return _mean(
        [_apart(point, trial.states[t], trial.size(trial.times[t])) for point, (_, t) in zip(found, pairs, strict=True)]
    )


def _unpredicted(phi: Phi, trial: _Pairs) -> float:
    """What short jumps leave unpredicted of a pair, as a share of its move."""
    left = []
    for s in trial.times[1:-1] or trial.times[:1]:
        t = trial.path.time_from_log_snr(trial.path.log_snr(s) + _SHORT)
        x, wanted = trial.at(s), trial.at(t)
        left.append(float((phi(x, s, t) - wanted).square().mean() / (x - wanted).square().mean()))
    return _mean(left)


def _broken(phi: Phi, trial: _Pairs) -> float:
    """The mean defect of the semigroup, in sizes of a state."""
    last = len(trial.times) - 1
    broken = []
    for s, r, t in [(0, k, last) for k in range(1, last)] + [(k, k + 1, k + 2) for k in range(1, last - 1)]:
        first, middle, end = (trial.times[k] for k in (s, r, t))
        x = trial.states[s]
        there = phi(phi(x, first, middle), middle, end)
        broken.append(_apart(there, phi(x, first, end), trial.size(end)))
    return _mean(broken) if broken else 0.0


def _of_consistency(phi: Phi, trial: _Pairs, fixed_end: bool) -> float:
    """How far it is from taking both points of a pair to one, points near the data to these, and every level to the law."""
    end, scale = trial.path.t_min, trial.scale
    apart, law, ends = [], [], []
    for k, s in enumerate(trial.times[:-1]):
        ends.append(phi(trial.states[k], s, end))
        if k:
            r = trial.path.time_from_log_snr(trial.path.log_snr(s) + 5 * _SHORT)
            apart.append(_apart(ends[-1], phi(trial.at(r), r, end), scale))
        if trial.data is not None:
            law.append(_apart(ends[-1].mean(0), trial.data.mean(0), scale))
            spread = float(ends[-1].var(0).mean() / trial.data.var(0).mean())
            law.append(abs(math.log(max(spread, 1e-9))) / 2)
    near = _apart(ends[-1], trial.at(end), scale)
    return _mean([_mean(part) for part in (apart, law, [near]) if part])


def _apart(found: Tensor, wanted: Tensor, size: float) -> float:
    """The root mean square of the difference of numbers, in a unit; infinite if there is none."""
    value = float((found - wanted).square().mean().sqrt()) / size
    return value if math.isfinite(value) else math.inf


def _mean(values: Sequence[float]) -> float:
    total = sum(values) / len(values)
    return total if math.isfinite(total) else math.inf
