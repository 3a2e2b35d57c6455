r"""The table of a sampler on a path and a grid.

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
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import PREDICTIONS, Prediction, conversion
from diffode.paths import Path
from diffode.randomness import drawn_once
from diffode.statistics import Statistics
from diffode.tableau import files, written
from diffode.tableau.program import Step, compiled
from diffode.tableau.propagation import Propagated, propagate
from diffode.tableau.rows import Number, Row, is_integer

if TYPE_CHECKING:
    from diffode.fields import Field

#: A run driven from outside, see :meth:`Tableau.driven`.
Driven = Generator[tuple[int, Tensor], Tensor | tuple[Tensor, Tensor], Tensor]


#: What the arguments of a table are that are sequences.
_SEQUENCES = {
    "rows": "a sequence of diffode.tableau.Row",
    "outputs": "the indices of the rows at the grid's times, such as (0, 1)",
    "spans": "an interval of the noise clock for each draw, such as [(0.0, 1.0)], or empty",
}


def _interval(span: Any) -> tuple[float, float]:
    """The ends of the interval of a draw; ArgumentError unless they are two finite numbers that increase."""
    try:
        low, high = map(float, [] if isinstance(span, str) else span)
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ArgumentError(f"spans must be {_SEQUENCES['spans']}, each of two increasing numbers, got {span!r:.60}")
    return low, high


def _is_finite(value: Number) -> bool:
    return bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else math.isfinite(value)


def _of_finite(row: Row) -> bool:
    """Whether the time and all coefficients of a row are finite."""
    values = [row.time, *row.numbers]
    # A finite sum proves that all are finite; one that is not may have overflowed.
    return (row.plain and math.isfinite(sum(values))) or all(map(_is_finite, values))


@dataclass(frozen=True)
class Tableau:
    """A sampler on a fixed grid.

    Attributes:
        prediction: the view of the field at each evaluated state.
        rows: the states; ``rows[0]`` is the start, which has no coefficients.
        outputs: indices of the rows that are the solution at the grid's times, start and end included.
        path: the path that it was written for; None for a plain ODE.
        solver: the spec of the solver that wrote it.
        spans: for each noise draw, the interval of the solver's noise clock over which it is the increment of a Brownian
            motion, scaled to unit variance; empty if the draws are no such increments.
        statistics: those of the data, if a row has coefficients for their directions; else None.

    Raises:
        ArgumentError: for an unknown view, a row that uses later ones or none, a non-finite coefficient, coefficients for
            batches of different sizes, those for the directions of other statistics or none, or outputs that are no rows.
    """

    prediction: Prediction
    rows: tuple[Row, ...]
    outputs: tuple[int, ...]
    path: Path | None = None
    solver: str = ""
    spans: tuple[tuple[float, float], ...] = ()
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ArgumentError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}")
        self._settle()
        for i, row in enumerate(self.rows):
            if not isinstance(row, Row):
                raise ArgumentError(f"rows must be diffode.tableau.Row, got {row!r:.60} as row {i}")
            for j in (*row.states, *row.evaluations):
                if not 0 <= j < i:
                    raise ArgumentError(f"row {i} uses row {j}: a tableau is strictly lower triangular")
            if row.draws and min(row.draws) < 0:
                raise ArgumentError(f"row {i} uses draw {min(row.draws)}: draws are numbered from 0 on")
            if i and not (row.states or row.evaluations):
                raise ArgumentError(f"row {i} (t={row.time}) is empty: it must use some earlier state or evaluation")
            if not _of_finite(row):
                raise ArgumentError(f"row {i} (t={row.time}) has a non-finite coefficient")
            if row.plain and not row.mean:
                continue
            self._check_batch(i, row)
            if row.directed:
                self._check_directions(i, row)
        if self.spans:
            # A row that overflows, as its interval then may, is the better thing to name.
            object.__setattr__(self, "spans", tuple(map(_interval, self.spans)))
        count = len(self.rows)
        if not self.outputs or not all(is_integer(row) and 0 <= row < count for row in self.outputs):
            raise ArgumentError(
                f"outputs must be indices of the table's {count} rows, 0 to {count - 1}, got {self.outputs!r:.60}"
            )
        object.__setattr__(self, "outputs", tuple(map(int, self.outputs)))

    def _settle(self) -> None:
        """Make tuples of other sequences; ArgumentError for an argument of another type, whatever the rows are."""
        for name, what in _SEQUENCES.items():
            value = getattr(self, name)
            if type(value) is tuple:
                continue
            try:
                object.__setattr__(self, name, tuple(value))
            except TypeError:
                raise ArgumentError(f"{name} must be {what}, got {value!r:.60}") from None
        if self.path is not None and not isinstance(self.path, Path):
            raise ArgumentError(
                f"path must be a path, diffode.paths.get('edm'), or None for a plain ODE, got {self.path!r:.60}"
            )
        if not isinstance(self.solver, str):
            raise ArgumentError(f"solver must be the spec of what wrote the table, a text, got {self.solver!r:.60}")
        if self.statistics is not None and not isinstance(self.statistics, Statistics):
            raise ArgumentError(
                f"statistics must be diffode.Statistics, those of the data, or None, got {self.statistics!r:.60}"
            )

    def _check_batch(self, i: int, row: Row) -> None:
        sizes = {int(value.shape[0]) for value in (row.time, *row.numbers) if isinstance(value, Tensor) and value.ndim == 1}
        if sizes and sizes != {self.batch}:
            raise ArgumentError(
                f"row {i} has a number for each of {max(sizes - {self.batch})} rows of a batch, and an earlier number of the "
                f"table one for each of {self.batch}: all must be of the same batch, (B,)"
            )

    def _check_directions(self, i: int, row: Row) -> None:
        if self.statistics is None:
            raise ArgumentError(f"row {i} has coefficients for directions, or of the mean, of data: give statistics=")
        count = self.statistics.basis.count
        for value in row.numbers:
            if isinstance(value, Tensor) and value.ndim == 2 and value.shape != (1, count):
                raise ArgumentError(
                    f"row {i} has coefficients of shape {tuple(value.shape)}; for {count} directions they must be (1, {count})"
                )

    def __repr__(self) -> str:
        ends = (
            f"{len(self.outputs)} times from {self.rows[0].time} to {self.rows[-1].time}" if self.batch is None else "a batch"
        )
        return f"Tableau({self.solver or 'table'} on {self.path.spec if self.path else 'no path'}, nfe={self.nfe}, {ends})"

    @functools.cached_property
    def batch(self) -> int | None:
        """The size of the batch for whose rows it was written, if its coefficients differ between these; else None."""
        for row in self.rows:
            for value in () if row.plain else (row.time, *row.numbers):
                if isinstance(value, Tensor) and value.ndim == 1:
                    return int(value.shape[0])
        return None

    def one_for_all(self, purpose: str) -> None:
        """Raise ArgumentError if the coefficients differ between the rows of a batch."""
        if self.batch is not None:
            raise ArgumentError(f"{purpose} needs one table for all rows; this one was written for a batch of {self.batch}")

    @property
    def directed(self) -> bool:
        """Whether coefficients differ between the directions of the data's covariance."""
        return any(row.directed for row in self.rows)

    def numbers_alone(self, purpose: str) -> None:
        """Raise ArgumentError if coefficients differ between directions of the data."""
        if self.directed:
            raise ArgumentError(
                f"{purpose} needs a table of plain numbers; that of {self.solver!r} has coefficients for directions of the data"
            )

    @property
    def evaluated(self) -> list[int]:
        """Indices of the rows at which the field is called, in order."""
        return list(self._evaluated)

    @functools.cached_property
    def _evaluated(self) -> tuple[int, ...]:
        return tuple(sorted({j for row in self.rows for j in row.evaluations}))

    @property
    def nfe(self) -> int:
        """Number of calls of the field in one run."""
        return len(self._evaluated)

    @functools.cached_property
    def draws(self) -> int:
        """Number of noise draws of one run."""
        return 1 + max((k for row in self.rows for k in row.draws), default=-1)

    @property
    def times(self) -> Tensor:
        """Time of every row, (rows,), float64."""
        self.one_for_all("times")
        return torch.tensor([row.time for row in self.rows], dtype=torch.float64)

    @property
    def output_times(self) -> Tensor:
        """The grid's times, (steps + 1,), float64."""
        return self._output_times.clone()

    @functools.cached_property
    def _output_times(self) -> Tensor:
        return torch.tensor([float(self.rows[i].time) for i in self.outputs], dtype=torch.float64)

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last time of the grid, which are the same for all rows of a batch."""
        return float(self.rows[0].time), float(self.rows[self.outputs[-1]].time)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrices A, B (rows, rows) and C (rows, draws), float64."""
        self.one_for_all("dense")
        self.numbers_alone("dense")
        count = len(self.rows)
        a, b = torch.zeros(2, count, count, dtype=torch.float64)
        c = torch.zeros(count, self.draws, dtype=torch.float64)
        for i, row in enumerate(self.rows):
            for matrix, entries in ((a, row.states), (b, row.evaluations), (c, row.draws)):
                for j, value in entries.items():
                    matrix[i, j] = value
        return a, b, c

    def run(self, field: Field, x: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """The last state, (B, *shape), of a run from x (B, *shape); ``noise`` is (draws, B, *shape) if the table has draws."""
        if self.draws and noise is None:
            raise ArgumentError(f"this tableau uses {self.draws} noise draws; pass noise= of shape (draws, B, *shape)")
        if noise is not None and self.draws and noise.shape != (self.draws, *x.shape):
            raise ArgumentError(f"noise must have shape {(self.draws, *x.shape)}, got {tuple(noise.shape)}")
        last = x
        with field.counted():
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
        slots = self._slots(x)
        for step in self.program:
            for state, slot, time in step.evaluate:
                slots[slot] = predict(name, slots[state], time)
            yield step.row, step.make(slots, draw)

    def driven(self, x: Tensor, draw: Callable[[int], Tensor] | None = None) -> Driven:
        """The same run for loops that own the network: a generator that yields the row and the state to be evaluated next,
        takes the prediction there (with the state, if the loop has changed it), and returns the last state.

        >>> import diffode
        >>> field = diffode.exact_field("ring8", "edm")
        >>> table = diffode.solvers.get("dpmpp:order=2").tableau(field.path, "karras", 5)
        >>> run = table.driven(field.prior(2, generator=0))
        >>> row, x = next(run)
        >>> for time in table.times[table.evaluated[1:]].tolist():
        ...     row, x = run.send(field.predict(table.prediction, x, float(table.times[row])))
        """
        slots = self._slots(x)
        last = x
        draw = None if draw is None else drawn_once(draw, (k for row in self.rows for k in row.draws))
        for step in self.program:
            for state, slot, _ in step.evaluate:
                answer = yield state, slots[state]
                if isinstance(answer, tuple):
                    answer, slots[state] = answer
                    if self.statistics is not None:
                        slots[2 * len(self.rows) + state] = None
                slots[slot] = answer
            last = step.make(slots, draw)
        return last

    def _slots(self, x: Tensor) -> list[Any]:
        """Room for the states and evaluations of a run from x, and for their coordinates in the basis of the statistics."""
        slots: list[Any] = [None] * (2 * len(self.rows) * (1 if self.statistics is None else 2))
        slots[0] = x
        return slots

    @property
    def program(self) -> list[Step]:
        """The instructions of the rows, compiled once."""
        cached = self.__dict__.get("_compiled")
        if cached is None:
            cached = compiled(self.rows, self.statistics)
            object.__setattr__(self, "_compiled", cached)
        steps: list[Step] = cached
        return steps

    def propagate(self, mean: Tensor | float, eigenvalues: Tensor | Sequence[float], *, start: str = "exact") -> Propagated:
        """The exact law of the output when the data are one Gaussian, without sampling.

        Args:
            mean: mean of the data along each eigen-direction, (E,) or a number.
            eigenvalues: variances of the data along the eigen-directions, (E,); of a table with statistics, along theirs.
            start: ``"exact"`` starts from p at the first time; ``"prior"`` from N(0, sigma^2 I), as samplers do.

        Returns:
            The mean, variance and gain of the output along each eigen-direction, (E,).
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
        return propagate(
            self.rows[: self.outputs[-1] + 1], self.prediction, self.path, centre, variances,
            exact=start == "exact", statistics=self.statistics if self.directed else None,
        )  # fmt: skip

    def save(self, file: str | FilePath) -> None:
        """Write the table as safetensors, with its description as JSON metadata."""
        files.write(self, file)

    def written(self, form: written.Form, *, solver: str = "", grid: str = "") -> str:
        """The table as text for other programs, ``python``, ``json`` or ``diffusers``; see ``diffode.tableau.written``.

        ``solver`` and ``grid`` are specs for the title of the text.

        >>> import diffode
        >>> text = diffode.solvers.table_solver("heun").tableau("edm", "karras", 4).written("python")
        >>> "diffode" in text.partition("def sample")[2]
        False
        """
        return written.written(self, form, solver=solver, grid=grid)

    @classmethod
    def load(cls, file: str | FilePath) -> Tableau:
        """Read a table that :meth:`save` wrote; FileFormatError for any other file."""
        return files.read(file, cls)

    def analytic_first_step(self) -> Tableau:
        """The same table with the first evaluation replaced by the noise of standard normal data, which is linear in x.

        That noise is (x/alpha)/sqrt(1 + rho^2) (Dockhorn et al., arXiv 2210.05475, with the normalisation of the AMED code).
        It saves one evaluation and makes any solver first order. ArgumentError for a table without a path.
        """
        self.numbers_alone("analytic_first_step")
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
