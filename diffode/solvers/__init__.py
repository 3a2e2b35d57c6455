"""Solvers: recipes that write tableaux, one file a family; their registry; and ``solve``.

Classes and `stream` are imported on first use, so that what uses one does not depend on the code of all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diffode.solvers.controller import Controller
from diffode.solvers.direct import DirectSolver, ForBudget, Journey
from diffode.solvers.informed import for_run, informed
from diffode.solvers.plain_function import FunctionSolver
from diffode.solvers.registry import get, names, plain_spec, register, registry, table_solver
from diffode.solvers.run import run_tableau, solve
from diffode.solvers.solution import Solution, Status
from diffode.solvers.solver import Solver, TableSolver, WritesTable

if TYPE_CHECKING:
    from diffode.solvers.adams import DEIS, IPNDM, LMS, AdamsBashforth, GradientEstimation, IPNDMVariable
    from diffode.solvers.adaptive import DPMAdaptive, EmbeddedRungeKutta
    from diffode.solvers.adaptive_sde import AdaptiveSDE
    from diffode.solvers.amed import AMED
    from diffode.solvers.ancestral import DDIM, DDPM, DPM2Ancestral, DPMPlusPlus2SAncestral, EDMStochastic, EulerAncestral
    from diffode.solvers.baselines import SciPyIVP, TorchDiffEq, TorchSDE
    from diffode.solvers.consistency import Consistency
    from diffode.solvers.dc import DCSolver
    from diffode.solvers.dpm import DPMFast, DPMSolver, DPMSolverPlusPlusSingle
    from diffode.solvers.dpm_multistep import DPMSolverMultistep, DPMSolverPlusPlus, RESMultistep
    from diffode.solvers.dpm_v3 import DPMSolverV3
    from diffode.solvers.er_sde import ERSDE
    from diffode.solvers.euler_maruyama import EulerMaruyama
    from diffode.solvers.exponential_runge_kutta import ExponentialRungeKutta
    from diffode.solvers.exponential_sde import SEEDS, DPMPlusPlus2MSDE, DPMPlusPlus3MSDE, DPMPlusPlusSDE, SASolver
    from diffode.solvers.heun_plus import HeunPlus
    from diffode.solvers.implicit import ImplicitRungeKutta
    from diffode.solvers.parareal import Parareal
    from diffode.solvers.picard import Picard
    from diffode.solvers.predictor_corrector import LangevinCorrector, PredictorCorrector
    from diffode.solvers.restart import Restart
    from diffode.solvers.runge_kutta import RK4, EDMHeun, Euler, Heun, Kutta3, Midpoint, Ralston, RungeKutta
    from diffode.solvers.stork import STORK, STORK4
    from diffode.solvers.streaming import stream
    from diffode.solvers.trained.bespoke import Bespoke, Universal
    from diffode.solvers.trained.generators import Head, Jump, OfNodes
    from diffode.solvers.trained.mapped import MapSolver
    from diffode.solvers.trained.ratios import RegressedDC
    from diffode.solvers.trained.shipped import ShippedMap, shipped_maps
    from diffode.solvers.unipc import UniPC

#: Solver classes and `stream`, with the modules that they are in.
_PLACES = {
    "AMED": "amed",
    "AdamsBashforth": "adams",
    "AdaptiveSDE": "adaptive_sde",
    "Bespoke": "trained.bespoke",
    "Consistency": "consistency",
    "DDIM": "ancestral",
    "DDPM": "ancestral",
    "DEIS": "adams",
    "DCSolver": "dc",
    "DPM2Ancestral": "ancestral",
    "DPMAdaptive": "adaptive",
    "DPMFast": "dpm",
    "DPMPlusPlus2MSDE": "exponential_sde",
    "DPMPlusPlus2SAncestral": "ancestral",
    "DPMPlusPlus3MSDE": "exponential_sde",
    "DPMPlusPlusSDE": "exponential_sde",
    "DPMSolver": "dpm",
    "DPMSolverMultistep": "dpm_multistep",
    "DPMSolverPlusPlus": "dpm_multistep",
    "DPMSolverPlusPlusSingle": "dpm",
    "DPMSolverV3": "dpm_v3",
    "EDMHeun": "runge_kutta",
    "EDMStochastic": "ancestral",
    "ERSDE": "er_sde",
    "EmbeddedRungeKutta": "adaptive",
    "Euler": "runge_kutta",
    "EulerAncestral": "ancestral",
    "EulerMaruyama": "euler_maruyama",
    "ExponentialRungeKutta": "exponential_runge_kutta",
    "GradientEstimation": "adams",
    "Head": "trained.generators",
    "Heun": "runge_kutta",
    "HeunPlus": "heun_plus",
    "IPNDM": "adams",
    "IPNDMVariable": "adams",
    "ImplicitRungeKutta": "implicit",
    "Jump": "trained.generators",
    "Kutta3": "runge_kutta",
    "LMS": "adams",
    "LangevinCorrector": "predictor_corrector",
    "MapSolver": "trained.mapped",
    "ShippedMap": "trained.shipped",
    "shipped_maps": "trained.shipped",
    "Midpoint": "runge_kutta",
    "OfNodes": "trained.generators",
    "Parareal": "parareal",
    "Picard": "picard",
    "PredictorCorrector": "predictor_corrector",
    "RESMultistep": "dpm_multistep",
    "RK4": "runge_kutta",
    "Ralston": "runge_kutta",
    "RegressedDC": "trained.ratios",
    "Restart": "restart",
    "RungeKutta": "runge_kutta",
    "SASolver": "exponential_sde",
    "SEEDS": "exponential_sde",
    "STORK": "stork",
    "STORK4": "stork",
    "SciPyIVP": "baselines",
    "TorchDiffEq": "baselines",
    "TorchSDE": "baselines",
    "UniPC": "unipc",
    "Universal": "trained.bespoke",
    "stream": "streaming",
}

__all__ = [
    "AMED",
    "DDIM",
    "DDPM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "LMS",
    "RK4",
    "SEEDS",
    "STORK",
    "STORK4",
    "AdamsBashforth",
    "AdaptiveSDE",
    "Bespoke",
    "Consistency",
    "Controller",
    "DCSolver",
    "DPM2Ancestral",
    "DPMAdaptive",
    "DPMFast",
    "DPMPlusPlus2MSDE",
    "DPMPlusPlus2SAncestral",
    "DPMPlusPlus3MSDE",
    "DPMPlusPlusSDE",
    "DPMSolver",
    "DPMSolverMultistep",
    "DPMSolverPlusPlus",
    "DPMSolverPlusPlusSingle",
    "DPMSolverV3",
    "DirectSolver",
    "EDMHeun",
    "EDMStochastic",
    "EmbeddedRungeKutta",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "ExponentialRungeKutta",
    "ForBudget",
    "FunctionSolver",
    "GradientEstimation",
    "Head",
    "Heun",
    "HeunPlus",
    "IPNDMVariable",
    "ImplicitRungeKutta",
    "Journey",
    "Jump",
    "Kutta3",
    "LangevinCorrector",
    "MapSolver",
    "Midpoint",
    "OfNodes",
    "Parareal",
    "Picard",
    "PredictorCorrector",
    "RESMultistep",
    "Ralston",
    "RegressedDC",
    "Restart",
    "RungeKutta",
    "SASolver",
    "SciPyIVP",
    "ShippedMap",
    "Solution",
    "Solver",
    "Status",
    "TableSolver",
    "TorchDiffEq",
    "TorchSDE",
    "UniPC",
    "Universal",
    "WritesTable",
    "for_run",
    "get",
    "informed",
    "names",
    "plain_spec",
    "register",
    "registry",
    "run_tableau",
    "shipped_maps",
    "solve",
    "stream",
    "table_solver",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"diffode.solvers.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'diffode.solvers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
