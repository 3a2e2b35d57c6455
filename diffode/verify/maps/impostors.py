"""What a wrong flow map may be instead: steps of solvers, other maps, and usual mistakes, each computed and compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from diffode import paths
from diffode.errors import DiffodeError
from diffode.fields import ExactField, exact_field
from diffode.flows import reference
from diffode.maps import AngleClock
from diffode.verify.maps.trial import MapTrial

#: A map is an impostor if it is nearer to it than to the exact flow by this factor.
_NEARER = 0.2
#: Largest error of a map that is the flow times a number, once it is divided by it, in errors that pass.
_PASSES = 2.0
#: Number of rows on which impostors are compared.
_ROWS = 128
#: Tolerance of the flows of impostors.
_TOLERANCE = 1e-7
#: Paths whose flows are tried in the times of the field's own.
_PATHS = ("edm", "vp", "rectified_flow", "trigonometric", "vp_cosine")

#: Points at the second time for points and times, by indices of the trial's times.
Ends = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Impostor:
    """A map that is not the flow.

    Attributes:
        what: what it is, for "the map is ...".
        fix: what to do about it.
        ends: its points.
    """

    what: str
    fix: str
    ends: Ends


def impostor(trial: MapTrial) -> Impostor | None:
    """The impostor that a map is, if it is one rather than the flow."""
    rows = slice(0, _ROWS)
    asked = [
        (s, t, trial.call(trial.states[s, rows], trial.times[s], trial.times[t]), trial.states[t, rows]) for s, t in trial.pairs
    ]

    def distance(ends: Ends | None) -> float:
        """The mean distance of the map over all pairs from other ends, or from the exact ones."""
        total = 0.0
        for s, t, found, exact in asked:
            wanted = exact if ends is None else ends(trial.states[s, rows], s, t)
            total += float(trial.errors(found, wanted, trial.times[t]).mean())
        return total / len(asked)

    best, own = None, distance(None)
    nearest = _NEARER * own
    for one in _known(trial):
        with contextlib.suppress(DiffodeError):
            apart = distance(one.ends)
            if apart < nearest:
                best, nearest = one, apart
    return best


def _known(trial: MapTrial) -> Iterator[Impostor]:
    field, path, times = trial.field, trial.path, trial.times

    def euler(x: Tensor, s: int, t: int) -> Tensor:
        return x + (times[t] - times[s]) * field.velocity(x, times[s])

    def ddim(x: Tensor, s: int, t: int) -> Tensor:
        first, last = times[s], times[t]
        return path.alpha(last) * field.denoised(x, first) + path.sigma(last) * field.noise(x, first)

    def exact(x: Tensor, s: int, t: int) -> Tensor:
        return reference(field, x, times[s], times[t], _TOLERANCE).x

    def backwards(x: Tensor, s: int, t: int) -> Tensor:
        return reference(field, x, times[t], times[s], _TOLERANCE).x

    def average(x: Tensor, s: int, t: int) -> Tensor:
        return (exact(x, s, t) - x) / (times[t] - times[s])

    def at_the_end(x: Tensor, s: int, t: int) -> Tensor:
        return reference(field, x, times[s], times[-1], _TOLERANCE).x

    clock = AngleClock.of(field, trial.states[0, 0].numel())

    def gaussian(x: Tensor, s: int, t: int) -> Tensor:
        return clock.point(clock.state(x, path, times[s]), path, times[t]).reshape(x.shape)

    velocity = "a velocity, whose map is an Euler step"
    yield Impostor(velocity, "train its jumps too: x + (t - s) v(x, s) is right for near times only", euler)
    yield Impostor(
        "a denoiser, whose map is a DDIM step",
        "train its jumps too: a step with the denoised point is right for near times",
        ddim,
    )
    yield Impostor(
        "the flow of a Gaussian of the data's mean and scale", "it has learned nothing of the data yet: train longer", gaussian
    )
    yield Impostor("the identity", "it gives x back: does it return the end, or a displacement of 0?", lambda x, s, t: x)
    yield Impostor(
        "the denoiser, which gives means of data",
        "use the consistency function or the map in place of E[x_0|x_s]",
        lambda x, s, t: field.denoised(x, times[s]),
    )
    yield Impostor("the flow with its times swapped", "it goes from t to s: call it as phi(x, t, s)", backwards)
    yield Impostor("an average velocity, not the points", "return x + (t - s) u", average)
    yield Impostor(
        "the displacement of a point, not the point", "return x plus what it returns", lambda x, s, t: exact(x, s, t) - x
    )
    if not trial.phi.fixed_end:
        yield Impostor(
            f"a consistency function only, which goes to t={times[-1]:.4g} wherever it is sent",
            "give the map fixed_end=True, or train jumps to other times",
            at_the_end,
        )
    yield from _other_paths(trial)


def _other_paths(trial: MapTrial) -> Iterator[Impostor]:
    """The flows of the field's target on other paths, in the same numbers as times."""
    if not isinstance(trial.field, ExactField) or trial.field.source is not None:
        return
    for name in _PATHS:
        other = paths.get(name)
        if other.spec == trial.path.spec or other.t_end < trial.times[0]:
            continue
        on = exact_field(trial.field.target, other)

        def ends(x: Tensor, s: int, t: int, on: ExactField = on) -> Tensor:
            return reference(on, x, trial.times[s], trial.times[t], _TOLERANCE).x

        yield Impostor(f"the flow on another path, {name}", f"put the field on path {name}, or convert states and times", ends)


def proportional(trial: MapTrial) -> float | None:
    """The factor by which the map's ends are too large, if the map is the flow but for it."""
    asked = [
        (trial.call(trial.states[s], trial.times[s], trial.times[t]), trial.states[t], trial.times[t]) for s, t in trial.pairs
    ]
    found, wanted, _ = asked[0]
    ratio = float((found * wanted).sum() / wanted.square().sum().clamp(min=1e-300))
    as_it_is = max(float(trial.errors(ends, exact, t).mean()) for ends, exact, t in asked)
    if not ratio > 0:
        return None
    without = max(float(trial.errors(ends / ratio, exact, t).mean()) for ends, exact, t in asked)
    # A map of other data may come nearer by a factor too, but is not right then.
    return ratio if without < _NEARER * as_it_is and without <= _PASSES * trial.allowed else None
