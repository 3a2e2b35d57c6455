"""The common form of samplers: a function of a field, a start and the times of a grid."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode import grids, solvers
from diffode.errors import ArgumentError
from diffode.extensions import load_attribute
from diffode.fields import Field
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.solvers import Solver
from diffode.solvers.direct import DirectSolver
from diffode.solvers.solver import WritesTable
from diffode.solvers.trained.mapped import MapSolver
from diffode.specs import parse_spec
from diffode.verify.sampler import foreign
from diffode.verify.sampler.scheduler_levels import PURE_NOISE, CannotJudgeError
from diffode.verify.sampler.scheduler_loops import Scheduler

#: Runs a sampler: the field, the start x (B, *shape), decreasing times, a generator for its noise.
Run = Callable[[Field, Tensor, Sequence[float], torch.Generator], Tensor]


#: The path of x/alpha over rho, on which the flow of every path is the same.
_EVERY_LEVEL = f"edm:sigma_min={1 / PURE_NOISE!r},sigma_max={PURE_NOISE!r}"


@dataclass(frozen=True)
class Sampler:
    """A sampler to be judged.

    Attributes:
        name: its name.
        run: the function that runs it.
        claimed: the order that its authors claim, or None.
        promised: a function from steps to evaluations, or None; a linear rule through 10 and 20 steps then takes its place.
        path: the path of its runs, or its spec.
        grid: family of grids of its runs.
        to_zero: whether a run may end at sigma = 0.
        documented: the statement of its documentation, if that differs from the claim.
        scheduler: a scheduler of another library, which has its own levels and uses only the number of the given times.
        foreign: whether it belongs to another library and may be called in the wrong way; if it raises, it is not judged.
        unjudged: the reason why it can't be judged, if it can't.
        iterates: whether no number of evaluations belongs to a number of steps.
        draws: number of draws for its law, if it draws noise.
        law_steps: number of steps of a run for moments or a law.
    """

    name: str
    run: Run
    claimed: int | None = None
    promised: Callable[[int], int] | None = None
    path: Path | str = "edm"
    grid: str = "karras"
    to_zero: bool = True
    documented: str = ""
    scheduler: Scheduler | None = None
    foreign: bool = False
    unjudged: str = ""
    iterates: bool = False
    draws: int = 40_000
    law_steps: int = 400


def find_sampler(
    text: str | Solver | Callable[..., Any],
    *,
    order: int | None = None,
    path: Path | str | None = None,
    grid: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Sampler:
    """The sampler that a text or an object stands for.

    Args:
        text: a solver's spec; ``torchdiffeq:METHOD``; ``diffusers:CLASS``; ``module:attribute`` (or ``file.py:attribute``) of a
            diffode solver, a function ``(field, x, times)`` or ``(field, x, times, generator)``, a k-diffusion function
            ``(model, x, sigmas, ...)`` or an azula sampler's class; or such an object itself.
        order: the claimed order, if the object does not have one.
        path, grid: path and family of grids, instead of the usual ones.
        options: keyword options of a foreign sampler.
    """
    given = dict(options or {})
    found = _named(text, given) if isinstance(text, str) else _object(text, getattr(text, "__name__", str(text)), given)
    changes: dict[str, Any] = {"claimed": order, "path": path, "grid": grid}
    kept = {key: value for key, value in changes.items() if value is not None}
    for option, value in (("path", path), ("grid", grid)):
        if value is not None and (found.scheduler is not None or found.unjudged):
            raise ArgumentError(
                f"{option} must be left out for {found.name}, got {value!r}: a scheduler lays its own levels, which its "
                "options change (--option use_karras_sigmas=true)"
            )
    if path is not None:
        get_path(path)
    if grid is not None:
        # A wrong name of a grid is the caller's mistake, not the sampler's.
        grids.check(grid)
    return Sampler(**{**vars(found), **kept})


def _named(text: str, options: dict[str, Any]) -> Sampler:
    library, colon, name = text.partition(":")
    if library == "torchdiffeq" and colon and "=" not in name:
        run, claimed = foreign.torchdiffeq_fixed(name, options)
        stages = foreign.STAGES.get(name)
        promised = None if stages is None else functools.partial(operator.mul, stages)
        return Sampler(text, run, claimed, promised, "rectified_flow", "shift:s=1", to_zero=False, foreign=True)
    if library == "diffusers" and colon:
        try:
            own, scheduler = foreign.diffusers_scheduler(name, options)
        except CannotJudgeError as reason:
            return Sampler(text, _never_run, foreign=True, unjudged=str(reason))
        asked = options.get("solver_order")
        return Sampler(text, own, asked, None, _EVERY_LEVEL, to_zero=False, scheduler=scheduler, foreign=True)
    if colon and "=" not in name:
        return _object(load_attribute(text), text, options)
    if options:
        raise ArgumentError(f"options of diffode's own solvers go into the spec, such as {text}:order=2")
    parse_spec(text)
    return _own(solvers.get(text))


def _object(found: Any, name: str, options: dict[str, Any]) -> Sampler:
    if inspect.isclass(found) and issubclass(found, Solver):
        found = found(**options)
    if isinstance(found, Solver):
        return _own(found)
    if foreign.is_azula(found):
        run = foreign.azula_sampler(found, options)
        return Sampler(name, run, options.get("order"), None, "edm", "log_snr", to_zero=False, foreign=True)
    if not callable(found):
        raise ArgumentError(
            f"{name!r} is a {type(found).__name__}, not a sampler; see `diffode check --help` for what can be one"
        )
    try:
        parameters = inspect.signature(found).parameters
    except ValueError:
        parameters = {}  # type: ignore[assignment]
    if {"model", "x", "sigmas"} <= set(parameters):
        return Sampler(name, foreign.k_diffusion(found, options))
    required = [
        p for p in parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if "generator" in parameters and parameters["generator"].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return Sampler(name, lambda field, x, times, generator: found(field, x, times, generator=generator, **options))
    if len(required) >= 4:
        return Sampler(name, lambda field, x, times, generator: found(field, x, times, generator, **options))
    return Sampler(name, lambda field, x, times, generator: found(field, x, times, **options))


def _never_run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
    raise ArgumentError("a sampler that can't be judged is not run")


def _own(solver: Solver) -> Sampler:
    if isinstance(solver, MapSolver):
        raise ArgumentError(f"{solver.spec!r} is a flow map, which follows no steps: judge it with verify.check_map")
    if isinstance(solver, DirectSolver):
        if not solver.takes_steps:
            raise ArgumentError(
                f"{solver.spec!r} chooses its own steps: an order over steps is not measured; hold its error against its "
                "tolerance with diffode.solve and diffode.reference"
            )
        direct: DirectSolver = solver

        def follow(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
            return direct.follow(field, x, times, generator).states[-1]

        return Sampler(solver.spec, follow, solver.order, iterates=direct.iterates)
    writes: WritesTable = solvers.table_solver(solver)
    if solver.order is None:
        raise ArgumentError(
            f"{solver.spec!r} claims no order on the flow of a field (it is trained for one number of evaluations, or made for "
            "another kind of model); measure it with bench"
        )
    path = get_path("edm")

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        table = solvers.table_solver(solvers.for_run(writes, field, x[0].numel())).tableau(field.path, list(times))
        return solvers.run_tableau(table, field, x, generator=generator if table.draws else None, on_failure="return").x

    def promised(steps: int) -> int:
        return writes.tableau(path, "karras", steps).nfe

    differs = solver.convergence_order != solver.order
    return Sampler(
        solver.spec, run, solver.order, promised, documented=f"documented: {solver.convergence_order}" if differs else ""
    )
