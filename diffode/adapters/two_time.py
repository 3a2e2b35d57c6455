r"""Average velocities of other libraries as flow maps: MeanFlow's networks, shortcut models, diffusers' flow-map models.

With :math:`\tau` the library's time, all of them jump by :math:`\Phi(x, \tau \to \tau') = x + (\tau' - \tau)\, u`, and
differ in where their data lie, and in how the network is told where it is and where it goes (MeanFlow, arXiv 2505.13447;
shortcut models, arXiv 2410.12557; AnyFlow, arXiv 2605.13724).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from diffode.adapters.adapted_map import AdaptedMap
from diffode.adapters.map_convention import Jump
from diffode.errors import ArgumentError
from diffode.fields import Field, columns
from diffode.fields.model import Model
from diffode.paths import Path
from diffode.paths import get as get_path

#: How a network is told its two times after x: t is where the points are, r where they go.
Form = Literal["t,r", "r,t", "t,t-r", "t,r-t"]
FORMS: tuple[Form, ...] = ("t,r", "r,t", "t,t-r", "t,r-t")
#: The path of rectified flow from end to end, on which a jump may begin without any data and end without any noise.
STRAIGHT = "rectified_flow:t_min=0,t_max=1"


@dataclass(frozen=True)
class Labels:
    """How a network is called, and what its answer means.

    Attributes:
        form: what follows x in a call.
        data_at: the library's time of the data, 0 or 1; noise is at the other end.
        sign: -1 if it gives the negative of an average velocity.
        span: the label of the library's time 1.
        finest: number of steps whose base-2 logarithm is the label of the shortest step: a shortcut model's steps are then
            labelled by the negative logarithm of their length.
    """

    form: str
    data_at: int
    sign: int = 1
    span: float = 1.0
    finest: int | None = None

    def jump(self, model: Model) -> Jump:
        """The jumps of a network that is called so, in the times of a path whose data lie at 0."""

        def jump(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            here, there = (s, t) if self.data_at == 0 else (1 - s, 1 - t)
            velocity = self.sign * model(x, x, *self.shown(here, there))
            found: Tensor = x + columns(there - here, x) * velocity
            return found

        return jump

    def shown(self, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """The two labels (B,) of a jump between two of the library's times (B,)."""
        if self.finest is not None:
            most = math.log2(self.finest)
            length = (there - here).abs().clamp(min=1 / self.finest)
            return self.span * here, (-length.log2()).clamp(0, most)
        first, second = {
            "t,r": (here, there), "r,t": (there, here), "t,t-r": (here, here - there), "t,r-t": (here, there - here),
        }[self.form]  # fmt: skip
        return self.span * first, self.span * second

    def told(self, other: Labels) -> str:
        """The fix that makes these labels the other ones."""
        parts = []
        if other.finest != self.finest:
            parts.append(
                "it wants the length of a step as it is: pass steps='length'"
                if other.finest is None
                else f"it wants the logarithm of a step's length: pass steps='log2' with finest={other.finest}"
            )
        elif other.form != self.form:
            parts.append(f"it is called as (x, {other.form.replace(',', ', ')}): pass form={other.form!r}")
        if other.data_at != self.data_at:
            parts.append(f"its data lie at t = {other.data_at}: pass data_at={other.data_at}")
        if other.sign != self.sign:
            parts.append("its sign is wrong: return -model")
        if other.span != self.span:
            parts.append(f"its times run to {other.span:g}: pass span={other.span:g}")
        return "; ".join(parts)


def from_meanflow(
    model: Callable[..., Any],
    form: Form,
    *,
    data_at: Literal[0, 1] = 0,
    span: float = 1.0,
    path: Path | str = STRAIGHT,
    on: Path | str | None = None,
    shape: Sequence[int] | None = None,
    data: Tensor | None = None,
    field: Field | None = None,
    extra: Mapping[str, Any] | None = None,
) -> AdaptedMap:
    """A flow map from a network of an average velocity, u = (x_r - x_t)/(r - t) (MeanFlow, arXiv 2505.13447).

    Args:
        model: the network, called with x and two labels (B,).
        form: the labels, with t the time of the points and r the time where they go: ``"t,r"``, ``"r,t"`` (the order of the
            paper's formulas), ``"t,t-r"`` (what its code gives the network), ``"t,r-t"``.
        data_at: the time of the data in the library, 0 (the paper's) or 1.
        span: the label of the time 1, such as 1000 for a network that counts timesteps.
        path: the path of its training, whose data lie at 0 as all of diffode's; straight from end to end unless given.
        on: the path in whose states and times the map is used; ``path`` unless given. ``.on(path)`` changes it.
        shape: shape of a row, where neither data nor a field tell it.
        data: some data, (n, *shape), or
        field: the field whose flow it is to be: either checks the convention at once, see docs/flow_maps.md.
        extra: keyword arguments of every call, as in :func:`from_diffusers`.

    Raises:
        ArgumentError: for a wrong argument.

    Warns:
        ConventionWarning: if another reading of the network is clearly better than the one that is named.

    >>> import diffode
    >>> field = diffode.exact_field("gauss1d", "rectified_flow")
    >>> exact = diffode.flow(field)
    >>> phi = from_meanflow(lambda x, t, span: exact.average_velocity(x, t, t - span), "t,t-r", field=field)
    >>> x = field.prior(4, generator=0)
    >>> bool((phi(x, 0.9, 0.1) - exact(x, 0.9, 0.1)).abs().max() < 1e-12)
    True
    """
    if form not in FORMS:
        raise ArgumentError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    own = _own_path(path)
    asked = Labels(form, _end(data_at), span=_span(span))
    called = Model(model, "model", extra)
    readings = _readings(asked, called, forms=FORMS, spans=(1.0, 1000.0))
    return AdaptedMap(
        asked.jump(called), own, model=called, name="the MeanFlow network", readings=readings, path=on, shape=shape, data=data,
        field=field,
    )  # fmt: skip


def from_shortcut(
    model: Callable[..., Any],
    *,
    steps: Literal["length", "log2"] = "length",
    finest: int = 128,
    data_at: Literal[0, 1] = 1,
    path: Path | str = STRAIGHT,
    on: Path | str | None = None,
    shape: Sequence[int] | None = None,
    data: Tensor | None = None,
    field: Field | None = None,
    extra: Mapping[str, Any] | None = None,
) -> AdaptedMap:
    """A flow map from a shortcut model ``s(x, t, d)``, x' = x + d s with noise at t = 0 (Frans et al., arXiv 2410.12557).

    Args:
        model: the network, called with x, times (B,) and steps (B,).
        steps: ``"length"``, d itself as in the paper, or ``"log2"``, log2(1/d) as in its code, where the shortest step is
            log2(``finest``).
        finest: number of the shortest steps between noise and data.
        data_at: the time of the data, 1 in the paper and its code.
        path, on, shape, data, field, extra: as in :func:`from_meanflow`.

    It learned steps of 1, 1/2, 1/4, ... from multiples of themselves: run it with 1, 2, 4, ... jumps.
    """
    if steps not in ("length", "log2"):
        raise ArgumentError(f"steps must be 'length' (the paper's d) or 'log2' (its code's log2(1/d)), got {steps!r}")
    if type(finest) is not int or finest < 1 or finest & (finest - 1):
        raise ArgumentError(f"finest must be a power of 2, such as 128, got {finest!r}")
    own = _own_path(path)
    asked = Labels("t,r-t", _end(data_at), finest=finest if steps == "log2" else None)
    called = Model(model, "model", extra)
    readings = _readings(asked, called, forms=("t,r-t", "t,r"), finest=(None, finest))
    return AdaptedMap(
        asked.jump(called), own, model=called, name="the shortcut model", readings=readings, path=on, shape=shape, data=data,
        field=field,
    )  # fmt: skip


def from_flow_map_model(
    model: Callable[..., Any],
    scheduler: Any,
    *,
    frames: bool = False,
    on: Path | str | None = None,
    shape: Sequence[int] | None = None,
    data: Tensor | None = None,
    field: Field | None = None,
    extra: Mapping[str, Any] | None = None,
) -> AdaptedMap:
    """A flow map from a flow-map model of diffusers and its ``FlowMapEulerDiscreteScheduler`` (AnyFlow, arXiv 2605.13724).

    Args:
        model: the transformer, called as ``model(sample, timestep, r_timestep, **extra)``; its answer is ``.sample``, the first
            of a tuple, or a tensor.
        scheduler: the scheduler, whose ``num_train_timesteps`` is the timestep of all noise and whose shift lays the times.
        frames: whether the model takes its timesteps (B, frames), for samples (B, frames, ...), as AnyFlow's does.
        on, shape, data, field, extra: as in :func:`from_meanflow`.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping) or not hasattr(scheduler, "apply_shift"):
        raise ArgumentError(
            f"scheduler must be a FlowMapEulerDiscreteScheduler (an object, not a class), got {scheduler!r:.80}"
        )
    own = get_path(STRAIGHT)
    called = Model(_with_frames(model) if frames and callable(model) else model, "model", extra, narrow_times=False)
    asked = Labels("t,r", 0, span=_span(float(config["num_train_timesteps"])))
    laying = copy.deepcopy(scheduler)

    def lay(count: int) -> list[float]:
        laying.set_timesteps(count)
        return [float(sigma) for sigma in laying.sigmas]

    readings = _readings(asked, called, forms=FORMS, spans=(1.0, asked.span))
    return AdaptedMap(
        asked.jump(called), own, model=called, name="the flow-map model", readings=readings, path=on, lay=lay, shape=shape,
        data=data, field=field,
    )  # fmt: skip


def _with_frames(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model that gets each timestep (B,) for every frame of a row, (B, frames)."""

    def called(x: Tensor, t: Tensor, r: Tensor, **extra: Any) -> Any:
        return model(x, *(label[:, None].expand(-1, x.shape[1]) for label in (t, r)), **extra)

    return called


def _readings(
    asked: Labels,
    model: Model,
    *,
    forms: Sequence[str],
    spans: Sequence[float] = (1.0,),
    finest: Sequence[int | None] = (None,),
) -> dict[str, Jump]:
    """The network under all other conventions, by the fix, and as one that gives points or displacements."""
    every = {
        asked.told(other): other.jump(model)
        for form, data_at, sign, span, steps in itertools.product(forms, (0, 1), (1, -1), spans, finest)
        if (other := replace(asked, form=form, data_at=data_at, sign=sign, span=span, finest=steps)) != asked
    }

    def point(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        here, there = (s, t) if asked.data_at == 0 else (1 - s, 1 - t)
        return model(x, x, *asked.shown(here, there))

    every["it gives the points, not a velocity: use diffode.maps.FunctionMap(phi, path)"] = point
    every["it gives the displacement of a point, not a velocity: divide its answer by r - t"] = lambda x, s, t: (
        x + point(x, s, t)
    )
    return every


def _own_path(path: Path | str) -> Path:
    own = get_path(path)
    if own.t_end > 1 and own.t_max > 1:
        raise ArgumentError(f"path must have times from 0 to 1, as its library has; {own.spec!r} goes to t={own.t_max:g}")
    return own


def _end(data_at: object) -> int:
    if type(data_at) is not int or data_at not in (0, 1):
        raise ArgumentError(f"data_at must be 0 or 1, the library's time of the data, got {data_at!r}")
    return data_at


def _span(span: object) -> float:
    if isinstance(span, bool) or not isinstance(span, int | float) or not 0 < span < math.inf:
        raise ArgumentError(f"span must be a positive number, the label of the time 1, got {span!r}")
    return float(span)
