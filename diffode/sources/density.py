"""Noise of any density, for data that are points: logistic, Laplace, Student-t by coordinates, or a function of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode import cache
from diffode.errors import ArgumentError, DiffodeError, FieldError, suggestion
from diffode.extensions import is_place, load_attribute
from diffode.numerics.gamma import log_gamma_ratio
from diffode.randomness import Randomness, generator_from, row_generators
from diffode.sources.law import Law
from diffode.sources.points import PointLaw
from diffode.sources.source import Source
from diffode.specs import format_spec, options_of
from diffode.targets import Target

#: Seed and number of the points at which a density of one's own is looked at for its content.
_LOOKED_AT = (0, 8)


def _logistic(u: Tensor, _: float) -> tuple[Tensor, Tensor]:
    size = u.abs()
    return (-size - 2 * torch.log1p(torch.exp(-size))).sum(-1), -torch.tanh(u / 2)


def _laplace(u: Tensor, _: float) -> tuple[Tensor, Tensor]:
    return (-u.abs() - math.log(2)).sum(-1), -u.sign()


def _student(u: Tensor, dof: float) -> tuple[Tensor, Tensor]:
    constant = log_gamma_ratio(dof / 2, 0.5) - 0.5 * math.log(dof * math.pi)
    return (constant - (dof + 1) / 2 * torch.log1p(u.square() / dof)).sum(-1), -(dof + 1) * u / (dof + u.square())


#: Log-density and slope of laws of independent coordinates, by name; the number is ``dof``.
_SHAPES: Mapping[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {
    "logistic": _logistic,
    "laplace": _laplace,
    "student": _student,
}
#: Their draws.
_DRAWS: Mapping[str, Callable[[np.random.Generator, float, tuple[int, int]], Any]] = {
    "logistic": lambda source, dof, size: source.logistic(size=size),
    "laplace": lambda source, dof, size: source.laplace(size=size),
    "student": lambda source, dof, size: source.standard_t(dof, size=size),
}


@dataclass(frozen=True)
class Density(Source):
    """Noise with a density q, for a target of points: independent coordinates of one law, or a q of one's own.

    Args:
        law: ``"logistic"`` (density 1/(4 cosh^2(u/2)), variance pi^2/3), ``"laplace"`` (e^-|u|/2, variance 2), or ``"student"``
            with ``dof``; or log q, a function from points (..., D) to (...) that torch can differentiate, or its place
            (``file.py:function``).
        dof: degrees of freedom of ``"student"``, > 0.
        draw: draws of a q of one's own, a function of (a NumPy generator, n, D) to an array (n, D), or its place.

    Raises:
        ArgumentError: for an unknown law, or a ``dof`` or ``draw`` that is missing or goes with another law.

    >>> import diffode
    >>> points = diffode.targets.GaussianMixture.from_points([[-1.0], [1.0]])
    >>> field = diffode.exact_field(points, "rectified_flow", source="density:law=laplace")
    >>> abs(float(field.denoised(torch.zeros(1, 1, dtype=torch.float64), 0.5)))
    0.0
    """

    law: Any = "logistic"
    dof: float | None = None
    draw: Any = None

    def __post_init__(self) -> None:
        own = callable(self.law) or (isinstance(self.law, str) and is_place(self.law))
        if not own and (not isinstance(self.law, str) or self.law not in _SHAPES):
            raise ArgumentError(
                f"law must be one of {', '.join(_SHAPES)}, or a function log q(u) or its place (file.py:function); got "
                f"{self.law!r:.60}{suggestion(self.law, _SHAPES) if isinstance(self.law, str) else ''}"
            )
        if (self.dof is not None) != (self.law == "student"):
            raise ArgumentError(f"dof goes with law='student', which needs it; got law={self.law!r:.40} and dof={self.dof!r}")
        if self.dof is not None and (
            isinstance(self.dof, bool) or not isinstance(self.dof, int | float) or not 0 < self.dof < math.inf
        ):
            raise ArgumentError(f"dof must be a positive number of degrees of freedom, got {self.dof!r}")
        if self.draw is not None and not own:
            raise ArgumentError(f"draw goes with a density of one's own; law={self.law!r} has draws")
        if not (self.draw is None or callable(self.draw) or (isinstance(self.draw, str) and is_place(self.draw))):
            raise ArgumentError(f"draw must be a function of (a NumPy generator, n, D), or its place, got {self.draw!r:.60}")

    @property
    @override
    def spec(self) -> str:
        options = options_of(self)
        return format_spec("density", {k: getattr(v, "__qualname__", v) if callable(v) else v for k, v in options.items()})

    def content(self) -> str:
        """Its spec for a known law; for a density of one's own, with the values at some points."""
        if self.law in _SHAPES:
            return self.spec
        seed, count = _LOOKED_AT
        u = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, count)))
        # The number of coordinates is not known here, so that a function may refuse this one.
        try:
            return cache.key_of(self.spec, *self.shape(u))
        except DiffodeError as error:
            raise NotImplementedError(f"a density of one's own has no content: {error}") from error

    @override
    def noised(self, target: Target) -> Law:
        mixture = target.as_mixture()
        if mixture is None or not mixture.is_discrete:
            raise ArgumentError(
                f"source {self.spec!r} goes with a target of points, targets.GaussianMixture.from_points(points); the law of "
                f"its sum with {target!r} has no closed form: take source='student:dof=...', or a mixture"
            )
        if self.law not in _SHAPES:
            self._look(mixture.dim)
        return PointLaw(mixture, self.shape)

    def _look(self, dim: int) -> None:
        """Raise FieldError unless a density of one's own is a number at some points; it may be 0 there."""
        seed, count = _LOOKED_AT
        value, slope = self.shape(torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim))))
        if bool(value.isnan().any()) or bool((value == math.inf).any()) or bool(slope[value > -math.inf].isnan().any()):
            raise FieldError("law must give log q, a number or -inf, with a finite gradient where it is a number; it gives NaN")

    def shape(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density at points (..., D), (...), and its gradient, (..., D)."""
        if isinstance(self.law, str) and self.law in _SHAPES:
            return _SHAPES[self.law](u, self.dof or 0.0)
        function = load_attribute(self.law) if isinstance(self.law, str) else self.law
        graph = torch.is_grad_enabled() and u.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            points = u if graph else u.detach().clone().requires_grad_(True)
            try:
                value = function(points)
            except Exception as error:  # anyone's function may raise anything
                raise FieldError(f"law can't be asked at points of shape {tuple(u.shape)}: {error}") from error
            if not isinstance(value, Tensor) or value.shape != u.shape[:-1] or not value.requires_grad:
                shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise FieldError(
                    f"law must give log q of shape {tuple(u.shape[:-1])}, with a gradient, for points {tuple(u.shape)}; "
                    f"got {shown}: sum over the last axis, in torch"
                )
            (slope,) = torch.autograd.grad(value.sum(), points, create_graph=graph)
        return (value, slope) if graph else (value.detach(), slope.detach())

    @override
    def sample(self, n: int, dim: int, *, generator: Randomness) -> Tensor:
        each = row_generators(generator, n)
        if each:
            return torch.cat([self.sample(1, dim, generator=one) for one in each])
        source = generator_from(generator if each is None else 0)
        seed = int(torch.randint(2**62, (1,), generator=source, device=source.device))
        numbers = np.random.Generator(np.random.PCG64(seed))
        if isinstance(self.law, str) and self.law in _DRAWS:
            drawn = _DRAWS[self.law](numbers, self.dof or 0.0, (n, dim))
        elif self.draw is None:
            raise ArgumentError("a density of one's own has no draws: give draw=, a function of (a NumPy generator, n, D)")
        else:
            draw = load_attribute(self.draw) if isinstance(self.draw, str) else self.draw
            try:
                drawn = np.asarray(draw(numbers, n, dim), dtype=np.float64)
            except Exception as error:  # anyone's function may raise anything
                raise ArgumentError(f"draw can't be asked for {n} points: {type(error).__name__}: {error}") from error
        found = torch.as_tensor(np.asarray(drawn), dtype=torch.float64)
        if found.shape != (n, dim) or not bool(torch.isfinite(found).all()):
            raise ArgumentError(
                f"draw must give {n} finite points of {dim} coordinates, ({n}, {dim}); got {tuple(found.shape)}"
            )
        return found.to(source.device)
