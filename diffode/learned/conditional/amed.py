r"""Learned AMED: for every sample and step a small network predicts the time of the inner evaluation and two scales.

The original (Zhou et al., arXiv 2312.00094) reads the mean of a UNet's bottleneck. Here the features are ones that every field
has: the normalised state :math:`z/\sqrt{\rho^2 + s^2}`, the noise prediction, their norms and the angle between them; a hook
may give a network's own features instead. The step and its host are those of :class:`diffode.solvers.amed.AMED`.

With statistics of the data the first step is a jump along their Gaussian's flow, without an evaluation, and the evaluation at
its end may be taken for the Gaussian's (``analytic_first_step``). In the Gaussian's chart a state is w, where that flow would
land, and :math:`e = dw/d\rho` takes the place of the noise prediction (:mod:`diffode.tableau.gaussian_stages`): the recipe is
that of the noise chart, on the path whose time is rho. There one Gaussian, whose e is 0, is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffode import grids
from diffode.charts import Chart
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.gaussian_charts import GaussianChart
from diffode.input_files import believed
from diffode.learned.arguments import LARGEST, bounded
from diffode.learned.conditional.live import LiveWriter
from diffode.solvers.amed import AMED
from diffode.solvers.direct import DirectSolver, Journey, check_trained_for
from diffode.solvers.trained.bespoke import warn_of_scale
from diffode.specs import format_spec
from diffode.statistics import Statistics
from diffode.statistics.enclosed import disclosed, enclosed
from diffode.tableau import Number, Writer
from diffode.tableau.gaussian_stages import deviation_function, landed, raised
from diffode.tensor_files import content_of, finite, float64, read_tensors, write_tensors
from diffode.training_facts import Facts, read_facts

#: Largest number of coordinates of a row whose state and prediction are features; longer rows give norms and angle alone.
_MOST_COORDINATES = 8
#: Width of the predictor's second hidden layer and of its embedding of levels; its first is twice as wide.
_HIDDEN = 64
#: Number of sines and cosines, together, as which a noise level enters the predictor.
_WAVES = 8
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

    Every step costs two evaluations; with ``analytic_first_step`` the first step costs one. With ``statistics`` of the data the
    first of ``times`` is only jumped from, which costs nothing; ``in_chart`` says that the steps after it are in the chart of
    the data's Gaussian.
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
    statistics: Statistics | None = field(default=None, repr=False, compare=False)
    in_chart: bool = False

    needs_path = True
    name = "amed_learned"
    takes_analytic_first_step = True
    asks_row_times = True
    reference = AMED.reference
    nfe_per_step = 2

    @property
    @override
    def chart_name(self) -> str:
        return GaussianChart.name if self.in_chart else self._recipe.chart_name

    @property
    def spec(self) -> str:
        """The solver's spec, with the file that it was read from, if any."""
        return format_spec(self.name, {"file": self.file} if self.file else {})

    def check_nfe(self, nfe: int) -> None:
        """Raise BudgetError unless a run costs exactly ``nfe`` evaluations."""
        check_trained_for(self, self.nfe, nfe)

    @override
    def content(self) -> str:
        own = content_of(self.predictor.state_dict().values())
        return own if self.statistics is None else f"{own}{self.statistics.content}{self.in_chart}{self.times}"

    def __post_init__(self) -> None:
        AMED(host=self.host, order=self.order)
        if self.analytic_first_step and self.host == "dpmpp":
            raise ArgumentError("an analytic first step is written for the noise prediction, which host=dpmpp does not use")
        if self.in_chart and (self.statistics is None or self.host == "dpmpp" or self.hook is not None):
            raise ArgumentError(
                "the Gaussian's chart of an AMED has no x and no denoised points: give statistics, leave the hook out, and "
                "take another host than dpmpp"
            )
        if self.statistics is not None and len(self.times) < 3:
            raise ArgumentError("an AMED that jumps has at least three times, the first two of the jump")

    @property
    def nfe(self) -> int:
        """Number of evaluations of a run."""
        return 2 * (len(self.times) - 1 - (self.statistics is not None)) - bool(self.analytic_first_step)

    def save(self, file: str | FilePath) -> None:
        """Write it as safetensors; also the solver ``amed_learned:file=FILE``.

        Raises:
            ArgumentError: if it has a hook, which is code and not data, or the file can't be written.
        """
        if self.hook is not None:
            raise ArgumentError("an AMED with a hook can't be saved: keep predictor.state_dict() beside your hook")
        direction, time = self.predictor.ranges
        parts, told = enclosed(self.statistics)
        description = {
            "schema": AMED_SCHEMA, "host": self.host, "order": self.order, "times": self.times, "levels": self.levels,
            "unit": self.unit, "direction_range": direction, "time_range": time,
            "analytic_first_step": self.analytic_first_step, **told, **({"in_chart": True} if self.in_chart else {}),
            **({} if self.facts is None else self.facts.description()),
        }  # fmt: skip
        state = {k: v.contiguous() for k, v in self.predictor.state_dict().items()}
        write_tensors(file, {**state, **parts}, description)

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
        if self.in_chart:
            # Here z is w, as large as the data at every level, and rho e is D_Gauss - D but for the factor that they share.
            state, noise = z / self.unit, noise * rho / self.unit
        size = math.sqrt(z.shape[1])
        norms = torch.stack([state.norm(dim=1) / size, noise.norm(dim=1) / size], dim=1)
        angle = (state * noise).sum(1, keepdim=True) / (size**2 * norms[:, :1] * norms[:, 1:] + 1e-12)
        vectors = [state, noise] if z.shape[1] <= _MOST_COORDINATES else []
        return torch.cat([norms, angle, *vectors], dim=1)

    def run(self, field: Field, x: Tensor, *, cut: bool = False) -> list[Tensor]:
        """States (B, *shape) at the grid's times, differentiable in the predictor; with ``cut`` only within each step."""
        if self.statistics is not None:
            return self._run_after_jump(field, x, self.statistics, cut)
        times = self.times
        recipe = self._recipe
        chart: Chart = recipe.chart_on(field.path)
        table = LiveWriter(field, chart.prediction, x, times[0], analytic=bool(self.analytic_first_step), cut=cut)
        recipe.write(table, chart, times)
        return table.ends

    @property
    def _recipe(self) -> _Step:
        return _Step(host=self.host, order=self.order, learned=self)

    def _run_after_jump(self, field: Field, x: Tensor, known: Statistics, cut: bool) -> list[Tensor]:
        """The states of a run whose first step is a jump."""
        path, times, recipe = field.require_path("AMED"), self.times, self._recipe
        if not self.in_chart:
            chart = recipe.chart_on(path)
            landed_at = known.flow(x, path, times[0], times[1])
            first = known.noise(landed_at, path, times[1]) if self.analytic_first_step else None
            table = LiveWriter(field, chart.prediction, landed_at, times[1], known=first, cut=cut)
            recipe.write(table, chart, times[1:])
            return [x, *table.ends]
        levels = [path.rho(t) for t in times]
        last, shape = levels[-1], tuple(x.shape[1:])
        # The run of w is one on the path whose time is rho.
        deviation = Field.from_noise(deviation_function(field, known, math.inf, last, shape), "edm", probe=False)
        w = landed(known, x / path.alpha(times[0]), levels[0], last)
        first = torch.zeros_like(w) if self.analytic_first_step else None
        table = LiveWriter(deviation, "noise", w, levels[1], known=first, cut=cut)
        recipe.write(table, recipe.chart_on("edm"), levels[1:])
        followed = zip(table.ends, levels[1:], times[1:], strict=True)
        return [x, *(raised(known, end, level, last).reshape(x.shape) * path.alpha(t) for end, level, t in followed)]

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        own = (self.times[0], self.times[-1]) if len(times) == 2 else self.times
        if len(times) != len(own) or not torch.allclose(torch.tensor(times), torch.tensor(own), rtol=1e-6):
            raise ArgumentError(
                f"this AMED was trained on the grid {', '.join(f'{t:.4g}' for t in self.times)}: use it or its "
                "two ends, or train anew"
            )
        path = field.require_path("AMED")
        if any(abs(path.rho(t) - known) > 0.01 * known for t, known in zip((times[0], times[-1]), self.levels, strict=True)):
            raise ArgumentError(
                f"this AMED was trained from noise level {self.levels[0]:.4g} to {self.levels[1]:.4g}, which the path of this "
                "field has not at these times"
            )
        width = self.predictor.inner[0].in_features
        seen = math.prod(x.shape[1:])
        if self.statistics is not None:
            self.statistics.check_dim(seen)
            seen = self.statistics.basis.width if self.in_chart else seen
        if self.hook is None and feature_width(seen) != width:
            raise ArgumentError(f"this AMED was trained in another number of dimensions than {math.prod(x.shape[1:])}")
        if self.in_chart and x.dtype != torch.float64:
            raise ArgumentError(f"an AMED in the Gaussian's chart runs in float64, x is {x.dtype}: use x.double()")
        warn_of_scale(self.file or "this AMED", self.unit, field.scale)
        with torch.no_grad():
            states = self.run(field, x)
        return Journey(torch.stack([states[0], states[-1]] if len(times) == 2 else states))


def load_amed(file: str | FilePath) -> LearnedAMED:
    """Read a trained AMED from a file; it is also the solver ``amed_learned:file=FILE``.

    Raises:
        ArgumentError: if there is no such file, or it can't be read.
        FileFormatError: if the file does not hold a trained AMED.
    """
    facts, stored = read_tensors(file, AMED_SCHEMA)
    with believed(file, "a trained AMED"):
        statistics, tensors = disclosed(facts, stored)
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
        if facts.get("in_chart", False) not in (True, False):
            raise ValueError("in_chart must be true or false")
        return LearnedAMED(
            predictor=predictor, times=times, levels=(levels[0], levels[1]), unit=unit, host=facts["host"],
            order=facts["order"], analytic_first_step=facts["analytic_first_step"], file=str(file),
            facts=Facts(**read_facts(facts)) if "held_out_error" in facts else None, statistics=statistics,
            in_chart=facts.get("in_chart", False),
        )  # fmt: skip


def feature_width(dim: int) -> int:
    """Number of features of a row of ``dim`` coordinates."""
    return 3 + (2 * dim if dim <= _MOST_COORDINATES else 0)
