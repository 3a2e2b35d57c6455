r"""Measured orders of convergence: the slope of log error against log step over nested grids, with its interval.

A level is a number of steps; `numerics/orders.py` has the rule that chooses the levels that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffode import fields, grids, paths, solvers
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.flows import Reference, reference
from diffode.metrics.gaussian import diagonal_w2
from diffode.numerics.orders import OrderEstimate, check_levels, fit_order
from diffode.paths import Path
from diffode.solvers import DirectSolver, Solver
from diffode.tableau import BrownianPath, Tableau
from diffode.targets import Target

#: A run of a solver: the ends (B, *shape) of starts.
Run = Callable[[Field, Tensor], Tensor]

#: Numbers of steps by default.
_LEVELS = (32, 64, 128, 256, 512, 1024, 2048)


def order(
    solver: Solver | str,
    *,
    target: Target | str = "bimodal1d",
    path: Path | str = "edm",
    grid: grids.Times = "karras",
    steps: Sequence[int] = _LEVELS,
    points: int = 32,
    seed: int = 0,
    field: Field | None = None,
    tolerance: float = 1e-12,
    ramped: bool = False,
) -> OrderEstimate:
    """The measured order of a deterministic solver: root-mean-square end-point error against the exact flow.

    Args:
        solver: a solver or its spec, which writes tables or follows the field from time to time; one that draws noise is
            refused (see :func:`weak_order`, :func:`strong_order`).
        target: target or its name; the starts are exact draws at ``path.t_max``.
        path: path or its spec.
        grid: spec of the family of grids.
        steps: numbers of steps, increasing.
        points: number of starts.
        seed: seed of the starts.
        field: an exact field, instead of target and path.
        tolerance: relative tolerance of the reference, if it is integrated.
        ramped: split the first step of n into steps that double, from 1/n of it, as a variable-step code would start. A
            method of high order that starts with Euler steps then shows its own order; on the plain grid the start's error,
            of second order, dominates in the end. (Methods with weights for a uniform grid lose their order by it.)

    >>> abs(order("heun:chart=noise", steps=(32, 64, 128, 256)).slope - 2) < 0.15
    True
    """
    recipe = solvers.get(solver)
    if recipe.stochastic:
        raise ArgumentError(f"solver {recipe.spec!r} draws noise; use weak_order or strong_order, or set its noise to 0")
    check_levels(steps)
    _check_starts(points, seed, grid)
    exact = field if field is not None else fields.exact_field(target, path)
    on = exact.require_path("an order on named grids")
    if not isinstance(exact, fields.ExactField):
        raise ArgumentError("field must be an exact field, whose prior and flow are known: diffode.exact_field(target, path)")
    runs = [_run_on(recipe, on, _with_ramp(on, grid, n) if ramped else grid, None if ramped else n) for n in steps]
    start = exact.prior(points, generator=seed)
    first, last, _ = runs[0]
    true = reference(exact, start, first, last, tolerance)
    errors = [_rms(run(exact, start) - true.x) for _, _, run in runs]
    return fit_order(steps, errors, floor_of(true, start))


def _run_on(solver: Solver, path: Path, grid: grids.Times, steps: int | None) -> tuple[float, float, Run]:
    """The first and the last time of a run, and a function that makes it."""
    if isinstance(solver, DirectSolver) and solver.takes_steps:
        times = grids.get(grid, path, steps).tolist()
        return times[0], times[-1], lambda field, x: solver.follow(field, x, times, None).states[-1]
    table = solvers.table_solver(solver).tableau(path, grid, steps)
    return *table.ends, table.run


def floor_of(true: Reference, start: Tensor) -> float:
    """Root mean square error that a reference, and rounding of the start, leave in errors against it.

    The estimate of an integration bounds the worst row: the errors of typical rows are a fortieth of it and less, so that a
    tenth bounds their mean. The estimates of closed forms are of their rounding, row by row.
    """
    share = 0.1 if true.method == "dop853" else 1.0
    estimated = share * float(true.errors.square().mean().sqrt())
    return max(estimated, torch.finfo(torch.float64).eps * _rms(start))


def _check_starts(points: int, seed: int, grid: object) -> None:
    if type(points) is not int or points < 1:
        raise ArgumentError(f"points must be an integer >= 1, got {points!r}")
    if type(seed) is not int or seed < 0:
        raise ArgumentError(f"seed must be an integer >= 0, got {seed!r}")
    if not grids.is_named(grid):
        raise ArgumentError(f"grid must be the spec of a family of grids, such as 'karras', got {grid!r}")


def _with_ramp(path: Path, grid: grids.Times, steps: int) -> list[float]:
    """A grid whose first step is split in log-SNR into 1/2^m, 1/2^m, 1/2^(m-1), ..., 1/2 of it, 2^m >= steps."""
    times = grids.get(grid, path, steps).tolist()
    first, second = path.log_snr(times[0]), path.log_snr(times[1])
    halvings = math.ceil(math.log2(steps))
    inner = [path.time_from_log_snr(first + (second - first) * 2.0**-k) for k in range(halvings, 0, -1)]
    return [times[0], *inner, *times[1:]]


def strong_order(
    solver: Solver | str,
    *,
    target: Target | str = "bimodal1d",
    path: Path | str = "edm",
    grid: grids.Times = "log_snr",
    steps: Sequence[int] = (16, 32, 64, 128, 256),
    points: int = 256,
    seed: int = 0,
) -> OrderEstimate:
    """The strong order of an SDE solver: how fast runs on one Brownian path approach each other as the grid is refined.

    The error of a level is the median distance to a run with eight times the steps of the finest level. (The mean is
    dominated by the few rows near a ridge that end in another mode.)
    """
    recipe = solvers.table_solver(solver)
    if not recipe.stochastic:
        raise ArgumentError(f"solver {recipe.spec!r} draws no noise; use order")
    check_levels(steps)
    _check_starts(points, seed, grid)
    exact = fields.exact_field(target, path)
    start = exact.prior(points, generator=seed)
    brownian = BrownianPath(start.shape, seed=seed)
    finest = recipe.tableau(exact.path, grid, 8 * steps[-1])
    true = finest.run(exact, start, noise=brownian.draws(finest))
    errors = []
    for n in steps:
        table = recipe.tableau(exact.path, grid, n)
        distances = (table.run(exact, start, noise=brownian.draws(table)) - true).norm(dim=1)
        errors.append(float(distances.median()))
    return fit_order(steps, errors)


def weak_order(
    solver: Solver | str,
    *,
    path: Path | str = "edm",
    grid: grids.Times = "log_snr",
    eigenvalues: Sequence[float] = (0.1, 0.5, 1.0, 4.0),
    mean: float = 0.7,
    steps: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
) -> OrderEstimate:
    """The weak order of a solver on Gaussians, without sampling: W2 between its output's law and the exact one.

    The start is the exact law at the first time, so that only discretisation is left.
    """
    recipe, on = solvers.table_solver(solver), paths.get(path)
    check_levels(steps)
    _check_starts(1, 0, grid)
    try:
        variances, mean = torch.tensor(list(eigenvalues), dtype=torch.float64), float(mean)
    except (TypeError, ValueError):
        raise ArgumentError(f"eigenvalues must be numbers and mean one, got {eigenvalues!r} and {mean!r}") from None

    def error(table: Tableau) -> float:
        law = table.propagate(mean, variances)
        _, last = table.ends
        alpha, sigma = on.alpha(last), on.sigma(last)
        centre = torch.full_like(variances, alpha * mean)
        return diagonal_w2(law.mean, law.variance, centre, alpha**2 * variances + sigma**2)

    return fit_order(steps, [error(recipe.tableau(on, grid, n)) for n in steps], 1e-15)


def _rms(x: Tensor) -> float:
    return float(x.flatten(1).square().sum(1).mean().sqrt())
