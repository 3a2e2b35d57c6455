r"""Predictor-corrector sampling: Langevin steps at each noise level, and an ancestral step to the next."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.solvers.ancestral import EulerAncestral
from diffode.tableau import Writer

#: Largest number of Langevin steps at a level, each of which is a row of the table.
_MOST_CORRECTIONS = 1000


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(EulerAncestral):
    r"""``corrections`` steps of annealed Langevin dynamics at each level, :math:`x + \epsilon s + \sqrt{2\epsilon}\,\xi`, then
    an ancestral step down, which is the predictor.

    The Langevin step is :math:`\epsilon = 2 (\mathrm{snr}\,\sigma)^2`, the rule ``ald`` of the authors' code. Their rule
    ``langevin``, which replaces sigma by a ratio of norms averaged over the batch, makes rows depend on each other and is not
    offered. Their factor 1 - beta on VP paths, which is nearly 1, is left out. A level is corrected before the step from it,
    as in that code.

    On any grid, Langevin steps of this size alone would make the variance of the noise too large by the factor
    1/(1 - snr^2). A run therefore converges not to the flow, but to the law of the data up to this error.
    """

    snr: float = 0.16
    corrections: int = 1

    name = "pc"
    reference = "Song et al., arXiv 2011.13456, algorithms 2 and 4 and appendix G; the authors' code, sampling.py, 'ald'"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.snr, bool) or not isinstance(self.snr, int | float) or not 0 <= self.snr < 1:
            raise ArgumentError(f"snr must be a number >= 0 and below 1 (0.16 usually), got {self.snr!r}")
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
        return self.snr > 0 and self.corrections > 0

    def prepared(self, table: Writer, chart: Chart, x: int, s: float) -> int:
        """Append the Langevin steps at s; returns the last row."""
        sigma = chart.path.sigma(s)
        for _ in range(self.corrections if self._corrects else 0):
            # The coefficients are those of the noise prediction, as the score is -noise/sigma.
            x = table.add(s, {x: 1.0}, {x: -2 * self.snr**2 * sigma}, {table.draw(): 2 * self.snr * sigma})
        return x
