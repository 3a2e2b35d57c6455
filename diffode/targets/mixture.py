"""Gaussian mixtures: targets all of whose noised views are known in closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.randomness import Randomness, generator_from, normal, row_generators
from diffode.targets.arguments import given
from diffode.targets.chunks import Chunk, Parameters, joined, less
from diffode.targets.compiled import Compiled, is_plain
from diffode.targets.components import Components, Isotropic, Level, column, rows_of
from diffode.targets.content import Content, given_covariances
from diffode.targets.differences import Differences
from diffode.targets.parameters import LowRank, checked_weights, components_of, means_of, real
from diffode.targets.rotated import Rotated
from diffode.targets.target import Scalar, Target

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


class GaussianMixture(Target):
    r"""The mixture :math:`\sum_k w_k N(\mu_k, C_k)`.

    Args:
        weights: (K,), positive, summing to 1.
        means: (K, D).
        covariances: (K, D, D) full, (K, D) diagonal, (K,) isotropic, or :class:`LowRank`. When K = D, a (K, D) array is
            diagonal. All must be positive definite; point masses are made with :meth:`from_points`.

    Arrays are NumPy or torch, of any real dtype; parameters are kept in float64 and cast to the dtype of ``x``.

    Raises:
        ArgumentError: for wrong shapes, non-finite entries, weights that do not sum to 1, covariances that are not
            symmetric or not positive definite. The message names the argument and the component.

    >>> pair = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01])
    >>> pair.dim, round(float(pair.variance), 4)
    (1, 1.01)
    """

    # No gradient can flow outside of inference mode through tensors that were made in it.
    @torch.inference_mode(False)
    def __init__(self, weights: Any, means: Any, covariances: Any):
        weights, means = real(weights, "weights", 1), means_of(means, "means")
        self._content = Content({"weights": weights, "means": means, **given_covariances(covariances)})
        weights = checked_weights(weights, means.shape[0])
        self._set(weights, means, components_of(weights, means, covariances))

    @classmethod
    @torch.inference_mode(False)
    def from_points(cls, points: Any, weights: Any = None) -> GaussianMixture:
        """Point masses at ``points`` (K, D), equally likely unless ``weights`` (K,) are given.

        It is the data set as a distribution: its denoiser is the optimal one for those points. It has no density, so
        that :meth:`log_prob` raises; every noised view (sigma > 0) is defined.
        """
        means = means_of(points, "points")
        count = means.shape[0]
        given = real([1 / count] * count if weights is None else weights, "weights", 1)
        content = Content({"weights": given, "points": means})
        given = checked_weights(given, count)
        mixture = cls.__new__(cls)
        mixture._content = content
        mixture._set(given, means, Isotropic(given.log(), means, torch.zeros_like(given), True))
        return mixture

    def _set(self, weights: Tensor, means: Tensor, components: Components) -> None:
        self.weights = weights
        self.means = means
        self.components = components
        self.dim = components.dim
        self._mean = weights @ means
        centred = means - self._mean
        self._variance = weights @ (centred.square() + components.variances())
        self._radius = float(centred.square().sum(1).max().sqrt())
        self._reach = float((centred.square().sum(1) + components.variances().amax(1)).max().sqrt())
        self._far = float(self._mean.norm()) > self._reach
        self._narrowest = components.smallest_variance
        self._centred = replace(components, means=centred)
        self._cast: dict[tuple[torch.dtype, torch.device], Parameters] = {}

    @property
    def is_discrete(self) -> bool:
        """Whether the target is made of point masses and so has no density."""
        return self._narrowest == 0

    def __repr__(self) -> str:
        many = (
            f"{self.count} component{'s' if self.count != 1 else ''}",
            f"{self.dim} dimension{'s' if self.dim != 1 else ''}",
        )
        return f"{type(self).__name__}({many[0]} in {many[1]}, {self._kind})"

    @property
    def _kind(self) -> str:
        if self.is_discrete:
            return "points"
        parts = self.components
        return ("full" if parts.full else "low-rank") if isinstance(parts, Rotated) else type(parts).__name__.lower()

    @property
    def covariances(self) -> Tensor | LowRank:
        """The covariances in the form they were given in: (K,) isotropic, (K, D) diagonal, (K, D, D) full, or :class:`LowRank`.

        Full and low-rank ones are put together again from their eigenvectors, up to rounding; the factors are orthogonal.
        Covariances of point masses are 0.
        """
        parts = self.components
        if not isinstance(parts, Rotated):
            given: Tensor = parts.variance.clone()  # type: ignore[attr-defined]
            return given
        if parts.full:
            whole = torch.einsum("kir,kr,kjr->kij", parts.basis, parts.eigenvalues, parts.basis)
            return (whole + whole.mT) / 2
        along = (parts.eigenvalues - parts.noise[:, None]).clamp(min=0).sqrt()
        return LowRank(parts.basis * along[:, None, :], parts.noise.clone())

    @property
    def count(self) -> int:
        """Number of components K."""
        return self.components.count

    @property
    @override
    def mean(self) -> Tensor:
        return self._mean

    @property
    @override
    def variance(self) -> Tensor:
        return self._variance

    @property
    @override
    def covariance(self) -> Tensor:
        centred = self.means - self._mean
        return self.components.mean_covariance(self.weights) + (self.weights[:, None] * centred).T @ centred

    @functools.cached_property
    def line(self) -> Tensor | None:
        """Unit vector (dim,) along which the mixture is one-dimensional, with one Gaussian across it, or None.

        Every 1-D mixture has such a line, and so has one whose means lie on a line that is an eigenvector of the covariance
        shared by all components; the exact flow is then a quantile map along the line.
        """
        if self.dim == 1:
            return torch.ones_like(self._mean)
        if self.count == 1 or self._radius == 0 or not self.components.shared:
            return None
        offsets = self.means - self._mean
        farthest = offsets[int(offsets.square().sum(1).argmax())]
        direction: Tensor = farthest / farthest.norm()
        across = offsets - (offsets @ direction)[:, None] * direction
        if float(across.abs().max()) > 1e-12 * self._radius:
            return None
        image = self.components.filter(direction[:, None, None], lambda c: c[..., None])[:, 0, 0]
        if float((image - (image @ direction) * direction).norm()) > 1e-10 * float(image.norm()):
            return None
        return direction

    def as_mixture(self) -> GaussianMixture:
        """The mixture itself."""
        return self

    def content(self) -> str:
        """A hash of the parameters as given, in float64: the same on every machine and in every release."""
        return self._content.digest

    def sample(self, n: int, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw n samples, shape (n, dim), on the generator's device; of a list of n generators each gives one sample."""
        if type(n) is not int or n < 0:
            raise ArgumentError(f"n must be a number of samples >= 0, got {n!r:.60}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ArgumentError(f"dtype must be a floating-point dtype, such as torch.float32, got {dtype!r:.60}")
        each = row_generators(generator, n)
        if each:
            return torch.cat([self.sample(1, generator=one, dtype=dtype) for one in each])
        source = generator_from(generator if each is None else 0)
        uniform = torch.rand(n, generator=source, dtype=torch.float64, device=source.device).cpu()
        which = torch.searchsorted(self.weights.cumsum(0), uniform).clamp_(max=self.count - 1)
        z = normal((n, self.dim), generator=source).cpu()
        return (self.means[which] + self.components.disperse(which, z)).to(dtype=dtype, device=source.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the data, shape (B,). Raises ArgumentError for point masses, which have none."""
        if self.is_discrete:
            raise ArgumentError("a target of point masses has no density; ask for field.log_prob(x, t) at a time t > 0")
        return self.noised_log_prob(x, 1.0, 0.0)

    @override
    def noised_log_prob(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        alpha, sigma = given(x, self.dim, alpha, sigma)
        if compiled := self._compiled_for(x, alpha, sigma):
            return compiled.log_prob(x, alpha, sigma)
        parts = []
        for chunk in self._chunks(x, alpha, sigma):
            joint = chunk.form.log_joint(chunk.x, chunk.at)
            parts.append(chunk.form.sharpened(joint, chunk.x, chunk.at).logsumexp(0))
        return joined(parts, x.new_zeros(0))

    def responsibilities(self, x: Tensor, alpha: Scalar = 1.0, sigma: Scalar = 0.0) -> Tensor:
        """Posterior probability of each component given alpha x_0 + sigma eps = x, shape (B, K)."""
        alpha, sigma = given(x, self.dim, alpha, sigma)
        if compiled := self._compiled_for(x, alpha, sigma):
            return compiled.responsibilities(x, alpha, sigma)
        parts = [chunk.responsibilities.T for chunk in self._chunks(x, alpha, sigma)]
        return joined(parts, x.new_zeros(0, self.count))

    @override
    def noised_view(self, x: Tensor, alpha: Scalar, sigma: Scalar, denoised_weight: Scalar, score_weight: Scalar) -> Tensor:
        alpha, sigma, p, slope = given(x, self.dim, alpha, sigma, denoised_weight, score_weight)
        g = -slope
        if compiled := self._compiled_for(x, alpha, sigma, p, g):
            return compiled.view(x, alpha, sigma, p, g)
        parts = []
        for chunk in self._chunks(x, alpha, sigma, view=True):
            p_rows, g_rows = rows_of(p, *chunk.span), rows_of(g, *chunk.span)
            view = chunk.view(p_rows, g_rows)
            if isinstance(p_rows, Tensor) or p_rows != 0:
                view.add_(column(p_rows) * chunk.centre)
            parts.append(view)
        return joined(parts, x)

    @override
    def noised_score_divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        alpha, sigma = given(x, self.dim, alpha, sigma)
        if compiled := self._compiled_for(x, alpha, sigma):
            return compiled.score_divergence(x, alpha, sigma)
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
        return isinstance(self.components, Isotropic) and self.components.common

    def _compiled_for(self, x: Tensor, alpha: Scalar, sigma: Scalar, *weights: Scalar) -> Compiled | None:
        """The compiled kernels, if there are any that can take this evaluation in torch's place."""
        kernels = self._compiled
        return None if kernels is None or not kernels.takes(x, alpha, sigma, *weights) else kernels

    @property
    @override
    def arithmetic(self) -> str:
        return "torch" if self._compiled is None else "native"

    @functools.cached_property
    def _compiled(self) -> Compiled | None:
        return Compiled.of(self._centred, self._mean)

    def _chunks(self, x: Tensor, alpha: Scalar, sigma: Scalar, *, careful: bool = False, view: bool = False) -> Iterator[Chunk]:
        """Chunks of rows of x, centred, small enough for the processor's cache, each with the form that keeps its digits."""
        level = Level(alpha, sigma)
        if x.shape[0] == 0:
            return
        if self.is_discrete and float(level.sigma.detach().min() if isinstance(level.sigma, Tensor) else level.sigma) ** 2 == 0:
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
                centre = self._mean.to(device=device)
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
