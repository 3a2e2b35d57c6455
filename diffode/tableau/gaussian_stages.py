r"""The common form of samplers that jump first, in the chart of the data's Gaussian.

With mean m and variances L of the data along the directions of their covariance, z = x/alpha and :math:`\rho = \sigma/\alpha`,
a state is told by the point at which the Gaussian's flow would land at the last level,

.. math::
    w = F(\rho)\,(z - m), \qquad F(\rho) = \sqrt{\frac{L + \rho_{end}^2}{L + \rho^2}}, \qquad
    \frac{dw}{d\rho} = e = F(\rho)\left[\mathrm{noise}(z, \rho) - \frac{\rho\,(z - m)}{L + \rho^2}\right]
                         = F(\rho)\,\frac{D_G - D}{\rho} ,

with D_G what the Gaussian answers. A jump keeps w, one Gaussian has e = 0, and at the last level w = z - m, so that errors
of w are errors of z. A sampler with N evaluations is then

.. math::
    w_i = c_i w_0 + \sum_{1 \le j<i} b_{ij}\, e_j, \qquad i = 1, \dots, N + 1,

with N + 1 numbers c, N(N + 1)/2 numbers b and N levels, the first one included; all directions share them, though the rows of
its table have a coefficient for each. It is kept as :class:`Stages` with N + 1 evaluations, of which that of the start is taken
for 0 and made by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.statistics import Statistics
from diffode.tableau.rows import Number, Row
from diffode.tableau.stages import Stages, check_table, ends_of, noise_function
from diffode.tableau.table import Tableau
from diffode.targets.target import Scalar

#: Share of the first level from which on a level is the start's, whose evaluation is 0.
START = 1 - 1e-5
#: Largest difference between directions of numbers that they share, relative to the largest.
_SHARED = 1e-7


@dataclass(frozen=True)
class GaussianStages:
    """A sampler in the common form of the Gaussian's chart.

    Attributes:
        stages: c, b and the levels; the first column of b is 0.
        statistics: mean and covariance of the data, in the unit of the levels.

    Raises:
        ArgumentError: if the start's evaluation has a weight, or a level is not below the first.
    """

    stages: Stages
    statistics: Statistics

    def __post_init__(self) -> None:
        stages = self.stages
        for name, kind in (("stages", Stages), ("statistics", Statistics)):
            if not isinstance(value := getattr(self, name), kind):
                place = "diffode.tableau" if kind is Stages else "diffode"
                raise ArgumentError(f"{name} must be {place}.{kind.__name__}, got {value!r:.60}")
        if stages.nfe < 2 or bool(stages.weights[:, 0].any()):
            raise ArgumentError(
                "stages in the Gaussian's chart need at least two rows, and no weight of the start's evaluation"
            )
        if not bool((stages.levels[1:] < START * stages.levels[0]).all()):
            raise ArgumentError("levels in the Gaussian's chart must be below the first, from which the run jumps")

    @property
    def nfe(self) -> int:
        """Number of evaluations N."""
        return self.stages.nfe - 1

    def scaled(self, unit: float) -> GaussianStages:
        """The same sampler for data that are larger by the factor ``unit``."""
        return GaussianStages(self.stages.scaled(unit), self.statistics.scaled(unit))

    def tableau(self, path: Path | str, solver: str = "", times: tuple[float, float] | None = None) -> Tableau:
        """The table on a path or its spec, with a coefficient for each direction.

        ``times`` are those of the start and the end, if known exactly; else they are computed from the levels, with rounding.

        >>> import diffode
        >>> known = Statistics.of_target("ring8")
        >>> two = Stages(torch.ones(2).double(), torch.zeros(2, 2).double(), torch.tensor([80.0, 1.0, 0.002]).double())
        >>> table = GaussianStages(two, known).tableau("edm")
        >>> table.nfe, table.directed
        (0, True)
        """
        path = get_path(path)
        at = [path.time_from_rho(float(level)) for level in self.stages.levels]
        if times is not None:
            at[0], at[-1] = ends_of(times)
        alphas, levels = [path.alpha(t) for t in at], [path.rho(t) for t in at]
        factors = [factor(self.statistics, level, levels[-1])[None] for level in levels]
        pulls = [(level / (self.statistics.variances + level**2))[None] for level in levels]
        rows = [Row(at[0])]
        for i in range(self.stages.nfe):
            alpha, to = alphas[i + 1], factors[i + 1]
            share = float(self.stages.scales[i]) * factors[0] / to
            states: dict[int, Number] = {0: alpha / alphas[0] * share}
            evaluations: dict[int, Number] = {}
            mean = alpha * (1 - share)
            for j in range(1, i + 1):
                weight = float(self.stages.weights[i, j])
                if weight:
                    of_noise = alpha * weight * factors[j] / to
                    evaluations[j] = of_noise
                    states[j] = -of_noise * pulls[j] / alphas[j]
                    mean = mean + of_noise * pulls[j]
            rows.append(Row(at[i + 1], states, evaluations, mean=mean))
        return Tableau("noise", tuple(rows), (0, self.stages.nfe), path, solver, statistics=self.statistics)

    @classmethod
    def of(cls, table: Tableau) -> GaussianStages:
        """The common form of a table that begins with a jump and integrates in a chart of the data's Gaussian.

        Raises ArgumentError if it draws noise, asks the field at its start, for its velocity or its score, or has other numbers
        in other directions.

        >>> from diffode import solvers
        >>> known = Statistics.of_target("ring8")
        >>> solver = solvers.informed("ab:order=2,chart=gaussian_angle,jump=1", known)
        >>> [round(scale, 9) for scale in GaussianStages.of(solver.tableau("edm", "karras:rho=3", 2)).stages.scales.tolist()]
        [1.0, 1.0, 1.0]
        """
        path, known = check_table(table).path, table.statistics
        if path is None or known is None or table.draws or table.prediction not in ("noise", "denoised"):
            raise ArgumentError(
                f"the table of {table.solver!r} has no common form in the Gaussian's chart: it must be deterministic, on a "
                "path, with the data's statistics, and use the noise or the denoised prediction"
            )
        if not table.evaluated or table.evaluated[0] == 0:
            raise ArgumentError(f"the table of {table.solver!r} does not begin with a jump: give it jump=")
        wanted = [*table.evaluated, table.outputs[-1]]
        levels = [path.rho(float(table.rows[j].time)) for j in (0, *wanted)]
        found = _eliminated(table, path, known, levels[-1])
        scales = torch.stack([found[i][0] for i in wanted])
        weights = torch.stack([found[i][1] for i in wanted])
        offsets = torch.stack([found[i][2] for i in wanted]) * known.mean_along(known.basis.count)
        size = float(torch.cat([scales, weights.flatten(0, 1)]).abs().max())
        apart = max(float((part - part[..., :1]).abs().max()) for part in (scales, weights))
        if apart > _SHARED * size or float(offsets.abs().max()) > _SHARED * size * max(known.largest, 1e-300):
            raise ArgumentError(
                f"the table of {table.solver!r} has other numbers in other directions of the Gaussian's chart: take a solver "
                "with chart=gaussian, gaussian_angle or gaussian_asinh"
            )
        return cls(Stages(scales[..., 0], weights[..., 0], torch.tensor(levels, dtype=torch.float64)), known)


def factor(statistics: Statistics, level: Scalar, last: float) -> Tensor:
    """F(rho), by which the Gaussian's flow changes a deviation from a level to the last one, (E,), or (B, E) for (B, 1)."""
    return ((statistics.variances + last**2) / (statistics.variances + level**2)).sqrt()


def landed(statistics: Statistics, z: Tensor, level: float, last: float) -> Tensor:
    """The coordinates (B, W) of w for points z = x/alpha (B, *shape) at a level."""
    basis = statistics.basis
    return basis.into(z.flatten(1) - statistics.mean.to(z)) * basis.spread(factor(statistics, level, last)).to(z)


def raised(statistics: Statistics, w: Tensor, level: float, last: float) -> Tensor:
    """The points z (B, D) at a level that the Gaussian's flow takes to coordinates (B, W) at the last one."""
    basis = statistics.basis
    return basis.back(w / basis.spread(factor(statistics, level, last)).to(w)) + statistics.mean.to(w)


def deviation_function(
    field: Field, statistics: Statistics, first: float, last: float, shape: tuple[int, ...]
) -> Callable[[Tensor, Scalar], Tensor]:
    """e as a function of w (B, W) and rho, a number or (B,), of rows x of a ``shape``; 0 at the first level."""
    noise, basis = noise_function(field), statistics.basis

    def deviation(w: Tensor, level: Scalar) -> Tensor:
        if not isinstance(level, Tensor) and level >= START * first:
            return torch.zeros_like(w)
        column = level[:, None] if isinstance(level, Tensor) else level
        own = basis.spread(factor(statistics, column, last)).to(w)
        off = w / own
        z = (basis.back(off) + statistics.mean.to(w)).reshape(len(w), *shape)
        pull = basis.spread(column / (statistics.variances + column**2)).to(w)
        return own * (basis.into(noise(z, level).flatten(1)) - pull * off)

    return deviation


def _eliminated(table: Tableau, path: Path, known: Statistics, last: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each row the coefficients along the directions of w_0 (E,), of all e (N + 1, E) and of the mean (E,) in its w."""
    place = {row: k for k, row in enumerate(table.evaluated, start=1)}
    times = [float(row.time) for row in table.rows]
    alphas, levels = [path.alpha(t) for t in times], [path.rho(t) for t in times]
    factors = [factor(known, level, last) for level in levels]
    zero = torch.zeros_like(known.variances)
    nothing = torch.zeros(len(place) + 1, len(zero), dtype=torch.float64)
    found = [(zero + 1, nothing, zero)]
    for i, row in enumerate(table.rows[1:], start=1):
        c, b, offset = zero, nothing.clone(), zero + _along(row.mean)
        for j, value in row.states.items():
            share = _along(value) * alphas[j] / factors[j]
            c, b = c + share * found[j][0], b + share * found[j][1]
            offset = offset + _along(value) * alphas[j] + share * found[j][2]
        for j, value in row.evaluations.items():
            # The answer is answer_w w + answer_e e, and for the denoised point the mean besides.
            level, pull = levels[j], levels[j] / (known.variances + levels[j] ** 2)
            denoised = table.prediction == "denoised"
            of_w = (1 - level * pull if denoised else pull) / factors[j] * _along(value)
            b[place[j]] += (-level if denoised else 1.0) / factors[j] * _along(value)
            c, b = c + of_w * found[j][0], b + of_w * found[j][1]
            offset = offset + of_w * found[j][2] + (_along(value) if denoised else 0.0)
        share = factors[i] / alphas[i]
        found.append((c * share, b * share, offset * share - factors[i]))
    return found


def _along(value: Number) -> Number:
    return value[0] if isinstance(value, Tensor) else value
