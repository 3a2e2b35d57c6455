"""Training a sampler for one field and number of evaluations: from published ones, by Gauss-Newton, to a checkpoint."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffode import grids, paths, solvers
from diffode.errors import ArgumentError, BudgetError, NumericalError
from diffode.fields import Field
from diffode.learned.arguments import check_seconds, check_seed, field_on, finite_levels, row_shape
from diffode.learned.choice import choices, ranked, table_of
from diffode.learned.gauss_newton import Fit, Problem, fit
from diffode.learned.parameters import Table
from diffode.learned.trajectory import exact_trajectory
from diffode.paths import Path
from diffode.references import flow_states
from diffode.solvers.bespoke import shipped_members
from diffode.solvers.checkpoints import Checkpoint
from diffode.solvers.solver import check_budget
from diffode.solvers.stages import Stages, noise_function
from diffode.targets import Target

#: Published samplers that training may start from.
SOLVERS = (
    "ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "ipndm_v:order=3", "lms:order=3", "deis:order=3", "deis:order=4",
    "dpmpp:order=2", "dpmpp:order=3", "dpm_m:order=2", "unipc:order=2", "unipc:order=3", "dpm:order=2", "edm_heun",
)  # fmt: skip
GRIDS = (
    "shift:s=1", "kl_optimal", "log_snr", "polyexponential:rho=0.7", "karras:rho=2", "karras:rho=3", "karras:rho=5",
    "karras:rho=7", "karras:rho=12",
)  # fmt: skip
#: The share of the time that a step with its gradients may cost decides how many starts are used.
_STEP_SHARE, _FEWEST, _MOST = 0.02, 192, 4096
#: Held-out and test starts: a share of those to train on, not fewer than the fewest above, and at most.
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.5, 1024
#: Test starts come from seeds that no training or held-out starts come from.
_TEST_STREAM = 2**45
#: Starts that candidates are compared on, and members of the universal codebook among the candidates.
_CHOOSING, _MEMBERS = 64, 2
#: Candidates that are tried, steps taken from each to see where it leads, the share of the time for that, and the most steps.
_ATTEMPTS, _LOOK_STEPS, _LOOK_SHARE, _MOST_STEPS = 6, 6, 0.4, 200
#: First steps are taken on a part of the starts (or the fewest above) and count the states in between as much as the end: a
#: start that ends at the wrong mode has a state that went astray, which has a gradient, and an end that has none.
_LOOK_PART, _LOOK_TRAJECTORY = 0.25, 1.0

Report = Callable[[str, int, float, float], None]


@dataclass(frozen=True)
class Trained:
    """A trained sampler with the history of its training.

    Attributes:
        checkpoint: the sampler and its facts; ``checkpoint.save(file)``, then the solver is ``bespoke:file=...``.
        start: the published sampler that the best attempt started from, in common form and units of the scale.
        training, held_out: mean end-point errors after every step, in units of the scale; first of what a few steps of looking
            ahead, which count the states in between too, led to.
    """

    checkpoint: Checkpoint
    start: Stages
    training: tuple[float, ...]
    held_out: tuple[float, ...]


class Published(NamedTuple):
    """A published sampler as a point to start from."""

    error: float
    name: str
    stages: Stages


def train_table(
    field: Field | Target | str,
    nfe: int,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    start: str | None = None,
    consistent: bool = False,
    groups: tuple[int, ...] | None = None,
    trajectory: float = 0.0,
    points: int | None = None,
    seconds: float = 60.0,
    seed: int = 0,
    progress: Report | None = None,
) -> Trained:
    """Train a table with ``nfe`` evaluations: its weights, scales and levels, from a published sampler.

    Args:
        field: a target or its name, or a field with a path (then ``dim``, the number of coordinates, is needed unless it is
            exact).
        nfe: number of evaluations.
        path: path of the target; a field has its own.
        dim: of a field of your own: coordinates a row of x has, or the shape of a row.
        start: ``"solver @ grid"`` to start from, or ``"universal"``; by default the best six of a list of published ones,
            the universal table and its codebook on these starts.
        consistent: keep the table exact for a constant noise prediction.
        groups: sizes of the sets of evaluations that may run in parallel.
        trajectory: weight of the mean error of the states in between, in units of the data's spread at their levels, beside
            the error of the end; 0 looks at the end alone, but for the first steps from each start, which always count both.
        points: number of starts; by default as many as keep a step within a fiftieth of ``seconds``, from 192 to 4,096.
        seconds: most seconds, references and the choice of the start included as far as they are known beforehand.
        seed: of the starts; the held-out ones come from another stream.
        progress: called as ``progress(start, step, training error, held-out error)``; in first steps the training error counts
            states in between.

    Raises:
        ArgumentError, BudgetError: for a wrong argument; FieldError: if the field can't be differentiated;
        NumericalError: if no published sampler gives finite states.

    >>> trained = train_table("bimodal1d", 4, points=192, seconds=2)
    >>> trained.checkpoint.held_out_error < 0.02  # the best of hundreds of published samplers: 0.065
    True
    """
    check_budget(nfe)
    check_seconds(seconds)
    began = time.perf_counter()
    chosen, on, name = field_on(field, path)
    shape = row_shape(chosen, dim)
    if isinstance(trajectory, bool) or not isinstance(trajectory, int | float) or not 0 <= trajectory < math.inf:
        raise ArgumentError(f"trajectory must be a weight >= 0, got {trajectory!r}")
    count = points if points is not None else affordable(chosen, on, shape, nfe, seconds)
    if type(count) is not int or count < 8:
        raise ArgumentError(f"points must be an integer >= 8, got {points!r}")
    check_seed(seed)
    few = min(max(round(_HELD_OUT_SHARE * count), _FEWEST), count, _MOST_HELD_OUT)
    part = min(max(round(_LOOK_PART * count), _FEWEST), count)
    look = problem_for(chosen, on, shape, part, 2 * seed, max(trajectory, _LOOK_TRAJECTORY))
    problem, held_out = (problem_for(chosen, on, shape, n, s, trajectory) for n, s in ((count, 2 * seed), (few, 2 * seed + 1)))
    test = problem_for(chosen, on, shape, few, _TEST_STREAM + seed)
    task = _Task(look, problem, held_out, test, on, name, began, seconds, seed, progress)
    return _best_of(task, _starts(problem, on, nfe, start, chosen.scale), consistent, groups)


def train_gaussian(
    eigenvalues: Tensor | Sequence[float],
    nfe: int,
    *,
    path: Path | str = "vp",
    start: str | None = None,
    seconds: float = 60.0,
    seed: int = 0,
) -> Trained:
    """Train a table on a Gaussian's exact error, with no samples at all.

    Minimised is the mean over eigen-directions of the error of the output's standard deviation, from the exact start: what
    ``tableau.propagate`` would find. The arguments are those of :func:`train_table`; ``eigenvalues`` (E,) are the data's
    variances. The checkpoint's held-out error is the training error: there is nothing to hold out.

    >>> train_gaussian([1.0, 0.3, 0.01], 4, seconds=3).checkpoint.held_out_error < 1e-6
    True
    """
    check_budget(nfe)
    check_seconds(seconds)
    check_seed(seed)
    began = time.perf_counter()
    try:
        variances = torch.as_tensor(eigenvalues, dtype=torch.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"eigenvalues must be numbers, got {eigenvalues!r}") from None
    if variances.ndim != 1 or not len(variances) or not bool((torch.isfinite(variances) & (variances > 0)).all()):
        raise ArgumentError("eigenvalues must be a vector (E,) of positive numbers")
    on = paths.get(path)
    column = variances[:, None]

    def noise(z: Tensor, rho: float) -> Tensor:
        return z * (rho / (column[: len(z)] + rho**2))

    unit = float(variances.mean().sqrt())
    first, last = finite_levels(on)
    deviations = [(column + level**2).sqrt() for level in (first, last)]
    problem = Problem(noise, deviations[0], deviations[1], unit, first / unit, last / unit)
    task = _Task(problem, problem, problem, problem, on, f"Gaussian, {len(variances)} eigenvalues", began, seconds, seed, None)
    return _best_of(task, _starts(problem, on, nfe, start, unit), False, None)


class _Task(NamedTuple):
    """What to take first steps and then train on, for how long, and what to call it."""

    look: Problem
    problem: Problem
    held_out: Problem
    test: Problem
    path: Path
    name: str
    began: float
    seconds: float
    seed: int
    progress: Report | None


def _best_of(task: _Task, candidates: Sequence[Published], consistent: bool, groups: tuple[int, ...] | None) -> Trained:
    """Look a few steps ahead from each candidate, then train them to the end, the most promising first, while time lasts."""

    def left() -> float:
        return task.seconds - (time.perf_counter() - task.began)

    def trained(on: Problem, table: Table, published: Published, start: Tensor, steps: int, seconds: float) -> Fit | None:
        report = _named(task.progress, published.name)
        try:
            return fit(
                table, [on], [task.held_out], start=start, steps=steps, seconds=max(seconds, 0.0), seed=task.seed,
                progress=report,
            )  # fmt: skip
        except NumericalError:
            # A candidate whose first run overflows on these starts; others may not.
            return None

    seen: list[tuple[float, Tensor, Published, Table]] = []
    for k, published in enumerate(candidates):
        table = Table(published.stages, consistent=consistent, groups=groups)
        share = _LOOK_SHARE * left() / (len(candidates) - k)
        looked = trained(task.look, table, published, table.start, _LOOK_STEPS, share)
        if looked is not None:
            seen.append((min(looked.held_out), looked.values, published, table))
    if not seen:
        raise NumericalError(
            f"every published sampler overflows on {task.name}; look at the field first, or give another start"
        )
    seen.sort(key=lambda candidate: candidate[0])
    error, values, published, table = seen[0]
    best = Fit(values, (_error(task.problem, table, values),), (error,), 0.0), published, table
    for _, values, published, table in seen:
        if left() <= 0:
            break
        further = trained(task.problem, table, published, values, _MOST_STEPS, left())
        # The first one's history is kept whether its steps gained anything or not.
        if further is not None and (min(further.held_out) < min(best[0].held_out) or published is seen[0][2]):
            best = further, published, table
    found, published, table = best
    stages = table.stages(found.values, task.problem.first, task.problem.last)
    checkpoint = Checkpoint(
        stages,
        task.problem.unit,
        task.path.spec,
        task.name,
        published.name,
        task.test.error(stages),
        task.test.error(published.stages),
        time.perf_counter() - task.began,
        task.seed,
    )
    return Trained(checkpoint, published.stages, found.training, found.held_out)


def _error(problem: Problem, table: Table, values: Tensor) -> float:
    return problem.error(table.stages(values, problem.first, problem.last))


def _named(progress: Report | None, name: str) -> Callable[[int, float, float], None] | None:
    return None if progress is None else lambda step, training, held: progress(name, step, training, held)


def affordable(field: Field, path: Path, shape: tuple[int, ...], nfe: int, seconds: float) -> int:
    """As many starts as keep one step near its share of the time."""
    noise = noise_function(field)
    dim = math.prod(shape)
    field.check_gradient(path.prior((2, *shape), generator=0), path.t_max)
    z = path.prior((_FEWEST, *shape), generator=0).requires_grad_(True)
    level = finite_levels(path)[0] ** 0.5
    once = math.inf
    for _ in range(2):
        began = time.perf_counter()
        with torch.enable_grad():
            answer = noise(z, level)
            if answer.requires_grad:
                torch.autograd.grad(answer.sum(), z)
        once = min(once, (time.perf_counter() - began) / _FEWEST)
    # One evaluation with its gradient and two without; the gradients of up to four directions.
    a_start = once * nfe * (3 + min(dim, 4))
    return int(min(max(_STEP_SHARE * seconds / a_start, _FEWEST), _MOST))


def problem_for(
    field: Field,
    path: Path,
    shape: int | tuple[int, ...],
    count: int,
    seed: int,
    trajectory: float = 0.0,
    *,
    differentiated: bool = True,
) -> Problem:
    """Starts from the normal prior, as samplers have them, and where the exact flow takes them (at all levels, if
    ``trajectory``, the weight of states in between, is not 0). A field that will be ``differentiated`` is checked for that.
    """
    levels = finite_levels(path)
    rows = (shape,) if isinstance(shape, int) else shape
    start = path.prior((count, *rows), generator=torch.Generator().manual_seed(7_919 * seed + 1))
    if differentiated:
        field.check_gradient(start[:2], path.t_max)
    alphas = path.alpha(path.t_max), path.alpha(path.t_min)
    unit, noise = field.scale, noise_function(field)
    if trajectory:
        between = exact_trajectory(field, path, noise, start)
        end = between.states[-1]
    else:
        between, end = None, flow_states(field, start, (path.t_max, path.t_min))[-1].flatten(1) / alphas[1]
    return Problem(noise, start / alphas[0], end, unit, levels[0] / unit, levels[1] / unit, between, trajectory)


def _starts(problem: Problem, path: Path, nfe: int, start: str | None, unit: float) -> list[Published]:
    """The best published samplers on some of the starts, each with another solver."""
    few = Problem(problem.noise, problem.start[:_CHOOSING], problem.end[:_CHOOSING], unit, problem.first, problem.last)
    found = []
    for solver, grid in [] if start == "universal" else _listed(start):
        try:
            stages = Stages.of(solvers.get(solver).within(path, grid, nfe)).scaled(1 / unit)
        except BudgetError:
            if start is not None:
                raise
            continue
        if stages.nfe == nfe:
            error = few.error(stages)
            if math.isfinite(error):
                found.append(Published(error, f"{solver} @ {grid}", stages))
        elif start is not None:
            raise BudgetError(f"start {start!r} has no run of exactly {nfe} evaluations, but of {stages.nfe}")
    if start in (None, "universal"):
        found += _universal(few, path, nfe, unit)
    if start is None:
        found += _members(few, nfe)
    if start == "universal" and not found:
        raise BudgetError(f"there is no universal table for nfe={nfe} between these noise levels; start from another sampler")
    found.sort(key=lambda published: published.error)
    best: dict[str, Published] = {}
    for published in found:
        best.setdefault(published.name.partition(" @ ")[0], published)
    if not best:
        raise NumericalError(f"no published sampler gives finite states with nfe={nfe} on this field; look at the field first")
    return list(itertools.islice(best.values(), _ATTEMPTS))


def _universal(problem: Problem, path: Path, nfe: int, unit: float) -> list[Published]:
    """The universal table as a point to start from, if there is one for these levels and this number of evaluations."""
    try:
        table = solvers.get("universal", scale=unit, dim=problem.dim).tableau(path, [path.t_max, path.t_min], nfe)
    except ArgumentError:
        return []
    stages = Stages.of(table).scaled(1 / unit)
    error = problem.error(stages)
    return [Published(error, "universal", stages)] if math.isfinite(error) else []


def _members(problem: Problem, nfe: int) -> list[Published]:
    """The members of the universal codebook that are best on these starts."""
    book = shipped_members().get(nfe, ())
    found = ranked(book, problem, choices(book, problem, (problem.dim,)))[:_MEMBERS]
    return [
        Published(error, f"universal:member={one.member},scale={one.unit * problem.unit:.4g}", table_of(book, problem, one))
        for error, one in found
        if math.isfinite(error)
    ]


def _listed(start: str | None) -> Iterator[tuple[str, str]]:
    if start is None:
        yield from itertools.product(SOLVERS, GRIDS)
        return
    solver, at, grid = (part.strip() for part in start.partition("@"))
    if not at:
        grid = "karras"
    grids.registry.check(grid)
    yield solver, grid


def output_weights(stages: Stages) -> Tensor:
    """The weights (N,) of the noise predictions in the output, each over the level where it was made, for pictures.

    The start is written as D_0 + rho_0 e_0 first: while rho_0 is large, z_0 and e_0 are nearly parallel, and a table may hold
    any share of one against the other.
    """
    weights = stages.weights[-1].clone()
    weights[0] += stages.scales[-1] * stages.levels[0]
    return weights / stages.levels[:-1]
