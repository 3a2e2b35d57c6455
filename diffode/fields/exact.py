"""The exact field of a target noised along a path."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffode.errors import ArgumentError, FieldError
from diffode.fields.field import Field, Prediction
from diffode.fields.rotated import RotatedField, Rotation
from diffode.paths import Interval, Path
from diffode.paths import get as get_path
from diffode.paths.path import held
from diffode.randomness import Randomness, generator_from, normal, row_generators
from diffode.sources import Law, Source, Weights
from diffode.sources import get as get_source
from diffode.statistics import Statistics
from diffode.targets import GaussianMixture, Target
from diffode.targets import get as get_target
from diffode.targets.target import Scalar


class ExactField(Field):
    """Every view of a target's noised law p(x_t) in closed form.

    ``x`` is (B, *shape) with the target's ``dim`` coordinates in each row, float32 or float64; ``t`` is a float or a (B,)
    tensor, in the path's domain; ArgumentError for others. No setting of torch (autocast, the default dtype, the precision of
    matrix products) changes an answer. It has the attribute ``target`` beside those of :class:`Field`.

    With a ``source`` the noise x_1 is no normal one: ``noise`` is E[x_1|x], and the score no multiple of it. ``law`` is then
    the law of alpha x_0 + sigma x_1, else None.
    """

    path: Path

    def __init__(self, target: Target | str, path: Path | str, source: Source | Target | str | None = None):
        target, path, source = get_target(target), get_path(path), get_source(source)
        super().__init__(self._velocity, "velocity", path, scale=target.scale, probe=False)
        self.path = path
        self.target = target
        self.source = source
        self.law: Law | None = None if source is None else source.noised(target)
        self.dim, self.shape = target.dim, (target.dim,)

    def __repr__(self) -> str:
        noise = "" if self.source is None else f" from {self.source.spec}"
        return f"{type(self).__name__}({self.target!r} on {self.path.spec}{noise})"

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
        if self.law is not None:
            return self._finite(self.law.log_prob(flat, alpha, sigma), "log-density", t)
        return self.target.noised_log_prob(flat, alpha, sigma)

    def divergence(self, x: Tensor, t: Scalar) -> Tensor:
        """The divergence of the velocity, shape (B,), in closed form; FieldError where alpha is 0."""
        flat, alpha, sigma, when = self._at(x, t)
        gone = when[alpha == 0] if isinstance(alpha, Tensor) and isinstance(when, Tensor) else [when] * (alpha == 0)
        if len(gone):
            at = float(gone[0])
            raise FieldError(f"the divergence is not available at t={at:g}, where alpha is 0; ask at a smaller t")
        if self.law is not None:
            spread = self.law.divergence(flat.to(torch.float64), alpha, sigma, self._weights("velocity", alpha, sigma, when))
            return self._finite(spread.to(x.dtype), "divergence", t)
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
        shape = data.shape
        noise = normal(shape, generator=source) if self.source is None else self.source.sample(*shape, generator=source)
        return held(self.path.alpha(float(t)) * data + self.path.sigma(float(t)) * noise, dtype)

    def rotated(self, J: Rotation) -> RotatedField:
        """The field with the velocity v + J score and the same law at every time; J is skew, (dim, dim) or a function of t.

        It is a plain ODE without a path, see :class:`diffode.fields.RotatedField`; ArgumentError for a J that is not skew.
        """
        return RotatedField(self, J, Interval(self.path.t_min, self.path.t_max))

    def _velocity(self, x: Tensor, t: Scalar) -> Tensor:
        return self._view("velocity", x, t)

    def _view(self, prediction: Prediction, x: Tensor, t: Scalar) -> Tensor:
        flat, alpha, sigma, when = self._at(x, t)
        if self.law is not None:
            return self._sourced(self.law, prediction, flat, alpha, sigma, when).reshape(x.shape)
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

    def _sourced(self, law: Law, view: Prediction, x: Tensor, alpha: Scalar, sigma: Scalar, when: Scalar) -> Tensor:
        """A view with a source, (B, dim)."""
        if view == "score":
            return self._finite(law.score(x, alpha, sigma), view, when)
        return self._finite(law.view(x, alpha, sigma, self._weights(view, alpha, sigma, when)), view, when)

    def _weights(self, view: Prediction, alpha: Scalar, sigma: Scalar, when: Scalar) -> Weights:
        """A view in terms of E[x_0|x] and E[x_1|x]."""
        if view == "denoised":
            return Weights(1.0, 0.0, 0.0)
        if view == "noise":
            return Weights(0.0, 1.0, sigma)
        try:
            rate = self.path.sigma_derivative(when)
        except ZeroDivisionError:
            rate = math.inf
        return Weights(self.path.alpha_derivative(when), rate, self.path.half_variance_rate(when))

    def _finite(self, answer: Tensor, what: str, when: Scalar) -> Tensor:
        """The answer of a law with a source, whose noise may have no finite mean where sigma' is infinite."""
        if isinstance(when, Tensor) or not math.isfinite(when) or bool(torch.isfinite(answer.detach().sum())):
            return answer
        if self.path.sigma(when) > 0 and self.path.alpha(when) > 0:
            return answer
        raise FieldError(f"the {what} is not finite at t={when:g}, where alpha or sigma is 0: ask at a time with both")

    def _at(self, x: Tensor, t: Scalar) -> tuple[Tensor, Scalar, Scalar, Scalar]:
        """x as (B, dim); alpha, sigma and the time as floats, or as (B, 1) float64 tensors for a time per row."""
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(f"x must be a float32 or float64 tensor, got {kind}")
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.dim:
            raise ArgumentError(f"x must be (B, {self.dim}) or (B, *shape) with {self.dim} numbers a row, got {tuple(x.shape)}")
        when: Scalar
        if isinstance(t, Tensor) and not t.ndim and t.requires_grad and torch.is_grad_enabled():
            # A number that is differentiated is a time for every row.
            t = t.expand(len(x))
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


def exact_field(target: Target | str, path: Path | str, source: Source | Target | str | None = None) -> ExactField:
    """The exact field of a target (or its spec) along a path (or its spec).

    Args:
        target: the law of the data x_0.
        path: alpha and sigma.
        source: the law of the noise x_1, see :func:`diffode.sources.get`; N(0, I) unless given.

    Raises:
        UnknownNameError: for an unknown name.
        ArgumentError: for a source whose law with this target has no closed form.

    >>> poisson = exact_field("ring8", "edm", source="student:dof=1")
    >>> poisson.denoised(torch.zeros(1, 2, dtype=torch.float64), 80.0).abs().max().item() < 1e-12
    True
    >>> field = exact_field("ring8", "edm")
    >>> field.denoised(torch.zeros(1, 2, dtype=torch.float64), 80.0).abs().max().item() < 1e-12
    True
    """
    return ExactField(target, path, source)


def mixture_of(field: Field) -> GaussianMixture | None:
    """The mixture of Gaussians whose exact field, with normal noise, a field is; None for a field of any other law."""
    return field.target.as_mixture() if isinstance(field, ExactField) and field.source is None else None


def _vector(value: Scalar, x: Tensor) -> Scalar:
    """A per-row coefficient (B, 1) as (B,) in x's dtype; a number stays a number."""
    return value.reshape(-1).to(x) if isinstance(value, Tensor) else value
