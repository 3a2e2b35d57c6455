"""Problems of one dimension side by side, so that one evaluation runs hundreds of mixtures."""

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
from diffode.solvers.trained.ranged import Ranged

#: Largest size of an array (problems, starts, components, dim), which limits the number of problems in a batch.
_MOST_NUMBERS = 1_500_000
#: Largest numbers of components in the classes of problems; a batch holds problems of one class.
_CLASSES = (1, 6, 16, 40)
#: Units of length for a problem, relative to its scale, since the root mean variance says little about a wide spectrum or about
#: small clusters.
UNITS = tuple(2 ** (k / 2) for k in range(-2, 7))
#: Number of steps of the fourth-order method that gives the exact ends. Its errors are 2e-7 in the median, and below 3e-5 for
#: 98 % of the problems.
_EXACT_STEPS = 150


@dataclass(frozen=True)
class Setting:
    """One problem of a batch.

    Attributes:
        parts: a mixture, in units of its scale.
        first, last: noise levels of start and end, in the same unit.
        seed: seed of the starts.
    """

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
        features: values of the polynomials that give a ranged sampler's numbers, in each of the ``UNITS``, (Q, U, 9); NaN if
            the levels in that unit are outside its ranges.
        start, end: z at the first level, and its exact end at the last, (Q, B, D).
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

    ``starts`` gives the number of starts for a dimension; ``like`` gives the ranges of levels and dimensions.
    """
    classes: dict[tuple[int, int], list[Setting]] = {}
    for one in settings:
        count, dim = one.parts.means.shape
        classes.setdefault((dim, next((c for c in _CLASSES if count <= c), 0)), []).append(one)
    made = []
    for (dim, _), members in sorted(classes.items()):
        members.sort(key=lambda one: len(one.parts.weights))
        together = max(1, _MOST_NUMBERS // (starts(dim) * len(members[-1].parts.weights) * dim))
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
    """Ends (Q, B, D) by the classical fourth-order method for d(z/rho)/d(1/rho) = denoised, on a grid uniform in log rho."""

    def denoised(y: Tensor, s: Tensor) -> Tensor:
        z, rho = y / s, 1 / s
        return z - rho * batch.noise(z, rho[..., 0])

    part = torch.linspace(0, 1, _EXACT_STEPS + 1, dtype=torch.float64)[:, None]
    inverse = (-(batch.first.log() * (1 - part) + batch.last.log() * part)).exp()[..., None, None]
    y = batch.start * inverse[0]
    for now, then in itertools.pairwise(inverse):
        y = KUTTA.step(denoised, y, now, then - now)
    return y / inverse[-1]
