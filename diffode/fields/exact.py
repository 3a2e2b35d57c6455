"""The exact field of a target noised along a path."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffode.errors import ArgumentError, FieldError
from diffode.fields.field import Field, Prediction
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.paths.path import held
from diffode.randomness import Randomness, generator_from, normal, row_generators
from diffode.statistics import Statistics
from diffode.targets import GaussianMixture, Target
from diffode.targets import get as get_target
from diffode.targets.target import Scalar


class ExactField(Field):
    """Every view of a target's noised law p(x_t) in closed form.

    ``x`` is (B, *shape) with the target's ``dim`` coordinates in each row, float32 or float64; ``t`` is a float or a (B,)
    tensor, in the path's domain; ArgumentError for others. No setting of torch (autocast, the default dtype, the precision of
    matrix products) changes an answer. It has the attribute ``target`` beside those of :class:`Field`.
    """

    path: Path

    def __init__(self, target: Target | str, path: Path | str):
        target, path = get_target(target), get_path(path)
        super().__init__(self._velocity, "velocity", path, scale=target.scale, probe=False)
        self.path = path
        self.target = target
        self.dim, self.shape = target.dim, (target.dim,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r} on {self.path.spec})"

    @property
    def statistics(self) -> Statistics | None:
        """Mean and covariance of the target, computed once, unless others were set."""
        if self._statistics is None:
            self._statistics = Statistics.of_target(self.target)
        return self._statistics

    @statistics.setter
    def statistics(self, known: Statistics | None) -> None:
        Field.statistics.__set__(self, known)  # type: ignore[attr-defined]

    def predict(self, prediction: Prediction, x: Tensor, t: Scalar) -> Tensor:
        """One of the four views by its name, in the shape and dtype of x; counts one evaluation."""
        self.spend(1)
        return self._view(prediction, x, t)

    def log_prob(self, x: Tensor, t: Scalar) -> Tensor:
        """log p_t(x), shape (B,)."""
        flat, alpha, sigma, _ = self._at(x, t)
        return self.target.noised_log_prob(flat, alpha, sigma)

    def divergence(self, x: Tensor, t: Scalar) -> Tensor:
        """The divergence of the velocity, shape (B,), in closed form; FieldError where alpha is 0."""
        flat, alpha, sigma, when = self._at(x, t)
        gone = when[alpha == 0] if isinstance(alpha, Tensor) and isinstance(when, Tensor) else [when] * (alpha == 0)
        if len(gone):
            at = float(gone[0])
            raise FieldError(f"the divergence is not available at t={at:g}, where alpha is 0; ask at a smaller t")
        # v = (alpha'/alpha) x - (sigma sigma' - sigma^2 alpha'/alpha) score; the second factor is g^2/2.
        drift = self.path.drift(when)
        half_square = self.path.half_variance_rate(when) - sigma**2 * drift
        # Points of float32 go in as float64: each factor may leave the range of float32, their product hardly ever does.
        laplacian = self.target.noised_score_divergence(flat.to(torch.float64), alpha, sigma)
        result = _vector(drift, laplacian) * flat.shape[1] - _vector(half_square, laplacian) * laplacian
        return result.to(x.dtype)

    def prior(self, n: int, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw n points of the exact law at ``path.t_max``, shape (n, dim)."""
        return self.marginal(n, self.path.t_max, generator=generator, dtype=dtype)

    def marginal(self, n: int, t: float, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw n points of the exact law at time t, shape (n, dim); of a list of n generators each gives one point."""
        each = row_generators(generator, n)
        if each:
            return torch.cat([self.marginal(1, t, generator=one, dtype=dtype) for one in each])
        self.path.check_times(float(t))
        source = generator_from(generator if each is None else 0)
        data = self.target.sample(n, generator=source)
        noise = normal(data.shape, generator=source)
        return held(self.path.alpha(float(t)) * data + self.path.sigma(float(t)) * noise, dtype)

    def _velocity(self, x: Tensor, t: Scalar) -> Tensor:
        return self._view("velocity", x, t)

    def _view(self, prediction: Prediction, x: Tensor, t: Scalar) -> Tensor:
        flat, alpha, sigma, when = self._at(x, t)
        if prediction == "denoised":
            weights: tuple[Scalar, Scalar] = (1.0, 0.0)
        elif prediction == "noise":
            weights = (0.0, -sigma)
        elif prediction == "score":
            weights = (0.0, 1.0)
        else:
            weights = (self.path.alpha_derivative(when), -self.path.half_variance_rate(when))
        view = self.target.noised_view(flat, alpha, sigma, *weights)
        return view if flat is x else view.reshape(x.shape)

    def _at(self, x: Tensor, t: Scalar) -> tuple[Tensor, Scalar, Scalar, Scalar]:
        """x as (B, dim); alpha, sigma and the time as floats, or as (B, 1) float64 tensors for a time per row."""
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(f"x must be a float32 or float64 tensor, got {kind}")
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.dim:
            raise ArgumentError(f"x must be (B, {self.dim}) or (B, *shape) with {self.dim} numbers a row, got {tuple(x.shape)}")
        when: Scalar
        if isinstance(t, Tensor) and t.ndim:
            if t.shape != (x.shape[0],):
                raise ArgumentError(f"t must be a number or a time per row, shape ({x.shape[0]},); got {tuple(t.shape)}")
            when = t.to(x.device, torch.float64)[:, None]
        else:
            try:
                when = float(t)
            except (TypeError, ValueError, RuntimeError):
                raise ArgumentError(f"t must be a number or a tensor of times, got {t!r}") from None
        self.path.check_times(when)
        return x if x.ndim == 2 else x.flatten(1), self.path.alpha(when), self.path.sigma(when), when


def exact_field(target: Target | str, path: Path | str) -> ExactField:
    """The exact field of a target (or its spec) along a path (or its spec); UnknownNameError for an unknown name.

    >>> field = exact_field("ring8", "edm")
    >>> field.denoised(torch.zeros(1, 2, dtype=torch.float64), 80.0).abs().max().item() < 1e-12
    True
    """
    return ExactField(target, path)


def mixture_of(field: Field) -> GaussianMixture | None:
    """The mixture of Gaussians whose exact field a field is; None for a field of another law, or one that is not exact."""
    return field.target.as_mixture() if isinstance(field, ExactField) else None


def _vector(value: Scalar, x: Tensor) -> Scalar:
    """A per-row coefficient (B, 1) as (B,) in x's dtype; a number stays a number."""
    return value.reshape(-1).to(x) if isinstance(value, Tensor) else value
