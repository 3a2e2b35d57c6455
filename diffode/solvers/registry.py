"""The registry of solvers."""

from __future__ import annotations

from typing import Any

from diffode.solvers.adams import DEIS, IPNDM, LMS, AdamsBashforth
from diffode.solvers.dpm import DPMSolver, DPMSolverPlusPlusSingle
from diffode.solvers.dpm_multistep import DPMSolverMultistep, DPMSolverPlusPlus
from diffode.solvers.runge_kutta import DDIM, RK4, EDMHeun, Euler, Heun, Midpoint, Ralston
from diffode.solvers.solver import Solver
from diffode.solvers.unipc import UniPC
from diffode.specs import Registry

registry: Registry[Solver] = Registry("solver")
for _solver in (
    Euler,
    Midpoint,
    Heun,
    Ralston,
    RK4,
    AdamsBashforth,
    DDIM,
    EDMHeun,
    DPMSolver,
    DPMSolverMultistep,
    DPMSolverPlusPlus,
    DPMSolverPlusPlusSingle,
    IPNDM,
    LMS,
    DEIS,
    UniPC,
):
    registry.register(_solver.name, _solver)

register = registry.register


def get(spec: str | Solver, **options: Any) -> Solver:
    """The solver a spec describes; keyword options override those in the spec.

    >>> get("dpm:order=3", step_orders=[3, 3, 2]).step_orders
    (3, 3, 2)
    """
    return spec if isinstance(spec, Solver) else registry.make(spec, **options)


def names() -> list[str]:
    """All registered solver names."""
    return registry.names()
