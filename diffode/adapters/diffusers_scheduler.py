"""Any solver as a scheduler of diffusers; the stages of a multi-stage solver have timesteps of their own."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffode import grids, solvers
from diffode.adapters.diffusers_levels import Laid, Replaced, configuration, named
from diffode.adapters.diffusers_model import TYPES
from diffode.adapters.diffusers_network import Convention
from diffode.adapters.diffusers_run import Driven
from diffode.adapters.diffusers_schedules import levels_of
from diffode.adapters.diffusers_tables import begins, without_signal, written
from diffode.errors import ArgumentError
from diffode.paths import Path, RectifiedFlow, Tabulated
from diffode.solvers.informed import informed_by
from diffode.solvers.jumped import Jumped
from diffode.solvers.registry import table_solver
from diffode.solvers.solver import WritesTable
from diffode.solvers.trained.bespoke import TrainedSolver
from diffode.statistics import Statistics
from diffode.tableau import Tableau

#: Options that no scheduler of diffusers has; all others describe the network and its levels.
_OWN_KEYS = ("solver", "grid", "replaced", "statistics")


class DiffodeScheduler(Driven, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler that runs a solver of diffode in diffusers' pipelines.

    ``as_diffusers_scheduler("unipc:order=3", like=pipeline.scheduler)``, or ``DiffodeScheduler.from_config`` with its
    configuration, takes the place of the scheduler that a model came with. Levels, timesteps and the meaning of the answer,
    clipping included, stay as they were; the steps between them are the solver's. ``grid`` sets other levels.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type: as in diffusers' schedulers;
            with ``flow_prediction`` the path is rectified flow and t is the timestep over ``num_train_timesteps``.
        rescale_betas_zero_snr: whether the schedule ends without any signal (arXiv 2305.08891); the solver then starts one
            level before.
        solver: spec of any solver that writes a table. ``universal`` needs scale= and dim= in its spec. With ``jump=auto`` or
            a level the pipeline's start goes to the first timestep without an evaluation, inside ``scale_model_input``, which
            a loop has to call; all steps are made below.
        grid: spec of the grid. Unless given, the levels are those of the replaced scheduler, or, where none is replaced,
            ``time_uniform``, diffusers' spacing ``linspace``. A grid beside ``replaced`` makes all levels, as in
            ``diffode.solve``: it ends at the lowest level of the network, or with ``to_zero=true`` without noise, and sigmas
            that a pipeline gives set only the number of steps. With ``jump=`` it is always laid as in ``diffode.solve``, and is
            ``karras:rho=3`` unless given, ending as ``final_sigmas_type`` says.
        final_sigmas_type: with ``zero`` the last step ends without noise, with ``sigma_min`` at the lowest level.
        replaced: configuration of the scheduler whose place it takes, with its ``_class_name``; the options above are then
            those of this configuration.
        statistics: mean and covariance of what the network denoises, for a solver that asks for them; no part of the
            configuration, and so given anew to ``from_config`` and ``from_pretrained``.

    The number of inference steps is that of grid steps; a solver with s evaluations per step has s times as many timesteps.
    """

    order = 1
    _compatibles: list[Any] = []  # noqa: RUF012
    ignore_for_config = ["statistics"]  # noqa: RUF012

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
        grid: str | None = None,
        final_sigmas_type: str = "zero",
        replaced: dict[str, Any] | None = None,
        statistics: Statistics | None = None,
    ):
        if prediction_type not in TYPES:
            raise ArgumentError(f"prediction_type must be one of {', '.join(TYPES)}, got {prediction_type!r}")
        if final_sigmas_type not in ("zero", "sigma_min"):
            raise ArgumentError(f"final_sigmas_type must be zero or sigma_min, got {final_sigmas_type!r}")
        # A configuration may come from elsewhere, and so may name registered solvers, but no file.
        recipe = solvers.registry.registered(solver)
        if grid is not None:
            grids.check_registered(grid)
        if not isinstance(recipe, WritesTable):
            raise ArgumentError(f"solver {solver!r} writes no table, so a pipeline can't run it; choose one that does")
        self.statistics = statistics
        self._solver = table_solver(informed_by(recipe, statistics))
        self.path: Path
        self._replaced: Replaced | None = None
        if replaced is not None:
            self._replace(replaced)
        else:
            self._invent()
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._device: Any = None
        # The table is written when the number of steps is known; one of two steps shows whether a pipeline can run the solver.
        trial = self.config["grid"] or "time_uniform"
        if isinstance(self._solver, TrainedSolver):
            self._solver.tableau(self.path, trial, self._solver.budgets[0])
        elif not self._solver.lays_levels:
            self._use(self._solver.tableau(self.path, trial, 2 if grids.is_named(trial) else None), None)
        self.num_inference_steps = None
        count = int(self.config["num_train_timesteps"])
        self.timesteps = torch.arange(count - 1, -1, -1, dtype=torch.float64)

    def _invent(self) -> None:
        """The path and the network's conventions from our own options."""
        prediction_type, count = self.config["prediction_type"], self.config["num_train_timesteps"]
        if self.config["grid"] is None and self._solver.jump is None:
            self.register_to_config(grid="time_uniform")  # type: ignore[no-untyped-call]
        flow = prediction_type == "flow_prediction"
        self._network = Convention("flow" if flow else "table", prediction_type, count)
        if flow:
            self.path = RectifiedFlow()
            return
        betas, kept = levels_of(self.config)
        if self.config["trained_betas"] is not None:
            # Saved as JSON: plain numbers.
            self.register_to_config(trained_betas=betas.tolist())  # type: ignore[no-untyped-call]
        #: Attributes that other libraries read from a scheduler.
        self.betas, self.alphas_cumprod = torch.from_numpy(betas), torch.from_numpy(kept)
        self.path = Tabulated(self.alphas_cumprod)

    def _replace(self, config: Mapping[str, Any]) -> None:
        """Take the place of a scheduler, with all its keys, since pipelines read them."""
        if not isinstance(config, Mapping) or not isinstance(config.get("_class_name"), str):
            raise ArgumentError("replaced must be the configuration of a scheduler with its _class_name")
        known = self._replaced = Replaced(config)
        theirs = {key: value for key, value in config.items() if not key.startswith("_") and key not in _OWN_KEYS}
        self._network, self.path = known.convention, known.path
        count, kind = known.convention.steps, known.convention.prediction_type
        shown = {**theirs, "num_train_timesteps": count, "prediction_type": kind, "replaced": dict(config)}
        self.register_to_config(**shown)  # type: ignore[no-untyped-call]
        if known.table is not None:
            self.alphas_cumprod = torch.tensor(known.table)
            if known.betas is not None:
                self.betas = torch.tensor(known.betas)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: Any = False, **kwargs: Any) -> Any:
        """A scheduler from a configuration, of this class or another scheduler; keyword arguments change its keys."""
        if not isinstance(config, Mapping):
            raise ArgumentError(f"config must be the configuration of a scheduler, got {type(config).__name__}")
        own = [key for key in inspect.signature(cls.__init__).parameters if key != "self"]
        given = {key: kwargs.pop(key) for key in _OWN_KEYS if key in kwargs}
        replaced = config.get("replaced") if "solver" in config else named(config)
        if replaced is None:
            changed = {key: kwargs.pop(key) for key in own if key in kwargs}
            made = cls(**{**{key: config[key] for key in own if key in config}, **changed, **given})
        else:
            changed = {key: kwargs.pop(key) for key in list(kwargs) if key in {**replaced, **config} and key[0] != "_"}
            before = {key: config[key] for key in ("solver", "grid") if "solver" in config}
            made = cls(**{**before, "replaced": {**replaced, **changed}, **given})
        return (made, kwargs) if return_unused_kwargs else made

    @classmethod
    def like(cls, scheduler: Any, solver: str, **options: Any) -> Any:
        """A scheduler that takes the place of another; ``options`` are of this class, or replace keys of its configuration."""
        config = scheduler.config if isinstance(scheduler, DiffodeScheduler) else configuration(scheduler)
        if isinstance(scheduler, DiffodeScheduler) and solvers.get(solver).needs_statistics:
            options.setdefault("statistics", scheduler.statistics)
        made, unknown = cls.from_config(config, True, solver=solver, **options)
        if unknown:
            raise ArgumentError(
                f"{type(scheduler).__name__} has no {', '.join(unknown)}; its configuration has "
                f"{', '.join(sorted(key for key in config if key[0] != '_'))}"
            )
        return made

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Write the table for a number of grid steps, or through given decreasing timesteps or noise levels.

        ``timesteps`` then holds one timestep per evaluation, float64 (float32 where the device has no float64). Where another
        scheduler is replaced, its own ``set_timesteps`` gets all arguments: it shifts given sigmas and applies ``mu``.

        Args:
            num_inference_steps: number of steps of the grid.
            device: device of ``timesteps``.
            timesteps: decreasing timesteps instead; the last step to no noise is added.
            sigmas: decreasing noise levels instead: sigma/alpha, or t for flow matching, as its pipelines give them.
            mu: shift t e^mu/(t e^mu + 1 - t) of these times, which flow-matching pipelines choose by the size of an image.

        Raises:
            ArgumentError: for arguments that contradict each other, or levels that the solver can't step through.
        """
        given = sigmas if timesteps is None else timesteps
        values = None if given is None else [float(value) for value in given]
        if timesteps is not None and sigmas is not None:
            raise ArgumentError("give timesteps or sigmas, not both")
        if values is not None and num_inference_steps is not None and num_inference_steps != len(values):
            raise ArgumentError("give num_inference_steps or timesteps, not both: their numbers differ")
        laid = self._laid(num_inference_steps, values, timesteps is None, mu)
        if laid is not None:
            table = written(self._solver, laid.path, laid.times)
        elif values is None or self._replaced is not None:
            if mu is not None and self._replaced is None:
                raise ArgumentError("mu shifts given sigmas: give sigmas as well, or grid='shift:s=...'")
            table = self._table(_count(num_inference_steps if values is None else len(values)))
        else:
            table = self._through(values, timesteps is None, mu)
        counted = num_inference_steps if values is None else None
        self.num_inference_steps = len(begins(table)) if counted is None else counted
        self._device = device
        self._use(table, None if laid is None else laid.labels)
        self.init_noise_sigma = 1.0 if laid is None else laid.start
        if laid is None and self._network.kind in ("edm", "continuous", "exploding"):
            self.init_noise_sigma = math.hypot(1.0, float(table.times[0]))
        self._begin_index = None

    def _laid(self, steps: int | None, given: list[float] | None, are_levels: bool, mu: float | None) -> Laid | None:
        """The replaced scheduler's levels; None where a grid, or a solver with levels of its own, makes them."""
        if self._replaced is None:
            return None
        self._follow_configuration()
        trained = self._solver.lays_levels
        if (trained or self.config["grid"] is not None) and (given is None or are_levels):
            return None
        if trained:
            raise ArgumentError(f"solver {self.config['solver']!r} lays its own levels: give num_inference_steps")
        if given is None:
            return self._replaced.lay(_count(steps), mu=mu)
        if are_levels:
            return self._replaced.lay(steps, sigmas=given, mu=mu)
        if not self._replaced.accepts("timesteps"):
            return self._replaced.through(given)
        return self._replaced.lay(timesteps=given, mu=mu)

    def _follow_configuration(self) -> None:
        """Take over changes that a pipeline made in the configuration (steps_offset, clip_sample, sigma_max)."""
        known = self._replaced
        if known is None:
            return
        ours = {*inspect.signature(type(self).__init__).parameters} - known.config.keys()
        now = {key: value for key, value in self.config.items() if key[0] != "_" and key not in ours and key not in _OWN_KEYS}
        shown = {**known.config, "prediction_type": known.convention.prediction_type}
        changed = {key: value for key, value in now.items() if key not in shown or shown[key] != value}
        if changed:
            self._replace({**known.config, **changed})

    def _through(self, given: list[float], are_levels: bool, mu: float | None) -> Tableau:
        path, flow = self.path, isinstance(self.path, RectifiedFlow)
        if are_levels:
            times = given if flow else [path.time_from_rho(level) for level in given]
            if mu is not None:
                if not flow:
                    raise ArgumentError("mu shifts the times of flow matching, prediction_type='flow_prediction'")
                times = [math.exp(mu) * t / (math.exp(mu) * t + 1 - t) for t in times]
            # Flow-matching pipelines start at t = 1, where alpha is 0.
            times = [min(t, path.t_max) for t in times] if flow else times
        else:
            times = [self._network.time(t) for t in given]
        name, falls = "sigmas" if are_levels else "timesteps", all(a > b for a, b in itertools.pairwise(times))
        if not times or not falls or not times[-1] > 0 or not times[0] <= path.t_max * (1 + 1e-9):
            most = (
                path.rho(path.t_max)
                if are_levels and not flow
                else path.t_max
                if are_levels
                else self._network.label(path.t_max)
            )
            raise ArgumentError(f"{name} must fall, from at most {most:g}, and end with some noise left; got {given}")
        if self.config["final_sigmas_type"] == "zero":
            return self._solver.tableau(path, [*times, 0.0])
        # A step to the lowest level is added at the end; where that is the last level already, it is next to nothing long.
        return self._solver.tableau(path, [*times, path.t_min if times[-1] > path.t_min else times[-1] * (1 - 1e-6)])

    def _table(self, steps: int) -> Tableau:
        path, grid = self.path, self.config["grid"]
        if isinstance(self._solver, Jumped):
            ending = ",to_zero=true" if self.config["final_sigmas_type"] == "zero" else ""
            return self._solver.tableau(path, f"{self._solver.usual_grid}{ending}" if grid is None else grid, steps)
        if grid is not None and not grids.is_named(grid):
            times = grids.get(grid, path).tolist()
            to_zero = self._replaced is None and self.config["final_sigmas_type"] == "zero" and times[-1] > 0
            times = [*times, 0.0] if to_zero else times
            if steps != len(times) - 1:
                raise ArgumentError(f"grid {grid!r} lists its own levels: it makes {len(times) - 1} steps, not {steps}")
            return self._solver.tableau(path, times)
        if self._solver.lays_levels:
            # The solver lays its own levels, between ends with some noise.
            return self._solver.tableau(path, [path.t_max, path.t_min], steps)
        if self._replaced is not None or self.config["final_sigmas_type"] == "sigma_min":
            return self._solver.tableau(path, grid, steps)
        inner = grids.get(grid, path, steps - 1).tolist() if steps > 1 else [path.t_max]
        return self._solver.tableau(path, [*inner, 0.0])

    def _use(self, table: Tableau, labels: Sequence[float] | None) -> None:
        evaluated = table.evaluated
        if not evaluated:
            raise ArgumentError(
                f"solver {table.solver!r} jumps to the end of the path, which leaves nothing for a pipeline: give a larger jump"
            )
        self._jumps, self._has_jumped = isinstance(self._solver, Jumped) and evaluated[0] > 0, False
        if evaluated[0] != 0 and not self._jumps:
            raise ArgumentError(
                f"solver {table.solver!r} does not evaluate its start, which a pipeline does first; choose another, "
                "without churn and analytic_first_step"
            )
        self.table = table
        #: Timesteps by time, where the replaced scheduler gives them; it may have rounded them.
        self._named = dict(zip((float(table.times[row]) for row in table.outputs), labels or (), strict=False))
        times = table.times[evaluated]
        single = self._device is not None and torch.device(self._device).type == "mps"
        steps = torch.tensor([self._label(float(t)) for t in times], dtype=torch.float64)
        self.timesteps = steps.to(device=self._device, dtype=torch.float32 if single else torch.float64)
        starts = begins(table)
        gaps = {later - first for first, later in itertools.pairwise(starts)} or {len(evaluated)}
        #: Number of timesteps per step, if all but the last step have the same; image-to-image pipelines begin at a multiple.
        self.order = gaps.pop() if len(gaps) == 1 else 1
        #: Levels of the timesteps and of the end: sigma/alpha, or times of the flow where the replaced scheduler has those.
        ends = [self._level(float(t)) for t in (*times, table.times[-1])]
        self.sigmas = torch.tensor(ends, dtype=torch.float64)
        self._step_index = None
        self._run = None
        self._running, self._denoised = without_signal(table)
        self._offset = 0
        self._state = None

    def _label(self, t: float) -> float:
        return self._named.get(t, self._network.label(t))

    def _level(self, t: float) -> float:
        if self._replaced is not None and self._network.kind == "flow":
            return 1 - t if self._network.inverted else t
        return float(self._on.rho(t))

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _count(steps: Any) -> int:
    try:
        count = operator.index(steps)
    except TypeError:
        count = 0
    if isinstance(steps, bool) or count < 1:
        raise ArgumentError(f"num_inference_steps must be an integer >= 1, or give timesteps or sigmas; got {steps!r}")
    return count
