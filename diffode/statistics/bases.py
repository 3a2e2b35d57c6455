r"""Bases in which a covariance is diagonal: axes, given vectors, cosines and the Hartley form of Fourier's.

A basis turns a row x (D,) into coordinates (W,) in which every function f of the covariance is a multiplication,
:math:`f(C) x = Q\,(f_\lambda \cdot Q^+ x)`, and back. It has ``count`` directions, each with one variance; where directions
share one - all of them in a scale, those across the vectors of a low rank - the coordinates are more than the directions.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError

#: Largest deviation of the products of a basis' vectors from those of orthonormal ones.
_ORTHONORMAL = 1e-8


def lasting(made: Tensor) -> Tensor:
    """A tensor that later runs can differentiate through, though it was made in inference mode."""
    if not made.is_inference():
        return made
    with torch.inference_mode(False):
        return made.clone()


class Basis(ABC):
    """An orthonormal basis of R^D.

    Attributes:
        dim: D.
    """

    dim: int
    #: Its name, as in a file.
    kind: str

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of directions, each with its own variance."""

    @property
    def width(self) -> int:
        """Number W of coordinates of a row."""
        return self.dim

    @property
    def multiplicity(self) -> Tensor:
        """Number of dimensions of each direction, (count,) float64; together D."""
        return torch.ones(self.count, dtype=torch.float64)

    @abstractmethod
    def into(self, x: Tensor) -> Tensor:
        """The coordinates (B, W) of rows x (B, D)."""

    @abstractmethod
    def back(self, coordinates: Tensor) -> Tensor:
        """The rows (B, D) of coordinates (B, W)."""

    def spread(self, values: Tensor) -> Tensor:
        """Numbers (..., count) of the directions as numbers (..., W) of the coordinates, or (..., 1) if they are all one."""
        return values

    def of_directions(self, coordinates: Tensor) -> Tensor:
        """Coordinates (W,) of one row as its lengths along the directions, (count,); of shared ones the length together."""
        return coordinates

    def to(self, like: Tensor) -> Self:
        """The same basis for rows of the dtype and device of ``like``."""
        return self

    def mean_square(self, x: Tensor) -> Tensor:
        """The mean over rows x (n, D) of the square along each direction, (count,); of shared ones the mean of theirs."""
        return self.into(x).square().mean(0)


@dataclass(frozen=True)
class Axes(Basis):
    """The coordinates themselves; ``alike`` says that they share one variance, so that the basis has one direction."""

    dim: int
    alike: bool = False

    @property
    def kind(self) -> str:  # type: ignore[override]
        """``scale`` or ``diagonal``."""
        return "scale" if self.alike else "diagonal"

    @property
    @override
    def count(self) -> int:
        return 1 if self.alike else self.dim

    @property
    @override
    def multiplicity(self) -> Tensor:
        return torch.full((1,), float(self.dim), dtype=torch.float64) if self.alike else super().multiplicity

    @override
    def into(self, x: Tensor) -> Tensor:
        return x

    @override
    def back(self, coordinates: Tensor) -> Tensor:
        return coordinates

    @override
    def of_directions(self, coordinates: Tensor) -> Tensor:
        return coordinates.norm().reshape(1) if self.alike else coordinates

    @override
    def mean_square(self, x: Tensor) -> Tensor:
        each = super().mean_square(x)
        return each.mean().reshape(1) if self.alike else each


@dataclass(frozen=True, eq=False)
class Vectors(Basis):
    """Orthonormal columns ``matrix`` (D, R), and for R < D all that lies across them as one more direction.

    Coordinates are the R along the vectors and, for R < D, the D of the part across.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", lasting(self.matrix))
        matrix = self.matrix
        if matrix.ndim != 2 or not 1 <= matrix.shape[1] <= matrix.shape[0]:
            raise ArgumentError(f"matrix must be (D, R) with 1 <= R <= D, got {tuple(matrix.shape)}")
        unit = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        allowed = _ORTHONORMAL if matrix.dtype == torch.float64 else 1e-3
        if not bool(((matrix.T @ matrix - unit).abs() < allowed).all()):
            raise ArgumentError("the columns of matrix must be orthonormal: take them from torch.linalg.qr or eigh")

    @property
    def dim(self) -> int:  # type: ignore[override]
        """D."""
        return self.matrix.shape[0]

    @property
    def rank(self) -> int:
        """R."""
        return self.matrix.shape[1]

    @property
    def full(self) -> bool:
        """Whether nothing lies across."""
        return self.rank == self.dim

    @property
    def kind(self) -> str:  # type: ignore[override]
        """``full`` or ``low_rank``."""
        return "full" if self.full else "low_rank"

    @property
    @override
    def count(self) -> int:
        return self.rank + (not self.full)

    @property
    @override
    def width(self) -> int:
        return self.rank + (0 if self.full else self.dim)

    @property
    @override
    def multiplicity(self) -> Tensor:
        across = [] if self.full else [float(self.dim - self.rank)]
        return torch.tensor([1.0] * self.rank + across, dtype=torch.float64)

    @override
    def into(self, x: Tensor) -> Tensor:
        along = x @ self.matrix
        return along if self.full else torch.cat([along, x - along @ self.matrix.T], dim=1)

    @override
    def back(self, coordinates: Tensor) -> Tensor:
        along = coordinates[:, : self.rank] @ self.matrix.T
        return along if self.full else along + coordinates[:, self.rank :]

    @override
    def spread(self, values: Tensor) -> Tensor:
        if self.full:
            return values
        return torch.cat([values[..., :-1], values[..., -1:].expand(*values.shape[:-1], self.dim)], dim=-1)

    @override
    def of_directions(self, coordinates: Tensor) -> Tensor:
        return coordinates if self.full else torch.cat([coordinates[: self.rank], coordinates[self.rank :].norm().reshape(1)])

    @override
    def to(self, like: Tensor) -> Vectors:
        return Vectors(self.matrix.to(like)) if like.dtype != self.matrix.dtype or like.device != self.matrix.device else self

    @override
    def mean_square(self, x: Tensor) -> Tensor:
        each = super().mean_square(x)
        if self.full:
            return each
        return torch.cat([each[: self.rank], each[self.rank :].sum().reshape(1) / (self.dim - self.rank)])


@dataclass(frozen=True)
class _OfShape(Basis):
    """A basis of waves on the last two axes (one, if there is one) of rows of a ``shape`` such as (C, H, W)."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.shape or not all(type(size) is int and size >= 1 for size in self.shape):
            raise ArgumentError(f"shape must be the sizes of a row, such as (3, 32, 32), got {self.shape!r:.60}")

    @property
    def dim(self) -> int:  # type: ignore[override]
        """D."""
        return math.prod(self.shape)

    @property
    @override
    def count(self) -> int:
        return self.dim

    @override
    def into(self, x: Tensor) -> Tensor:
        return self._turned(x.reshape(-1, *self.shape), True).reshape(-1, self.dim)

    @override
    def back(self, coordinates: Tensor) -> Tensor:
        return self._turned(coordinates.reshape(-1, *self.shape), False).reshape(-1, self.dim)

    @abstractmethod
    def _turned(self, x: Tensor, inward: bool) -> Tensor:
        """Rows (B, *shape) in the waves, or from them."""


@dataclass(frozen=True)
class Cosines(_OfShape):
    """The orthonormal discrete cosine transform (DCT-II): nearly diagonal for images, whose edges do not meet."""

    kind = "cosine"

    @override
    def _turned(self, x: Tensor, inward: bool) -> Tensor:
        for axis in range(-min(2, len(self.shape)), 0):
            waves = _cosines(self.shape[axis]).to(x)
            x = torch.tensordot(x.movedim(axis, -1), waves.T if inward else waves, dims=1).movedim(-1, axis)
        return x


@dataclass(frozen=True)
class Fourier(_OfShape):
    """The Hartley transform, the real form of Fourier's: diagonal for data whose law no shift around the edges changes."""

    kind = "fourier"

    @override
    def _turned(self, x: Tensor, inward: bool) -> Tensor:
        # Its matrix is symmetric and its own inverse.
        waves: Tensor = torch.fft.fftn(x, dim=tuple(range(-min(2, len(self.shape)), 0)), norm="ortho")
        turned: Tensor = waves.real - waves.imag
        return turned


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _cosines(size: int) -> Tensor:
    """The DCT-II of a length as an orthogonal matrix, a wave a row, float64."""
    wave, place = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * wave * (place + 0.5) / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return torch.from_numpy(matrix)
