"""Euler-Maruyama for the reverse SDE family, in native time, with the path's diffusion coefficient or another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.fields import conversion
from diffode.paths import Path
from diffode.solvers.given_functions import checked, content_of_function, function_of
from diffode.solvers.solver import TableSolver, WithNoise, steps_of
from diffode.tableau import Writer

#: G(t)^2/2 by name, as functions of path and time.
FORMS: dict[str, Callable[[Path, float], float]] = {
    "path": lambda path, t: path.diffusion(t) ** 2 / 2,
    "sigma": lambda path, t: path.sigma(t),
    "constant": lambda path, t: 1.0,
    "linear": lambda path, t: t,
    "decreasing": lambda path, t: (1 - math.cos(math.pi * t)) ** 2 / 4,
    "increasing_decreasing": lambda path, t: math.sin(math.pi * t) ** 2,
}
#: Names of those that need a path whose times lie in [0, 1].
_IN_UNIT_TIME = ("linear", "decreasing", "increasing_decreasing")


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(WithNoise, TableSolver):
    r"""Euler-Maruyama for :math:`dx = [v - (\eta^2 G^2/2) s]\,dt + \eta G\,dw`, which has the right marginals for every G.

    Args:
        eta: factor of the noise, as in the formula (and not of its variance).
        diffusion: G. ``path`` is the g of the forward SDE. Other names give G^2/2: ``sigma``, ``constant`` (1), ``linear`` (t),
            ``decreasing`` from noise to data ((1 - cos pi t)^2/4), ``increasing_decreasing`` (sin^2 pi t); the last three need
            a path whose times lie in [0, 1]. A function of t, G(t) >= 0, is given itself, or as ``module:function`` or
            ``file.py:function``.

    The score grows as 1/sigma, so that a G that does not vanish at the data needs small steps there.

    >>> import diffode
    >>> own = EulerMaruyama(diffusion=lambda t: 0.5 * t)
    >>> own.tableau(diffode.paths.get("rectified_flow"), "time_uniform", 10).draws
    10
    """

    diffusion: str | Callable[[float], float] = "path"

    name = "euler_maruyama"
    chart_name = "noise"
    reference = (
        "Maruyama 1955; Song et al., arXiv 2011.13456, equation 6; the family: Karras et al., arXiv 2206.00364, equation 6; "
        "Ma et al., arXiv 2401.08740, equation 4 and the authors' code for the named forms"
    )
    order = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.diffusion, str) and self.diffusion not in FORMS and ":" not in self.diffusion:
            raise ArgumentError(
                f"diffusion must be one of {', '.join(FORMS)}, a function of t, or file.py:function; got {self.diffusion!r}"
            )
        if not (isinstance(self.diffusion, str) or callable(self.diffusion)):
            raise ArgumentError(f"diffusion must be a name or a function of t, got {self.diffusion!r}")

    def content(self) -> str:
        """A hash of the text of a user's diffusion coefficient, which may change under its name."""
        if isinstance(self.diffusion, str) and self.diffusion in FORMS:
            return ""
        return content_of_function(function_of(self.diffusion, "diffusion", "t"))

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        path = chart.path
        coefficient = self._coefficient(path)
        x = table.start
        for _, s, t in steps_of(times):
            of_x, of_noise = (float(c) for c in conversion(path, "noise", "velocity", s))
            g = self.eta * coefficient(s)
            drift = of_noise + g**2 / (2 * path.sigma(s))
            spread = g * math.sqrt(s - t)
            draws = {table.draw((-s, -t)): spread} if spread else None
            x = table.output(table.add(t, {x: 1 + (t - s) * of_x}, {x: (t - s) * drift}, draws))

    def _coefficient(self, path: Path) -> Callable[[float], float]:
        """G(t) on a path, which raises ArgumentError where G is not finite or negative."""
        if self.diffusion == "path":
            return path.diffusion
        if isinstance(self.diffusion, str) and self.diffusion in FORMS:
            if self.diffusion in _IN_UNIT_TIME and path.t_max > 1:
                raise ArgumentError(
                    f"diffusion={self.diffusion} is a function of times from 0 to 1, path {path.name!r} goes up to "
                    f"{path.t_max:g}; choose path, sigma, constant or a function of your own"
                )
            form = FORMS[self.diffusion]
            return lambda t: math.sqrt(2 * form(path, t))
        return checked(function_of(self.diffusion, "diffusion", "t"), "diffusion", "t")
