"""The problems that a sampler is trained on: starts, their exact ends, and a number of starts suited to the field."""

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

#: Smallest number of starts, unless it is given.
FEWEST = 192
#: Largest number of starts, unless it is given.
MOST = 4096
#: Work of a step: the number of starts, times that of derivatives, times the square root of the K D numbers of a mixture's
#: means, by which the time of evaluations grows for the registry's targets. A step takes up to 2 seconds on one core.
_WORK = 1.2e6
#: Number of components K that stands for the work of a network, or of a field without known components.
_UNKNOWN_COMPONENTS = 1000


def starts_for(field: Field, dim: int, nfe: int, longer: float = 1.0) -> int:
    """The number of starts to train on, which follows from counts alone and is the same on every machine.

    Args:
        field: an exact field of a mixture, or any other.
        dim: number of coordinates of a row.
        nfe: number of evaluations of the sampler.
        longer: time that a step may take, relative to the usual one.

    >>> from diffode import fields
    >>> [starts_for(fields.exact_field(name, "edm"), dim, 6) for name, dim in (("ring8", 2), ("digits-empirical", 64))]
    [4096, 192]
    """
    count = field.target.modes if isinstance(field, ExactField) else None
    # Each evaluation has three calls of the field and the gradients of up to four directions.
    derivatives = nfe * (3 + min(dim, 4))
    numbers = (count or _UNKNOWN_COMPONENTS) * dim
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
    """A problem of ``count`` starts from the normal prior, as samplers have them, with their exact ends.

    Args:
        field: any field.
        path: its path.
        shape: number of coordinates or shape of a row.
        count: number of starts.
        generator: source of the starts.
        trajectory: weight of the states in between; unless 0, the exact flow is computed at all levels.
        differentiated: whether the field will be differentiated, so that it is checked for gradients.

    Raises:
        ArgumentError: if a noise level at an end of the path is infinite or 0.
        FieldError: if the field can't be differentiated, but has to be.
    """
    levels = finite_levels(path)
    rows = (shape,) if isinstance(shape, int) else shape
    start = field.first_noise((count, *rows), generator=generator)
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
