"""The interface of a target, a distribution whose noised laws are known exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.randomness import Randomness
from diffode.targets.labels import Label

if TYPE_CHECKING:
    from diffode.targets.mixture import GaussianMixture

Scalar = float | Tensor
#: An exact flow: points (B, dim) float64 and two times, numbers or (B,), to ends (B, dim) and bounds (B,) of their errors.
Flow = Callable[[Tensor, Scalar, Scalar], tuple[Tensor, Tensor]]


class Target(ABC):
    """A data distribution p_0 on R^dim whose noised laws p(x_t), x_t = alpha x_0 + sigma eps, are known in closed form.

    To add your own, subclass it, implement the abstract members and call ``diffode.targets.register(name, make)``.
    ``alpha`` and ``sigma`` are floats, or (B, 1) tensors with a value for each row; ``x`` is (B, dim). What else is known of
    the law is an answer to :meth:`as_mixture` or :meth:`exact_flow`, which know nothing unless you say so.
    """

    #: Number of coordinates of one sample.
    dim: int
    #: The label of each component, by which the law can be conditioned; None for a law without any.
    labels: tuple[Label, ...] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dim} dimension{'s' if self.dim != 1 else ''})"

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x_0], shape (dim,), float64."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Cov[x_0], shape (dim, dim), float64."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """The diagonal of the covariance, shape (dim,), float64, computed without forming the matrix."""

    @property
    def scale(self) -> float:
        """Root mean variance of the coordinates, the unit of errors and noise levels; 1 for a single point mass."""
        return float(self.variance.mean().sqrt()) or 1.0

    @abstractmethod
    def sample(self, n: int, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw n samples, shape (n, dim), from a generator, a seed, or a list of n generators."""

    @abstractmethod
    def noised_log_prob(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Log-density of alpha x_0 + sigma eps at x, shape (B,)."""

    @abstractmethod
    def noised_view(self, x: Tensor, alpha: Scalar, sigma: Scalar, denoised_weight: Scalar, score_weight: Scalar) -> Tensor:
        """``denoised_weight * E[x_0 | x] + score_weight * grad log p(x)``, shape (B, dim).

        Denoised, noise, velocity and score are all of this form. With both weights a target computes each view without
        the cancellation that converting another view into it would cost.
        """

    @abstractmethod
    def noised_score_divergence(self, x: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """Laplacian of the log-density at x, shape (B,)."""

    def as_mixture(self) -> GaussianMixture | None:
        """The same law as a mixture of Gaussians; None if it is none, or its components are not known.

        Flows in closed form, weights of modes, weak forms by quadrature and bounds follow from it. It is asked often: a class
        that makes one keeps it.
        """
        return None

    def given(self, label: Label) -> Target:
        """The law under the condition that the component has a label; ArgumentError for a law without labels."""
        raise ArgumentError(
            f"{type(self).__name__} has no labels, so label={label!r:.60} can't be given: use a mixture with some"
        )

    @property
    def is_gaussian(self) -> bool:
        """Whether the law is known to be one Gaussian, whose mean and covariance say all."""
        mixture = self.as_mixture()
        return mixture is not None and mixture.count == 1

    @property
    def modes(self) -> int | None:
        """The number of components of a mixture, with narrow ones the number of modes; None for other laws."""
        mixture = self.as_mixture()
        return None if mixture is None else mixture.count

    def exact_flow(self, path: Path) -> Flow | None:
        """The flow along a path in closed form, if it is known and no mixture's; else None, and it is integrated.

        It goes in either direction, also to a time at which sigma is 0. What is to be differentiated through
        ``diffode.flow`` has to be written in torch.
        """
        return None

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the data, without noise, shape (B,); x is (B, dim)."""
        return self.noised_log_prob(x, 1.0, 0.0)

    @property
    def arithmetic(self) -> str:
        """What computes its noised laws, which decides their last digits: ``"torch"``, or ``"native"`` for compiled kernels."""
        return "torch"

    def content(self) -> str:
        """A hash of everything that defines the distribution, which enters the keys of stored results."""
        raise NotImplementedError(f"{type(self).__name__} must implement content() to be used in studies")
