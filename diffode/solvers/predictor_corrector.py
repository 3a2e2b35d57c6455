r"""Predictor-corrector sampling: Langevin steps at each noise level, and an ancestral step to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.randomness import Randomness, RowNoise
from diffode.solvers.ancestral import EulerAncestral, step_down
from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.given_functions import Given, checked, content_of_function, function_of
from diffode.solvers.solver import WithNoise, steps_of
from diffode.tableau import Writer

#: Largest number of Langevin steps at a level, each of which is a row of the table.
_MOST_CORRECTIONS = 1000


class Corrected(WithNoise):
    """What both have: Langevin steps at a level, which keep a run from the flow, with their options."""

    snr: float | str | Given
    corrections: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.corrections) is not int or not 0 <= self.corrections <= _MOST_CORRECTIONS:
            raise ArgumentError(
                f"corrections must be an integer >= 0 (Langevin steps at a level) and <= {_MOST_CORRECTIONS}, "
                f"got {self.corrections!r:.40}"
            )

    @property
    @override
    def convergence_order(self) -> int:
        return 0 if self._corrects else 1

    @property
    @override
    def nfe_per_step(self) -> int:
        return 1 + self.corrections * self._corrects

    @property
    @override
    def stochastic(self) -> bool:
        return self._corrects or super().stochastic

    @property
    def _corrects(self) -> bool:
        return self.snr != 0 and self.corrections > 0


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Corrected, EulerAncestral):
    r"""``corrections`` steps of annealed Langevin dynamics at each level, :math:`x + \epsilon s + \sqrt{2\epsilon}\,\xi`, then
    an ancestral step down, which is the predictor.

    The Langevin step is :math:`\epsilon = 2 (\mathrm{snr}\,\sigma)^2`, the rule ``ald`` of the authors' code. ``snr`` is a
    number, or any rule: a function of the noise level rho = sigma/alpha, itself or as ``file.py:function``. The authors' rule
    ``langevin``, in which a ratio of norms replaces sigma, is ``pc_langevin``. Their factor 1 - beta on VP paths, which is
    nearly 1, is left out. A level is corrected before the step from it, as in that code.

    On any grid, Langevin steps of this size alone would make the variance of the noise too large by the factor
    1/(1 - snr^2). A run therefore converges not to the flow, but to the law of the data up to this error.

    >>> import diffode
    >>> rule = PredictorCorrector(snr=lambda rho: 0.2 if rho < 1 else 0.0)
    >>> rule.tableau("edm", [10.0, 2.0, 0.5, 0.1], None).nfe
    4
    """

    snr: float | str | Given = 0.16
    corrections: int = 1

    name = "pc"
    reference = "Song et al., arXiv 2011.13456, algorithms 2 and 4 and appendix G; the authors' code, sampling.py, 'ald'"

    def __post_init__(self) -> None:
        super().__post_init__()
        named = isinstance(self.snr, str) and ":" in self.snr
        if not (named or callable(self.snr)):
            check_ratio(self.snr, " or a function of rho (file.py:function)")

    @override
    def content(self) -> str:
        """A hash of the text of a user's rule, which may change under its name."""
        return "" if isinstance(self.snr, int | float) else content_of_function(function_of(self.snr, "snr", "rho"))

    def prepared(self, table: Writer, chart: Chart, x: int, s: float) -> int:
        """Append the Langevin steps at s, none where the rule gives 0; returns the last row."""
        sigma = chart.path.sigma(s)
        if isinstance(self.snr, int | float):
            ratio: float = self.snr
        else:
            ratio = checked(function_of(self.snr, "snr", "rho"), "snr", "rho", below=1.0)(chart.path.rho(s))
        for _ in range(self.corrections if ratio else 0):
            # The coefficients are those of the noise prediction, as the score is -noise/sigma.
            x = table.add(s, {x: 1.0}, {x: -2 * ratio**2 * sigma}, {table.draw(): 2 * ratio * sigma})
        return x


@dataclass(frozen=True, kw_only=True)
class LangevinCorrector(Corrected, DirectSolver):
    r"""``pc`` with the authors' rule for the Langevin step, :math:`\epsilon = 2 (\mathrm{snr}\,|\xi|/|s|)^2`, for each row.

    |xi| and |s| are the norms of a row's noise and score, so that its step depends on where it is, and no table holds it. The
    authors' code averages both norms over the batch, which makes rows depend on each other; in many dimensions these are
    nearly the norms of each row. In one and two dimensions 1/|s|^2 has no finite mean: some steps are far too long, the ends
    have heavy tails, and ``pc`` is the one to take. With score -xi/sigma, that of noise alone, the rule is that of ``pc``.
    """

    snr: float = 0.16
    corrections: int = 1

    name = "pc_langevin"
    order = 1
    needs_path = True
    draws_for_rows = True
    reference: ClassVar[str] = (
        "Song et al., arXiv 2011.13456, algorithms 2 to 5 and appendix G; the authors' code, sampling.py, 'langevin'"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.snr)

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: Randomness | None) -> Journey:
        path = field.require_path("its noise levels")
        if self.stochastic and generator is None:
            raise ArgumentError(f"solver {self.spec!r} draws noise: pass generator= (a seed or torch.Generator)")
        each = self.corrections if self._corrects else 0
        draws = RowNoise(x, (len(times) - 1) * (each + 1), 0 if generator is None else generator)
        states, column = [x], (-1,) + (1,) * (x.ndim - 1)
        for number, s, t in steps_of(times):
            first = (number - 1) * (each + 1)
            for k in range(each):
                score, noise = field.predict("score", x, s), draws(first + k)
                norms = noise.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp(min=1e-300)
                step = (2 * (self.snr * norms) ** 2).reshape(column)
                x = x + step * score + (2 * step).sqrt() * noise
            down, up, _ = step_down(path, s, t, self.eta)
            z = x / path.alpha(s) + (path.rho(down) - path.rho(s)) * field.predict("noise", x, s)
            x = path.alpha(t) * (z + up * draws(first + each) if up else z)
            states.append(x)
        return Journey(torch.stack(states))


def check_ratio(snr: object, others: str = "") -> None:
    """Raise ArgumentError unless the signal-to-noise ratio of Langevin steps is a number >= 0 and below 1."""
    if isinstance(snr, bool) or not isinstance(snr, int | float) or not math.isfinite(snr) or not 0 <= snr < 1:
        raise ArgumentError(f"snr must be a number >= 0 and below 1 (0.16 usually){others}, got {snr!r}")
