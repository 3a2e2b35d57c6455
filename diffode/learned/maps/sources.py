"""Where the states of a training come from: data with noise, exact trajectories, and the velocities and steps of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffode import solvers
from diffode.errors import ArgumentError
from diffode.fields import ExactField, Field, GuidedField
from diffode.flows import flow_states, reachable
from diffode.flows.integrated import integrated_states
from diffode.learned.fitting.teacher import EVALUATIONS, FEW_DIMENSIONS, GRID, TABLE
from diffode.learned.request import Request
from diffode.maps import AngleClock
from diffode.paths import Path
from diffode.randomness import normal
from diffode.tableau import Tableau
from diffode.targets import Target

#: Levels of the trajectories that are integrated to the end of float64's use, at equal angles.
_LEVELS = 33
#: Relative tolerance of integrated trajectories, where the rounding of the field allows it.
_TOLERANCE = 1e-6
#: Number of trajectories that a table makes at once.
_CHUNK = 4096


class Noised(NamedTuple):
    """Data with noise at angles a (B,): ``y = cos(a) d + sin(a) eps``.

    Attributes:
        y: states (B, D).
        d: the data in units of their scale, (B, D).
        eps: the noise, (B, D).
    """

    y: Tensor
    d: Tensor
    eps: Tensor

    def velocity(self, a: Tensor) -> Tensor:
        """The conditional velocity dy/da = cos(a) eps - sin(a) d, whose mean given y is the field's."""
        return a.cos()[:, None] * self.eps - a.sin()[:, None] * self.d

    def at(self, angle: Tensor) -> Tensor:
        """The same data and noise at another angle."""
        return angle.cos()[:, None] * self.d + angle.sin()[:, None] * self.eps


class Trajectories(NamedTuple):
    """Exact trajectories of the field.

    Attributes:
        angles: falling angles (M,).
        states: states (M, P, D) at these.
        origin: what made them, in words.
    """

    angles: Tensor
    states: Tensor
    origin: str


class Sources:
    """The states of one training, in the angle clock, as float32, from its keyed streams.

    Attributes:
        field: the teacher: the exact field, or a network.
        clock: the angle clock of its data.
        angles: the first and the last angle.
        dtype, device: dtype of the states, and the device that they are on. Random numbers are drawn on the CPU, so that they
            are the same on all devices.
    """

    def __init__(
        self,
        request: Request,
        points: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.field: Field = request.field
        self.path: Path = request.path
        self.shape = request.shape
        self.clock = AngleClock.of(request.field, request.width)
        ends = [self.clock.angle(self.path, t) for t in (self.path.t_max, self.path.t_min)]
        self.angles = float(ends[0]), float(ends[1])
        self.points, self.dtype, self.device = points, dtype, torch.device(device)
        self.generator = request.stream("batches")
        self._starts = request.stream("starts")
        self._known: Trajectories | None = None

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.clock.dim

    @property
    def data(self) -> Target:
        """The data; ArgumentError if the field is one whose data are not known."""
        guided = isinstance(self.field, GuidedField)
        # Guidance makes no data whose law its flow would lead to: the conditional data belong to another flow.
        truth = self.field if isinstance(self.field, ExactField) else None if guided else getattr(self.field, "truth", None)
        if not isinstance(truth, ExactField):
            raise ArgumentError(
                "this method trains on data, which this field does not tell: give a target or an exact field, or a method that "
                "learns from trajectories, such as flow_map"
            )
        return truth.target

    def uniform(self, n: int) -> Tensor:
        """Numbers in [0, 1), (n,)."""
        return torch.rand(n, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers."""
        return normal(size, generator=self.generator).to(self.device, self.dtype)

    def noised(self, a: Tensor) -> Noised:
        """Data with noise at angles (B,)."""
        drawn = self.data.sample(len(a), generator=self.generator)
        d = ((drawn - self.clock.mean) / self.clock.scale).to(self.device, self.dtype)
        eps = self.normal(*d.shape)
        return Noised(a.cos()[:, None] * d + a.sin()[:, None] * eps, d, eps)

    def velocity(self, y: Tensor, a: Tensor) -> Tensor:
        """The teacher's dy/da (B, D) at states and angles, without a gradient."""
        with torch.no_grad(), self.field.uncounted():
            return self.clock.velocity(self.field, y, a.to(torch.float64), self.shape)

    def denoised(self, y: Tensor, a: Tensor) -> Tensor:
        """The teacher's E[d|y] (B, D) at states and angles, with a gradient by the states."""
        with self.field.uncounted():
            return self.clock.denoised(self.field, y, a.to(torch.float64), self.shape)

    def prior(self, n: int) -> Tensor:
        """States (n, D) at the first angle from the normal prior, which is not quite their law."""
        start = self.path.prior((n, *self.shape), generator=self.generator)
        return self.clock.state(start, self.path, self.path.t_max).to(self.device, self.dtype)

    def step(self, y: Tensor, a: Tensor, r: Tensor, kind: str) -> Tensor:
        """A step of the teacher from angles a to r, (B, D): ``euler`` (a DDIM step) or ``heun`` in the noise level."""
        with torch.no_grad(), self.field.uncounted():
            from_, to = (angle.to(torch.float64)[:, None] for angle in (a, r))
            x, sigma, level = y.to(torch.float64) / from_.cos(), from_.tan(), to.tan()
            slope = self._slope(x, sigma)
            ahead = x + (level - sigma) * slope
            if kind == "heun":
                ahead = x + (level - sigma) * (slope + self._slope(ahead, level)) / 2
            return (ahead * to.cos()).to(y)

    def _slope(self, x: Tensor, sigma: Tensor) -> Tensor:
        """dx/dsigma of EDM's path in units of the data."""
        angle = sigma.atan()
        return (x - self.clock.denoised(self.field, x * angle.cos(), angle[:, 0], self.shape)) / sigma

    @property
    def trajectories(self) -> Trajectories:
        """Exact trajectories from draws of the prior, made once: ``points`` of them."""
        if self._known is None:
            start = self.path.prior((self.points, *self.shape), generator=self._starts)
            with self.field.uncounted():
                self._known = self._followed(start)
        return self._known

    def _followed(self, start: Tensor) -> Trajectories:
        if self.dim <= FEW_DIMENSIONS:
            angles = torch.linspace(*self.angles, _LEVELS, dtype=torch.float64)
            times = [self.path.t_max, *(float(self.clock.time(self.path, float(a))) for a in angles[1:-1]), self.path.t_min]
            found, origin = self._flow(start, times), "the exact flow"
        else:
            table = solvers.table_solver(TABLE).tableau(self.path, GRID, EVALUATIONS)
            times, origin = table.output_times.tolist(), f"{TABLE} @ {GRID}, {EVALUATIONS} evaluations"
            # States of chunks are cut to the dtype of the training, so that all of them in double precision are never there.
            chunks = [self._walked(table, part).to(self.dtype) for part in torch.split(start, _CHUNK)]
            found = torch.cat(chunks, dim=1)
        states = torch.stack(
            [self.clock.state(x, self.path, t).to(self.device, self.dtype) for x, t in zip(found, times, strict=True)]
        )
        angles_at = [float(self.clock.angle(self.path, t)) for t in times]
        levels = torch.tensor(angles_at, dtype=self.dtype, device=self.device)
        return Trajectories(levels, states, origin)

    def _walked(self, table: Tableau, start: Tensor) -> Tensor:
        """The states (M, B, *shape) at the output times of a table."""
        states = solvers.run_tableau(table, self.field, start, keep="all").states
        if states is None:
            raise ArgumentError("the teacher kept no states")
        return states

    def _flow(self, start: Tensor, times: Sequence[float]) -> Tensor:
        """The exact states at times; by integration where the closed form is a quantile map, which takes much longer."""
        exact = isinstance(self.field, ExactField) and self.field.target.is_gaussian
        if exact or min(self.path.sigma(times[-1]), self.path.alpha(times[0])) == 0:
            return flow_states(self.field, start, times)
        later = integrated_states(
            self.field, self.path, start.flatten(1), times, reachable(self.field, _TOLERANCE, start.shape[1:]), start.shape[1:]
        )
        return torch.cat([start[None], later.reshape(-1, *start.shape)])

    def rows(self, n: int) -> Tensor:
        """Indices of n trajectories, with repetition."""
        return torch.randint(len(self.trajectories.states[0]), (n,), generator=self.generator).to(self.device)

    def levels(self, n: int, ends: float) -> tuple[Tensor, Tensor]:
        """Indices (n,) of levels from and to which to go, the first before the second.

        A share ``ends`` of them begins at the first level, and one ends at the last.
        """
        last = len(self.trajectories.angles) - 1
        begin = (self.uniform(n) * last).long()
        begin = torch.where(self.uniform(n) < ends, 0, begin)
        after = (last - begin).to(self.dtype)
        stop = begin + 1 + (self.uniform(n) * after).long().clamp(max=last)
        stop = stop.clamp(max=last)
        return begin, torch.where(self.uniform(n) < ends, last, stop)
