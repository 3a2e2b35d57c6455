"""``solve``: follow a field from a start over a grid, and report failures row by row.

In this order: the solver is told of the field, its table is written or found among the kept ones, the start is looked at, a
field of the user's own is probed, and the table is walked, which makes the first evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from diffode import grids
from diffode.errors import ArgumentError, BudgetError, FieldError, NumericalError
from diffode.fields import Field
from diffode.paths import Interval
from diffode.randomness import Randomness
from diffode.solvers.direct import DirectSolver
from diffode.solvers.direct_runs import run_direct
from diffode.solvers.informed import before, for_run, known_of
from diffode.solvers.kept_tables import kept
from diffode.solvers.registry import table_solver
from diffode.solvers.run_options import Draw, Extent, Progress, RunOptions, evaluations, usual_grid
from diffode.solvers.solution import Solution, Status, is_finite, non_finite_rows, with_nan
from diffode.solvers.solver import Solver, WritesTable, check_goes_without_path
from diffode.solvers.starts import check_noise, check_reach, check_start, look_at_start, part_of
from diffode.solvers.upwards import Upwards, that_runs_upwards
from diffode.statistics import Statistics
from diffode.tableau import Tableau


def solve(
    field: Field,
    x: Tensor,
    *,
    solver: str | Solver | Callable[..., Tensor],
    grid: grids.Times | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    noise: Tensor | None = None,
    generator: Randomness | None = None,
    keep: Literal["last", "all"] = "last",
    progress: Progress | None = None,
    on_failure: Literal["raise", "return"] = "raise",
    between: tuple[float, float] | None = None,
    upwards: bool = False,
    statistics: Statistics | None = None,
) -> Solution:
    """Run a solver from a start.

    Args:
        field: the field to follow.
        x: start at the first time of the run, (B, *shape), float32 or float64; the states keep its dtype and device.
        solver: a solver or its spec, such as ``"dpmpp:order=2"``.
        grid: times, or a grid spec with ``steps`` or ``nfe``. With ``nfe`` alone: ``"karras"``, after a jump
            ``"karras:rho=3"``, and on a bridge ``"time_uniform"``.
        steps: number of steps of a named grid.
        nfe: budget of network calls, for the largest run of the solver on the named grid that costs no more: Heun makes four
            steps, and eight calls, of ``nfe=9``. A guided model makes two calls for each evaluation, so that its 8 steps are
            ``nfe=16``.
        noise: standard normal draws (draws, B, *shape) for a solver that uses them.
        generator: generator or seed of those draws, if ``noise`` is not given; or a list with one for each row, which then has
            the noise that it would have alone. Noise is drawn when it is needed.
        keep: ``"all"`` keeps the solution at every grid time.
        progress: called as ``progress(done, total)`` after each step; by solvers without a table once, at the end.
        on_failure: ``"raise"`` or ``"return"``. When a row becomes non-finite, the first raises :class:`NumericalError`, which
            carries the solution; the second returns the solution with that row NaN-filled and marked in ``status``. Other rows
            are untouched.
        between: the noisiest and the cleanest time of a named grid, in place of the path's ``t_max`` and ``t_min``; a start at
            another noise level than that of ``t_max`` needs it.
        statistics: mean and covariance of the data for a solver that asks for them, as one with ``jump=auto``; the field's own
            unless given.
        upwards: whether to go from data to noise: ``x`` is at the cleanest time, and the grid's times are taken in reverse.

    Returns:
        A :class:`~diffode.solvers.Solution`.

    Raises:
        ArgumentError: for a wrong argument.
        BudgetError: if no run fits ``nfe``.
        FieldError: if the field breaks its contract.
        NumericalError: if a row becomes non-finite and ``on_failure`` is ``"raise"``.

    Warns:
        StartWarning: if ``x`` can't be a state at the first time of the run.
        GridWarning: if a named grid is given to a solver that lays its own times.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> solution = solve(field, field.prior(4, generator=0), solver="dpmpp:order=2", nfe=10)
    >>> solution.nfe, tuple(solution.x.shape)
    (10, (4, 2))
    """
    _check_field(field)
    check_start(x)
    recipe = for_run(solver, field, math.prod(x.shape[1:]), statistics)
    if not isinstance(upwards, bool):
        raise ArgumentError(f"upwards must be True or False, got {upwards!r}")
    if upwards:
        recipe = Upwards(solver=that_runs_upwards(recipe))
    check_noise(field, f"solver {recipe.spec!r}", recipe.stochastic)
    whole = field.laid_on
    path = whole if between is None else part_of(whole or field.require_path("a named grid"), between, grid)
    extent, options = Extent(path, grid, steps, nfe), RunOptions(noise, generator, keep, progress, on_failure)
    if isinstance(path, Interval):
        check_goes_without_path(recipe)
    if isinstance(recipe, DirectSolver):
        if recipe.jump is None:
            return run_direct(recipe, field, x, extent, options)
        return _run_after_jump(recipe, field, x, extent, options, statistics)
    return _run_table(table_for(field, table_solver(recipe), extent), field, x, options)


def _run_after_jump(
    solver: DirectSolver, field: Field, x: Tensor, extent: Extent, options: RunOptions, statistics: Statistics | None
) -> Solution:
    """A jump, and from its end a solver that follows the field itself."""
    if extent.grid is not None and not grids.is_named(extent.grid):
        raise ArgumentError(
            f"solver {solver.spec!r} jumps to a level, from which it steps itself: leave grid out, or give the ends of the run "
            "as between="
        )
    path = field.require_path("a jump") if extent.path is None else extent.path
    look_at_start(field, x, path.t_max)
    known = known_of(field, f"solver {solver.spec!r}", math.prod(x.shape[1:]), statistics)
    # As for a solver that writes a table, whose level is laid for the evaluations that its steps cost.
    evaluations = extent.nfe if extent.steps is None else extent.steps * solver.nfe_per_step
    follower, y, left = before(solver, known, x, path, evaluations)
    begin = torch.tensor([path.t_max], dtype=torch.float64)
    if left is None:
        good = torch.zeros(len(x), dtype=torch.int8, device=x.device)
        times = torch.tensor([path.t_max, path.t_min], dtype=torch.float64)
        return Solution(y, torch.stack([x, y]) if options.keep == "all" else None, times, 0, good, "", None)
    solution = run_direct(follower, field, y, replace(extent, path=left), options)
    if left is path:
        return solution
    states = None if solution.states is None else torch.cat([x[None], solution.states])
    return replace(solution, times=torch.cat([begin, solution.times]), states=states)


def table_for(field: Field, solver: WritesTable, extent: Extent) -> Tableau:
    """The tableau that ``solve`` runs over an extent, whose path is the field's own, or a part of it."""
    path, grid, nfe = extent.path, extent.grid, extent.nfe
    extent.check_steps()
    if nfe is not None:
        within, on = evaluations(field, nfe), field.require_path("a named grid") if path is None else path
        grid = usual_grid(on, solver) if grid is None else grid
        try:
            return kept(solver, on, grid, ("nfe", within), lambda: solver.within(on, grid, within))
        except BudgetError as error:
            if field.calls == 1:
                raise
            raise BudgetError(
                f"nfe={nfe} network calls buy {within} evaluations of this field, which makes {field.calls} calls for each; "
                f"counted in evaluations, {str(error).replace(f'nfe={within}', f'a budget of {within}')}"
            ) from error
    if grid is None:
        raise ArgumentError("give grid= (times, or a spec with steps=), or nfe=")
    return kept(solver, path, grid, ("steps", extent.steps), lambda: solver.tableau(path, grid, extent.steps))


def run_tableau(
    table: Tableau,
    field: Field,
    x: Tensor,
    *,
    noise: Tensor | None = None,
    generator: Randomness | None = None,
    keep: Literal["last", "all"] = "last",
    progress: Progress | None = None,
    on_failure: Literal["raise", "return"] = "raise",
) -> Solution:
    """Run a given tableau, with the checks and the arguments of :func:`solve`."""
    _check_field(field)
    check_start(x)
    return _run_table(table, field, x, RunOptions(noise, generator, keep, progress, on_failure))


def _run_table(table: Tableau, field: Field, x: Tensor, options: RunOptions) -> Solution:
    check_reach(x, table.ends[0])
    return run_rows(table, field, x, options.draws(table, x), options)


def run_rows(table: Tableau, field: Field, x: Tensor, draw: Draw | None, options: RunOptions) -> Solution:
    """The solution of a table from x, with the noise of ``draw``."""
    first, _ = table.ends
    check_noise(field, "this table", table.draws > 0)
    look_at_start(field, x, first)
    # The probe of a user's field calls it on at most two rows before the first evaluation of the run, outside of the count.
    field.check_once(x, first)
    with field.counted() as spent:
        states = _follow(table, field, x, draw, options)
    if states[-1].shape != x.shape or states[-1].dtype != x.dtype:
        raise FieldError(
            f"the run made {states[-1].dtype} of shape {tuple(states[-1].shape)} from {x.dtype} of shape {tuple(x.shape)}: "
            "the field must answer with the shape and dtype of its x"
        )
    times = table.output_times
    if is_finite(states[-1]):
        along = torch.stack(states) if options.keep == "all" else None
        good = torch.zeros(len(x), dtype=torch.int8, device=x.device)
        return Solution(states[-1], along, times, spent.calls, good, "", table)
    bad = non_finite_rows(states[-1])
    with field.uncounted():
        message = _diagnose(table, field, x, draw, bad)
    end = with_nan(states[-1], bad)
    along = torch.stack([with_nan(s, non_finite_rows(s)) for s in states[:-1]] + [end]) if options.keep == "all" else None
    solution = Solution(end, along, times, spent.calls, bad.to(torch.int8) * Status.NON_FINITE, message, table)
    if options.on_failure == "raise":
        raise NumericalError(message, solution)
    return solution


def _check_field(field: object) -> None:
    if not isinstance(field, Field):
        raise ArgumentError(
            f"field must be a diffode field, got {type(field).__name__}; wrap a callable with Field.from_velocity(fn)"
        )


def _follow(table: Tableau, field: Field, x: Tensor, draw: Draw | None, options: RunOptions) -> list[Tensor]:
    """The states at the grid's times, or the last state alone if that is all that is kept."""
    keep, progress = options.keep, options.progress
    if keep == "last" and progress is None:
        last = x
        for _, state in table.walk(field, x, draw):
            last = state
        return [last]
    outputs = {row: step for step, row in enumerate(table.outputs)}
    kept = [x]
    for row, state in table.walk(field, x, draw):
        if row in outputs:
            kept = [*kept, state] if keep == "all" else [state]
            if progress is not None:
                progress(outputs[row], len(outputs) - 1)
    return kept


def _diagnose(table: Tableau, field: Field, x: Tensor, draw: Draw | None, bad: Tensor) -> str:
    """Retrace the run to name the first row and time at which it became non-finite, and the last good state.

    A run checks only its end, which costs next to nothing; only a failed run is made twice.
    """
    before, last_time, failed = x, table.rows[0].time, bad
    for row, state in table.walk(field, x, draw):
        failed = non_finite_rows(state) & bad
        if bool(failed.any()):
            break
        before, last_time = state, table.rows[row].time
    first = int(torch.nonzero(failed)[0])
    last_good = before[first]
    last_time = float(last_time[first]) if isinstance(last_time, Tensor) else last_time
    shown = ", ".join(f"{v:.4g}" for v in last_good.reshape(-1)[:4].tolist())
    more = ", ..." if last_good.numel() > 4 else ""
    return (
        f"{int(bad.sum())} of {len(bad)} rows became non-finite; row {first} first, in the step from t={last_time:.6g}, "
        f"where it was ({shown}{more}); use more steps, another grid or a solver of lower order"
    )
