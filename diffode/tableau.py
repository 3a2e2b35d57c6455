r"""The table every sampler is, once path and grid are fixed.

Row i says

.. math::
    x_i = \sum_{j<i} A_{ij} x_j + \sum_{j<i} B_{ij} m_j + \sum_k C_{ik} \xi_k,
    \qquad m_j = \mathrm{field.prediction}(x_j, \tau_j),

with :math:`\xi_k` standard normal draws; :math:`x_0` is the start. A solver writes such a table in float64 before the first
evaluation; one short loop here runs any of them, and Gaussians are propagated through it exactly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import PREDICTIONS, Prediction, columns, conversion
from diffode.paths import Path
from diffode.randomness import drawn_once

if TYPE_CHECKING:
    from diffode.fields import Field
    from diffode.propagation import Propagated

#: A number, or one number a row of the batch, (B,).
Number = float | Tensor
Coefficients = Mapping[int, Any]
#: A run driven from outside, see :meth:`Tableau.driven`.
Driven = Generator[tuple[int, Tensor], Tensor | tuple[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One state: its time, and the coefficients of earlier states, evaluations and noise draws that make it.

    The time and the coefficients are floats, or (B,) float64 tensors in a table written for the rows of one batch.
    """

    time: Any
    states: Coefficients = field(default_factory=dict)
    evaluations: Coefficients = field(default_factory=dict)
    draws: Coefficients = field(default_factory=dict)


@dataclass(frozen=True)
class Tableau:
    """A sampler on a fixed grid.

    Attributes:
        prediction: what the field is asked for at each evaluated state.
        rows: the states, ``rows[0]`` being the start (which has no coefficients).
        outputs: rows that are the solution at the grid's times, start and end included.
        path: the path it was written for; None for a plain ODE.
        solver: the spec of the solver that wrote it.
        spans: for each noise draw, the interval of the solver's noise clock over which it is the Brownian path's increment
            (scaled to unit variance); empty if the draws belong to no such path.
    """

    prediction: Prediction
    rows: tuple[Row, ...]
    outputs: tuple[int, ...]
    path: Path | None = None
    solver: str = ""
    spans: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ArgumentError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}")
        for i, row in enumerate(self.rows):
            for j in (*row.states, *row.evaluations):
                if not 0 <= j < i:
                    raise ArgumentError(f"row {i} uses row {j}: a tableau is strictly lower triangular")
            values = [row.time, *row.states.values(), *row.evaluations.values(), *row.draws.values()]
            if i and not (row.states or row.evaluations):
                raise ArgumentError(f"row {i} (t={row.time}) is empty: it must use some earlier state or evaluation")
            if not all(bool(torch.isfinite(v).all()) if isinstance(v, Tensor) else math.isfinite(v) for v in values):
                raise ArgumentError(f"row {i} (t={row.time}) has a non-finite coefficient")

    def __repr__(self) -> str:
        ends = (
            f"{len(self.outputs)} times from {self.rows[0].time} to {self.rows[-1].time}" if self.batch is None else "a batch"
        )
        return f"Tableau({self.solver or 'table'} on {self.path.spec if self.path else 'no path'}, nfe={self.nfe}, {ends})"

    @functools.cached_property
    def batch(self) -> int | None:
        """The number of rows it was written for, if its coefficients differ from row to row; else None."""
        for row in self.rows:
            for value in (row.time, *row.states.values(), *row.evaluations.values(), *row.draws.values()):
                if isinstance(value, Tensor) and value.ndim:
                    return int(value.shape[0])
        return None

    def one_for_all(self, purpose: str) -> None:
        """Raise ArgumentError if the coefficients differ from row to row."""
        if self.batch is not None:
            raise ArgumentError(f"{purpose} needs one table for all rows; this one was written for a batch of {self.batch}")

    @property
    def evaluated(self) -> list[int]:
        """Rows at which the field is called, in order."""
        used = {j for row in self.rows for j in row.evaluations}
        return sorted(used)

    @property
    def nfe(self) -> int:
        """Number of calls of the field in one run."""
        return len(self.evaluated)

    @property
    def draws(self) -> int:
        """Number of noise draws one run uses."""
        return 1 + max((k for row in self.rows for k in row.draws), default=-1)

    @property
    def times(self) -> Tensor:
        """Time of every row, (rows,), float64."""
        self.one_for_all("times")
        return torch.tensor([row.time for row in self.rows], dtype=torch.float64)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrices A, B (rows, rows) and C (rows, draws), float64."""
        self.one_for_all("dense")
        count = len(self.rows)
        a, b = torch.zeros(2, count, count, dtype=torch.float64)
        c = torch.zeros(count, self.draws, dtype=torch.float64)
        for i, row in enumerate(self.rows):
            for matrix, entries in ((a, row.states), (b, row.evaluations), (c, row.draws)):
                for j, value in entries.items():
                    matrix[i, j] = value
        return a, b, c

    def run(self, field: Field, x: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Run the table from x (B, *shape) and return the last state; ``noise`` is (draws, B, *shape) if it has draws."""
        if self.draws and noise is None:
            raise ArgumentError(f"this tableau uses {self.draws} noise draws; pass noise= of shape (draws, B, *shape)")
        if noise is not None and self.draws and noise.shape != (self.draws, *x.shape):
            raise ArgumentError(f"noise must have shape {(self.draws, *x.shape)}, got {tuple(noise.shape)}")
        last = x
        for _, state in self.walk(field, x, None if noise is None else noise.to(x).__getitem__):
            last = state
        return last

    def walk(self, field: Field, x: Tensor, draw: Callable[[int], Tensor] | None = None) -> Iterator[tuple[int, Tensor]]:
        """The one loop that runs every sampler: yields each row's index and state as it is made.

        States and evaluations are dropped as soon as no later row needs them. ``draw(k)`` gives the k-th noise.
        """
        predict, name = field.predict, self.prediction
        # Slot j holds state j, slot len(rows) + j its evaluation.
        if self.batch is not None and self.batch != x.shape[0]:
            raise ArgumentError(f"this table was written for a batch of {self.batch} rows, x has {x.shape[0]}")
        slots: list[Any] = [None] * (2 * len(self.rows))
        slots[0] = x
        for step in self.program:
            for state, slot, time in step.evaluate:
                slots[slot] = predict(name, slots[state], time)
            yield step.row, step.make(slots, draw)

    def driven(self, x: Tensor, draw: Callable[[int], Tensor] | None = None) -> Driven:
        """The same run driven from outside, for loops that own the network: yields the row and the state to be evaluated next,
        is sent the prediction there, or prediction and state if the loop has changed that, and returns the last state.

        >>> import diffode
        >>> field = diffode.exact_field("ring8", "edm")
        >>> table = diffode.solvers.get("dpmpp:order=2").tableau(field.path, "karras", 5)
        >>> run = table.driven(field.prior(2, generator=0))
        >>> row, x = next(run)
        >>> for time in table.times[table.evaluated[1:]].tolist():
        ...     row, x = run.send(field.predict(table.prediction, x, float(table.times[row])))
        """
        slots: list[Any] = [None] * (2 * len(self.rows))
        slots[0] = last = x
        draw = None if draw is None else drawn_once(draw, (k for row in self.rows for k in row.draws))
        for step in self.program:
            for state, slot, _ in step.evaluate:
                answer = yield state, slots[state]
                if isinstance(answer, tuple):
                    answer, slots[state] = answer
                slots[slot] = answer
            last = step.make(slots, draw)
        return last

    @property
    def program(self) -> list[Step]:
        """The rows as instructions, compiled once."""
        cached = self.__dict__.get("_compiled")
        if cached is None:
            cached = _compile(self.rows)
            object.__setattr__(self, "_compiled", cached)
        steps: list[Step] = cached
        return steps

    def propagate(self, mean: Tensor | float, eigenvalues: Tensor | Sequence[float], *, start: str = "exact") -> Propagated:
        """The exact law of the output when the data are one Gaussian; no sampling noise.

        Args:
            mean: mean of the data along each eigen-direction, (E,) or a number.
            eigenvalues: variances of the data along the eigen-directions, (E,).
            start: ``"exact"`` starts from p at the first time; ``"prior"`` from N(0, sigma^2 I), as samplers do.

        Returns:
            :class:`Propagated`. The field of a Gaussian is affine, so a row acts on a direction as a scalar recurrence.
        """
        if self.path is None:
            raise ArgumentError("propagate needs a tableau written for a path; this one is for a plain ODE")
        self.one_for_all("propagate")
        if start not in ("exact", "prior"):
            raise ArgumentError(f"start must be 'exact' or 'prior', got {start!r}")
        try:
            variances = torch.as_tensor(eigenvalues, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"eigenvalues must be numbers, variances of the data, got {eigenvalues!r:.80}") from error
        if not bool((torch.isfinite(variances) & (variances >= 0)).all()):
            raise ArgumentError(f"eigenvalues must be finite and >= 0: they are variances, got {eigenvalues!r:.80}")
        try:
            centre = torch.as_tensor(mean, dtype=torch.float64).expand_as(variances)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentError(
                f"mean must be a number or have the shape of eigenvalues, {tuple(variances.shape)}, got {mean!r:.80}"
            ) from None
        if not bool(torch.isfinite(centre).all()):
            raise ArgumentError(f"mean must be finite, got {mean!r:.80}")
        from diffode.propagation import propagate

        return propagate(self, self.path, centre, variances, exact=start == "exact")

    def save(self, file: str | FilePath) -> None:
        """Write the table as safetensors, with its description as JSON metadata."""
        from diffode.tableau_files import write

        write(self, file)

    @classmethod
    def load(cls, file: str | FilePath) -> Tableau:
        """Read a table written by :meth:`save`; raises FileFormatError for anything that is not one."""
        from diffode.tableau_files import read

        return read(file)

    def analytic_first_step(self) -> Tableau:
        """The same table with the first evaluation replaced by that of standard normal data, which is linear in x.

        The published direction is (x/alpha)/sqrt(1 + rho^2) in the noise chart (Dockhorn et al., arXiv 2210.05475; the
        normalisation is that of the AMED code). It saves one evaluation and makes any solver first order.
        """
        if self.path is None:
            raise ArgumentError("analytic_first_step needs a path: without one there is no noise prediction to replace")
        t = self.rows[0].time
        noise = 1 / (self.path.alpha(t) * (1 + self.path.rho(t) ** 2) ** 0.5)
        of_x, of_noise = conversion(self.path, "noise", self.prediction, t)
        factor = of_x + of_noise * noise
        rows = []
        for row in self.rows:
            evaluations = dict(row.evaluations)
            states = dict(row.states)
            if 0 in evaluations:
                states[0] = states.get(0, 0.0) + factor * evaluations.pop(0)
            rows.append(replace(row, states=states, evaluations=evaluations))
        return replace(self, rows=tuple(rows))


class Writer:
    """Collects the rows of a tableau while a solver writes them; ``start`` is row 0, at the grid's first time."""

    def __init__(self, prediction: Prediction, start_time: float):
        self.prediction: Prediction = prediction
        self.rows = [Row(start_time)]
        self.outputs = [0]
        self.spans: list[tuple[float, float] | None] = []

    start = 0

    def time(self, row: int) -> Any:
        """The time of a row."""
        return self.rows[row].time

    def add(self, time: Number, states: Coefficients, evaluations: Coefficients, draws: Coefficients | None = None) -> int:
        """Append a state and return its row."""
        self.rows.append(Row(time, dict(states), dict(evaluations), dict(draws or {})))
        return len(self.rows) - 1

    def draw(self, span: tuple[float, float] | None = None) -> int:
        """The index of a new noise draw; ``span`` is its interval of the noise clock, which runs forward."""
        self.spans.append(span)
        return len(self.spans) - 1

    def noised(self, row: int, time: float, scale: float, spread: float, span: tuple[float, float] | None = None) -> int:
        """Turn the last row into scale times itself plus spread times a new draw, at another time."""
        last = self.rows.pop()
        self.add(
            time,
            {j: scale * a for j, a in last.states.items()},
            {j: scale * b for j, b in last.evaluations.items()},
            {self.draw(span): spread} if spread else None,
        )
        return row

    def output(self, row: int) -> int:
        """Mark a row as the solution at its time."""
        self.outputs.append(row)
        return row

    def finish(self, path: Path | None, solver: str) -> Tableau:
        """The finished table, without rows that nothing uses and without zero coefficients of evaluations."""
        rows = [
            replace(row, evaluations={j: v for j, v in row.evaluations.items() if isinstance(v, Tensor) or v != 0})
            for row in self.rows
        ]
        spans = tuple(span for span in self.spans if span)
        known = len(spans) == len(self.spans)
        return Tableau(self.prediction, tuple(rows), tuple(self.outputs), path, solver, spans if known else ())


class Step(NamedTuple):
    """One row, compiled: what to evaluate first (state, slot of the answer, time), the terms of its sum (slot, factor), its
    draws, and the slots that nothing needs after it.

    ``plain`` is the commonest sum, x_i + b m_j, which one call of PyTorch makes.
    """

    row: int
    evaluate: tuple[tuple[int, int, float], ...]
    plain: tuple[int, int, float] | None
    terms: tuple[tuple[int, float], ...]
    draws: tuple[tuple[int, float], ...]
    unused: tuple[int, ...]

    def make(self, slots: list[Any], draw: Callable[[int], Tensor] | None) -> Tensor:
        """The row's state, put into its slot; slots that nothing needs any more are emptied."""
        if self.plain is not None:
            i, j, b = self.plain
            total = torch.add(slots[i], slots[j], alpha=b)
        else:
            total = _sum(slots, self.terms, self.draws, draw)
        slots[self.row] = total
        for slot in self.unused:
            slots[slot] = None
        return total


def _sum(
    slots: Sequence[Any],
    terms: tuple[tuple[int, Any], ...],
    draws: tuple[tuple[int, Any], ...],
    draw: Callable[[int], Tensor] | None,
) -> Tensor:
    """A weighted sum as a new tensor: the first term makes it, so nothing that others own is written to."""
    slot, factor = terms[0]
    total: Tensor = slots[slot] * (columns(factor, slots[slot]) if isinstance(factor, Tensor) else factor)
    for slot, factor in terms[1:]:
        if isinstance(factor, Tensor):
            total.add_(slots[slot] * columns(factor, total))
        else:
            total.add_(slots[slot], alpha=factor)
    for k, factor in draws:
        if draw is None:
            raise ArgumentError("this tableau uses noise draws; pass noise= or generator=")
        total.add_(draw(k), alpha=factor)
    return total


def _compile(rows: Sequence[Row]) -> list[Step]:
    count = len(rows)
    terms = [(*row.states.items(), *((count + j, b) for j, b in row.evaluations.items())) for row in rows]
    evaluated_at: dict[int, int] = {}
    last_use: dict[int, int] = {i: i for i in range(1, count)}
    for i, row in enumerate(rows):
        for j in row.evaluations:
            if evaluated_at.setdefault(j, i) == i:
                last_use[j] = i
        last_use.update({slot: i for slot, _ in terms[i]})
    evaluate: list[list[int]] = [[] for _ in rows]
    for j, i in evaluated_at.items():
        evaluate[i].append(j)
    unused: list[list[int]] = [[] for _ in rows]
    for slot, i in last_use.items():
        unused[i].append(slot)
    steps = []
    for i, row in enumerate(rows[1:], start=1):
        alike = not any(isinstance(factor, Tensor) for _, factor in terms[i])
        plain = len(terms[i]) == 2 and not row.draws and alike and terms[i][0][1] == 1.0
        steps.append(
            Step(
                i,
                tuple((j, count + j, rows[j].time) for j in evaluate[i]),
                (terms[i][0][0], *terms[i][1]) if plain else None,
                terms[i],
                tuple(row.draws.items()),
                tuple(unused[i]),
            )
        )
    return steps
