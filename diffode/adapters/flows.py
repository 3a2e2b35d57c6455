"""Velocity models: torchdiffeq functions, flow_matching and torchcfm models; and ``odeint`` with solvers that need no path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from diffode import solvers
from diffode.adapters.adapted import AdaptedField, Mistakes, label_mistakes, usual_mistakes
from diffode.errors import ArgumentError, FieldError
from diffode.fields import Field
from diffode.fields.field import Function
from diffode.fields.model import Model, row_times, single_time
from diffode.paths import FunctionPath, Path
from diffode.paths import get as get_path
from diffode.solvers.adaptive import Adaptive
from diffode.solvers.baselines import ODEBaseline, TorchDiffEq
from diffode.sources import Source
from diffode.specs import format_spec, parse_spec
from diffode.targets import Target


def from_torchdiffeq(
    function: Callable[..., Any],
    path: Path | str | None = None,
    *,
    scale: float | None = None,
    data: Tensor | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Field:
    """A field from ``f(t, y) = dy/dt``, with t in diffode's direction: from noise at ``t_max`` to data.

    Without a path it is a plain ODE. A model whose data lie at t = 1 is :func:`from_flow_matching` with ``order="t, x"``.

    >>> field = from_torchdiffeq(lambda t, y: -y)
    >>> field.velocity(torch.ones(1, 2), 0.5)
    tensor([[-1., -1.]])
    """
    model = Model(function, "function", extra)
    on = None if path is None else get_path(path)
    velocity = single_time(model, lambda x, t: model(x, torch.as_tensor(t, dtype=x.dtype, device=x.device), x))
    mistakes = usual_mistakes(velocity, "velocity")
    if on is not None and on.t_max <= 1:
        mistakes["its data lie at t = 1: use from_flow_matching(f, order='t, x')"] = (
            "velocity",
            lambda x, t: -velocity(x, 1 - t),
        )
    return AdaptedField(
        velocity, "velocity", on, model=model, name="torchdiffeq's function", mistakes=mistakes, scale=scale, data=data
    )


def from_flow_matching(
    model: Callable[..., Any],
    path: Path | str | None = "rectified_flow",
    *,
    order: Literal["x, t", "t, x"] = "x, t",
    scheduler: Callable[[Tensor], Any] | None = None,
    scale: float | None = None,
    data: Tensor | None = None,
    source: Source | Target | str | Tensor | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Field:
    """A field from a velocity model with data at t = 1: flow_matching's ``model(x, t)``, torchcfm's ``model(t, x)``.

    diffode's time is 1 - t, and its velocity the negative of theirs.

    Args:
        model: the network or function.
        path: the path in diffode's time; CondOT and conditional flow matching train on ``rectified_flow``.
        order: the order of the arguments in a call.
        scheduler: a scheduler of flow_matching's, ``scheduler(t).alpha_t`` and ``.sigma_t``, instead of ``path``.
        scale: root mean variance of the data.
        data: some data, (n, *shape), which check the model at once.
        source: for a model between two data sets: points of the one at their t = 0, (n, *shape), or its law, as a source, a
            target or a spec. They take the place of normal noise in the check; such a field has no score.
        extra: keyword arguments of every call.
    """
    if order not in ("x, t", "t, x"):
        raise ArgumentError(f"order must be 'x, t' (flow_matching) or 't, x' (torchcfm), got {order!r}")
    if scheduler is not None:
        if not callable(scheduler):
            raise ArgumentError(f"scheduler must be callable as scheduler(t), got {scheduler!r:.80}")
        own = scheduler
        on: Path | None = FunctionPath(lambda t: own(1 - t).alpha_t, lambda t: own(1 - t).sigma_t, lower=0.0, upper=1.0)
    else:
        on = None if path is None else get_path(path)
    if on is not None and on.t_max > 1:
        raise ArgumentError(
            f"flow-matching times lie in [0, 1]; path {on.spec!r} goes to t={on.t_max:g}: choose rectified_flow"
        )
    called = Model(model, "model", extra)
    # flow_matching trains with a time for every row; torchcfm's wrappers need a single time, as torchdiffeq passes it.
    theirs: Function
    if order == "x, t":
        theirs = lambda x, t: called(x, x, row_times(t, x))  # noqa: E731
    else:
        theirs = single_time(called, lambda x, t: called(x, torch.as_tensor(t, dtype=torch.float64, device=x.device), x))
    mistakes: Mistakes = {
        "its sign is wrong: it points from data to noise; return -model": ("velocity", lambda x, t: theirs(x, 1 - t)),
        "its data lie at t = 0: use from_torchdiffeq, or Field.from_velocity": ("velocity", theirs),
        "its data lie at t = 0, and its sign is wrong": ("velocity", lambda x, t: -theirs(x, t)),
        **usual_mistakes(lambda x, t: theirs(x, 1 - t), "velocity"),
    }
    if on is not None and order == "x, t":

        def with_labels(labels: Callable[[Tensor], Tensor]) -> Function:
            return lambda x, t: -called(x, x, labels(1 - row_times(t, x)))

        mistakes |= label_mistakes("velocity", on, "times from 0 to 1", with_labels)
    return AdaptedField(
        lambda x, t: -theirs(x, 1 - t),
        "velocity", on, model=called, name="the flow-matching model", mistakes=mistakes, scale=scale, data=data,
        source=source,
    )  # fmt: skip


def odeint(
    function: Callable[[Tensor, Tensor], Any],
    y0: Tensor,
    t: Tensor | Sequence[float],
    *,
    method: str = "rk4",
    rtol: float | None = None,
    atol: float | None = None,
    options: Mapping[str, float] | None = None,
) -> Tensor:
    """torchdiffeq's ``odeint`` with diffode's solvers: states at the times t, (len(t), *y0.shape).

    Args:
        function: ``f(t, y)``, y of the shape of y0.
        y0: start at ``t[0]``, of any shape.
        t: times, rising or falling.
        method: spec of any solver in the velocity chart (``euler``, ``midpoint``, ``heun``, ``rk4``, ``ab:order=3`` ...), which
            takes one step between times unless ``options`` divide it; or any name of torchdiffeq's, whose adaptive ``dopri5``,
            ``bosh3``, ``dopri8``, ``adaptive_heun`` and ``fehlberg2`` have one step for all of y.
        rtol, atol: tolerances of an adaptive method.
        options: ``step_size``, the largest step, as in torchdiffeq.

    >>> end = odeint(lambda t, y: -y, torch.ones(1, 1, dtype=torch.float64), [0.0, 1.0], options={"step_size": 0.1})[-1]
    >>> abs(float(end) - 0.36787944) < 1e-6
    True
    """
    if not callable(function):
        raise ArgumentError(f"function must be callable as f(t, y), got {type(function).__name__}")
    if not isinstance(y0, Tensor) or not y0.is_floating_point():
        raise ArgumentError(f"y0 must be a tensor of floating-point numbers, got {y0!r:.80}")
    times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    steps = times.diff()
    if times.ndim != 1 or len(times) < 2 or not bool(torch.isfinite(times).all() and ((steps > 0).all() or (steps < 0).all())):
        raise ArgumentError("t must be at least two finite times that rise or fall")
    unknown = set(options or {}) - {"step_size"}
    if unknown:
        raise ArgumentError(f"unknown option {sorted(unknown)[0]!r}; odeint knows step_size")
    rising = bool(steps[0] > 0)
    # diffode's times fall; rising times t run as s = t[-1] - t, which falls to 0.
    place = (times[-1] - times) if rising else times - min(float(times[-1]), 0.0)
    offset = float(times[-1]) if rising else min(float(times[-1]), 0.0)

    def velocity(y: Tensor, s: float | Tensor) -> Tensor:
        # All of y is one row, so that y may have any shape and one adaptive step serves all of it.
        place = float(s)
        when = torch.as_tensor(offset - place if rising else place + offset, dtype=y.dtype, device=y.device)
        slope: Tensor = function(when, y.reshape(y0.shape))
        if not isinstance(slope, Tensor) or slope.shape != y0.shape:
            what = f"shape {tuple(slope.shape)}" if isinstance(slope, Tensor) else type(slope).__name__
            raise FieldError(f"function returned {what} for y of shape {tuple(y0.shape)}; they must match")
        return (-slope if rising else slope).reshape(y.shape)

    field = Field.from_velocity(velocity, probe=False)
    grid, kept = _refined(place.tolist(), (options or {}).get("step_size"))
    found = solvers.solve(field, y0.reshape(1, -1), solver=_method(method, rtol, atol), grid=grid, keep="all").states
    if found is None:
        raise ArgumentError(f"method {method!r} keeps no states")
    return found[kept].reshape(-1, *y0.shape)


def _method(method: str, rtol: float | None, atol: float | None) -> str:
    """The spec of a method that may have torchdiffeq's name."""
    given = {key: value for key, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    # torchdiffeq keeps an old name of implicit_adams.
    method = "implicit_adams" if method == "fixed_adams" else method
    name = parse_spec(method)[0]
    # A name of torchdiffeq's. Names that diffode has too (euler, midpoint, rk4) are the same methods.
    if name == method and name not in solvers.names() and name in TorchDiffEq.methods and name not in ("dopri5", "bosh3"):
        method = name = f"torchdiffeq:{name}"
    if name in solvers.names() and isinstance(solvers.get(name), Adaptive | ODEBaseline):
        chosen = parse_spec(method)[1]
        doubled = sorted(set(given) & set(chosen))
        if doubled:
            raise ArgumentError(f"{doubled[0]} is in method {method!r} already; give it once")
        own = solvers.get(method)
        # The tolerance of implicit_adams is that of its iteration.
        if given and isinstance(own, ODEBaseline) and own.method in own.fixed and own.method != "implicit_adams":
            raise ArgumentError(f"method {method!r} has fixed steps: rtol and atol go with adaptive methods, such as dopri5")
        if isinstance(own, TorchDiffEq) and own.method not in own.fixed:
            given = {"rtol": 1e-7, "atol": 1e-9, **given}
            given = {key: value for key, value in given.items() if key not in chosen}
        return format_spec(name, {**chosen, **{key: float(value) for key, value in given.items()}})
    if method in ("dopri5", "bosh3"):
        given = {"rtol": 1e-7, "atol": 1e-9, **given}
        return f"rk_adaptive:pair={method}," + ",".join(f"{key}={float(value)!r}" for key, value in given.items())
    if given:
        raise ArgumentError(f"method {method!r} has fixed steps: rtol and atol go with adaptive methods, such as dopri5")
    return method


def _refined(times: list[float], step: float | None) -> tuple[list[float], list[int]]:
    """Times with steps of at most ``step`` between the given ones, and the indices of the given ones."""
    if step is not None and not 0 < step < math.inf:
        raise ArgumentError(f"step_size must be a positive number, got {step!r}")
    grid, kept = [times[0]], [0]
    for start, stop in itertools.pairwise(times):
        count = 1 if step is None else max(1, math.ceil((start - stop) / step * (1 - 1e-12)))
        grid += [start + (stop - start) * k / count for k in range(1, count)] + [stop]
        kept.append(len(grid) - 1)
    return grid, kept
