"""Any solver as a scheduler of diffusers: multi-stage solvers by interleaved timesteps, multistep ones by their own history."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffode import grids, solvers
from diffode.adapters.diffusers_model import TYPES
from diffode.adapters.diffusers_schedules import levels_of, options_like
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import columns, conversion
from diffode.paths import Path, RectifiedFlow, Tabulated
from diffode.solvers.bespoke import TrainedSolver
from diffode.solvers.direct import DirectSolver
from diffode.tableau import Tableau

#: Timesteps that are nearer than this are the same: a network may want them rounded.
_NEAR = 1.0


class DiffodeScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler that runs a solver of diffode in diffusers' pipelines.

    ``as_diffusers_scheduler("unipc:order=3", like=pipeline.scheduler)``, or ``DiffodeScheduler.from_config`` with its
    configuration, takes over the noise schedule and the prediction type of the scheduler that a model came with (its spacing of
    timesteps and its clipping are not: the grid is ours).

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type: as in diffusers' schedulers;
            with ``flow_prediction`` the path is rectified flow and t is the timestep over ``num_train_timesteps``.
        rescale_betas_zero_snr: whether the schedule ends without any signal (arXiv 2305.08891); the solver then starts one
            level before.
        solver: spec of any solver that writes a table. ``universal`` needs scale= and dim= in its spec.
        grid: spec of the grid; ``time_uniform`` is diffusers' spacing ``linspace``.
        final_sigmas_type: ``zero`` makes the last step to no noise at all, ``sigma_min`` ends at the first level.

    A number of inference steps is one of grid steps; a solver with s evaluations a step has s times as many timesteps.
    """

    order = 1
    _compatibles: list[Any] = []  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        solver: str = "dpmpp:order=2",
        grid: str = "time_uniform",
        final_sigmas_type: str = "zero",
    ):
        if prediction_type not in TYPES:
            raise ArgumentError(f"prediction_type must be one of {', '.join(TYPES)}, got {prediction_type!r}")
        if final_sigmas_type not in ("zero", "sigma_min"):
            raise ArgumentError(f"final_sigmas_type must be zero or sigma_min, got {final_sigmas_type!r}")
        # A configuration may come from elsewhere, so that it names what is registered and no file.
        self._solver = solvers.registry.registered(solver)
        grids.check_registered(grid)
        if isinstance(self._solver, DirectSolver):
            raise ArgumentError(f"solver {solver!r} writes no table, so a pipeline can't run it; choose one that does")
        self.path: Path
        if prediction_type == "flow_prediction":
            self.path = RectifiedFlow()
        else:
            betas, kept = levels_of(self.config)
            if trained_betas is not None:
                # Saved as JSON: plain numbers.
                self.register_to_config(trained_betas=betas.tolist())  # type: ignore[no-untyped-call]
            #: What other libraries read from a scheduler.
            self.betas, self.alphas_cumprod = torch.from_numpy(betas), torch.from_numpy(kept)
            self.path = Tabulated(self.alphas_cumprod)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._device: Any = None
        # A table is written when the number of steps is known; two steps show whether the solver suits a pipeline at all.
        if not isinstance(self._solver, TrainedSolver):
            self.set_timesteps(2)
        self.num_inference_steps = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float64)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: Any = False, **kwargs: Any) -> Any:
        """A scheduler from a configuration, ours or another scheduler's."""
        if not isinstance(config, Mapping):
            raise ArgumentError(f"config must be the configuration of a scheduler, got {type(config).__name__}")
        if "solver" not in config:
            config = options_like(config)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Write the table for so many grid steps, or through the given decreasing timesteps or noise levels.

        ``timesteps`` afterwards holds one timestep an evaluation, float64 (float32 where the device has no float64).

        Args:
            num_inference_steps: steps of the grid.
            device: where ``timesteps`` is put.
            timesteps: decreasing timesteps instead; the last step to no noise is added.
            sigmas: decreasing noise levels instead, sigma/alpha, or t for flow matching, as pipelines of that kind give them.
            mu: shift of these times, t e^mu/(t e^mu + 1 - t), by which flow-matching pipelines go by the size of an image.
        """
        given = sigmas if timesteps is None else timesteps
        if timesteps is not None and sigmas is not None:
            raise ArgumentError("give timesteps or sigmas, not both")
        if given is None:
            if mu is not None:
                raise ArgumentError("mu shifts given sigmas: give sigmas as well, or grid='shift:s=...'")
            table = self._table(_count(num_inference_steps))
        else:
            if num_inference_steps is not None and num_inference_steps != len(given):
                raise ArgumentError("give num_inference_steps or timesteps, not both: their numbers differ")
            table = self._through([float(value) for value in given], timesteps is None, mu)
        self.num_inference_steps = len(table.outputs) - 1 if given is not None else num_inference_steps
        self._device = device
        self._use(table)
        self._begin_index = None

    def _through(self, given: list[float], are_levels: bool, mu: float | None) -> Tableau:
        path, flow = self.path, isinstance(self.path, RectifiedFlow)
        if are_levels:
            times = given if flow else [path.time_from_rho(level) for level in given]
            if mu is not None:
                if not flow:
                    raise ArgumentError("mu shifts the times of flow matching, prediction_type='flow_prediction'")
                times = [math.exp(mu) * t / (math.exp(mu) * t + 1 - t) for t in times]
            # Pipelines of flow matching start at 1, where alpha is 0.
            times = [min(t, path.t_max) for t in times] if flow else times
        else:
            times = [self._time_of(t) for t in given]
        name, falls = "sigmas" if are_levels else "timesteps", all(a > b for a, b in itertools.pairwise(times))
        if not times or not falls or not times[-1] > 0 or not times[0] <= path.t_max * (1 + 1e-9):
            most = (
                path.rho(path.t_max) if are_levels and not flow else path.t_max if are_levels else self._timestep_of(path.t_max)
            )
            raise ArgumentError(f"{name} must fall, from at most {most:g}, and end with some noise left; got {given}")
        return self._solver.tableau(path, [*times, 0.0] if self.config["final_sigmas_type"] == "zero" else times)

    def _table(self, steps: int) -> Tableau:
        path = self.path
        if isinstance(self._solver, TrainedSolver):
            # It lays its own levels, between ends with some noise.
            return self._solver.tableau(path, [path.t_max, path.t_min], steps)
        if self.config["final_sigmas_type"] == "sigma_min":
            return self._solver.tableau(path, self.config["grid"], steps)
        inner = grids.get(self.config["grid"], path, steps - 1).tolist() if steps > 1 else [path.t_max]
        return self._solver.tableau(path, [*inner, 0.0])

    def _use(self, table: Tableau) -> None:
        evaluated = table.evaluated
        if evaluated[0] != 0:
            raise ArgumentError(
                f"solver {table.solver!r} does not evaluate its start, which a pipeline does first; choose another, "
                "without churn and analytic_first_step"
            )
        self.table = table
        times = table.times[evaluated]
        single = self._device is not None and torch.device(self._device).type == "mps"
        steps = torch.tensor([self._timestep_of(float(t)) for t in times], dtype=torch.float64)
        self.timesteps = steps.to(device=self._device, dtype=torch.float32 if single else torch.float64)
        begins = _begins(table)
        gaps = {later - first for first, later in itertools.pairwise(begins)} or {len(evaluated)}
        #: Timesteps of a step, if all but the last have the same number: image-to-image pipelines begin at a multiple of it.
        self.order = gaps.pop() if len(gaps) == 1 else 1
        #: The noise levels sigma/alpha of the timesteps and of the end.
        ends = [*(self.path.rho(float(t)) for t in times), self.path.rho(float(table.times[-1]))]
        self.sigmas = torch.tensor(ends, dtype=torch.float64)
        self._step_index = None
        self._run: Any = None
        self._running, self._offset = table, 0
        self._state: Tensor | None = None

    @property
    def step_index(self) -> int | None:
        """How many evaluations were made; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first timestep, if a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at another timestep, as image-to-image pipelines do; it must begin a grid step."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: the network sees x as it is."""
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True, **_: Any
    ) -> Any:
        """Take the network's answer at a timestep and give the sample to ask it with next; after the last, the result."""
        if self.num_inference_steps is None:
            raise ValueError("number of inference steps is None: run set_timesteps first")
        wide = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
        if self._run is None:
            self._begin(timestep, wide, generator)
        index, x = self._step_index or 0, self._state
        if x is None:
            raise ArgumentError("the run has ended; call set_timesteps to start another")
        if abs(_number(timestep) - float(self.timesteps[index])) > _NEAR:
            raise ArgumentError(
                f"timestep {_number(timestep):g} is out of order: evaluation {index + 1} is at "
                f"{float(self.timesteps[index]):g}; go through scheduler.timesteps one by one"
            )
        t = float(self._running.times[self._running.evaluated[index - self._offset]])
        if not torch.equal(x.to(sample.dtype), sample):
            # A pipeline may change it between steps, as inpainting does; otherwise nothing is lost to half precision.
            x = wide
        answer = self._prediction(model_output.to(x.dtype), x, t)
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
        index = self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
        if index:
            self._running = self._later(index)
        self._offset = index
        shape, device, dtype = x.shape, x.device, x.dtype

        def draw(_: int) -> Tensor:
            noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            return noise

        self._run = self._running.driven(x, draw)
        self._step_index = index
        _, self._state = next(self._run)

    def _later(self, index: int) -> Tableau:
        """The table from a later timestep on."""
        table, count = self.table, len(self.table.evaluated)
        begins = _begins(table)
        if index not in begins or isinstance(self._solver, TrainedSolver):
            raise ArgumentError(
                f"timestep {index} of {count} does not begin a step of {table.solver!r}; begin at another, a multiple of "
                f"its order {self.order}"
            )
        times = [float(table.times[row]) for row in table.outputs[begins.index(index) :]]
        later = self._solver.tableau(self.path, times)
        if not torch.equal(later.times[later.evaluated], table.times[table.evaluated[index:]]):
            raise ArgumentError(f"solver {table.solver!r} takes other timesteps when it begins at {index}; begin at another")
        return later

    def _prediction(self, output: Tensor, x: Tensor, t: float) -> Tensor:
        """The network's answer as what the table wants."""
        path, kind = self.path, self.config["prediction_type"]
        if output.shape != x.shape and output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
            # A learned variance comes with it.
            output = output[:, : x.shape[1]]
        if output.shape != x.shape:
            raise ArgumentError(f"model_output has shape {tuple(output.shape)}, sample {tuple(x.shape)}; they must match")
        known: Any = {"epsilon": "noise", "sample": "denoised", "flow_prediction": "velocity"}.get(kind, "denoised")
        if kind == "v_prediction":
            output = path.alpha(t) * x - path.sigma(t) * output
        if known == self.table.prediction:
            return output
        of_x, of_output = conversion(path, known, self.table.prediction, t)
        return of_x * x + of_output * output

    def index_for_timestep(self, timestep: Any) -> int:
        """Where a timestep is among ``timesteps``: the nearest, and of equal ones the last, which begins a step."""
        far = (self.timesteps.double() - _number(timestep)).abs()
        if not float(far.min()) <= _NEAR:
            raise ArgumentError(f"timestep {_number(timestep):g} is none of scheduler.timesteps; go through these one by one")
        return int(torch.nonzero(far == far.min())[-1])

    def _time_of(self, timestep: float) -> float:
        return timestep / self.config["num_train_timesteps"] if isinstance(self.path, RectifiedFlow) else timestep + 1

    def _timestep_of(self, time: float) -> float:
        return time * self.config["num_train_timesteps"] if isinstance(self.path, RectifiedFlow) else time - 1

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma noise at timesteps, one a row."""
        alpha, sigma = self._coefficients(original_samples, timesteps)
        noisy: Tensor = alpha * original_samples + sigma * noise
        return noisy

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """The same, as flow-matching pipelines ask for it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """What a network of ``v_prediction`` is trained to give: alpha noise - sigma x_0."""
        alpha, sigma = self._coefficients(sample, timesteps)
        velocity: Tensor = alpha * noise - sigma * sample
        return velocity

    def _coefficients(self, x: Tensor, timesteps: Any) -> tuple[Any, Any]:
        steps = torch.as_tensor(timesteps).detach().cpu().double().reshape(-1)
        t = torch.tensor([self._time_of(float(step)) for step in steps.expand(len(x))], dtype=torch.float64)
        return columns(self.path.alpha(t).to(x.device), x), columns(self.path.sigma(t).to(x.device), x)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _begins(table: Tableau) -> list[int]:
    """Which evaluation each step of a table begins with."""
    evaluated, times = table.evaluated, table.times
    begins = []
    for row in table.outputs[:-1]:
        # A corrected state is not evaluated itself: the prediction at its time was.
        there = [k for k, other in enumerate(evaluated) if other == row or float(times[other]) == float(times[row])]
        begins.append(evaluated.index(row) if row in evaluated else there[-1])
    return begins


def _count(steps: Any) -> int:
    try:
        count = operator.index(steps)
    except TypeError:
        count = 0
    if isinstance(steps, bool) or count < 1:
        raise ArgumentError(f"num_inference_steps must be an integer >= 1, or give timesteps or sigmas; got {steps!r}")
    return count


def _number(timestep: Any) -> float:
    return float(torch.as_tensor(timestep).reshape(-1)[0])
