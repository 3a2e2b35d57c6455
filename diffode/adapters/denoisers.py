"""Denoisers of a noise level: k-diffusion and EDM; score_sde's networks; azula's denoisers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from diffode.adapters.adapted import LABELS, AdaptedField, label_mistakes, labels_sentence, usual_mistakes
from diffode.errors import ArgumentError
from diffode.fields import Field, Prediction, columns
from diffode.fields.field import Function
from diffode.fields.model import Model, row_times, single_time
from diffode.paths import EDM, VP, FunctionPath, Path, SubVP
from diffode.paths import get as get_path


def from_k_diffusion(
    model: Callable[..., Any],
    path: Path | str | None = None,
    *,
    scale: float | None = None,
    data: Tensor | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Field:
    """A field from a denoiser ``model(x, sigma)``, sigma of shape (B,), as k-diffusion's samplers call it.

    The path is EDM's, from the model's ``sigma_min`` and ``sigma_max`` if it has them; on another path the model gets x/alpha
    and sigma/alpha. ``scale`` is the root mean variance of the data, 1 unless given; some ``data``, (n, *shape), give it too,
    and check the model at once. ``extra`` holds keyword arguments of every call, such as k-diffusion's ``extra_args``.
    """
    on = _levels_of(model) if path is None else get_path(path)
    called = Model(model, "model", extra)

    def asked(labels: Callable[[Tensor], Tensor]) -> Function:
        return lambda x, t: called(x, x / columns(on.alpha(t), x), labels(row_times(t, x)))

    taken = "noise levels sigma/alpha"
    denoised = asked(lambda t: LABELS[taken](on, t))
    mistakes = {**usual_mistakes(denoised, "denoised"), **label_mistakes("denoised", on, taken, asked)}
    return AdaptedField(denoised, "denoised", on, model=called, name="the denoiser", mistakes=mistakes, scale=scale, data=data)


def from_edm(
    network: Callable[..., Any],
    path: Path | str | None = None,
    *,
    class_labels: Tensor | None = None,
    scale: float | None = None,
    data: Tensor | None = None,
) -> Field:
    """A field from a network of EDM's code, ``net(x, sigma, class_labels)``, which gives denoised images.

    The path has the network's ``sigma_min`` and ``sigma_max`` (0.002 and 80 where these are 0 and infinite, as in EDM's
    sampler). ``scale`` is the network's ``sigma_data`` unless given; ``data`` are as in :func:`from_k_diffusion`.
    """
    known = getattr(network, "sigma_data", None)
    if scale is None and data is None and known is not None:
        scale = float(known)
    extra = None if class_labels is None else {"class_labels": class_labels}
    return from_k_diffusion(network, path, scale=scale, data=data, extra=extra)


def _levels_of(model: Any) -> EDM:
    low, high = (getattr(model, name, None) for name in ("sigma_min", "sigma_max"))
    for name, value in (("sigma_min", low), ("sigma_max", high)):
        if value is not None and math.isnan(float(value)):
            raise ArgumentError(f"{name} of the model is not a number; give path=diffode.paths.EDM(sigma_min, sigma_max)")
    first = float(low) if low is not None and float(low) > 0 else 0.002
    last = float(high) if high is not None and math.isfinite(float(high)) else 80.0
    return EDM(first, last)


def from_score_sde(
    model: Callable[..., Any],
    sde: Literal["vp", "sub_vp", "ve"] = "vp",
    *,
    score: bool = False,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    scale: float | None = None,
    data: Tensor | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Field:
    """A field from score_sde's networks (Song et al., arXiv 2011.13456), trained with continuous times.

    Args:
        model: the network ``model(x, labels)``: on VP and sub-VP the score is -model/sigma, with labels 999 t; on VE it is the
            model itself, with labels sigma. Or the function ``score_fn(x, t)`` that ``get_score_fn`` returns.
        sde: the SDE that it was trained for.
        score: whether ``model`` is a ``score_fn``; on VE its t is in [0, 1].
        beta_min, beta_max: constants of VP and sub-VP.
        sigma_min, sigma_max: constants of VE, on which diffode's time is sigma.
        scale, data, extra: as in :func:`from_k_diffusion`.
    """
    called = Model(model, "model", extra)
    if sde == "ve":
        if not 0 < sigma_min < sigma_max:
            raise ArgumentError(f"sigma_min and sigma_max must be 0 < sigma_min < sigma_max, got {sigma_min!r}, {sigma_max!r}")
        on: Path = EDM(sigma_min, sigma_max)
        span = math.log(sigma_max / sigma_min)

        def labels(t: Tensor) -> Tensor:
            return (t / sigma_min).log() / span if score else t

        # score_sde's time on VE is linear in the logarithm of sigma and runs from 0 to 1.
        other = {labels_sentence("times from 0 to 1", "noise levels sigma/alpha"): lambda t: (t / sigma_min).log() / span}
        taken = "noise levels sigma/alpha"
    elif sde in ("vp", "sub_vp"):
        on = (VP if sde == "vp" else SubVP)(beta_min=beta_min, beta_max=beta_max)

        def labels(t: Tensor) -> Tensor:
            return t if score else 999 * t

        other, taken = {}, "times from 0 to 1" if score else "timesteps 0 to 999"
    else:
        raise ArgumentError(f"sde must be vp, sub_vp or ve, got {sde!r}")

    view: Prediction = "score" if score or sde == "ve" else "noise"

    def raw(labels: Callable[[Tensor], Tensor]) -> Function:
        return lambda x, t: called(x, x, labels(row_times(t, x)))

    def predicted(labels: Callable[[Tensor], Tensor]) -> Function:
        ask = raw(labels)
        return ask if view == "score" else lambda x, t: -ask(x, t) / columns(on.sigma(t), x)

    predict = predicted(labels)
    mistakes = {**usual_mistakes(raw(labels), view), **label_mistakes("score", on, taken, predicted)}
    mistakes |= {sentence: ("score", predicted(own)) for sentence, own in other.items()}
    if not score:
        mistakes["it is a score function of (x, t), as get_score_fn returns it: pass score=True"] = (
            "score", lambda x, t: called(x, x, row_times(t, x)),
        )  # fmt: skip
    return AdaptedField(
        predict, "score", on, model=called, name="the score_sde network", mistakes=mistakes, scale=scale, data=data
    )


def from_azula(
    denoiser: Any, *, scale: float | None = None, data: Tensor | None = None, extra: Mapping[str, Any] | None = None
) -> AdaptedField:
    """A field from a denoiser of azula's: ``denoiser(x, t).mean`` on ``denoiser.schedule``, whose t lies in [0, 1]."""
    called, path = Model(denoiser, "denoiser", extra), azula_path(getattr(denoiser, "schedule", None))
    # azula's own denoisers take a single time.
    mean = single_time(called, lambda x, t: called(x, x, torch.as_tensor(t, dtype=torch.float64, device=x.device)))
    return AdaptedField(
        mean, "denoised", path, model=called, name="azula's denoiser", mistakes=usual_mistakes(mean, "denoised"),
        scale=scale, data=data,
    )  # fmt: skip


def azula_path(schedule: Any) -> Path:
    """The path of azula's ``schedule(t) = (alpha, sigma)`` on [0, 1], 0.001 short of an end at which either is 0."""
    if not callable(schedule):
        raise ArgumentError("azula's denoisers have a schedule, schedule(t) = (alpha, sigma); this object has none")
    ends = [schedule(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0)]
    first = 0.0 if float(ends[0][1]) > 0 else 1e-3
    last = 1.0 if float(ends[1][0]) > 0 else 0.999
    return FunctionPath(lambda t: schedule(t)[0], lambda t: schedule(t)[1], t_min=first, t_max=last, lower=0.0, upper=1.0)
