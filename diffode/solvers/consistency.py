"""``lcm``: sampling with consistency functions, which give the end of a trajectory: jump to the end, add noise, jump again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.solvers.solver import TableSolver, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class Consistency(TableSolver):
    r"""Multistep consistency sampling: :math:`x_t = \alpha_t D(x_s) + \sqrt{\sigma_t^2 - \alpha_t^2\,\mathrm{end}^2}\,\xi`.

    ``D`` is the field's denoised point. The sampler is made for consistency models, whose D is the end of the trajectory; with
    the exact denoiser, a posterior mean, it does not converge to the law of the data.

    ``end`` is the noise level sigma/alpha at which the trajectories of the model end (epsilon in the paper, 0.002 there); at 0
    the sampler is that of latent consistency models. Levels of the grid below ``end`` get no noise.
    """

    end: float = 0.0

    name = "lcm"
    chart_name = "data"
    reference = (
        "Song, Dhariwal, Chen, Sutskever, arXiv 2303.01469, algorithm 1; Luo et al., arXiv 2310.04378; "
        "K. Crowson, k-diffusion, and ComfyUI, sample_lcm"
    )
    #: It has no order of convergence, since it does not follow the flow of a field.
    order = None

    def __post_init__(self) -> None:
        if isinstance(self.end, bool) or not isinstance(self.end, int | float) or not 0 <= self.end < math.inf:
            raise ArgumentError(f"end must be a noise level >= 0, got {self.end!r}")

    @property
    @override
    def stochastic(self) -> bool:
        return True

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        path, x = chart.path, table.start
        last = times[-1]
        for _, _s, t in steps_of(times):
            rho = path.rho(t)
            # The denoised point at the last level is the sample, as in algorithm 1.
            spread = path.alpha(t) * math.sqrt((rho - self.end) * (rho + self.end)) if t != last and rho > self.end else 0.0
            x = table.output(table.add(t, {}, {x: path.alpha(t)}, {table.draw(): spread} if spread else None))
