r"""The average velocity of an exact flow, :math:`u(x, s, t) = (\Phi(x, s \to t) - x)/(t - s)`, and the velocity at t = s.

MeanFlow (arXiv 2505.13447) trains networks to be it. The quotient loses the digits that t - s lacks: here no difference of near
points is formed.

* One Gaussian, direction by direction with :math:`l(t) = \alpha_t^2\lambda + \sigma_t^2`:

  .. math::
    u = \frac{\alpha_t - \alpha_s}{t - s}\, m + \frac{(l_t - l_s)/(t - s)}{\sqrt{l_s}\,(\sqrt{l_s} + \sqrt{l_t})}\,
        (x - \alpha_s m),

  with mean rates of alpha and sigma^2 in closed form (`mean_rates.py`).
* Every other field: the quotient where the times are far apart; where they are near, one step of the Gauss method of four
  stages (Hairer, Norsett, Wanner, II.7), which is of order 8 and whose mean slope is u.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffode.fields import Field, columns
from diffode.fields.exact import mixture_of
from diffode.flows.closed import noise_variance
from diffode.flows.mean_rates import mean_rates
from diffode.numerics.polynomials import lagrange
from diffode.paths import Path
from diffode.targets import GaussianMixture

#: Distance of two times, in units of the later one, below which a flow known to rounding is replaced by a step: the quotient
#: errs by 1e-13 of x/t there, and so does the step where the field's derivative is 40/t.
NEAR_KNOWN = 1e-3
#: The same distance for an integrated flow, whose ends err by its tolerance.
NEAR_INTEGRATED = 0.02
#: Number of stages of the step.
_STAGES = 4
#: Most rounds of the iteration for the slopes of a step, which gains at least a digit a round where it is used.
_ROUNDS = 30
#: Relative change of the slopes below which they are settled.
_SETTLED = 4e-16
#: Rounds after the slopes have settled, for their derivatives, which lag behind.
_AFTER = 2


def _gauss_method() -> tuple[list[float], list[list[float]]]:
    """Nodes of the Gauss method, and the weights of the slopes in each stage."""
    nodes = (np.polynomial.legendre.leggauss(_STAGES)[0] + 1) / 2
    rows = []
    for node in nodes:
        powers = np.array([node ** (k + 1) / (k + 1) for k in range(_STAGES)])
        rows.append([float(np.dot(coefficients, powers)) for coefficients in lagrange(list(nodes))])
    return [float(node) for node in nodes], rows


_NODES, _INNER = _gauss_method()
_WEIGHTS = [float(w) / 2 for w in np.polynomial.legendre.leggauss(_STAGES)[1]]


def gaussian_average(target: GaussianMixture, path: Path, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The average velocity (B, D) of the flow of one Gaussian, at points x (B, D) and times (B,), differentiable."""
    mean = target.mean.to(x)
    alpha_rate, variance_rate = mean_rates(path, s, t)
    first, last = path.alpha(s), path.alpha(t)
    square_rate = alpha_rate * (first + last)
    before, after = (torch.as_tensor(noise_variance(path, time)) for time in (s, t))
    offset = x - columns(first, x) * mean

    def gain(c: Tensor) -> Tensor:
        of_row = c[..., None]
        start, stop = (first**2 * of_row + before).sqrt(), (last**2 * of_row + after).sqrt()
        return (square_rate * of_row + variance_rate) / (start * (start + stop))

    moved = target.components.first().to(torch.float64, x.device).filter(offset.T[:, None], gain)[:, 0].T
    return columns(alpha_rate, x) * mean + moved


def gaussian_of(field: Field) -> GaussianMixture | None:
    """The one Gaussian of an exact field; None if it is another law."""
    mixture = mixture_of(field)
    return mixture if mixture is not None and mixture.count == 1 else None


def step_average(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The mean slope (B, D) of one step of the Gauss method from times s to t (B,), and whether each row's slopes settled.

    The step is differentiable in everything as often as the velocity is; at t = s its mean slope is the velocity.
    """
    gap = (t - s)[:, None]
    times = [s + node * (t - s) for node in _NODES]
    slopes = [velocity(x, s)] * _STAGES
    size = slopes[0].detach().abs().amax(1).clamp(min=1e-300)
    left, moved = _AFTER, torch.full_like(size, torch.inf)
    for _ in range(_ROUNDS):
        inner = [x + gap * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros_like(x)) for row in _INNER]
        new = [velocity(place, time) for place, time in zip(inner, times, strict=True)]
        moved = torch.stack([(n - k).detach().abs().amax(1) for n, k in zip(new, slopes, strict=True)]).amax(0) / size
        slopes = new
        # Rows that don't settle to the last digit alternate in it.
        if bool((moved <= _SETTLED * 8).all()):
            left -= 1
            if left < 0:
                break
    found = sum((w * k for w, k in zip(_WEIGHTS, slopes, strict=True)), torch.zeros_like(x))
    return found, moved <= 1e-12
