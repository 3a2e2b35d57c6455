"""The bench of a sampler: watched fields to run on, and the paths, grids and starts that all checks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from typing_extensions import override

from diffode import fields, grids, paths
from diffode.errors import ArgumentError
from diffode.fields import ExactField
from diffode.randomness import keyed
from diffode.targets import GaussianMixture
from diffode.targets import get as get_target
from diffode.targets.target import Scalar, Target
from diffode.verify.sampler.subject import Sampler

#: The one-dimensional mixture whose flow is known exactly.
TARGET = "bimodal1d"


class Watched(ExactField):
    """An exact field that notes every call, and can falsify one answer to see whether it matters."""

    def __init__(self, target: Target, path: paths.Path, falsified: int | None = None):
        super().__init__(target, path)
        self.asked: list[tuple[float, Tensor]] = []
        self._falsified = falsified

    @override
    def predict(self, prediction: fields.Prediction, x: Tensor, t: Scalar) -> Tensor:
        when = float(t.reshape(-1)[0]) if isinstance(t, Tensor) else float(t)
        self.asked.append((when, x.detach().clone()))
        answer = super().predict(prediction, x, t)
        return answer * 1.01 + 0.01 if len(self.asked) - 1 == self._falsified else answer


@dataclass
class Bench:
    """A sampler with the paths, grids and starts that all checks share."""

    sampler: Sampler
    path: paths.Path
    target: GaussianMixture = field(default_factory=lambda: cast(GaussianMixture, get_target(TARGET)))

    def times(self, steps: int, to_zero: bool = False) -> list[float]:
        """A grid of the sampler's family; for a scheduler, the ends of its own levels with a time for each step."""
        if self.sampler.scheduler is not None:
            rho = self.sampler.scheduler.levels(steps)
            return [rho[0] + (rho[-1] - rho[0]) * k / steps for k in range(steps)] + [rho[-1]]
        spec = self.sampler.grid
        if to_zero:
            spec += ("," if ":" in spec else ":") + "to_zero=true"
        times: list[float] = grids.get(spec, self.path, steps).tolist()
        return times

    def start(self, count: int, target: Target | None = None, seed: int = 0, steps: int = 10) -> Tensor:
        """Starts from the prior, (count, 1); for a scheduler, exact draws at the first level of a run of ``steps`` steps."""
        exact = fields.exact_field(target or self.target, self.path)
        if self.sampler.scheduler is not None:
            return exact.marginal(count, self.sampler.scheduler.levels(steps)[0], generator=seed)
        return exact.prior(count, generator=seed)

    def field(self) -> ExactField:
        """The exact field on which the sampler runs."""
        return fields.exact_field(self.target, self.path)

    def run(self, on: ExactField, x: Tensor, times: Sequence[float], seed: int = 0) -> Tensor:
        """The end points; ``seed`` sets the given generator and the global one."""
        with torch.random.fork_rng(devices=[]):
            # This makes a sampler that draws from the global generator repeatable too.
            torch.set_rng_state(keyed(seed, "check", "global").get_state())
            end = self.sampler.run(on, x.clone(), times, torch.Generator().manual_seed(seed))
        if not isinstance(end, Tensor):
            raise ArgumentError(f"the sampler returned {type(end).__name__}, not the end points (a tensor)")
        return end.detach()

    def watched(self, falsified: int | None = None) -> Watched:
        """A new watched copy of the field."""
        return Watched(self.target, self.path, falsified)
