"""Evaluation of a mixture by compiled kernels, where there are some and they can stand in for torch.

A mixture has kernels or none (:meth:`Compiled.of`), which its ``arithmetic`` tells to the keys of stored results. Kernels
compute the evaluations that they take (:meth:`Compiled.takes`), and torch the others, such as those that are differentiated.
"""

from __future__ import annotations

import array
import concurrent.futures
import functools
import itertools
import os
import threading
from collections.abc import Sequence
from typing import Self, get_args

import torch
from torch import Tensor

from diffode import native
from diffode.native import Wanted, objects
from diffode.targets.components import Components, Diagonal, Isotropic
from diffode.targets.rotated import Rotated
from diffode.targets.target import Scalar
from diffode.targets.torch_evaluation import TorchEvaluation, is_plain

#: Bounds of the variances alpha^2 c + sigma^2 between which the kernels' logarithm and quotients are normal numbers.
_VARIANCES = (1e-280, 1e280)
#: Smallest number of rows that a thread of its own is worth.
_ROWS_OF_A_THREAD = 2**13
#: The same number in tens of dimensions.
_WIDE_ROWS_OF_A_THREAD = 2**10
#: Largest quotient of a covariance's trace by its smallest eigenvalue for the kernel in tens of dimensions, whose exponents
#: err by about this times the unit round-off, 1e-12.
_CONDITION = 1e4

#: What kernels compute, as the numbers that they take.
_NUMBERS: dict[Wanted, int] = {wanted: number for number, wanted in enumerate(get_args(Wanted))}
#: The number by which a kernel is asked for the size of its workplace.
_ROOM = len(_NUMBERS)
#: Weights where none are wanted.
_NO_WEIGHTS = (0.0, 0.0)


class Compiled:
    """The kernels' answers for one mixture, each for x (B, dim), one level (floats) or one for each row ((B,) tensors).

    Rows so far out that the squares of their distances overflow are left to torch.
    """

    def __init__(self, components: Components, eigenvalues: Tensor, basis: Tensor | None, by_torch: TorchEvaluation):
        """``eigenvalues`` are (K, dim), or (K, 1); ``basis`` is (K, dim, dim) with eigenvectors in columns."""
        centre = by_torch.mean
        # Under a trace sizes are tensors.
        self._dim, self._count, self._kinds = int(components.dim), int(components.count), int(eigenvalues.shape[1])
        self._by_torch = by_torch
        self._rotated = basis is not None
        held = [centre, components.means - centre, eigenvalues, components.log_weights, *([] if basis is None else [basis])]
        self._parameters = torch.cat([part.detach().to("cpu", torch.float64).reshape(-1) for part in held])
        self._ends = float(eigenvalues.min()), float(eigenvalues.max())
        self._wide = self._dim > native.MOST_DIMENSIONS
        #: Least sigma^2/alpha^2 at which all covariances are within ``_CONDITION``, where that matters.
        self._least_noise = _least_noise(eigenvalues) if self._wide else 0.0
        #: Numbers that the kernel works with, by whether rows have levels of their own.
        self._room: dict[bool, int] = {}

    @classmethod
    def of(cls, components: Components, by_torch: TorchEvaluation) -> Self | None:
        """The kernels for components; None if there are none for them, or they are switched off."""
        if not native.is_on():
            return None
        if components.dim > native.MOST_DIMENSIONS:
            full = isinstance(components, Rotated) and components.full and components.dim <= native.MOST_DIMENSIONS_OF_FULL
            if not full or components.count * components.dim**2 > native.MOST_NUMBERS_OF_FULL:
                return None
        if isinstance(components, Isotropic):
            return cls(components, components.variance[:, None], None, by_torch)
        if isinstance(components, Diagonal):
            return cls(components, components.variance, None, by_torch)
        if isinstance(components, Rotated) and components.full:
            return cls(components, components.eigenvalues, components.basis, by_torch)
        return None

    def takes(self, x: Tensor, alpha: Scalar, sigma: Scalar, *weights: Scalar) -> bool:
        """Whether all are plain numbers on the CPU, of which no derivative is asked, at a level that is not extreme.

        In tens of dimensions rows share the level, and no covariance is too narrow in a direction.
        """
        if not is_plain(x) or x.shape[0] == 0:
            return False
        narrow, wide = self._ends
        if not _own(alpha, sigma, *weights):
            low, high = alpha * alpha * narrow + sigma * sigma, alpha * alpha * wide + sigma * sigma
            if self._wide and sigma * sigma < alpha * alpha * self._least_noise:
                return False
        else:
            if self._wide or not all(is_plain(part) for part in (alpha, sigma, *weights) if isinstance(part, Tensor)):
                return False
            squares = [torch.as_tensor(part, dtype=torch.float64, device="cpu").square() for part in (alpha, sigma)]
            low, high = float((squares[0] * narrow + squares[1]).min()), float((squares[0] * wide + squares[1]).max())
        return bool(_VARIANCES[0] <= low and high <= _VARIANCES[1])

    def view(self, x: Tensor, alpha: Scalar, sigma: Scalar, p: Scalar, g: Scalar) -> Tensor:
        """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)], (B, dim)."""
        return self._run("view", x, self._dim, alpha, sigma, p, g)

    def log_prob(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """log p(x), (B,)."""
        return self._run("log_prob", x, 1, alpha, sigma)[:, 0]

    def responsibilities(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Posterior probabilities of the components, (B, K)."""
        return self._run("responsibilities", x, self._count, alpha, sigma)

    def score_divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Laplacian of log p(x), (B,)."""
        return self._run("divergence", x, 1, alpha, sigma)[:, 0]

    def _run(self, wanted: Wanted, x: Tensor, width: int, alpha: Scalar, sigma: Scalar, *weights: Scalar) -> Tensor:
        number, rows = _NUMBERS[wanted], x.shape[0]
        points = x if x.dtype == torch.float64 and x.is_contiguous() else x.detach().to(torch.float64).contiguous()
        p, g = weights or _NO_WEIGHTS
        given, out = (alpha, sigma, p, g), torch.empty(rows, width, dtype=torch.float64, device="cpu")
        own = _own(*given)
        worth = _WIDE_ROWS_OF_A_THREAD if self._wide else _ROWS_OF_A_THREAD
        threads = min(torch.get_num_threads(), rows // worth) if rows > worth else 1
        if not own:
            shared = array.array("d", (float(part) for part in given))
            level = shared.buffer_info()[0]
        else:
            levels = torch.empty(len(given), rows, dtype=torch.float64, device="cpu")
            for row, part in zip(levels, given, strict=True):
                row.copy_(part.detach()) if isinstance(part, Tensor) else row.fill_(part)
            level = levels.data_ptr()
        if threads < 2:
            lost = self._evaluate(number, own, rows, points.data_ptr(), level, out.data_ptr())
        else:
            # A row's answer does not depend on the others, and so not on the number of threads.
            ends = [rows * k // threads for k in range(threads + 1)]
            spans = [slice(*span) for span in itertools.pairwise(ends)]
            parts = [(points[at], levels[:, at].contiguous() if own else None, out[at]) for at in spans]

            def piece(part: tuple[Tensor, Tensor | None, Tensor]) -> int:
                some, its_levels, answer = part
                address = level if its_levels is None else its_levels.data_ptr()
                return self._evaluate(number, own, len(some), some.data_ptr(), address, answer.data_ptr())

            lost = sum(_pool(threads).map(piece, parts))
        if lost:
            self._leave(wanted, points, given, out)
        return out if x.dtype == torch.float64 else out.to(x.dtype)

    def _leave(self, wanted: Wanted, points: Tensor, given: Sequence[Scalar], out: Tensor) -> None:
        """Let torch write the rows of ``out`` for which a kernel found no number, though their points are numbers."""
        at = (~out[:, 0].isfinite() & ~points.isnan().any(1)).nonzero()[:, 0]
        x, rows = points[at], len(points)
        levels = [part.expand(rows)[at] if isinstance(part, Tensor) else part for part in given]
        evaluation = self._by_torch
        if wanted == "view":
            out[at] = evaluation.view(x, *levels)
        elif wanted == "responsibilities":
            out[at] = evaluation.responsibilities(x, *levels[:2])
        else:
            function = evaluation.log_prob if wanted == "log_prob" else evaluation.score_divergence
            out[at] = function(x, *levels[:2])[:, None]

    def _evaluate(self, number: int, own: bool, rows: int, points: int, levels: int, out: int) -> int:
        """Run the kernel on some rows, given by addresses; returns the number of those that it can't do."""
        # Neither the kernel nor an address is kept, since a copy of the mixture would keep them too.
        kind = ("wide",) if self._wide else ("kernels", self._dim, self._rotated, own)
        kernel, parameters = objects.kernel(*kind), self._parameters.data_ptr()
        room = self._room.get(own)
        if room is None:
            room = self._room[own] = kernel(_ROOM, 0, self._count, self._kinds, 0, parameters, 0, 0, 0)
        return kernel(number, rows, self._count, self._kinds, points, parameters, levels, out, _workplace(room))


def _own(*given: Scalar) -> bool:
    """Whether each row has a level or weights of its own."""
    # A loop takes a third of the time of any(), which is most of what is to do for a small batch.
    for part in given:  # noqa: SIM110
        if isinstance(part, Tensor):
            return True
    return False


def _least_noise(eigenvalues: Tensor) -> float:
    """The smallest s >= 0 at which tr(C_k + s) <= _CONDITION min(C_k + s) for all k, the eigenvalues of C_k being (K, dim)."""
    excess = eigenvalues.sum(1) - _CONDITION * eigenvalues.amin(1)
    return max(0.0, float(excess.max()) / (_CONDITION - eigenvalues.shape[1]))


class _Workplaces(threading.local):
    """Room for numbers that each thread keeps, since asking for it anew takes as long as a small batch."""

    room: Tensor = torch.empty(0)


_workplaces = _Workplaces()


def _workplace(room: int) -> int:
    """The address of room for so many float64 numbers, which the thread's next call may use again."""
    kept = _workplaces.room
    if kept.numel() < room:
        with torch.inference_mode(False):
            kept = _workplaces.room = torch.empty(room, dtype=torch.float64, device="cpu")
    return kept.data_ptr()


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="diffode-native")


# A forked process has none of the threads of its parent, only the pools that they belonged to.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
