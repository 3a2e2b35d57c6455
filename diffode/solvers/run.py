"""``solve``: follow a field from a start over a grid, and report failures row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from diffode import grids
from diffode.errors import ArgumentError, BudgetError, FieldError, NumericalError
from diffode.fields import Field
from diffode.paths import Path
from diffode.randomness import Randomness, RowNoise, generator_from
from diffode.solvers.direct import DirectSolver, ForBudget
from diffode.solvers.registry import get, table_solver
from diffode.solvers.solution import Solution, Status, non_finite_rows, with_nan
from diffode.solvers.solver import Solver, WritesTable, check_budget
from diffode.solvers.starts import check_reach, check_start, look_at_start, two_times
from diffode.solvers.upwards import Upwards, that_runs_upwards
from diffode.tableau import Tableau

Draw = Callable[[int], Tensor]


class Progress(Protocol):
    """Called after each step with the number of steps done and their total."""

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps are made."""


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
) -> Solution:
    """Run a solver from a start.

    Args:
        field: the field to follow.
        x: start at the first time of the run, (B, *shape), float32 or float64; the states keep its dtype and device.
        solver: a solver or its spec, such as ``"dpmpp:order=2"``.
        grid: times, or a grid spec with ``steps`` or ``nfe``. With ``nfe`` alone: ``"karras"``.
        steps: number of steps of a named grid.
        nfe: budget of network calls, for the largest run of the solver on the named grid that costs no more. A guided model
            makes two calls for each evaluation, so that its 8 steps are ``nfe=16``.
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

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> solution = solve(field, field.prior(4, generator=0), solver="dpmpp:order=2", nfe=10)
    >>> solution.nfe, tuple(solution.x.shape)
    (10, (4, 2))
    """
    _check_field(field)
    check_start(x)
    recipe = get(solver).for_field(field.scale, math.prod(x.shape[1:]))
    if not isinstance(upwards, bool):
        raise ArgumentError(f"upwards must be True or False, got {upwards!r}")
    if upwards:
        recipe = Upwards(solver=that_runs_upwards(recipe))
    if between is not None and grid is not None and not grids.is_named(grid):
        raise ArgumentError("between goes with a named grid; explicit times have their own ends")
    path = field.path if between is None else field.require_path("a named grid").between(*two_times(between))
    if isinstance(recipe, DirectSolver):
        return _run_direct(recipe, field, x, path, grid, steps, nfe, noise, generator, keep, progress, on_failure)
    return run_tableau(
        table_for(field, table_solver(recipe), grid, steps, nfe, path),
        field,
        x,
        noise=noise,
        generator=generator,
        keep=keep,
        progress=progress,
        on_failure=on_failure,
    )


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
    _check_options(keep, progress, on_failure)
    first, _ = table.ends
    check_reach(x, first)
    draw = _drawing(table, x, noise, generator)
    look_at_start(field, x, first)
    field.check_once(x, first)
    with field.counted() as spent:
        states = _follow(table, field, x, draw, keep, progress)
    times = torch.tensor([table.rows[i].time for i in table.outputs], dtype=torch.float64)
    if states[-1].shape != x.shape or states[-1].dtype != x.dtype:
        raise FieldError(
            f"the run made {states[-1].dtype} of shape {tuple(states[-1].shape)} from {x.dtype} of shape {tuple(x.shape)}: "
            "the field must answer with the shape and dtype of its x"
        )
    bad = non_finite_rows(states[-1])
    if not bool(bad.any()):
        kept = torch.stack(states) if keep == "all" else None
        return Solution(states[-1], kept, times, spent.calls, bad.to(torch.int8), "", table)
    with field.uncounted():
        message = _diagnose(table, field, x, draw, bad)
    end = with_nan(states[-1], bad)
    kept = torch.stack([with_nan(s, non_finite_rows(s)) for s in states[:-1]] + [end]) if keep == "all" else None
    solution = Solution(end, kept, times, spent.calls, bad.to(torch.int8) * Status.NON_FINITE, message, table)
    if on_failure == "raise":
        raise NumericalError(message, solution)
    return solution


def _look(field: Field, x: Tensor, first: float) -> None:
    """Hold a start and a field to what a run from the time ``first`` needs of them."""
    check_reach(x, first)
    look_at_start(field, x, first)
    field.check_once(x, first)


def _run_direct(
    solver: DirectSolver,
    field: Field,
    x: Tensor,
    path: Path | None,
    grid: grids.Times | None,
    steps: int | None,
    nfe: int | None,
    noise: Tensor | None,
    generator: Randomness | None,
    keep: Literal["last", "all"],
    progress: Progress | None,
    on_failure: Literal["raise", "return"],
) -> Solution:
    """Let a solver without a tableau follow the field over a grid, or without one over the whole path."""
    check_start(x)
    _check_options(keep, progress, on_failure)
    if solver.takes_steps and grid is None and (nfe is not None or steps is not None):
        grid = "karras"
    if nfe is not None and solver.takes_steps:
        evaluations(field, nfe)
        if steps is not None:
            raise ArgumentError("give steps or nfe, not both")
        on, laid = field.require_path("a named grid") if path is None else path, "karras" if grid is None else grid
        # Trial runs are runs: the field and the start are looked at before.
        _look(field, x, float(grids.get(laid, on, 1 if grids.is_named(laid) else None)[0]))
        steps = solver.steps_within(field, x, on, laid, nfe, generator)
    elif nfe is not None:
        budget = evaluations(field, nfe)
        if not isinstance(solver, ForBudget):
            raise ArgumentError(
                f"solver {solver.spec!r} chooses its own steps and can't be given a budget, nfe={nfe}: choose its tolerance "
                "(rtol, atol) and read what it cost from solution.nfe"
            )
        solver.check_nfe(budget)
        # The solver lays its own times between the path's ends.
        grid = None if grids.is_named(grid) else grid
    if noise is not None:
        raise ArgumentError(f"solver {solver.spec!r} draws its own noise; pass generator= instead of noise=")
    if solver.analytic_first_step is not False and not solver.takes_analytic_first_step:
        raise ArgumentError(
            f"solver {solver.name!r} writes no table, so analytic_first_step can't replace its first evaluation"
        )
    _check_steps(grid, steps)
    if grid is None:
        if steps is not None:
            raise ArgumentError("steps goes with a grid spec, such as grid='karras'; this solver needs neither")
        if path is None:
            path = field.require_path("a grid")
        grid = [path.t_max, path.t_min]
    times = grids.get(grid, path, steps)
    if nfe is None or not solver.takes_steps:
        _look(field, x, float(times[0]))
    if solver.asks_row_times:
        field.check_times(x, float(times[0]), float(times[-1]))
    # Only solvers that draw noise row by row take a list of generators.
    keeps = generator is None or solver.draws_for_rows
    source = cast("torch.Generator | None", generator if keeps else generator_from(cast(Randomness, generator)))
    with field.counted() as spent:
        journey = solver.follow(field, x, times.tolist(), source)
    if progress is not None:
        progress(len(times) - 1, len(times) - 1)
    end = journey.states[-1] if journey.end is None else journey.end
    if end.shape != x.shape or end.dtype != x.dtype:
        raise FieldError(f"the run made {end.dtype} of shape {tuple(end.shape)} from {x.dtype} of shape {tuple(x.shape)}")
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
        message = (message + "; " if message else "") + (
            f"{int(late.sum())} of {len(late)} rows did not get to the end{where}: raise max_steps, or rtol and atol, "
            "or see whether the field is finite there"
        )
    kept = torch.stack([with_nan(s, non_finite_rows(s)) for s in journey.states]) if keep == "all" else None
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
    )
    if message and on_failure == "raise":
        raise NumericalError(message, solution)
    return solution


def table_for(
    field: Field, solver: WritesTable, grid: grids.Times | None, steps: int | None, nfe: int | None, path: Path | None = None
) -> Tableau:
    """The tableau that ``solve`` runs with these arguments; ``path`` is the field's own, or a part of it."""
    path = field.path if path is None else path
    if nfe is not None:
        if steps is not None:
            raise ArgumentError("give steps or nfe, not both")
        within, on = evaluations(field, nfe), field.require_path("a named grid") if path is None else path
        try:
            return solver.within(on, "karras" if grid is None else grid, within)
        except BudgetError as error:
            if field.calls == 1:
                raise
            raise BudgetError(
                f"nfe={nfe} network calls buy {within} evaluations of this field, which makes {field.calls} calls for each; "
                f"counted in evaluations, {str(error).replace(f'nfe={within}', f'a budget of {within}')}"
            ) from error
    _check_steps(grid, steps)
    if grid is None:
        raise ArgumentError("give grid= (times, or a spec with steps=), or nfe=")
    return solver.tableau(path, grid, steps)


def evaluations(field: Field, nfe: int) -> int:
    """The number of evaluations of a field in a budget of network calls; BudgetError if it is 0."""
    check_budget(nfe)
    if nfe < field.calls:
        raise BudgetError(f"nfe={nfe} is less than the {field.calls} network calls that one evaluation of this field makes")
    return nfe // field.calls


def _check_steps(grid: grids.Times | None, steps: int | None) -> None:
    if steps is not None and grid is not None and not grids.is_named(grid):
        raise ArgumentError("steps goes with a grid spec; explicit times have their own number of steps")


def _check_field(field: object) -> None:
    if not isinstance(field, Field):
        raise ArgumentError(
            f"field must be a diffode field, got {type(field).__name__}; wrap a callable with Field.from_velocity(fn)"
        )


def _check_options(keep: object, progress: object, on_failure: object) -> None:
    if keep not in ("last", "all"):
        raise ArgumentError(f"keep must be 'last' or 'all', got {keep!r}")
    if progress is not None and not callable(progress):
        raise ArgumentError(f"progress must be a function of (done, total), got {progress!r}")
    if on_failure not in ("raise", "return"):
        raise ArgumentError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")


def _drawing(table: Tableau, x: Tensor, noise: Tensor | None, generator: Randomness | None) -> Draw | None:
    """A function that gives the k-th noise of a run, and the same when asked again, so that a failed run can be retraced."""
    if noise is not None and generator is not None:
        raise ArgumentError("give noise= or generator=, not both: one of them would be ignored")
    if not table.draws:
        if noise is not None:
            raise ArgumentError(f"solver {table.solver!r} draws no noise; leave noise= out")
        return None
    shape = (table.draws, *x.shape)
    if noise is None:
        if generator is None:
            raise ArgumentError(f"solver {table.solver!r} uses {table.draws} noise draws; pass generator= or noise= {shape}")
        return RowNoise(x, table.draws, generator)
    if not isinstance(noise, Tensor) or noise.shape != shape:
        raise ArgumentError(f"noise must have shape (draws, B, *shape) = {shape}, got {tuple(getattr(noise, 'shape', ()))}")
    if not noise.is_floating_point():
        raise ArgumentError(f"noise must be real, float32 or float64, got {noise.dtype}")
    if not bool(torch.isfinite(noise).all()):
        raise ArgumentError("noise has non-finite values")
    return noise.to(x).__getitem__


def _follow(table: Tableau, field: Field, x: Tensor, draw: Draw | None, keep: str, progress: Progress | None) -> list[Tensor]:
    """The states at the grid's times, or the last state alone if ``keep`` is ``"last"``."""
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
