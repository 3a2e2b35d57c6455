r"""Tables whose numbers depend on the sample: AMED's idea for every entry, trained by Gauss-Newton.

After each evaluation a few features of the state are known: its normalised size, that of the noise prediction, the angle
between them, the change of the prediction, and in few dimensions the vectors themselves. A layer of fixed random tanh units
turns them into :math:`\varphi`, and the numbers of the next row are those of a trained table plus :math:`W_i^T\varphi`. The
weights W are trained. They enter linearly, so that Gauss-Newton applies: the derivative by W is :math:`\varphi` times the
derivative by the sample's own numbers, which is exact through all later rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath

import torch
from torch import Tensor
from typing_extensions import override

from diffode.arguments import check_count
from diffode.errors import ArgumentError, FieldError
from diffode.fields import Field
from diffode.input_files import believed
from diffode.learned.arguments import LARGEST, bounded, finite_levels
from diffode.learned.fitting.gauss_newton import Problem, descend, output_directions
from diffode.learned.fitting.problems import starts_for
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress
from diffode.learned.request import Request, with_gradients
from diffode.learned.trained import History, Trained, check_trained
from diffode.numerics.least_squares import NormalEquations, reweighted
from diffode.paths import Path
from diffode.solvers.direct import DirectSolver, Journey, check_trained_for
from diffode.solvers.trained.checkpoints import Checkpoint
from diffode.specs import format_spec
from diffode.tableau.stages import NoiseFunction, Stages, noise_function
from diffode.targets import Target
from diffode.tensor_files import content_of, finite, float64, read_tensors, write_tensors
from diffode.training_facts import Facts, read_facts

#: Largest number of coordinates of a row whose state and prediction are features.
_MOST_COORDINATES = 8
#: Factor of W^T phi in a weight, in units of its row's step in level.
_WEIGHT_UNIT = 0.1
#: Factor of W^T phi in the scale of a state, in units of its row's step over its level.
_SCALE_UNIT = 0.01
#: Time of a step relative to a table's: conditioning takes few steps for many numbers, so that it trains on more starts.
_LONGER_STEPS = 3
#: Number of starts whose graphs are in memory together.
_CHUNK = 1024
#: Name and version of the file format.
CONDITIONED_SCHEMA = "diffode-conditioned-1"
#: Damping of the first step, in units of the curvature's diagonal.
_DAMPING = 1e-2
#: Shortest error as a share of the median; a shorter one weighs as much as this one.
_LEAST_WEIGHT = 0.05
#: Smallest entry of the curvature's diagonal as a share of the largest; smaller ones are scaled as this one.
_LEAST_CURVATURE = 1e-12


@dataclass(frozen=True)
class Conditioned:
    """A table in the data's units, and for each of its rows a random layer and trained weights.

    Attributes:
        stages: the table, in the data's units.
        unit: scale of the data.
        layers: matrix (features, units) and offset (units,) of every row.
        weights: W (units + 1, row + 2) of every row: a column for the scale, and one for each evaluation.
        facts: origin and errors, which files of older versions do not tell.
    """

    stages: Stages
    unit: float
    layers: tuple[tuple[Tensor, Tensor], ...]
    weights: tuple[Tensor, ...]
    facts: Facts | None = None

    def __post_init__(self) -> None:
        count = self.stages.nfe
        if len(self.layers) != count or len(self.weights) != count:
            raise ArgumentError(f"a conditioned table needs a layer and weights for each of its {count} rows")
        inputs, units = self.layers[0][0].shape
        for i, ((matrix, offset), weights) in enumerate(zip(self.layers, self.weights, strict=True)):
            shapes = (tuple(matrix.shape), tuple(offset.shape), tuple(weights.shape))
            if shapes != ((inputs, units), (units,), (units + 1, i + 2)):
                raise ArgumentError(f"row {i} of a conditioned table has a layer and weights of shapes {shapes}")
        if not self.unit > 0:
            raise ArgumentError(f"the unit of a conditioned table must be positive, got {self.unit!r}")

    @property
    def ends(self) -> tuple[float, float]:
        """Noise levels of the start and of the end."""
        return float(self.stages.levels[0]), float(self.stages.levels[-1])

    def save(self, file: str | FilePath) -> None:
        """Write the table as safetensors; raises ArgumentError if the file can't be written."""
        stages = self.stages
        tensors = {"scales": stages.scales, "weights": stages.weights, "levels": stages.levels}
        for i, ((matrix, offset), weights) in enumerate(zip(self.layers, self.weights, strict=True)):
            tensors |= {f"matrix_{i}": matrix, f"offset_{i}": offset, f"added_{i}": weights}
        description = {
            "schema": CONDITIONED_SCHEMA,
            "unit": self.unit,
            **({} if self.facts is None else self.facts.description()),
        }
        write_tensors(file, {k: v.contiguous() for k, v in tensors.items()}, description)

    def run(self, noise: NoiseFunction, start: Tensor, shifts: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The output from z_0 (B, D), and phi (B, units + 1) of every row; ``shifts`` (B, row + 2) are added to W^T phi."""
        stages, evaluations, known = self.stages, [], []
        z = start
        for i in range(stages.nfe):
            level, step = float(stages.levels[i]), float(stages.levels[i] - stages.levels[i + 1])
            evaluations.append(noise(z, level))
            # Layers and weights are trained on the CPU and moved to the device of the start.
            matrix, offset, weights = (part.to(z.device) for part in (*self.layers[i], self.weights[i]))
            units = torch.tanh(features(z, evaluations, level, self.unit) @ matrix + offset)
            phi = torch.cat([torch.ones_like(units[:, :1]), units], dim=1)
            known.append(phi)
            added = phi @ weights
            if shifts is not None:
                added = added + shifts[i]
            following = start * float(stages.scales[i]) + _SCALE_UNIT * step / level * added[:, :1] * z
            for j, e in enumerate(evaluations):
                following = following + e * (float(stages.weights[i, j]) + _WEIGHT_UNIT * step * added[:, j + 1 : j + 2])
            z = following
        return z, known

    def error(self, problem: Problem) -> float:
        """Mean end-point error in units of the scale; infinite if the run overflows."""
        with torch.no_grad():
            end = self.run(problem.noise, problem.start)[0]
        value = float((end - problem.end).norm(dim=1).mean()) / self.unit
        return value if math.isfinite(value) else math.inf


def features(z: Tensor, evaluations: Sequence[Tensor], level: float, unit: float) -> Tensor:
    """Features (B, F): sizes of state and prediction, their angle, the prediction's change, in few dimensions the vectors."""
    state = z / math.sqrt(level**2 + unit**2)
    latest, before = evaluations[-1], evaluations[-2] if len(evaluations) > 1 else evaluations[-1]
    size = math.sqrt(z.shape[1])
    norms = [v.norm(dim=1, keepdim=True) / size for v in (state, latest)]
    angle = (state * latest).sum(1, keepdim=True) / (size**2 * norms[0] * norms[1] + 1e-12)
    # The addend keeps the square root differentiable in the first row, where the change is 0.
    change = ((latest - before).square().sum(1, keepdim=True) / size**2 + 1e-12).sqrt()
    along = (latest * before).sum(1, keepdim=True) / size**2
    vectors = [state, latest] if z.shape[1] <= _MOST_COORDINATES else []
    return torch.cat([*norms, angle, change, along, *vectors], dim=1)


@dataclass(frozen=True, kw_only=True)
class ConditionedSolver(DirectSolver):
    """A trained conditioned table as a solver: ``solve(field, x, solver=trained.solver, grid=[start, end])``."""

    table: Conditioned = field(repr=False)
    file: str = ""

    needs_path = True
    name = "conditioned"
    reference = "after Zhou et al., arXiv 2312.00094, with every number of a table predicted"

    @property
    def spec(self) -> str:
        """The solver's spec, with the file that it was read from, if any."""
        return format_spec(self.name, {"file": self.file} if self.file else {})

    @property
    def nfe(self) -> int:
        """Number of evaluations of a run."""
        return self.table.stages.nfe

    def check_nfe(self, nfe: int) -> None:
        """Raise BudgetError unless a run costs exactly ``nfe`` evaluations."""
        check_trained_for(self, self.nfe, nfe)

    @override
    def content(self) -> str:
        return content_of(self.table.weights)

    @property
    def order(self) -> None:
        """None, which claims no order of convergence: the table is trained for one number of evaluations."""
        return None

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        path = field.require_path("a conditioned table")
        known = self.table.ends
        levels = path.rho(times[0]), path.rho(times[-1])
        if len(times) != 2 or any(abs(a - b) > 0.01 * b for a, b in zip(levels, known, strict=True)):
            raise ArgumentError(
                f"this table was trained from noise level {known[0]:.4g} to {known[1]:.4g}: give grid=[start, end] at these"
            )
        inputs = self.table.layers[0][0].shape[0]
        width = math.prod(x.shape[1:])
        if inputs != _inputs(width):
            raise ArgumentError(
                f"this table was trained on rows of another number of coordinates than x, {tuple(x.shape)}, has"
            )
        if x.dtype != torch.float64:
            raise ArgumentError(f"a conditioned table runs in float64, x is {x.dtype}: use x.double()")
        with torch.no_grad():
            noise = _flattened(noise_function(field), x.shape[1:])
            end = self.table.run(noise, x.flatten(1) / path.alpha(times[0]))[0] * path.alpha(times[-1])
        return Journey(torch.stack([x, end.reshape(x.shape)]))


def load_conditioned(file: str | FilePath) -> ConditionedSolver:
    """Read a conditioned table from a file; it is also the solver ``conditioned:file=FILE``.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if the file does not hold a conditioned table.
    """
    description, tensors = read_tensors(file, CONDITIONED_SCHEMA)
    with believed(file, "a conditioned table"):
        stages = Stages(*(float64(tensors, name, ndim) for name, ndim in (("scales", 1), ("weights", 2), ("levels", 1))))
        if len(tensors) != 3 + 3 * stages.nfe:
            raise ValueError("it must hold a table, and for each of its rows a layer and weights")
        layers = tuple((float64(tensors, f"matrix_{i}", 2), float64(tensors, f"offset_{i}", 1)) for i in range(stages.nfe))
        unit = bounded(finite(description, "unit"), "unit")
        if bool((stages.levels[:-1] > LARGEST).any()) or not stages.levels[-1] < stages.levels[0]:
            raise ValueError(f"levels must not exceed {LARGEST:g}, and the last must be below the first")
        added = tuple(float64(tensors, f"added_{i}", 2) for i in range(stages.nfe))
        facts = Facts(**read_facts(description)) if "held_out_error" in description else None
        table = Conditioned(stages, unit, layers, added, facts)
        return ConditionedSolver(table=table, file=str(file))


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
        trained: the result of :func:`diffode.learned.train_table`, or its checkpoint, which may come from a file.
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
    """
    checkpoint: Checkpoint = check_trained(trained, Checkpoint, "what train_table gave or its checkpoint")
    if checkpoint.statistics is not None:
        raise ArgumentError(
            "trained is a table in the Gaussian's chart, which can't be conditioned: train one with chart='noise'"
        )
    request = Request.of("condition", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    limit, unit, width = request.limit, request.field.scale, request.width
    own, wanted = checkpoint.stages.scaled(unit).levels[[0, -1]].tolist(), finite_levels(request.path)
    if any(abs(a - b) > 0.01 * b for a, b in zip(own, wanted, strict=True)):
        raise ArgumentError(
            f"trained goes from noise level {own[0]:.4g} to {own[1]:.4g} at the scale of this field, its path from "
            f"{wanted[0]:.4g} to {wanted[1]:.4g}: condition a table that was trained on this field and path"
        )
    if points is None:
        points = starts_for(request.field, width, checkpoint.stages.nfe, _LONGER_STEPS)
    for name, value, least in (
        ("units", units, 1), ("points", points, 1), ("steps", steps, 1), ("patience", patience, 0),
        ("directions", directions, 2),
    ):  # fmt: skip
        check_count(name, value, least)
    problem, held_out = (
        _flat(request.problem(n, stream)) for n, stream in ((points, "training"), (max(points // 4, 64), "held out"))
    )
    layers, directions_of = request.stream("layers"), request.stream("directions")
    inputs = _inputs(width)
    count = checkpoint.stages.nfe

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=layers, dtype=torch.float64)

    table = Conditioned(
        checkpoint.stages.scaled(unit),
        unit,
        tuple((normal(inputs, units), normal(units)) for _ in range(count)),
        tuple(torch.zeros(units + 1, i + 2, dtype=torch.float64) for i in range(count)),
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


def _flattened(noise: NoiseFunction, shape: Sequence[int]) -> NoiseFunction:
    """The noise prediction on rows (B, D), from that on rows of another shape."""
    return lambda z, level: noise(z.reshape(-1, *shape), level).flatten(1)


def _flat(problem: Problem) -> Problem:
    noise = _flattened(problem.noise, problem.start.shape[1:])
    return replace(problem, noise=noise, start=problem.start.flatten(1))


def _inputs(width: int) -> int:
    """Number of features of a row of ``width`` coordinates."""
    return 5 + (2 * width if width <= _MOST_COORDINATES else 0)


def _with(table: Conditioned, values: Tensor) -> Conditioned:
    """The table with ``values`` as its weights W."""
    parts = torch.split(values, [w.numel() for w in table.weights])
    return replace(table, weights=tuple(part.reshape(w.shape) for w, part in zip(table.weights, parts, strict=True)))


def normal_equations(table: Conditioned, problem: Problem, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gradient and Gauss-Newton matrix of the mean error by all W."""
    equations = NormalEquations(sum(w.numel() for w in table.weights))
    for begin in range(0, len(problem.start), _CHUNK):
        start, exact = (part[begin : begin + _CHUNK] for part in (problem.start, problem.end))
        shifts = [torch.zeros(len(start), w.shape[1], dtype=start.dtype).requires_grad_(True) for w in table.weights]
        with torch.enable_grad():
            end, known = table.run(problem.noise, start, shifts)
        if not end.requires_grad:
            raise FieldError("the field can't be differentiated: its answer has no gradient in x")
        error = (end - exact).detach()
        length = error.norm(dim=1)
        along, share, slope = output_directions(error, length, count, generator)
        weight = reweighted(length, _LEAST_WEIGHT)
        for k in range(along.shape[1]):
            found = torch.autograd.grad((end * along[:, k]).sum(), shifts, retain_graph=k + 1 < along.shape[1])
            own = torch.cat(
                [(phi.detach()[:, :, None] * g[:, None]).flatten(1) for phi, g in zip(known, found, strict=True)], dim=1
            )
            equations.add(own, weight * slope[:, k], weight * share[:, k])
    return equations.gradient, equations.curvature
