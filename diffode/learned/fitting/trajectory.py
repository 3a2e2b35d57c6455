r"""The exact flow between start and end, for training on the whole trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.fields import Field
from diffode.flows import flow_states
from diffode.paths import Path
from diffode.tableau.stages import NoiseFunction

#: Number of levels at which the flow is computed; between them Hermite's cubic in log rho errs by about 1e-5 of a state.
_LEVELS = 97


@dataclass(frozen=True)
class Trajectory:
    """The exact flow z(rho) of some starts, and its rate, at levels that decrease.

    Attributes:
        levels: logarithms of rho, (M,), decreasing.
        states: z, (M, B, D).
        rates: dz/d log rho = rho e(z, rho), (M, B, D).
    """

    levels: Tensor
    states: Tensor
    rates: Tensor

    def at(self, level: float) -> tuple[Tensor, Tensor]:
        """z and dz/d log rho at a level, (B, D) each, by Hermite's cubic; beyond the ends, those of the nearest end."""
        first, last = float(self.levels[0]), float(self.levels[-1])
        place = (first - math.log(level)) / (first - last) * (len(self.levels) - 1)
        k = min(max(int(place), 0), len(self.levels) - 2)
        u, h = min(max(place - k, 0.0), 1.0), float(self.levels[k + 1] - self.levels[k])
        a, b = self.states[k], self.states[k + 1]
        da, db = h * self.rates[k], h * self.rates[k + 1]
        state = (1 + 2 * u) * (1 - u) ** 2 * a + u * (1 - u) ** 2 * da + u * u * (3 - 2 * u) * b + u * u * (u - 1) * db
        slope = 6 * u * (1 - u) * (b - a) + (1 - u) * (1 - 3 * u) * da + u * (3 * u - 2) * db
        return state, slope / h


def exact_trajectory(field: Field, path: Path, noise: NoiseFunction, start: Tensor) -> Trajectory:
    """The flow of z = x/alpha from the first level of a path to the last, of starts x (B, *shape) at its first time."""
    ends = math.log(path.rho(path.t_max)), math.log(path.rho(path.t_min))
    levels = torch.linspace(*ends, _LEVELS, dtype=torch.float64)
    times = [path.t_max, *(path.time_from_rho(math.exp(level)) for level in levels[1:-1].tolist()), path.t_min]
    states, rates = [], []
    with torch.no_grad():
        for t, x in zip(times, flow_states(field, start, times), strict=True):
            z = x / path.alpha(t)
            states.append(z.flatten(1))
            rates.append(path.rho(t) * noise(z, path.rho(t)).flatten(1))
    return Trajectory(levels, torch.stack(states), torch.stack(rates))
