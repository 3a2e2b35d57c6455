"""Random draws. Always from a generator or a seed that the caller gives, never from global state."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError

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


def keyed_normal(shape: Sequence[int], *, seed: int, key: str) -> Tensor:
    """Standard normals fixed by ``(seed, key)`` alone: the starts that all solvers of a study share.

    Row i depends on nothing but the seed, the key and i, so a batch can be split without changing a point.
    """
    entropy = np.random.SeedSequence([int(seed), zlib.crc32(key.encode())])
    return torch.from_numpy(np.random.default_rng(entropy).standard_normal(tuple(shape)))


#: Where the words of the Mersenne Twister lie in the state of PyTorch's generator on the CPU: 624 numbers of 8 bytes each.
_STATE = slice(24, 24 + 624 * 8)


def keyed(seed: int, *words: str | int) -> torch.Generator:
    """The generator (on the CPU) that belongs to a seed and some words, such as ``keyed(seed, "training", "starts", 3)``.

    Streams with different words, or of different seeds, have nothing to do with each other. Neither a sum of seeds has this
    property nor ``torch.Generator.manual_seed``, which uses the last 32 bits of a seed alone: 1 and 1 + 2^32 are one stream.
    So the seed and the words are hashed, and NumPy's ``SeedSequence`` fills the whole state from the hash.

    Raises:
        ArgumentError: for a seed that is no integer, or no words; NumericalError: if this PyTorch lays its state out otherwise.

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
    numbers = state.numpy()[_STATE].view(np.uint64)
    if len(numbers) != 624 or int(numbers[0]) != entropy[0] or bool((numbers >> np.uint64(32)).any()):
        raise NumericalError(f"the state of random generators of PyTorch {torch.__version__} is not the one that is known")
    numbers[:] = np.random.SeedSequence(entropy).generate_state(624, np.uint32)
    generator.set_state(state)
    return generator
