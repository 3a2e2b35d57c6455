r"""Linear recurrences c_{k+1} = M c_k + G a_k with constant matrices, in many ways that agree.

* :func:`states`: every state, by a two-level scan: the states at the ends of blocks first, then all blocks at once.
* :func:`ends`: the states at the ends of blocks alone, by one product a block.
* :func:`kernel`: what a readout of the state answers to one input, C M^j G for all j, by baby and giant steps: one product.
* :func:`convolved`: the readout of every state by fast Fourier transforms of that kernel, without the states.

Shapes: M (N, N), G (N, q), inputs a (L, channels, q), states (channels, N), readouts C (p, N).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import fft

Array = np.ndarray[Any, Any]

#: Numbers of states that are computed at once.
_AT_ONCE = 2**24
#: Longest block of :func:`states`, and of :func:`ends` where none is asked for.
_LONGEST = {"states": 256, "ends": 1024}


def responses(m: Array, g: Array, count: int) -> Array:
    """M^j G for j < count: (count, N, q), by doubling."""
    found = np.empty((count, *g.shape), g.dtype)
    found[0] = g
    power, done = m, 1
    while done < count:
        more = min(done, count - done)
        found[done : done + more] = np.matmul(power, found[:more])
        done += more
        power = power @ power if done < count else power
    return found


def ends(m: Array, g: Array, a: Array, start: Array, block: int) -> Array:
    """The states after every ``block`` inputs, (L // block, channels, N); inputs that fill no block are left out."""
    count, channels = len(a) // block, a.shape[1]
    # The inputs of a block, each carried to the block's end.
    late = responses(m, g, block)[::-1].transpose(0, 2, 1).reshape(-1, len(m))
    inputs = a[: count * block].reshape(count, block, channels, -1).transpose(0, 2, 1, 3).reshape(count, channels, -1)
    found = inputs @ late
    jump = np.linalg.matrix_power(m, block).T
    state = start
    for k in range(count):
        state = state @ jump
        state += found[k]
        found[k] = state
    return found


def last(m: Array, g: Array, a: Array, start: Array) -> Array:
    """The state after all inputs, (channels, N)."""
    block = min(_LONGEST["ends"], max(1, math.isqrt(len(a))))
    found = ends(m, g, a, start, block)
    state = found[-1] if len(found) else start
    for own in a[len(found) * block :]:
        state = state @ m.T + own @ g.T
    return state


def states(m: Array, g: Array, a: Array, start: Array) -> Iterator[Array]:
    """Every state after an input, in parts (n, channels, N) that follow each other; memory does not grow with L."""
    channels, order = a.shape[1], len(m)
    part = max(1, _AT_ONCE // (channels * order))
    block = max(1, min(_LONGEST["states"], math.isqrt(part)))
    part = max(block, part // block * block)
    state = start
    for k in range(0, len(a), part):
        found = _states(m, g, a[k : k + part], state, block)
        state = found[-1].copy()
        yield found


def _states(m: Array, g: Array, a: Array, start: Array, block: int) -> Array:
    found = np.empty((len(a), a.shape[1], len(m)), np.result_type(m, a))
    count = len(a) // block
    whole = count * block
    if count > 1:
        begins = np.concatenate([start[None], ends(m, g, a[: whole - block], start, block)])
        now = begins.reshape(-1, len(m))
        inputs = a[:whole].reshape(count, block, *a.shape[1:])
        outputs = found[:whole].reshape(count, block, *found.shape[1:])
        for i in range(block):
            now = now @ m.T
            now += inputs[:, i].reshape(len(now), -1) @ g.T
            outputs[:, i] = now.reshape(outputs[:, i].shape)
        state = found[whole - 1]
    else:
        whole, state = 0, start
    for k in range(whole, len(a)):
        state = state @ m.T + a[k] @ g.T
        found[k] = state
    return found


def looped(m: Array, g: Array, a: Array, start: Array) -> Array:
    """Every state after an input, (L, channels, N), one after the other: what the others are held against."""
    found = np.empty((len(a), *start.shape), np.result_type(m, a))
    state = start
    for k, own in enumerate(a):
        state = state @ m.T + own @ g.T
        found[k] = state
    return found


def kernel(c: Array, m: Array, g: Array, length: int) -> Array:
    """C M^j G for j < length: (length, p, q), in N^2 sqrt(length) + N length multiplications a readout and input."""
    small = max(1, math.isqrt(length - 1) + 1)
    large = -(-length // small)
    baby = responses(m, g, small)
    giant = responses(np.linalg.matrix_power(m, small).T, np.ascontiguousarray(c.T), large)
    # (large, p, N) with (small, N, q).
    rows = giant.transpose(0, 2, 1).reshape(-1, len(m))
    columns = baby.transpose(1, 0, 2).reshape(len(m), -1)
    found = (rows @ columns).reshape(large, len(c), small, g.shape[1])
    return np.ascontiguousarray(found.transpose(0, 2, 1, 3)).reshape(-1, len(c), g.shape[1])[:length]


def convolved(response: Array, a: Array) -> Array:
    """The readouts sum_j K_j a_{k-j} after each input k, (L, channels, p), from a kernel K (L, p, q) and a (L, channels, q)."""
    length = len(a)
    size = fft.next_fast_len(2 * length - 1, real=True)
    total: Any = 0.0
    for i in range(a.shape[2]):
        own = fft.rfft(response[:length, :, i], size, axis=0)
        total = total + own[:, None, :] * fft.rfft(a[:, :, i], size, axis=0)[:, :, None]
    return np.asarray(fft.irfft(total, size, axis=0)[:length])
