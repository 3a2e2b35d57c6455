"""Any solver as a scheduler of diffusers: multi-stage solvers by interleaved timesteps, multistep ones by their own history."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffode import grids, solvers
from diffode.adapters.diffusers_model import TYPES
from diffode.errors import ArgumentError
from diffode.fields import columns, conversion
from diffode.paths import DDPM, Path, RectifiedFlow, Tabulated
from diffode.solvers.bespoke import TrainedSolver
from diffode.solvers.direct import DirectSolver
from diffode.tableau import Tableau

_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


class DiffodeScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler that runs a solver of diffode in diffusers' pipelines.

    ``DiffodeScheduler.from_config(pipeline.scheduler.config, solver="unipc:order=3")`` takes over the noise schedule and the
    prediction type of the scheduler that a model came with.

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
        self._solver = solvers.get(solver)
        if isinstance(self._solver, DirectSolver):
            raise ArgumentError(f"solver {solver!r} writes no table, so a pipeline can't run it; choose one that does")
        self.path: Path
        if prediction_type == "flow_prediction":
            self.path = RectifiedFlow()
        else:
            betas = _betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
            kept = np.cumprod(1 - betas)
            if rescale_betas_zero_snr:
                root = np.sqrt(kept)
                kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
            #: What other libraries read from a scheduler.
            self.alphas_cumprod = torch.from_numpy(kept)
            self.path = Tabulated(self.alphas_cumprod)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        # A table is written when the number of steps is known; two steps show whether the solver suits a pipeline at all.
        if not isinstance(self._solver, TrainedSolver):
            self.set_timesteps(2)
        self.num_inference_steps = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float64)

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(inspect.signature(cls.__init__).parameters)[1:]

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, *, timesteps: list[float] | None = None
    ) -> None:
        """Write the table for so many grid steps, or through the given decreasing timesteps.

        ``timesteps`` afterwards holds one timestep an evaluation, float64 (float32 where the device has no float64).
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ArgumentError("give num_inference_steps or timesteps, not both and not neither")
        if timesteps is not None:
            times = [self._time_of(float(t)) for t in timesteps]
            times += [0.0] if self.config["final_sigmas_type"] == "zero" else []
            table = self._solver.tableau(self.path, times)
        else:
            if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
                raise ArgumentError(f"num_inference_steps must be an integer >= 1, got {num_inference_steps!r}")
            table = self._table(num_inference_steps)
        self.num_inference_steps = num_inference_steps if timesteps is None else len(table.outputs) - 1
        self._device = device
        self._use(table)
        self._begin_index = None

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
        steps = times * self.config["num_train_timesteps"] if isinstance(self.path, RectifiedFlow) else times - 1
        single = self._device is not None and torch.device(self._device).type == "mps"
        self.timesteps = steps.to(device=self._device, dtype=torch.float32 if single else torch.float64)
        per_step, rest = divmod(len(evaluated), max(1, len(table.outputs) - 1))
        self.order = per_step if per_step and not rest else 1
        #: The noise levels sigma/alpha of the timesteps and of the end.
        ends = [*(self.path.rho(float(t)) for t in times), self.path.rho(float(table.times[-1]))]
        self.sigmas = torch.tensor(ends, dtype=torch.float64)
        self._step_index = None
        self._run: Any = None
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
        t = float(self.table.times[self.table.evaluated[index]])
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
        result = previous.to(sample.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _begin(self, timestep: Any, x: Tensor, generator: Any) -> None:
        index = self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
        if index:
            self._skip(index)
        shape, device, dtype = x.shape, x.device, x.dtype

        def draw(_: int) -> Tensor:
            noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            return noise

        self._run = self.table.driven(x, draw)
        self._step_index = 0
        _, self._state = next(self._run)

    def _skip(self, index: int) -> None:
        """Write the table anew from a later timestep on."""
        table, kept, count = self.table, self.timesteps, self.num_inference_steps
        row = table.evaluated[index] if index < len(table.evaluated) else -1
        if row not in table.outputs or isinstance(self._solver, TrainedSolver):
            raise ArgumentError(
                f"timestep {index} of {len(table.evaluated)} does not begin a step of {table.solver!r}; begin at another"
            )
        times = [float(table.times[r]) for r in table.outputs[table.outputs.index(row) :]]
        self._use(self._solver.tableau(self.path, times))
        if len(self.timesteps) != len(kept) - index or not torch.equal(self.timesteps, kept[index:]):
            raise ArgumentError(f"solver {table.solver!r} takes other timesteps when it begins at {index}; begin at another")
        self.num_inference_steps = count

    def _prediction(self, output: Tensor, x: Tensor, t: float) -> Tensor:
        """The network's answer as what the table wants."""
        path, kind = self.path, self.config["prediction_type"]
        if output.shape != x.shape and output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
            # A learned variance comes with it.
            output = output[:, : x.shape[1]]
        known: Any = {"epsilon": "noise", "sample": "denoised", "flow_prediction": "velocity"}.get(kind, "denoised")
        if kind == "v_prediction":
            output = path.alpha(t) * x - path.sigma(t) * output
        if known == self.table.prediction:
            return output
        of_x, of_output = conversion(path, known, self.table.prediction, t)
        return of_x * x + of_output * output

    def index_for_timestep(self, timestep: Any) -> int:
        """Where a timestep is among ``timesteps``: the nearest, and of equal ones the last, which begins a step."""
        far = (self.timesteps.double() - float(timestep)).abs()
        return int(torch.nonzero(far == far.min())[-1])

    def _time_of(self, timestep: float) -> float:
        return timestep / self.config["num_train_timesteps"] if isinstance(self.path, RectifiedFlow) else timestep + 1

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma noise at timesteps, one a row."""
        t = torch.tensor([self._time_of(float(step)) for step in timesteps.reshape(-1)], dtype=torch.float64)
        alpha, sigma = (
            columns(value.to(original_samples.device), original_samples) for value in (self.path.alpha(t), self.path.sigma(t))
        )
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _betas(count: int, start: float, end: float, schedule: str, trained: Any) -> Any:
    if trained is not None:
        return np.asarray(trained, dtype=np.float64)
    if schedule not in _SCHEDULES:
        raise ArgumentError(f"beta_schedule must be one of {', '.join(_SCHEDULES)}, got {schedule!r}")
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ArgumentError(f"beta_start and beta_end must be finite, got {start!r} and {end!r}")
    return DDPM(schedule=_SCHEDULES[schedule], beta_start=float(start), beta_end=float(end), levels=count).betas()
