"""Picard iteration over the steps of a run, all of them at once: ParaDiGMS, and with Anderson acceleration ParaTAA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from diffode.arguments import check_count
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.randomness import Randomness, RowNoise
from diffode.solvers.direct import Journey
from diffode.solvers.in_parallel import Calls, InParallel, units
from diffode.tableau import Tableau

#: Ridge of the least squares of Anderson's method, relative to the mean square of its differences.
_RIDGE = 1e-10
#: Largest number of past sweeps that it may combine.
_MOST_MEMORY = 20


@dataclass(frozen=True, kw_only=True)
class Picard(InParallel):
    r"""Sweeps over the steps of ``base``: all evaluations at once, at guessed states, then all states from these evaluations.

    Of the table x_i = sum A x_j + sum B m_j + sum C xi_k of the base a sweep evaluates the m_j at the states of the sweep
    before and sums the rows, which for DDIM is :math:`z_i = z_0 + \sum_{j<i} (\theta_{j+1} - \theta_j) m_j`, as Picard did.
    After n sweeps the first n evaluations are those of the sequential run, so that it is found in at most as many sweeps as it
    has evaluations, and in fewer where states settle. Noise is drawn once and kept.

    ``window`` is the number of evaluations of a sweep (none: all that are left). A row's window begins at its first evaluation
    whose state moved by more than ``tolerance``. The first guess is the start in units of the noised data's deviation, which
    on a VP path with data of unit scale is the start itself, as published.

    With ``memory`` > 0 the last sweeps are combined by triangular Anderson acceleration: with residual r = g(x) - x and
    differences of the last ``memory`` sweeps, state i becomes g_i - (dx_i + dr_i) c_i, where c_i makes the sum over j <= i of
    |r_j - dr_j c_i|^2 least; the first state of a window is left as the sweep made it. ParaTAA's systems of order k, whose
    states follow from those k steps before them instead of from the first, are left out.
    """

    window: int | None = None
    memory: int = 0

    name = "picard"
    draws_for_rows = True
    reference: ClassVar[str] = (
        "Shih, Belkhale, Ermon, Sadigh, Anari, arXiv 2305.16317, algorithm 1; Tang, Tang, Luo, Wang, Chang, arXiv 2402.09970, "
        "section 3, for memory"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            check_count("window", self.window, 1)
        if type(self.memory) is not int or not 0 <= self.memory <= _MOST_MEMORY:
            raise ArgumentError(f"memory must be an integer from 0 to {_MOST_MEMORY}, got {self.memory!r:.40}")
        if self.sweeps is not None and self.window is not None:
            raise ArgumentError("give sweeps or window, not both: a fixed number of sweeps need not bring a window to the end")

    @property
    @override
    def spends(self) -> str:
        inside = "that are left" if self.window is None else f"in the window of {self.window} evaluations"
        return f"{self.nfe_per_step} in every sweep over the steps {inside}; a run says its sweeps"

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: Randomness | None) -> Journey:
        self.check_derivative(x)
        table = self.recipe.tableau(field.path, list(times))
        if table.draws and generator is None:
            raise ArgumentError(f"solver {self.spec!r} draws noise: pass generator= (a seed or torch.Generator)")
        if not len(x):
            return Journey(x[None].expand(len(times), *x.shape), sweeps=x.new_zeros(0, dtype=torch.int64), latency=0)
        noise = RowNoise(x, table.draws, generator) if table.draws and generator is not None else None
        run = _Run(self, table, field, x, None if noise is None else [noise(k) for k in range(table.draws)].__getitem__)
        while bool(run.going.any()):
            run.sweep()
        return Journey(run.states[list(table.outputs)], sweeps=run.made, latency=run.calls.latency)


class _Run:
    """The sweeps of a run: states of all rows of the table (rows, B, *shape), and evaluations (K, B, *shape)."""

    def __init__(self, solver: Picard, table: Tableau, field: Field, x: Tensor, draw: Callable[[int], Tensor] | None):
        self.solver, self.table, self.draw, self.calls = solver, table, draw, Calls(field, len(x), x.device)
        self.places = table.evaluated
        self.count, self.window = len(self.places), min(solver.window or len(self.places), len(self.places))
        times = [float(table.rows[place].time) for place in self.places]
        self.times = torch.tensor(times, dtype=torch.float64, device=x.device)
        self.units = units(table.path, times, field.scale).to(x.device)
        self.states = x.expand(len(table.rows), *x.shape).clone()
        self.guessed = self._guess(x, 0).clone()
        self.answers = torch.zeros_like(self.guessed)
        #: The first evaluation of each row of the batch that is not settled, (B,), and the sweeps that it took part in.
        self.front, self.made = torch.zeros(2, len(x), dtype=torch.int64, device=x.device)
        self._past: list[tuple[Tensor, Tensor]] = []
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def going(self) -> Tensor:
        """The rows of the batch that have not settled, (B,)."""
        most = self.solver.sweeps
        rows: Tensor = (self.front < self.count) & (self.made < (self.count if most is None else most))
        return rows

    def _guess(self, x: Tensor, number: Tensor | int) -> Tensor:
        """States (K, B, *shape) with the deviations of x, which is the state of evaluation ``number``, (B,) or one for all."""
        share = self.units[:, None] / self.units[number]
        factor: Tensor = share.to(x).expand(self.count, len(x)).reshape(self.count, len(x), *(1,) * (x.ndim - 1))
        guess: Tensor = factor * x
        return guess

    def sweep(self) -> None:
        """Evaluate the windows of all rows that are not settled, make their states, and move on the windows."""
        number = torch.arange(self.count, device=self.front.device)[:, None]
        going = self.going
        inside = (number >= self.front) & (number < self.front + self.window) & going
        which, rows = torch.nonzero(inside, as_tuple=True)
        asked = self.guessed[which, rows]
        self.answers[which, rows] = self.calls.predict(self.table.prediction, asked, self.times[which], rows)
        self.made += going
        self._sum(int(self.front[going].min()), int((self.front[going] + self.window).max()))
        # The state of an evaluation is new if one of those before it, from the front on, was made.
        new = (number > self.front) & (number <= self.front + self.window) & going
        made = self.states[self.places]
        change = (made - self.guessed).flatten(2)
        moved = new & self.solver.moves(change, self.units[:, None])
        last = (self.front + self.window).clamp(max=self.count)
        first = torch.where(moved, number, self.count).amin(0)
        self.front = torch.where(going, torch.minimum(first, last), self.front)
        self._propose(made, change, new, number)
        if self.window < self.count:
            self._enter(made, last, number, going)

    def _sum(self, low: int, high: int) -> None:
        """The rows of the table that follow evaluation ``low``, up to that of evaluation ``high``, from states and answers."""
        end = self.places[high] if high < self.count else len(self.table.rows) - 1
        slots = [*self.states, *([None] * len(self.states))]
        for place, answer in zip(self.places, self.answers, strict=True):
            slots[len(self.states) + place] = answer
        for step in self.table.program:
            if self.places[low] < step.row <= end:
                # A row that is settled is made of what is settled, and so made again as it is.
                self.states[step.row] = step._replace(unused=()).make(slots, self.draw)

    def _propose(self, made: Tensor, change: Tensor, new: Tensor, number: Tensor) -> None:
        """Guess the states of the next sweep: those just made, and with a memory what Anderson's method makes of them."""
        guess = torch.where(new[(...,) + (None,) * (made.ndim - 2)], made, self.guessed)
        if self.solver.memory:
            share = 1 / self.units[:, None, None].to(change)
            kept, residual = new & torch.isfinite(change).all(-1), change * share
            if self._last is not None:
                both = (kept & self._last[2])[..., None]
                state = (self.guessed.flatten(2) - self._last[0]).where(both, 0.0)
                self._past = [(state, (residual - self._last[1]).where(both, 0.0)), *self._past][: self.solver.memory]
            self._last = (self.guessed.flatten(2), residual, kept)
            if self._past:
                # Evaluations that settled before the new front, and that at the front, are left as they are.
                free = kept & (number > self.front)
                turned = self._turned(residual.where((kept & (number >= self.front))[..., None], 0.0)) / share
                better = made - turned.reshape(made.shape)
                usable = free & torch.isfinite(better.flatten(2)).all(-1)
                guess = torch.where(usable[(...,) + (None,) * (made.ndim - 2)], better, guess)
        self.guessed = guess

    def _turned(self, residual: Tensor) -> Tensor:
        """(dx_i + dr_i) c_i for all states, in their units, from residuals (K, B, D)."""
        share = 1 / self.units[:, None, None].to(residual)
        within = (residual != 0).any(-1, keepdim=True)
        drops = torch.stack([drop.where(within, 0.0) for _, drop in self._past])
        # Differences of sweeps that have nearly settled are nearly parallel, and the square of that has no digits in float32.
        exact = drops.double()
        gram = torch.einsum("pkbd,qkbd->kbpq", exact, exact).cumsum(0)
        right = torch.einsum("pkbd,kbd->kbp", exact, residual.double()).cumsum(0)
        size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        ridge = _RIDGE * size + torch.finfo(torch.float64).tiny
        eye = torch.eye(len(self._past), dtype=torch.float64, device=residual.device)
        weights = torch.linalg.solve(gram + ridge[..., None, None] * eye, right[..., None])[..., 0].to(residual)
        both = torch.stack([state * share + drop for state, drop in self._past])
        return torch.einsum("pkbd,kbp->kbd", both, weights)

    def _enter(self, made: Tensor, last: Tensor, number: Tensor, going: Tensor) -> None:
        """Guess the states beyond the windows of the last sweep, which the next windows may hold, from the last one made."""
        inner = last.clamp(max=self.count - 1)
        from_last = self._guess(made[inner, torch.arange(len(inner), device=inner.device)], inner)
        beyond = (number > inner) & going
        self.guessed = torch.where(beyond[(...,) + (None,) * (made.ndim - 2)], from_last, self.guessed)
