"""Checks of the start of a run, and a warning for a start that can't be a state at the first time."""

from __future__ import annotations

import contextlib
import math
import warnings

import torch
from torch import Tensor

from diffode import grids
from diffode.errors import ArgumentError, StartWarning
from diffode.fields import ExactField, Field
from diffode.paths import Path
from diffode.solvers.solution import is_finite, non_finite_rows

#: Ratio of a start's root mean square to that of a state above which it is no state, even if rows and dimensions are few.
_TOO_LARGE = 10.0


def check_start(x: object) -> None:
    """Raise ArgumentError unless x is a finite float32 or float64 tensor (B, *shape)."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"x must be a float32 or float64 tensor, got {kind}")
    if x.ndim < 2:
        raise ArgumentError(f"x must be (B, *shape), got {tuple(x.shape)}; use x[None] for a single point")
    if not is_finite(x):
        raise ArgumentError(f"x has non-finite values in row {int(torch.nonzero(non_finite_rows(x))[0])}")


def check_reach(x: Tensor, first: float | Tensor) -> None:
    """Raise ArgumentError if the first time does not fit the dtype of x, since coefficients of a step may be as large."""
    largest = float(first.abs().max()) if isinstance(first, Tensor) else abs(first)
    if largest > torch.finfo(x.dtype).max:
        raise ArgumentError(f"x of {x.dtype} can't hold coefficients as large as the first time, {largest:g}; make it float64")


def two_times(between: object) -> tuple[float, float]:
    """The argument ``between`` as two floats; ArgumentError if it is not two times."""
    if isinstance(between, tuple | list) and len(between) == 2 and not any(isinstance(t, bool | str) for t in between):
        # An integer may be larger than any float.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            first, last = map(float, between)
            if first > last:
                return first, last
    raise ArgumentError(f"between must be two times, the noisier first, such as (0.7, 0.002); got {between!r:.80}")


def part_of(path: Path, between: object, grid: grids.Times | None) -> Path:
    """The part of a path for the argument ``between``; ArgumentError unless it is two times and the grid a named one."""
    if grid is not None and not grids.is_named(grid):
        raise ArgumentError("between goes with a named grid; explicit times have their own ends")
    return path.between(*two_times(between))


def check_noise(field: Field, name: str, draws: bool) -> None:
    """Raise ArgumentError for a run that draws normal noise, or needs the score, where the noise is no normal one."""
    if field.source is not None and draws:
        raise ArgumentError(
            f"{name} draws normal noise and takes the score for a multiple of it; this field's noise comes from source "
            f"{field.source.spec!r}: take a deterministic solver, such as 'ipndm:order=3' or 'heun'"
        )


def look_at_start(field: Field, x: Tensor, t: float | Tensor) -> None:
    """Warn if x has so little noise, or is so large, that it can't be a state at time t.

    The sum of a state's squares is, for all data, at least sigma^2 times a chi-squared variable. Its largest size depends on
    the data, which only an exact field knows.
    """
    # How large a state is with noise from a source is not known here; that of few degrees of freedom has no variance.
    if field.path is None or isinstance(t, Tensor) or not x.numel() or field.source is not None:
        return
    alpha, sigma = field.path.alpha(t), field.path.sigma(t)
    size = float(x.detach().norm()) / math.sqrt(x.numel())
    # The bound leaves SciPy, whose import takes a third of a second, to starts that look odd.
    odd = sigma > 0 and size**2 < sigma**2 * bound_of_least_mean_square(x.numel())
    if odd and size**2 < sigma**2 * least_mean_square(x.numel()):
        clean = f"a root mean square of {size:.3g}, less than the noise alone has at t={t:.4g} ({sigma:.3g})"
    elif isinstance(field, ExactField) and size > _TOO_LARGE * (
        math.hypot(sigma, alpha * field.scale) + alpha * _offset(field)
    ):
        clean = f"a root mean square of {size:.3g}, far more than a state at t={t:.4g} has (noise {sigma:.3g})"
    else:
        return
    warnings.warn(
        f"x has {clean}: it can't be a start there; give the times it runs between, between=(t, t_min), or a start from "
        "field.path.prior",
        StartWarning,
        stacklevel=4,
    )


def _offset(field: ExactField) -> float:
    """Root mean square of the coordinates of the data's mean."""
    return float(field.target.mean.norm()) / math.sqrt(field.target.dim)


def least_mean_square(count: int) -> float:
    """The value below which the mean of ``count`` squares of normals lies with probability 1e-12."""
    from scipy.special import gammaincinv

    return 2 * float(gammaincinv(count / 2, 1e-12)) / count


def bound_of_least_mean_square(count: int) -> float:
    """A number that is at least :func:`least_mean_square`, and nears it for many squares."""
    return (1 + 4.5 / math.sqrt(count)) ** -2
