"""Euler-Maruyama for the reverse SDE family, in native time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffode.charts import Chart
from diffode.fields import conversion
from diffode.solvers.solver import WithNoise, steps_of
from diffode.tableau import Writer


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(WithNoise):
    r"""Euler-Maruyama for :math:`dx = [v - (\eta^2 g^2/2) s]\,dt + \eta g\,dw`, which has the right marginals for every eta.

    Note that this ``eta`` multiplies the noise itself, as in the family's formula, and not its variance.
    """

    name = "euler_maruyama"
    chart_name = "noise"
    reference = (
        "Maruyama 1955; Song et al., arXiv 2011.13456, equation 6; the family: Karras et al., arXiv 2206.00364, equation 6"
    )
    order = 1

    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:  # noqa: D102
        path = chart.path
        x = table.start
        for _, s, t in steps_of(times):
            of_x, of_noise = (float(c) for c in conversion(path, "noise", "velocity", s))
            g = path.diffusion(s)
            drift = of_noise + self.eta**2 * g**2 / (2 * path.sigma(s))
            spread = self.eta * g * math.sqrt(s - t)
            draws = {table.draw((-s, -t)): spread} if spread else None
            x = table.output(table.add(t, {x: 1 + (t - s) * of_x}, {x: (t - s) * drift}, draws))
