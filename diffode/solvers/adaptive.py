r"""Adaptive solvers in log-SNR, whose rows have steps of their own.

On a path the state is z = x/alpha and the variable lambda: :math:`dz/d\lambda = -\rho\,\epsilon`. A row's steps depend on that
row alone: a stiff row changes neither the steps nor the answers of others, and rows that have arrived cost no more. One
evaluation is one call of the field for all rows that have not arrived.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.numerics.butcher import BOGACKI_SHAMPINE, DORMAND_PRINCE
from diffode.paths import Path
from diffode.paths.path import lack_of_path
from diffode.solvers.controller import Controller, controller_of
from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.solver import check_choice

#: Share of the whole way below which a step counts as vanished: its row is unfinished.
_SHORTEST_STEP = 1e-13


@dataclass
class Rows:
    """The rows that have not arrived: state z (n, D), position and next step in the variable (n,), slope at z if kept."""

    z: Tensor
    at: Tensor
    step: Tensor
    slope: Tensor | None
    #: Mask (n,) of the rows into which a derivative may flow back; all unless given.
    allowed: Tensor | None = None

    def guarded(self) -> Rows:
        """The same rows for an attempt at a step, into which no derivative flows back from a rejected attempt.

        The derivative of a rejected attempt is 0, but 0 times a value that is not finite would be NaN.
        """
        if not (torch.is_grad_enabled() and self.z.requires_grad):
            return Rows(self.z, self.at, self.step, self.slope)
        entry = Rows(self.z.clone(), self.at, self.step, None if self.slope is None else self.slope.clone())

        def closed(gradient: Tensor) -> Tensor:
            return gradient if entry.allowed is None else torch.where(entry.allowed[:, None], gradient, 0.0)

        for tensor in (entry.z, entry.slope):
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(closed)  # type: ignore[no-untyped-call]
        return entry

    def take(self, which: Tensor) -> Rows:
        """The rows ``which``."""
        return Rows(self.z[which], self.at[which], self.step[which], None if self.slope is None else self.slope[which])


@dataclass(frozen=True, kw_only=True)
class Adaptive(DirectSolver):
    """Step control shared by the embedded pairs: accept a row's step if its error ratio E is at most 1.

    ``atol`` is in units of the data's scale, that of the field. The ``controller`` chooses the next step: i, pi, pid, or
    coefficients (see `controller.py`). It is kept as its text.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    first_step: float = 0.05
    max_steps: int = 10_000
    controller: str | float | Controller = "pi"

    asks_row_times = True
    takes_steps = False

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "first_step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ArgumentError(f"{name} must be a number > 0, got {value!r}")
        if type(self.max_steps) is not int or self.max_steps < 1:
            raise ArgumentError(f"max_steps must be an integer >= 1, got {self.max_steps!r}")
        # A controller has one text, so that one run has one key.
        object.__setattr__(self, "controller", controller_of(self.controller).text)

    @property
    @abstractmethod
    def error_power(self) -> int:
        """The power of the step with which the error ratio grows."""

    def opening(self, equation: RowEquation, rows: Rows) -> Tensor | None:
        """The evaluation that all attempts at a step from here share, kept as the rows' slope; None if they share none."""
        return None

    @abstractmethod
    def attempt(self, equation: RowEquation, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        """Try every row's step: the new z (n, D), the error ratio E (n,), and the slope at the new z, or None."""

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        equation = RowEquation(field, x, times[0], times[-1])
        count = x.shape[0]
        states = [x]
        accepted, rejected = torch.zeros(2, count, dtype=torch.int64, device=x.device)
        rows = equation.start(x, self.first_step)
        finished = torch.ones(count, dtype=torch.bool, device=x.device)
        past = controller_of(self.controller).fresh(count, x.device)
        for stop in times[1:]:
            rows = self._leg(equation, rows, equation.variable(stop), accepted, rejected, finished, past)
            # A row that met the step limit has no state at this time. The mask is a copy, since later legs write to it.
            here = finished.clone().reshape((-1,) + (1,) * (x.ndim - 1))
            there = torch.where(here, equation.state(rows.z, rows.at), math.nan)
            states.append(there)
        end = equation.state(rows.z, rows.at)
        return Journey(torch.stack(states), accepted, rejected, equation.time(rows.at), finished, end)

    def _leg(
        self, equation: RowEquation, rows: Rows, stop: float, accepted: Tensor, rejected: Tensor, finished: Tensor, past: Tensor
    ) -> Rows:
        """Bring every row to ``stop``, except those that meet the step limit, and add to the counts of steps."""
        whole = Rows(rows.z.clone(), rows.at.clone(), rows.step.clone(), None if rows.slope is None else rows.slope.clone())
        active = torch.nonzero(finished).reshape(-1)
        rows = whole.take(active)
        if rows.slope is None and len(active):
            with equation.field.rows(active):
                rows.slope = self.opening(equation, rows)
        controller = controller_of(self.controller)
        while len(active):
            wish = rows.step
            left = stop - rows.at
            rows.step = torch.minimum(wish, left)
            entry = rows.guarded()
            with equation.field.rows(active):
                z, ratio, slope = self.attempt(equation, entry)
            # A derivative of the run holds its steps fixed: their choice is not differentiated.
            ratio, finite = ratio.detach(), torch.isfinite(z.detach()).all(1)
            ratio = torch.where(finite & torch.isfinite(ratio), ratio, math.inf)
            finite = torch.isfinite(ratio)
            good = ratio <= 1
            entry.allowed = good
            factor = controller.factor(ratio, past[active], self.error_power)
            arrived = good & (rows.step >= left)
            rows.z = torch.where(good[:, None], z, rows.z)
            rows.at = torch.where(arrived, stop, torch.where(good, rows.at + rows.step, rows.at))
            if slope is not None and rows.slope is not None:
                rows.slope = torch.where(good[:, None], slope, rows.slope)
            # A step that was cut at the end of the leg does not shorten the next: the longer one is wished for again.
            new = rows.step * factor
            rows.step = torch.where(arrived & (rows.step < wish), wish, new)
            accepted[active] += good
            rejected[active] += ~good
            past[active] = controller.remembered(ratio, past[active])
            spent = accepted[active] + rejected[active] >= self.max_steps
            lost = ~arrived & (spent | (rows.step < _SHORTEST_STEP * equation.length))
            finished[active[lost]] = False
            # These rows were stopped by values of the field that are not finite, not by the tolerance.
            rows.z[lost & ~finite] = math.nan
            done = arrived | lost
            if bool(done.any()):
                gone = active[done]
                whole.z[gone], whole.at[gone], whole.step[gone] = rows.z[done], rows.at[done], rows.step[done]
                if whole.slope is not None and rows.slope is not None:
                    whole.slope[gone] = rows.slope[done]
                rows, active = rows.take(~done), active[~done]
        return whole


class RowEquation:
    """The probability-flow ODE as dz/du for rows at different u, which runs from 0 to ``length``."""

    def __init__(self, field: Field, x: Tensor, start: float, stop: float):
        self.field, self.shape = field, x.shape[1:]
        self.path: Path | None = field.path
        if self.path is not None and (self.path.sigma(stop) == 0 or self.path.alpha(start) == 0):
            low, high = max(self.path.t_min, 1e-3 * start), min(self.path.t_max, 0.999 * start)
            raise ArgumentError(
                "adaptive solvers work in log-SNR, which is infinite where sigma or alpha is 0: stop before and start after, "
                f"for instance between=({high:g}, {low:g})"
            )
        self._origin = self._raw(start)
        self._sign = 1.0 if self._raw(stop) >= self._origin else -1.0
        self.length = self.variable(stop)

    def _raw(self, t: float) -> float:
        return t if self.path is None else self.path.log_snr(t)

    def variable(self, t: float) -> float:
        """u at time t: the distance from the start in log-SNR, or in time for a plain ODE."""
        return self._sign * (self._raw(t) - self._origin)

    def time(self, u: Tensor) -> Tensor:
        """The times (n,) at u (n,)."""
        raw = self._origin + self._sign * u
        return raw if self.path is None else self.path.time_from_log_snr(raw)

    def start(self, x: Tensor, first_step: float) -> Rows:
        """All rows at the start, with their first step."""
        zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        flat = x.reshape(len(x), math.prod(x.shape[1:]))
        z = flat / self.path.alpha(float(self.time(zero)[0])) if self.path is not None and len(x) else flat
        return Rows(z, zero, torch.full_like(zero, first_step), None)

    def state(self, z: Tensor, u: Tensor) -> Tensor:
        """The states x (n, *shape) of rows z (n, D) at u (n,)."""
        scaled = z if self.path is None else z * self.path.alpha(self.time(u)).to(z)[:, None]
        return scaled.reshape(len(z), *self.shape)

    def slope(self, z: Tensor, u: Tensor) -> Tensor:
        """dz/du: one evaluation of the field, with a time for every row."""
        t = self.time(u)
        x = self.state(z, u)
        if self.path is None:
            return self._sign * self.field.predict("velocity", x, t).flatten(1)
        rho = self.path.rho(t).to(z)[:, None]
        return -self._sign * rho * self.field.predict("noise", x, t).flatten(1)

    def noise(self, z: Tensor, u: Tensor) -> Tensor:
        """The noise prediction at rows z, (n, D)."""
        return self.field.predict("noise", self.state(z, u), self.time(u)).flatten(1)


#: Pairs whose slope at the new point is the first of the next step.
_PAIRS = {"bosh3": BOGACKI_SHAMPINE, "dopri5": DORMAND_PRINCE}


@dataclass(frozen=True, kw_only=True)
class EmbeddedRungeKutta(Adaptive):
    """An embedded Runge-Kutta pair with PI step control, ``pair=dopri5`` (5(4)) or ``bosh3`` (3(2)), in log-SNR.

    The error ratio is the root mean square over a row of error/(atol + rtol max(|z|, |z_new|)), with ``atol`` in units of the
    data's scale. Another ``controller`` is i, pid, or coefficients such as 0.6/-0.2.
    """

    pair: Literal["dopri5", "bosh3"] = "dopri5"

    name = "rk_adaptive"
    reference = (
        "Dormand and Prince 1980; Bogacki and Shampine 1989; PI control: Hairer, Norsett, Wanner, II.4 and Gustafsson 1991"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pair", self.pair, tuple(_PAIRS))

    @property
    @override
    def order(self) -> int:
        return _PAIRS[self.pair].order

    @property
    @override
    def nfe_per_step(self) -> int:
        return len(_PAIRS[self.pair].weights)

    @property
    @override
    def error_power(self) -> int:
        return self.order

    @override
    def opening(self, equation: RowEquation, rows: Rows) -> Tensor:
        return equation.slope(rows.z, rows.at)

    @override
    def attempt(self, equation: RowEquation, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        method = _PAIRS[self.pair]
        h = rows.step.to(rows.z)[:, None]
        slopes = [self.opening(equation, rows) if rows.slope is None else rows.slope]
        z = rows.z
        for stage in (*method.stages, method.weights):
            z = rows.z + h * _combination(stage, slopes)
            slopes.append(equation.slope(z, rows.at + sum(stage) * rows.step))
        error = h * _combination(method.error_weights, slopes)
        scale = self.atol * equation.field.scale + self.rtol * torch.maximum(rows.z.abs(), z.abs())
        return z, _rms(error / scale), slopes[-1]


@dataclass(frozen=True, kw_only=True)
class DPMAdaptive(Adaptive):
    """DPM-Solver adaptive: ``order=2`` compares DPM-Solver-1 and 2, ``order=3`` DPM-Solver-2 and 3 (the pairs 12 and 23).

    A step h is accepted if the error ratio E, the root mean square over a row of the difference over max(atol, rtol
    max(|x_low|, |x_previous|)), is at most 1, with ``atol`` in units of the data's scale; the next is 0.9 h E^(-1/order),
    by the integral ``controller`` of the paper.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    controller: str | float | Controller = "i"

    needs_path = True
    name = "dpm_adaptive"
    reference = "Lu et al., arXiv 2206.00927, appendix C; K. Crowson, k-diffusion, sample_dpm_adaptive"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, (2, 3))

    @property
    @override
    def nfe_per_step(self) -> int:
        return self.order

    @property
    @override
    def error_power(self) -> int:
        return self.order

    @override
    def opening(self, equation: RowEquation, rows: Rows) -> Tensor:
        if equation.path is None:
            raise lack_of_path("solver 'dpm_adaptive'")
        # The noise prediction is carried from step to step, and serves again after a rejected step.
        return equation.noise(rows.z, rows.at)

    @override
    def attempt(self, equation: RowEquation, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        path, r1 = equation.field.require_path("a step of dpm_adaptive"), 1 / self.order
        h = rows.step[:, None]

        def rho_after(share: float) -> Tensor:
            return path.rho(equation.time(rows.at + share * rows.step))[:, None]

        def grown(share: float) -> Tensor:
            """rho (e^(share h) - 1) at the end of that share of the step."""
            return rho_after(share) * torch.expm1(share * h)

        noise = self.opening(equation, rows) if rows.slope is None else rows.slope
        kind = rows.z.dtype
        first = equation.noise(rows.z - (grown(r1).to(kind)) * noise, rows.at + r1 * rows.step)
        euler = rows.z - grown(1).to(kind) * noise
        middle = euler - (grown(1) / (2 * r1)).to(kind) * (first - noise)
        if self.order == 2:
            low, high = euler, middle
        else:
            r2 = 2 / 3
            bend = (r2 / r1 * rho_after(r2) * (torch.expm1(r2 * h) / (r2 * h) - 1)).to(kind)
            second = equation.noise(rows.z - grown(r2).to(kind) * noise - bend * (first - noise), rows.at + r2 * rows.step)
            low = middle
            high = euler - (rho_after(1) / r2 * (torch.expm1(h) / h - 1)).to(kind) * (second - noise)
        alpha, before = (path.alpha(equation.time(u)).to(kind)[:, None] for u in (rows.at + rows.step, rows.at))
        scale = (self.rtol * torch.maximum((alpha * low).abs(), (before * rows.z).abs())).clamp(
            min=self.atol * equation.field.scale
        )
        return high, _rms(alpha * (high - low) / scale), equation.noise(high, rows.at + rows.step)


def _combination(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(1).sqrt().to(torch.float64)
