r"""Normal equations of a sampler's error from differences of runs, for fields whose derivative nobody has or asks for.

A number of row i leaves all that comes before as it is. A step of it moves the state :math:`z_i` by :math:`h z_0` (for
:math:`c_i`) or :math:`h e_j` (for :math:`b_{ij}`), or the level of the next evaluation by the factor :math:`e^h`; only the
evaluations after it are made again. Numbers of the last row need none: the output is linear in them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffode.learned.fitting.gauss_newton import LEAST_WEIGHT, Problem, in_units
from diffode.learned.fitting.parameters import Parameters
from diffode.numerics.least_squares import NormalEquations, reweighted
from diffode.tableau.stages import NoiseFunction, Stages, count_of

#: Shortest difference, relative to what it moves: near the root of float64's rounding, where that and curvature balance.
SHORTEST = 1e-7
#: Largest number of derivatives that are held at once.
_MOST_NUMBERS = 2**23


@torch.no_grad()
def equations_by_differences(
    parameters: Parameters, values: Tensor, problem: Problem, step: float = SHORTEST
) -> tuple[Tensor, Tensor]:
    """Gradient (size,) and Gauss-Newton matrix (size, size) of a problem's mean end-point error, in units of the scale.

    ``step`` is the length of a difference relative to what it moves: the root of the rounding of the field's answers, which
    for a network in float32 is a billion times that of the states. Unlike
    :func:`diffode.learned.fitting.gauss_newton.normal_equations` it asks for no derivative of the field, and takes every
    coordinate of the ends, however many there are.
    """
    stages = parameters.stages(values, problem.first, problem.last, problem.dim).scaled(problem.unit)
    chain = in_units(parameters.jacobian(values, problem.first, problem.last, problem.dim), stages.nfe, problem.unit)
    free = chain.any(dim=1)
    error = stages.run(problem.noise, problem.start).flatten(1) - problem.end
    weight = reweighted(error.norm(dim=1), LEAST_WEIGHT) / len(error) / problem.unit
    equations = NormalEquations(len(values))
    together = max(1, _MOST_NUMBERS // (len(free) * error.shape[1]))
    for block in torch.split(torch.arange(len(error)), together):
        derivatives = end_derivatives(problem.noise, problem.start[block], stages, free, step).flatten(1).to(torch.float64)
        each = weight[block].repeat_interleave(error.shape[1]).to(torch.float64)
        rows = (chain.T @ derivatives).T
        equations.add(rows, each * error[block].flatten().to(torch.float64), each)
    return equations.gradient, equations.curvature


@torch.no_grad()
def end_derivatives(noise: NoiseFunction, start: Tensor, stages: Stages, wanted: Tensor, step: float = SHORTEST) -> Tensor:
    """Derivatives (P, B, D) of the output by the numbers c, b row by row and log rho; 0 where ``wanted`` (P,) is False.

    >>> from diffode.paths import EDM
    >>> from diffode import solvers
    >>> stages = Stages.of(solvers.get("ddim").tableau(EDM(), "karras", 2))
    >>> found = end_derivatives(lambda z, rho: z / rho, torch.ones(1, 1).double(), stages, torch.ones(6, dtype=torch.bool))
    >>> found[1].tolist()  # the output is c_1 z_0 + ...
    [[1.0]]
    """
    count = stages.nfe
    scales, weights, levels = stages.scales.tolist(), stages.weights.tolist(), stages.levels.tolist()

    def state(row: int, answers: list[Tensor]) -> Tensor:
        z = torch.mul(start, scales[row])
        for weight, answer in zip(weights[row], answers, strict=False):
            z = z.add(answer, alpha=weight)
        return z

    def end(row: int, z: Tensor, level: float) -> Tensor:
        """The output where the state of a row is z and it is evaluated at a level."""
        answers = [*evaluations[: row + 1], noise(z, level)]
        for later in range(row + 1, count):
            z = state(later, answers)
            if later + 1 < count:
                answers.append(noise(z, levels[later + 1]))
        return z

    evaluations = [noise(start, levels[0])]
    states = []
    for i in range(count):
        states.append(state(i, evaluations))
        if i + 1 < count:
            evaluations.append(noise(states[i], levels[i + 1]))
    found: Tensor = start.new_zeros(count_of(count), len(start), start[0].numel())
    for i, z in enumerate(states):
        directions = {i: start}
        directions |= {count + i * (i + 1) // 2 + j: evaluation for j, evaluation in enumerate(evaluations[: i + 1])}
        for place, along in directions.items():
            if not wanted[place]:
                continue
            if i + 1 == count:
                found[place] = along.flatten(1)
            elif size := float(along.norm()):
                h = step * float(z.norm()) / size or step
                found[place] = (end(i, z + h * along, levels[i + 1]) - states[-1]).flatten(1) / h
        level = count + count * (count + 1) // 2 + i
        if i + 1 < count and wanted[level]:
            found[level] = (end(i, z, levels[i + 1] * math.exp(step)) - states[-1]).flatten(1) / step
    return found
