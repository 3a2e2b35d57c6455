r"""Training samplers by a Gauss-Newton method on the mean end-point error, with exact derivatives.

The mean of |r|, r the error of a sample, is minimised by iteratively re-weighted least squares with weights 1/|r| and
Levenberg-Marquardt damping. A table has fewer than a hundred numbers, whose sensitivities differ by many decades; some tens of
these steps reach errors that thousands of steps of stochastic gradients do not.

In few dimensions the derivative of every coordinate is computed. In many, derivatives are computed along r, which gives the
exact gradient, and along random directions orthogonal to r, which give an unbiased estimate of the curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError
from diffode.learned.fitting.parameters import Parameters
from diffode.learned.fitting.sensitivities import Recording
from diffode.learned.fitting.trajectory import Trajectory
from diffode.learned.limit import Limit
from diffode.learned.progress import Progress, Step
from diffode.numerics.least_squares import NormalEquations, Scaled, reweighted
from diffode.randomness import keyed
from diffode.tableau.stages import NoiseFunction, Stages
from diffode.training_facts import STOPPED_BY, StoppedBy

#: Shortest error as a share of the median; a shorter one weighs as much as this one.
LEAST_WEIGHT = 0.02
#: Damping of the first step, in units of the curvature's diagonal.
_DAMPING = 1e-3
#: Divisor of the damping after a step that lowers the loss.
_EASE = 5.0
#: Factor of the damping after a step that does not.
_TIGHTEN = 4.0
#: Number of dampings that a step is tried with before the training ends.
_TRIALS = 8
#: Relative fall of the loss below which a step's gain is small.
_SMALL_GAIN = 1e-4
#: Number of small gains in a row that end the training.
_SMALL_GAINS = 5


@dataclass(frozen=True)
class Problem:
    """Starts in the noise chart, and the ends to which the exact flow takes them.

    Attributes:
        noise: the field's noise prediction at z = x/alpha and a noise level.
        start: starts z, (B, *shape).
        end: exact ends, (B, D).
        unit: scale of the data.
        first, last: noise levels of start and end, in units of the scale.
        trajectory: the exact flow in between, if the states there count too.
        share: weight of their mean error, in units of the data's spread at their level; that of the end weighs 1.
        landed: whether states are told by where they would land, so that their spread is the scale at every level.
    """

    noise: NoiseFunction
    start: Tensor
    end: Tensor
    unit: float
    first: float
    last: float
    trajectory: Trajectory | None = None
    share: float = 0.0
    landed: bool = False

    @property
    def dim(self) -> int:
        """Number of coordinates of a start."""
        return self.start[0].numel()

    def error(self, stages: Stages) -> float:
        """Mean end-point error in units of the scale, plus the weighted errors in between; infinite if the run overflows."""
        run = stages.scaled(self.unit)
        states: list[Tensor] = []

        def noise(z: Tensor, level: float) -> Tensor:
            states.append(z)
            return self.noise(z, level)

        with torch.no_grad():
            end = run.run(noise, self.start)
        value = sum(
            row.weight * float((z.flatten(1) - row.exact).norm(dim=1).mean())
            for z, row in zip([*states[1:], end], self.wanted(run), strict=True)
            if row.weight
        )
        return value if math.isfinite(value) else math.inf

    def wanted(self, run: Stages) -> list[Wanted]:
        """For every row of a run (in the data's units) the exact state at its level, and the weight of its error."""
        rows = []
        for level in run.levels[1:-1].tolist():
            if self.trajectory is None:
                rows.append(Wanted(0.0, self.end))
            else:
                noise = 0.0 if self.landed else level**2
                variance = self.unit**2 + noise
                weight = self.share / (run.nfe - 1) / math.sqrt(variance)
                rows.append(Wanted(weight, *self.trajectory.at(level), -weight * noise / variance))
        return [*rows, Wanted(1 / self.unit, self.end)]


class Wanted(NamedTuple):
    """The weight of a row's error and the row's exact state.

    Attributes:
        weight: weight of the mean error.
        exact: exact state, (B, D).
        rate: derivative of ``exact`` by the logarithm of the row's level, if that is free.
        weight_rate: derivative of ``weight`` by the same logarithm.
    """

    weight: float
    exact: Tensor
    rate: Tensor | None = None
    weight_rate: float = 0.0


@dataclass(frozen=True)
class Fit:
    """The result of a training.

    Attributes:
        values: parameters (size,) with the smallest loss on the held-out problems.
        training, held_out: losses at the beginning and after every step.
        seconds: time of the training.
        stopped_by: ``"counts"``, ``"seconds"`` or ``"request"``, whichever ended it.
    """

    values: Tensor
    training: tuple[float, ...]
    held_out: tuple[float, ...]
    seconds: float
    stopped_by: StoppedBy = "counts"


def fit(
    parameters: Parameters,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    *,
    start: Tensor | None = None,
    loss: Literal["mean", "log"] = "mean",
    floor: float = 0.0,
    steps: int = 100,
    limit: Limit | None = None,
    patience: int = 15,
    directions: int = 4,
    seed: int = 0,
    stage: str = "fit",
    progress: Progress | None = None,
) -> Fit:
    """Minimise the mean error over problems, or with ``loss="log"`` the mean log error, so that all problems count alike.

    Args:
        parameters: the free numbers of a sampler.
        problems: problems to train on.
        held_out: problems that decide which step's parameters are returned.
        start: first parameters (size,); those of ``parameters`` unless given.
        loss: ``"mean"`` or ``"log"``: the mean of the problems' errors or of their logarithms.
        floor: addend to a problem's error before its logarithm, which keeps easy problems from dominating.
        steps: largest number of steps.
        limit: limit of time and a request to stop; at least one step is taken.
        patience: number of steps without a smaller loss on ``held_out`` after which the next one ends the training.
        directions: number of derivatives for each sample, if it has more dimensions than that.
        seed: seed of the random directions.
        stage: what is trained, in words, for ``progress``.
        progress: called with every :class:`Step`, whose errors are the losses.

    Raises:
        NumericalError: if the loss is not finite at the start.
    """
    generator = keyed(seed, "fit", "directions")
    first, last = min(problem.first for problem in problems), max(problem.last for problem in problems)
    return descend(
        parameters.start if start is None else start,
        lambda values: loss_of(parameters, values, problems, loss, floor),
        lambda values: loss_of(parameters, values, held_out, loss, floor),
        lambda values: normal_equations(parameters, values, problems, loss, floor, directions, generator),
        logarithmic=loss == "log",
        steps=steps,
        limit=limit,
        patience=patience,
        stage=stage,
        progress=progress,
        confined=lambda values: parameters.confined(values, first, last),
    )


def descend(
    values: Tensor,
    training_loss: Callable[[Tensor], float],
    held_out_loss: Callable[[Tensor], float],
    equations: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    logarithmic: bool = False,
    damping: float = _DAMPING,
    least: float = 0.0,
    steps: int,
    limit: Limit | None,
    patience: int,
    stage: str,
    progress: Progress | None,
    confined: Callable[[Tensor], Tensor] = lambda values: values,
) -> Fit:
    """Levenberg-Marquardt from given values: every step lowers the training loss, the best on held-out problems is returned.

    ``equations`` gives gradient and curvature, which are scaled by the curvature's diagonal, whose entries count as at least
    ``least`` times the largest. A gain is relative to the loss, unless the loss is ``logarithmic``. ``confined`` moves values
    that a step took past their bounds back to them.
    """
    limit = limit or Limit()
    began, stopped_by = limit.elapsed, STOPPED_BY[0]
    current = training_loss(values)
    if not math.isfinite(current):
        raise NumericalError(
            "training can't begin: the sampler it starts from gives non-finite states; start from another solver or grid"
        )
    best, best_held = values, held_out_loss(values)
    training, checked = [current], [best_held]
    waited = small = 0
    longest, last = 0.0, limit.elapsed
    for step in range(1, steps + 1):
        system = Scaled.of(*equations(values), least)
        gain = None
        for _ in range(_TRIALS):
            move = system.step(damping)
            trial = values if move is None else confined(values - move)
            value = math.inf if move is None else training_loss(trial)
            if value < current:
                gain = current - value if logarithmic else (current - value) / current
                values, current = trial, value
                damping = max(damping / _EASE, 1e-12)
                break
            damping *= _TIGHTEN
        if gain is None:
            break
        on_others = held_out_loss(values)
        training.append(current)
        checked.append(on_others)
        if progress is not None:
            progress(Step(stage, step, steps, current, on_others))
        waited = 0 if on_others < best_held else waited + 1
        if on_others < best_held:
            best, best_held = values, on_others
        small = small + 1 if gain < _SMALL_GAIN else 0
        if waited > patience or small >= _SMALL_GAINS:
            break
        now = limit.elapsed
        longest, last = max(longest, now - last), now
        if step < steps and limit.reached(longest):
            stopped_by = limit.stopped_by
            break
    return Fit(best, tuple(training), tuple(checked), limit.elapsed - began, stopped_by)


def loss_of(
    parameters: Parameters,
    values: Tensor,
    problems: Sequence[Problem],
    loss: Literal["mean", "log"] = "mean",
    floor: float = 0.0,
) -> float:
    """The mean of the problems' errors, or of their logarithms with a floor added; infinite where numbers overflow."""
    total = 0.0
    for problem in problems:
        try:
            error = problem.error(parameters.stages(values, problem.first, problem.last, problem.dim))
        except (ArgumentError, OverflowError):
            # The trial step went so far that numbers over- or underflow.
            return math.inf
        total += math.log(max(error + floor, 1e-300)) if loss == "log" else error
    return total / len(problems)


def normal_equations(
    parameters: Parameters,
    values: Tensor,
    problems: Sequence[Problem],
    loss: str,
    floor: float,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Gradient (size,) and Gauss-Newton matrix (size, size) of the loss."""
    equations = NormalEquations(len(values))
    for problem in problems:
        stages = parameters.stages(values, problem.first, problem.last, problem.dim).scaled(problem.unit)
        recording = Recording(problem.noise, problem.start, stages)
        chain = parameters.jacobian(values, problem.first, problem.last, problem.dim)
        chain = in_units(chain, stages.nfe, problem.unit)
        wanted = problem.wanted(stages)
        overall: float = 1.0
        if loss == "log":
            errors = [
                w.weight * float((recording.state(i) - w.exact).norm(dim=1).mean()) for i, w in enumerate(wanted) if w.weight
            ]
            overall = max(sum(errors) + floor, 1e-300)
        for row, one in enumerate(wanted):
            if not one.weight:
                continue
            error = recording.state(row) - one.exact
            length = error.norm(dim=1)
            along, share, slope = output_directions(error, length, count, generator)
            raw = recording.gradients(along, row).to(torch.float64)
            if one.rate is not None:
                # The exact state and the weight belong to the row's level, which is free, so they have derivatives too.
                level = row - (stages.nfe - 1)
                raw[..., level] -= torch.einsum("bsd,bd->bs", along, one.rate).double()
                equations.gradient += chain[level] * (one.weight_rate * float(length.mean()) / len(problems) / overall)
            # The samples are last in memory, so that one product of matrices takes the derivatives by the parameters.
            own = (chain.T @ raw.permute(2, 1, 0).flatten(1)).T
            weight = (reweighted(length, LEAST_WEIGHT) * one.weight / (len(length) * len(problems)) / overall)[:, None]
            equations.add(own, (weight * slope).T.flatten().double(), (weight * share).T.flatten().double())
    return equations.gradient, equations.curvature


def in_units(chain: Tensor, nfe: int, unit: float) -> Tensor:
    """The derivatives of a sampler's numbers in the data's units: those of the weights b are multiplied by the unit."""
    scaled = chain.clone()
    scaled[nfe : nfe + nfe * (nfe + 1) // 2] *= unit
    return scaled


def output_directions(error: Tensor, length: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Directions (B, S, D), their weights in the curvature (B, S), and the error along those that give the gradient (B, S)."""
    batch, dim = error.shape
    if dim <= count:
        every = torch.eye(dim, dtype=error.dtype, device=error.device).expand(batch, dim, dim)
        return every, torch.ones(batch, dim, dtype=error.dtype, device=error.device), error
    first = error / length.clamp(min=1e-300)[:, None]
    draws = torch.randn(batch, dim, count - 1, generator=generator, dtype=torch.float64).to(error)
    basis = torch.linalg.qr(torch.cat([first[..., None], draws], dim=2)).Q.mT
    basis = torch.cat([first[:, None], basis[:, 1:]], dim=1)
    share = torch.full((batch, count), (dim - 1) / (count - 1), dtype=error.dtype, device=error.device)
    share[:, 0] = 1.0
    slope = torch.zeros_like(share)
    slope[:, 0] = length
    return basis, share, slope
