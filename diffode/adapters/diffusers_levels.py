"""The levels of a replaced scheduler of diffusers as times of a path; the scheduler's own ``set_timesteps`` lays them."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffode.adapters import diffusers_keys as keys
from diffode.adapters.diffusers_network import Convention, Kind, clipped, thresholded
from diffode.adapters.diffusers_schedules import levels_of, no_levels
from diffode.errors import ArgumentError
from diffode.extensions import library
from diffode.paths import EDM, Path, RectifiedFlow, Tabulated, Trigonometric

#: Noise level rho that stands for the infinite one of a level without signal, as in diffusers' UniPC.
_LARGEST_LEVEL = 1e6
#: Length of a last step that would have none, as a share of its level: its evaluation is then made, as the pipeline expects.
_SHORT_STEP = 1e-6


@dataclass(frozen=True)
class Laid:
    """The levels of a run.

    Attributes:
        path: the path of the times.
        times: the levels as decreasing times, one more than there are steps.
        labels: the timestep with which the network is called at each time but the last.
        start: the standard deviation of the noise from which a pipeline starts.
    """

    path: Path
    times: list[float]
    labels: list[float]
    start: float


class Replaced:
    """A scheduler whose place diffode's takes: it lays the levels, and a solver makes the steps.

    Args:
        config: its configuration with ``_class_name``, plain JSON (see :func:`configuration`).

    Raises:
        ArgumentError: if diffode can't take over its class or one of its keys.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = dict(config)
        self.name = str(config["_class_name"])
        made = _class(self.name)
        known = [key for key in _signature(made) if key in config]
        # PNDM repeats timesteps for its first steps, and needs at least four steps for that.
        plain_start = {"skip_prk_steps": True} if "skip_prk_steps" in _signature(made) else {}
        _judge(self.name, {key: config[key] for key in known})
        # A key that only another class reads is carried along, as in diffusers; a key that none reads is misspelt.
        for key in config.keys() - keys.KNOWN - {"set_shift"}:
            if not key.startswith("_"):
                raise ArgumentError(f"{self.name} has {key}={config[key]!r:.60}, a key that no scheduler of diffusers reads")
        try:
            self.scheduler = made(**{**{key: config[key] for key in known}, **plain_start})
        except (ValueError, TypeError, NotImplementedError, ArithmeticError, IndexError, RuntimeError) as error:
            raise ArgumentError(f"{self.name} refuses its configuration: {error}") from error
        if "set_shift" in config:
            self.scheduler.set_shift(config["set_shift"])
        others = {key: value for key, value in config.items() if key not in known and not key.startswith("_")}
        self.scheduler.register_to_config(**others)
        self.path: Path
        self.table: Any = None
        kind = self._kind()
        prediction_type = self.scheduler.config.get("prediction_type")
        if kind in ("flow", "exploding") and self.name in keys.FLOWS:
            prediction_type = "flow_prediction"
        if prediction_type == "flow_prediction" and kind not in ("flow", "exploding"):
            raise ArgumentError(f"{self.name} has prediction_type 'flow_prediction' without use_flow_sigmas: set both")
        self.convention = Convention(
            kind,
            prediction_type or ("v_prediction" if kind == "angle" else "epsilon"),
            int(self.scheduler.config.get("num_train_timesteps", 1000)),
            bool(self._read("invert_sigmas")),
            float(self._read("sigma_data") or 1.0),
            getattr(self.scheduler, "precondition_noise", None),
            self._limit(),
        )

    def _read(self, key: str) -> Any:
        """The value of a key if the scheduler's class reads it, None if it only carries it."""
        return self.scheduler.config.get(key) if key in _signature(type(self.scheduler)) else None

    def _kind(self) -> Kind:
        config = self.scheduler.config
        high = config.get("sigma_max")
        if self.name in keys.FLOWS or self._read("use_flow_sigmas"):
            converted = any(self._read(f"use_{name}_sigmas") for name in ("karras", "exponential", "beta"))
            if self.name in keys.FLOWS and converted and high is not None and high > 1:
                self.path = EDM(float(config.get("sigma_min") or 0.002), float(high))
                return "exploding"
            self.path = RectifiedFlow()
            return "flow"
        if hasattr(self.scheduler, "precondition_noise"):
            self.path = EDM(float(config["sigma_min"]), float(high))
            return "edm"
        if self.name == "IPNDMScheduler":
            self.path = Trigonometric()
            return "angle"
        if getattr(self.scheduler, "alphas_cumprod", None) is None:
            raise no_levels(self.name)
        self._tabulate()
        if self._read("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
            first, last = self.path.rho(self.path.t_min), self.path.rho(self.path.t_max)
            self.path = EDM(float(config.get("sigma_min") or first), float(high or last))
            return "continuous"
        return "table"

    def _tabulate(self) -> None:
        """Its alpha^2 at each level in float64: from its options where these give them, else as they stand."""
        theirs = self.scheduler.alphas_cumprod.double().cpu().numpy()
        self.betas = self.scheduler.betas.double().cpu().numpy() if hasattr(self.scheduler, "betas") else None
        self.table = theirs
        try:
            betas, made = levels_of({key: self._read(key) for key in keys.LEVELS if self._read(key) is not None})
            # Diffusers may write 2^-24 for the 0 of a zero terminal SNR.
            if len(made) == len(theirs) and np.allclose(made, theirs, rtol=1e-3, atol=1e-7):
                self.betas, self.table = betas, made
        except ArgumentError:
            pass
        self.path = Tabulated(self.table)

    def _limit(self) -> Any:
        config = self.scheduler.config
        if config.get("thresholding") and self.name in keys.THRESHOLDING:
            return thresholded(float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"]))
        if config.get("clip_sample") and self.name in keys.CLIPPING:
            return clipped(float(config.get("clip_sample_range", 1.0)))
        return None

    def accepts(self, argument: str) -> bool:
        """Whether its ``set_timesteps`` has an argument."""
        return argument in inspect.signature(self.scheduler.set_timesteps).parameters

    def lay(
        self,
        steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> Laid:
        """The levels that its ``set_timesteps`` makes of these arguments; ArgumentError if it refuses them."""
        given: dict[str, Any] = {"mu": mu}
        if timesteps is not None:
            given["timesteps"] = [int(t) if float(t).is_integer() else float(t) for t in timesteps]
        if sigmas is not None:
            given["sigmas"] = torch.tensor(sigmas, dtype=torch.float64) if self.convention.kind == "edm" else list(sigmas)
            # EDM's schedulers take sigmas for places between their ends, and need the number of steps as well.
            steps = len(sigmas) if self.convention.kind == "edm" else steps
        given = {key: value for key, value in given.items() if value is not None}
        for key in given:
            if not self.accepts(key):
                raise ArgumentError(f"{self.name}, whose levels these are, takes no {key} in set_timesteps")
        if steps is not None:
            given["num_inference_steps"] = steps
        scheduler = self.scheduler
        try:
            scheduler.set_timesteps(**given)
        except (ValueError, TypeError, NotImplementedError, ArithmeticError, IndexError, RuntimeError) as error:
            said = ", ".join(f"{key}={value!r:.60}" for key, value in given.items())
            raise ArgumentError(f"{self.name} makes no levels of set_timesteps({said}): {error}") from error
        order = getattr(scheduler, "order", 1)
        if hasattr(scheduler, "_timesteps") and self.name == "PNDMScheduler":
            # ``timesteps`` repeats some of these for its first steps.
            labels = [float(t) for t in scheduler._timesteps[::-1]]
        else:
            labels = scheduler.timesteps.double().tolist()[::order]
        if getattr(scheduler, "sigmas", None) is not None:
            every = scheduler.sigmas.double().tolist()
            # A scheduler with two evaluations per step lists each inner level twice.
            levels = (every if order == 1 else [every[0], *every[1::2]])[: len(labels) + 1]
            path, times = self._times(levels, labels)
        else:
            path, times = self._of_timesteps(labels)
        start = self._start(path, times)
        return _checked(self.name, path, times, labels, start)

    def through(self, timesteps: Sequence[float]) -> Laid:
        """Levels at given timesteps, for schedulers that take none; the last step is that of their own levels."""
        labels = [float(t) for t in timesteps]
        own = self.lay(max(len(labels), 2), mu=1.0 if self.scheduler.config.get("use_dynamic_shifting") else None)
        times = [*(self.convention.time(label) for label in labels), own.times[-1] if own.times[-1] > 0 else 0.0]
        path = self.path if not labels or times[0] <= self.path.t_max else own.path
        if not labels or not times[0] <= path.t_max * (1 + 1e-9):
            raise ArgumentError(f"timesteps must fall, from at most {self.convention.label(path.t_max):g}, got {labels!r:.200}")
        return _checked(self.name, path, times, labels, own.start)

    def _times(self, levels: list[float], labels: list[float]) -> tuple[Path, list[float]]:
        kind = self.convention.kind
        if kind == "flow":
            if max(levels) > 1:
                raise ArgumentError(
                    f"{self.name} makes times of the flow up to {max(levels):g} with this configuration, but 1 is the last: it "
                    "converts the levels of its betas (use_karras_sigmas and the like) even with use_flow_sigmas"
                )
            return RectifiedFlow(t_max=1.0), [1 - level for level in levels] if self.convention.inverted else levels
        if kind != "table":
            return self.path, levels
        path, base = self.path, self.table
        finite = [min(level, _LARGEST_LEVEL) for level in levels]
        most = max(finite)
        if most > path.rho(path.t_max) * (1 + 1e-3):
            path = _Longer(base, most)
        # A first level that exceeds the path's last only by float32 rounding is that level.
        times = [0.0 if level == 0 else min(path.time_from_rho(level), path.t_max) for level in finite]
        for k, label in enumerate(labels):
            # At whole timesteps the path's float64 levels are more exact than the scheduler's float32 ones.
            if (
                label.is_integer()
                and 0 < label + 1 <= path.t_max
                and math.isclose(path.rho(label + 1), levels[k], rel_tol=_of_float32(levels[k]))
            ):
                times[k] = label + 1
        return path, times

    def _of_timesteps(self, labels: list[float]) -> tuple[Path, list[float]]:
        """Times for schedulers that have timesteps only; their last step goes to the lowest level, or to no noise at all."""
        path = self.path
        if self.convention.kind == "angle":
            return Trigonometric(t_max=1.0), [*labels, 0.0]
        final = float(getattr(self.scheduler, "final_alpha_cumprod", 1.0))
        ends_at_first = self.name == "TCDScheduler" or (final < 1 and self.name != "LCMScheduler")
        if labels and max(labels) + 1 > path.t_max:
            path = _Longer(self.table, _LARGEST_LEVEL)
        return path, [*(label + 1 for label in labels), 1.0 if ends_at_first else 0.0]

    def _start(self, path: Path, times: list[float]) -> float:
        scheduler = self.scheduler
        start = float(getattr(scheduler, "init_noise_sigma", 1.0))
        if self.convention.kind != "table":
            return start
        # The state of a scheduler that scales the network's input is x/alpha; diffode's is x.
        scaled = scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), scheduler.timesteps[0])
        return start * float(path.alpha(times[0])) if float(scaled) != 1 else start


class _Longer(Tabulated):
    """A path with one more level beyond its last, for schedulers that start with more noise than the network was trained on."""

    def __init__(self, table: Any, rho: float):
        kept = table[:-1] if table[-1] < 2.0**-23 else table
        last = 1 / (1 + rho**2)
        self._set(np.append(kept, min(last, kept[-1] * (1 - 1e-9))), 1.0, len(kept) + 1.0)


def _checked(name: str, path: Path, times: list[float], labels: list[float], start: float) -> Laid:
    times, labels = list(times), list(labels)
    while len(times) > 2 and times[-2] <= 0:
        # A step from a level without noise has nothing to do.
        times.pop(-2)
        labels.pop()
    if len(times) > 1 and 0 < times[-2] <= times[-1] * (1 + 1e-9):
        times[-1] = times[-2] * (1 - _SHORT_STEP)
    if not all(math.isfinite(t) for t in times) or not all(a > b for a, b in itertools.pairwise(times)) or len(times) < 2:
        raise ArgumentError(
            f"the levels of {name} must fall, from noise to data; with these arguments it makes {labels!r:.200}"
        )
    return Laid(path, times, labels, start)


def _class(name: str) -> Any:
    if name in keys.CLASSES:
        raise no_levels(name)
    made = getattr(library("diffusers", "'diffode[diffusers]'"), name, None)
    if not inspect.isclass(made) or not hasattr(made, "set_timesteps"):
        raise ArgumentError(f"diffusers has no scheduler {name!r}; like and from_config take its own schedulers")
    return made


def _signature(made: Any) -> list[str]:
    return [key for key in inspect.signature(made.__init__).parameters if key not in ("self", "args", "kwargs")]


def _of_float32(level: float) -> float:
    """Relative error of a level computed from alpha^2 in float32, with the rounding of the products and of 1 - alpha^2."""
    return 1e-4 + 2.0**-22 * (1 + level**2) / level**2 if level else 0.0


def _judge(name: str, config: Mapping[str, Any]) -> None:
    """Raise ArgumentError for keys that our runs do not honour."""
    for key, value in config.items():
        if key in keys.REFUSED and value is not None:
            raise ArgumentError(f"{name} has {key}={value!r:.60}: {keys.REFUSED[key]}, which diffode's does not do")
        if key not in keys.KNOWN:
            raise ArgumentError(f"{name} has {key}={value!r:.60}, whose meaning for a run of diffode is not known")


def configuration(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler of diffusers as plain JSON, with its class and with changes made on the object."""
    made = type(scheduler)
    diffusers = library("diffusers", "'diffode[diffusers]'")
    if getattr(diffusers, made.__name__, None) is not made:
        raise ArgumentError(
            f"like is a {made.__name__}, which is no class of diffusers itself, so that its configuration does not lay its "
            "levels again; give one of diffusers' own with the same configuration, or leave like out and give grid"
        )
    config = {**scheduler.config, "_class_name": made.__name__}
    shift = getattr(scheduler, "shift", None)
    if isinstance(shift, int | float) and shift != config.get("shift"):
        # set_shift was called on the object; it leaves the ends as the configuration's own shift made them.
        config["set_shift"] = shift
    config = plain(config)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is not None and "trained_betas" in config and made.__name__ not in keys.CLASSES:
        theirs, own = torch.as_tensor(table).double().cpu(), Replaced(config).scheduler.alphas_cumprod.double()
        if theirs.shape != own.shape or not torch.allclose(theirs, own, rtol=1e-5, atol=1e-9):
            # Other alphas_cumprod were put on the object.
            betas = 1 - theirs / torch.cat([torch.ones(1, dtype=torch.float64), theirs[:-1]])
            config |= {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False, "num_train_timesteps": len(theirs)}
    return config


def named(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the name of its class, which its keys reveal where it is missing; ArgumentError if they do not."""
    if isinstance(config.get("_class_name"), str):
        return plain(config)
    diffusers = library("diffusers", "'diffode[diffusers]'")
    own = [key for key in config if not key.startswith("_")]
    found = []
    for name in dir(diffusers):
        made = getattr(diffusers, name) if name.endswith("Scheduler") else None
        expected = _signature(made) if inspect.isclass(made) and hasattr(made, "set_timesteps") else []
        # The configuration of an object begins with the arguments of its class, in their order.
        if expected and own[: len(expected)] == expected:
            found.append((len(expected), name))
    if not found:
        raise ArgumentError(
            "config must name its class ('_class_name', as saved configurations do), or be the configuration of a scheduler of "
            "diffusers: use as_diffusers_scheduler(solver, like=scheduler)"
        )
    return plain({**config, "_class_name": max(found)[1]})


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without values that JSON can't hold; ArgumentError if one of them has a meaning for our runs."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key.startswith("_") and key != "_class_name":
            continue
        value = value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value
        if isinstance(value, float) and not math.isfinite(value):
            # JSON has no infinity. It occurs in lambda_min_clipped alone, as the default, and clips nothing.
            continue
        try:
            kept[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            if key not in keys.HARMLESS:
                raise ArgumentError(f"configuration key {key}={value!r:.60} can't be written as JSON") from error
    return kept
