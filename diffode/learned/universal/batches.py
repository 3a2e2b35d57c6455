"""Many mixtures at once: problems of one dimension side by side, so that hundreds are run in one evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffode.learned.universal.family import Parts
from diffode.numerics.butcher import KUTTA
from diffode.randomness import keyed
from diffode.solvers.ranged import Ranged

#: Batches are as large as keeps an array of (problems, starts, components, dim) below this many numbers.
_NUMBERS = 1_500_000
#: Problems are put together with others of about as many components.
_CLASSES = (1, 6, 16, 40)
#: Units that a problem may be measured in, in its scale: a wide spectrum hides behind its root mean, small clusters too.
UNITS = tuple(2 ** (k / 2) for k in range(-2, 7))
#: Steps of the fourth-order method that gives the exact ends: errors of 2e-7 (median), below 3e-5 but for 2 % of the problems.
_EXACT_STEPS = 150


@dataclass(frozen=True)
class Setting:
    """A mixture in units of its scale, the noise levels of start and end in that unit, and the seed of its starts."""

    parts: Parts
    first: float
    last: float
    seed: int


@dataclass(frozen=True)
class Batch:
    """Q problems of one dimension D with up to K components, B starts each.

    Attributes:
        log_weights: (Q, K), -inf where a problem has fewer components.
        means, variances: (Q, K, D), of diagonal covariances.
        first, last: noise levels of start and end, (Q,).
        features: what the numbers of a ranged sampler are polynomials of, in each of the ``UNITS``, (Q, U, 9); NaN where the
            levels in that unit are outside its ranges.
        start, end: z at the first level and where the exact flow takes it at the last, (Q, B, D).
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    first: Tensor
    last: Tensor
    features: Tensor
    start: Tensor
    end: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def noise(self, z: Tensor, rho: Tensor) -> Tensor:
        """The exact noise prediction at z (Q, B, D) and levels (Q, B) or (Q, 1), differentiable in both."""
        spread = self.variances[:, None] + rho.square()[:, :, None, None]
        offset = z[:, :, None] - self.means[:, None]
        pull = offset / spread
        logits = self.log_weights[:, None] - 0.5 * (spread.log() + offset * pull).sum(-1)
        return rho[:, :, None] * torch.einsum("qbk,qbkd->qbd", logits.softmax(-1), pull)


def batches(settings: Iterable[Setting], starts: Callable[[int], int], like: Ranged) -> list[Batch]:
    """The problems in batches, with their starts and exact ends.

    ``starts`` says how many for a dimension; ``like`` gives the ranges of levels and dimensions.
    """
    classes: dict[tuple[int, int], list[Setting]] = {}
    for one in settings:
        count, dim = one.parts.means.shape
        classes.setdefault((dim, next((c for c in _CLASSES if count <= c), 0)), []).append(one)
    made = []
    for (dim, _), members in sorted(classes.items()):
        members.sort(key=lambda one: len(one.parts.weights))
        together = max(1, _NUMBERS // (starts(dim) * len(members[-1].parts.weights) * dim))
        made += [_batch(members[i : i + together], starts(dim), like) for i in range(0, len(members), together)]
    return made


def _batch(settings: Sequence[Setting], starts: int, like: Ranged) -> Batch:
    count, dim = max(len(one.parts.weights) for one in settings), settings[0].parts.means.shape[1]
    log_weights = torch.full((len(settings), count), -math.inf, dtype=torch.float64)
    means = torch.zeros(len(settings), count, dim, dtype=torch.float64)
    variances = torch.ones_like(means)
    for row, one in enumerate(settings):
        own = len(one.parts.weights)
        log_weights[row, :own] = torch.from_numpy(one.parts.weights).log()
        means[row, :own], variances[row, :own] = torch.from_numpy(one.parts.means), torch.from_numpy(one.parts.variances)
    first, last = (torch.tensor([getattr(one, name) for one in settings], dtype=torch.float64) for name in ("first", "last"))
    draws = [torch.randn(starts, dim, generator=keyed(one.seed, "batches", "starts"), dtype=torch.float64) for one in settings]
    start = torch.stack(draws) * first[:, None, None]
    features = torch.stack([torch.stack([_features(like, one, dim, unit) for unit in UNITS]) for one in settings])
    batch = Batch(log_weights, means, variances, first, last, features, start, start)
    return replace(batch, end=_exact_ends(batch))


def _features(like: Ranged, setting: Setting, dim: int, unit: float) -> Tensor:
    first, last = setting.first / unit, setting.last / unit
    return like.features(first, last, dim) * (1.0 if like.covers(first, last) else math.nan)


@torch.no_grad()
def _exact_ends(batch: Batch) -> Tensor:
    """The classical fourth-order method on d(z/rho)/d(1/rho) = denoised, on a grid uniform in log rho."""

    def denoised(y: Tensor, s: Tensor) -> Tensor:
        z, rho = y / s, 1 / s
        return z - rho * batch.noise(z, rho[..., 0])

    part = torch.linspace(0, 1, _EXACT_STEPS + 1, dtype=torch.float64)[:, None]
    inverse = (-(batch.first.log() * (1 - part) + batch.last.log() * part)).exp()[..., None, None]
    y = batch.start * inverse[0]
    for now, then in itertools.pairwise(inverse):
        y = KUTTA.step(denoised, y, now, then - now)
    return y / inverse[-1]
