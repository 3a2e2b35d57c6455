"""What a sampler is trained on: starts, where the exact flow takes them, and how many of them a field wants."""

from __future__ import annotations

import math

from diffode.fields import ExactField, Field
from diffode.flows import flow_states
from diffode.learned.arguments import finite_levels
from diffode.learned.fitting.gauss_newton import Problem
from diffode.learned.fitting.trajectory import exact_trajectory
from diffode.paths import Path
from diffode.randomness import Randomness
from diffode.tableau.stages import noise_function

#: The fewest starts and the most that are taken unless their number is given.
FEWEST, MOST = 192, 4096
#: Starts, times the derivatives of a step, times the square root of the numbers K D of a mixture of K components: a step then
#: takes up to 2 seconds on one core, whatever the target. The square root is what evaluations of the registry's targets cost.
_WORK = 1.2e6
#: Components that a field of which none are known counts as: a network costs more than a mixture.
_UNKNOWN = 1000


def starts_for(field: Field, dim: int, nfe: int, longer: float = 1.0) -> int:
    """How many starts to train on: a rule of counts, the same on every machine.

    Args:
        field: an exact field of a mixture, or any other.
        dim: coordinates of a row.
        nfe: evaluations of the sampler.
        longer: how many times longer than usual a step may take.

    >>> from diffode import fields
    >>> [starts_for(fields.exact_field(name, "edm"), dim, 6) for name, dim in (("ring8", 2), ("digits-empirical", 64))]
    [4096, 192]
    """
    count = getattr(field.target, "count", None) if isinstance(field, ExactField) else None
    # An evaluation with its gradient and two without; the gradients of up to four directions.
    derivatives = nfe * (3 + min(dim, 4))
    numbers = (count or _UNKNOWN) * dim
    return int(min(max(longer * _WORK / derivatives / math.sqrt(numbers), FEWEST), MOST))


def problem_for(
    field: Field,
    path: Path,
    shape: int | tuple[int, ...],
    count: int,
    generator: Randomness,
    trajectory: float = 0.0,
    *,
    differentiated: bool = True,
) -> Problem:
    """Starts from the normal prior, as samplers have them, and where the exact flow takes them (at all levels, if
    ``trajectory``, the weight of states in between, is not 0). A field that will be ``differentiated`` is checked for that.
    """
    levels = finite_levels(path)
    rows = (shape,) if isinstance(shape, int) else shape
    start = path.prior((count, *rows), generator=generator)
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
