r"""Linear stability of a solver in the log-SNR, on the equation that one direction of a Gaussian obeys.

Where the denoiser is linear, :math:`D = \kappa\, x/\alpha`, the scaled state :math:`y = x/\alpha` follows
:math:`dy/d\lambda = -(1-\kappa)\, y`. For N(0, c) data :math:`\kappa = c/(c + \rho^2)` rises from 0 (pure noise) to 1 (pure
data); it exceeds 1 between modes, where trajectories part. On steps of equal length h in :math:`\lambda` a solver repeats one
linear recurrence, whose growth factor per step is compared with the exact :math:`e^{-(1-\kappa)h}`.
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
from diffode.solvers.solver import WritesTable

#: Largest number of steps of a run; in its first half the fastest mode comes to dominate.
_STEPS = 120
#: Number of last steps that are left out, since their order may be lower.
_LAST = 12
#: Largest length of a run in log-SNR, which keeps products of several noise levels inside double precision.
_LENGTH = 200.0
#: Size of a deviation below which it counts as 0.
_TINY = 1e-280
#: Shortest step in log-SNR; times that are closer are equal up to rounding.
_SHORTEST = 1e-12


def growth(solver: Solver | str, step: float, kappa: Tensor | Sequence[float]) -> Tensor:
    """Growth factor of a deviation per step of the log-SNR, on D = kappa x/alpha, with the solver's noise set to 0.

    Args:
        solver: a solver that writes tables, or its spec.
        step: length h > 0 of every step.
        kappa: slopes of the denoiser, (K,).

    Returns:
        (K,) float64: the spectral radius of the recurrence; infinite if it exceeds 1e2, 0 if a deviation vanishes within the
        run of up to 120 steps. A deviation decays if it is below 1.

    Raises:
        ArgumentError: for a wrong argument, or a solver whose steps depend on the noise level itself and overflow (ER-SDE).

    >>> found = growth("ddim", 0.5, [0.0, 0.5])
    >>> [round(1 - (1 - k) * (1 - math.exp(-0.5)) - float(g), 12) for k, g in zip((0.0, 0.5), found)]
    [0.0, 0.0]
    """
    recipe = solvers.get(solver)
    if not isinstance(recipe, WritesTable):
        raise ArgumentError(f"solver {recipe.spec!r} chooses its own steps: it has no growth factor for a given one")
    if isinstance(step, bool) or not isinstance(step, int | float):
        raise ArgumentError(f"step must be a number, got {step!r:.80}")
    if not _SHORTEST <= step <= 5:
        raise ArgumentError(f"step must lie in [{_SHORTEST:g}, 5], got {step!r}: it is a difference of log-SNR")
    try:
        slopes = torch.as_tensor(kappa, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        slopes = torch.zeros(())
    if slopes.ndim != 1 or not bool(torch.isfinite(slopes).all()):
        raise ArgumentError(f"kappa must be a vector (K,) of finite numbers, got {kappa!r:.80}")
    # x/alpha = x on EDM's path.
    path, count = paths.get("edm"), min(_STEPS, int(_LENGTH / step))
    table = recipe.tableau(path, [math.exp((count / 2 - i) * step) for i in range(count + 1)])
    field = Field.from_denoised(lambda x, t: slopes[:, None] * x, path, probe=False)
    state = torch.ones(len(slopes), 1, dtype=torch.float64)
    noise = torch.zeros(1, dtype=torch.float64)
    marks = set(table.outputs)
    ends = [torch.ones_like(slopes)]
    for row, x in table.walk(field, state, lambda k: noise):
        if row in marks:
            ends.append(x[:, 0])
    states = torch.stack(ends)
    # Late in the run one real mode or two complex ones remain: states follow x'' = a x' + b x (Prony), whose larger root is
    # the growth. The growth of the run's size is divided out first, which keeps the numbers near 1.
    early, late = count // 2, count - _LAST
    logs = states.abs().log()
    rate = (logs[late - 1] - logs[early]) / (late - 1 - early)
    places = torch.arange(early, late, dtype=torch.float64)[:, None]
    own = (states[early:late].sign() * (logs[early:late] - logs[early] - (places - early) * rate).exp()).T
    broken = ~torch.isfinite(own).all(1)
    own[broken] = 1.0
    pairs = torch.stack([own[:, 1:-1], own[:, :-2]], dim=2)
    a, b = torch.linalg.lstsq(pairs, own[:, 2:, None], driver="gelsd").solution[:, :, 0].unbind(1)
    discriminant = a.square() + 4 * b
    real = (a.abs() + discriminant.clamp(min=0).sqrt()) / 2
    factor = rate.exp() * torch.where(discriminant < 0, (-b).clamp(min=0).sqrt(), real)
    factor[broken] = math.inf
    # A deviation that a step nearly removes underflows, and its growth is 0.
    factor[states[:late].abs().amin(0) < _TINY] = 0.0
    return torch.where(torch.isfinite(factor) & (factor <= 1e2), factor, math.inf)
