"""The exact flow by DOP853 in the log-SNR, where the equation is smooth, with an error estimate meant to lie above it."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffode import cache
from diffode.closure import version_of
from diffode.errors import ArgumentError, DiffodeError, FieldError, NumericalError
from diffode.fields import ExactField, Field
from diffode.fields.exact import mixture_of
from diffode.numerics.quantiles import Array
from diffode.paths import Path

#: Largest size of the state vector of one adaptive integration, which limits its rows.
STATE_SIZE = 2**16
#: Smallest relative tolerance that SciPy takes.
_LEAST_TOLERANCE = 3e-14
#: Noise level rho, in units of the data's scale, at which a flow to sigma = 0 jumps to the denoised point, with an error of
#: order rho^2.
_LAST_RHO = 1e-8
#: The same level in standard deviations of the narrowest component; the lower of the two counts.
_LAST_IN_WIDTHS = 1e-4
#: Weight of the distance of two runs in the error estimate.
_DISTANCE_WEIGHT = 7.5
#: Weight of the tolerance in it.
_TOLERANCE_WEIGHT = 6.0
#: Weight of the tolerance times the stretch of a row's flow in it, if the stretch is known.
_STRETCH_WEIGHT = 0.3
#: Largest dimension in which the stretch is computed.
_FEW_DIMENSIONS = 3
#: Largest logarithm of the stretch.
_MOST_STRETCH = 50.0
#: Tolerance below which the error of a run is rounding.
_ROUNDED = 5e-13
#: Largest tolerance of a reference, and the factor by which a message proposes to widen one.
_LARGEST_TOLERANCE, _WIDER = 1e-3, 1000
#: Most evaluations of a field in one adaptive integration. Where rounding in its answers is above the tolerance, steps shrink
#: without end.
MOST_EVALUATIONS = 200_000


def integrated_flow(
    field: Field, x: Tensor, start: float, stop: float, tolerance: float, use_cache: bool, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Ends (B, D) of points x (B, D), and estimates of their errors (B,); ``shape`` is that of a row for the field."""

    def made() -> dict[str, Tensor]:
        pieces = [_integrate(field, piece, start, stop, tolerance, shape) for piece in torch.split(x, _rows(x))]
        return {"x": torch.cat([p[0] for p in pieces]).cpu(), "errors": torch.cat([p[1] for p in pieces])}

    found = _kept(field, ("reference", start, stop, tolerance), x, {"x", "errors"}, x.shape, made) if use_cache else made()
    ends = found["x"].to(x.device)
    return ends, _bounded(field, x, ends, found["errors"], start, stop, tolerance)


def integrated_states(
    field: Field, path: Path, x: Tensor, times: Sequence[float], tolerance: float, shape: torch.Size
) -> Tensor:
    """The flow of x (B, D) at all times but the first, (M - 1, B, D), by dense output; states at two times are kept on disk."""
    equation, levels = _in_log_snr(field, path), [path.log_snr(t) for t in times]

    def integrated(part: Tensor) -> Tensor:
        states = _dop853(equation, part / path.alpha(times[0]), levels, tolerance, field.scale, shape)
        return torch.stack([path.alpha(t) * z for t, z in zip(times[1:], states[1 - len(times) :], strict=True)])

    def made() -> dict[str, Tensor]:
        return {"x": torch.cat([integrated(part) for part in torch.split(x, _rows(x))], dim=1).cpu()}

    if len(times) > 2:
        return made()["x"]
    return _kept(field, ("ends", *times, tolerance), x, {"x"}, torch.Size((1, *x.shape)), made)["x"]


def _bounded(field: Field, x: Tensor, ends: Tensor, differences: Tensor, start: float, stop: float, tolerance: float) -> Tensor:
    """Estimates above the error of every row, (B,), from the distances of its two runs.

    The distance of two runs is too small where both have the same error: if the flow looks linear, both take the same long
    step into a bend. The error exceeded the distance in one of twenty rows (of seven thousand, of eleven targets on three
    paths at three tolerances, half of them integrated alone). The estimate therefore adds the row's tolerance, times the
    stretch of its flow. An exact field in few dimensions gives the stretch: the flow changes the density by the determinant
    of its derivative, and no direction shrinks faster than in the narrowest component alone. The weights put the largest
    error of those rows at two thirds of its estimate: rounding, which differs between processors, can lead a run to other
    steps, and moved one row's error by three hundredths.
    """
    unit = ends.norm(dim=1) / math.sqrt(ends.shape[1]) + 1e-2 * field.scale
    size: Tensor = max(_pair(tolerance)[1], _ROUNDED) * unit.cpu()
    stretch = _stretch(field, x, ends, start, stop)
    share = _TOLERANCE_WEIGHT if stretch is None else _TOLERANCE_WEIGHT + _STRETCH_WEIGHT * stretch
    return _DISTANCE_WEIGHT * differences + share * size


def _stretch(field: Field, x: Tensor, ends: Tensor, start: float, stop: float) -> Tensor | None:
    """Stretch of each row's neighbourhood relative to a flow to one component, (B,) >= 1; None if it is unknown."""
    target = mixture_of(field)
    if not isinstance(field, ExactField) or target is None or target.dim > _FEW_DIMENSIONS:
        return None
    first, last = (max(t, field.path.time_from_rho(least_rho(field))) for t in (start, stop))
    widths = [field.path.alpha(t) ** 2 * target.components.smallest_variance + field.path.sigma(t) ** 2 for t in (first, last)]
    change = field.log_prob(x, first) - field.log_prob(ends, last)
    shrunk = target.dim / 2 * math.log(widths[1] / widths[0])
    return (change - shrunk).clamp(min=0.0, max=_MOST_STRETCH).exp().cpu()


def _rows(x: Tensor) -> int:
    """Number of rows of x in one integration."""
    return max(1, STATE_SIZE // x.shape[1])


def _kept(
    field: Field,
    asked: tuple[object, ...],
    x: Tensor,
    names: set[str],
    shape: torch.Size,
    make: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The arrays on disk for an exact field; if there are none, they are made and kept there."""
    key = None
    if isinstance(field, ExactField):
        # The flow of a target that can't name its content is integrated each time.
        with contextlib.suppress(NotImplementedError):
            purpose, *rest = asked
            # The key holds the code that the integration imports, and that of a user's field, target and path.
            code = version_of(__name__, type(field), field.target, field.path)
            noise = [] if field.source is None else [field.source.spec, field.source.content(), version_of(field.source)]
            target = field.target.content(), field.target.arithmetic
            key = cache.key_of(purpose, code, *target, field.path.spec, *rest, x, *noise)
    stored = cache.read(key) if key else None
    if stored is not None and stored.keys() >= names and stored["x"].shape == shape:
        return stored
    made = make()
    if key is not None:
        cache.write(key, made)
    return made


def _integrate(
    field: Field, x: Tensor, start: float, stop: float, tolerance: float, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """DOP853 twice, at the tolerance and at a tenth of it; the finer run and the distance between the two."""
    parts = field.pieces(start, stop)
    runs = []
    for rtol in _pair(tolerance):
        ends = x
        for part, begin, end in parts:
            path = part.path
            if path is None or path.alpha(begin) == 0 or path.alpha(end) == 0:
                ends = _dop853(_in_time(part), ends, (begin, end), rtol, part.scale, shape)[-1]
            else:
                ends = _run(part, path, ends, begin, end, rtol, shape)
        runs.append(ends)
    return runs[1], (runs[1] - runs[0]).norm(dim=1).cpu()


def _pair(tolerance: float) -> tuple[float, float]:
    return max(tolerance, 10 * _LEAST_TOLERANCE), max(tolerance / 10, _LEAST_TOLERANCE)


def _run(field: Field, path: Path, x: Tensor, start: float, stop: float, rtol: float, shape: torch.Size) -> Tensor:
    """The flow in the log-SNR, from that of one time to that of the other."""
    to_zero = path.sigma(stop) == 0
    last = path.time_from_rho(least_rho(field)) if to_zero else stop
    z, first = leave_zero(field, x / path.alpha(start), start, shape)
    if first != last:
        z = _dop853(_in_log_snr(field, path), z, (path.log_snr(first), path.log_snr(last)), rtol, field.scale, shape)[-1]
    ends = path.alpha(last) * z
    return field.denoised(ends.reshape(-1, *shape), last).reshape(ends.shape) if to_zero else ends


def leave_zero(field: Field, z: Tensor, start: float, shape: Sequence[int]) -> tuple[Tensor, float]:
    """z = x/alpha (B, D) and the time from which a flow that starts without noise can be integrated.

    Near rho = 0 eps is proportional to rho, so that the flow dz/drho = eps moves z by rho eps/2, up to rho^4. A start with
    noise is returned unchanged. Point masses have no flow from sigma = 0, since all noised points end in them.
    """
    path = field.require_path("a flow from sigma = 0")
    if path.sigma(start) > 0:
        return z, start
    check_leaves_zero(field, path, start)
    rho = least_rho(field)
    first = path.time_from_rho(rho)
    with torch.no_grad():
        noise = field.noise((path.alpha(first) * z).reshape(-1, *shape), first).reshape(z.shape)
    # Noise from a source need not vanish with rho; the half would only take a smaller error off.
    return z + rho * noise / (2 if field.source is None else 1), first


def check_leaves_zero(field: Field, path: Path, start: float) -> None:
    """Raise ArgumentError if a flow from point masses starts without noise."""
    mixture = field.target.as_mixture() if isinstance(field, ExactField) else None
    if mixture is not None and mixture.is_discrete:
        raise ArgumentError(
            f"start={start:g} has sigma = 0, where point masses have no flow to noise: start later, for instance at "
            f"path.t_min={path.t_min:g}" + ("" if path.sigma(path.t_min) > 0 else " of a path with t_min > 0")
        )


def least_rho(field: Field) -> float:
    """Noise level rho at which a flow to sigma = 0 ends, or one from there begins; it is tiny beside all widths of the data."""
    target = field.target.as_mixture() if isinstance(field, ExactField) else None
    least = _LAST_RHO * field.scale
    if target is not None and not target.is_discrete:
        least = min(least, _LAST_IN_WIDTHS * math.sqrt(target.components.smallest_variance))
    return least


class _Equation(NamedTuple):
    """A flow as an equation: the slope of states (B, *shape) in its own variable, and the time at a value of that."""

    slope: Callable[[Tensor, float], Tensor]
    time: Callable[[float], float]


def _in_time(field: Field) -> _Equation:
    return _Equation(field.velocity, lambda t: t)


def _in_log_snr(field: Field, path: Path) -> _Equation:
    """d(x/alpha)/d lambda = -rho eps."""

    def slope(z: Tensor, log_snr: float) -> Tensor:
        t = path.time_from_log_snr(log_snr)
        return -math.exp(-log_snr) * field.noise(path.alpha(t) * z, t)

    return _Equation(slope, path.time_from_log_snr)


def answered(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A field's answer in an integration.

    Raises:
        FieldError: for whatever the function of a user's field raises.
    """
    try:
        return function(*arguments)
    except DiffodeError:
        raise
    except Exception as error:  # anyone's function may raise anything
        raise FieldError(
            f"the field can't be called in an integration, which is in float64: {type(error).__name__}: {error}; "
            "wrap a float32 network as lambda x, t: net(x.float(), t).to(x.dtype)"
        ) from error


def _right_hand_side(equation: _Equation, x: Tensor, shape: torch.Size) -> Callable[[float, Array], Array]:
    """The slope of an equation in SciPy's form: a function of the variable and one flat vector."""

    def right_hand_side(at: float, state: Array) -> Array:
        points = torch.from_numpy(state).to(x.device).reshape(-1, *shape)
        with torch.no_grad():
            answer = answered(equation.slope, points, float(at))
        if not bool(torch.isfinite(answer).all()):
            lost = int((~torch.isfinite(answer)).flatten(1).any(1).sum())
            raise NumericalError(
                f"the field gave non-finite values at t={equation.time(float(at)):.6g}, in {lost} of {len(points)} rows"
            )
        slope: Array = answer.reshape(-1).cpu().numpy()
        return slope

    return right_hand_side


def limited(
    slope: Callable[[float, Array], Array], stopped: Callable[[float], NumericalError]
) -> Callable[[float, Array], Array]:
    """A right-hand side that raises what ``stopped`` makes of its variable after :data:`MOST_EVALUATIONS`."""
    calls = itertools.count(1)

    def counted(at: float, state: Array) -> Array:
        if next(calls) > MOST_EVALUATIONS:
            raise stopped(float(at))
        return slope(at, state)

    return counted


def too_fine(what: str, rtol: float) -> NumericalError:
    """The error of an integration that does not come to its end at a relative tolerance, with what helps."""
    return NumericalError(
        f"{what}, at a relative tolerance of {rtol:.0e}. The field's answers jump, or their rounding exceeds the tolerance: "
        f"ask for a larger tolerance, such as {min(_WIDER * rtol, _LARGEST_TOLERANCE):.0e}, or write the field without "
        "differences of large numbers"
    )


def _dop853(equation: _Equation, x: Tensor, values: Sequence[float], rtol: float, scale: float, shape: torch.Size) -> Tensor:
    """The solution at the second of two values of the variable, (1, B, D), or at all of M > 2 values, (M, B, D)."""
    from scipy.integrate import solve_ivp

    begin, end = values[0], values[-1]

    def failed(why: str) -> NumericalError:
        first, last = (equation.time(value) for value in (begin, end))
        return too_fine(f"the reference could not be integrated from t={first:.6g} to t={last:.6g}: {why}", rtol)

    slope = limited(
        _right_hand_side(equation, x, shape),
        lambda at: failed(f"{MOST_EVALUATIONS:,} evaluations took it to t={equation.time(at):.6g} only"),
    )
    with np.errstate(all="ignore"):
        result = solve_ivp(
            slope, (begin, end), x.reshape(-1).cpu().numpy(), method="DOP853", rtol=rtol, atol=rtol * scale * 1e-2,
            t_eval=None if len(values) == 2 else np.asarray(values),
        )  # fmt: skip
    if not result.success:
        raise failed(result.message.rstrip("."))
    found = result.y[:, -1:] if len(values) == 2 else result.y
    return torch.from_numpy(found.T.copy()).to(x.device).reshape(-1, *x.shape)
