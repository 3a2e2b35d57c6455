r"""Adaptive steps for the reverse SDE, with a step for every row and noise that rejected steps don't bias.

The rejection of a step depends on its noise. Other noise for the shorter step would favour noise that is easy to integrate;
here the noise stays, and a Brownian bridge divides it (rejection sampling with memory: Rackauckas and Nie, Discrete and
Continuous Dynamical Systems B 22 (2017), algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Field, conversion
from diffode.paths import Path
from diffode.randomness import Randomness, RowNoise
from diffode.solvers.controller import Controller, controller_of
from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.solver import WithNoise

#: Share of the whole way below which a step counts as vanished: its row is unfinished.
_SHORTEST_STEP = 1e-10
#: Number of draws set aside for a run, more than any run makes.
_MOST_DRAWS = 2**40


class Increments:
    """Brownian increments of rows (n, D) over steps that may be rejected and divided.

    Each row keeps a stack of the increments that were drawn but are not yet used, the earliest on top.
    """

    def __init__(self, rows: Tensor):
        self._lengths = rows.new_zeros(len(rows), 4, dtype=torch.float64)
        self._values = rows.new_zeros(len(rows), 4, rows.shape[1])
        self._count = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)

    def take(self, rows: Tensor, wish: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The next increments of ``rows`` (n,) over steps of length ``wish`` (n,), or shorter ones where the stack's top is.

        Returns the lengths (n,) and the increments (n, D); ``z`` (n, D) are new standard normals.
        """
        top = self._count[rows] - 1
        known = top >= 0
        top = top.clamp(min=0)
        length, value = self._lengths[rows, top], self._values[rows, top]
        whole = known & (length <= wish * (1 + 1e-12))
        share = torch.where(known, (wish / length.clamp(min=1e-300)).clamp(max=1.0), 1.0)
        # A bridge over the share q of a known increment has q times the increment as mean and q (1 - q) length as variance.
        spread = torch.where(known, share * (1 - share) * length, wish).clamp(min=0).sqrt()
        divided = torch.where(known, share, 0.0)[:, None].to(value) * value + spread[:, None].to(value) * z
        increment = torch.where(whole[:, None], value, divided)
        taken = torch.where(whole, length, wish)
        split = known & ~whole
        self._lengths[rows[split], top[split]] = (length - wish)[split]
        self._values[rows[split], top[split]] = (value - divided)[split]
        self._count[rows[whole]] -= 1
        return taken, increment

    def give_back(self, rows: Tensor, lengths: Tensor, increments: Tensor) -> None:
        """Put increments of rejected steps back on the stack."""
        if not len(rows):
            return
        place = self._count[rows]
        if int(place.max()) >= self._lengths.shape[1]:
            self._lengths = torch.cat([self._lengths, torch.zeros_like(self._lengths)], 1)
            self._values = torch.cat([self._values, torch.zeros_like(self._values)], 1)
        self._lengths[rows, place], self._values[rows, place] = lengths, increments
        self._count[rows] += 1


@dataclass(frozen=True, kw_only=True)
class AdaptiveSDE(WithNoise, DirectSolver):
    r"""Euler-Maruyama and the improved Euler method as a pair, for :math:`dx = [v - (\eta^2 g^2/2) s]\,dt + \eta g\,dw`.

    Both use the same noise; their difference is the error estimate, and the improved Euler result goes on. A step h of a row is
    accepted if E, the root mean square of error/max(atol, rtol max(\|x'\|, \|x'_last\|)), is at most 1, where x' and x'_last
    are the row's Euler results now and at its last accepted step; the next step is 0.9 h E^-0.9, by the ``controller`` of the
    paper, rounded down to the whole way divided by a power of sqrt 2. Times are the path's own.

    ``atol`` is in units of the data's scale. An attempt costs two evaluations. Without noise (``eta=0``) it is an adaptive Heun
    method.
    """

    rtol: float = 0.01
    atol: float = 0.01
    first_step: float = 0.01
    max_steps: int = 10_000
    controller: str | float | Controller = "0.9/most=5.0"

    needs_path = True
    name = "sde_adaptive"
    reference = "Jolicoeur-Martineau et al., arXiv 2105.14080, algorithm 1, with noise that is kept (Rackauckas and Nie 2017)"
    order = 1
    nfe_per_step = 2
    asks_row_times = True
    draws_for_rows = True
    takes_steps = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol", "first_step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ArgumentError(f"{name} must be a number > 0, got {value!r}")
        if type(self.max_steps) is not int or self.max_steps < 1:
            raise ArgumentError(f"max_steps must be an integer >= 1, got {self.max_steps!r}")
        object.__setattr__(self, "controller", controller_of(self.controller).text)

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: Randomness | None) -> Journey:
        path = field.require_path("a reverse SDE")
        if path.sigma(times[-1]) == 0 or path.alpha(times[0]) == 0:
            raise ArgumentError(
                f"solver {self.spec!r} needs some noise at the last time and some data at the first: choose others"
            )
        if generator is None and self.eta:
            raise ArgumentError(f"solver {self.spec!r} draws noise; pass generator=")
        noise = RowNoise(x, _MOST_DRAWS, 0 if generator is None else generator)
        run = _Run(self, field, path, x, times)
        states = [x]
        for leg, stop in enumerate(times[1:]):
            run.follow_to(stop, noise, leg)
            # The mask is a copy, since later legs write to it.
            here = run.finished.clone().reshape((-1,) + (1,) * (x.ndim - 1))
            states.append(torch.where(here, run.state(), math.nan))
        return Journey(torch.stack(states), run.accepted, run.rejected, run.at, run.finished, run.state())


class _Run:
    """One run: the state of every row, and of its step control."""

    def __init__(self, solver: AdaptiveSDE, field: Field, path: Path, x: Tensor, times: Sequence[float]):
        self.solver, self.field, self.path, self.shape = solver, field, path, x.shape
        self.x = x.flatten(1)
        count, self.length = len(x), times[0] - times[-1]
        self.at = torch.full((count,), times[0], dtype=torch.float64, device=x.device)
        self.step = self._rounded(torch.full_like(self.at, solver.first_step * self.length))
        self.last = self.x
        self.finished = torch.ones(count, dtype=torch.bool, device=x.device)
        self.accepted, self.rejected = torch.zeros(2, count, dtype=torch.int64, device=x.device)
        self.increments = Increments(self.x)
        self.controller = controller_of(solver.controller)
        self.past = self.controller.fresh(count, x.device)

    def state(self) -> Tensor:
        """The states x, (B, *shape)."""
        return self.x.reshape(self.shape)

    def follow_to(self, stop: float, noise: RowNoise, leg: int) -> None:
        """Bring every row, except those that have failed, to the time ``stop``."""
        active = torch.nonzero(self.finished).reshape(-1)
        # Attempts are numbered from the beginning of the leg, so that a row has the same noise in a batch of any size.
        attempt = leg * 2 * self.solver.max_steps
        while len(active):
            z = noise(attempt).flatten(1)[active]
            attempt += 1
            active = active[~self._attempt(active, stop, z)]

    def _attempt(self, active: Tensor, stop: float, z: Tensor) -> Tensor:
        """Try a step of each of the rows ``active``, (n,); returns the mask (n,) of those that need no more."""
        solver = self.solver
        x, at = self.x[active], self.at[active]
        left = at - stop
        h, increment = self.increments.take(active, torch.minimum(self.step[active], left), z)
        there = torch.where(h >= left * (1 - 1e-12), stop, at - h)
        with self.field.rows(active):
            first = self._change(x, at, h, increment)
            second = self._change(x + first, there, h, increment)
        euler, end = x + first, x + (first + second) / 2
        size = torch.maximum(euler.abs(), self.last[active].abs()) * solver.rtol
        ratio = ((second - first) / 2 / size.clamp(min=solver.atol * self.field.scale)).double().square().mean(1).sqrt()
        finite = torch.isfinite(ratio) & torch.isfinite(end).all(1)
        ratio = torch.where(finite, ratio, math.inf)
        good = ratio <= 1
        self.x = self.x.index_copy(0, active, torch.where(good[:, None], end, x))
        self.last = self.last.index_copy(0, active, torch.where(good[:, None], euler, self.last[active]))
        self.at[active] = torch.where(good, there, at)
        self.accepted[active] += good
        self.rejected[active] += ~good
        self.increments.give_back(active[~good], h[~good], increment[~good].detach())
        # The error of a pair of methods of strong order 1 grows with the step itself.
        new = h * self.controller.factor(ratio.detach(), self.past[active], 1)
        self.past[active] = self.controller.remembered(ratio.detach(), self.past[active])
        wish = self.step[active]
        # A step that was cut at the end of the leg or of a kept increment does not shorten the next: the wish stays.
        self.step[active] = self._rounded(torch.where(good & (h < wish * (1 - 1e-12)), torch.maximum(new, wish), new))
        arrived = good & (there == stop)
        spent = self.accepted[active] + self.rejected[active] >= solver.max_steps
        lost = ~arrived & (spent | (self.step[active] < _SHORTEST_STEP * self.length))
        self.finished[active[lost]] = False
        # These rows were stopped by values of the field that are not finite, not by the tolerance.
        failed = active[lost & ~finite]
        if len(failed):
            self.x = self.x.index_fill(0, failed, math.nan)
        ended: Tensor = arrived | lost
        return ended

    def _rounded(self, step: Tensor) -> Tensor:
        """The step rounded down to the whole way divided by a power of sqrt 2.

        Step control under noise is chaotic: a rounding error would grow until the run is another one. Rounded steps forget
        it, so that a row has the same run in any batch and on any machine.
        """
        rounded: Tensor = self.length * torch.exp2(torch.floor(2 * torch.log2(step / self.length)) / 2)
        return rounded

    def _change(self, x: Tensor, at: Tensor, h: Tensor, increment: Tensor) -> Tensor:
        """The change of x (n, D) over a step h (n,): -h times the drift at the times ``at``, plus eta g times the noise."""
        path, eta = self.path, self.solver.eta
        of_x, of_noise = conversion(path, "noise", "velocity", at)
        g = eta * path.diffusion(at) if eta else torch.zeros_like(at)
        noise = self.field.noise(x.reshape(-1, *self.shape[1:]), at).flatten(1)
        drift = _column(of_x, x) * x + _column(of_noise + g**2 / (2 * path.sigma(at)), x) * noise
        change: Tensor = _column(g, x) * increment - _column(h, x) * drift
        return change


def _column(value: float | Tensor, x: Tensor) -> float | Tensor:
    return value.to(x)[:, None] if isinstance(value, Tensor) else value
