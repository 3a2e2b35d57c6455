"""One training of a flow map in progress: steps, the average of the weights, held-out errors, and what is left of it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from diffode.errors import ArgumentError, NumericalError
from diffode.flows import reachable, reference
from diffode.learned.maps.fake import Fake
from diffode.learned.maps.losses import loss_of, weigher
from diffode.learned.maps.optimisers import Optimisers
from diffode.learned.maps.residuals import Context
from diffode.learned.maps.sources import Sources
from diffode.learned.maps.table import MapMethod
from diffode.learned.maps.trained_map import SavedMap, TrainedMap
from diffode.learned.progress import Step
from diffode.learned.request import Request
from diffode.learned.trained import History
from diffode.maps import LearnedMap, load_map
from diffode.maps.flow_map import uniform
from diffode.maps.networks import AngleMap, OneTime, network
from diffode.solvers.trained.mapped import MapSolver
from diffode.specs import format_spec
from diffode.tensor_files import content_of

#: Number of times during a training at which held-out errors are measured.
_CHECKS = 20
#: Number of held-out starts, and of test starts, whose exact ends are known.
_HELD_OUT = 256
#: Largest norm of a gradient; a longer one is cut.
LARGEST_GRADIENT = 1.0
#: Share of the training at whose end the rate begins to fall.
_CONSTANT_RATE = 0.3


class Run:
    """One training in progress, judged by the ends of held-out starts."""

    #: Number of held-out starts, and of test starts.
    held_out_count = _HELD_OUT

    def __init__(
        self,
        row: MapMethod,
        options: dict[str, Any],
        request: Request,
        sources: Sources,
        budgets: tuple[int, ...],
        total: int,
        begin_from: LearnedMap | str | FilePath | None,
        asked: str,
    ):
        self.row, self.options, self.request, self.sources = row, options, request, sources
        self.budgets, self.total = budgets, total
        kind, shape = options["kind"], request.shape
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(request.stream("network").get_state())
            self.net = network(kind, shape, width=options["width"], depth=options["depth"])
            self.weigher = weigher()
        self.net.to(sources.device)
        self.weigher.to(sources.device)
        self.begun = "the Gaussian flow of the data's mean and scale"
        if begin_from is not None:
            self._begin(begin_from)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.map, self.answer = self._as_map(self.net), self._as_map(self.average)
        target = self.map if options["target"] == "online" else self.answer
        self.context = Context(self.map, target, sources, options)
        self.held_out = self._problem(self.held_out_count, "held_out")
        # The exact ends tell fields apart that have one name; their last digits are the machine's.
        ends = float(self.held_out[1].square().mean())
        self.asked = f"{asked}, held-out ends of {ends:.6e}, begun from {content_of(self.net.state_dict().values())[:16]}"
        self.best: tuple[float, dict[str, Tensor]] = (math.inf, copy.deepcopy(self.average.state_dict()))
        self.losses: list[float] = []
        self.errors: list[float] = []
        self.optimisers = Optimisers([*self.net.parameters()], options["optimiser"], options["rate"], self.weigher.parameters())
        #: All networks and optimisers that an interrupted training must have back.
        self.modules: dict[str, nn.Module] = {"net": self.net, "average": self.average, "weigher": self.weigher}
        self.all_optimisers = list(self.optimisers.all)
        self.fake = Fake(self.context, request, row.generate) if row.generate is not None else None
        if self.fake is not None:
            self.modules["fake"] = self.fake.net
            self.all_optimisers += self.fake.optimisers.all
        #: Networks that stages have left, by number of the stage; the number of steps taken; seconds of earlier parts.
        self.frozen: dict[int, nn.Module] = {}
        self.number, self.before_seconds = 0, 0.0
        #: The best and the errors of planned checks, where an unplanned one came after them.
        self.planned: tuple[tuple[float, dict[str, Tensor]], list[float]] | None = None

    def _as_map(self, net: nn.Module) -> AngleMap:
        return AngleMap(OneTime(net) if self.options["one_time"] else net, self.options["parametrisation"])

    def _begin(self, given: LearnedMap | str | FilePath) -> None:
        """Take the weights of a map; ArgumentError unless its network is of the same kind and size."""
        from_ = given if isinstance(given, LearnedMap) else load_map(given)
        own = {key: value.shape for key, value in self.net.state_dict().items()}
        if {key: value.shape for key, value in from_.net.state_dict().items()} != own:
            raise ArgumentError(
                f"begin_from must have a {self.options['kind']} of width {self.options['width']} and depth "
                f"{self.options['depth']} for rows of this shape, got a {from_.kind} of width {from_.width} and depth "
                f"{from_.depth}"
            )
        if from_.parametrisation != self.options["parametrisation"]:
            raise ArgumentError(
                f"begin_from must be in the parametrisation {self.options['parametrisation']!r}, got {from_.parametrisation!r}"
            )
        self.net.load_state_dict(from_.net.state_dict())
        self.begun = from_.method or "a map"

    def _problem(self, count: int, stream: str) -> tuple[Tensor, Tensor]:
        """States at the first angle, from the normal prior, and exact ones at the last, both (B, D) float64."""
        path, clock = self.request.path, self.sources.clock
        start = path.prior((count, *self.request.shape), generator=self.request.stream(stream))
        tolerance = reachable(self.request.field, 1e-7, self.request.shape)
        exact = reference(self.request.field, start, path.t_max, path.t_min, tolerance).x
        return clock.state(start, path, path.t_max), clock.state(exact, path, path.t_min)

    def trained(self) -> TrainedMap:
        """Train, and give the best that held-out starts have seen."""
        before = self._error(None, 1, self._problem(self.held_out_count, "test"))
        every = max(1, self.total // _CHECKS)
        for number in range(self.number + 1, self.total + 1):
            self.number = number
            self.context.share = (number - 1) / self.total
            self._freeze(number)
            self._teach_fake(number)
            loss = loss_of(
                self.row.residual(self.context, self.options["batch"]),
                self.options["norm"],
                self.options.get("power", 1.0),
                self.weigher,
            )
            value = float(loss.detach())
            self._check_finite(value, number)
            self.optimisers.step(loss, self._rate(number), LARGEST_GRADIENT)
            self._grow_average(number)
            self.losses.append(value)
            last = number == self.total
            ended = self.request.limit.reached() and not last
            if number % every == 0 or last:
                self._check()
            elif ended:
                # An end that was not planned is looked at, but a training that goes on later does not know of it.
                self.planned = self.best, list(self.errors)
                self._check()
            held_out = self.errors[-1] if self.errors else None
            self.request.tell(Step(f"train {self.row.name}", number, self.total, math.sqrt(max(value, 0.0)), held_out))
            if ended:
                break
        return self._result(before)

    def _teach_fake(self, number: int) -> None:
        """Let the fake learn of the map as it is, if it is needed by now or soon."""
        if self.fake is None or self.context.share < self.options.get("first", 0.0) / 2:
            return
        for _ in range(self.options["fake_steps"]):
            loss = self.fake.loss()
            self._check_finite(float(loss.detach()), number)
            self.fake.optimisers.step(loss, self._rate(number), LARGEST_GRADIENT)

    def _check_finite(self, loss: float, number: int) -> None:
        if not math.isfinite(loss):
            raise NumericalError(
                f"the training of {self.row.name} diverged at step {number}: lower rate= (it is "
                f"{self.options['rate']:g}), or begin from a trained map (begin_from)"
            )

    def _rate(self, number: int) -> float:
        """The share of the first rate that a step has: all, then a cosine to 0."""
        done = (number - 1) / self.total
        if done <= _CONSTANT_RATE:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (done - _CONSTANT_RATE) / (1 - _CONSTANT_RATE)))

    def _grow_average(self, number: int) -> None:
        decay = min(self.options["average"], number / (number + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def _freeze(self, number: int) -> None:
        """Keep the map of a stage that has ended, for methods whose later stages learn from it."""
        stages = self.options.get("rounds", self.options.get("freeze", 1))
        stage = int((number - 1) / self.total * stages)
        if stage and stage - 1 not in self.context.frozen:
            self.keep_frozen(stage - 1, copy.deepcopy(self.average))

    def keep_frozen(self, stage: int, net: nn.Module) -> None:
        """Let a network be what a stage has left."""
        self.frozen[stage] = net.requires_grad_(False)
        self.context.frozen[stage] = self._as_map(net)

    def _check(self) -> None:
        error = self._error(self.answer, self.budgets[0], self.held_out)
        self.errors.append(error)
        if error < self.best[0] or not math.isfinite(self.best[0]):
            self.best = error, copy.deepcopy(self.average.state_dict())

    def _error(
        self, phi: AngleMap | None, jumps: int, problem: tuple[Tensor, Tensor], grid: Sequence[float] | None = None
    ) -> float:
        """The distance of the ends after some jumps, in units of the scale; of the Gaussian flow if there is no map."""
        start, exact = problem
        y = start.to(self.sources.device, self.sources.dtype)
        if phi is not None:
            angles = self._own_grid(jumps) if grid is None else grid
            with torch.no_grad():
                for s, t in itertools.pairwise(angles):
                    a, b = (y.new_full((len(y),), angle) for angle in (s, t))
                    y = phi(y, a, b)
        # A distance in y is one of x in units of alpha times the scale, times the cosine of the angle.
        error = self._distance(y.cpu().to(torch.float64), exact) / math.cos(self.sources.angles[1])
        return error if math.isfinite(error) else math.inf

    def _distance(self, found: Tensor, wanted: Tensor) -> float:
        """The mean distance of ends from the exact ones."""
        return float((found - wanted).norm(dim=1).mean())

    def _own_grid(self, jumps: int) -> tuple[float, ...]:
        """Equal jumps of the angle; for velocities alone, equal steps of the time in which their lines are straight."""
        first, last = self.sources.angles
        if not self.options["one_time"]:
            return uniform(self.sources.angles, jumps)
        ends = [math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in (first, last)]
        inner = (ends[0] + (ends[1] - ends[0]) * k / jumps for k in range(1, jumps))
        return (first, *(math.atan2(tau, 1 - tau) for tau in inner), last)

    def _grids(self) -> dict[int, tuple[float, ...]]:
        """The best of a few grids for each number of jumps, by the error on held-out starts."""
        found = {}
        first, last = self.sources.angles
        for jumps in sorted({*self.budgets, 1, 2, 4, 8}):
            candidates = [self._own_grid(jumps)]
            if jumps > 1:
                for power in (0.5, 0.75, 1.5, 2.0):
                    inner = (last + (first - last) * (1 - k / jumps) ** power for k in range(1, jumps))
                    candidates.append((first, *inner, last))
            errors = [self._error(self.answer, jumps, self.held_out, grid) for grid in candidates]
            found[jumps] = candidates[errors.index(min(errors))]
        return found

    def _result(self, before: float) -> TrainedMap:
        best = copy.deepcopy(self.average)
        best.load_state_dict(self.best[1])
        self.answer = self._as_map(best)
        test = self._problem(self.held_out_count, "test")
        fixed = self.options["fixed_end"]
        grids = {1: uniform(self.sources.angles, 1)} if fixed else self._grids()
        errors = {n: self._error(self.answer, n, test, grids[n]) for n in self.budgets}
        facts = self.request.facts(self.begun, before, next(iter(errors.values())))
        facts = replace(facts, seconds=facts.seconds + self.before_seconds)
        shown = {k: v for k, v in self.options.items() if v != self.row.defaults[k]}
        found = LearnedMap(
            copy.deepcopy(best).cpu(), self.options["kind"], self.request.shape, self.options["width"], self.options["depth"],
            self.options["parametrisation"], self.sources.clock, self.sources.angles, self.request.path, fixed,
            self.options["one_time"], self.row.both_ways, self.row.law_only, self.row.one_jump, grids, errors,
            format_spec(self.row.name, shown), facts,
        )  # fmt: skip
        solver = MapSolver(of=found)
        history = History(tuple(self.losses), tuple(self.errors), self.number)
        return TrainedMap(solver, next(iter(errors)), facts, SavedMap(found), None, history)
