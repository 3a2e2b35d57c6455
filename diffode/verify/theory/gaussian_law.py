"""A solver's exact law on Gaussian data, without sampling: W2, errors of mean and covariance, and their causes.

Pierret and Galerne, arXiv 2405.14250, do this for schemes on the variance-preserving path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffode import grids, paths, solvers
from diffode.errors import ArgumentError
from diffode.metrics.gaussian import ErrorSplit, gaussian_split
from diffode.paths import Path
from diffode.solvers import Solver
from diffode.tableau import Propagated


class GaussianAnalysis(NamedTuple):
    """The error of a solver on N(mean, diag eigenvalues), started from the normal prior.

    Attributes:
        w2: 2-Wasserstein distance of the output's law to the data.
        mean_error: Euclidean norm of the mean's error.
        covariance_error: Frobenius norm of the covariance's error.
        split: parts of ``w2``: prior, truncation, discretisation.
        law: law of the output along each eigen-direction.
        nfe: number of evaluations of the run.
    """

    w2: float
    mean_error: float
    covariance_error: float
    split: ErrorSplit
    law: Propagated
    nfe: int


def gaussian(
    solver: Solver | str,
    path: Path | str,
    grid: grids.Times,
    eigenvalues: Tensor | Sequence[float],
    *,
    mean: Tensor | float = 0.0,
    steps: int | None = None,
) -> GaussianAnalysis:
    """Exact errors of a solver on a Gaussian, ODE and SDE solvers alike.

    Args:
        solver: a solver or its spec.
        path: a path or its spec.
        grid: times, or a grid spec with ``steps``.
        eigenvalues: variances of the data along the eigenvectors of its covariance, (E,).
        mean: the data's mean along them, (E,) or a number.
        steps: number of steps of a named grid.

    Returns:
        :class:`GaussianAnalysis`.

    Raises:
        ArgumentError: for a wrong argument.

    >>> found = gaussian("heun:chart=noise", "vp", "log_snr", [1.0, 0.25], steps=200)
    >>> found.split.discretisation < 1e-3
    True
    """
    table = solvers.table_solver(solver).tableau(paths.get(path), grid, steps)
    variances, centre = _numbers("eigenvalues", eigenvalues), _numbers("mean", mean)
    if variances.ndim != 1 or not len(variances):
        raise ArgumentError(f"eigenvalues must be a vector (E,), got shape {tuple(variances.shape)}")
    law = table.propagate(centre, variances, start="prior")
    split = gaussian_split(table, centre, variances, law)
    return GaussianAnalysis(
        split.total,
        float((law.mean - centre).norm()),
        float((law.variance - variances).norm()),
        split,
        law,
        table.nfe,
    )


def _numbers(name: str, value: Tensor | Sequence[float] | float) -> Tensor:
    try:
        if not (isinstance(value, Tensor) and value.is_complex()):
            return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError):
        pass
    raise ArgumentError(f"{name} must be numbers, got {value!r}")
