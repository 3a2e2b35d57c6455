"""STORK: stages of a stabilised Runge-Kutta method, whose evaluations are replaced by a Taylor expansion along the run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from typing_extensions import override

from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.numerics.polynomials import weights_of
from diffode.solvers.solver import TableSolver, check_choice, steps_of
from diffode.tableau import Number, Writer

#: Largest number of stages.
_MOST_STAGES = 200


class Stabilised(TableSolver):
    """What both have: the choices of a chart and of a form, which are the options of each."""

    chart: Literal["velocity", "noise", "data"]
    form: Literal["published", "consistent"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("chart", self.chart, ("velocity", "noise", "data"))
        check_choice("form", self.form, ("published", "consistent"))

    @property
    @override
    def chart_name(self) -> str:
        return self.chart


@dataclass(frozen=True, kw_only=True)
class STORK(Stabilised):
    r"""STORK-2: the s stages of RKG2 in the clock of a chart, made of one evaluation a step and past ones.

    RKG2 has the stability polynomial a_s + b_s C_s(1 + w z), C_s the Gegenbauer polynomial of index 3/2 and
    w = 6/((s + 4)(s - 1)), which is stable on [-2/w, 0]; its stage j lies at the share c_j = (j - 1)(j + 4) w/6 of the step,
    c_1 = w. With ``virtual=true`` the slopes of the stages are those of a polynomial through this point and ``taylor`` past
    ones, at one evaluation a step. They then depend on the time alone, and a step adds m h + m' h^2 sum b_j c_j + ..., a linear
    multistep method: the stages lend it none of their stability. ``virtual=false`` evaluates them, s evaluations a step.

    The published code takes for c_j the shares of the Legendre method RKL2, (j^2 + j - 2)/(s^2 + s - 2) and
    c_1 = 4/(3 (s^2 + s - 2)), with which sum b_j c_j is 0.4896 in place of 1/2 for 50 stages: first order, by an error that
    shows at small steps alone. ``form=consistent`` has those of RKG2. The code's first derivative is that of even steps; here
    the polynomial is that of the grid's. A run begins with an Euler step, where the code makes two half steps. A step to
    sigma = 0 is an Euler step. STORK-4 is ``stork_4``.
    """

    stages: int = 50
    taylor: int = 2
    virtual: bool = True
    chart: Literal["velocity", "noise", "data"] = "velocity"
    form: Literal["published", "consistent"] = "published"

    order = 2
    name = "stork"
    reference: ClassVar[str] = (
        "Tan, Wang, Bertozzi, Ryu, arXiv 2505.24210; the authors' code, STORKScheduler.py; RKG2: Skaras, Saxton, Meyer, Aslam, "
        "J. Comput. Phys. 425 (2021) 109879"
    )

    def __post_init__(self) -> None:
        if type(self.stages) is not int or not 2 <= self.stages <= _MOST_STAGES:
            raise ArgumentError(f"stages must be an integer from 2 to {_MOST_STAGES}, got {self.stages!r:.40}")
        check_choice("taylor", self.taylor, (1, 2, 3))
        check_choice("virtual", self.virtual, (True, False))
        super().__post_init__()

    @property
    @override
    def convergence_order(self) -> int:
        return 2 if self.form == "consistent" else 1

    @property
    @override
    def nfe_per_step(self) -> int:
        return 1 if self.virtual else self.stages

    @property
    def nodes(self) -> np.ndarray:
        """The shares of the step at which the stages are evaluated, (s,)."""
        j, s = np.arange(self.stages), self.stages
        if self.form == "published":
            shares = (j * j + j - 2) / (s * s + s - 2)
            shares[1] = 4 / (3 * (s * s + s - 2))
        else:
            shares = (j - 1) * (j + 4) / ((s + 4) * (s - 1))
            shares[1] = 6 / ((s + 4) * (s - 1))
        shares[0] = 0.0
        return shares

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        matrix, nodes, history = gegenbauer(self.stages), self.nodes, [table.start]
        for _, s, t in steps_of(times):
            x, ratio, advance = history[0], chart.ratio(s, t), chart.advance(s, t)
            if chart.ends_singular(t):
                x = table.add(t, {x: ratio}, {x: advance})
            elif self.virtual:
                past = history[: self.taylor + 1]
                start, width = chart.clock(s), chart.clock(t) - chart.clock(s)
                positions = [(chart.clock(table.time(row)) - start) / width for row in past]
                moments = [float(matrix[-1] @ nodes**k) for k in range(len(past))]
                weights = weights_of(positions, moments)
                x = table.add(t, {x: ratio}, {row: advance * w for row, w in zip(past, weights, strict=True)})
            else:
                x = self._evaluated(table, chart, x, t, matrix)
            history.insert(0, table.output(x))

    def _evaluated(self, table: Writer, chart: Chart, x: int, t: float, matrix: np.ndarray) -> int:
        """The step with its stages evaluated, z_j = z_s + dtheta sum a_ji m_i."""
        s, rows = table.time(x), [x]
        start, width = chart.clock(s), chart.clock(t) - chart.clock(s)
        for weights, node in zip(matrix[1:], [*self.nodes[1:], 1.0], strict=True):
            time = t if node == 1 else chart.time(start + float(node) * width)
            terms: dict[int, Number] = {
                row: chart.scale(time) * width * float(w) for row, w in zip(rows, weights, strict=False)
            }
            rows.append(table.add(time, {x: chart.ratio(s, time)}, terms))
        return rows[-1]


@dataclass(frozen=True, kw_only=True)
class STORK4(Stabilised):
    r"""STORK-4 with virtual stages: m h + m' h^2/2 + m'' h^3/6 + m''' h^4/24 in the clock of a chart, one evaluation a step.

    The stages are those of ROCK4, a method of order 4, so that sum b_j c_j^k = 1/(k + 1) for k up to 3, for any number of
    stages. Virtual slopes depend on the time alone; of the stages nothing is left but these sums, and the order is that of the
    derivatives. ``taylor`` is the last of them, 2 in the publication.

    The published code has a first derivative of even steps with ``taylor=2``, which makes order 2 on other grids. With
    ``taylor=3`` its derivatives take lengths of steps for distances to earlier points: on even steps a linear slope has twice
    its derivative, and a second one of 8 m'/h in place of 0, so that the run is of first order. ``form=consistent``
    takes the derivatives of the polynomial through this point and ``taylor`` past ones: Adams-Bashforth of order 3 or 4, stable
    on [-6/11, 0] and [-3/10, 0]. A run begins with fewer points, its first step being one of Euler, where the code makes two
    half steps: on even steps in time the error of second order that it leaves shows beside order 4. A step to sigma = 0 is an
    Euler step. Evaluated stages would need ROCK4's tables, and are left out.
    """

    taylor: int = 2
    chart: Literal["velocity", "noise", "data"] = "velocity"
    form: Literal["published", "consistent"] = "published"

    order = 4
    name = "stork_4"
    reference: ClassVar[str] = (
        "Tan, Wang, Bertozzi, Ryu, arXiv 2505.24210; the authors' code, STORKScheduler.py, step_flow_matching_4; ROCK4: "
        "Abdulle, SIAM J. Sci. Comput. 23 (2002) 2041-2054"
    )

    def __post_init__(self) -> None:
        check_choice("taylor", self.taylor, (2, 3))
        super().__post_init__()

    @property
    @override
    def convergence_order(self) -> int:
        if self.form == "consistent":
            return self.taylor + 1
        return 2 if self.taylor == 2 else 1

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        history = [table.start]
        for _, s, t in steps_of(times):
            x, past = history[0], history[: self.taylor + 1]
            if chart.ends_singular(t):
                past, weights = past[:1], [1.0]
            else:
                start, width = chart.clock(s), chart.clock(t) - chart.clock(s)
                positions = [(chart.clock(table.time(row)) - start) / width for row in past]
                if self.form == "published" and len(past) > self.taylor:
                    weights = _published(positions, abs(width))
                else:
                    weights = weights_of(positions, [1 / (k + 1) for k in range(len(past))])
            terms: dict[int, Number] = {row: chart.advance(s, t) * w for row, w in zip(past, weights, strict=True)}
            history.insert(0, table.output(table.add(t, {x: chart.ratio(s, t)}, terms)))


def _published(positions: Sequence[float], width: float) -> list[float]:
    """Weights of the code's derivatives at points 0, -h_1, -h_1 - h_2 and so on, in units of a step of this width."""
    lengths = [now - before for now, before in itertools.pairwise(positions)]
    if len(lengths) == 2:
        h1, h2 = lengths
        first = [3 / (2 * h1), -4 / (2 * h1), 1 / (2 * h1)]
        second = [2 * h2, -2 * (h1 + h2), 2 * h1]
        second = [value / (h1 * h2 * (h1 + h2)) for value in second]
        return [float(k == 0) + first[k] / 2 + second[k] / 6 for k in range(3)]
    h1, h2, h3 = lengths
    whole = h1 * h2 * h3
    # Each derivative is a sum of differences to this point; odd ones change their sign with the direction of time. The third is
    # divided by one length too few, so that it depends on the unit of time.
    first = [-h2 * h3 / whole, h1 * h3 / whole, -h1 * h2 / whole]
    second = [2 * (h2 + h3) / whole, -2 * (h1 + h3) / whole, 2 * (h1 + h2) / whole]
    third = [-6 * width * difference / whole for difference in (h2 - h3, h3 - h1, h1 - h2)]
    sums = [a / 2 + b / 6 + c / 24 for a, b, c in zip(first, second, third, strict=True)]
    return [1 - sum(sums), *sums]


@functools.cache
def gegenbauer(stages: int) -> np.ndarray:
    """The stages of RKG2 as a matrix (s + 1, s): y_j = y_0 + h sum_i a_ji f(y_i), of which the last is the step.

    They follow y_j = mu y_{j-1} + nu y_{j-2} + (1 - mu - nu) y_0 + h (mu w f_{j-1} + gamma f_0).

    >>> gegenbauer(3).sum(axis=1).round(12).tolist()
    [0.0, 0.428571428571, 0.428571428571, 1.0]
    """
    w = 6 / ((stages + 4) * (stages - 1))
    made = np.zeros((stages + 1, stages))
    made[1, 0] = w
    for j in range(2, stages + 1):
        before, earlier, now = (_coefficient(k) for k in (j - 1, j - 2, j))
        mu, nu = (2 * j + 1) * now / (j * before), -(j + 1) * now / (j * earlier)
        made[j] = mu * made[j - 1] + nu * made[j - 2]
        made[j, j - 1] += mu * w
        made[j, 0] -= mu * w * (1 - j * (j + 1) * before / 2)
    return made


def _coefficient(j: int) -> float:
    """b_j of RKG2; 1 and 1/3 for the first two."""
    return 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3)) if j > 1 else 1 / (1 + 2 * j)
