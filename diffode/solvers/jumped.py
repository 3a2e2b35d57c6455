r"""The jump: the first step of any solver, along the exact flow of the data's Gaussian, without an evaluation.

With mean m and covariance C of the data the step from s to t is

.. math::
    x_t = \alpha_t m + \sqrt{\frac{\alpha_t^2 C + \sigma_t^2}{\alpha_s^2 C + \sigma_s^2}}\,(x_s - \alpha_s m)

(Wang and Vastola, arXiv 2412.09726, call it analytical teleportation). It is exact for one Gaussian; for other data its error
at a level rho comes from the third and higher cumulants; :func:`automatic` weighs it against the error of the steps after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from typing_extensions import override

from diffode import grids
from diffode.errors import ArgumentError, BudgetError
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.paths.path import lack_of_path
from diffode.solvers.solver import WritesTable, check_budget, check_jump
from diffode.statistics import Statistics
from diffode.tableau import Row, Tableau

#: Power with which the jump's error falls with the level at about half a deviation, where few evaluations land. At high levels
#: it is that of the third cumulants, 3, or of the fourth, 4, of symmetric data.
_POWER = 1.25
#: Exponent of the power grid (``karras:rho=3``) for whose steps the level is chosen, and that is laid unless another is given.
_GRID = 3
#: Level, in largest deviations, of a run with one evaluation; fitted on seven mixtures in one and two dimensions.
_FACTOR = 0.25
#: Largest order that counts: steps so large show no higher one.
_MOST_ORDER = 2
#: Evaluations of a run that has no budget.
_WITHOUT_BUDGET = 30


@dataclass(frozen=True, kw_only=True)
class Jumped(WritesTable):
    """A solver that begins with a jump, and what is known of the data.

    Its grid is laid from the level to which it jumps. :func:`diffode.solve` makes one of any solver with ``jump=``; for tables
    in other loops, :func:`diffode.solvers.informed` does.

    >>> import diffode
    >>> known = diffode.Statistics.of_target("ring8")
    >>> solver = diffode.solvers.informed("ipndm:order=3,jump=2", known)
    >>> [round(t, 3) for t in solver.tableau("edm", "karras:rho=3", 2).output_times.tolist()]
    [80.0, 7.099, 1.074, 0.002]
    """

    solver: WritesTable
    statistics: Statistics = field(repr=False)
    lays_levels: ClassVar[bool] = True
    usual_grid: ClassVar[str] = f"karras:rho={_GRID}"

    name = "jumped"

    def __post_init__(self) -> None:
        check_jump(self.jump)
        if self.jump is None or self.solver.jump is not None:
            raise ArgumentError("jumped needs jump=, a level or auto, beside a solver that has none")
        if self.solver.analytic_first_step:
            raise ArgumentError(
                f"solver {self.solver.spec!r} jumps at first, where analytic_first_step would save the same evaluation: "
                "leave one of the two out"
            )

    @property
    @override
    def spec(self) -> str:
        return replace(self.solver, jump=self.jump).spec

    @property
    def reference(self) -> str:  # type: ignore[override]
        """The solver's own, and the jump's."""
        return f"{self.solver.reference}; jump: Wang and Vastola, arXiv 2412.09726"

    @property
    @override
    def order(self) -> int | None:
        return self.solver.order

    @property
    @override
    def convergence_order(self) -> int | None:
        # The error of the jump to a fixed level is there on every grid.
        return self.solver.convergence_order if self.statistics.gaussian or self.order is None else 0

    @property
    @override
    def nfe_per_step(self) -> int:
        return self.solver.nfe_per_step

    @property
    @override
    def chart_name(self) -> str:
        return self.solver.chart_name

    @property
    @override
    def stochastic(self) -> bool:
        return self.solver.stochastic

    @override
    def content(self) -> str:
        return self.solver.content() + self.statistics.content

    @override
    def tableau(self, path: Path | str | None, grid: grids.Times, steps: int | None = None) -> Tableau:
        """The table for a path and a grid: a named one of ``steps``, laid from the level of the jump, or a list of times.

        A list keeps its first time, from which the jump goes to the first of the others that is not above the level.
        """
        on = self._part(path, grid)
        listed = grids.own_times(grid, on, steps)
        if listed is not None:
            return self._listed(listed.tolist(), on, grid, None if steps is None else steps * self.nfe_per_step)
        below = self._below(on, None if steps is None else steps * self.nfe_per_step)
        return self._whole(on) if below is None else self._after(self.solver.tableau(below, grid, steps), on)

    @override
    def within(self, path: Path | str | None, grid: grids.Times, nfe: int) -> Tableau:
        """The largest table on a named grid, laid from the level of the jump, or the table of a list, that fits ``nfe``."""
        check_budget(nfe)
        on = self._part(path, grid)
        listed = grids.own_times(grid, on)
        if listed is not None:
            table = self._listed(listed.tolist(), on, grid, nfe)
            if table.nfe > nfe:
                raise BudgetError(
                    f"the grid lists its own times, on which {self.spec!r} costs {table.nfe} evaluations, more than nfe={nfe}"
                )
            return table
        below = self._below(on, nfe)
        return self._whole(on) if below is None else self._after(self.solver.within(below, grid, nfe), on)

    def _listed(self, times: list[float], on: Path, grid: grids.Times, nfe: int | None) -> Tableau:
        """The table on the times of a grid, of which the jump leaves out those above its level, except the first.

        BudgetError for a trained grid that makes another number of evaluations than ``nfe``, if that is given.
        """
        time = landing(self.jump, self.statistics, on, (len(times) - 1) * self.nfe_per_step, self.solver.convergence_order)
        # The time of a level has the rounding of its two formulas.
        left = [t for t in times if t <= time * (1 + 1e-12)]
        if len(left) == len(times):
            table = replace(self.solver.tableau(on, times), solver=self.spec)
        else:
            table = self._after(self.solver.tableau(on, left), on) if len(left) > 1 else self._whole(on)
        if grids.is_named(grid) and nfe not in (None, table.nfe):
            raise BudgetError(
                f"on {grid!r}, a trained grid with its own levels, a run of {self.spec!r} makes {table.nfe} evaluations, not "
                f"{nfe}: ask for as many as it was trained for, with its solver and its jump"
            )
        return table

    def _part(self, path: Path | str | None, grid: grids.Times) -> Path:
        """The part of the path over which a run goes."""
        if path is None:
            raise lack_of_path(f"the jump of solver {self.spec!r}")
        on = get_path(path)
        if grids.is_named(grid):
            return on
        times = grids.get(grid, on)
        return on.between(float(times[0]), float(times[-1]))

    def _below(self, path: Path, evaluations: int | None) -> Path | None:
        """The part of the path below the level; None if the jump goes to its end."""
        time = landing(self.jump, self.statistics, path, evaluations, self.solver.convergence_order)
        return None if time <= path.t_min else path if time >= path.t_max else path.between(time, path.t_min)

    def _whole(self, path: Path) -> Tableau:
        """The table of the jump over the whole path."""
        row = jump_row(self.statistics, path, path.t_max, path.t_min)
        return Tableau("denoised", (Row(path.t_max), row), (0, 1), path, self.spec, statistics=self.statistics)

    def _after(self, table: Tableau, path: Path) -> Tableau:
        """A table from a lower level on, with a row before it that jumps there."""
        first = table.ends[0]
        if first >= path.t_max:
            return replace(table, solver=self.spec)
        rows = [Row(path.t_max), jump_row(self.statistics, path, path.t_max, first)]
        for row in table.rows[1:]:
            states, evaluations = ({j + 1: c for j, c in terms.items()} for terms in (row.states, row.evaluations))
            rows.append(replace(row, states=states, evaluations=evaluations))
        outputs = (0, *(row + 1 for row in table.outputs))
        return replace(table, rows=tuple(rows), outputs=outputs, path=path, solver=self.spec, statistics=self.statistics)


def jump_row(statistics: Statistics, path: Path, s: float, t: float) -> Row:
    """The row of a jump from row 0, at time s, to time t."""
    factor = (statistics.deviations(path, t) / statistics.deviations(path, s))[None]
    return Row(t, {0: factor}, mean=path.alpha(t) - factor * path.alpha(s))


def landing(jump: float | str | None, statistics: Statistics, path: Path, evaluations: int | None, order: int | None) -> float:
    """The time to which a run with a number of evaluations jumps.

    ``jump`` is a level in units of the data's largest deviation, which has to lie on the path, or ``auto``. ArgumentError for a
    level that does not.
    """
    first, last = path.rho(path.t_max), path.rho(path.t_min)
    if jump == "auto":
        level = min(automatic(statistics, evaluations, order), first)
        return path.t_min if level <= last else path.t_max if level == first else path.time_from_rho(level)
    level = float(jump or 0) * statistics.largest
    if not statistics.largest:
        raise ArgumentError(
            f"jump={jump} is a level in the data's largest deviations, and the data are one point, of covariance 0: "
            "jump=auto goes there at once"
        )
    if not last <= level < first:
        raise ArgumentError(
            f"jump={jump} leads to the noise level {level:.4g}, that many of the data's largest deviations "
            f"({statistics.largest:.4g}), but the run goes from {first:.4g} to {last:.4g}: give a jump in "
            f"[{last / max(statistics.largest, 1e-300):.3g}, {first / max(statistics.largest, 1e-300):.3g}), or jump=auto"
        )
    return path.time_from_rho(level)


def automatic(statistics: Statistics, evaluations: int | None, order: int | None) -> float:
    r"""The level rho of ``jump=auto``: where an error of the jump and one of the steps after it, both unknown, fall alike.

    With K the level in units of the largest deviation, the jump leaves an error :math:`a K^{-p}`, and N steps of order q on a
    grid whose power 1/r of rho is even have the length :math:`h \propto K^{1/r}/N` where the data's structure is, and so the
    error :math:`b (K^{1/r}/N)^q`. The sum is least at

    .. math:: K = k\, N^{q/(p + q/r)}, \qquad k^{p + q/r} = \frac{a p r}{b q} .

    What is left of the data is the number k. Of one Gaussian a = 0, and the jump goes all the way.

    Args:
        statistics: those of the data.
        evaluations: N, None for a run without a budget.
        order: q, the solver's order of convergence.
    """
    if statistics.gaussian:
        return 0.0
    q = min(max(order or 1, 1), _MOST_ORDER)
    n = _WITHOUT_BUDGET if evaluations is None else max(evaluations, 1)
    return statistics.largest * _FACTOR * math.pow(n, q / (_POWER + q / _GRID))
