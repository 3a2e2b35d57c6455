"""Flow maps as models that diffusers' schedulers for few-step generators run in their own loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffode.adapters.consistency import SCHEDULERS, TYPES, check_noise, trigflow_path
from diffode.adapters.diffusers_model import Named
from diffode.adapters.two_time import STRAIGHT
from diffode.errors import ArgumentError, NumericalError
from diffode.maps import FlowMap
from diffode.paths import EDM, Path, Tabulated
from diffode.paths import get as get_path
from diffode.solvers.trained.mapped import as_flow_map

#: The scheduler whose model is told two times.
_FLOW_MAP = "FlowMapEulerDiscreteScheduler"
#: Keys that change the points which a model gives.
_CHANGES = ("clip_denoised", "clip_sample", "thresholding")
#: Relative difference of noise levels that is rounding of diffusers' float32.
_SAME_LEVEL = 1e-5


def as_two_time_model(phi: Any, scheduler: Any, *, eta: float = 0.3, nearest: bool = False) -> TwoTimeModel:
    """A flow map as the model that a few-step scheduler of diffusers calls, ``model(sample, timestep).sample``.

    The model answers with whatever makes the scheduler's own step jump where the map does, so that its loop is
    ``diffode.solve(field, x, solver=MapSolver(of=phi), grid=model.times)``: to rounding if the scheduler's levels
    (``sigmas``, ``alphas_cumprod``, ``timesteps``) are float64, to 1e-5 with the float32 in which diffusers keeps them.

    Args:
        phi: a flow map, or what :class:`MapSolver` takes for one: a file, a function (x, s, t), ``my_map.py:phi``.
        scheduler: a CMStochasticIterativeScheduler, LCMScheduler, TCDScheduler, SCMScheduler or
            FlowMapEulerDiscreteScheduler. The model reads its levels and its place in a run: use it with this object.
        eta: the ``eta`` with which TCDScheduler.step is called, 0.3 as is its default. 0 is the map's own run, 1 that of a
            consistency function to timestep 0; between, its points get new noise at every step.
        nearest: whether a level that is noisier than the map's noisiest counts as that one, with its state rescaled: SCM and
            flow-map schedulers begin without any data, at a level that no training on EDM's path has.

    Returns:
        A module with ``path``, the path of the scheduler, and ``times``, those of our own run over its current timesteps.

    Raises:
        ArgumentError: for another scheduler, one that changes points on its own (clipping, thresholding, ``s_noise``), or a
            map that can't jump where the scheduler goes.

    >>> import diffode
    >>> from diffusers import SCMScheduler
    >>> scheduler = SCMScheduler(sigma_data=1.0)
    >>> scheduler.set_timesteps(1, max_timesteps=1.5, intermediate_timesteps=None)
    >>> model = as_two_time_model(diffode.flow(diffode.exact_field("gauss1d", "edm")), scheduler)
    >>> [round(t, 6) for t in model.times]
    [1.5, 0.0]
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    if not isinstance(config, Mapping) or name not in (*SCHEDULERS, _FLOW_MAP):
        known = ", ".join((*SCHEDULERS, _FLOW_MAP))
        raise ArgumentError(
            f"scheduler must be one of {known} (an object, not a class), got {name}: others take as_diffusers_model"
        )
    for key in _CHANGES:
        if config.get(key):
            raise ArgumentError(f"{key}={config[key]!r} of {name} moves the map's points: make the scheduler with {key}=False")
    check_noise(config)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise ArgumentError(f"eta must lie in [0, 1], got {eta!r}")
    if not isinstance(nearest, bool):
        raise ArgumentError(f"nearest must be True or False, got {nearest!r}")
    kind = SCHEDULERS.get(name, "velocity")
    if kind in ("latent", "trajectory") and config["prediction_type"] not in TYPES:
        raise ArgumentError(f"prediction_type must be one of {', '.join(TYPES)}, got {config['prediction_type']!r}")
    return TwoTimeModel(phi, scheduler, kind, float(eta), nearest)


class TwoTimeModel(nn.Module):
    """The model that :func:`as_two_time_model` makes."""

    def __init__(self, phi: Any, scheduler: Any, kind: str, eta: float, nearest: bool):
        super().__init__()
        self.scheduler, self.kind, self.eta, self.nearest = scheduler, kind, eta, nearest
        self.path = _path_of(scheduler, kind)
        self.phi: FlowMap = as_flow_map(phi, self.path)
        self.dtype, self.device = torch.float64, torch.device("cpu")
        if self.phi.fixed_end and (kind == "velocity" or (kind == "trajectory" and eta < 1)):
            raise ArgumentError(
                f"{type(scheduler).__name__} jumps between any two times, and this map goes to t={self.phi.ends[1]:g} only: "
                "run it with a consistency scheduler, such as CMStochasticIterativeScheduler"
            )
        last = self._last
        if self.phi.fixed_end and abs(self.path.sigma(last) - self.path.sigma(self.phi.ends[1])) > _SAME_LEVEL:
            raise ArgumentError(
                f"{type(scheduler).__name__} ends at t={last:g} of {self.path.spec!r}, and this map goes to "
                f"t={self.phi.ends[1]:g} only: make the scheduler with that as sigma_min"
            )

    @property
    def _last(self) -> float:
        """The time at which the scheduler takes a jump to the end to arrive."""
        if self.kind in ("edm", "trajectory"):
            return self.path.t_min
        # The others take what arrives for data without noise, which is the map's cleanest time.
        return max(self.path.t_min, self.phi.ends[1])

    @property
    def times(self) -> list[float]:
        """The times of our own run with the scheduler's current timesteps, on ``path``."""
        levels = self.scheduler.sigmas if self.kind in ("edm", "velocity") else self.scheduler.timesteps
        shift = 1.0 if self.kind in ("latent", "trajectory") else 0.0
        found = [min(float(level) + shift, self.path.t_max) for level in levels]
        # A last level at the end itself is no jump.
        return [*(t for t in (found if shift else found[:-1]) if t > self._last), self._last]

    @torch.no_grad()
    def forward(
        self, sample: Tensor, timestep: Any, r_timestep: Any = None, *_: Any, return_dict: bool = True, **__: Any
    ) -> Any:
        """The answer for samples (B, *shape) at a timestep, the same for all rows; NumericalError if it is not finite.

        ``r_timestep`` is where a flow-map model is asked to go; the scheduler's next level unless given.
        """
        x = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
        step = torch.as_tensor(timestep).detach().reshape(-1)
        if not len(step) or bool((step != step[0]).any()):
            raise ArgumentError(f"timestep must be the same for all rows, as a scheduler's are, got {step.tolist()!r:.60}")
        answer = getattr(self, f"_{self.kind}")(x, step[0], r_timestep)
        if not bool(torch.isfinite(answer).all()):
            raise NumericalError(
                f"the map's points are not finite at timestep {float(step[0]):g}: look at the map and the sample"
            )
        answer = answer.to(sample.dtype)
        return Named(sample=answer) if return_dict else (answer,)

    def _jump(self, x: Tensor, s: float, t: float | None = None) -> Tensor:
        """The map from a time of the path to another, or to the last."""
        first, end = self.phi.ends[0], self._last if t is None else t
        if s > first and self.path.sigma(s) * self.path.alpha(first) > self.path.sigma(first) * self.path.alpha(s) * (1 + 1e-9):
            if not self.nearest:
                raise ArgumentError(
                    f"the scheduler begins at t={s:g}, noisier than the noisiest time of this map, {first:g}: pass "
                    "nearest=True to take the one for the other, or lay the scheduler's levels from there on"
                )
            x, s = x * (self.path.sigma(first) / self.path.sigma(s)), first
        return self.phi(x, min(s, first), end)

    def _index(self, timestep: Tensor) -> int:
        """The place of a timestep in the scheduler's run."""
        scheduler = self.scheduler
        known = scheduler.begin_index if scheduler.step_index is None else scheduler.step_index
        if known is None:
            try:
                known = scheduler.index_for_timestep(timestep)
            except IndexError:
                known = None
        if known is None or known >= len(scheduler.timesteps):
            raise ArgumentError(
                f"timestep {float(timestep):g} is none of scheduler.timesteps: call set_timesteps, and go through "
                "these one by one"
            )
        return int(known)

    def _edm(self, sample: Tensor, timestep: Tensor, _: Any) -> Tensor:
        sigma = self.scheduler.sigmas[self._index(timestep)]
        x = sample * ((sigma**2 + self.scheduler.config.sigma_data**2) ** 0.5)
        skip, out = self.scheduler.get_scalings_for_boundary_condition(sigma)
        end = self._jump(x, min(float(sigma), self.path.t_max))
        return torch.zeros_like(x) if not float(out) else (end - skip * x) / out

    def _trigflow(self, x: Tensor, timestep: Tensor, _: Any) -> Tensor:
        s = self.scheduler.timesteps[self._index(timestep)]
        # The default, 1.5708, is a little more than pi/2.
        end = self._jump(x, min(float(s), self.path.t_max))
        return torch.zeros_like(x) if not float(s) else (torch.cos(s) * x - end) / torch.sin(s)

    def _latent(self, x: Tensor, timestep: Tensor, _: Any) -> Tensor:
        scheduler, step = self.scheduler, int(timestep)
        kept = scheduler.alphas_cumprod[step]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        # Of a tensor these are float32, as they are in its step.
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        if not float(out):
            return torch.zeros_like(x)
        clean = (self._jump(x, min(step + 1.0, self.path.t_max)) - skip * x) / out
        kind = scheduler.config.prediction_type
        answers = {"epsilon": (x - alpha * clean) / sigma, "sample": clean, "v_prediction": (alpha * x - clean) / sigma}
        answer: Tensor = answers[kind]
        return answer

    def _trajectory(self, x: Tensor, timestep: Tensor, _: Any) -> Tensor:
        scheduler, step = self.scheduler, int(timestep)
        index = self._index(timestep) + 1
        following = scheduler.timesteps[index] if index < len(scheduler.timesteps) else torch.tensor(0)
        goes_to = int(torch.floor((1 - self.eta) * following))
        (alpha, sigma), (alpha_s, sigma_s) = (
            (kept.sqrt(), (1 - kept).sqrt()) for kept in (scheduler.alphas_cumprod[step], scheduler.alphas_cumprod[goes_to])
        )
        if goes_to == step:
            return torch.zeros_like(x)
        end = self._jump(x, min(step + 1.0, self.path.t_max), goes_to + 1.0)
        kind = scheduler.config.prediction_type
        answer: Tensor
        if kind == "epsilon":
            answer = (end - alpha_s / alpha * x) / (sigma_s - alpha_s * sigma / alpha)
        elif kind == "sample":
            answer = (end - sigma_s / sigma * x) / (alpha_s - alpha * sigma_s / sigma)
        else:
            answer = (end - (alpha_s * alpha + sigma_s * sigma) * x) / (sigma_s * alpha - alpha_s * sigma)
        return answer

    def _velocity(self, x: Tensor, timestep: Tensor, r_timestep: Any) -> Tensor:
        scheduler = self.scheduler
        steps = float(scheduler.config.num_train_timesteps)
        # Any timestep may be asked for, whatever the place in a run.
        index = scheduler.index_for_timestep(timestep)
        s = float(timestep) / steps if index is None else float(scheduler.sigmas[index])
        if r_timestep is None:
            if index is None:
                raise ArgumentError(f"timestep {float(timestep):g} is none of scheduler.timesteps: pass r_timestep=")
            t = float(scheduler.sigmas[index + 1])
        else:
            towards = torch.as_tensor(r_timestep).detach().reshape(-1)
            if not len(towards) or bool((towards != towards[0]).any()):
                raise ArgumentError(f"r_timestep must be the same for all rows, got {towards.tolist()!r:.60}")
            place = scheduler.index_for_timestep(towards[0])
            t = float(towards[0]) / steps if place is None else float(scheduler.sigmas[place])
        if s == t:
            return torch.zeros_like(x)
        # The map's cleanest time stands for data without noise.
        return (x - self._jump(x, s, max(t, self._last))) / (s - t)


def _path_of(scheduler: Any, kind: str) -> Path:
    config = scheduler.config
    if kind == "edm":
        return EDM(float(config["sigma_min"]), float(config["sigma_max"]))
    if kind == "trigflow":
        return trigflow_path(float(config["sigma_data"]))
    if kind == "velocity":
        return get_path(STRAIGHT)
    return Tabulated(scheduler.alphas_cumprod, t_min=1.0 if kind == "trajectory" else 0.0)
