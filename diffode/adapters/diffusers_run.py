"""A table driven by a pipeline of diffusers: one evaluation per call of ``step``, with noise and scales as in diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffode.adapters.diffusers_network import Convention
from diffode.adapters.diffusers_tables import begins, stepped, without_signal
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import Prediction, columns
from diffode.paths import Path
from diffode.solvers.jumped import Jumped
from diffode.solvers.solver import WritesTable
from diffode.tableau import Tableau

#: Arguments of other schedulers' ``step``, each with the value at which it changes nothing; other values are refused.
_UNUSED = {"eta": 0.0, "s_churn": 0.0, "variance_noise": None, "per_token_timesteps": None, "use_clipped_model_output": False}


class Driven:
    """The running half of :class:`diffode.adapters.diffusers_scheduler.DiffodeScheduler`, which writes the table."""

    config: Any
    path: Path
    table: Tableau
    timesteps: Tensor
    order: int
    num_inference_steps: int | None
    _solver: WritesTable
    _network: Convention
    _named: dict[float, float]
    _running: Tableau
    _denoised: frozenset[int]
    _offset: int
    _run: Any
    _state: Tensor | None
    _begin_index: int | None
    _step_index: int | None
    _jumps: bool
    _has_jumped: bool

    @property
    def _on(self) -> Path:
        """The path of the current run, which may reach further than the model's own."""
        return self.table.path or self.path if hasattr(self, "table") else self.path

    @property
    def step_index(self) -> int | None:
        """The number of evaluations made so far; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first timestep, if a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at another timestep, as image-to-image pipelines do; it must begin a grid step."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input for a state: the state itself, or its scaled form inside EDM's preconditioning.

        Of the start of a solver with ``jump=`` it is that of the state to which it jumps, where the first timestep lies.
        """
        if not self._jumps and self._network.kind not in ("edm", "continuous"):
            return sample
        index = self._step_index if self._step_index is not None else self._first(timestep)
        evaluated = self._running.evaluated
        if not self._offset <= index < self._offset + len(evaluated):
            raise ArgumentError("the run has ended; call set_timesteps to start another")
        if self._jumps and index == 0:
            wide = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
            sample = next(self._running.driven(wide))[1].to(sample.dtype)
            self._has_jumped = True
        return self._network.shown(sample, float(self._running.times[evaluated[index - self._offset]]))

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """Take the network's answer at a timestep; return the next state to evaluate, or the result after the last.

        ``generator`` is one generator for the batch, or a list with one for each row. ArgumentError for a timestep out of
        order or an argument that the solver has no use for, NumericalError for a state that is not finite.
        """
        if self.num_inference_steps is None:
            raise ValueError("number of inference steps is None: run set_timesteps first")
        for key, value in others.items():
            if key in _UNUSED and value is not None and value != _UNUSED[key]:
                raise ArgumentError(
                    f"{key} is not {value!r:.40} for solver {self.config['solver']!r}: choose a solver that has it"
                )
        wide = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
        if self._run is None:
            self._begin(timestep, wide, generator)
        index, x = self._step_index or 0, self._state
        if x is None:
            raise ArgumentError("the run has ended; call set_timesteps to start another")
        if abs(_number(timestep) - float(self.timesteps[index])) > self._network.width:
            raise ArgumentError(
                f"timestep {_number(timestep):g} is out of order: evaluation {index + 1} is at "
                f"{float(self.timesteps[index]):g}; go through scheduler.timesteps one by one"
            )
        row = self._running.evaluated[index - self._offset]
        after_jump = self._jumps and index == 0
        if after_jump and not self._has_jumped:
            raise ArgumentError(
                f"solver {self.config['solver']!r} jumps before its first evaluation, in scale_model_input, which this loop "
                "has not called before step: call the model with scheduler.scale_model_input(sample, t), or leave jump out"
            )
        # The loop's sample is the start of a jump, whose end alone the network has seen.
        if not after_jump and not torch.equal(x.to(sample.dtype), sample):
            # The pipeline has changed the sample between steps, as inpainting does; else the state keeps its own precision.
            x = wide
        answer = self._prediction(model_output.to(x.dtype), x, row)
        try:
            _, self._state = self._run.send((answer, x))
            previous = self._state
        except StopIteration as end:
            previous, self._state = end.value, None
        self._step_index = index + 1
        if not bool(torch.isfinite(previous).all()):
            whose = "the model's answer is" if not bool(torch.isfinite(model_output).all()) else "the step gives"
            raise NumericalError(f"{whose} not finite at timestep {float(self.timesteps[index]):g}")
        result = previous.to(sample.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _begin(self, timestep: Any, x: Tensor, generator: Any) -> None:
        index = self._first(timestep)
        if index:
            self._running, self._denoised = without_signal(self._later(index))
        self._offset = index
        shape, device, dtype = x.shape, x.device, x.dtype
        if isinstance(generator, list | tuple):
            generator = list(generator)
            if len(generator) not in (1, len(x)) or not all(isinstance(one, torch.Generator) for one in generator):
                raise ArgumentError(f"a list of generators must have one for each of {len(x)} rows, got {generator!r:.80}")

        def draw(_: int) -> Tensor:
            noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            return noise

        self._run = self._running.driven(x, draw)
        self._step_index = index
        _, self._state = next(self._run)

    def _first(self, timestep: Any) -> int:
        """The index of the evaluation with which a run begins."""
        if self._begin_index is not None:
            return self._begin_index
        # Several levels may have the same rounded timestep; a run that begins at the first is the rule.
        return 0 if _number(timestep) == float(self.timesteps[0]) else self.index_for_timestep(timestep)

    def _later(self, index: int) -> Tableau:
        """The rest of the table from the evaluation ``index`` on."""
        table, count = self.table, len(self.table.evaluated)
        starts = begins(table)
        if index not in starts or (self._solver.lays_levels and not isinstance(self._solver, Jumped)):
            raise ArgumentError(
                f"timestep {index} of {count} does not begin a step of {table.solver!r}; begin at another, a multiple of "
                f"its order {self.order}"
            )
        times = [float(table.times[row]) for row in stepped(table)[starts.index(index) :]]
        # A run that begins below a jump makes none.
        later = (self._solver.solver if isinstance(self._solver, Jumped) else self._solver).tableau(self._on, times)
        if not torch.equal(later.times[later.evaluated], table.times[table.evaluated[index:]]):
            raise ArgumentError(f"solver {table.solver!r} takes other timesteps when it begins at {index}; begin at another")
        return later

    def _prediction(self, output: Tensor, x: Tensor, row: int) -> Tensor:
        """The network's answer as the view that the table needs at a row."""
        if output.shape != x.shape and output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
            # The second half of the channels is a learned variance.
            output = output[:, : x.shape[1]]
        if output.shape != x.shape:
            raise ArgumentError(f"model_output has shape {tuple(output.shape)}, sample {tuple(x.shape)}; they must match")
        wanted: Prediction = "denoised" if row in self._denoised else self._running.prediction
        return self._network.answer(self._on, output, x, float(self._running.times[row]), wanted)

    def index_for_timestep(self, timestep: Any) -> int:
        """The index of the nearest of ``timesteps``, and of equal ones the last, which begins a step."""
        far = (self.timesteps.double() - _number(timestep)).abs()
        if not float(far.min()) <= self._network.width:
            raise ArgumentError(f"timestep {_number(timestep):g} is none of scheduler.timesteps; go through these one by one")
        return int(torch.nonzero(far == far.min())[-1])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma noise at the timesteps of the rows, (B,)."""
        alpha, sigma = self._coefficients(original_samples, timesteps)
        noisy: Tensor = alpha * original_samples + sigma * noise
        return noisy

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """:meth:`add_noise` under the name and with the arguments that flow-matching pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """alpha noise - sigma x_0, which networks of ``v_prediction`` are trained on."""
        alpha, sigma = self._coefficients(sample, timesteps)
        velocity: Tensor = alpha * noise - sigma * sample
        return velocity

    def _coefficients(self, x: Tensor, timesteps: Any) -> tuple[Any, Any]:
        steps = torch.as_tensor(timesteps).detach().cpu().double().reshape(-1)
        if self._begin_index is not None and self._named:
            # Once a pipeline has set its first index, it means the level at that index, whose timestep may be rounded.
            index = self._begin_index if self._step_index is None else min(self._step_index, len(self.timesteps) - 1)
            times = [float(self.table.times[self.table.evaluated[index]])] * len(x)
        else:
            levels = {label: t for t, label in self._named.items()}
            if self._jumps:
                # What begins at the first timestep begins with the jump to it.
                levels[float(self.timesteps[0])] = float(self.table.times[0])
            times = [levels.get(float(step), self._network.time(float(step))) for step in steps.expand(len(x))]
        t, path = torch.tensor(times, dtype=torch.float64), self._on
        return columns(path.alpha(t).to(x.device), x), columns(path.sigma(t).to(x.device), x)


def _number(timestep: Any) -> float:
    return float(torch.as_tensor(timestep).reshape(-1)[0])
