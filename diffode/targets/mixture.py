"""Gaussian mixtures: the targets whose every noised view is known in closed form."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.randomness import Randomness, generator_from, normal
from diffode.targets.components import Components, Diagonal, Isotropic, Level, column, rows_of
from diffode.targets.differences import Differences
from diffode.targets.rotated import Rotated
from diffode.targets.target import Scalar, Target

#: Numbers a chunk may hold: about 4 MB in float64, so that it stays near the processor.
_CHUNK = 2**19
#: Rows a chunk has at least (matrix products want them) unless that exceeds ``_CHUNK_LIMIT`` numbers, and at most.
_CHUNK_ROWS, _CHUNK_ROWS_MOST = 256, 2**14
_CHUNK_LIMIT = 2**22

_ROUND_OFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
#: Up to this dimension care costs next to nothing, so less rounding is tolerated.
_FEW_DIMENSIONS = 3
#: Error of the responsibilities above which float32 gives way to float64. Promised of every answer: 2e-4.
_FLOAT32_LOSS = 2e-4
#: Error above which matrix products give way to differences in float64 (few dimensions, many; many and one variance for all:
#: there rounding only blurs which of two means is nearer when both are far).
_FLOAT64_LOSS = (1e-13, 1e-8)
_FLOAT64_LOSS_COMMON = 1e-5
#: An eigenvalue below this fraction of its component's largest counts as zero.
_SINGULAR = 1e-14


@dataclass(frozen=True)
class LowRank:
    """Covariances F_k F_k^T + n_k I: ``factors`` is (K, D, R), ``noise`` is (K,) and positive."""

    factors: Any
    noise: Any


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

    def __init__(self, weights: Any, means: Any, covariances: Any):
        weights, means = _real(weights, "weights", 1), _real(means, "means", 2)
        given = {"weights": weights, "means": means, **_given(covariances)}
        weights = _checked_weights(weights, means.shape[0])
        self._set(weights, means, _components(weights, means, covariances))
        self._content = _Content(given)

    @classmethod
    def from_points(cls, points: Any, weights: Any = None) -> GaussianMixture:
        """Point masses at ``points`` (K, D), equally likely unless ``weights`` (K,) are given.

        The data set as a distribution: its denoiser is the optimal one for those points. It has no density of its own,
        so :meth:`log_prob` raises; every noised view (sigma > 0) is defined.
        """
        means = _real(points, "points", 2)
        count = means.shape[0]
        given = torch.full((count,), 1 / count, dtype=torch.float64) if weights is None else _real(weights, "weights", 1)
        content = _Content({"weights": given, "points": means})
        given = _checked_weights(given, count)
        mixture = cls.__new__(cls)
        mixture._content = content
        mixture._set(given, means, Isotropic(given.log(), means, torch.zeros(count, dtype=torch.float64), True))
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
        self._narrowest = components.smallest_variance
        self._centred = replace(components, means=centred)
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Components, Tensor]] = {}

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

        Full and low-rank ones are put together again from their eigenvectors, to rounding; the factors are orthogonal. Those of
        point masses are 0.
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
    def mean(self) -> Tensor:  # noqa: D102
        return self._mean

    @property
    def variance(self) -> Tensor:  # noqa: D102
        return self._variance

    @property
    def covariance(self) -> Tensor:  # noqa: D102
        centred = self.means - self._mean
        return self.components.mean_covariance(self.weights) + (self.weights[:, None] * centred).T @ centred

    @functools.cached_property
    def line(self) -> Tensor | None:
        """Unit vector (dim,) along which the mixture is one-dimensional, with a Gaussian across it, or None.

        That holds for every 1-D mixture, and when all means lie on one line and all components share a covariance that
        has the line as an eigenvector; the exact flow is then a quantile map along the line.
        """
        if self.dim == 1:
            return torch.ones(1, dtype=torch.float64)
        if self.count == 1 or not self.components.shared:
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

    def content(self) -> str:
        """A hash of the parameters as they were given, in float64: the same on every machine and in every release."""
        return self._content.digest

    def sample(self, n: int, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw n samples, shape (n, dim), on the generator's device."""
        if not isinstance(n, int) or n < 0:
            raise ArgumentError(f"n must be a number of samples >= 0, got {n!r}")
        source = generator_from(generator)
        uniform = torch.rand(n, generator=source, dtype=torch.float64, device=source.device).cpu()
        which = torch.searchsorted(self.weights.cumsum(0), uniform).clamp_(max=self.count - 1)
        z = normal((n, self.dim), generator=source).cpu()
        return (self.means[which] + self.components.disperse(which, z)).to(dtype=dtype, device=source.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the data, shape (B,). Raises ArgumentError for point masses, which have none."""
        if self.is_discrete:
            raise ArgumentError("a target of point masses has no density; ask for field.log_prob(x, t) at a time t > 0")
        return self.noised_log_prob(x, 1.0, 0.0)

    def noised_log_prob(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:  # noqa: D102
        parts = []
        for chunk in self._chunks(x, alpha, sigma):
            joint = chunk.form.log_joint(chunk.x, chunk.at)
            parts.append(chunk.form.sharpened(joint, chunk.x, chunk.at).logsumexp(0))
        return _joined(parts, x.new_zeros(0))

    def responsibilities(self, x: Tensor, alpha: Scalar = 1.0, sigma: Scalar = 0.0) -> Tensor:
        """Posterior probability of each component given alpha x_0 + sigma eps = x, shape (B, K)."""
        parts = [chunk.responsibilities.T for chunk in self._chunks(x, alpha, sigma)]
        return _joined(parts, x.new_zeros(0, self.count))

    def noised_view(  # noqa: D102
        self, x: Tensor, alpha: Scalar, sigma: Scalar, denoised_weight: Scalar, score_weight: Scalar
    ) -> Tensor:
        parts = []
        p, g = _per_row(denoised_weight), _per_row(-score_weight)
        for chunk in self._chunks(x, alpha, sigma):
            p_rows, g_rows = rows_of(p, *chunk.span), rows_of(g, *chunk.span)
            view = chunk.form.view(chunk.x, chunk.responsibilities, chunk.at, p_rows, g_rows)
            if isinstance(p_rows, Tensor) or p_rows != 0:
                view.add_(column(p_rows) * chunk.centre)
            parts.append(view)
        return _joined(parts, x)

    def noised_score_divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:  # noqa: D102
        # |g_k - score|^2 must be summed as it stands: expanded, it cancels far out. One variance for all has a form of its own.
        parts = []
        for chunk in self._chunks(x, alpha, sigma, careful=not self._one_variance):
            form = chunk.form
            if isinstance(form, Isotropic | Differences):
                parts.append(form.score_divergence(chunk.x, chunk.responsibilities, chunk.at))
        return _joined(parts, x.new_zeros(0))

    @property
    def _one_variance(self) -> bool:
        """Whether all components are isotropic with the same variance."""
        return isinstance(self.components, Isotropic) and self.components.common

    def _chunks(self, x: Tensor, alpha: Scalar, sigma: Scalar, *, careful: bool = False) -> Iterator[_Chunk]:
        """Rows of x, centred, in pieces small enough for the cache, each with the form that keeps its digits."""
        level = Level(_per_row(alpha), _per_row(sigma))
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ArgumentError(f"x must be (B, {self.dim}), got {tuple(x.shape)}")
        if x.shape[0] == 0:
            return
        if self.is_discrete and not isinstance(level.sigma, Tensor) and level.sigma == 0:
            raise ArgumentError("point masses have no field at sigma = 0; ask at a time with some noise")
        form, dtype = self._form(level, x, careful)
        centre = self._parameters(dtype, x.device)[1]
        rows = max(1, _CHUNK // form.row_size, min(_CHUNK_ROWS, _CHUNK_LIMIT // form.row_size))
        for start in range(0, x.shape[0], min(rows, _CHUNK_ROWS_MOST)):
            stop = min(start + min(rows, _CHUNK_ROWS_MOST), x.shape[0])
            at = level.rows(start, stop)
            if isinstance(at.alpha, Tensor) and isinstance(at.sigma, Tensor):
                at = Level(at.alpha.to(x.device, dtype), at.sigma.to(x.device, dtype))
            piece = x[start:stop].to(dtype) - column(at.alpha) * centre
            yield _Chunk((start, stop), piece, centre, at, form)

    def _form(self, level: Level, x: Tensor, careful: bool) -> tuple[Components | Differences, torch.dtype]:
        """How to evaluate at this level: by matrix products if their rounding is harmless, else by differences.

        The products' responsibilities err by about u |alpha x_0|^2/(alpha^2 c + sigma^2), u the unit round-off. (A point
        further away than the data is no worse: rounding the point itself then costs as much.) float32 input stays
        float32 only where that pays and is harmless: one isotropic covariance for all, many dimensions.
        """
        share = level.alpha**2 / (level.alpha**2 * self._narrowest + level.sigma**2)
        amplification = (float(share.detach().max()) if isinstance(share, Tensor) else share) * self._reach**2
        many = self.dim > _FEW_DIMENSIONS
        one_variance = many and self._one_variance
        dtype = x.dtype
        if not one_variance or amplification * _ROUND_OFF[torch.float32] > _FLOAT32_LOSS:
            dtype = torch.float64
        components = self._parameters(dtype, x.device)[0]
        tolerated = _FLOAT64_LOSS_COMMON if one_variance else _FLOAT64_LOSS[many]
        rounded = dtype == torch.float64 and amplification * _ROUND_OFF[dtype] > tolerated
        if careful or rounded or (level.per_row and not components.takes_row_levels):
            return Differences(components), dtype
        return components, dtype

    def _parameters(self, dtype: torch.dtype, device: torch.device) -> tuple[Components, Tensor]:
        """Centred components and their centre in the dtype and on the device of a computation, kept for the next one."""
        key = (dtype, device)
        if key not in self._cast:
            self._cast[key] = (self._centred.to(*key), self._mean.to(dtype=dtype, device=device))
        return self._cast[key]


class _Content:
    """The hash of named arrays, computed once it is asked for; of covariances at once, since only what they become is kept."""

    def __init__(self, arrays: dict[str, Tensor]):
        kept = ("weights", "means", "points")
        self._kept = {name: value for name, value in arrays.items() if name in kept}
        self._parts = {name: _hash(value) for name, value in arrays.items() if name not in kept}

    @functools.cached_property
    def digest(self) -> str:
        parts = self._parts | {name: _hash(value) for name, value in self._kept.items()}
        return hashlib.sha256("|".join(f"{name}:{parts[name]}" for name in sorted(parts)).encode()).hexdigest()[:16]


def _hash(array: Tensor) -> str:
    """A hash of a float64 array; zeros of either sign are equal."""
    numbers = np.ascontiguousarray(array.numpy(), dtype="<f8") + 0.0
    return hashlib.sha256(f"{tuple(array.shape)}".encode() + numbers.tobytes()).hexdigest()


def _given(covariances: Any) -> dict[str, Tensor]:
    """The arrays that covariances are given by, each under a name of its own."""
    if isinstance(covariances, LowRank):
        return {"factors": _real(covariances.factors, "covariances.factors", 3),
                "noise": _real(covariances.noise, "covariances.noise", 1)}  # fmt: skip
    return {"covariances": _real(covariances, "covariances", None)}


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a batch, ready to be evaluated: centred points, what was subtracted, their level, and the form."""

    span: tuple[int, int]
    x: Tensor
    centre: Tensor
    at: Level
    form: Components | Differences

    @property
    def responsibilities(self) -> Tensor:
        """Posterior probabilities of the components, (K, b)."""
        return self.form.logits(self.x, self.at).softmax(0)


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """The chunks' answers as one tensor of the batch's dtype; ``like`` itself for an empty batch."""
    if not parts:
        return like
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(like.dtype)


def _per_row(value: Scalar) -> Scalar:
    """A (B, 1) tensor as (B,); numbers stay numbers."""
    return value.reshape(-1) if isinstance(value, Tensor) else value


def _real(value: Any, name: str, ndim: int | None) -> Tensor:
    """A finite float64 copy of an array argument with ``ndim`` axes."""
    try:
        if not isinstance(value, Tensor) and np.iscomplexobj(value):
            raise ArgumentError(f"{name} must be real, got complex numbers")
        array = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{name} must be an array of real numbers: {error}") from None
    if array.is_complex():
        raise ArgumentError(f"{name} must be real, got complex numbers")
    if ndim is not None and array.ndim != ndim:
        shape = {1: "(K,)", 2: "(K, D)", 3: "(K, D, R)"}[ndim]
        raise ArgumentError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    if 0 in array.shape:
        raise ArgumentError(f"{name} is empty: shape {tuple(array.shape)}")
    if not bool(torch.isfinite(array).all()):
        raise ArgumentError(f"{name} has non-finite entries (NaN or infinity)")
    return array.to(torch.float64, copy=True)


def _checked_weights(weights: Tensor, count: int) -> Tensor:
    """Weights that are positive and sum to 1 as float32 can tell, made to sum to 1 exactly."""
    if weights.shape[0] != count:
        raise ArgumentError(f"weights must have one entry per component ({count}), got {weights.shape[0]}")
    if bool((weights <= 0).any()):
        worst = int(weights.argmin())
        raise ArgumentError(f"weights must be positive, got {float(weights[worst]):g} at component {worst}; drop it")
    total = float(weights.sum())
    if abs(total - 1) > 1e-6:
        raise ArgumentError(f"weights must sum to 1, got {total:.10g}; divide them by their sum")
    return weights / total if abs(total - 1) > 1e-12 else weights


def _components(weights: Tensor, means: Tensor, covariances: Any) -> Components:
    """The kind of components that the shape of ``covariances`` says, checked."""
    count, dim = means.shape
    log_weights = weights.log()
    if isinstance(covariances, LowRank):
        return _low_rank(log_weights, means, covariances)
    array = _real(covariances, "covariances", None)
    if array.shape == (count,):
        _check_positive(array[:, None])
        return Isotropic(log_weights, means, array, bool((array == array[0]).all()))
    if array.shape == (count, dim):
        _check_positive(array)
        return Diagonal(log_weights, means, array)
    if array.shape == (count, dim, dim):
        asymmetry = (array - array.mT).abs().amax((1, 2)) / array.abs().amax((1, 2)).clamp(min=1e-300)
        worst = int(asymmetry.argmax())
        if float(asymmetry[worst]) > 1e-10:
            raise ArgumentError(f"covariances[{worst}] is not symmetric; use (C + C.T)/2")
        eigenvalues, basis = torch.linalg.eigh((array + array.mT) / 2)
        _check_positive(eigenvalues)
        return Rotated(log_weights, means, basis, eigenvalues, torch.zeros(count, dtype=torch.float64))
    raise ArgumentError(
        f"covariances must be (K,), (K, D), (K, D, D) or LowRank with K={count}, D={dim}; got {tuple(array.shape)}"
    )


def _low_rank(log_weights: Tensor, means: Tensor, covariances: LowRank) -> Components:
    factors = _real(covariances.factors, "covariances.factors", 3)
    noise = _real(covariances.noise, "covariances.noise", 1)
    count, dim = means.shape
    if factors.shape[:2] != (count, dim) or factors.shape[2] > dim or noise.shape != (count,):
        raise ArgumentError(
            f"LowRank needs factors (K, D, R) and noise (K,) with K={count}, D={dim}, R <= D; "
            f"got factors {tuple(factors.shape)}, noise {tuple(noise.shape)}"
        )
    _check_positive(noise[:, None])
    basis, singular, _ = torch.linalg.svd(factors, full_matrices=False)
    return Rotated(log_weights, means, basis, singular.square() + noise[:, None], noise)


def _check_positive(eigenvalues: Tensor) -> None:
    """Every component's eigenvalues must exceed the rounding error of its largest."""
    floor = eigenvalues.abs().amax(1) * _SINGULAR
    smallest = eigenvalues.amin(1)
    bad = torch.nonzero(smallest <= floor)
    if bad.numel():
        k = int(bad[0])
        raise ArgumentError(
            f"covariances[{k}] is not positive definite: smallest eigenvalue {float(smallest[k]):.3g}; "
            "add a small multiple of the identity, or use GaussianMixture.from_points for point masses"
        )
