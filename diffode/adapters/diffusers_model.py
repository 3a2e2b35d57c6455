"""diffusers' networks as fields, and exact fields as networks that its pipelines run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffode.adapters.adapted import AdaptedField, Mistakes, input_mistakes, label_mistakes
from diffode.adapters.diffusers_schedules import path_of
from diffode.errors import ArgumentError
from diffode.fields import Field, Prediction, columns
from diffode.fields.field import Function
from diffode.fields.model import Model, row_times
from diffode.paths import EDM, Path, RectifiedFlow, Tabulated

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
TYPES: tuple[PredictionType, ...] = ("epsilon", "sample", "v_prediction", "flow_prediction")


def from_diffusers(
    model: Callable[..., Any],
    scheduler: Any,
    *,
    prediction_type: PredictionType | None = None,
    scale: float | None = None,
    data: Tensor | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Field:
    """A field from a UNet or transformer of diffusers, ``model(sample, timestep, **extra)``, and the scheduler it goes with.

    The scheduler gives the path and the meaning of the answer: its ``alphas_cumprod`` (:class:`diffode.paths.Tabulated`, t is
    the timestep plus 1), flow matching (rectified flow, t is the timestep over 1000), or EDM's preconditioning.

    Args:
        model: the network; its answer is ``.sample``, the first of a tuple, or a tensor. If the answer has twice as many
            channels as x, the second half, a learned variance, is dropped.
        scheduler: any scheduler of diffusers, or an object with its ``config`` and ``alphas_cumprod``.
        prediction_type: ``epsilon``, ``sample``, ``v_prediction`` or ``flow_prediction``, instead of the scheduler's.
        scale: root mean variance of the data; 1 unless given, about that of latents.
        data: some data, (n, *shape), which check the model at once.
        extra: keyword arguments of every call: ``encoder_hidden_states``, ``class_labels``, ``added_cond_kwargs`` ...
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ArgumentError(f"scheduler must be a diffusers scheduler (an object, not a class), got {scheduler!r:.80}")
    asked = prediction_type or config.get("prediction_type")
    path = path_of(scheduler, asked)
    if asked is None:
        asked = "flow_prediction" if isinstance(path, RectifiedFlow) else "epsilon"
    if asked not in TYPES:
        raise ArgumentError(f"prediction_type must be one of {', '.join(TYPES)}, got {asked!r}")
    called = Model(model, "model", extra, channels=True, narrow_times=False)
    steps = int(config.get("num_train_timesteps", 1000))

    continuous = config.get("timestep_type") == "continuous"

    inverted = bool(config.get("invert_sigmas"))

    def predict(x: Tensor, t: float | Tensor) -> Tensor:
        when = row_times(t, x)
        if isinstance(path, RectifiedFlow):
            # An inverted network has times and velocities that run from noise to data.
            return -called(x, x, steps * (1 - when)) if inverted else called(x, x, steps * when)
        return called(x, x, path.rho(when).log() / 4 if continuous else when - 1)

    if continuous and isinstance(path, EDM):
        readings = _continuous(called)
    elif isinstance(path, EDM):
        unit = float(config["sigma_data"])
        scale = unit if scale is None and data is None else scale
        readings = _preconditioned(called, scheduler, unit)
    else:
        readings = _readings(path, predict)
    if asked not in readings:
        raise ArgumentError(
            f"prediction_type {asked!r} does not go with {type(scheduler).__name__}, which knows {', '.join(readings)}"
        )
    mistakes: Mistakes = {
        f"it gives {other}, not {asked}: pass prediction_type={other!r}": reading
        for other, reading in readings.items()
        if other != asked
    }
    if continuous and isinstance(path, EDM):
        negative = _continuous(called, -1.0)
    elif isinstance(path, EDM):
        negative = _preconditioned(called, scheduler, unit, -1.0)
    else:
        negative = _readings(path, _negative(predict))
    mistakes["its sign is wrong: return -model"] = negative[asked]
    view, function = readings[asked]
    if not isinstance(path, EDM):
        mistakes |= _other_labels(called, path, asked, view, steps)
        known = asked

        def given(put: Function) -> Function:
            return _readings(path, lambda x, t: predict(put(x, t), t))[known][1]

        mistakes |= input_mistakes(view, path, scale, data, given)
    return AdaptedField(function, view, path, model=called, name="diffusers' model", mistakes=mistakes, scale=scale, data=data)


def _other_labels(called: Model, path: Path, asked: str, view: Prediction, steps: int) -> Mistakes:
    """The readings of the network as one that was trained with the labels of another library."""

    def with_labels(labels: Callable[[Tensor], Tensor]) -> Function:
        readings = _readings(path, lambda x, t: called(x, x, labels(row_times(t, x))))
        return readings[asked][1]

    flow = isinstance(path, RectifiedFlow)
    return label_mistakes(view, path, "timesteps 0 to 999", with_labels, 1.0 if flow else float(steps))


def _negative(function: Function) -> Function:
    return lambda x, t: -function(x, t)


def _readings(path: Path, predict: Function) -> dict[str, tuple[Prediction, Function]]:
    """The prediction types of diffusers that make sense on a path, each as a view and the function that gives it."""
    if isinstance(path, RectifiedFlow):
        return {"flow_prediction": ("velocity", predict), "epsilon": ("noise", predict), "sample": ("denoised", predict)}

    def from_v(x: Tensor, t: float | Tensor) -> Tensor:
        # v = alpha eps - sigma x_0 with alpha^2 + sigma^2 = 1 (Salimans and Ho, arXiv 2202.00512).
        return columns(path.alpha(t), x) * x - columns(path.sigma(t), x) * predict(x, t)

    return {"epsilon": ("noise", predict), "sample": ("denoised", predict), "v_prediction": ("denoised", from_v)}


def _continuous(called: Model, sign: float = 1.0) -> dict[str, tuple[Prediction, Function]]:
    """The same for a network of data of scale 1 that takes noise levels as log(sigma)/4, as Stable Video Diffusion's does."""

    def predict(x: Tensor, t: float | Tensor) -> Tensor:
        sigma = row_times(t, x)
        return sign * called(x, x / columns((sigma**2 + 1).sqrt(), x), sigma.log() / 4)

    def from_v(x: Tensor, t: float | Tensor) -> Tensor:
        square = row_times(t, x) ** 2
        return x / columns(square + 1, x) - columns((square / (square + 1)).sqrt(), x) * predict(x, t)

    return {"epsilon": ("noise", predict), "sample": ("denoised", predict), "v_prediction": ("denoised", from_v)}


def _preconditioned(called: Model, scheduler: Any, unit: float, sign: float = 1.0) -> dict[str, tuple[Prediction, Function]]:
    """The same for a raw network inside EDM's preconditioning (Karras et al., arXiv 2206.00364, table 1)."""

    def denoised(x: Tensor, t: float | Tensor, sign: float) -> Tensor:
        sigma = row_times(t, x)
        size = (sigma**2 + unit**2).sqrt()
        answer = called(x, x / columns(size, x), scheduler.precondition_noise(sigma))
        return columns(unit**2 / size**2, x) * x + columns(sign * sigma * unit / size, x) * answer

    return {
        "epsilon": ("denoised", lambda x, t: denoised(x, t, sign)),
        "v_prediction": ("denoised", lambda x, t: denoised(x, t, -sign)),
    }


def as_diffusers_model(
    field: Field, shape: Sequence[int], prediction_type: PredictionType = "epsilon", *, num_train_timesteps: int = 1000
) -> nn.Module:
    """A field as a network that diffusers' pipelines call: ``model(sample, timestep).sample``.

    Args:
        field: on a :class:`diffode.paths.Tabulated` path such as ``ddpm`` (t is the timestep plus 1), or ``rectified_flow``
            (t is the timestep over ``num_train_timesteps``).
        shape: (channels, height, width) of a sample.
        prediction_type: the quantity that it answers with, as in :func:`from_diffusers`.
        num_train_timesteps: the timestep of t = 1 in flow matching.

    The field is evaluated in the sample's dtype, for samples of half precision in float32.
    """
    if not isinstance(shape, Sequence) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ArgumentError(f"shape must be (channels, height, width), got {shape!r}")
    path = field.require_path("timesteps")
    if prediction_type not in TYPES:
        raise ArgumentError(f"prediction_type must be one of {', '.join(TYPES)}, got {prediction_type!r}")
    if not isinstance(path, Tabulated | RectifiedFlow):
        raise ArgumentError(f"diffusers counts timesteps; path {path.spec!r} has none: choose ddpm or rectified_flow")
    if isinstance(path, RectifiedFlow) != (prediction_type == "flow_prediction"):
        raise ArgumentError(f"prediction_type {prediction_type!r} does not go with path {path.spec!r}")
    return FieldModel(field, path, shape, prediction_type, num_train_timesteps)


class Named(dict[str, Any]):
    """A configuration or an answer, read by key, by attribute or by place, as diffusers' are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class FieldModel(nn.Module):
    """The network that :func:`as_diffusers_model` makes."""

    def __init__(self, field: Field, path: Path, shape: Sequence[int], prediction_type: PredictionType, steps: int):
        super().__init__()
        self.field, self.path, self.prediction_type = field, path, prediction_type
        channels, height, width = shape
        self._steps = steps
        size = height if height == width else (height, width)
        self.config = Named(sample_size=size, in_channels=channels, out_channels=channels)
        self.dtype = torch.float64
        self.device = torch.device("cpu")

    def forward(self, sample: Tensor, timestep: Any, *_: Any, return_dict: bool = True, **__: Any) -> Any:
        """The prediction for samples (B, C, H, W) at one timestep, or at one for each row, (B,)."""
        steps = torch.as_tensor(timestep).detach().double().reshape(-1)
        times = steps / self._steps if isinstance(self.path, RectifiedFlow) else steps + 1
        t = float(times[0]) if len(times) == 1 or bool((times == times[0]).all()) else times
        wanted = sample.dtype
        # Exact fields don't take half precision.
        sample = sample if wanted in (torch.float32, torch.float64) else sample.float()
        if self.prediction_type == "v_prediction":
            denoised = self.field.denoised(sample, t)
            alpha, sigma = columns(self.path.alpha(t), sample), columns(self.path.sigma(t), sample)
            answer = (alpha * sample - denoised) / sigma
        else:
            views: dict[str, Prediction] = {"epsilon": "noise", "sample": "denoised", "flow_prediction": "velocity"}
            answer = self.field.predict(views[self.prediction_type], sample, t)
        answer = answer.to(wanted)
        return Named(sample=answer) if return_dict else (answer,)
