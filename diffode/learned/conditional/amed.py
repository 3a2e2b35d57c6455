r"""Learned AMED: for every sample and step a small network predicts the time of the inner evaluation and two scales.

The original (Zhou et al., arXiv 2312.00094) reads the mean of a UNet's bottleneck. Here the features are ones that every field
has: the normalised state :math:`z/\sqrt{\rho^2 + s^2}`, the noise prediction, their norms and the angle between them; a hook
may give a network's own features instead. The step and its host are those of :class:`diffode.solvers.amed.AMED`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffode import grids, solvers
from diffode.charts import Chart
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Field
from diffode.flows import reference
from diffode.input_files import believed
from diffode.learned.arguments import LARGEST, bounded, check_count, path_of
from diffode.learned.conditional.live import LiveWriter
from diffode.learned.progress import Progress, Step
from diffode.learned.request import Request, held_out_count
from diffode.learned.trained import History, Trained
from diffode.paths import Path
from diffode.solvers.amed import AMED
from diffode.solvers.direct import DirectSolver, Journey, check_trained_for
from diffode.tableau import Number, Writer
from diffode.targets import Target
from diffode.tensor_files import content_of, finite, float64, read_tensors, write_tensors
from diffode.training_facts import Facts, read_facts

#: Largest number of coordinates of a row whose state and prediction are features; longer rows give norms and angle alone.
_MOST_COORDINATES = 8
#: Width of the predictor's second hidden layer and of its embedding of levels; its first is twice as wide.
_HIDDEN = 64
#: Number of sines and cosines, together, as which a noise level enters the predictor.
_WAVES = 8
#: Largest norm of the gradient of a round of Adam; a longer one is clipped.
_LARGEST_GRADIENT = 1.0
#: Name and version of the file format.
AMED_SCHEMA = "diffode-amed-1"
#: A function of (x, t) that gives features (B, F) of the user's own.
Hook = Callable[[Tensor, float], Tensor]


class Predictor(nn.Module):
    """Two layers and three linear heads, as in the original, that give (r, c, a) from features (B, F) and two noise levels.

    ``direction_range`` bounds c to 1 plus or minus it, ``time_range`` bounds a; 0 fixes them at 1.
    """

    def __init__(self, width: int, direction_range: float = 0.01, time_range: float = 0.0):
        super().__init__()
        self.ranges = (direction_range, time_range)
        self.inner = nn.Sequential(nn.Linear(width, 2 * _HIDDEN), nn.SiLU(), nn.Linear(2 * _HIDDEN, _HIDDEN))
        self.embedding = nn.Sequential(nn.Linear(2 * _WAVES, _HIDDEN), nn.SiLU())
        self.heads = nn.Linear(2 * _HIDDEN, 3)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        self.double()

    def forward(self, features: Tensor, levels: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
        """r, c and a, (B,) each, from features (B, F) and the noise levels of a step's ends."""
        frequencies = torch.arange(_WAVES // 2, dtype=torch.float64, device=features.device) + 1
        angles = torch.cat([math.log(level) * frequencies / 4 for level in levels])
        times = self.embedding(torch.cat([angles.sin(), angles.cos()]))
        joined = torch.cat([self.inner(features), times.expand(len(features), -1)], dim=1)
        r, c, a = self.heads(torch.nn.functional.silu(joined)).unbind(1)
        direction, time = self.ranges
        # tanh keeps c and a at 1 plus or minus their ranges, as 2 sigmoid - 1 does in the original.
        return torch.sigmoid(r), 1 + direction * torch.tanh(c / 2), 1 + time * torch.tanh(a / 2)


@dataclass(frozen=True, kw_only=True)
class _Step(AMED):
    """AMED's recipe with predictions from a network that looks at the state."""

    learned: LearnedAMED | None = field(default=None, repr=False, compare=False)

    def predictions(
        self, table: Writer, x: int, number: int, steps: int, times: tuple[float, float]
    ) -> tuple[Number, Number, Number]:
        learned = self.learned
        if learned is None or not isinstance(table, LiveWriter):
            return super().predictions(table, x, number, steps, times)
        path = table.field.require_path("AMED")
        # The predictor stays on its device; its answer is moved to the device of the state.
        features = learned.features(table, x, times[0]).to(next(learned.predictor.parameters()).device)
        levels = path.rho(times[0]) / learned.unit, path.rho(times[1]) / learned.unit
        r, c, a = (number.to(table.states[x].device) for number in learned.predictor(features, levels))
        return r, c, a


@dataclass(frozen=True, kw_only=True)
class LearnedAMED(DirectSolver):
    """AMED-Solver (``host=None``) or AMED-Plugin with a trained predictor; :func:`train_amed` makes one.

    Every step costs two evaluations; with ``analytic_first_step`` the first step costs one.
    """

    predictor: Predictor = field(repr=False)
    times: tuple[float, ...]
    levels: tuple[float, float]
    unit: float
    host: Literal["euler", "dpm", "ipndm", "dpmpp"] | None = None
    order: int = 2
    hook: Hook | None = field(default=None, repr=False)
    file: str = ""
    facts: Facts | None = field(default=None, repr=False, compare=False)

    name = "amed_learned"
    takes_analytic_first_step = True
    asks_row_times = True
    reference = AMED.reference
    nfe_per_step = 2

    @property
    def spec(self) -> str:
        """The solver's spec, with the file that it was read from, if any."""
        return f"{self.name}:file={self.file}" if self.file else self.name

    def check_nfe(self, nfe: int) -> None:
        """Raise BudgetError unless a run costs exactly ``nfe`` evaluations."""
        check_trained_for(self, self.nfe, nfe)

    @override
    def content(self) -> str:
        return content_of(self.predictor.state_dict().values())

    def __post_init__(self) -> None:
        AMED(host=self.host, order=self.order)
        if self.analytic_first_step and self.host == "dpmpp":
            raise ArgumentError("an analytic first step is written for the noise prediction, which host=dpmpp does not use")

    @property
    def nfe(self) -> int:
        """Number of evaluations of a run."""
        return 2 * (len(self.times) - 1) - bool(self.analytic_first_step)

    def save(self, file: str | FilePath) -> None:
        """Write it as safetensors; also the solver ``amed_learned:file=FILE``.

        Raises:
            ArgumentError: if it has a hook, which is code and not data, or the file can't be written.
        """
        if self.hook is not None:
            raise ArgumentError("an AMED with a hook can't be saved: keep predictor.state_dict() beside your hook")
        direction, time = self.predictor.ranges
        description = {
            "schema": AMED_SCHEMA, "host": self.host, "order": self.order, "times": self.times, "levels": self.levels,
            "unit": self.unit, "direction_range": direction, "time_range": time,
            "analytic_first_step": self.analytic_first_step, **({} if self.facts is None else self.facts.description()),
        }  # fmt: skip
        write_tensors(file, {k: v.contiguous() for k, v in self.predictor.state_dict().items()}, description)

    def features(self, table: LiveWriter, row: int, t: float) -> Tensor:
        """Features of a row's state, (B, F): the hook's answer, or norms and angle and, in few dimensions, the vectors."""
        x = table.states[row]
        if self.hook is not None:
            return self.hook(x, t).flatten(1).to(torch.float64)
        path = table.field.require_path("AMED")
        rho = path.rho(t)
        z = (x / path.alpha(t)).flatten(1).to(torch.float64)
        answer = table.evaluation(row).flatten(1).to(torch.float64)
        noise = answer if table.prediction == "noise" else (z - answer) / rho
        state = z / math.sqrt(rho**2 + self.unit**2)
        size = math.sqrt(z.shape[1])
        norms = torch.stack([state.norm(dim=1) / size, noise.norm(dim=1) / size], dim=1)
        angle = (state * noise).sum(1, keepdim=True) / (size**2 * norms[:, :1] * norms[:, 1:] + 1e-12)
        vectors = [state, noise] if z.shape[1] <= _MOST_COORDINATES else []
        return torch.cat([norms, angle, *vectors], dim=1)

    def run(self, field: Field, x: Tensor, *, cut: bool = False) -> list[Tensor]:
        """States (B, *shape) at the grid's times, differentiable in the predictor; with ``cut`` only within each step."""
        times = self.times
        chart_solver = _Step(host=self.host, order=self.order, learned=self)
        chart: Chart = chart_solver.chart_on(field.path)
        table = LiveWriter(field, chart.prediction, x, times[0], analytic=bool(self.analytic_first_step), cut=cut)
        chart_solver.write(table, chart, times)
        return table.ends

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        own = (self.times[0], self.times[-1]) if len(times) == 2 else self.times
        if len(times) != len(own) or not torch.allclose(torch.tensor(times), torch.tensor(own), rtol=1e-6):
            raise ArgumentError(
                f"this AMED was trained on the grid {', '.join(f'{t:.4g}' for t in self.times)}:use it or its "
                "two ends, or train anew"
            )
        path = path_of(field, "AMED")
        if any(abs(path.rho(t) - known) > 0.01 * known for t, known in zip((times[0], times[-1]), self.levels, strict=True)):
            raise ArgumentError(
                f"this AMED was trained from noise level {self.levels[0]:.4g} to {self.levels[1]:.4g}, which the path of this "
                "field has not at these times"
            )
        width = self.predictor.inner[0].in_features
        if self.hook is None and feature_width(math.prod(x.shape[1:])) != width:
            raise ArgumentError(f"this AMED was trained in another number of dimensions than {math.prod(x.shape[1:])}")
        with torch.no_grad():
            states = self.run(field, x)
        return Journey(torch.stack([states[0], states[-1]] if len(times) == 2 else states))


def load_amed(file: str | FilePath) -> LearnedAMED:
    """Read a trained AMED from a file; it is also the solver ``amed_learned:file=FILE``.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if the file does not hold a trained AMED.
    """
    facts, tensors = read_tensors(file, AMED_SCHEMA)
    with believed(file, "a trained AMED"):
        for name in tensors:
            float64(tensors, name, 1 if name.endswith("bias") else 2)
        ranges = finite(facts, "direction_range"), finite(facts, "time_range")
        if not all(0 <= value < 1 for value in ranges):
            raise ValueError("direction_range and time_range must lie in [0, 1)")
        if tensors["inner.0.weight"].shape[0] != 2 * _HIDDEN:
            # This check comes before the network is made, since a damaged shape could ask for a huge one.
            raise ValueError(f"inner.0.weight must have {2 * _HIDDEN} rows, got {tuple(tensors['inner.0.weight'].shape)}")
        predictor = Predictor(tensors["inner.0.weight"].shape[1], *ranges)
        predictor.load_state_dict(tensors)
        predictor.requires_grad_(False)
        times = tuple(float(t) for t in grids.explicit(facts["times"]).tolist())
        unit = bounded(finite(facts, "unit"), "unit")
        levels = [float(level) for level in facts["levels"]]
        if len(levels) != 2 or not 0 < levels[1] < levels[0] <= LARGEST:
            raise ValueError("levels must be the first and last noise level")
        if facts["analytic_first_step"] not in (True, False):
            raise ValueError("analytic_first_step must be true or false")
        return LearnedAMED(
            predictor=predictor, times=times, levels=(levels[0], levels[1]), unit=unit, host=facts["host"],
            order=facts["order"], analytic_first_step=facts["analytic_first_step"], file=str(file),
            facts=Facts(**read_facts(facts)) if "held_out_error" in facts else None,
        )  # fmt: skip


def feature_width(dim: int) -> int:
    """Number of features of a row of ``dim`` coordinates."""
    return 3 + (2 * dim if dim <= _MOST_COORDINATES else 0)


def train_amed(
    field: Field | Target | str,
    steps: int,
    *,
    path: Path | str = "edm",
    grid: grids.Times = "karras",
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
        steps: number N of steps; a run costs 2 N evaluations, one less with ``analytic_first_step``.
        grid: spec of the grid, or its times.
        dim: number of coordinates or shape of a row of x; needed unless the field is exact.
        host: solver to plug into; None is AMED-Solver.
        order: of the host (ipndm, dpmpp).
        analytic_first_step: take the first direction from the prior, as the paper does.
        teacher: ``"exact"`` for the reference flow, or a number M for Heun's method with M extra points in every interval.
        per_step: match the teacher after every step, with gradients within that step, as the paper does; otherwise match the
            end alone, with gradients through the whole run.
        direction_range, time_range: largest distances of c and of a from 1, in [0, 1).
        hook: a function of (x, t) that gives features (B, F) of your own.
        points, batch, rounds: number of trajectories, of trajectories in a round, and of rounds of Adam.
        rate: learning rate of Adam at first; it falls to 0 as a cosine.
        start: starts (n, *shape) to train on, instead of draws of the prior.
        seconds: limit of time, the teacher included. If it ends the training early, the predictor so far is returned, and
            ``stopped_by`` says so.
        seed: seed of the streams of starts, batches and the network.
        progress: called with every round as a :class:`Step`, whose ``error`` is the root of the loss: the root mean square
            error of the end, or of all steps together, in units of the scale.
        stop: a function called after every round; if it returns True, the predictor so far is returned.

    Returns:
        :class:`Trained`; ``errors.before`` is that of the predictor before its training, with an inner time in the middle of
        each step in log rho.

    Raises:
        ArgumentError: for a wrong argument.
        FieldError: if the field can't be differentiated.
        NumericalError: if the loss becomes non-finite: lower ``rate``.
    """
    request = Request.of("train_amed", field, path=path, dim=dim, seed=seed, seconds=seconds, progress=progress, stop=stop)
    field, path, limit = request.field, request.path, request.limit
    for name, value in (("steps", steps), ("points", points), ("batch", batch), ("rounds", rounds)):
        check_count(name, value, 1)
    for name, number, most in (
        ("rate", rate, math.inf), ("direction_range", direction_range, 1), ("time_range", time_range, 1),
    ):  # fmt: skip
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < most:
            raise ArgumentError(f"{name} must be a number in [0, {most}), got {number!r}")
    if hook is not None and not callable(hook):
        raise ArgumentError(f"hook must be a function of (x, t), got {hook!r}")
    times = grids.get(grid, path, steps if grids.is_named(grid) else None).tolist()
    batches = request.stream("batches")
    if not math.isfinite(path.rho(times[0])) or path.rho(times[-1]) <= 0:
        raise ArgumentError(
            f"AMED needs alpha > 0 at the first time and sigma > 0 at the last, got {times[0]:g} and {times[-1]:g}"
        )

    def starts(count: int, stream: str) -> Tensor:
        """States at the first time, to which the exact flow takes draws of the prior."""
        drawn = path.prior((count, *request.shape), generator=request.stream(stream))
        return drawn if times[0] == path.t_max else reference(field, drawn, path.t_max, times[0], 1e-7).x

    x = starts(points, "starts") if start is None else start
    field.check_gradient(x[:2], times[0])
    targets = _teacher(field, x, times, teacher)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(request.stream("network").get_state())
        inputs = feature_width(request.width) if hook is None else hook(x[:1], times[0]).flatten(1).shape[1]
        predictor = Predictor(inputs, direction_range, time_range)
    ends = path.rho(times[0]), path.rho(times[-1])
    solver = LearnedAMED(
        predictor=predictor, times=tuple(times), levels=ends, unit=field.scale, host=host, order=order, hook=hook,
        analytic_first_step=analytic_first_step,
    )  # fmt: skip
    others = starts(held_out_count(points), "test")
    exact = reference(field, others, times[0], times[-1], 1e-7).x

    def held_out() -> float:
        with torch.no_grad():
            error = (solver.run(field, others)[-1] - exact).flatten(1).norm(dim=1).mean()
        value = float(error) / path.alpha(times[-1]) / field.scale
        return value if math.isfinite(value) else math.inf

    before = held_out()
    optimiser = torch.optim.Adam(predictor.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds)
    losses: list[float] = []

    def root(loss: float) -> float:
        return math.sqrt(loss) / field.scale

    for number in range(1, rounds + 1):
        rows = torch.randperm(len(x), generator=batches)[:batch]
        states = solver.run(field, x[rows], cut=per_step)
        chosen = zip(states[1:], targets[1:], strict=True) if per_step else [(states[-1], targets[-1])]
        loss = sum(((a - b[rows]).flatten(1).square().sum(1).mean() for a, b in chosen), torch.zeros((), dtype=torch.float64))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        size = nn.utils.clip_grad_norm_(predictor.parameters(), _LARGEST_GRADIENT)
        losses.append(float(loss.detach()))
        if not (math.isfinite(losses[-1]) and math.isfinite(float(size))):
            raise NumericalError("AMED's training diverged: lower rate, or choose another grid")
        optimiser.step()
        schedule.step()
        request.tell(Step("train the predictor", number, rounds, root(losses[-1])))
        if number < rounds and limit.reached():
            break
    predictor.requires_grad_(False)
    begun_from = f"{solver.spec}, untrained, @ {grid if isinstance(grid, str) else 'a list of times'}"
    facts = request.facts(begun_from, before, held_out())
    solver = replace(solver, predictor=predictor, facts=facts)
    return Trained(solver, solver.nfe, facts, solver, None, History(tuple(map(root, losses)), steps=len(losses)))


def _teacher(field: Field, x: Tensor, times: Sequence[float], teacher: Literal["exact"] | int) -> list[Tensor]:
    """The states (B, *shape) at the grid's times to which the teacher takes the starts."""
    if teacher == "exact":
        found = [x]
        for s, t in itertools.pairwise(times):
            found.append(reference(field, found[-1], s, t, 1e-7).x)
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
