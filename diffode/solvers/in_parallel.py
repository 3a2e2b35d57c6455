"""What solvers that are parallel in time share: the sequential run that they repeat all at once until it settles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffode.arguments import check_count
from diffode.errors import ArgumentError
from diffode.fields import Field, Prediction
from diffode.paths import Path
from diffode.solvers.adams import DEIS, IPNDM, LMS, AdamsBashforth
from diffode.solvers.ancestral import DDIM, DDPM, EulerAncestral
from diffode.solvers.direct import DirectSolver
from diffode.solvers.dpm import DPMSolver, DPMSolverPlusPlusSingle
from diffode.solvers.dpm_multistep import DPMSolverMultistep, DPMSolverPlusPlus
from diffode.solvers.runge_kutta import RK4, EDMHeun, Euler, Heun, Kutta3, Midpoint
from diffode.solvers.solver import TableSolver
from diffode.solvers.unipc import UniPC
from diffode.specs import Registry

#: The solvers that a run may be made of. They are named here, so that the key of a result covers their code.
BASES: Registry[TableSolver] = Registry("base solver", TableSolver)
for _base in (
    DDIM, DDPM, EulerAncestral, Euler, Midpoint, Heun, EDMHeun, Kutta3, RK4, AdamsBashforth, LMS, IPNDM, DEIS, DPMSolver,
    DPMSolverMultistep, DPMSolverPlusPlus, DPMSolverPlusPlusSingle, UniPC,
):  # fmt: skip
    BASES.register(_base.name, _base)


@dataclass(frozen=True, kw_only=True)
class InParallel(DirectSolver):
    """A solver that finds the run of another one, by its spec ``base``, by sweeps over many of its steps at once.

    ``tolerance`` is the root mean square by which the states of a row may still move, in units of the noised data's deviation,
    sqrt(alpha^2 c^2 + sigma^2) with the field's scale c. ``sweeps`` fixes their number instead, unless the run is found before.
    ``jump=auto`` lays its level for the evaluations of the run that is found under ``steps=``; under ``nfe=``, whose steps are
    known after the jump alone, for the whole budget.
    """

    base: str = "ddim"
    tolerance: float = 1e-4
    sweeps: int | None = None

    asks_row_times = True
    iterates = True

    def __post_init__(self) -> None:
        if self.recipe.needs_statistics or self.recipe.analytic_first_step:
            raise ArgumentError(f"base must be a solver that needs no statistics and saves no evaluation, got {self.base!r}")
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, int | float) or not 0 <= self.tolerance < 1:
            raise ArgumentError(
                f"tolerance must be a number >= 0 and below 1 (0 repeats the sequential run), got {self.tolerance!r:.40}"
            )
        if self.sweeps is not None:
            check_count("sweeps", self.sweeps, 1)

    @property
    def recipe(self) -> TableSolver:
        """The solver whose run is found."""
        return BASES.registered(self.base)

    @property
    @override
    def order(self) -> int | None:
        return self.recipe.order

    @property
    @override
    def convergence_order(self) -> int | None:
        return self.recipe.convergence_order

    @property
    @override
    def nfe_per_step(self) -> int:
        """That of ``base``, which every sweep spends on each of its steps; see :attr:`spends`."""
        return self.recipe.nfe_per_step

    @property
    @override
    def chart_name(self) -> str:
        return self.recipe.chart_name

    @property
    @override
    def stochastic(self) -> bool:
        return self.recipe.stochastic

    def check_derivative(self, x: Tensor) -> None:
        """Raise ArgumentError for a start that asks for a derivative."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                f"{self.name} can't be differentiated, and x requires grad: what has settled keeps no derivative; use "
                f"{self.recipe.spec!r}, the run that it finds, or x.detach()"
            )

    def moves(self, change: Tensor, unit: Tensor) -> Tensor:
        """Whether rows (n, D) moved by more than the tolerance in their units (n,); a row that is not finite did.

        A fixed number of sweeps leaves no tolerance.
        """
        size = change.square().mean(-1).sqrt()
        return ~(size <= (self.tolerance if self.sweeps is None else 0.0) * unit.to(size))


class Calls:
    """Network calls of a run that is parallel in time: those that a row costs, and those that wait for each other.

    The field counts the calls of the row with most of them. Evaluations of one batch do not wait for each other, and count once
    in the ``latency``.
    """

    def __init__(self, field: Field, rows: int, device: torch.device):
        self.field, self.latency = field, 0
        self._cost = torch.zeros(rows, dtype=torch.int64, device=device)

    def predict(self, prediction: Prediction, x: Tensor, t: float | Tensor, rows: Tensor) -> Tensor:
        """A view of the field at states (n, *shape) of the rows ``rows`` (n,) of the batch, each as often as it occurs."""
        with self.field.uncounted(), self.field.counted() as made, self.field.rows(rows):
            answer = self.field.predict(prediction, x, t)
        before = int(self._cost.max())
        self._cost += made.calls * torch.bincount(rows, minlength=len(self._cost))
        self.field.spend(int(self._cost.max()) - before)
        self.latency += made.calls
        return answer


def units(path: Path | None, times: Sequence[float], scale: float) -> Tensor:
    """The deviation of the noised data at times, sqrt(alpha^2 c^2 + sigma^2), (n,) float64; without a path the scale c."""
    each = [scale if path is None else math.hypot(path.alpha(t) * scale, path.sigma(t)) for t in times]
    return torch.tensor(each, dtype=torch.float64)
