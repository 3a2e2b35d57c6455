"""The interface of a source, the law of the noise x_1 that a path mixes with the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from diffode.randomness import Randomness, keyed
from diffode.sources.law import Law
from diffode.targets import Target

#: Number of draws that are made at once for keyed starts, so that a start does not depend on the size of its batch.
_BLOCK_DRAWS = 256


class Source(ABC):
    """A law of the noise x_1, independent of the data, in :math:`x_t = \\alpha x_0 + \\sigma x_1`.

    To add your own, subclass it, implement the abstract members and call ``diffode.sources.register(name, cls)``.
    """

    @abstractmethod
    def noised(self, target: Target) -> Law:
        """The law of alpha x_0 + sigma x_1 for data of a target; ArgumentError if it is not known in closed form."""

    @abstractmethod
    def sample(self, n: int, dim: int, *, generator: Randomness) -> Tensor:
        """Draw n points x_1, (n, dim), float64, from a generator, a seed, or a list of n generators."""

    def keyed_draws(self, dim: int, counts: Iterable[int], *, seed: int, key: str) -> Iterator[Tensor]:
        """Draws (n, dim) that ``(seed, key)`` alone fixes, in pieces: row i does not depend on the lengths of the pieces."""
        generator, held = keyed(seed, "source", key), torch.zeros(0, dim, dtype=torch.float64)
        for count in counts:
            blocks = -(-max(0, count - len(held)) // _BLOCK_DRAWS)
            drawn = torch.cat([held, *(self.sample(_BLOCK_DRAWS, dim, generator=generator) for _ in range(blocks))])
            yield drawn[:count]
            held = drawn[count:]

    @property
    @abstractmethod
    def spec(self) -> str:
        """The text that names it."""

    @property
    def is_normal(self) -> bool:
        """Whether x_1 is N(0, I), so that the score is -E[x_1|x]/sigma and the forward SDE is the path's."""
        return False

    def content(self) -> str:
        """A hash or text of everything that defines the law, which enters the keys of stored results."""
        raise NotImplementedError(f"{type(self).__name__} must implement content() to be used in studies")
