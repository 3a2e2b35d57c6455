"""Implicit Runge-Kutta methods, whose stages are solved for by iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from diffode.charts import Chart, charts
from diffode.charts import get as get_chart
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.numerics.collocation import Collocation, gauss, radau
from diffode.numerics.krylov import gmres
from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.solver import check_choice, steps_of

#: What helps rows whose stages were not solved.
_REMEDY = "raise max_iterations, or take more steps"
#: Least tolerance of an iteration, in units of the rounding of the states.
_ROUNDING = 64.0
#: Tolerance of the linear systems of Newton's method, relative to their right sides.
_LINEAR = 1e-3


@dataclass(frozen=True, kw_only=True)
class ImplicitRungeKutta(DirectSolver):
    r"""z_i = z_s + dtheta sum_j a_ij m_j for all stages at once, z_t = z_s + dtheta sum_j b_j m_j, in the clock of a chart.

    ``method=gauss`` are the Gauss-Legendre methods of order 2 ``stages`` (one stage: the implicit midpoint rule), A-stable and
    symmetric; ``method=radau`` is Radau IIA of order 2 ``stages`` - 1 (one stage: the backward Euler method), L-stable.

    ``iteration=fixed_point`` repeats the stages as they stand, which converges where dtheta times the slope of m is small.
    ``newton_krylov`` is Newton's method, whose linear systems are solved by at most ``krylov`` products with the Jacobian, each
    a difference of two evaluations. A row's iteration ends when its stages move by less than ``rtol`` of their root mean
    square, and takes no part in later ones; a row that has not met this after ``max_iterations`` is unfinished. Every call of
    the field for a stage counts as an evaluation, whatever the number of rows that need it. A step into sigma = 0 is an Euler
    step. A step costs many times its stages, and a budget ``nfe=`` buys the steps that trial runs of these rows leave room for:
    give ``steps=``, with which a row does not depend on the others. Its runs have no derivative.
    """

    method: Literal["gauss", "radau"] = "gauss"
    stages: int = 2
    chart: Literal["velocity", "noise", "data"] = "noise"
    iteration: Literal["fixed_point", "newton_krylov"] = "newton_krylov"
    rtol: float = 1e-12
    max_iterations: int = 100
    krylov: int = 8

    iterates = True
    name = "implicit_rk"
    reference: ClassVar[str] = (
        "Hairer and Wanner, Solving Ordinary Differential Equations II, IV.5 and IV.8; Knoll and Keyes, J. Comput. Phys. 193 "
        "(2004), for newton_krylov"
    )

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("gauss", "radau"))
        check_choice("stages", self.stages, (1, 2, 3, 4))
        check_choice("chart", self.chart, ("velocity", "noise", "data"))
        check_choice("iteration", self.iteration, ("fixed_point", "newton_krylov"))
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, int | float) or not 0 < self.rtol < 1:
            raise ArgumentError(f"rtol must be a number between 0 and 1, got {self.rtol!r:.40}")
        for name in ("max_iterations", "krylov"):
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) <= 10_000:
                raise ArgumentError(f"{name} must be an integer from 1 to 10,000, got {getattr(self, name)!r:.40}")

    @property
    def coefficients(self) -> Collocation:
        """The method, by its nodes."""
        return gauss(self.stages) if self.method == "gauss" else radau(self.stages)

    @property
    @override
    def order(self) -> int:
        return self.coefficients.order

    @property
    @override
    def nfe_per_step(self) -> int:
        """The least: one iteration."""
        return self.stages

    @property
    @override
    def spends(self) -> str:
        return f"{self.stages} in each iteration, until its stages settle; a run says its evaluations"

    @property
    @override
    def chart_name(self) -> str:
        return self.chart

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        if x.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                "implicit_rk can't be differentiated, and x requires grad: an iteration that has settled keeps no derivative; "
                "use an explicit solver such as rk4, or x.detach()"
            )
        path = field.require_path("implicit_rk in this chart") if charts[self.chart].needs_path else field.path
        chart = get_chart(self.chart, path)
        states, column = [x], (-1,) + (1,) * (x.ndim - 1)
        z, slope = x.flatten(1) / chart.scale(times[0]), torch.zeros_like(x.flatten(1))
        alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
        reached = torch.full((len(x),), times[0], dtype=torch.float64, device=x.device)
        for _, s, t in steps_of(times):
            rows = torch.nonzero(alive).reshape(-1)
            if not len(rows):
                break
            step = _Step(self, field, chart, x.shape, s, t)
            if chart.ends_singular(t):
                ended = chart.ratio(s, t) * chart.scale(s) * z[rows] + chart.advance(s, t) * step.rate(z[rows], s, rows)
                states.append(torch.full_like(x, math.nan).index_put((rows,), ended.reshape(-1, *x.shape[1:])))
                reached[rows] = t
                continue
            new, settled = step.made(z[rows], slope[rows], rows)
            slope = slope.index_put((rows,), (new - z[rows]) / step.width)
            z = z.index_put((rows,), new)
            alive = alive.index_put((rows,), settled)
            reached[alive] = t
            states.append(torch.where(alive.reshape(column), (z * chart.scale(t)).reshape(x.shape), math.nan))
        states += [torch.full_like(x, math.nan)] * (len(times) - len(states))
        end = torch.where(alive.reshape(column), states[-1], x)
        lost = "" if bool(alive.all()) else f"the iteration of stages did not settle in {self.max_iterations} rounds"
        return Journey(torch.stack(states), reached=reached, finished=alive, end=end, message=lost, remedy=_REMEDY)


class _Step:
    """One step of all rows that are still under way, with states z (n, D)."""

    def __init__(self, solver: ImplicitRungeKutta, field: Field, chart: Chart, shape: torch.Size, s: float, t: float):
        self.solver, self.field, self.chart, self.shape, self.s, self.t = solver, field, chart, shape, s, t
        self.width = float(chart.clock(t)) - float(chart.clock(s))
        method = solver.coefficients
        start = float(chart.clock(s))
        self.times = [t if c == 1 else float(chart.time(start + c * self.width)) for c in method.nodes]

    def rate(self, z: Tensor, time: float, rows: Tensor) -> Tensor:
        """m at z (n, D), the states of the rows."""
        x = (z * self.chart.scale(time)).reshape(-1, *self.shape[1:])
        with self.field.rows(rows):
            return self.field.predict(self.chart.prediction, x, time).flatten(1)

    def rates(self, stages: Tensor, rows: Tensor) -> Tensor:
        """m of all stages (n, s, D)."""
        return torch.stack([self.rate(stages[:, i], time, rows) for i, time in enumerate(self.times)], dim=1)

    def made(self, z: Tensor, slope: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The states after the step, and whether the iteration of each row settled; ``slope`` is that of the step before."""
        method, solver = self.solver.coefficients, self.solver
        a, nodes = z.new_tensor(method.stages), z.new_tensor(method.nodes)[None, :, None]
        # With the stages solved for, sum b_j m_j dtheta is a combination of them.
        ends = z.new_tensor(method.ends)
        stages = z[:, None] + nodes * self.width * slope[:, None]
        going = torch.arange(len(rows), device=z.device)
        tolerance = max(solver.rtol, _ROUNDING * torch.finfo(z.dtype).eps)
        for _ in range(solver.max_iterations):
            now = stages[going]
            found = self.rates(now, rows[going])
            move = z[going][:, None] + self.width * torch.einsum("ij,njd->nid", a, found) - now
            if solver.iteration == "newton_krylov":
                move = self._newton(now, found, move, a, rows[going])
            stages = stages.index_put((going,), now + move)
            size = (now + move).square().mean((1, 2)).sqrt()
            going = going[~(move.square().mean((1, 2)).sqrt() <= tolerance * size)]
            if not len(going):
                break
        settled = torch.ones(len(rows), dtype=torch.bool, device=z.device).index_fill(0, going, False)
        return z + torch.einsum("j,njd->nd", ends, stages - z[:, None]), settled

    def _newton(self, stages: Tensor, rates: Tensor, defect: Tensor, a: Tensor, rows: Tensor) -> Tensor:
        """The step of Newton's method: (1 - dtheta A J) move = defect, J by differences of rates."""
        size = stages.square().mean((1, 2)).sqrt().clamp(min=torch.finfo(stages.dtype).tiny)
        flat = stages.shape[1] * stages.shape[2]

        def product(v: Tensor) -> Tensor:
            direction = v.reshape(stages.shape)
            length = direction.square().mean((1, 2)).sqrt().clamp(min=torch.finfo(stages.dtype).tiny)
            reach = (torch.finfo(stages.dtype).eps ** 0.5 * size / length)[:, None, None]
            change = (self.rates(stages + reach * direction, rows) - rates) / reach
            return (direction - self.width * torch.einsum("ij,njd->nid", a, change)).reshape(len(v), flat)

        return gmres(product, defect.reshape(len(defect), flat), self.solver.krylov, _LINEAR).reshape(stages.shape)
