r"""The common form of every deterministic one-state sampler with N evaluations, in the noise chart.

With z = x/alpha and :math:`\rho = \sigma/\alpha`, eliminating intermediate states leaves

.. math::
    z_i = c_i z_0 + \sum_{j<i} b_{ij}\, e_j, \qquad e_j = \mathrm{noise}(z_j, \rho_j), \qquad i = 1, \dots, N,

with :math:`z_N` the output. A sampler has N numbers c, N(N + 1)/2 numbers b and N - 1 inner levels; every published
deterministic solver is a point of this space. In units of the data's scale s (z/s, rho/s and b/s) a sampler has the same
numbers for every s. Its vector holds c, then b row by row, then log rho of the inner levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.arguments import number_of
from diffode.errors import ArgumentError
from diffode.fields import Field, columns
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.tableau.rows import Number, Row
from diffode.tableau.table import Tableau
from diffode.targets.target import Scalar

#: A noise prediction in the noise chart: z (B, *shape) and rho to eps (B, *shape).
NoiseFunction = Callable[[Tensor, float], Tensor]


#: The shapes of the numbers of a sampler with N evaluations.
_SHAPES = {"scales": "(N,)", "weights": "(N, N)", "levels": "(N + 1,)"}


@dataclass(frozen=True)
class Stages:
    """A sampler in common form.

    The tensors that are given are its own from then on: unlike a row, it holds no copies, since a training makes thousands of
    such samplers, each from new tensors. Give clones of tensors that are to be changed later.

    Attributes:
        scales: c, (N,) float64.
        weights: b, (N, N) float64 and lower triangular; row i makes the state after i + 1 evaluations.
        levels: rho of the start, of the inner evaluations and of the end, (N + 1,) float64.
    """

    scales: Tensor
    weights: Tensor
    levels: Tensor

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                told = f"one of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.60}"
                raise ArgumentError(f"{name} must be a real tensor {shape}, such as torch.ones(2).double(), got {told}")
        count = len(self.scales) if self.scales.ndim else 0
        if self.weights.shape != (count, count) or self.levels.shape != (count + 1,) or count < 1:
            raise ArgumentError(
                f"stages need scales (N,), weights (N, N) and levels (N + 1,), got {tuple(self.scales.shape)}, "
                f"{tuple(self.weights.shape)} and {tuple(self.levels.shape)}"
            )
        # Of so few numbers, plain ones are looked at sooner than tensors.
        levels, weights = self.levels.tolist(), self.weights.tolist()
        if not all(map(math.isfinite, itertools.chain(self.scales.tolist(), levels, *weights))):
            raise ArgumentError("stages must be finite")
        if any(level <= 0 for level in levels[:-1]) or levels[-1] < 0:
            raise ArgumentError("levels must be positive (the last may be 0)")
        if any(any(row[i + 1 :]) for i, row in enumerate(weights)):
            raise ArgumentError("weights must be lower triangular: a state uses earlier evaluations only")

    @property
    def nfe(self) -> int:
        """Number of evaluations N."""
        return len(self.scales)

    def scaled(self, unit: float) -> Stages:
        """The same sampler for data that are larger by the factor ``unit``."""
        unit = number_of("unit", unit, 0, above=True)
        return Stages(self.scales, self.weights * unit, self.levels * unit)

    def run(self, noise: NoiseFunction, start: Tensor) -> Tensor:
        """The output z_N from z_0 (B, *shape)."""
        scales, weights, levels = self.scales.tolist(), self.weights.tolist(), self.levels.tolist()
        evaluations = [noise(start, levels[0])]
        for i in range(self.nfe):
            z = torch.mul(start, scales[i])
            for weight, e in zip(weights[i], evaluations, strict=False):
                z = z.add(e, alpha=weight)
            if i + 1 < self.nfe:
                evaluations.append(noise(z, levels[i + 1]))
        return z

    def tableau(self, path: Path | str, solver: str = "", times: tuple[float, float] | None = None) -> Tableau:
        """The table on a path or its spec.

        ``times`` are those of the start and the end, if known exactly; else they are computed from the levels, with rounding.
        """
        path = get_path(path)
        at = [path.time_from_rho(float(level)) for level in self.levels]
        if times is not None:
            at[0], at[-1] = ends_of(times)
        alphas = [path.alpha(t) for t in at]
        rows = [Row(at[0])]
        for i in range(self.nfe):
            alpha = alphas[i + 1]
            weights = {j: alpha * float(self.weights[i, j]) for j in range(i + 1) if self.weights[i, j] != 0}
            rows.append(Row(at[i + 1], {0: alpha / alphas[0] * float(self.scales[i])}, weights))
        return Tableau("noise", tuple(rows), (0, self.nfe), path, solver)

    @classmethod
    def of(cls, table: Tableau) -> Stages:
        """The common form of a deterministic table written for a path.

        Raises ArgumentError if it draws noise, differs from row to row, or asks the field for its velocity or score.

        >>> from diffode import paths, solvers
        >>> edm = paths.get("edm")
        >>> Stages.of(solvers.get("ddim").tableau(edm, [4.0, 2.0, 1.0])).weights
        tensor([[-2.,  0.],
                [-2., -1.]], dtype=torch.float64)
        """
        path = check_table(table).path
        if path is None or table.draws or table.batch is not None or table.prediction not in ("noise", "denoised"):
            raise ArgumentError(
                f"the table of {table.solver!r} has no common form: it must be deterministic, on a path, one for all rows, and "
                "use the noise or the denoised prediction"
            )
        evaluated = {row: k for k, row in enumerate(table.evaluated)}
        if table.evaluated[0] != 0:
            raise ArgumentError(
                f"the table of {table.solver!r} does not evaluate the field at its start, as the common form does"
            )
        count = len(evaluated)
        times = [float(row.time) for row in table.rows]
        scale: list[Number] = [1.0]
        weight = [torch.zeros(count, dtype=torch.float64)]
        first = path.alpha(times[0])
        for row, time in zip(table.rows[1:], times[1:], strict=True):
            alpha = path.alpha(time)
            c: Number = 0.0
            b = torch.zeros(count, dtype=torch.float64)
            for j, a in row.states.items():
                share = a * (path.alpha(times[j]) / alpha)
                c, b = c + share * scale[j], b + share * weight[j]
            for j, factor in row.evaluations.items():
                share = factor / alpha
                if table.prediction == "noise":
                    b[evaluated[j]] += share
                else:
                    # D = x/alpha - rho eps.
                    c, b = c + share * scale[j], b + share * weight[j]
                    b[evaluated[j]] -= share * path.rho(times[j])
            scale.append(c)
            weight.append(b)
        wanted = [*table.evaluated[1:], table.outputs[-1]]
        levels = [path.rho(times[j]) for j in (0, *wanted)]
        if not first:
            raise ArgumentError("the common form needs alpha > 0 at the start")
        return cls(
            torch.tensor([scale[i] for i in wanted], dtype=torch.float64),
            torch.stack([weight[i] for i in wanted]),
            torch.tensor(levels, dtype=torch.float64),
        )


def check_table(table: Tableau) -> Tableau:
    """A table whose common form is asked for; ArgumentError for anything else."""
    if not isinstance(table, Tableau):
        raise ArgumentError(
            f"table must be a diffode.Tableau, which solver.tableau(path, grid, steps) gives, got {table!r:.60}"
        )
    return table


def ends_of(times: tuple[float, float]) -> tuple[float, float]:
    """The times of a start and an end that are known; ArgumentError for anything else."""
    try:
        start, end = map(float, [] if isinstance(times, str) else times)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ArgumentError(f"times must be two numbers, those of the start and the end, got {times!r:.60}") from None
    return start, end


def count_of(nfe: int) -> int:
    """Length of the vector of a sampler with ``nfe`` evaluations."""
    return nfe + nfe * (nfe + 1) // 2 + nfe - 1


def to_vector(stages: Stages) -> Tensor:
    """The vector of a sampler, (P,) with P = ``count_of(nfe)``."""
    rows, columns = torch.tril_indices(stages.nfe, stages.nfe)
    return torch.cat([stages.scales, stages.weights[rows, columns], stages.levels[1:-1].log()])


def from_vector(vector: Tensor, nfe: int, first: float, last: float) -> Stages:
    """The sampler of a vector (P,) between the levels ``first`` and ``last``."""
    inside = nfe * (nfe + 1) // 2
    rows, columns = torch.tril_indices(nfe, nfe)
    weights = torch.zeros(nfe, nfe, dtype=torch.float64)
    weights[rows, columns] = vector[nfe : nfe + inside]
    ends = torch.tensor([first, last], dtype=torch.float64)
    return Stages(vector[:nfe], weights, torch.cat([ends[:1], vector[nfe + inside :].exp(), ends[1:]]))


def noise_function(field: Field) -> Callable[[Tensor, Scalar], Tensor]:
    """The field's noise prediction as a function of z = x/alpha and rho, a number or one for each row, (B,)."""
    path = field.require_path("its noise prediction")

    def noise(z: Tensor, rho: Scalar) -> Tensor:
        t = path.time_from_rho(rho)
        return field.predict("noise", z * columns(path.alpha(t), z), t)

    return noise
