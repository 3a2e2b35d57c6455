r"""Free levels of runs that know the data, and their training by differences of whole runs, whatever makes these.

A run that jumps first has N + 1 steps for N evaluations: the jump from the path's first level to a free one, and N steps
from there. Its N free levels are those of a grid of N + 1 steps, told by the logarithms of the steps in log rho relative to
the last (:func:`to_shares`). The rows of such runs have a coefficient for each direction of the data, so that they have no
common form; the derivative of the end by a free number is a central difference of two runs, without a gradient of the field.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.learned.fitting.gauss_newton import LEAST_WEIGHT, Fit, Problem, descend
from diffode.learned.fitting.parameters import from_shares, to_shares
from diffode.learned.request import Request
from diffode.numerics.least_squares import NormalEquations, reweighted
from diffode.paths import Path
from diffode.statistics import Statistics

#: Levels to which runs jump that a training begins from, in the data's largest deviations.
_JUMPS = (0.1, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)
#: Exponents of the power grids that are laid from there.
_AFTER = (1, 2, 3, 5)
#: Exponents of the power grids of runs that do not jump.
_WITHOUT = (1, 2, 3, 5, 7)
#: Number of starts on which these grids are compared.
_FEW_STARTS = 64
#: Number of them that are trained beside the grid that was asked for.
_CANDIDATES = 3
#: First level over the last where the data are one Gaussian, of which a jump leaves nothing to do.
_AT_THE_END = 1 + 1e-6
#: Half the step of a central difference in a free number.
_STEP = 1e-5
#: Smallest curvature of a free number as a share of the largest: a step may have no influence.
_LEAST_CURVATURE = 1e-10
#: Steps without a smaller held-out error after which the next ends a training.
_PATIENCE = 15


@dataclass(frozen=True)
class FreeLevels(ABC):
    """The levels of a run on the path of a field, of which those between the ends are free.

    Attributes:
        statistics: mean and covariance of the data.
        field, path: the field and its path.
        steps: number of steps after the jump, or of all steps if there is none.
    """

    statistics: Statistics
    field: Field
    path: Path
    steps: int

    @property
    @abstractmethod
    def name(self) -> str:
        """What runs, for errors."""

    @property
    @abstractmethod
    def jumps(self) -> bool:
        """Whether a run begins with a jump."""

    @abstractmethod
    def end(self, values: Tensor, problem: Problem) -> Tensor:
        """The ends x/alpha (B, D) of the runs from a problem's starts, for free numbers (size,); ArgumentError for some."""

    @abstractmethod
    def own(self, grid: str) -> Tensor | None:
        """The free numbers of the run as it was asked for, on a grid; None if its jump leaves no step."""

    @property
    def ends(self) -> tuple[float, float]:
        """The path's first and last level."""
        return self.path.rho(self.path.t_max), self.path.rho(self.path.t_min)

    def times(self, values: Tensor) -> list[float]:
        """The times of a run for the free numbers of its levels, the path's own at both ends."""
        inner = from_shares(values, *self.ends)[1:-1].tolist()
        return [self.path.t_max, *map(self.path.time_from_rho, inner), self.path.t_min]

    def error(self, values: Tensor, problem: Problem) -> float:
        """Mean end-point error in units of the scale; infinite for levels that no run can have."""
        try:
            return error_of(self.end(values, problem), problem)
        except (ArgumentError, OverflowError):
            # A trial step went so far that two levels met.
            return math.inf

    def equations(self, values: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        """Gradient and Gauss-Newton matrix of the mean error by the free numbers."""
        error = self.end(values, problem) - problem.end
        length = error.norm(dim=1)
        weight = reweighted(length, LEAST_WEIGHT)[:, None].expand_as(error) / (len(length) * problem.unit)
        columns = []
        for k in range(len(values)):
            shift = torch.zeros_like(values)
            shift[k] = _STEP
            up, down = (self.end(values + sign * shift, problem) for sign in (1, -1))
            columns.append(((up - down) / (2 * _STEP)).flatten())
        equations = NormalEquations(len(values))
        rows, weights = torch.stack(columns, dim=1).double(), weight.flatten().double()
        equations.add(rows, weights * error.flatten(), weights)
        return equations.gradient, equations.curvature

    def others(self) -> Iterator[Tensor]:
        """Free numbers of further grids that a training may begin from, of several jumps and exponents."""
        first, last = self.ends
        if not self.jumps:
            yield from (self._power(first, exponent, ()) for exponent in _WITHOUT)
            return
        if self.statistics.gaussian:
            yield self._power(last * _AT_THE_END, 1, (first,))
        # On data that are large beside the path, jumps begin where it does.
        unit = min(self.statistics.largest, first / (2 * _JUMPS[-1]))
        for jump, exponent in itertools.product(_JUMPS, _AFTER):
            if jump * unit > last:
                yield self._power(jump * unit, exponent, (first,))

    def _power(self, begin: float, exponent: float, before: tuple[float, ...]) -> Tensor:
        share = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        high, low = begin ** (1 / exponent), self.ends[1] ** (1 / exponent)
        return to_shares(torch.cat([share.new_tensor(before), (high + share * (low - high)) ** exponent]))


def error_of(end: Tensor, problem: Problem) -> float:
    """Mean end-point error of ends (B, D) in units of the scale; infinite if a run overflowed."""
    value = float((end - problem.end).norm(dim=1).mean()) / problem.unit
    return value if math.isfinite(value) else math.inf


def begun(levels: FreeLevels, problem: Problem, grid: str) -> list[Tensor]:
    """The free numbers of what a training begins from: the solver as it was asked for, and the best others on a few starts."""
    few = replace(problem, start=problem.start[:_FEW_STARTS], end=problem.end[:_FEW_STARTS])
    own = levels.own(grid)
    ranked = sorted((levels.error(values, few), k, values) for k, values in enumerate(levels.others()))
    found = ([] if own is None else [own]) + [values for error, _, values in ranked[:_CANDIDATES] if math.isfinite(error)]
    if not found or not len(found[0]):
        raise ArgumentError(
            f"a grid of {levels.steps} step of {levels.name!r} has nothing to train"
            if found
            else f"{levels.name!r} gives no finite states in {levels.steps} steps; look at the field first"
        )
    return found


def trained_levels(levels: FreeLevels, request: Request, grid: str, points: int, rounds: int) -> Fit:
    """The training with the least held-out error, by Gauss-Newton from the solver as asked for and from the best others."""
    problem, held_out = (request.problem(points, stream, differentiated=False) for stream in ("training", "held out"))
    best: Fit | None = None
    for number, begin in enumerate(begun(levels, problem, grid)):
        if best is not None and request.limit.reached():
            break
        try:
            found = descend(
                begin,
                lambda values: levels.error(values, problem),
                lambda values: levels.error(values, held_out),
                lambda values: levels.equations(values, problem),
                least=_LEAST_CURVATURE,
                steps=rounds,
                limit=request.limit,
                patience=_PATIENCE,
                stage=f"train the levels, begin {number + 1}",
                progress=request.progress,
            )
        except NumericalError:
            # The solver as asked for may overflow, where others do not.
            continue
        if best is None or min(found.held_out) < min(best.held_out):
            best = found
    if best is None or not math.isfinite(min(best.held_out)):
        raise NumericalError("the trained grid gives non-finite states on held-out starts")
    return best
