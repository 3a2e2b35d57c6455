"""Conditioning a trained table on the sample, by Gauss-Newton: in the noise chart, or in the chart of the data's Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffode.arguments import check_count
from diffode.errors import ArgumentError, FieldError
from diffode.fields import Field
from diffode.learned.arguments import finite_levels
from diffode.learned.conditional.conditioned import Conditioned, ConditionedSolver, flattened, input_count
from diffode.learned.fitting.chart import in_chart
from diffode.learned.fitting.gauss_newton import Problem, descend, output_directions
from diffode.learned.fitting.problems import starts_for
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress
from diffode.learned.request import Request, with_gradients
from diffode.learned.trained import History, Trained, check_trained
from diffode.numerics.least_squares import NormalEquations, reweighted
from diffode.paths import Path
from diffode.solvers.informed import known_of
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages
from diffode.targets import Target

#: Time of a step relative to a table's: conditioning takes few steps for many numbers, so that it trains on more starts.
_LONGER_STEPS = 3
#: Number of starts whose graphs are in memory together, and among which the median error is taken.
_CHUNK = 1024
#: Largest number of coordinates of a start with which the graphs of two chunks are in memory, as they are small.
_FEW_COORDINATES = 2
#: Damping of the first step, in units of the curvature's diagonal.
_DAMPING = 1e-2
#: Shortest error as a share of the median; a shorter one weighs as much as this one.
_LEAST_WEIGHT = 0.05
#: Smallest entry of the curvature's diagonal as a share of the largest; smaller ones are scaled as this one.
_LEAST_CURVATURE = 1e-12


@with_gradients
def condition(
    trained: Trained | Checkpoint,
    field: Field | Target | str,
    *,
    path: Path | str = "edm",
    dim: int | Sequence[int] | None = None,
    units: int = 20,
    points: int | None = None,
    steps: int = 40,
    seconds: float | Limit = math.inf,
    directions: int = 4,
    patience: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Condition a trained table on the sample.

    Args:
        trained: the result of :func:`diffode.learned.train_table`, or its checkpoint, which may come from a file; of a table in
            the Gaussian's chart the jump stays as it is, and all that follows depends on the sample.
        field: the field or target it was trained on.
        path: path of the target; a field has its own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        units: number of random units in each row.
        points: number of starts to train on, by default three times that of a table, up to 4,096. A quarter of that number, but
            at least 64, are held out and decide when to stop.
        steps: largest number of steps.
        patience: largest number of steps in a row without a smaller held-out error.
        seconds: limit of time, exact ends included, which it can't cut short; if it ends the training early,
            ``stopped_by`` says so.
        directions: number of derivatives for each sample, if it has more dimensions than that.
        seed: seed of the starts, the random layers and the directions.
        progress: called with every :class:`Step`.
        stop: a function called after every step; if it returns True, the best weights so far are returned.

    Returns:
        :class:`Trained`; ``errors.before`` is that of the table without conditions.

    Raises:
        ArgumentError: for a wrong argument, or a table for another field or path.
        FieldError: if the field can't be differentiated.

    >>> from diffode.learned import train_table
    >>> table = train_table("ring8", 1, chart="gaussian", points=64, steps=5)
    >>> found = condition(table, "ring8", points=64, steps=5)
    >>> found.nfe, found.errors.after < found.errors.before
    (1, True)
    """
    checkpoint: Checkpoint = check_trained(trained, Checkpoint, "what train_table gave or its checkpoint")
    request = Request.of("condition", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    limit, unit, width = request.limit, request.field.scale, request.width
    own, wanted = checkpoint.stages.scaled(unit).levels[[0, -1]].tolist(), finite_levels(request.path)
    if any(abs(a - b) > 0.01 * b for a, b in zip(own, wanted, strict=True)):
        raise ArgumentError(
            f"trained goes from noise level {own[0]:.4g} to {own[1]:.4g} at the scale of this field, its path from "
            f"{wanted[0]:.4g} to {wanted[1]:.4g}: condition a table that was trained on this field and path"
        )
    if points is None:
        points = starts_for(request.field, width, checkpoint.nfe, _LONGER_STEPS)
    for name, value, least in (
        ("units", units, 1), ("points", points, 1), ("steps", steps, 1), ("patience", patience, 0),
        ("directions", directions, 2),
    ):  # fmt: skip
        check_count(name, value, least)
    known = _known(checkpoint, request)
    problem, held_out = (
        _flat(request.problem(n, stream)) if known is None else in_chart(request.problem(n, stream), request.field, known)
        for n, stream in ((points, "training"), (max(points // 4, 64), "held out"))
    )
    layers, directions_of = request.stream("layers"), request.stream("directions")
    inputs, count = input_count(problem.start.shape[1]), checkpoint.nfe
    stages = checkpoint.stages.scaled(unit)
    begin = stages if known is None else _after_jump(stages)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=layers, dtype=torch.float64)

    table = Conditioned(
        begin,
        unit,
        tuple((normal(inputs, units), normal(units)) for _ in range(count)),
        tuple(torch.zeros(units + 1, i + 2, dtype=torch.float64) for i in range(count)),
        statistics=known,
        jumps_from=0.0 if known is None else float(stages.levels[0]),
    )
    found = descend(
        torch.cat([w.reshape(-1) for w in table.weights]),
        lambda values: _with(table, values).error(problem),
        lambda values: _with(table, values).error(held_out),
        lambda values: normal_equations(_with(table, values), problem, directions, directions_of),
        damping=_DAMPING,
        least=_LEAST_CURVATURE,
        steps=steps,
        limit=limit,
        patience=patience,
        stage="condition the table",
        progress=progress,
    )
    facts = request.facts(f"the table begun from {checkpoint.begun_from}", found.held_out[0], min(found.held_out))
    conditioned = replace(_with(table, found.values), facts=facts)
    history = History(found.training, found.held_out, len(found.training) - 1)
    return Trained(ConditionedSolver(table=conditioned), count, facts, conditioned, None, history)


def _known(checkpoint: Checkpoint, request: Request) -> Statistics | None:
    """The statistics of a table in the Gaussian's chart, in the unit of the field; None for a table in the noise chart."""
    if checkpoint.statistics is None:
        return None
    own = checkpoint.statistics.scaled(request.field.scale / checkpoint.scale)
    return known_of(request.field, "a table in the Gaussian's chart", request.width, own)


def _after_jump(stages: Stages) -> Stages:
    """The common form of a table in the Gaussian's chart from the end of its jump on, which keeps w."""
    return Stages(stages.scales[1:], stages.weights[1:, 1:], stages.levels[1:])


def _flat(problem: Problem) -> Problem:
    noise = flattened(problem.noise, problem.start.shape[1:])
    return replace(problem, noise=noise, start=problem.start.flatten(1))


def _with(table: Conditioned, values: Tensor) -> Conditioned:
    """The table with ``values`` as its weights W."""
    parts = torch.split(values, [w.numel() for w in table.weights])
    return replace(table, weights=tuple(part.reshape(w.shape) for w, part in zip(table.weights, parts, strict=True)))


def normal_equations(table: Conditioned, problem: Problem, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gradient and Gauss-Newton matrix of the mean error by all W."""
    size, together = sum(w.numel() for w in table.weights), _CHUNK * (2 if problem.dim <= _FEW_COORDINATES else 1)
    equations, room = NormalEquations(size), problem.start.new_empty(size, min(together, len(problem.start)))
    for begin in range(0, len(problem.start), together):
        start, exact = (part[begin : begin + together] for part in (problem.start, problem.end))
        shifts = [torch.zeros(w.shape[1], len(start), dtype=start.dtype).requires_grad_(True) for w in table.weights]
        with torch.enable_grad():
            end, known = table.run(problem.noise, start, shifts)
        if not end.requires_grad:
            raise FieldError("the field can't be differentiated: its answer has no gradient in x")
        error = (end - exact).detach()
        length = error.norm(dim=1)
        along, share, slope = output_directions(error, length, count, generator)
        weight = torch.cat([reweighted(part, _LEAST_WEIGHT) for part in length.split(_CHUNK)])
        for k in range(along.shape[1]):
            found = torch.autograd.grad((end * along[:, k]).sum(), shifts, retain_graph=k + 1 < along.shape[1])
            root = (weight * share[:, k]).sqrt()
            own = _by_weights(known, [g * root for g in found], room[:, : len(start)])
            equations.add_scaled(own.T, root * slope[:, k] / share[:, k])
    return equations.gradient, equations.curvature


def _by_weights(known: Sequence[Tensor], by_numbers: Sequence[Tensor], room: Tensor) -> Tensor:
    """Derivatives (P, B) by W, written into ``room``, from those by the sample's own numbers: times phi, 1 and the units."""
    at = 0
    for units, own in zip(known, by_numbers, strict=True):
        wide, count = units.shape[0], own.shape[0]
        room[at : at + count] = own
        torch.mul(units.detach()[:, None], own, out=room[at + count : at + count * (wide + 1)].view(wide, count, -1))
        at += count * (wide + 1)
    return room
