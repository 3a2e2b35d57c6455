"""Gaussian mixtures: targets all of whose noised views are known in closed form."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.randomness import Randomness, generator_from, normal, row_generators
from diffode.targets.arguments import given
from diffode.targets.compiled import Compiled
from diffode.targets.components import Components, Isotropic
from diffode.targets.content import Content, Derived, given_covariances
from diffode.targets.labels import Label, checked_labels, components_with
from diffode.targets.parameters import LowRank, checked_weights, components_of, means_of, real
from diffode.targets.rotated import Rotated
from diffode.targets.target import Scalar, Target
from diffode.targets.torch_evaluation import TorchEvaluation


class GaussianMixture(Target):
    r"""The mixture :math:`\sum_k w_k N(\mu_k, C_k)`.

    Args:
        weights: (K,), positive, summing to 1.
        means: (K, D).
        covariances: (K, D, D) full, (K, D) diagonal, (K,) isotropic, or :class:`LowRank`. When K = D, a (K, D) array is
            diagonal. All must be positive definite; point masses are made with :meth:`from_points`.
        labels: (K,), a whole number or a name for each component, by which :meth:`given` conditions; they do not enter the
            law or its ``content``.

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
    def __init__(self, weights: Any, means: Any, covariances: Any, *, labels: Any = None):
        weights, means = real(weights, "weights", 1), means_of(means, "means")
        self._content: Content | Derived = Content({"weights": weights, "means": means, **given_covariances(covariances)})
        weights = checked_weights(weights, means.shape[0])
        self._set(weights, means, components_of(weights, means, covariances), checked_labels(labels, means.shape[0]))

    @classmethod
    @torch.inference_mode(False)
    def from_points(cls, points: Any, weights: Any = None, *, labels: Any = None) -> GaussianMixture:
        """Point masses at ``points`` (K, D), equally likely unless ``weights`` (K,) are given; ``labels`` (K,) as above.

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
        parts = Isotropic(given.log(), means, torch.zeros_like(given), True)
        mixture._set(given, means, parts, checked_labels(labels, count))
        return mixture

    def _set(self, weights: Tensor, means: Tensor, components: Components, labels: tuple[Label, ...] | None = None) -> None:
        self.labels = labels
        self.weights = weights
        self.means = means
        self.components = components
        self.dim = components.dim
        self._mean = weights @ means
        centred = means - self._mean
        self._variance = weights @ (centred.square() + components.variances())
        self._radius = float(centred.square().sum(1).max().sqrt())
        reach = float((centred.square().sum(1) + components.variances().amax(1)).max().sqrt())
        self._by_torch = TorchEvaluation(components, self._mean, reach)

    @property
    def is_discrete(self) -> bool:
        """Whether the target is made of point masses and so has no density."""
        return self.components.smallest_variance == 0

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
    def covariance_matrices(self) -> Tensor:
        """The covariances as matrices (K, D, D), whatever form they were given in."""
        given = self.covariances
        if isinstance(given, LowRank):
            eye = torch.eye(self.dim, dtype=given.factors.dtype)
            whole: Tensor = given.factors @ given.factors.mT + given.noise[:, None, None] * eye
            return whole
        return given if given.ndim == 3 else torch.diag_embed(self.components.variances().clone())

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

    @override
    def given(self, label: Label) -> GaussianMixture:
        """The law under the condition that the component has a label: its components alone, their weights made to sum to 1.

        ArgumentError, with the nearest one, for a label that no component has.

        >>> pair = GaussianMixture([0.2, 0.3, 0.5], [[-1.0], [0.0], [1.0]], [0.01] * 3, labels=["a", "b", "a"])
        >>> [round(weight, 4) for weight in pair.given("a").weights.tolist()]
        [0.2857, 0.7143]
        """
        index = components_with(self.labels, label, "the mixture")
        # The components' own weights would bring a rounding of their logarithm back.
        weights = self.weights[index] / self.weights[index].sum()
        return self._derived(self.components.chosen(index), weights, f"components {index}", (label,) * len(index))

    def blurred(self, width: float) -> GaussianMixture:
        """The law of x_0 + width z with z standard normal: the same means, every variance larger by width^2.

        >>> GaussianMixture([1.0], [[0.0]], [0.09]).blurred(0.4).variance
        tensor([0.2500], dtype=torch.float64)
        """
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
            raise ArgumentError(f"width must be a positive number, in the unit of the data, got {width!r:.60}")
        return self._derived(self.components.widened(width**2), self.weights, f"blurred {float(width)!r}", self.labels)

    def _derived(self, components: Components, weights: Tensor, how: str, labels: tuple[Label, ...] | None) -> GaussianMixture:
        """A mixture of components that were made from these."""
        made = GaussianMixture.__new__(GaussianMixture)
        made._content = Derived(self.content(), how)
        with torch.inference_mode(False):
            made._set(weights.clone(), components.means.clone(), components, labels)
        return made

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
        return self._evaluation(x, alpha, sigma).log_prob(x, alpha, sigma)

    def responsibilities(self, x: Tensor, alpha: Scalar = 1.0, sigma: Scalar = 0.0) -> Tensor:
        """Posterior probability of each component given alpha x_0 + sigma eps = x, shape (B, K)."""
        alpha, sigma = given(x, self.dim, alpha, sigma)
        return self._evaluation(x, alpha, sigma).responsibilities(x, alpha, sigma)

    @override
    def noised_view(self, x: Tensor, alpha: Scalar, sigma: Scalar, denoised_weight: Scalar, score_weight: Scalar) -> Tensor:
        alpha, sigma, p, slope = given(x, self.dim, alpha, sigma, denoised_weight, score_weight)
        return self._evaluation(x, alpha, sigma, p, slope).view(x, alpha, sigma, p, -slope)

    @override
    def noised_score_divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        alpha, sigma = given(x, self.dim, alpha, sigma)
        return self._evaluation(x, alpha, sigma).score_divergence(x, alpha, sigma)

    @property
    @override
    def arithmetic(self) -> str:
        return "torch" if self._compiled is None else "native"

    def _evaluation(self, x: Tensor, alpha: Scalar, sigma: Scalar, *weights: Scalar) -> Compiled | TorchEvaluation:
        """What computes the noised laws at x: compiled kernels, if there are any that can take this, or torch."""
        kernels = self._compiled
        return kernels if kernels is not None and kernels.takes(x, alpha, sigma, *weights) else self._by_torch

    @functools.cached_property
    def _compiled(self) -> Compiled | None:
        return Compiled.of(self.components, self._by_torch)
