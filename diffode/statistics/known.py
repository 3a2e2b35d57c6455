r"""What is known of the data before a run: their mean and covariance, and so the Gaussian whose field theirs is at high noise.

With m the mean and :math:`C = Q\,\mathrm{diag}(L)\,Q^T` the covariance, that Gaussian's law at a time is
:math:`N(\alpha m,\ \alpha^2 C + \sigma^2)`, and its flow multiplies a deviation along direction i by

.. math::
    \sqrt{\frac{\alpha_t^2 L_i + \sigma_t^2}{\alpha_s^2 L_i + \sigma_s^2}} .

The field of other data differs from its field by the third and higher cumulants, which fade as powers of L/rho^2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from diffode.arguments import number_of
from diffode.errors import ArgumentError
from diffode.paths import Path
from diffode.statistics import files
from diffode.statistics.bases import Axes, Basis, Cosines, Fourier, Vectors, lasting
from diffode.targets import Target
from diffode.targets import get as get_target
from diffode.tensor_files import content_of

#: The kinds of covariances.
KINDS = ("scale", "diagonal", "low_rank", "full", "cosine", "fourier")
#: Largest asymmetry, and largest negative eigenvalue, of a covariance relative to its largest entry, that are rounding.
_ROUNDING = 1e-9
#: Largest difference between means and covariances that are the same but for rounding, relative to the largest of each.
_SAME = 1e-9
#: Largest mean, and largest root of a variance; its square is a number of float32 too.
_LARGEST = 1e15


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of the data.

    Make one with :meth:`of_target`, :meth:`of_samples`, :meth:`of_covariance`, ``diffode.fields.estimate_statistics`` or
    :meth:`load`.

    Attributes:
        mean: mean of the data, (D,) float64.
        variances: variance of the data along each direction of the basis, (E,) float64.
        basis: the directions.
        gaussian: whether the data are known to be one Gaussian, of which mean and covariance say all.
        source: where the numbers are from, in words.
        rows: number of rows on which a field was asked for them.

    Raises:
        ArgumentError: for numbers that are no mean or no variances.

    >>> known = Statistics.of_target("digits-gmm10")
    >>> known
    Statistics(full, 64 dimensions, scale 0.55, largest deviation 1.67, of target digits-gmm10)
    """

    mean: Tensor
    variances: Tensor
    basis: Basis
    gaussian: bool = False
    source: str = ""
    rows: int = 0

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("variances", self.variances)):
            if not isinstance(value, Tensor) or value.dtype != torch.float64 or value.ndim != 1:
                raise ArgumentError(f"{name} must be a float64 tensor with one axis, got {value!r:.80}")
            object.__setattr__(self, name, lasting(value))
        if len(self.mean) != self.basis.dim:
            raise ArgumentError(f"mean must have the {self.basis.dim} coordinates of the basis, got {len(self.mean)}")
        if len(self.variances) != self.basis.count:
            raise ArgumentError(
                f"variances must be {self.basis.count}, one a direction of the basis, got {len(self.variances)}"
            )
        if not bool((self.mean.abs() <= _LARGEST).all()):
            raise ArgumentError(f"mean must be finite and at most {_LARGEST:g}, got {self.mean!r:.80}")
        if not bool(((self.variances >= 0) & (self.variances <= _LARGEST**2)).all()):
            raise ArgumentError(
                f"variances must be >= 0 and at most {_LARGEST**2:g}, got {self.variances!r:.80}: they are no covariance's"
            )

    def __repr__(self) -> str:
        dims = f"{self.dim} dimension{'s' if self.dim != 1 else ''}"
        source = f", {self.source}" if self.source else ""
        return f"Statistics({self.kind}, {dims}, scale {self.scale:.3g}, largest deviation {self.largest:.3g}{source})"

    @property
    def dim(self) -> int:
        """Number of coordinates D of a row."""
        return self.basis.dim

    @property
    def kind(self) -> str:
        """One of ``scale``, ``diagonal``, ``low_rank``, ``full``, ``cosine``, ``fourier``."""
        return self.basis.kind

    @functools.cached_property
    def scale(self) -> float:
        """Root mean variance of the coordinates, the unit of errors; 1 for a single point."""
        return math.sqrt(float(self.basis.multiplicity @ self.variances) / self.dim) or 1.0

    @functools.cached_property
    def largest(self) -> float:
        """Root of the largest variance of a direction."""
        return math.sqrt(float(self.variances.max()))

    @property
    def covariance(self) -> Tensor:
        """The covariance, (D, D) float64; it is made anew each time."""
        whole = self.basis.back(self.basis.into(torch.eye(self.dim, dtype=torch.float64)) * self.basis.spread(self.variances))
        return (whole + whole.T) / 2

    def spectral_mean(self, power: float) -> float:
        """sum_i L_i^power over all D dimensions."""
        return float(self.basis.multiplicity @ self.variances.pow(power))

    def deviations(self, path: Path, t: float) -> Tensor:
        """Standard deviation of the noised Gaussian along each direction at a time, sqrt(alpha^2 L + sigma^2), (E,)."""
        return torch.hypot(path.alpha(t) * self.variances.sqrt(), torch.full_like(self.variances, path.sigma(t)))

    def mean_along(self, count: int) -> Tensor:
        """The mean along ``count`` directions, (count,), for a law that is carried direction by direction.

        ``count`` is the number of directions, or D where the basis has D coordinates. ArgumentError for another.
        """
        coordinates = self.basis.into(self.mean[None])[0]
        if count == len(coordinates) == self.dim:
            return coordinates
        if count == self.basis.count:
            return self.basis.of_directions(coordinates)
        if self.basis.count == 1 and not bool(self.mean.any()):
            return self.mean.new_zeros(count)
        raise ArgumentError(
            f"eigenvalues must be one for each of the {self.basis.count} directions of the table's statistics, got {count}"
        )

    def flow(self, x: Tensor, path: Path, s: float, t: float) -> Tensor:
        """The exact flow of the Gaussian from points x (B, *shape) at time s to time t.

        >>> import diffode
        >>> known, edm = Statistics.of_target("gauss2d"), diffode.paths.get("edm")
        >>> x = torch.ones(1, 2, dtype=torch.float64)
        >>> exact = diffode.reference(diffode.exact_field("gauss2d", edm), x, 80.0, 0.002).x
        >>> bool((known.flow(x, edm, 80.0, 0.002) - exact).abs().max() < 1e-12)
        True
        """
        self.check_dim(math.prod(x.shape[1:]))
        factor = self.basis.spread(self.deviations(path, t) / self.deviations(path, s))
        mean, basis = self.mean.to(x), self.basis.to(x)
        offset = basis.into(x.flatten(1) - path.alpha(s) * mean)
        return (basis.back(offset * factor.to(x)) + path.alpha(t) * mean).reshape(x.shape)

    def noise(self, x: Tensor, path: Path, t: float) -> Tensor:
        """The noise prediction of the Gaussian at points x (B, *shape) at time t.

        >>> import diffode
        >>> known, field = Statistics.of_target("gauss2d"), diffode.exact_field("gauss2d", "vp")
        >>> x = torch.ones(1, 2, dtype=torch.float64)
        >>> bool((known.noise(x, field.path, 0.5) - field.noise(x, 0.5)).abs().max() < 1e-12)
        True
        """
        self.check_dim(math.prod(x.shape[1:]))
        pull = self.basis.spread(path.sigma(t) / self.deviations(path, t).square())
        basis = self.basis.to(x)
        offset = basis.into(x.flatten(1) - path.alpha(t) * self.mean.to(x))
        return basis.back(offset * pull.to(x)).reshape(x.shape)

    def scaled(self, unit: float) -> Statistics:
        """The statistics of the data multiplied by ``unit``.

        >>> Statistics.of_target("ring8").scaled(2.0).scale / Statistics.of_target("ring8").scale
        2.0
        """
        unit = number_of("unit", unit)
        if not unit:
            raise ArgumentError("unit must not be 0, which leaves nothing of the data")
        if unit == 1.0:
            return self
        return replace(self, mean=self.mean * unit, variances=self.variances * unit**2)

    def check_dim(self, dim: int) -> None:
        """Raise ArgumentError unless rows have as many coordinates as these data."""
        if dim != self.dim:
            raise ArgumentError(
                f"statistics are of data with {self.dim} coordinates, but rows have {dim}: give those of the same data"
            )

    def reduced(self, kind: str, *, rank: int | None = None, shape: Sequence[int] | None = None) -> Statistics:
        """The statistics of another kind that have the same variance along each of its directions.

        Args:
            kind: one of ``KINDS``.
            rank: number of directions of ``low_rank`` that keep their variance.
            shape: shape of a row, for ``cosine`` and ``fourier``.

        >>> Statistics.of_target("digits-gmm10").reduced("low_rank", rank=8).variances.shape
        torch.Size([9])
        """
        if kind == self.kind and rank is None and shape is None:
            return self
        if kind == "scale" and rank is None:
            # The mean variance needs no covariance, which in many dimensions does not fit into memory.
            made = Statistics(
                self.mean, self.mean.new_tensor([self.spectral_mean(1) / len(self.mean)]), Axes(len(self.mean), True)
            )
        else:
            made = _in_kind(self.mean, self.covariance, kind, rank, shape)
        return replace(made, source=self.source, rows=self.rows, gaussian=self.gaussian and kind == "full")

    @classmethod
    def of_covariance(
        cls, mean: Any, covariance: Any, kind: str = "full", *, rank: int | None = None, shape: Sequence[int] | None = None,
        gaussian: bool = False,
    ) -> Statistics:  # fmt: skip
        """From a mean (D,) and a covariance: a matrix (D, D), variances (D,) of the coordinates, or one for all of them.

        ``kind``, ``rank`` and ``shape`` are those of :meth:`reduced`, and the default keeps what is given.

        Raises:
            ArgumentError: for a matrix that is not symmetric or has negative eigenvalues, and for wrong shapes.
        """
        centre, spread = _real(mean, "mean"), _real(covariance, "covariance")
        if centre.ndim != 1 or not len(centre):
            raise ArgumentError(f"mean must be (D,), got shape {tuple(centre.shape)}")
        dim = len(centre)
        if spread.ndim < 2 and spread.numel() in (1, dim):
            alike = spread.numel() == 1 and dim != 1 if spread.ndim else True
            given = cls(centre, spread.reshape(-1), Axes(dim, alike), source="given")
            return given if kind == "full" else given.reduced(kind, rank=rank, shape=shape)
        if spread.shape != (dim, dim):
            raise ArgumentError(
                f"covariance must be a matrix ({dim}, {dim}), {dim} variances or one number, got shape {tuple(spread.shape)}"
            )
        return replace(_in_kind(centre, spread, kind, rank, shape), source="given", gaussian=gaussian)

    @classmethod
    def of_target(
        cls, target: Target | str, kind: str = "full", *, rank: int | None = None, shape: Sequence[int] | None = None
    ) -> Statistics:
        """The exact ones of a target or its spec; see :meth:`reduced` for the other arguments."""
        data = get_target(target)
        source = f"of target {target}" if isinstance(target, str) else f"of {data!r}"
        if kind in ("scale", "diagonal"):
            # No matrix is needed for these.
            variance = data.variance.detach().cpu().to(torch.float64)
            found = variance.mean().reshape(1) if kind == "scale" else variance
            made = cls(data.mean.detach().cpu().to(torch.float64), found, Axes(data.dim, kind == "scale"))
        else:
            made = _in_kind(_real(data.mean, "mean"), _real(data.covariance, "covariance"), kind, rank, shape)
        return replace(made, source=source, gaussian=data.is_gaussian and kind == "full")

    @classmethod
    def of_samples(
        cls, samples: Tensor, kind: str = "full", *, rank: int | None = None, shape: Sequence[int] | None = None
    ) -> Statistics:
        """Those of samples (n, *shape), at least two: their mean and their variances about it, over n - 1.

        ``shape`` is that of a row unless given.
        """
        if not isinstance(samples, Tensor) or samples.ndim < 2 or len(samples) < 2 or not samples.numel():
            raise ArgumentError(
                f"samples must be at least two rows (n, *shape), got {getattr(samples, 'shape', samples)!r:.80}"
            )
        x = _real(samples, "samples").flatten(1)
        mean = x.mean(0)
        centred = x - mean
        kept = math.sqrt(len(x) / (len(x) - 1))
        own = shape if shape is not None else tuple(samples.shape[1:])
        source = f"of {len(x)} samples"
        if kind in ("scale", "diagonal", "cosine", "fourier"):
            basis = _waves(kind, own, x.shape[1]) if kind in ("cosine", "fourier") else Axes(x.shape[1], kind == "scale")
            return cls(mean, basis.mean_square(centred * kept), basis, source=source)
        return replace(_in_kind(mean, centred.T @ centred / (len(x) - 1), kind, rank, shape), source=source)

    @functools.cached_property
    def content(self) -> str:
        """A hash of all numbers that a run depends on."""
        basis = [self.basis.matrix] if isinstance(self.basis, Vectors) else []
        named = torch.tensor([KINDS.index(self.kind), self.gaussian], dtype=torch.float64)
        return content_of((named, self.mean, self.variances, *basis))

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Statistics):
            return NotImplemented
        return self.content == other.content and getattr(self.basis, "shape", None) == getattr(other.basis, "shape", None)

    @override
    def __hash__(self) -> int:
        return hash(self.content)

    def alike(self, other: object) -> bool:
        """Whether they say the same of the data but for rounding, which two machines or versions do differently.

        >>> known = Statistics.of_target("moons")
        >>> known.alike(known.scaled(1 + 1e-14)), known.alike(known.scaled(1.001)), known.alike(known.reduced("scale"))
        (True, False, False)
        """
        if not isinstance(other, Statistics):
            return False
        if (self.kind, self.dim, self.gaussian) != (other.kind, other.dim, other.gaussian):
            return False
        # Directions of equal variance are anyone's choice, so that the directions themselves are not compared.
        ours, theirs = (one.covariance if isinstance(one.basis, Vectors) else one.variances for one in (self, other))
        if getattr(self.basis, "shape", None) != getattr(other.basis, "shape", None):
            return False
        mean, variance = (max(float(one.abs().max()), 1e-300) for one in (self.mean, self.variances))
        apart = float((self.mean - other.mean).abs().max())
        # A mean of 0 may be that only to rounding of the deviations.
        return apart <= _SAME * max(mean, math.sqrt(variance)) and float((ours - theirs).abs().max()) <= _SAME * variance

    def save(self, file: str | FilePath) -> None:
        """Write them as safetensors with their description as JSON metadata; ArgumentError if that is not possible."""
        files.write(file, *self.parts())

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a file and its description."""
        tensors = {"mean": self.mean, "variances": self.variances}
        if isinstance(self.basis, Vectors):
            tensors["matrix"] = self.basis.matrix
        shape = list(getattr(self.basis, "shape", ())) or None
        told = {"kind": self.kind, "shape": shape, "gaussian": self.gaussian, "source": self.source, "rows": self.rows}
        return {name: part.detach().contiguous() for name, part in tensors.items()}, told

    @classmethod
    def load(cls, file: str | FilePath) -> Statistics:
        """Read what :meth:`save` wrote; FileFormatError for any other file, ArgumentError if it can't be read."""
        return files.read(file, cls.of_parts)

    @classmethod
    def of_parts(cls, tensors: dict[str, Tensor], told: dict[str, Any]) -> Statistics:
        """From the tensors of a file and its description, which :mod:`diffode.statistics.files` has checked."""
        kind, dim = told["kind"], len(tensors["mean"])
        if kind in ("full", "low_rank"):
            basis: Basis = Vectors(tensors["matrix"])
        elif kind in ("cosine", "fourier"):
            basis = _waves(kind, told["shape"], dim)
        else:
            basis = Axes(dim, kind == "scale")
        if basis.kind != kind:
            raise ArgumentError(f"a matrix of shape {tuple(tensors['matrix'].shape)} is not of kind {kind!r}")
        return cls(tensors["mean"], tensors["variances"], basis, told["gaussian"], told["source"], told["rows"])


def _real(value: Any, name: str) -> Tensor:
    """A finite float64 tensor on the CPU; ArgumentError if the value is none."""
    try:
        found = torch.as_tensor(value).detach().cpu().to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"{name} must be real numbers, got {value!r:.80}") from None
    if not bool(torch.isfinite(found).all()):
        raise ArgumentError(f"{name} must be finite, got non-finite values")
    return found


def _waves(kind: str, shape: Sequence[int] | None, dim: int) -> Basis:
    if shape is None or math.prod(shape) != dim:
        raise ArgumentError(f"kind {kind!r} needs shape=, the shape of a row, with {dim} numbers; got {shape!r}")
    return Cosines(tuple(shape)) if kind == "cosine" else Fourier(tuple(shape))


def _in_kind(mean: Tensor, covariance: Tensor, kind: str, rank: int | None, shape: Sequence[int] | None) -> Statistics:
    """The statistics of a kind that have the variances of a covariance (D, D) along its directions."""
    if kind not in KINDS:
        raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if (rank is None) == (kind == "low_rank"):
        raise ArgumentError(f"rank goes with kind='low_rank', which needs it; got rank={rank!r} with kind={kind!r}")
    size = float(covariance.abs().max())
    if float((covariance - covariance.T).abs().max()) > _ROUNDING * size:
        raise ArgumentError("covariance must be symmetric, and differs from its transpose: it is no covariance")
    dim = len(mean)
    if kind in ("scale", "diagonal"):
        each = covariance.diagonal().clone()
        return Statistics(mean, each.mean().reshape(1) if kind == "scale" else each, Axes(dim, kind == "scale"))
    if kind in ("cosine", "fourier"):
        waves = _waves(kind, shape, dim)
        # Row i of Q^T C is the transform of column i, and its transform again gives Q^T C Q.
        return Statistics(mean, waves.into(waves.into(covariance).T).diagonal().clamp(min=0), waves)
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if float(values[0]) < -_ROUNDING * size * dim:
        raise ArgumentError(f"covariance has the eigenvalue {float(values[0]):.3g} < 0: it is no covariance")
    values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
    if kind == "full":
        return Statistics(mean, values, Vectors(vectors.contiguous()))
    if type(rank) is not int or not 1 <= rank < dim:
        raise ArgumentError(f"rank must be an integer >= 1 and < {dim}, the number of coordinates; got {rank!r}")
    across = values[rank:].mean().reshape(1)
    return Statistics(mean, torch.cat([values[:rank], across]), Vectors(vectors[:, :rank].contiguous()))
