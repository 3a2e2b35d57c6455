r"""Grids optimised for a field: GITS (dynamic programme), DMN (without a field), LD3 (trained), and direct search.

Each returns the times of a grid that any solver takes; LD3 with decoupled evaluation levels returns a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffode import grids, solvers
from diffode.arguments import check_count, check_number
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.learned.fitting.gauss_newton import Problem, fit
from diffode.learned.fitting.parameters import Decoupled, Levels, from_shares
from diffode.learned.grids.simplex import searched, simplex
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress
from diffode.learned.request import Request, with_gradients
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages
from diffode.targets import Target

#: Grids at which direct search starts.
_FIRST_GRIDS = ("log_snr", "karras:rho=7", "karras:rho=3", "shift:s=1")
#: Factors on the cost of later jumps that GITS takes, the second excluded.
_DISCOUNTS = (1e-3, 1e3)
#: Smallest step of DMN's grid relative to an even step, in log-SNR.
_LEAST_STEP = 0.05


@with_gradients
def gits(
    field: Field | Target | str,
    steps: int,
    *,
    dim: int | Sequence[int] | None = None,
    teacher: int = 60,
    discount: float = 1.15,
    points: int = 256,
    statistics: Statistics | None = None,
    seed: int = 0,
) -> Tensor:
    """Geometry-inspired time scheduling: the grid whose Euler jumps stay nearest to the trajectories.

    Args:
        field: a field with a path, or a target or its name for its exact field on EDM.
        steps: number of steps.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        teacher: number of steps of the fine grid (polynomial, exponent 7) that holds the points of the grid. The trajectories
            are those of Euler's method on it, as in the original.
        discount: factor on the cost of each later jump.
        points: number of trajectories whose costs are averaged.
        statistics: mean and covariance of the data, for a run that jumps: one more step is made, the first of all, along the
            flow of the data's Gaussian.
        seed: seed of their starts.

    Returns:
        float64 tensor of ``steps + 1`` times, or of ``steps + 2`` if the first step is a jump.

    Raises:
        ArgumentError: for a wrong argument.

    Source: Chen et al., arXiv 2405.11326: the cost of a jump i -> j is the distance of its end to the chord from the first to
    the last point of the trajectory, less that of the trajectory's own point j.
    """
    request = Request.of("gits", field, dim=dim, seed=seed)
    path = request.path
    check_count("teacher", teacher, 1, 10**4)
    fine = grids.get("karras:rho=7", path, teacher)
    steps += statistics is not None
    check_count("steps", steps, 1, teacher)
    check_count("points", points, 1, 10**9)
    check_number("discount", discount, *_DISCOUNTS)
    field = request.field
    rho = torch.tensor([path.rho(t) for t in fine.tolist()], dtype=torch.float64)
    start = request.field.first_noise((points, *request.shape), generator=request.stream("starts"))
    states = [start.flatten(1) / path.alpha(float(fine[0]))]
    slopes = []
    with torch.no_grad():
        for k in range(teacher):
            t = float(fine[k])
            slopes.append(field.predict("noise", states[-1].reshape(start.shape) * path.alpha(t), t).flatten(1))
            states.append(states[-1] + (rho[k + 1] - rho[k]) * slopes[-1])
    chord = states[-1] - states[0]
    unit = chord / chord.norm(dim=1, keepdim=True)

    def deviation(z: Tensor) -> Tensor:
        offset = z - states[0]
        distance: Tensor = (offset - (offset * unit).sum(1, keepdim=True) * unit).norm(dim=1)
        return distance

    cost = torch.full((teacher + 1, teacher + 1), math.inf, dtype=torch.float64)
    for i in range(teacher):
        for j in range(i + 1, teacher + 1):
            jumped = states[i] + (rho[j] - rho[i]) * slopes[i]
            if statistics is not None and i == 0:
                # Only the first step of a run begins at the first point.
                to = float(fine[j])
                jumped = statistics.flow(start, path, float(fine[0]), to).flatten(1) / path.alpha(to)
            cost[i, j] = (deviation(jumped) - deviation(states[j])).mean()
    chosen: Tensor = fine[cheapest(cost, steps, discount)]
    return chosen


def cheapest(cost: Tensor, steps: int, discount: float) -> list[int]:
    """The chain 0 -> ... -> last of ``steps`` jumps with the least sum of cost (M, M) times discount^(number of the jump)."""
    count = len(cost)
    value = cost[:, -1].clone()
    choices: list[Tensor] = []
    for _ in range(steps - 1):
        total = cost + discount * value[None]
        total[:, -1] = math.inf
        value, choice = total.min(1)
        choices.insert(0, choice)
    places = [0]
    for choice in choices:
        places.append(int(choice[places[-1]]))
    if not math.isfinite(float(value[0])):
        raise ArgumentError(f"steps must be at most {count - 1}, the steps of the teacher")
    return [*places, count - 1]


def dmn(path: Path | str, steps: int, *, solver: str = "ab:order=3,chart=data", power: float = 1.0) -> Tensor:
    r"""The grid on which a multistep solver's output is least sensitive to errors of the denoiser; no field is needed.

    The grid minimises :math:`\sum_j |W_j|\,\sigma_j^p`, where W_j is the weight of the j-th denoised point in the output. This
    assumes an error of the denoiser that grows like :math:`\sigma^p`, with sigma = rho/sqrt(1 + rho^2) and p the ``power``.

    Source: Xue et al., arXiv 2402.17376, equation 13 and section 3.3 ("DM-NonUniform").
    """
    path = get_path(path)
    check_count("steps", steps, 1, 1000)
    check_number("power", power)
    recipe = solvers.table_solver(solver)
    base = grids.get("log_snr", path, steps).tolist()
    ends = [path.log_snr(base[0]), path.log_snr(base[-1])]

    def times(logits: np.ndarray) -> list[float]:
        shares = np.exp(logits - logits.max())
        # Without a least step, a step could vanish at the minimum.
        shares = _LEAST_STEP / steps + (1 - _LEAST_STEP) * shares / shares.sum()
        inner = ends[0] + (ends[1] - ends[0]) * np.cumsum(shares)[:-1]
        return [base[0], *(path.time_from_log_snr(float(v)) for v in inner), base[-1]]

    def bound(logits: np.ndarray) -> float:
        stages = Stages.of(recipe.tableau(path, times(logits)))
        rho = stages.levels[:-1]
        # The output's weights of noise predictions become weights of denoised points: b_j = -rho_j W_j in sum.
        return float((denoised_weights(stages).abs() * (rho / (1 + rho.square()).sqrt()) ** power).sum())

    if steps == 1:
        return grids.explicit(base, path)
    best = simplex(bound, np.zeros(steps))
    return grids.explicit(times(best), path)


def denoised_weights(stages: Stages) -> Tensor:
    """Weights (N,) of the denoised points D_j in the output, without the weight of the start.

    With e_j = (z_j - D_j)/rho_j every state z_i is a combination of z_0 and D_0, ..., D_{i-1}.
    """
    count = stages.nfe
    by_point = torch.zeros(count + 1, count, dtype=torch.float64)
    for i in range(count):
        share = stages.weights[i, : i + 1] / stages.levels[: i + 1]
        by_point[i + 1] = share @ by_point[: i + 1]
        by_point[i + 1, : i + 1] -= share
    return by_point[count]


@with_gradients
def ld3(
    field: Field | Target | str,
    steps: int,
    *,
    solver: str = "dpmpp:order=2",
    grid: str = "log_snr",
    dim: int | Sequence[int] | None = None,
    points: int = 512,
    rounds: int = 100,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """The grid on which a solver of one evaluation per step ends nearest the exact flow, trained on starts.

    Args:
        field: a field with a path, differentiable in x, or a target or its name for its exact field on EDM.
        steps: number of steps.
        solver: spec of the solver.
        grid: named grid at which training starts.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        points: number of starts to train on, and of held-out ones.
        rounds: largest number of Gauss-Newton steps.
        seconds: limit of time, in seconds or as a :class:`Limit`, after which the best grid so far is returned.
        seed: seed of the starts.
        progress: called with every :class:`Step`.

    Returns:
        float64 tensor of ``steps + 1`` times.

    Raises:
        ArgumentError: for a wrong argument. FieldError: if the field can't be differentiated.
        NumericalError: if the grid gives non-finite states.

    Source: Tong et al., arXiv 2405.15506 (LD3); minimised here by Gauss-Newton with exact derivatives, from the named grid.
    """
    request = Request.of("ld3", field, dim=dim, seed=seed, seconds=seconds, progress=progress)
    values, problem = _trained(Levels, request, steps, solver, grid, points, rounds, "train the levels")
    return _times(request.path, values, problem)


@with_gradients
def ld3_decoupled(
    field: Field | Target | str,
    steps: int,
    *,
    solver: str = "dpmpp:order=2",
    grid: str = "log_snr",
    dim: int | Sequence[int] | None = None,
    points: int = 512,
    rounds: int = 100,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stages:
    """The table, in the data's units, of :func:`ld3` with the levels at which the field is evaluated trained as well."""
    request = Request.of("ld3", field, dim=dim, seed=seed, seconds=seconds, progress=progress)
    first = replace(request, limit=request.limit.part(0.5))
    together, _ = _trained(Levels, first, steps, solver, grid, points, rounds, "train the levels together")
    begin = torch.cat([together, torch.zeros_like(together)])
    values, problem = _trained(Decoupled, request, steps, solver, grid, points, rounds, "train the levels apart", begin)
    levels, write = _writer(request.path, solver, grid, steps, problem.unit)
    return Decoupled(levels, write).stages(values, problem.first, problem.last).scaled(problem.unit)


@with_gradients
def search(
    field: Field | Target | str,
    steps: int,
    *,
    solver: str = "dpmpp:order=2",
    dim: int | Sequence[int] | None = None,
    points: int = 256,
    seconds: float | Limit = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """The best grid of a few steps by direct search: Nelder-Mead from each of several named grids.

    The field needs no gradient. The error has many local minima in the levels, which training (:func:`ld3`) does not leave.

    Args:
        field: a field with a path, or a target or its name for its exact field on EDM.
        steps: number of steps.
        solver: spec of the solver.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        points: number of starts on which grids are compared.
        seconds: limit of time, exact ends included, in seconds or as a :class:`Limit`, after which the best grid so far is
            returned.
        seed: seed of the starts.
        progress: called with every run as a :class:`Step`, whose ``error`` is the least so far.

    Returns:
        float64 tensor of ``steps + 1`` times.

    Raises:
        ArgumentError: for a wrong argument.
    """
    request = Request.of("search", field, dim=dim, seed=seed, seconds=seconds, progress=progress)
    path = request.path
    check_count("steps", steps, 1, 100)
    check_count("points", points, 1, 10**9)
    problem = request.problem(points, "starts", differentiated=False)
    if steps == 1:
        return grids.get("log_snr", path, 1)
    begins = [Levels(*_writer(path, solver, grid, steps, problem.unit)) for grid in _FIRST_GRIDS]

    def error(values: Tensor) -> float:
        return problem.error(begins[0].stages(values, problem.first, problem.last))

    return _times(path, searched(error, [one.start for one in begins], request), problem)


def _times(path: Path, shares: Tensor, problem: Problem) -> Tensor:
    """The times of a trained grid, whose ends are exactly those of the path."""
    levels = from_shares(shares, problem.first, problem.last)[1:-1] * problem.unit
    return grids.explicit([path.t_max, *(path.time_from_rho(float(level)) for level in levels), path.t_min], path)


def _writer(path: Path, solver: str, grid: str, steps: int, unit: float) -> tuple[Tensor, Callable[[Tensor], Stages]]:
    """The levels of a named grid, and a function that gives the solver's table on any levels, in units of the scale."""
    recipe = solvers.table_solver(solver)
    if recipe.needs_statistics:
        raise ArgumentError(
            f"solver {recipe.spec!r} has to know the data, and its jump is a step of its grid: train_grid trains such grids"
        )
    times = grids.get(grid, path, steps).tolist()
    levels = torch.tensor([path.rho(t) for t in times], dtype=torch.float64) / unit

    def write(at: Tensor) -> Stages:
        inner = [path.time_from_rho(float(level) * unit) for level in at[1:-1]]
        return Stages.of(recipe.tableau(path, [times[0], *inner, times[-1]])).scaled(1 / unit)

    if write(levels).nfe != steps:
        raise ArgumentError(
            f"training a grid needs a solver of one evaluation a step; {recipe.spec!r} makes {write(levels).nfe}"
        )
    return levels, write


def _trained(
    kind: type[Levels] | type[Decoupled],
    request: Request,
    steps: int,
    solver: str,
    grid: str,
    points: int,
    rounds: int,
    stage: str,
    begin: Tensor | None = None,
) -> tuple[Tensor, Problem]:
    check_count("steps", steps, 1, 1000)
    check_count("points", points, 1, 10**9)
    check_count("rounds", rounds, 1)
    problem, held_out = (request.problem(points, stream) for stream in ("training", "held out"))
    if steps == 1:
        raise ArgumentError("a grid of one step has nothing to train")
    parameters = kind(*_writer(request.path, solver, grid, steps, problem.unit))
    found = fit(
        parameters, [problem], [held_out], start=begin, steps=rounds, limit=request.limit, seed=request.seed, stage=stage,
        progress=request.progress,
    )  # fmt: skip
    if not math.isfinite(min(found.held_out)):
        raise NumericalError("the trained grid gives non-finite states on held-out starts")
    return found.values, problem
