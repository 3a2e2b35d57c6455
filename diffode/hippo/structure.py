"""The structure of A: its spectrum and the digits that it costs, its form as diagonal plus low rank, and S4D's diagonals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffode.errors import ArgumentError, UnknownNameError
from diffode.hippo.arguments import numbers_of, order_of
from diffode.hippo.legs import LegS
from diffode.hippo.measure import Measure

Array = np.ndarray[Any, Any]

#: Largest condition number that float64 tells from an infinite one.
_LARGEST_CONDITION = 1e15


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of a memory's matrix.

    Attributes:
        eigenvalues: complex (N,), the slowest first; from closed forms or more digits than float64 has where that needs them.
        condition: the condition number of the matrix of eigenvectors of length 1; infinite where float64 can't tell it from
            that (beyond 1e15). A diagonal form loses so many digits.
    """

    eigenvalues: Array
    condition: float

    @property
    def abscissa(self) -> float:
        """The largest real part: negative if the memory forgets."""
        return float(self.eigenvalues.real.max())

    @property
    def diagonalisable(self) -> bool:
        """Whether a diagonal form keeps half of float64's digits."""
        return self.condition < 1e8


def spectrum_of(measure: Measure, order: int) -> Spectrum:
    """See :meth:`diffode.hippo.Memory.spectrum`."""
    with np.errstate(all="ignore"):
        _, vectors = np.linalg.eig(measure.matrix(order))
        condition = float(np.linalg.cond(vectors))
    held = condition if condition <= _LARGEST_CONDITION else float("inf")
    return Spectrum(measure.eigenvalues(order), held)


@dataclass(frozen=True)
class DPLR:
    """A matrix as diagonal plus low rank, A = V diag(eigenvalues) V^H - P P^T, with unitary V.

    Attributes:
        eigenvalues: of the normal part, complex (N,), by rising frequency.
        vectors: V, (N, N) complex.
        factor: P, (N, rank) real.
    """

    eigenvalues: Array
    vectors: Array
    factor: Array

    def matrix(self) -> Array:
        """A again, (N, N) real."""
        normal = (self.vectors * self.eigenvalues) @ self.vectors.conj().T
        return np.asarray(normal.real - self.factor @ self.factor.T)


def dplr_of(measure: Measure, order: int) -> DPLR:
    """See :meth:`diffode.hippo.Memory.dplr`."""
    normal, factor = measure.normal_form(order)
    shift = normal[0, 0]
    # The rest is skew: -i times it is Hermitian, and its eigenvectors are orthonormal to rounding.
    frequencies, vectors = np.linalg.eigh(-1j * (normal - shift * np.eye(order)))
    return DPLR(shift + 1j * frequencies, vectors, factor)


def s4d(kind: str, order: int) -> Array:
    """The eigenvalues with which S4D begins a diagonal memory (arXiv 2206.11893); of pairs, the one with frequency >= 0.

    Args:
        kind: ``real``, -(n + 1) for n < N; ``lin``, -1/2 + i pi n; ``inv``, -1/2 + i (N/pi) (N/(2n+1) - 1); ``legs``, those of
            the normal part of LegS, which ``inv`` is meant to approximate. n < N/2 for the last three.
        order: N.

    Returns:
        complex (N,) for ``real``, else (ceil(N/2),), for ``legs`` by falling frequency, as for ``inv``.

    >>> s4d("inv", 64)[0].round(1)
    np.complex128(-0.5+1283.4j)
    """
    count = order_of(order)
    if not isinstance(kind, str):
        raise ArgumentError(f"kind must be one of real, lin, inv, legs, got {kind!r:.60}")
    n = np.arange((count + 1) // 2)
    if kind == "real":
        return -(np.arange(count) + 1.0).astype(complex)
    if kind == "lin":
        return -0.5 + 1j * np.pi * n
    if kind == "inv":
        return -0.5 + 1j * count / np.pi * (count / (2 * n + 1) - 1)
    if kind == "legs":
        return dplr_of(LegS(), count).eigenvalues[::-1][: len(n)].copy()
    raise UnknownNameError("S4D initialisation", kind, ("real", "lin", "inv", "legs"))


def all_pass(s: Any, order: int) -> Array:
    """Pi(s) = prod_{n<N} (s - n)/(s + n + 1), which says all of LegS on plain time that S4D-LegS leaves out.

    1 - B^T (s - A)^{-1} B = Pi(s), and the diagonal part of LegS with half its input answers with
    (s - A)^{-1} B / (1 + Pi(s)), see :func:`s4d_transfer`. |Pi(i w)| = w/sqrt(N^2 + w^2): signals slower than N come through,
    nothing faster does.
    """
    values = numbers_of(s, "s", complex_too=True).astype(complex)
    n = np.arange(order_of(order)).reshape(-1, *(1,) * values.ndim)
    if (values == -(n + 1)).any():
        raise ArgumentError("s must not be one of the poles -1, ..., -N")
    return np.asarray(((values - n) / (values + n + 1)).prod(axis=0))


def s4d_transfer(s: Any, order: int) -> Array:
    """The transfer function (s - A_D)^{-1} B/2 of S4D-LegS, A_D the normal part of LegS, by its exact law: (*s.shape, N)."""
    values = numbers_of(s, "s", complex_too=True).astype(complex)
    left_out = all_pass(values, order)
    if (left_out == -1).any():
        raise ArgumentError("s must not be a pole of S4D-LegS")
    whole = np.moveaxis(LegS().transfer(order_of(order), values), 0, -1)
    return np.asarray(whole / (1 + left_out)[..., None])
