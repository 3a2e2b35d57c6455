"""Random draws. Always from a generator or a seed that the caller gives, never from global state."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError

Randomness = torch.Generator | int


def generator_from(randomness: Randomness | None) -> torch.Generator:
    """A torch generator from a generator (returned as it is) or an integer seed."""
    if isinstance(randomness, torch.Generator):
        return randomness
    if isinstance(randomness, int | np.integer) and not isinstance(randomness, bool):
        if not -(2**63) <= int(randomness) < 2**64:
            raise ArgumentError(f"a seed must fit in 64 bits, got {randomness}")
        return torch.Generator().manual_seed(int(randomness))
    raise ArgumentError(
        f"generator must be a torch.Generator or an integer seed, got {randomness!r}; "
        "for instance generator=torch.Generator().manual_seed(0)"
    )


def normal(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal draws on the generator's device.

    They are drawn in float64 and cast, so one seed gives the same points in every precision.
    """
    source = generator_from(generator)
    return torch.randn(tuple(shape), generator=source, dtype=torch.float64, device=source.device).to(dtype)


def row_normal(draws: int, shape: Sequence[int], *, generator: Randomness) -> Tensor:
    """Standard normals (draws, B, *shape) of which a row does not change when the batch grows: ``shape`` is (B, *shape).

    torch's own generator fills a whole tensor at once, so one number is drawn from it to seed NumPy's, row after row.
    """
    source = generator_from(generator)
    seed = int(torch.randint(2**62, (1,), generator=source, device=source.device))
    values = np.random.default_rng(seed).standard_normal((shape[0], draws, *shape[1:]))
    return torch.from_numpy(values).movedim(1, 0).to(source.device)


def drawn_once(draw: Callable[[int], Tensor], asked: Iterable[int]) -> Callable[[int], Tensor]:
    """A source that draws the k-th noise of a run once, however often ``asked`` says it will be taken; then it is let go."""
    left = Counter(asked)
    kept: dict[int, Tensor] = {}

    def take(k: int) -> Tensor:
        noise = kept.pop(k) if k in kept else draw(k)
        left[k] -= 1
        if left[k] > 0:
            kept[k] = noise
        return noise

    return take


def keyed_normal(shape: Sequence[int], *, seed: int, key: str) -> Tensor:
    """Standard normals fixed by ``(seed, key)`` alone: the starts that all solvers of a study share.

    Row i depends on nothing but the seed, the key and i, so a batch can be split without changing a point.
    """
    entropy = np.random.SeedSequence([int(seed), zlib.crc32(key.encode())])
    return torch.from_numpy(np.random.default_rng(entropy).standard_normal(tuple(shape)))
