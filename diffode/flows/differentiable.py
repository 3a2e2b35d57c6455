r"""``flow``: the exact flow :math:`\Phi(x, s \to t)` as a map that can be differentiated, with a time for every row.

Closed forms are differentiated by autograd. The derivatives of an integrated flow are those of any flow of
:math:`\dot x = v(x, t)`:

.. math::
    \partial_t \Phi = v(\Phi, t), \qquad \partial_s \Phi = -(D_x\Phi)\, v(x, s), \qquad g^T D_x\Phi = a(s)^T,

where the adjoint a follows :math:`\dot a = -(Dv)^T a` back from :math:`a(t) = g` along the trajectory. The trajectory is the
dense output of the integration forwards, since one integrated backwards would drift away where the flow contracts.
"""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError
from diffode.fields import ExactField, Field
from diffode.flows.average import NEAR_INTEGRATED, NEAR_KNOWN, gaussian_average, gaussian_of, step_average
from diffode.flows.closed import Final
from diffode.flows.exact import Reference, reference
from diffode.flows.guided import known_of
from diffode.flows.integrated import MOST_EVALUATIONS, answered, least_rho, limited, too_fine
from diffode.numerics.quantiles import Array
from diffode.targets.target import Scalar

if TYPE_CHECKING:
    from scipy.integrate import OdeSolution


def flow(field: Field, tolerance: float = 1e-10) -> ExactFlow:
    """The exact flow of a field: ``flow(field)(x, s, t)``.

    Args:
        field: an exact field, or any other that is differentiable in x and, for rows with their own times, takes times (B,).
        tolerance: relative tolerance of the integration, from 1e-13 to 1e-3.

    Returns:
        :class:`ExactFlow`.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> x = field.prior(2, generator=0).requires_grad_(True)
    >>> y = diffode.flow(field)(x, 80.0, torch.tensor([1.0, 0.1]))
    >>> torch.autograd.grad(y.sum(), x)[0].shape
    torch.Size([2, 2])
    """
    if not isinstance(field, Field):
        raise ArgumentError(f"field must be a diffode field, got {type(field).__name__}")
    given: Any = tolerance
    if isinstance(given, bool) or not isinstance(given, numbers.Real) or not 1e-13 <= float(given) <= 1e-3:
        raise ArgumentError(f"tolerance must lie in [1e-13, 1e-3], got {tolerance!r}")
    if field.path is not None:
        # A field without a flow says so now, not at its first call.
        field.pieces(field.path.t_max, field.path.t_min)
    return ExactFlow(field, float(tolerance))


class ExactFlow:
    """The flow map of ``field``, as :func:`flow` gives it; evaluations are not counted."""

    def __init__(self, field: Field, tolerance: float):
        self.field, self.tolerance = field, tolerance

    def __repr__(self) -> str:
        return f"ExactFlow({self.field!r}, tolerance={self.tolerance:g})"

    def __call__(self, x: Tensor, s: Scalar, t: Scalar) -> Tensor:
        """The points to which the flow takes x (B, *shape) from times s to times t, in the shape and dtype of x.

        Times are numbers or tensors (B,). The map is differentiable in x, s and t, and twice for one Gaussian, by
        ``torch.autograd`` (its ``functional.jacobian`` too); transforms of ``torch.func`` don't go through it.

        Raises:
            ArgumentError: if a point is not finite, a time is not on the path, or there is not one time for each row.
            NumericalError: if the flow is not finite.
        """
        begin, end = self._times(x, "s", s), self._times(x, "t", t)
        flat = x.flatten(1).to(torch.float64)
        if not len(x):
            # No row, but a graph, so that derivatives are zeros.
            zeros = (0 * time[:, None] for time in (begin, end) if isinstance(time, Tensor))
            return sum(zeros, start=flat).reshape(x.shape).to(x)
        known = known_of(self.field)
        with self.field.uncounted():
            if known is None:
                if isinstance(begin, Tensor) or isinstance(end, Tensor):
                    first, last = (float(time.detach()[0]) if isinstance(time, Tensor) else time for time in (begin, end))
                    # A field that can't be called at all is not told that its times are to blame.
                    self.field.check_once(x.detach(), first)
                    self.field.check_times(x.detach(), first, last)
                ends: Tensor = _Integrated.apply(flat, begin, end, self, x.shape[1:])  # type: ignore[no-untyped-call]
            else:
                ends = known.flow(flat, begin, end)[0]
        if not bool(torch.isfinite(ends).all()):
            raise NumericalError("the flow is not finite; is the field singular at one of the times?")
        return ends.reshape(x.shape).to(x.dtype)

    def average_velocity(self, x: Tensor, s: Scalar, t: Scalar) -> Tensor:
        """The average velocity (Phi(x, s, t) - x)/(t - s), and the velocity where t = s, in the shape and dtype of x.

        Near t = s no digits are lost: the Gaussian has a closed form, other fields a step of order 8 in place of the quotient
        (`average.py`). A flow that is integrated errs by its tolerance times x/(t - s), for |t - s| above a fiftieth of the
        later time. The derivatives are those of the map; they agree with MeanFlow's identity
        u = v(x, s) + (t - s) (du/ds + v . grad_x u).

        Raises:
            ArgumentError: as the map does.

        >>> import diffode
        >>> flow = diffode.flow(diffode.exact_field("gauss1d", "edm"))
        >>> x = torch.tensor([[0.5]], dtype=torch.float64)
        >>> u = flow.average_velocity(x, 1.0, 1.0 + 1e-9)
        >>> abs(float(u - flow.field.velocity(x, 1.0))) < 1e-9
        True
        """
        begin, end = self._times(x, "s", s), self._times(x, "t", t)
        single = not isinstance(begin, Tensor) and not isinstance(end, Tensor)
        flat = x.flatten(1).to(torch.float64)
        rows = [torch.as_tensor(time, dtype=torch.float64, device=x.device).expand(len(x)) for time in (begin, end)]
        gaussian = gaussian_of(self.field)
        if gaussian is not None and isinstance(self.field, ExactField):
            found = gaussian_average(gaussian, self.field.path, flat, rows[0], rows[1])
            return found.reshape(x.shape).to(x.dtype)

        def velocity(points: Tensor, time: Tensor) -> Tensor:
            asked: Scalar = float(time[0]) if single else time
            return self.field.velocity(points.reshape(-1, *x.shape[1:]), asked).flatten(1)

        most = NEAR_INTEGRATED if known_of(self.field) is None else NEAR_KNOWN
        apart = (rows[1] - rows[0]).detach().abs()
        far = apart > most * torch.maximum(rows[0].abs(), rows[1].abs()).detach()
        found = torch.zeros_like(flat)
        if bool((~far).any()):
            near = ~far
            with self.field.uncounted():
                slopes, settled = step_average(velocity, flat[near], rows[0][near], rows[1][near])
            found = found.index_put((near,), slopes)
            far = far.index_put((near,), ~settled & (apart[near] > 0))
        if bool(far.any()):
            ends = begin if not isinstance(begin, Tensor) else begin[far], end if not isinstance(end, Tensor) else end[far]
            moved = self(flat[far].reshape(-1, *x.shape[1:]), *ends).flatten(1) - flat[far]
            found = found.index_put((far,), moved / (rows[1] - rows[0])[far][:, None])
        return found.reshape(x.shape).to(x.dtype)

    def reference(self, x: Tensor, s: Scalar, t: Scalar) -> Reference:
        """The same ends without derivatives, but with estimates of their errors, as in :func:`diffode.reference`."""
        begin, end = (self._times(x, name, time) for name, time in (("s", s), ("t", t)))
        if not isinstance(begin, Tensor) and not isinstance(end, Tensor):
            return reference(self.field, x, begin, end, self.tolerance)
        columns = [torch.as_tensor(time, dtype=torch.float64).detach().cpu().expand(len(x)) for time in (begin, end)]
        pairs = torch.stack(columns, 1)
        ends, errors, method = torch.empty_like(x), torch.zeros(len(x), dtype=torch.float64), "closed-form"
        for pair in torch.unique(pairs, dim=0):
            rows = (pairs == pair).all(1)
            found = reference(self.field, x[rows.to(x.device)], float(pair[0]), float(pair[1]), self.tolerance)
            ends[rows.to(x.device)], errors[rows], method = found.x, found.errors, found.method
        return Reference(ends, float(errors.max()) if len(errors) else 0.0, errors, method)

    def _times(self, x: Tensor, name: str, time: Any) -> Scalar:
        """A checked time: a number, or float64 times (B,) for the rows."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not bool(torch.isfinite(x).all()):
            raise ArgumentError("x must be a finite float32 or float64 tensor (B, *shape)")
        if self.field.dim is not None and x.shape[0] and x[0].numel() != self.field.dim:
            raise ArgumentError(f"x must have {self.field.dim} numbers a row, got {tuple(x.shape)}")
        wanted = f"{name} must be a finite number or a tensor ({len(x)},) of times, one for each row"
        if isinstance(time, Tensor):
            if time.shape not in ((), (len(x),)) or time.is_complex() or time.dtype == torch.bool:
                raise ArgumentError(f"{wanted}, got {time.dtype} of shape {tuple(time.shape)}")
            if not bool(torch.isfinite(time).all()):
                raise ArgumentError(f"{wanted}, got {time!r:.80}")
            single = time.ndim == 0 and not time.requires_grad
            time = float(time) if single else time.to(x.device, torch.float64).expand(len(x))
        elif isinstance(time, bool) or not isinstance(time, numbers.Real) or not _is_finite(time):
            raise ArgumentError(f"{wanted}, got {time!r:.80}")
        if self.field.path is not None:
            self.field.path.check_times(time, name)
        return time if isinstance(time, Tensor) else float(time)


def _is_finite(time: Any) -> bool:
    try:
        return math.isfinite(time)
    except OverflowError:
        return False


class _Integrated(torch.autograd.Function):
    """The integrated flow of points (B, D), and its derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Scalar, t: Scalar, of: ExactFlow, shape: torch.Size) -> Tensor:
        """The ends (B, D)."""
        field = of.field
        if isinstance(s, Tensor) or isinstance(t, Tensor):
            rows = _Rows(field, x, s, t, shape)
            ends = rows.end(rows.integrated(x, of.tolerance)[1])
        else:
            ends = reference(field, x.reshape(-1, *shape), s, t, of.tolerance).x.flatten(1)
        ctx.of, ctx.shape = of, shape
        ctx.times = [time if isinstance(time, float) else None for time in (s, t)]
        ctx.save_for_backward(x, ends, *(time for time in (s, t) if isinstance(time, Tensor)))
        return ends

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The derivatives by x, s and t."""
        x, ends, *given = ctx.saved_tensors
        of, shape, rest = ctx.of, ctx.shape, iter(given)
        s, t = (next(rest) if time is None else time for time in ctx.times)

        def velocity(points: Tensor, time: Scalar) -> Tensor:
            answer: Tensor = of.field.velocity(points.reshape(-1, *shape), time)
            return answer.flatten(1)

        by_x: Tensor | None = None
        by_s: Tensor | None = None
        by_t: Tensor | None = None
        with torch.no_grad(), of.field.uncounted():
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                by_x = _Rows(of.field, x, s, t, shape).adjoint(x, gradient, of.tolerance)
                if ctx.needs_input_grad[1]:
                    by_s = -(by_x * velocity(x, s)).sum(1)
            if ctx.needs_input_grad[2]:
                by_t = (gradient * velocity(ends, t)).sum(1)
        final = (None if part is None else Final.apply(part, gradient, x, *given) for part in (by_x, by_s, by_t))  # type: ignore[no-untyped-call]
        return *final, None, None


class _Rows:
    """The ODE of all rows over one variable u from 0 to 1, which is linear in each row's own log-SNR.

    If a row starts or ends at alpha = 0, or there is no path, u is linear in time instead. A row from or to sigma = 0 starts
    or ends next to it, as references do.
    """

    def __init__(self, field: Field, x: Tensor, s: Scalar, t: Scalar, shape: torch.Size):
        self.field, self.shape, path = field, shape, field.path
        begin, end = (torch.as_tensor(time, dtype=torch.float64, device=x.device).detach().expand(len(x)) for time in (s, t))
        self.last, self.to_zero = end, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.path = None if path is None or bool(((path.alpha(begin) == 0) | (path.alpha(end) == 0)).any()) else path
        if self.path is not None:
            nearest = self.path.time_from_rho(least_rho(field))
            self.to_zero = (self.path.sigma(end) == 0) & (begin != end)
            begin, end = (torch.where(self.path.sigma(time) == 0, nearest, time) for time in (begin, end))
            self.last = end
            self.factors = self.path.alpha(begin)[:, None], self.path.alpha(end)[:, None]
            begin, end = self.path.log_snr(begin), self.path.log_snr(end)
        else:
            self.factors = torch.ones_like(begin)[:, None], torch.ones_like(end)[:, None]
        self.begin, self.span = begin, end - begin
        #: Whether all rows have the same times; a field then need not take times (B,).
        self.alike = not isinstance(s, Tensor) and not isinstance(t, Tensor)

    def rate(self, z: Tensor, u: float) -> Tensor:
        """dz/du, (B, D), for z = x/alpha, or z = x if u is linear in time."""
        at = self.begin + u * self.span
        t = at if self.path is None else self.path.time_from_log_snr(at)
        asked: Scalar = float(t[0]) if self.alike else t
        if self.path is None:
            return self.span[:, None] * self.field.velocity(z.reshape(-1, *self.shape), asked).flatten(1)
        x = (self.path.alpha(t)[:, None] * z).reshape(-1, *self.shape)
        return -(self.span * (-at).exp())[:, None] * self.field.noise(x, asked).flatten(1)

    def end(self, z: Tensor) -> Tensor:
        """x at the last times, (B, D)."""
        x = self.factors[1] * z
        if not bool(self.to_zero.any()):
            return x
        points, last = x[self.to_zero].reshape(-1, *self.shape), self.last[self.to_zero]
        return x.index_put((self.to_zero,), self.field.denoised(points, float(last[0]) if self.alike else last).flatten(1))

    def integrated(self, x: Tensor, tolerance: float, dense: bool = False) -> tuple[OdeSolution | None, Tensor]:
        """The dense output if ``dense``, else None, and z at u = 1 of points x (B, D)."""
        z = x.detach() / self.factors[0]

        def right_hand_side(u: float, state: Array) -> Array:
            with torch.no_grad():
                return self.numbers(answered(self.rate, self.points(state, x), u))

        solved = self.solved(right_hand_side, (0.0, 1.0), self.numbers(z), tolerance, dense)
        return solved.sol, self.points(solved.y[:, -1], x)

    def adjoint(self, x: Tensor, gradient: Tensor, tolerance: float) -> Tensor:
        """g^T D Phi (B, D), for gradients g (B, D) at the ends."""
        if not isinstance(self.field, ExactField):
            # Another view than the field's own has a gradient in x whatever the field does.
            first = self.begin if self.path is None else self.path.time_from_log_snr(self.begin)
            self.field.check_gradient(x[:1].reshape(-1, *self.shape), float(first[0]))
        along, z = self.integrated(x, tolerance, dense=True)
        if along is None:
            raise NumericalError("the trajectory of the flow is missing")

        def pulled(function: Any, at: Tensor, by: Tensor) -> Tensor:
            with torch.enable_grad():
                point = at.detach().requires_grad_(True)
                value = function(point)
                if not value.requires_grad:
                    raise ArgumentError("the field can't be differentiated: its answer has no gradient in x")
                (found,) = torch.autograd.grad((value * by).sum(), point)
            return found.detach()

        def right_hand_side(u: float, state: Array) -> Array:
            place = self.points(along(u), x)
            return -self.numbers(pulled(lambda z: self.rate(z, u), place, self.points(state, x)))

        last = self.numbers(pulled(self.end, z, gradient))
        solved = self.solved(right_hand_side, (1.0, 0.0), last, tolerance, False, float(np.abs(last).max(initial=1e-300)))
        return self.points(solved.y[:, -1], x) / self.factors[0]

    def solved(
        self, function: Any, ends: tuple[float, float], first: Array, tolerance: float, dense: bool, scale: float = 0.0
    ) -> Any:
        """SciPy's solution; ``scale`` sets the absolute tolerance, and is that of the data unless given."""
        from scipy.integrate import solve_ivp

        rtol, failed = max(tolerance / 10, 3e-14), "the flow could not be integrated"
        slope = limited(function, lambda u: too_fine(f"{failed}: {MOST_EVALUATIONS:,} evaluations did not take it there", rtol))
        with np.errstate(all="ignore"):
            solved = solve_ivp(
                slope, ends, first, method="DOP853", rtol=rtol, atol=tolerance / 1000 * (scale or self.field.scale),
                dense_output=dense,
            )  # fmt: skip
        if not solved.success:
            raise too_fine(f"{failed}: {solved.message.rstrip('.')}", rtol)
        return solved

    @staticmethod
    def numbers(tensor: Tensor) -> Array:
        """A tensor as SciPy's vector."""
        vector: Array = tensor.detach().reshape(-1).cpu().numpy()
        return vector

    @staticmethod
    def points(vector: Array, like: Tensor) -> Tensor:
        """SciPy's vector as a tensor of the shape of points."""
        return torch.from_numpy(np.ascontiguousarray(vector)).to(like.device).reshape(like.shape)
