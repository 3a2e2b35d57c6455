"""Random draws, always from a generator or a seed that the caller gives, never from global state."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError

#: A source of draws: a generator, a seed, or a list with one of these for each row of a batch.
Randomness = torch.Generator | int | Sequence[torch.Generator | int]

#: Count of numbers per row for which several draws are made as a block, as each making costs as much as hundreds of numbers.
_BLOCK_NUMBERS = 256
#: Largest number of draws of a block.
_MOST_BLOCK_DRAWS = 16
#: Number of blocks kept: a step uses its latest draws, and a draw may serve two rows of a table.
_BLOCKS_KEPT = 2
#: Distance between the streams of blocks in PCG64's sequence, so that they don't meet: NumPy's jump, 2^128/golden ratio.
_JUMP = 0x9E3779B97F4A7C15F39CC0605CEDC835


def generator_from(randomness: Randomness | None) -> torch.Generator:
    """A torch generator from a generator (returned as it is) or an integer seed; ArgumentError for anything else."""
    if isinstance(randomness, torch.Generator):
        return randomness
    if isinstance(randomness, list | tuple):
        raise ArgumentError(
            "generator must be one generator or seed here, got a list: these draws do not belong to single rows"
        )
    if isinstance(randomness, int | np.integer) and not isinstance(randomness, bool):
        if not -(2**63) <= int(randomness) < 2**64:
            raise ArgumentError(f"a seed must fit in 64 bits, got {randomness}")
        return torch.Generator().manual_seed(int(randomness))
    raise ArgumentError(
        f"generator must be a torch.Generator or an integer seed, got {randomness!r}; "
        "for instance generator=torch.Generator().manual_seed(0)"
    )


def row_generators(randomness: Randomness, rows: int) -> list[torch.Generator] | None:
    """A generator for each row, if a list was given; None for one generator or seed.

    Raises ArgumentError unless the list has as many entries as the batch has rows.
    """
    if not isinstance(randomness, list | tuple):
        return None
    if len(randomness) != rows:
        raise ArgumentError(f"generator must have one entry for each of the {rows} rows, got a list of {len(randomness)}")
    return [generator_from(one) for one in randomness]


def normal(shape: Sequence[int], *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal draws on the generator's device; of a list of generators, the i-th alone gives row i.

    They are drawn in float64 and cast, so that a seed gives the same points in every precision.
    """
    each = row_generators(generator, shape[0] if shape else 0)
    if each is not None:
        rows = [normal((1, *shape[1:]), generator=source, dtype=dtype) for source in each]
        return torch.cat(rows) if rows else torch.zeros(tuple(shape), dtype=dtype)
    source = generator_from(generator)
    return torch.randn(tuple(shape), generator=source, dtype=torch.float64, device=source.device).to(dtype)


class RowNoise:
    """Standard normals xi_k for the rows of a batch, made on demand: ``noise(k)`` is (B, *shape), like ``x``.

    Draw k of row i depends on the generator, k, i and the number of draws alone: neither on the order of the calls nor on the
    size of the batch. With a list of generators each row has the noise that its own generator would give it alone.

    torch's own generator fills a whole tensor at once. So it gives only a seed for NumPy's PCG64, which fills row after row
    and can jump to the stream of a draw. Numbers are drawn in float64 and cast.

    >>> x = torch.zeros(3, 2)
    >>> noise = RowNoise(x, 10, 0)
    >>> torch.equal(noise(5)[:2], RowNoise(x[:2], 10, 0)(5))
    True
    """

    def __init__(self, x: Tensor, draws: int, generator: Randomness):
        each = row_generators(generator, x.shape[0])
        sources = [generator_from(generator)] if each is None else each
        seeds = [int(torch.randint(2**62, (1,), generator=source, device=source.device)) for source in sources]
        self._generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self._first = [source.bit_generator.state for source in self._generators]
        #: States of the generators where the draws of a block begin for these rows, and where those of the next ones will.
        self._begins: dict[int, list[Any]] = {}
        self._goes_on: dict[int, list[Any]] = {}
        self._rows = x.shape[0] if each is None else 1
        self._shape, self._draws = tuple(x.shape[1:]), draws
        self._dtype, self._device = x.dtype, x.device
        self._together = max(1, min(_MOST_BLOCK_DRAWS, _BLOCK_NUMBERS // max(1, math.prod(self._shape))))
        self._blocks: list[tuple[int, tuple[Tensor, ...]]] = []

    def __call__(self, k: int) -> Tensor:
        """Draw k, (B, *shape), in the dtype and on the device of x."""
        number, place = divmod(k, self._together)
        for kept, block in self._blocks:
            if kept == number:
                return block[place]
        # The oldest block goes before the new one is made, so that no more than ``_BLOCKS_KEPT`` are held at once.
        del self._blocks[_BLOCKS_KEPT - 1 :]
        block = self._made(number)
        self._blocks.insert(0, (number, block))
        return block[place]

    def go_on(self, rows: int) -> None:
        """Draw for the next ``rows`` rows from here on, as a larger batch would have them; each draw was made for those before.

        >>> x = torch.zeros(5, 2)
        >>> noise, whole = RowNoise(x[:2], 1, 0), RowNoise(x, 1, 0)
        >>> first = noise(0)
        >>> noise.go_on(3)
        >>> torch.equal(torch.cat([first, noise(0)]), whole(0))
        True
        """
        self._begins, self._goes_on, self._blocks = {**self._begins, **self._goes_on}, {}, []
        self._rows = rows

    def _made(self, number: int) -> tuple[Tensor, ...]:
        """The draws of a block."""
        count = min(self._together, self._draws - number * self._together)
        parts = []
        begins: list[Any] = self._begins.get(number, [])
        for source, first in zip(self._generators, begins or self._first, strict=True):
            source.bit_generator.state = first
            if not begins:
                source.bit_generator.advance(number * _JUMP % 2**128)  # type: ignore[attr-defined]
            parts.append(source.standard_normal((self._rows, count, *self._shape)))
        self._goes_on[number] = [source.bit_generator.state for source in self._generators]
        values = parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, count, *self._shape)), *parts])
        return torch.from_numpy(values).to(self._device, self._dtype).unbind(1)


def drawn_once(draw: Callable[[int], Tensor], asked: Iterable[int]) -> Callable[[int], Tensor]:
    """A source that draws the k-th noise of a run once, and keeps it until it was taken as often as k occurs in ``asked``."""
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
    """Standard normals that ``(seed, key)`` alone fixes, such as the starts that all solvers of a study share.

    Row i depends on the seed, the key and i alone, so that a batch can be split without changing a point.
    """
    return next(keyed_normals(shape[1:], [shape[0]], seed=seed, key=key))


def keyed_normals(shape: Sequence[int], counts: Iterable[int], *, seed: int, key: str) -> Iterator[Tensor]:
    """The rows, of a ``shape``, of :func:`keyed_normal` in pieces: so many at a time."""
    source = np.random.default_rng(np.random.SeedSequence([int(seed), zlib.crc32(key.encode())]))
    for count in counts:
        yield torch.from_numpy(source.standard_normal((count, *shape)))


#: Place of the Mersenne Twister's words, 624 numbers of 8 bytes, in the state of PyTorch's generator on the CPU.
TWISTER_WORDS = slice(24, 24 + 624 * 8)


def keyed(seed: int, *words: str | int) -> torch.Generator:
    """The generator (on the CPU) of a seed and some words, such as ``keyed(seed, "training", "starts", 3)``.

    Streams with different words, or of different seeds, are independent. Neither sums of seeds have this property nor
    ``torch.Generator.manual_seed``, which uses the last 32 bits of a seed alone: 1 and 1 + 2^32 are one stream. So the seed and
    the words are hashed, and NumPy's ``SeedSequence`` fills the whole state from the hash.

    Raises:
        ArgumentError: for a seed that is no integer, or no words.
        NumericalError: if this PyTorch has another layout of its state.

    >>> torch.equal(torch.rand(3, generator=keyed(0, "starts")), torch.rand(3, generator=keyed(0, "starts")))
    True
    >>> torch.equal(torch.rand(3, generator=keyed(0, "starts")), torch.rand(3, generator=keyed(0, "batches")))
    False
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ArgumentError(f"seed must be an integer, got {seed!r}")
    if not words:
        raise ArgumentError("a keyed stream needs words that say what it is for, such as keyed(seed, 'training', 'starts')")
    digest = hashlib.sha256(json.dumps([int(seed), *words]).encode()).digest()
    entropy = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, len(digest), 4)]
    generator = torch.Generator().manual_seed(entropy[0])
    state = generator.get_state()
    numbers = state.numpy()[TWISTER_WORDS].view(np.uint64)
    if len(numbers) != 624 or int(numbers[0]) != entropy[0] or bool((numbers >> np.uint64(32)).any()):
        raise NumericalError(f"the state of random generators of PyTorch {torch.__version__} has an unknown layout")
    numbers[:] = np.random.SeedSequence(entropy).generate_state(624, np.uint32)
    generator.set_state(state)
    return generator
