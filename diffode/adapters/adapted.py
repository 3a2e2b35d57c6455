"""The field that an adapter makes, which is checked against its library's convention before it is used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError, ConventionWarning
from diffode.fields import Field, Prediction
from diffode.fields.field import Function
from diffode.fields.model import Model
from diffode.paths import Path
from diffode.randomness import generator_from, normal
from diffode.sources import Source
from diffode.sources import get as get_source
from diffode.targets import GaussianMixture, Target

#: Least noise level at the path's end, in units of the data's scale, at which the prediction of noise is checked there.
_NOISY_LEVEL = 8.0
#: Largest relative error of the noise prediction there, where x is nearly all noise.
_MOST_UNPREDICTED = 0.7
#: Noise level, in units of the data's scale, at which the denoiser's slope is checked.
_MIDDLE_LEVEL = 3.0
#: Least slope of the denoised point against x/alpha there: a covariance gives at least 0, a network's error a little less.
_LEAST_SLOPE = -0.03
#: Largest slope there, which is 0.1 for Gaussian data of the given scale.
_LARGEST_SLOPE = 1.3
#: Number of draws of a source with which the convention is checked.
_SOURCE_DRAWS = 2048
#: Rows of noise on which both are checked.
_POINTS = 8

#: Sentences that name a fix, each with the view and the function that the model would be after it.
Mistakes = dict[str, tuple[Prediction, Function]]


class AdaptedField(Field):
    """A field made from another library's model, which warns when it does not behave as its convention says.

    With ``data`` it is diagnosed when it is made, as ``diffode check-field`` does, and the warning names the mistake. Without
    data its first run checks, with up to four calls on 8 rows, two properties of every denoiser: only gross mistakes show.
    ``source`` is the law of the noise where it is no normal one, or points of it; it is checked with data alone.

    ``mistakes`` are readings of the model that users of its library mistake for the right one: a sentence that names the fix,
    and the view and function that the model would be after it.
    """

    def __init__(
        self,
        function: Function,
        prediction: Prediction,
        path: Path | None,
        *,
        model: Model,
        name: str,
        mistakes: Mistakes | None = None,
        scale: float | None = None,
        data: Tensor | None = None,
        source: Source | Target | str | Tensor | None = None,
    ):
        if data is not None:
            _check_data(data, "data")
            scale = float(data.double().var(0).mean().sqrt()) if scale is None else scale
        super().__init__(function, prediction, path, scale=1.0 if scale is None else scale)
        self.source = source_of(source)
        self.name, self._model, self._mistakes = name, model, dict(mistakes or {})
        # What a denoiser does of itself is known of normal noise alone.
        self._looked, self._sized = path is None or self.source is not None, scale is not None
        if data is not None:
            self.dim = data[0].numel()
            if path is not None:
                self._looked = True
                self._diagnose(data.shape[1:], data)

    def check_once(self, x: Tensor, t: float) -> None:
        """The probe of every field, and one check of the denoiser's behaviour."""
        super().check_once(x, t)
        if not self._looked and len(x):
            self._looked = True
            with self._model.probing():
                self._look(x)

    @property
    def made_checks(self) -> tuple[bool, bool]:
        """Whether the model's convention and its answers have been checked; set them for a model checked in another field."""
        return self._looked, not self._unprobed

    @made_checks.setter
    def made_checks(self, made: tuple[bool, bool]) -> None:
        self._looked, self._unprobed = made[0], not made[1]

    @contextmanager
    @override
    def rows(self, index: Tensor) -> Iterator[None]:
        with self._model.rows(index):
            yield

    def _look(self, x: Tensor) -> None:
        """Check two properties of denoisers of any data: they ignore input that is all noise, and never fall as it rises."""
        path = self.require_path("its denoiser")
        noise = normal((_POINTS, *x.shape[1:]), generator=generator_from(0)).to(x)
        seen = ""
        with torch.no_grad(), self.uncounted():
            end = path.rho(path.t_max)
            if _NOISY_LEVEL * self.scale <= end < math.inf:
                seen = self._at_the_noise_end(noise, end)
            level = _MIDDLE_LEVEL * self.scale
            if not seen and path.rho(path.t_min) < level < end:
                seen = self._in_the_middle(noise, path.time_from_rho(level))
        if seen:
            self._diagnose(x.shape[1:], None, seen)

    def _at_the_noise_end(self, noise: Tensor, rho: float) -> str:
        path = self.require_path("its noise end")
        t = path.t_max
        x = path.sigma(t) * noise
        error = float((self.noise(x, t) - noise).norm() / noise.norm())
        if not error < _MOST_UNPREDICTED:
            return f"at its noise end it predicts noise with a relative error of {error:.2g}"
        if self.prediction in ("noise", "score"):
            # There a small error of a good network in the noise is a large one in the denoised point.
            return ""
        # At the noise end the denoised point is the mean plus the covariance times x/rho^2.
        spread = float(self.denoised(x, t).var(0).mean().sqrt()) / self.scale
        if not self._sized:
            # Without a scale or data the spread has nothing to be compared with.
            return ""
        allowed = min(0.5, max(0.15, 4 * math.sqrt(noise[0].numel()) * self.scale / rho))
        return (
            "" if spread < allowed else f"at its noise end the denoised points are spread by {spread:.2g} of the data's scale"
        )

    def _in_the_middle(self, noise: Tensor, t: float) -> str:
        """Check the denoiser's derivative, the covariance of x_0 given x over sigma^2/alpha: not negative, nor too large."""
        path = self.require_path("a noise level")
        alpha, sigma = path.alpha(t), path.sigma(t)
        x = math.hypot(sigma, alpha * self.scale) * noise
        step = 0.2 * sigma * noise.roll(1, 0)
        slope = alpha * float(
            ((self.denoised(x + step, t) - self.denoised(x - step, t)) * step).sum() / (2 * step.square().sum())
        )
        # A prediction of noise enters the denoised point multiplied by sigma/alpha, with the network's error.
        least = _LEAST_SLOPE if self.prediction in ("denoised", "velocity") else -0.5
        if least < slope and (slope < _LARGEST_SLOPE or not self._sized):
            return ""
        return f"at t={t:.3g} the denoised point moves by {slope:.2g} of a move of x/alpha, where 0 to 1 is possible"

    def _diagnose(self, shape: Sequence[int], data: Tensor | None, seen: str = "") -> None:
        """Try the known mistakes one by one, and warn with the fix of the one that predicts best."""
        from diffode.verify.field.diagnosis import READING, check_field, clearly_less, unpredicted

        path, shape = self.require_path("its convention"), tuple(shape)
        noise = None
        if self.source is not None and data is not None:
            noise = self.source.sample(_SOURCE_DRAWS, math.prod(shape), generator=0).reshape(-1, *shape)
        try:
            with torch.no_grad(), self._model.probing():
                # Without data every reading costs a run, so that only this library's own mistakes are tried.
                found = (
                    None
                    if data is None
                    else check_field(self._function, self.prediction, path, shape, scale=self.scale, data=data, source=noise)
                )
                known: dict[str, Any] = {"scale": self.scale, "data": data, "source": noise}
                asked = unpredicted(self._function, self.prediction, path, shape, **known)
                named = {
                    sentence: unpredicted(function, view, path, shape, **known)
                    for sentence, (view, function) in self._mistakes.items()
                }
            advice = [] if found is None else [c.detail for c in found.failed if c.detail and c.name != READING]
            best = min(named, key=lambda sentence: named[sentence], default=None)
            best_loss = None if found is None else found.facts["best_loss"]
            other = math.inf if best_loss is None else best_loss
            sure = data is not None
            if best is not None and clearly_less(named[best], asked, sure) and not clearly_less(other, named[best], sure):
                advice.append(best)
            elif found is not None:
                advice += found.advice
        except ArgumentError as error:
            advice = [str(error)] if seen else []
        if not advice and not seen:
            return
        guess = "; ".join(advice) or "is its kind, path and scale as given?"
        caution = "" if data is not None else " (judged without data; data= makes it surer)"
        what = f"{self.name} does not behave as a {self.prediction} on path {path.spec}"
        warnings.warn(f"{what}: {seen + ': ' if seen else ''}{guess}{caution}", ConventionWarning, stacklevel=4)


def usual_mistakes(raw: Function, meant: Prediction) -> Mistakes:
    """A model's answer, a function of diffode's (x, t), read with the other sign, or as another view than the one ``meant``."""
    named: Mistakes = {"its sign is wrong: return -model": (meant, lambda x, t: -raw(x, t))}
    # Of views that are equal, the first in this order is named: on EDM the velocity is the noise.
    for view in ("noise", "denoised", "velocity", "score"):
        if view != meant:
            named[f"it gives the {view}, not the {meant}"] = (view, raw)
    return named


#: Labels with which libraries call a network, as functions of diffode's path and times (B,), by their names in a sentence.
LABELS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "times from 0 to 1": lambda path, t: t,
    "times from 0 to 1, data at 1": lambda path, t: 1 - t,
    "timesteps 0 to 999": lambda path, t: 999 * t,
    "noise levels sigma/alpha": lambda path, t: _ratio(path, t),
    "log(sigma/alpha)": lambda path, t: _ratio(path, t).log(),
    "log(sigma/alpha)/4": lambda path, t: _ratio(path, t).log() / 4,
}


def label_mistakes(
    view: Prediction, path: Path, taken: str, asked: Callable[[Callable[[Tensor], Tensor]], Function], span: float = 1.0
) -> Mistakes:
    """The readings of a model that is called with the labels of other libraries.

    Args:
        view: the view that the model gives.
        path: its path, whose times go up to ``span``.
        taken: the name, in ``LABELS``, of the labels that it is called with.
        asked: turns a function from times (B,) to labels into the model as a function of diffode's (x, t).
        span: the time that is 1 in labels that count from 0 to 1.
    """
    named: Mistakes = {}
    for name, labels in LABELS.items():
        in_time = name.startswith("times")
        if name == taken or (in_time and path.t_max > span):
            continue

        def own(t: Tensor, labels: Callable[[Path, Tensor], Tensor] = labels, in_time: bool = in_time) -> Tensor:
            return labels(path, t / span if in_time else t)

        named[labels_sentence(name, taken)] = view, asked(own)
    return named


def input_mistakes(
    view: Prediction, path: Path, scale: float | None, data: Tensor | None, asked: Callable[[Function], Function]
) -> Mistakes:
    """The readings of a model that gets scaled states; ``asked`` turns a function from (x, t) to its input into the field's."""
    from diffode.verify.field.diagnosis import INPUTS

    unit = scale or (1.0 if data is None else float(data.double().var(0).mean().sqrt()))
    named: Mistakes = {}
    for name, factor in INPUTS.items():
        if name != "x":

            def put(x: Tensor, t: float | Tensor, factor: Callable[[Path, float, float], float] = factor) -> Tensor:
                return x * factor(path, float(t), unit)

            named[f"it wants its input scaled: give it {name}"] = view, asked(put)
    return named


def labels_sentence(wanted: str, taken: str) -> str:
    """A sentence for a network that is called with other labels than it was trained with."""
    return f"its network wants {wanted} as labels, and is called with {taken}: convert them in a function around it"


def _ratio(path: Path, t: Tensor) -> Tensor:
    found: Tensor = path.rho(t)
    return found


def source_of(source: Source | Target | str | Tensor | None) -> Source | None:
    """The source that is meant; data of it, (n, *shape), are one that draws from them, each as often as another."""
    if not isinstance(source, Tensor):
        return get_source(source)
    _check_data(source, "source")
    return get_source(GaussianMixture.from_points(source.flatten(1)))


def _check_data(data: object, name: str) -> None:
    if not isinstance(data, Tensor) or data.ndim < 2 or len(data) < 16 or not bool(torch.isfinite(data).all()):
        raise ArgumentError(f"{name} must be a finite tensor (n, *shape) of at least 16 points")
