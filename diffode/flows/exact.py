r"""``reference``: the exact ends of the probability-flow ODE, with an error estimate, by one of three ways.

The same flow as a map to be differentiated, :class:`ExactFlow`, is in `differentiable.py`.

* One Gaussian: :math:`\Phi(x) = \alpha_u m + f(C)(x - \alpha_t m)`,
  :math:`f(c)^2 = (\alpha_u^2 c + \sigma_u^2)/(\alpha_t^2 c + \sigma_t^2)`.
* One-dimensional mixtures, and mixtures whose means lie on a line with a common covariance: the flow is monotone, so it is
  the quantile map :math:`F_u^{-1}\circ F_t` along the line, and Gaussian across it.
* Two Gaussians whose covariances commute, mixed by guidance with one weight: direction by direction (`guided.py`).
* Everything else: DOP853 (Hairer, Norsett, Wanner, II.5) in the log-SNR, where the equation is smooth. The error estimate is
  meant to lie above the error. It is the sum of the difference to a second run at ten times the tolerance, which may vanish
  in a row by chance, and of the tolerance times the stretch of the row's flow (`integrated.py`).
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.flows.guided import known_of
from diffode.flows.integrated import integrated_flow, integrated_states
from diffode.flows.rounding import reachable


@dataclass(frozen=True)
class Reference:
    """The exact ends of points, with an estimate of their errors.

    Attributes:
        x: end points, shape and dtype of the start.
        error_estimate: estimate of the Euclidean error of the worst row, meant to lie above the error.
        errors: the estimate for each row, (B,), float64; about eighty times the error of a typical integrated row.
        method: ``"closed-form"``, ``"quantile"`` or ``"dop853"``.
    """

    x: Tensor
    error_estimate: float
    errors: Tensor
    method: str

    def __repr__(self) -> str:
        return f"Reference(x of shape {tuple(self.x.shape)}, error_estimate={self.error_estimate:.1e}, method={self.method!r})"


def reference(
    field: Field, x: Tensor, start: float, stop: float, tolerance: float = 1e-10, *, use_cache: bool = True
) -> Reference:
    """Follow the probability-flow ODE exactly from time ``start`` to time ``stop``, in either direction.

    Args:
        field: an exact field, whose flow may have a closed form, or any other field, which is integrated.
        x: points at ``start``, (B, *shape).
        start, stop: times; sigma may be 0 at ``stop``, and at ``start`` if the data have a density.
        tolerance: relative tolerance of the integration, from 1e-13 to 1e-3. Closed forms ignore it.
        use_cache: whether integrated references of exact fields are kept on disk.

    Returns:
        :class:`Reference`. The field's evaluations are not counted.

    >>> import diffode
    >>> field = diffode.exact_field("gauss1d", "edm")
    >>> reference(field, torch.tensor([[80.5]], dtype=torch.float64), 80.0, 0.002).method
    'closed-form'
    """
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field, got {type(field).__name__}")
    given: tuple[tuple[str, object], ...] = (("tolerance", tolerance), ("start", start), ("stop", stop))
    for name, number in given:
        single = number.numel() == 1 if isinstance(number, Tensor) else isinstance(number, numbers.Real)
        if not single or isinstance(number, bool):
            raise ArgumentError(f"{name} must be a number, got {number!r:.80}")
    if not 1e-13 <= tolerance <= 1e-3:
        raise ArgumentError(f"tolerance must lie in [1e-13, 1e-3], got {tolerance!r}")
    for name, time in (("start", start), ("stop", stop)):
        if not math.isfinite(time):
            raise ArgumentError(f"{name} must be a finite time on the path, got {time!r}")
        if field.path is not None:
            field.path.check_times(time, name)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not bool(torch.isfinite(x).all()):
        raise ArgumentError("x must be a finite float32 or float64 tensor (B, *shape)")
    if field.dim is not None and x.shape[0] and x[0].numel() != field.dim:
        raise ArgumentError(f"x must have {field.dim} numbers a row, got {tuple(x.shape)}")
    flat = x.detach().to(torch.float64).flatten(1)
    if start == stop or x.shape[0] == 0:
        ends, errors, method = flat, torch.zeros(len(flat), dtype=torch.float64), "closed-form"
    else:
        with field.uncounted():
            ends, errors, method = _flow(field, flat, float(start), float(stop), tolerance, use_cache, x.shape[1:])
    if not bool(torch.isfinite(ends).all()):
        raise NumericalError(f"the reference from t={start:g} to t={stop:g} is not finite; is the field singular there?")
    return Reference(ends.reshape(x.shape).to(x.dtype), float(errors.max()) if len(errors) else 0.0, errors, method)


def flow_states(field: Field, x: Tensor, times: Sequence[float], tolerance: float | None = None) -> Tensor:
    """The exact flow at several times, without an estimate of the error and in half the time of a reference.

    Args:
        field: an exact field, whose flow may have a closed form, or any other field. Its evaluations are not counted.
        x: points at the first time, (B, *shape).
        times: M times that fall or rise, with rho finite and not 0.
        tolerance: relative tolerance of the one integration, whose dense output by DOP853 is of seventh order; 1e-6 unless
            given, or what the rounding of the field's answers allows.

    Returns:
        The states, (M, B, *shape). States of exact fields at two times are kept on disk.
    """
    path = field.path
    if path is None:
        raise ArgumentError("field must have a path for its flow at many times")
    rises = {b > a if b != a else None for a, b in itertools.pairwise(times)}
    if len(rises) != 1 or None in rises:
        raise ArgumentError(f"times must fall or rise, two of them at least, got {list(times)}")
    for time in (times[0], times[-1]):
        path.check_times(time, "times")
    known = known_of(field)
    tolerance = reachable(field, 1e-6, x.shape[1:]) if tolerance is None else tolerance
    for end in (times[0], times[-1]):
        if known is None and not math.isfinite(path.log_snr(end)):
            raise ArgumentError(
                f"times must have a finite log-SNR, got {end!r}, where sigma or alpha is 0; use reference there"
            )
    if known is not None:
        return torch.stack([x, *(reference(field, x, times[0], t, tolerance).x for t in times[1:])])
    flat = x.detach().to(torch.float64).flatten(1)
    with field.uncounted():
        later = integrated_states(field, path, flat, times, tolerance, x.shape[1:])
    states = torch.cat([flat[None], later.to(flat.device)])
    if not bool(torch.isfinite(states).all()):
        raise NumericalError(f"the flow from t={times[0]:g} to t={times[-1]:g} is not finite; is the field singular there?")
    return states.reshape(-1, *x.shape).to(x)


def _flow(
    field: Field, x: Tensor, start: float, stop: float, tolerance: float, use_cache: bool, shape: torch.Size
) -> tuple[Tensor, Tensor, str]:
    errors, method = torch.zeros(len(x), dtype=torch.float64), "closed-form"
    parts, ends = field.pieces(start, stop), x
    for part, begin, end in parts:
        known = known_of(part)
        if known is None:
            return *integrated_flow(field, x, start, stop, tolerance, use_cache, shape), "dop853"
        ends, rounding = known.flow(ends, begin, end)
        errors = errors + rounding
        method = known.method if known.method != "closed-form" else method
    return ends, errors, method
