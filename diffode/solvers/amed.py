r"""AMED: solvers whose intermediate times and scales are predicted for every sample and step.

With t for rho = sigma/alpha, a step t -> t' has an inner time :math:`s = t'^r t^{1-r}`; the direction there is
:math:`d_s = (x_s - D(x_s, a s))/s` (divided by s, not a s), and the factor c scales the step. Here the predictions (r, c, a)
are given; with r = 1/2 and c = a = 1 the host runs unchanged on the grid with the geometric means of its levels added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode.charts import Chart, ExponentialChart, exponential_chart
from diffode.errors import ArgumentError
from diffode.solvers.adams import IPNDM
from diffode.solvers.dpm_multistep import DPMSolverPlusPlus
from diffode.solvers.solver import TableSolver, check_choice, final_order, steps_of
from diffode.specs import format_spec, options_of
from diffode.tableau import Number, Writer

#: The options that are predictions for each step and sample.
_PREDICTIONS = ("r", "direction_scale", "time_scale")

Given = float | tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class AMED(TableSolver):
    """AMED-Solver, or AMED-Plugin on a host: ``host`` is none, euler, dpm, ipndm or dpmpp (of the given ``order``).

    ``r`` in (0, 1) places the inner time, ``direction_scale`` (c) and ``time_scale`` (a) are factors near 1; each is a number
    or an array (steps, samples). Its order of convergence is known for r = 1/2 and c = a = 1 only: the predictions decide it.
    """

    host: Literal["euler", "dpm", "ipndm", "dpmpp"] | None = None
    order: int = 2
    r: Given = 0.5
    direction_scale: Given = 1.0
    time_scale: Given = 1.0

    name = "amed"
    reference = "Zhou et al., arXiv 2312.00094, equations 10 to 13; diff-sampler"
    nfe_per_step = 2

    def __post_init__(self) -> None:
        check_choice("host", self.host, (None, "euler", "dpm", "ipndm", "dpmpp"))
        check_choice("order", self.order, {"ipndm": (1, 2, 3, 4), "dpmpp": (1, 2, 3)}.get(self.host or "", (2,)))
        for name in _PREDICTIONS:
            object.__setattr__(self, name, _given(name, getattr(self, name)))
        sizes = {name: np.shape(getattr(self, name)) for name in _PREDICTIONS if isinstance(getattr(self, name), tuple)}
        if len(set(sizes.values())) > 1:
            raise ArgumentError(f"predictions must be of one shape (steps, samples), got {sizes}")

    @property
    def convergence_order(self) -> int:
        """The order of the host if r = 1/2 and c = a = 1; other r are first order, other scales do not converge."""
        return 1 if self.host == "euler" else 2

    @property
    @override
    def chart_name(self) -> str:
        return "data" if self.host == "dpmpp" else "noise"

    @property
    def spec(self) -> str:
        """The spec, which leaves out predictions that were given as arrays."""
        given = {
            key: value for key, value in options_of(self).items() if not (key in _PREDICTIONS and isinstance(value, tuple))
        }
        return format_spec(self.name, given)

    @override
    def write(self, table: Writer, chart: Chart, times: Sequence[float]) -> None:
        steps = len(times) - 1
        x, history = table.start, [_Slope(table.start, times[0], 1.0)]
        for number, s, t in steps_of(times):
            r, c, a = self.predictions(table, x, number, steps, (s, t))
            rho_s, rho_t = chart.path.rho(s), chart.path.rho(t)
            if rho_t == 0:
                raise ArgumentError("amed needs a last time with sigma > 0: its inner time is a geometric mean")
            rho = rho_t**r * rho_s ** (1 - r)
            middle = chart.path.time_from_rho(rho)
            seen = chart.path.time_from_rho(rho * a)
            inner = self._advance(table, chart, x, history, s, middle, 1.0, 2 * number - 1, 2 * steps)
            inner = _moved(table, chart, inner, middle, seen)
            history.insert(0, _Slope(inner, middle, a))
            if self.host in (None, "dpm"):
                x = table.output(self._whole(table, chart, x, history, s, t, r, c))
            else:
                back = _moved(table, chart, inner, seen, middle)
                x = table.output(self._advance(table, chart, back, history, middle, t, c, 2 * number, 2 * steps))
            history.insert(0, _Slope(x, t, 1.0))

    def predictions(
        self, table: Writer, x: int, number: int, steps: int, times: tuple[float, float]
    ) -> tuple[Number, Number, Number]:
        """(r, c, a) of step ``number`` from row x, as given; a trained solver overrides this and looks at the state."""
        r, c, a = (_step_of(name, getattr(self, name), number, steps) for name in _PREDICTIONS)
        return r, c, a

    def _whole(
        self, table: Writer, chart: Chart, x: int, history: list[_Slope], s: float, t: float, r: Number, c: Number
    ) -> int:
        """Append the whole step x' = x + c (t' - t) d_s, or with DPM-2's combination of d_s and d; returns its row."""
        advance = c * chart.path.alpha(t) * (chart.path.rho(t) - chart.path.rho(s))
        inner, first = history[0], history[1]
        share = 1.0 if self.host is None else 1 / (2 * r)
        weights = {inner.row: advance * inner.scale * share}
        if self.host == "dpm":
            weights[first.row] = advance * (1 - share) * first.scale
        return table.add(t, {x: chart.ratio(s, t)}, weights)

    def _advance(
        self,
        table: Writer,
        chart: Chart,
        x: int,
        history: list[_Slope],
        s: Number,
        t: Number,
        c: Number,
        number: int,
        total: int,
    ) -> int:
        """Append a step of the host on the grid of 2N points; c scales its direction (of dpmpp its non-linear part)."""
        if self.host == "dpmpp":
            order = final_order(self.order, number, total, "always")
            past = history[:order]
            weights = _multistep_weights(self.order, exponential_chart(chart), [p.time for p in past], t)
            return table.add(t, {x: chart.ratio(s, t)}, {p.row: c * w for p, w in zip(past, weights, strict=True)})
        shares = IPNDM.weights[min(self.order if self.host == "ipndm" else 1, len(history)) - 1]
        alpha = chart.path.alpha(t)
        advance = c * alpha * (chart.path.rho(t) - chart.path.rho(s))
        return table.add(
            t, {x: alpha / chart.path.alpha(s)}, {p.row: advance * w * p.scale for p, w in zip(history, shares, strict=False)}
        )


class _Slope:
    """An evaluated row, the time that its evaluation counts for, and the factor on its noise prediction."""

    def __init__(self, row: int, time: Number, scale: Number):
        self.row, self.time, self.scale = row, time, scale


def _moved(table: Writer, chart: Chart, row: int, time: Number, other: Number) -> int:
    """The row with the same x/alpha at another time, which is the same row where alpha is equal."""
    if isinstance(time, Tensor) or isinstance(other, Tensor):
        same = bool((torch.as_tensor(time) == torch.as_tensor(other)).all())
    else:
        same = time == other
    if same:
        return row
    return table.add(other, {row: chart.path.alpha(other) / chart.path.alpha(time)}, {})


def _multistep_weights(order: int, chart: ExponentialChart, past: list[Number], t: Number) -> list[Number]:
    if len(past) == 1:
        return [chart.exponential(1, past[0], t)]
    return DPMSolverPlusPlus(order=order).weights(chart, past, t)


def _given(name: str, value: Any) -> Given:
    """A prediction as a float or as rows of floats (steps, samples); ArgumentError for other shapes or values."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be a number or an array (steps, samples), got {value!r}") from None
    if (
        array.ndim not in (0, 2)
        or not np.isfinite(array).all()
        or not (array > 0).all()
        or (name == "r" and (array >= 1).any())
    ):
        limits = "in (0, 1)" if name == "r" else "positive"
        raise ArgumentError(f"{name} must be {limits}: a number or an array (steps, samples); got shape {array.shape}")
    return float(array) if array.ndim == 0 else tuple(map(tuple, array.tolist()))


def _step_of(name: str, value: Given, number: int, steps: int) -> Number:
    if not isinstance(value, tuple):
        return value
    if len(value) != steps:
        raise ArgumentError(f"{name} has predictions for {len(value)} steps, the grid has {steps}")
    return torch.tensor(value[number - 1], dtype=torch.float64)
