"""Evaluation of a mixture's noised laws by torch, in chunks of rows, in the form and dtype that keep the digits.

It takes every input that torch takes: derivatives, other devices, other dtypes. Few dimensions have compiled kernels too
(:mod:`diffode.targets.compiled`), which leave to it what they can't do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffode.errors import ArgumentError
from diffode.targets.chunks import Chunk, Parameters, joined, less
from diffode.targets.components import Components, Isotropic, Level, column, rows_of
from diffode.targets.differences import Differences
from diffode.targets.target import Scalar

#: Count of numbers that a chunk may hold, about 4 MB in float64, so that it stays near the processor.
_CHUNK_NUMBERS = 2**19
#: Rows that a chunk has even if it then holds more, since matrix products need them.
_LEAST_CHUNK_ROWS = 256
#: Count of numbers, 32 MB in float64, that a chunk with its least rows may hold; wider rows make it shorter.
_CHUNK_LIMIT = 2**22
#: Largest number of rows of a chunk.
_MOST_CHUNK_ROWS = 2**14

#: Unit round-off of a dtype.
_ROUND_OFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
#: Largest dimension in which differences cost next to nothing, so that products may lose less.
_FEW_DIMENSIONS = 3
#: Least number of dimensions in which attention is faster than two products with a softmax between.
_ATTENTION_DIMENSIONS = 8
#: Least number of components; with fewer, a small batch is slower.
_ATTENTION_COMPONENTS = 256
#: Estimated error of the responsibilities above which float32 gives way to float64; every float32 answer promises it.
_FLOAT32_LOSS = 2e-4
#: Bounds between which squares, and their quotients, fit float32.
_FLOAT32_SQUARES = (1e-30, 1e30)
#: Estimated error of the responsibilities above which products in float64 give way to differences, in few dimensions.
_FLOAT64_LOSS_FEW = 1e-13
#: The same error in many dimensions.
_FLOAT64_LOSS_MANY = 1e-10
#: The same error in many dimensions with one variance for all, where rounding enters the views by responsibilities alone.
_FLOAT64_LOSS_COMMON = 1e-8


class TorchEvaluation:
    """The noised laws of a mixture: x is (B, dim), levels and weights are numbers, or (B,) with a value for each row.

    Either both alpha and sigma are numbers or none is.
    """

    def __init__(self, components: Components, mean: Tensor, reach: float):
        """``reach`` is the root mean square distance from the mean of the widest or farthest component."""
        self.dim, self.count = components.dim, components.count
        self.mean, self._reach = mean, reach
        self._far = float(mean.norm()) > reach
        self._narrowest = components.smallest_variance
        self._centred = replace(components, means=components.means - mean)
        self._cast: dict[tuple[torch.dtype, torch.device], Parameters] = {}

    def log_prob(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """log p(x), (B,)."""
        parts = []
        for chunk in self._chunks(x, alpha, sigma):
            joint = chunk.form.log_joint(chunk.x, chunk.at)
            parts.append(chunk.form.sharpened(joint, chunk.x, chunk.at).logsumexp(0))
        return joined(parts, x.new_zeros(0))

    def responsibilities(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Posterior probabilities of the components, (B, K)."""
        parts = [chunk.responsibilities.T for chunk in self._chunks(x, alpha, sigma)]
        return joined(parts, x.new_zeros(0, self.count))

    def view(self, x: Tensor, alpha: Scalar, sigma: Scalar, p: Scalar, g: Scalar) -> Tensor:
        """sum_k r_k [p D_k + g S_k^-1 (x - alpha mu_k)], (B, dim)."""
        parts = []
        for chunk in self._chunks(x, alpha, sigma, view=True):
            p_rows, g_rows = rows_of(p, *chunk.span), rows_of(g, *chunk.span)
            view = chunk.view(p_rows, g_rows)
            if isinstance(p_rows, Tensor) or p_rows != 0:
                view.add_(column(p_rows) * chunk.centre)
            parts.append(view)
        return joined(parts, x)

    def score_divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Laplacian of log p(x), (B,)."""
        # |g_k - score|^2 is summed unexpanded: expanded, it cancels far from the data. One variance for all has its own form.
        parts = []
        for chunk in self._chunks(x, alpha, sigma, careful=not self._one_variance):
            form = chunk.form
            if isinstance(form, Isotropic | Differences):
                parts.append(form.score_divergence(chunk.x, chunk.responsibilities, chunk.at))
        return joined(parts, x.new_zeros(0))

    @property
    def _one_variance(self) -> bool:
        """Whether all components are isotropic with the same variance."""
        return isinstance(self._centred, Isotropic) and self._centred.common

    def _chunks(self, x: Tensor, alpha: Scalar, sigma: Scalar, *, careful: bool = False, view: bool = False) -> Iterator[Chunk]:
        """Chunks of rows of x, centred, small enough for the processor's cache, each with the form that keeps its digits."""
        level = Level(alpha, sigma)
        if x.shape[0] == 0:
            return
        least = float(level.sigma.detach().min() if isinstance(level.sigma, Tensor) else level.sigma)
        if self._narrowest == 0 and least**2 == 0:
            raise ArgumentError("point masses have no field at sigma = 0; ask at a time with some noise")
        form, dtype = self._form(level, x, careful)
        parameters = self._parameters(dtype, x.device)
        attends = view and self._attends(form, level, x)
        rows = max(1, _CHUNK_NUMBERS // form.row_size, min(_LEAST_CHUNK_ROWS, _CHUNK_LIMIT // form.row_size))
        # Attention makes blocks of its own, and holds no number for each component and row.
        rows = _MOST_CHUNK_ROWS if attends else min(rows, _MOST_CHUNK_ROWS)
        for start in range(0, x.shape[0], rows):
            stop = min(start + rows, x.shape[0])
            at = level.rows(start, stop)
            piece = less(x[start:stop].to(dtype), column(at.alpha) * parameters.exact_centre, self._far)
            if isinstance(at.alpha, Tensor) and isinstance(at.sigma, Tensor):
                at = Level(at.alpha.to(dtype), at.sigma.to(dtype))
            yield Chunk((start, stop), piece, parameters.centre, at, form, attends)

    def _attends(self, form: Components | Differences, level: Level, x: Tensor) -> bool:
        """Whether a view is computed as attention, which torch has a fast kernel for, without derivatives, on the CPU."""
        alike = isinstance(form, Isotropic) and form.common and not level.per_row
        return alike and self.dim >= _ATTENTION_DIMENSIONS and self.count >= _ATTENTION_COMPONENTS and is_plain(x)

    def _form(self, level: Level, x: Tensor, careful: bool) -> tuple[Components | Differences, torch.dtype]:
        """Form and dtype of an evaluation at a level: matrix products if their rounding is harmless, else differences.

        The products' responsibilities err by about u |alpha x_0|^2/(alpha^2 c + sigma^2), u the unit round-off. (At a point
        further out than the data they err no more than rounding the point itself costs.) float32 input stays float32 only
        where that saves time and is harmless: one isotropic covariance for all, many dimensions.
        """
        variance = level.alpha**2 * self._narrowest + level.sigma**2
        share = math.nan if isinstance(variance, float) and variance == 0 else level.alpha**2 / variance
        amplification = (float(share.detach().max()) if isinstance(share, Tensor) else share) * self._reach**2
        if math.isnan(amplification):
            raise ArgumentError("alpha and sigma must be finite numbers whose squares are not both 0")
        many = self.dim > _FEW_DIMENSIONS
        one_variance = many and self._one_variance
        dtype = x.dtype
        if dtype != torch.float64 and not (
            one_variance
            and amplification * _ROUND_OFF[torch.float32] <= _FLOAT32_LOSS
            and self._fits_float32(level)
            and _multiplies_exactly(x.device)
        ):
            dtype = torch.float64
        components = self._parameters(dtype, x.device).components
        tolerated = _FLOAT64_LOSS_COMMON if one_variance else _FLOAT64_LOSS_MANY if many else _FLOAT64_LOSS_FEW
        rounded = dtype == torch.float64 and amplification * _ROUND_OFF[dtype] > tolerated
        if careful or rounded or (level.per_row and not components.takes_row_levels):
            return Differences(components), dtype
        return components, dtype

    def _fits_float32(self, level: Level) -> bool:
        """Whether the formulas' squares, of distances and of the noise, fit float32."""
        low, high = _FLOAT32_SQUARES
        noise = level.sigma**2
        ends = (float(noise.min()), float(noise.max())) if isinstance(noise, Tensor) else (noise, noise)
        data = self._reach**2
        return max(data, ends[1]) < high and (data == 0 or data > low) and (ends[0] > low or self._narrowest > low)

    def _parameters(self, dtype: torch.dtype, device: torch.device) -> Parameters:
        """The parameters in the dtype and on the device of a computation, kept for later ones."""
        key = (dtype, device)
        if key not in self._cast:
            with torch.inference_mode(False):
                centre = self.mean.to(device=device)
                self._cast[key] = Parameters(self._centred.to(*key), centre.to(dtype), centre)
        return self._cast[key]


def _multiplies_exactly(device: torch.device) -> bool:
    """Whether float32 matrix products keep float32's digits: neither autocast nor a lower precision of products is on.

    Neither affects float64.
    """
    try:
        return torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled(device.type)
    except RuntimeError:
        # torch can't answer: its older and newer settings of the precision were mixed, or the device has no autocast.
        return False


def is_plain(part: Tensor) -> bool:
    """Whether a tensor is one of numbers on the CPU and nothing more: no derivative, no transform, no trace is asked of it."""
    return (
        type(part) in (Tensor, torch.nn.Parameter)
        and part.is_cpu
        and part.layout == torch.strided
        # What lies at the address of these tensors are not their numbers.
        and not part.is_neg()
        and not part._is_zerotensor()
        and not (part.requires_grad and torch.is_grad_enabled())
        and not torch._C._functorch.is_functorch_wrapped_tensor(part)
        # There are no dual numbers outside of a level for them.
        and (forward_ad._current_level < 0 or forward_ad.unpack_dual(part).tangent is None)  # type: ignore[no-untyped-call]
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )
