"""The registry of solvers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

from diffode.errors import ArgumentError, CapabilityError, DiffodeError
from diffode.solvers import names as names_elsewhere
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
from diffode.solvers.plain_function import FunctionSolver, samples
from diffode.solvers.predictor_corrector import LangevinCorrector, PredictorCorrector
from diffode.solvers.restart import Restart
from diffode.solvers.runge_kutta import RK4, EDMHeun, Euler, Heun, Kutta3, Midpoint, Ralston
from diffode.solvers.solver import Solver, WritesTable, check_jump, lack_of
from diffode.solvers.stork import STORK, STORK4
from diffode.solvers.trained.bespoke import Bespoke, Universal
from diffode.solvers.trained.generators import Head, Jump, OfNodes
from diffode.solvers.trained.mapped import MapSolver
from diffode.solvers.trained.ratios import RegressedDC
from diffode.solvers.trained.shipped import ShippedMap
from diffode.solvers.unipc import UniPC
from diffode.specs import Registry


def _adopted(found: Any, place: str) -> Callable[..., Solver] | None:
    """A maker of solvers from a function that samples; None for an object that makes solvers itself."""
    return functools.partial(FunctionSolver, function=found, spec_text=place) if samples(found) else None


def _spelled(name: str) -> str | None:
    """The spec of a foreign name: a name here in another spelling, or an alias."""
    plain = names_elsewhere.spelling(name)
    return plain if plain in registry.names() else names_elsewhere.ours(name)


registry: Registry[Solver] = Registry(
    "solver",
    Solver,
    spelled=_spelled,
    advice=names_elsewhere.advice,
    aliases=names_elsewhere.ALIASES,
    adopted=_adopted,
)
# ``conditioned`` and ``amed_learned`` are entry points, in pyproject.toml: the room of what is learned is below this one.
for _solver in (
    Euler,
    Midpoint,
    Heun,
    Ralston,
    Kutta3,
    RK4,
    AdamsBashforth,
    DDIM,
    EDMHeun,
    DPMSolver,
    DPMSolverMultistep,
    DPMSolverPlusPlus,
    DPMSolverPlusPlusSingle,
    DPMFast,
    DPMSolverV3,
    RESMultistep,
    ExponentialRungeKutta,
    HeunPlus,
    STORK,
    STORK4,
    IPNDM,
    IPNDMVariable,
    LMS,
    DEIS,
    GradientEstimation,
    UniPC,
    DCSolver,
    DDPM,
    EulerMaruyama,
    EulerAncestral,
    DPM2Ancestral,
    DPMPlusPlus2SAncestral,
    DPMPlusPlusSDE,
    DPMPlusPlus2MSDE,
    DPMPlusPlus3MSDE,
    EDMStochastic,
    SASolver,
    SEEDS,
    ERSDE,
    PredictorCorrector,
    LangevinCorrector,
    Restart,
    Consistency,
    AdaptiveSDE,
    DPMAdaptive,
    EmbeddedRungeKutta,
    ImplicitRungeKutta,
    Picard,
    Parareal,
    AMED,
    Bespoke,
    Universal,
    MapSolver,
    ShippedMap,
    Jump,
    Head,
    OfNodes,
    RegressedDC,
):
    registry.register(_solver.name, _solver)
for _order in (1, 2, 3):
    registry.register(f"seeds_{_order}", SEEDS, order=_order, summary=f"SEEDS-{_order}: seeds with order={_order}.")
    registry.register(f"er_sde_{_order}", ERSDE, order=_order, summary=f"ER-SDE-{_order}: er_sde with order={_order}.")

for _library in (TorchDiffEq, TorchSDE, SciPyIVP):
    for _method in _library.methods:
        _summary = f"{_method} of {_library.name}, as a baseline."
        registry.register(f"{_library.name}:{_method}", _library, method=_method, summary=_summary)


def register(name: str, make: Callable[..., Any], *, summary: str = "", **preset: Any) -> None:
    """Add a solver under a name: a class or a maker of solvers, with ``preset`` options, or a function that samples.

    A function of ``(field, x, times)``, and ``generator`` if it draws noise, becomes a :class:`FunctionSolver`.
    """
    if samples(make):
        text = summary or (inspect.getdoc(make) or "").partition("\n")[0]
        registry.register(name, FunctionSolver, summary=text, function=make, spec_text=name, **preset)
    else:
        registry.register(name, make, summary=summary, **preset)


def get(spec: str | Solver | Callable[..., Any], **options: Any) -> Solver:
    """The solver of a spec, of a class, or of a function (field, x, times); ``options`` override those in the spec.

    ``module:function`` and ``file.py:function`` name a function or a solver of yours. UnknownNameError for an unknown name,
    ArgumentError for a wrong option.

    >>> get("dpm:order=3", step_orders=[3, 3, 2]).step_orders
    (3, 3, 2)
    """
    solver = _made(spec, options)
    # Classes check their own options, and not this one of all of them.
    check_jump(solver.jump)
    return solver


def _made(spec: str | Solver | Callable[..., Any], options: dict[str, Any]) -> Solver:
    if isinstance(spec, Solver):
        if options:
            raise ArgumentError(f"options {', '.join(options)} go with a spec; this solver has its own already")
        return spec
    if inspect.isclass(spec) and issubclass(spec, Solver):
        try:
            return spec(**options)
        except TypeError as error:
            raise ArgumentError(
                f"solver {spec.__name__} can't be made of its class: {error}; give an object or a spec"
            ) from error
    if callable(spec) and not inspect.isclass(spec):
        return FunctionSolver(function=spec, **options)
    return registry.make(cast(str, spec), **options)


def table_solver(spec: str | Solver | Callable[..., Any], **options: Any) -> WritesTable:
    """The solver of a spec, as :func:`get` makes it, if it writes tables; CapabilityError if it does not.

    >>> table_solver("heun").tableau("edm", "karras", 4).nfe
    8
    """
    solver = get(spec, **options)
    if not isinstance(solver, WritesTable):
        raise CapabilityError(lack_of(solver, "tableau"))
    return solver


def plain_spec(spec: str) -> str:
    """One text for all spellings of a solver: options in one order, without those that are defaults, a name of ours.

    The spec itself of a solver that is not known, or whose file is gone.

    >>> plain_spec("ipndm:jump=auto,order=3") == plain_spec("ipndm:order=3,jump=auto"), plain_spec("dpmpp:order=2")
    (True, 'dpmpp')
    """
    try:
        return get(spec).spec
    except DiffodeError:
        return spec


def names() -> list[str]:
    """All registered solver names."""
    return registry.names()
