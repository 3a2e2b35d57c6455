"""Training of AMED's predictor by Adam, towards the exact flow or Heun's method, after every step or at the end."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from diffode import grids, solvers
from diffode.arguments import check_count, check_number
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.flows import reachable, reference
from diffode.learned.conditional.amed import Hook, LearnedAMED, Predictor, feature_width
from diffode.learned.conditional.amed_levels import AmedLevels
from diffode.learned.grids.free_levels import trained_levels
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request, held_out_count, with_gradients
from diffode.learned.tables.in_chart import known_to
from diffode.learned.trained import History, Trained
from diffode.paths import Path
from diffode.solvers.jumped import Jumped
from diffode.solvers.solver import check_choice, check_jump
from diffode.statistics import Statistics
from diffode.targets import Target

#: Largest norm of the gradient of a round of Adam; a longer one is clipped.
_LARGEST_GRADIENT = 1.0
#: Share of a limit of seconds after which the training of the levels of an AMED that jumps ends.
_LEVELS_SHARE = 0.4
#: Largest number of starts on which these levels are trained.
_LEVELS_STARTS = 256
#: Largest number of steps from each grid at which their training begins.
_LEVELS_ROUNDS = 40
#: Number of times in a training that the predictor is compared with those before, on all starts.
_COMPARED = 20


@with_gradients
def train_amed(
    field: Field | Target | str,
    steps: int,
    *,
    path: Path | str = "edm",
    grid: grids.Times | None = None,
    jump: float | str | None = None,
    chart: Literal["noise", "gaussian"] = "noise",
    statistics: Statistics | str | None = None,
    dim: int | Sequence[int] | None = None,
    host: Literal["euler", "dpm", "ipndm", "dpmpp"] | None = None,
    order: int = 2,
    analytic_first_step: bool = True,
    teacher: Literal["exact"] | int = "exact",
    per_step: bool = True,
    direction_range: float = 0.01,
    time_range: float = 0.0,
    hook: Hook | None = None,
    points: int = 2048,
    batch: int = 256,
    rounds: int = 400,
    rate: float = 5e-3,
    start: Tensor | None = None,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train AMED's predictor on a field.

    Args:
        field: a target or its name, or a field with a path.
        path: path of the target; a field has its own.
        steps: number N of steps, a jump not counted; a run costs 2 N evaluations, one less with ``analytic_first_step``.
        grid: spec of the grid, or its times; by default ``karras``, and after a jump ``karras:rho=3``.
        jump: ``auto`` or a level in the data's largest deviations, for a run that begins with a jump along the flow of the
            data's Gaussian. All levels are then trained before the predictor, from this one and from others.
        chart: ``gaussian`` for steps in the chart of the data's Gaussian, after a jump, in which one Gaussian is exact.
        statistics: mean and covariance of the data, for these two, or a kind of them, such as ``scale``, to which those of the
            field are reduced; by default the field's own.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        host: solver to plug into; None is AMED-Solver.
        order: of the host (ipndm, dpmpp).
        analytic_first_step: take the first direction from the prior, as the paper does, or after a jump from the data's
            Gaussian.
        teacher: ``"exact"`` for the reference flow, or a number M for Heun's method with M extra points in every interval.
        per_step: match the teacher after every step, with gradients within that step, as the paper does; otherwise match the
            end alone, with gradients through the whole run.
        direction_range, time_range: largest distances of c and of a from 1, in [0, 1).
        hook: a function of (x, t) that gives features (B, F) of your own.
        points, batch, rounds: number of trajectories, of trajectories in a round, and of rounds of Adam.
        rate: learning rate of Adam at first; it falls to 0 as a cosine.
        start: starts (n, *shape) to train on, instead of draws of the prior.
        seconds: limit of time, the teacher included. If it ends the training early, the best predictor so far is returned, and
            ``stopped_by`` says so.
        seed: seed of the streams of starts, batches and the network.
        progress: called with every round as a :class:`Step`, whose ``error`` is the root of the loss: the root mean square
            error of the end, or of all steps together, in units of the scale.
        stop: a function called after every round; if it returns True, the best predictor so far is returned.

    Returns:
        :class:`Trained`; ``errors.before`` is that of the predictor before its training, with an inner time in the middle of
        each step in log rho, after a jump on the levels that were asked for.

    Raises:
        ArgumentError: for a wrong argument.
        FieldError: if the field can't be differentiated, or can't take a time for every row.
        NumericalError: if the loss becomes non-finite: lower ``rate``.

    >>> trained = train_amed("gauss2d", 1, chart="gaussian", points=32, rounds=2)
    >>> trained.nfe, trained.errors.after < 1e-9
    (1, True)
    """
    request = Request.of("train_amed", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    field, path, limit = request.field, request.path, request.limit
    for name, value in (("steps", steps), ("points", points), ("batch", batch), ("rounds", rounds)):
        check_count(name, value, 1)
    for name, number, most in (
        ("rate", rate, math.inf), ("direction_range", direction_range, 1), ("time_range", time_range, 1),
    ):  # fmt: skip
        check_number(name, number, 0, most)
    check_choice("per_step", per_step, (True, False))
    if hook is not None and not callable(hook):
        raise ArgumentError(f"hook must be a function of (x, t), got {hook!r}")
    request.check_row_times()
    check_choice("chart", chart, ("noise", "gaussian"))
    known = None
    if jump is not None or chart == "gaussian":
        known = known_to(request, statistics, "an AMED that jumps")
        jump = "auto" if jump is None else jump
        check_jump(jump)
    elif statistics is not None:
        raise ArgumentError("statistics go with jump=auto or chart='gaussian': another AMED knows the scale alone")
    grid = ("karras" if known is None else Jumped.usual_grid) if grid is None else grid
    if known is not None and not (isinstance(grid, str) and grids.is_named(grid)):
        raise ArgumentError("grid must be a named one for an AMED that jumps, whose levels are trained from it")
    times = grids.get(grid, path, steps if grids.is_named(grid) else None).tolist()
    batches = request.stream("batches")
    if not math.isfinite(path.rho(times[0])) or path.rho(times[-1]) <= 0:
        raise ArgumentError(
            f"AMED needs alpha > 0 at the first time and sigma > 0 at the last, got {times[0]:g} and {times[-1]:g}"
        )

    tolerance = reachable(field, 1e-7, request.shape)

    def starts(count: int, stream: str) -> Tensor:
        """States at the first time, to which the exact flow takes draws of the prior."""
        drawn = request.field.first_noise((count, *request.shape), generator=request.stream(stream))
        return drawn if times[0] == path.t_max else reference(field, drawn, path.t_max, times[0], tolerance).x

    x = starts(points, "starts") if start is None else start
    field.check_gradient(x[:2], times[0])
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(request.stream("network").get_state())
        seen = known.basis.width if known is not None and chart == "gaussian" else request.width
        inputs = feature_width(seen) if hook is None else hook(x[:1], times[0]).flatten(1).shape[1]
        predictor = Predictor(inputs, direction_range, time_range)
    ends = path.rho(times[0]), path.rho(times[-1])
    if known is not None:
        # The jump and the path's end, until the levels are trained.
        times = [path.t_max, *times]
    solver = LearnedAMED(
        predictor=predictor, times=tuple(times), levels=ends, unit=field.scale, host=host, order=order, hook=hook,
        analytic_first_step=analytic_first_step, statistics=known, in_chart=chart == "gaussian",
    )  # fmt: skip
    asked = solver
    if known is not None and jump is not None and isinstance(grid, str):
        free = AmedLevels(known, field, path, steps, solver, jump)
        part = replace(request, limit=limit.part(_LEVELS_SHARE))
        found = trained_levels(free, part, grid, min(points, _LEVELS_STARTS), _LEVELS_ROUNDS).values
        solver, own = free.solver(found), free.own(grid)
        asked = solver if own is None else free.solver(own)
        predictor, times = solver.predictor, list(solver.times)
    targets = _teacher(field, x, times, teacher)
    others = starts(held_out_count(points), "test")
    exact = reference(field, others, times[0], times[-1], tolerance).x

    def held_out(solver: LearnedAMED) -> float:
        with torch.no_grad():
            error = (solver.run(field, others)[-1] - exact).flatten(1).norm(dim=1).mean()
        value = float(error) / path.alpha(times[-1]) / field.scale
        return value if math.isfinite(value) else math.inf

    before = held_out(asked)
    optimiser = torch.optim.Adam(predictor.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds)
    losses: list[float] = []

    def root(loss: float) -> float:
        return math.sqrt(loss) / field.scale

    def loss_of(rows: Tensor | slice) -> Tensor:
        states = solver.run(field, x[rows], cut=per_step)
        # A jump has nothing to train.
        made = 1 if known is None else 2
        chosen = zip(states[made:], targets[made:], strict=True) if per_step else [(states[-1], targets[-1])]
        return sum(((a - b[rows]).flatten(1).square().sum(1).mean() for a, b in chosen), torch.zeros((), dtype=torch.float64))

    least, best = math.inf, copy.deepcopy(predictor.state_dict())

    def keep_best() -> None:
        """Remember the predictor if its loss of all starts is the least so far; that of a batch would be chance."""
        nonlocal least, best
        with torch.no_grad():
            found = float(loss_of(slice(None)))
        if found <= least:
            least, best = found, copy.deepcopy(predictor.state_dict())

    keep_best()
    for number in range(1, rounds + 1):
        loss = loss_of(torch.randperm(len(x), generator=batches)[:batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        size = nn.utils.clip_grad_norm_(predictor.parameters(), _LARGEST_GRADIENT)
        losses.append(float(loss.detach()))
        if not (math.isfinite(losses[-1]) and math.isfinite(float(size))):
            raise NumericalError("AMED's training diverged: lower rate, or choose another grid")
        optimiser.step()
        schedule.step()
        request.tell(Step("train the predictor", number, rounds, root(losses[-1])))
        ended = number < rounds and limit.reached()
        if ended or number == rounds or number % math.ceil(rounds / _COMPARED) == 0:
            keep_best()
        if ended:
            break
    predictor.load_state_dict(best)
    predictor.requires_grad_(False)
    begun_from = f"{solver.spec}, untrained, @ {grid if isinstance(grid, str) else 'a list of times'}"
    facts = request.facts(begun_from, before, held_out(solver))
    solver = replace(solver, predictor=predictor, facts=facts)
    return Trained(solver, solver.nfe, facts, solver, None, History(tuple(map(root, losses)), steps=len(losses)))


def _teacher(field: Field, x: Tensor, times: Sequence[float], teacher: Literal["exact"] | int) -> list[Tensor]:
    """The states (B, *shape) at the grid's times to which the teacher takes the starts."""
    if teacher == "exact":
        found = [x]
        for s, t in itertools.pairwise(times):
            found.append(reference(field, found[-1], s, t, reachable(field, 1e-7, x.shape[1:])).x)
        return found
    if type(teacher) is not int or teacher < 1:
        raise ArgumentError(f"teacher must be 'exact' or a number of extra points >= 1, got {teacher!r}")
    path: Path = field.require_path("a teacher")
    fine = [times[0]]
    for s, t in itertools.pairwise(times):
        ends = math.log(path.rho(s)), math.log(path.rho(t))
        fine += [path.time_from_rho(math.exp(ends[0] + (ends[1] - ends[0]) * k / (teacher + 1))) for k in range(1, teacher + 1)]
        fine.append(t)
    states = solvers.solve(field, x, solver="edm_heun", grid=fine, keep="all").states
    if states is None:
        raise NumericalError("the teacher kept no states")
    return list(states[:: teacher + 1])
