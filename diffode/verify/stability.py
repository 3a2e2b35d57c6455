r"""Linear stability of a solver in the log-SNR, on the equation that one direction of a Gaussian obeys.

Where the denoiser is linear, :math:`D = \kappa\, x/\alpha`, the scaled state :math:`y = x/\alpha` follows
:math:`dy/d\lambda = -(1-\kappa)\, y`. For N(0, c) data :math:`\kappa = c/(c + \rho^2)` rises from 0 (pure noise) to 1 (pure
data); it exceeds 1 between modes, where trajectories part. On steps of equal length h in :math:`\lambda` a solver repeats one
linear recurrence, and its growth factor a step is a number to hold against the exact :math:`e^{-(1-\kappa)h}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffode import paths, solvers
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.solvers import Solver
from diffode.solvers.direct import DirectSolver

#: Steps of the run, of which the first third lets the fastest mode win and the last few may have another order.
_STEPS, _LAST = 120, 12


def growth(solver: Solver | str, step: float, kappa: Tensor | Sequence[float]) -> Tensor:
    """Growth factor of a deviation per step of length ``step`` in the log-SNR, on D = kappa x/alpha; the solver's noise is 0.

    Args:
        solver: a solver that writes tables, or its spec.
        step: length h > 0 of every step.
        kappa: slopes of the denoiser, (K,).

    Returns:
        (K,) float64: the spectral radius of the recurrence, to about 1e-2 where two complex modes share it, exact to rounding
        for one-step methods; infinite where it exceeds 1e2. Below 1 the deviation dies out.

    >>> found = growth("ddim", 0.5, [0.0, 0.5])
    >>> [round(1 - (1 - k) * (1 - math.exp(-0.5)) - float(g), 12) for k, g in zip((0.0, 0.5), found)]
    [0.0, 0.0]
    """
    recipe = solvers.get(solver)
    if isinstance(recipe, DirectSolver):
        raise ArgumentError(f"solver {recipe.spec!r} chooses its own steps: it has no growth factor for a given one")
    if not 0 < step <= 5:
        raise ArgumentError(f"step must lie in (0, 5], got {step!r}: it is a difference of log-SNR")
    slopes = torch.as_tensor(kappa, dtype=torch.float64)
    if slopes.ndim != 1 or not bool(torch.isfinite(slopes).all()):
        raise ArgumentError("kappa must be a vector (K,) of finite numbers")
    # x/alpha = x on EDM's path; from 1e200 down, so that 120 steps of any length stay inside double precision.
    path = paths.get("edm")
    half = step * _STEPS / 2
    table = recipe.tableau(path, [math.exp(half - i * step) for i in range(_STEPS + 1)])
    field = Field.from_denoised(lambda x, t: slopes[:, None] * x, path, probe=False)
    state = torch.ones(len(slopes), 1, dtype=torch.float64)
    noise = torch.zeros(1, dtype=torch.float64)
    marks = set(table.outputs)
    sizes = [torch.ones_like(slopes)]
    for row, x in table.walk(field, state, lambda k: noise):
        if row in marks:
            sizes.append(x[:, 0].abs())
    logs = torch.stack(sizes).log()
    # The largest of a few states in a row, since two complex modes make a state pass through zero.
    early, late = _STEPS // 3, _STEPS - _LAST
    rise = logs[late - _LAST : late].amax(0) - logs[early - _LAST : early].amax(0)
    factor = (rise / (late - early)).exp()
    return torch.where(torch.isfinite(factor) & (factor <= 1e2), factor, math.inf)
