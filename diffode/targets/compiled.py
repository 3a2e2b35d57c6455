"""Evaluation of a mixture in few dimensions by compiled kernels, where these can stand in for torch.

A mixture has kernels or none (:meth:`Compiled.of`), which its ``arithmetic`` tells to the keys of stored results. Kernels
compute the evaluations that they take (:meth:`Compiled.takes`), and torch the others, such as those that are differentiated.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from diffode import native
from diffode.native import Wanted
from diffode.targets.components import Components, Diagonal, Isotropic
from diffode.targets.rotated import Rotated
from diffode.targets.target import Scalar

#: Bounds of the variances alpha^2 c + sigma^2 between which the kernels' logarithm and quotients are normal numbers.
_VARIANCES = (1e-280, 1e280)
#: Smallest number of rows that a thread of its own is worth.
_ROWS_OF_A_THREAD = 2**13

#: What kernels compute, as the numbers that they take.
_NUMBERS: dict[Wanted, int] = {wanted: number for number, wanted in enumerate(get_args(Wanted))}

Array = np.ndarray[Any, np.dtype[np.float64]]


class Compiled:
    """The kernels' answers for one mixture, each for x (B, dim), one level (floats) or one for each row ((B,) tensors)."""

    def __init__(self, components: Components, centre: Tensor, eigenvalues: Tensor, basis: Tensor | None):
        self._means, self._log_weights = (_array(part) for part in (components.means, components.log_weights))
        self._centre, self._eigenvalues = _array(centre), _array(eigenvalues)
        self._basis = None if basis is None else _array(basis)
        self._axes = (0,) * components.dim
        self._ends = float(eigenvalues.min()), float(eigenvalues.max())

    @classmethod
    def of(cls, components: Components, centre: Tensor) -> Self | None:
        """The kernels for components less the centre; None if there are none for them, or they are switched off."""
        if components.dim > native.MOST_DIMENSIONS or not native.is_on():
            return None
        if isinstance(components, Isotropic):
            return cls(components, centre, components.variance[:, None], None)
        if isinstance(components, Diagonal):
            return cls(components, centre, components.variance, None)
        if isinstance(components, Rotated) and components.full:
            return cls(components, centre, components.eigenvalues, components.basis)
        return None

    def takes(self, x: Tensor, alpha: Scalar, sigma: Scalar, *weights: Scalar) -> bool:
        """Whether all are plain numbers on the CPU, of which no derivative is asked, at a level that is not extreme."""
        if not is_plain(x) or not all(is_plain(part) for part in (alpha, sigma, *weights) if isinstance(part, Tensor)):
            return False
        narrow, wide = self._ends
        if isinstance(alpha, Tensor) or isinstance(sigma, Tensor):
            squares = [np.square(_numbers(part)) for part in (alpha, sigma)]
            low, high = float((squares[0] * narrow + squares[1]).min()), float((squares[0] * wide + squares[1]).max())
        else:
            low, high = alpha * alpha * narrow + sigma * sigma, alpha * alpha * wide + sigma * sigma
        return _VARIANCES[0] <= low and high <= _VARIANCES[1]

    def view(self, x: Tensor, alpha: Scalar, sigma: Scalar, p: Scalar, g: Scalar) -> Tensor:
        """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)], (B, dim)."""
        return self._run("view", x, len(self._axes), alpha, sigma, p, g)

    def log_prob(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """log p(x), (B,)."""
        return self._run("log_prob", x, 1, alpha, sigma)[:, 0]

    def responsibilities(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Posterior probabilities of the components, (B, K)."""
        return self._run("responsibilities", x, len(self._means), alpha, sigma)

    def score_divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Laplacian of log p(x), (B,)."""
        return self._run("divergence", x, 1, alpha, sigma)[:, 0]

    def _run(
        self, wanted: Wanted, x: Tensor, width: int, alpha: Scalar, sigma: Scalar, p: Scalar = 0.0, g: Scalar = 0.0
    ) -> Tensor:
        # Attributes are looked up once, since a small batch takes the kernel no longer than that.
        evaluate, number = self._kernel, _NUMBERS[wanted]
        points = np.ascontiguousarray(x.numpy(force=True), dtype=np.float64)
        given, out = (alpha, sigma, p, g), np.empty((len(points), width))
        own = True if any(isinstance(part, Tensor) for part in given) else None
        if own is None:
            levels = np.array(given, dtype=np.float64)[:, None]
        else:
            levels = np.empty((len(given), len(points)))
            for row, part in zip(levels, given, strict=True):
                row[:] = _numbers(part)
        fixed = (self._centre, self._means, self._eigenvalues, self._log_weights)
        threads = min(torch.get_num_threads(), len(points) // _ROWS_OF_A_THREAD) if len(points) > _ROWS_OF_A_THREAD else 1
        if threads < 2:
            evaluate(number, self._axes, self._basis, own, points, *fixed, levels, out)
            return torch.from_numpy(out).to(x.dtype)

        def piece(begin: int, end: int) -> None:
            at = levels if own is None else np.ascontiguousarray(levels[:, begin:end])
            evaluate(number, self._axes, self._basis, own, points[begin:end], *fixed, at, out[begin:end])

        # A row's answer does not depend on the others, and so not on the number of threads.
        ends = [len(points) * k // threads for k in range(threads + 1)]
        list(_pool(threads).map(piece, ends[:-1], ends[1:]))
        return torch.from_numpy(out).to(x.dtype)

    @functools.cached_property
    def _kernel(self) -> Callable[..., None]:
        from diffode.native import kernels

        return kernels.evaluate


def _array(part: Tensor) -> Array:
    found: Array = np.ascontiguousarray(part.numpy(), dtype=np.float64)
    return found


def _numbers(part: Scalar) -> Array:
    """A number, or a number for each row, as an array."""
    return np.asarray(part.numpy(force=True).reshape(-1) if isinstance(part, Tensor) else part, dtype=np.float64)


def is_plain(part: Tensor) -> bool:
    """Whether a tensor is one of numbers on the CPU and nothing more: no derivative, no transform, no trace is asked of it."""
    return (
        type(part) in (Tensor, torch.nn.Parameter)
        and part.device.type == "cpu"
        and part.layout == torch.strided
        and not (part.requires_grad and torch.is_grad_enabled())
        and not torch._C._functorch.is_functorch_wrapped_tensor(part)
        and torch.autograd.forward_ad.unpack_dual(part).tangent is None  # type: ignore[no-untyped-call]
        and not torch.compiler.is_compiling()
    )


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="diffode-native")
