"""Runs of solvers that follow a field themselves: the times of a run, its budget, and what became of each row."""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor

from diffode import grids
from diffode.errors import ArgumentError, FieldError, GridWarning, NumericalError
from diffode.fields import Field
from diffode.randomness import Randomness, generator_from
from diffode.solvers.direct import DirectSolver, ForBudget, Journey, LaysTimes
from diffode.solvers.run_options import Extent, RunOptions, evaluations, usual_grid
from diffode.solvers.solution import Solution, Status, non_finite_rows, with_nan
from diffode.solvers.starts import check_reach, look_at_start


def run_direct(solver: DirectSolver, field: Field, x: Tensor, extent: Extent, options: RunOptions) -> Solution:
    """Let a solver without a tableau follow a field over an extent, or without a grid over the whole path."""
    times, looked = _laid(solver, field, x, extent, options)
    if not looked:
        _look(field, x, float(times[0]))
    if solver.asks_row_times:
        field.check_times(x, float(times[0]), float(times[-1]))
    # Only solvers that draw noise row by row take a list of generators.
    generator = options.generator
    keeps = generator is None or solver.draws_for_rows
    source = cast("torch.Generator | None", generator if keeps else generator_from(cast(Randomness, generator)))
    with field.counted() as spent:
        journey = solver.follow(field, x, times.tolist(), source)
    if options.progress is not None:
        options.progress(len(times) - 1, len(times) - 1)
    end = journey.states[-1] if journey.end is None else journey.end
    if end.shape != x.shape or end.dtype != x.dtype:
        raise FieldError(f"the run made {end.dtype} of shape {tuple(end.shape)} from {x.dtype} of shape {tuple(x.shape)}")
    status, message = _reported(journey, end)
    bad = status == Status.NON_FINITE
    kept = torch.stack([with_nan(s, non_finite_rows(s)) for s in journey.states]) if options.keep == "all" else None
    solution = Solution(
        with_nan(end, bad),
        kept,
        times,
        spent.calls,
        status,
        message,
        None,
        journey.accepted,
        journey.rejected,
        journey.reached,
        journey.sweeps,
        journey.latency,
    )
    if message and options.on_failure == "raise":
        raise NumericalError(message, solution)
    return solution


def _laid(solver: DirectSolver, field: Field, x: Tensor, extent: Extent, options: RunOptions) -> tuple[Tensor, bool]:
    """The times of a run, and whether the field and the start have been looked at, as before trial runs."""
    path, grid, steps, nfe = extent.path, extent.grid, extent.steps, extent.nfe
    looked = False
    if solver.takes_steps and grid is None and (nfe is not None or steps is not None):
        grid = usual_grid(field.require_path("a named grid") if path is None else path, solver)
    if nfe is not None and solver.takes_steps:
        evaluations(field, nfe)
        if steps is not None:
            raise ArgumentError("give steps or nfe, not both")
        on = field.require_path("a named grid") if path is None else path
        laid = usual_grid(on, solver) if grid is None else grid
        # Trial runs are runs: the field and the start are looked at before.
        looked = True
        _look(field, x, float(grids.get(laid, on, 1 if grids.is_named(laid) else None)[0]))
        steps = solver.steps_within(field, x, on, laid, nfe, options.generator)
    elif nfe is not None:
        budget = evaluations(field, nfe)
        if not isinstance(solver, ForBudget):
            raise ArgumentError(
                f"solver {solver.spec!r} chooses its own steps and can't be given a budget, nfe={nfe}: choose its tolerance "
                "(rtol, atol) and read what it cost from solution.nfe"
            )
        solver.check_nfe(budget)
        # The solver lays its own times between the path's ends.
        if grid is None or grids.is_named(grid):
            if grid is not None and isinstance(solver, LaysTimes):
                warnings.warn(
                    f"solver {solver.spec!r} lays its own times, and grid {grid!r} is not used: leave grid out, or list times",
                    GridWarning,
                    stacklevel=4,
                )
            on = field.require_path("a budget") if path is None else path
            grid = solver.lay(field, on, budget) if isinstance(solver, LaysTimes) else None
    if options.noise is not None:
        raise ArgumentError(f"solver {solver.spec!r} draws its own noise; pass generator= instead of noise=")
    if solver.analytic_first_step is not False and not solver.takes_analytic_first_step:
        raise ArgumentError(
            f"solver {solver.name!r} writes no table, so analytic_first_step can't replace its first evaluation"
        )
    Extent(path, grid, steps).check_steps()
    if grid is None:
        if steps is not None:
            raise ArgumentError("steps goes with a grid spec, such as grid='karras'; this solver needs neither")
        if path is None:
            path = field.require_path("a grid")
        grid = [path.t_max, path.t_min]
    return grids.get(grid, path, steps), looked


def _reported(journey: Journey, end: Tensor) -> tuple[Tensor, str]:
    """The status of each row of the ends, (B,) int8, and what to say of failures."""
    bad = non_finite_rows(end)
    late = torch.zeros_like(bad) if journey.finished is None else ~journey.finished & ~bad
    status = bad.to(torch.int8) * Status.NON_FINITE + late.to(torch.int8) * Status.UNFINISHED
    message = ""
    if bool(bad.any()):
        row = int(torch.nonzero(bad)[0])
        where = f", near t={float(journey.reached[row]):.6g}" if journey.reached is not None else ""
        message = f"{int(bad.sum())} of {len(bad)} rows became non-finite, row {row} first{where}"
        message += f" ({journey.message})" if journey.message else ""
    if bool(late.any()):
        row = int(torch.nonzero(late)[0])
        where = f"; row {row} got to t={float(journey.reached[row]):.6g}" if journey.reached is not None else ""
        message = (
            (message + "; " if message else "")
            + (
                f"{int(late.sum())} of {len(late)} rows did not get to the end{where}: {journey.remedy}, "
                "or see whether the field is finite there"
            )
            + (f" ({journey.message})" if journey.message and not bool(bad.any()) else "")
        )
    return status, message


def _look(field: Field, x: Tensor, first: float) -> None:
    """Hold a start and a field to what a run from the time ``first`` needs of them."""
    check_reach(x, first)
    look_at_start(field, x, first)
    field.check_once(x, first)
