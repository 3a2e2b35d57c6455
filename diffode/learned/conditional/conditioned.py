r"""Tables whose numbers depend on the sample: AMED's idea for every entry, trained by Gauss-Newton.

After each evaluation a few features of the state are known: its normalised size, that of the noise prediction, the angle
between them, the change of the prediction, and in few dimensions the vectors themselves. A layer of fixed random tanh units
turns them into :math:`\varphi`, and the numbers of the next row are those of a trained table plus :math:`W_i^T\varphi`. The
weights W are trained. They enter linearly, so that Gauss-Newton applies: the derivative by W is :math:`\varphi` times the
derivative by the sample's own numbers, which is exact through all later rows.

A table in the chart of the data's Gaussian is one for w, where the Gaussian's flow would land, and e = dw/d rho in place of z
and the noise prediction. Its jump keeps w, so that what is conditioned begins at the level to which it jumps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.gaussian_charts import GaussianChart
from diffode.input_files import believed
from diffode.learned.arguments import LARGEST, bounded
from diffode.learned.fitting.gauss_newton import Problem
from diffode.solvers.direct import DirectSolver, Journey, check_trained_for
from diffode.solvers.trained.bespoke import warn_of_scale
from diffode.specs import format_spec
from diffode.statistics import Statistics
from diffode.statistics.enclosed import disclosed, enclosed
from diffode.tableau.gaussian_stages import deviation_function, landed, raised
from diffode.tableau.stages import NoiseFunction, Stages, noise_function
from diffode.tensor_files import content_of, finite, float64, read_tensors, write_tensors
from diffode.training_facts import Facts, read_facts

#: Largest number of coordinates of a row whose state and prediction are features.
_MOST_COORDINATES = 8
#: Factor of W^T phi in a weight, in units of its row's step in level.
_WEIGHT_UNIT = 0.1
#: Factor of W^T phi in the scale of a state, in units of its row's step over its level.
_SCALE_UNIT = 0.01
#: Addend to the square of a norm: the derivative of the root is then a number where the vector is 0.
_TINY = 1e-300
#: Name and version of the file format.
CONDITIONED_SCHEMA = "diffode-conditioned-1"


@dataclass(frozen=True)
class Conditioned:
    """A table in the data's units, and for each of its rows a random layer and trained weights.

    Attributes:
        stages: the table, in the data's units; with statistics from the level on to which it jumps.
        unit: scale of the data.
        layers: matrix (features, units) and offset (units,) of every row.
        weights: W (units + 1, row + 2) of every row: a column for the scale, and one for each evaluation.
        facts: origin and errors, which files of older versions do not tell.
        statistics: mean and covariance of the data, for a table in the chart of their Gaussian.
        jumps_from: noise level of the start of such a table.
    """

    stages: Stages
    unit: float
    layers: tuple[tuple[Tensor, Tensor], ...]
    weights: tuple[Tensor, ...]
    facts: Facts | None = None
    statistics: Statistics | None = None
    jumps_from: float = 0.0

    def __post_init__(self) -> None:
        count = self.stages.nfe
        if self.statistics is not None and not self.jumps_from > float(self.stages.levels[0]):
            raise ArgumentError("a conditioned table in the Gaussian's chart jumps from a level above its first")
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
        return self.jumps_from or float(self.stages.levels[0]), float(self.stages.levels[-1])

    def save(self, file: str | FilePath) -> None:
        """Write the table as safetensors; raises ArgumentError if the file can't be written."""
        stages = self.stages
        parts, told = enclosed(self.statistics)
        tensors = {"scales": stages.scales, "weights": stages.weights, "levels": stages.levels, **parts}
        for i, ((matrix, offset), weights) in enumerate(zip(self.layers, self.weights, strict=True)):
            tensors |= {f"matrix_{i}": matrix, f"offset_{i}": offset, f"added_{i}": weights}
        description = {
            "schema": CONDITIONED_SCHEMA,
            "unit": self.unit,
            **told,
            **({} if self.statistics is None else {"jumps_from": self.jumps_from}),
            **({} if self.facts is None else self.facts.description()),
        }
        write_tensors(file, {k: v.contiguous() for k, v in tensors.items()}, description)

    def run(self, noise: NoiseFunction, start: Tensor, shifts: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The output from z_0 (B, D), or w_0 (B, W) in the chart, and the units (units, B) of every row.

        Phi is 1 and the units; ``shifts`` (row + 2, B) are added to W^T phi.
        """
        stages, evaluations, known = self.stages, [], []
        # With the samples last, sums over few coordinates and products with few numbers run along them.
        first = z = start.T.contiguous()
        for i in range(stages.nfe):
            level, step = float(stages.levels[i]), float(stages.levels[i] - stages.levels[i + 1])
            evaluations.append(noise(z.T.contiguous(), level).T.contiguous())
            # Layers and weights are trained on the CPU and moved to the device of the start.
            matrix, offset, weights = (part.to(z.device) for part in (*self.layers[i], self.weights[i]))
            units = _tanh_layer(self._features(z, evaluations, i), matrix, offset)
            known.append(units)
            added = torch.addmm(weights[0, :, None], weights[1:].T, units)
            if shifts is not None:
                added = added + shifts[i]
            following = torch.addcmul(first * float(stages.scales[i]), added[:1], z, value=_SCALE_UNIT * step / level)
            numbers = torch.add(stages.weights[i, : i + 1, None].to(z.device), added[1:], alpha=_WEIGHT_UNIT * step)
            for e, number in zip(evaluations, numbers, strict=True):
                following = torch.addcmul(following, e, number)
            z = following
        return z.T.contiguous(), known

    def _features(self, z: Tensor, evaluations: Sequence[Tensor], row: int) -> Tensor:
        """What is known of a state after its evaluation."""
        levels = self.stages.levels.tolist()
        if self.statistics is None:
            return features(z, evaluations, levels[row], self.unit)
        # States in the chart are as large as the data at every level, and rho e as D_Gauss - D.
        scaled = [e * (levels[row - k] / self.unit) for k, e in enumerate(reversed(evaluations[-2:]))]
        return features(z, scaled[::-1], 0.0, self.unit)

    def error(self, problem: Problem) -> float:
        """Mean end-point error in units of the scale; infinite if the run overflows."""
        with torch.no_grad():
            end = self.run(problem.noise, problem.start)[0]
        value = float((end - problem.end).norm(dim=1).mean()) / self.unit
        return value if math.isfinite(value) else math.inf


def _tanh_layer(inputs: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """The tanh of ``matrix`` (F, U) and ``offset`` (U,) applied to inputs (F, B), (U, B)."""
    # Up to the rounding of 1, tanh a is 2 sigmoid(2 a) - 1, and torch's sigmoid takes a quarter of the time of its tanh.
    twice = torch.addmm(offset[:, None], matrix.T, inputs, beta=2, alpha=2)
    return twice.sigmoid().mul(2).sub(1)


def features(z: Tensor, evaluations: Sequence[Tensor], level: float, unit: float) -> Tensor:
    """Features (F, B) of states and evaluations (D, B).

    They are the sizes of state and prediction, their angle, the prediction's change, in few dimensions the vectors.
    """
    state = z / math.sqrt(level**2 + unit**2)
    latest, before = evaluations[-1], evaluations[-2] if len(evaluations) > 1 else evaluations[-1]
    count = len(z)
    # The addends keep square roots differentiable where a state or a change is 0, as the change is in the first row.
    norms = [(v.square().sum(0, keepdim=True) / count + _TINY).sqrt() for v in (state, latest)]
    angle = (state * latest).sum(0, keepdim=True) / (count * norms[0] * norms[1] + 1e-12)
    change = ((latest - before).square().sum(0, keepdim=True) / count + 1e-12).sqrt()
    along = (latest * before).sum(0, keepdim=True) / count
    vectors = [state, latest] if count <= _MOST_COORDINATES else []
    return torch.cat([*norms, angle, change, along, *vectors])


@dataclass(frozen=True, kw_only=True)
class ConditionedSolver(DirectSolver):
    """A trained conditioned table as a solver: ``solve(field, x, solver=trained.solver, grid=[start, end])``."""

    table: Conditioned = field(repr=False)
    file: str = ""

    needs_path = True
    name = "conditioned"
    reference = "after Zhou et al., arXiv 2312.00094, with every number of a table predicted"

    @property
    @override
    def chart_name(self) -> str:
        return "noise" if self.table.statistics is None else GaussianChart.name

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
        own = content_of(self.table.weights)
        return own if self.table.statistics is None else own + self.table.statistics.content

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
        statistics = self.table.statistics
        if statistics is not None:
            statistics.check_dim(math.prod(x.shape[1:]))
        inputs = self.table.layers[0][0].shape[0]
        width = math.prod(x.shape[1:])
        if inputs != input_count(width if statistics is None else statistics.basis.width):
            raise ArgumentError(
                f"this table was trained on rows of another number of coordinates than x, {tuple(x.shape)}, has"
            )
        if x.dtype != torch.float64:
            raise ArgumentError(f"a conditioned table runs in float64, x is {x.dtype}: use x.double()")
        warn_of_scale(self.file or "this conditioned table", self.table.unit, field.scale)
        with torch.no_grad():
            z = x / path.alpha(times[0])
            if statistics is None:
                end = self.table.run(flattened(noise_function(field), x.shape[1:]), z.flatten(1))[0]
            else:
                deviation = deviation_function(field, statistics, *known, tuple(x.shape[1:]))
                w = self.table.run(deviation, landed(statistics, z, *known))[0]
                end = raised(statistics, w, known[1], known[1])
        return Journey(torch.stack([x, (end * path.alpha(times[-1])).reshape(x.shape)]))


def load_conditioned(file: str | FilePath) -> ConditionedSolver:
    """Read a conditioned table from a file; it is also the solver ``conditioned:file=FILE``.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if the file does not hold a conditioned table.
    """
    description, stored = read_tensors(file, CONDITIONED_SCHEMA)
    with believed(file, "a conditioned table"):
        statistics, tensors = disclosed(description, stored)
        stages = Stages(*(float64(tensors, name, ndim) for name, ndim in (("scales", 1), ("weights", 2), ("levels", 1))))
        if len(tensors) != 3 + 3 * stages.nfe:
            raise ValueError("it must hold a table, and for each of its rows a layer and weights")
        layers = tuple((float64(tensors, f"matrix_{i}", 2), float64(tensors, f"offset_{i}", 1)) for i in range(stages.nfe))
        unit = bounded(finite(description, "unit"), "unit")
        if bool((stages.levels[:-1] > LARGEST).any()) or not stages.levels[-1] < stages.levels[0]:
            raise ValueError(f"levels must not exceed {LARGEST:g}, and the last must be below the first")
        added = tuple(float64(tensors, f"added_{i}", 2) for i in range(stages.nfe))
        facts = Facts(**read_facts(description)) if "held_out_error" in description else None
        jumps_from = 0.0 if statistics is None else finite(description, "jumps_from")
        if jumps_from > LARGEST:
            raise ValueError(f"jumps_from must not exceed {LARGEST:g}")
        table = Conditioned(stages, unit, layers, added, facts, statistics, jumps_from)
        return ConditionedSolver(table=table, file=str(file))


def flattened(noise: NoiseFunction, shape: Sequence[int]) -> NoiseFunction:
    """The noise prediction on rows (B, D), from that on rows of another shape."""
    return lambda z, level: noise(z.reshape(-1, *shape), level).flatten(1)


def input_count(width: int) -> int:
    """Number of features of a row of ``width`` coordinates."""
    return 5 + (2 * width if width <= _MOST_COORDINATES else 0)
