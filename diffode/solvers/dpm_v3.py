"""DPM-Solver-v3: a multistep exponential integrator whose linear part, scale and offset come from statistics of the model."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode.charts import Chart, DataChart
from diffode.errors import ArgumentError, TrainedElsewhereWarning
from diffode.numerics.collocation import gauss
from diffode.numerics.polynomials import weights_of
from diffode.numerics.splines import spline
from diffode.paths import Path
from diffode.solvers.solver import LowerOrderFinal, TableSolver, check_choice, final_order, steps_of
from diffode.statistics import Axes, Statistics
from diffode.statistics.of_model import ModelStatistics
from diffode.tableau import Number, Row, Writer

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline

#: Gauss-Legendre rule of a piece, with its integrals up to each node, and the longest piece in log-SNR.
_RULE = gauss(8)
_LONGEST = 0.5
#: Difference of log-SNR by which a run may leave the levels of its statistics without a word.
_BEYOND = 0.1
#: l and s with which the method is DPM-Solver++ or DPM-Solver, multistep.
_CONSTANT = {"data": (1.0, 0.0), "noise": (0.0, -1.0)}


@dataclass(frozen=True, kw_only=True)
class DPMSolverV3(TableSolver):
    r"""Exponential Adams in log-SNR for :math:`f = \rho\epsilon - l z = (1 - l) z - D`, z = x/alpha, after s and b.

    With L and S the integrals of l and s from the start lambda_s of the step, and B that of exp(-S) b, it is
    g = exp(-S) f - B that changes little, and z_t = exp(-L_t) [z_s - int exp(L + S) (g + B) d lambda] over the step,
    with a polynomial for g through the last ``order`` points. ``file`` holds the statistics l, s and b
    (``diffode.fields.estimate_model_statistics(field).save(file)``), or ``model`` is these. Without any, ``coefficients=data``
    is l = 1, s = b = 0, which is multistep DPM-Solver++ with exact weights, and ``noise`` is l = 0, s = -1, multistep
    DPM-Solver.

    The ``corrector`` makes a step again when the next point is evaluated, with this point in place of the oldest, and keeps f
    from the predicted state; there is none after the last step. ``pseudo`` takes divided differences for derivatives at the
    start of the step: of second order at most, which the authors prefer for few steps under strong guidance;
    ``pseudo_corrector`` does the same with one point more. A step to sigma = 0 is the denoised point. Between the levels of the
    statistics l, s and b are cubic splines, beyond them they are constant.
    """

    order: int = 3
    coefficients: Literal["data", "noise"] = "data"
    file: str | None = None
    pseudo: bool = False
    corrector: bool = True
    pseudo_corrector: bool = False
    lower_order_final: LowerOrderFinal = "always"
    model: ModelStatistics | None = field(default=None, repr=False, compare=False)
    #: The content of the statistics, by which two solvers without a file are told apart.
    digest: str = field(init=False, repr=False)

    name = "dpm_v3"
    chart_name = "data"
    reference: ClassVar[str] = (
        "Zheng, Lu, Chen, Zhu, arXiv 2310.13268, section 3 and algorithm 2; the authors' code, dpm_solver_v3.py"
    )

    def __post_init__(self) -> None:
        check_choice("order", self.order, (1, 2, 3))
        check_choice("coefficients", self.coefficients, tuple(_CONSTANT))
        check_choice("lower_order_final", self.lower_order_final, ("always", "below_10", "never"))
        for name in ("pseudo", "corrector", "pseudo_corrector"):
            check_choice(name, getattr(self, name), (True, False))
        if self.pseudo_corrector and not self.corrector:
            raise ArgumentError("pseudo_corrector=true goes with corrector=true")
        if self.file is not None and not isinstance(self.file, str):
            raise ArgumentError(f"file must be a name, which a number is not: ./{self.file}, or quoted: '{self.file}'")
        if self.model is not None and (self.file is not None or not isinstance(self.model, ModelStatistics)):
            raise ArgumentError("model must be a ModelStatistics, which takes the place of file=")
        if (self.file is not None or self.model is not None) and self.coefficients != "data":
            raise ArgumentError(f"give coefficients={self.coefficients} or statistics, not both: they are the same numbers")
        if self.file is not None:
            object.__setattr__(self, "model", ModelStatistics.load(self.file))
        object.__setattr__(self, "digest", self.content())

    @property
    @override
    def convergence_order(self) -> int:
        most = 2 if self.pseudo_corrector or (self.pseudo and not self.corrector) else 3
        return min(2 if self.pseudo_corrector else self.order, most)

    @override
    def content(self) -> str:
        return "" if self.model is None else self.model.content

    @override
    def for_field(self, scale: float, dim: int) -> Self:
        if self.model is not None and self.model.dim not in (None, dim):
            raise ArgumentError(f"the statistics of {self.spec!r} are of rows with {self.model.dim} coordinates, not {dim}")
        return self

    def _say_beyond(self, path: Path, times: Sequence[float]) -> None:
        """Warn of a run that leaves the levels of the statistics, by more than rounding."""
        if self.model is None:
            return
        ends = [level for t in (times[0], times[-1]) if math.isfinite(level := path.log_snr(t))]
        low, high = float(self.model.log_snr[0]), float(self.model.log_snr[-1])
        if min(ends) < low - _BEYOND or max(ends) > high + _BEYOND:
            warnings.warn(
                f"{self.spec!r} runs at log-SNR {min(ends):.3g} to {max(ends):.3g}, and its statistics are of {low:.3g} to "
                f"{high:.3g}: beyond these they say nothing, and errors can be large; estimate them on the path of the run",
                TrainedElsewhereWarning,
                2,
            )

    @override
    def chart_on(self, path: Path | str | None) -> Chart:
        chart = DataChart(path)
        dim = None if self.model is None else self.model.dim
        if dim is not None:
            # A row's offset for each coordinate is a coefficient of this mean, whose coordinates are 1.
            mean, variances = torch.ones(2, dim, dtype=torch.float64)
            chart.statistics = Statistics(
                mean.clone(), variances.clone(), Axes(dim, False), source="coordinates of model statistics"
            )
        return chart

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        steps, x, levels = len(times) - 1, table.start, _Levels(self)
        self._say_beyond(chart.path, times)
        # ``history`` holds the rows of the predicted states, which are evaluated, latest first.
        history = [table.start]
        for number, s, t in steps_of(times):
            order = final_order(self.order, number, steps, self.lower_order_final)
            if chart.ends_singular(t):
                x = table.output(table.add(t, {}, {history[0]: chart.path.alpha(t)}))
                history.insert(0, x)
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                step = _Step(levels, chart.path, s, t)
            nodes = history[:order]
            predicted = step.add(table, x, nodes, self.pseudo)
            if number == steps or not self.corrector:
                x = predicted
            elif order > 1 or self.pseudo_corrector:
                kept = order if self.pseudo_corrector else order - 1
                x = step.add(table, x, [nodes[0], predicted, *nodes[1:kept]], self.pseudo_corrector)
            else:
                x = predicted
            table.output(x)
            history.insert(0, predicted)


class _Pieces(NamedTuple):
    """Quadrature over a way: nodes and weights (n,), and at the nodes (n, E) and the end (E,) the integrals from its start.

    ``linear`` and ``slope`` are those of l and s, ``offset`` that of exp(-integral of s) b.
    """

    nodes: np.ndarray
    weights: np.ndarray
    linear: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    ends: tuple[np.ndarray, np.ndarray, np.ndarray]


class _Levels:
    """l, s and b as functions of the log-SNR, and their integrals over a way between two levels."""

    def __init__(self, solver: DPMSolverV3):
        model = solver.model
        self._constant = _CONSTANT[solver.coefficients] if model is None else None
        self.knots: list[float] = [] if model is None else model.log_snr.tolist()
        self._splines: list[CubicSpline] = (
            [] if model is None else [spline(model.log_snr, values) for values in (model.l, model.s, model.b)]
        )
        self.dim = None if model is None else model.dim

    def at(self, log_snr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """l, s and b (n, E) at levels (n,)."""
        if self._constant is not None:
            l, s = (np.full((len(log_snr), 1), value) for value in self._constant)
            return l, s, np.zeros_like(l)
        inside = np.clip(log_snr, self.knots[0], self.knots[-1])
        l, s, b = (curve(inside) for curve in self._splines)
        return l, s, b

    def pieces(self, start: float, stop: float) -> _Pieces:
        """The quadrature over the way, backwards if ``stop`` is less, piece by piece between the levels of the splines."""
        low, high = min(start, stop), max(start, stop)
        edges = [start, *sorted((k for k in self.knots if low < k < high), reverse=stop < start), stop]
        parts = [max(1, math.ceil(abs(b - a) / _LONGEST)) for a, b in itertools.pairwise(edges)]
        shares, stages, rule = np.array(_RULE.nodes), np.array(_RULE.stages), np.array(_RULE.weights)
        width = 1 if self.dim is None else self.dim
        linear, slope, offset = np.zeros((3, width))
        found: list[tuple[np.ndarray, ...]] = []
        for (a, b), count in zip(itertools.pairwise(edges), parts, strict=True):
            h = (b - a) / count
            for i in range(count):
                nodes = a + h * (i + shares)
                l, s, shift = self.at(nodes)
                inner_slope = slope + h * stages @ s
                density = np.exp(-inner_slope) * shift
                found.append((nodes, h * rule, linear + h * stages @ l, inner_slope, offset + h * stages @ density))
                linear, slope, offset = linear + h * rule @ l, slope + h * rule @ s, offset + h * rule @ density
        nodes, weights, *inner = (np.concatenate(part) for part in zip(*found, strict=True))
        return _Pieces(nodes, weights, inner[0], inner[1], inner[2], (linear, slope, offset))


class _Step:
    """The step from time s to time t: weights of g at some points, and the rows that they make."""

    def __init__(self, levels: _Levels, path: Path, s: float, t: float):
        self.levels, self.path, self.time = levels, path, t
        self.start, self.stop = path.log_snr(s), path.log_snr(t)
        self.way = levels.pieces(self.start, self.stop)
        self.growth = np.exp(self.way.linear + self.way.slope)
        self.after = path.alpha(t) * np.exp(-self.way.ends[0])
        if not (np.isfinite(self.growth).all() and np.isfinite(self.way.offset).all() and np.isfinite(self.after).all()):
            raise ArgumentError(
                f"the statistics of dpm_v3 grow beyond all numbers between log-SNR {self.start:.4g} and {self.stop:.4g}: "
                "estimate them on the path of the run, with more levels= and points="
            )

    def add(self, table: Writer, x: int, rows: Sequence[int], pseudo: bool) -> int:
        """Append the state at t from state x and evaluated rows, of which the first is at s."""
        times = [table.time(row) for row in rows]
        lambdas = [self.path.log_snr(time) for time in times]
        share = (self.way.nodes - self.start) / (self.stop - self.start)
        density = self.way.weights[:, None] * self.growth
        moments = [(density * share[:, None] ** k).sum(0) for k in range(len(rows))]
        positions = [(level - self.start) / (self.stop - self.start) for level in lambdas]
        weights = _pseudo_weights(positions, moments) if pseudo else weights_of(positions, moments)
        states: dict[int, Number] = {x: self._number(self.after / self.path.alpha(table.time(rows[0])))}
        evaluations: dict[int, Number] = {}
        offset = (density * self.way.offset).sum(0)
        for row, time, level, weight in zip(rows, times, lambdas, weights, strict=True):
            _, slope, shift = self.levels.pieces(self.start, level).ends
            l = self.levels.at(np.array([level]))[0][0]
            factor = weight * np.exp(-slope)
            held = states.get(row, 0.0)
            states[row] = held + self._number(-self.after * factor * (1 - l) / self.path.alpha(time))
            evaluations[row] = self._number(self.after * factor)
            offset = offset - weight * shift
        mean = self._number(-self.after * offset) if self.levels.dim is not None else 0.0
        table.rows.append(Row(self.time, states, evaluations, {}, mean))
        return len(table.rows) - 1

    def _number(self, value: np.ndarray) -> Number:
        """A coefficient (1, E) for coordinates of their own, or a number."""
        if self.levels.dim is None:
            return float(value[0])
        made: Tensor = torch.from_numpy(np.ascontiguousarray(value))[None]
        return made


def _pseudo_weights(positions: Sequence[float], moments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Weights of g at the positions where divided differences of the first points stand for derivatives over k! at the first.

    The k-th divided difference is sum_j g_j/prod_{i != j} (u_j - u_i) over the first k + 1 points.
    """
    weights = [np.zeros_like(moments[0]) for _ in positions]
    for k, moment in enumerate(moments):
        first = positions[: k + 1]
        for j, at in enumerate(first):
            weights[j] = weights[j] + moment / math.prod(at - other for i, other in enumerate(first) if i != j)
    return weights
