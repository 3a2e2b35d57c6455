r"""Statistics of the data from a field alone: what it answers at high noise, where it is the field of one Gaussian.

There the denoised point is affine, :math:`D(\alpha z) = m + J (z - m)` with :math:`J = C (C + \rho^2)^{-1}`, so that
differences of answers give J and with it the covariance :math:`C = \rho^2 J (1 - J)^{-1}`. For other data J is off by a share
of about (L/rho^2) times their kurtosis, and differences of answers lose digits as rho^2/L: the level lies between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffode.errors import ArgumentError, FieldError
from diffode.fields.field import Field
from diffode.randomness import Randomness, generator_from, normal
from diffode.statistics import KINDS, Axes, Basis, Cosines, Fourier, Statistics, Vectors

#: Level, in largest deviations of the data, at which a field is asked if its path goes so far.
_LEVEL = 30.0
#: Rows of random probes, for means and for variances that are not asked one by one.
_PROBES = 64
#: Rows of a low rank beside those that are kept.
_BESIDE = 8
#: Deviation from affine, relative to what is affine, above which a field is no Gaussian's.
LARGEST_BEND = 0.1
#: Deviation from the Gaussian's field, in units of the scale, up to which the data are one Gaussian.
_SAME = 1e-6
#: Levels, in units of the scale, at which that is asked.
_LOW_LEVELS = (1.0, 0.1)
#: Level, in largest deviations of some statistics, at which they are held against a field; the rows that it is asked there, and
#: how many at once, which every field that is trained for takes.
_ABOVE, _APART, _AT_ONCE = 10.0, 32, 8


class _Asked:
    """A field's denoised points as a function of rows z = x/alpha (n, D) at noise levels, with a count of the rows."""

    def __init__(self, field: Field, shape: tuple[int, ...]):
        self.field, self.shape, self.path = field, shape, field.require_path("an estimate of its statistics")
        self.rows = self.calls = 0

    def __call__(self, z: Tensor, level: float) -> Tensor:
        t = self.path.time_from_rho(level)
        x = (z * self.path.alpha(t)).reshape(-1, *self.shape)
        with torch.no_grad():
            answer = self.field.denoised(x, t).to(torch.float64).cpu().flatten(1)
        if not bool(torch.isfinite(answer).all()):
            raise FieldError(
                f"the field has non-finite answers at the noise level {level:g}, where its statistics are estimated"
            )
        self.rows += len(x)
        self.calls += 1
        return answer

    def slope(self, directions: Tensor, centre: Tensor, level: float) -> Tensor:
        """J times each row of ``directions`` (n, D), by differences over ``level`` to both sides, (n, D)."""
        step = level * directions
        ahead, behind = self(torch.cat([centre + step, centre - step]), level).chunk(2)
        return (ahead - behind) / (2 * level)


def estimate_statistics(
    field: Field, kind: str = "full", *, rank: int | None = None, shape: Sequence[int] | None = None,
    level: float | None = None, generator: Randomness = 0,
) -> Statistics:  # fmt: skip
    """Mean and covariance of a field's data from its answers at high noise.

    Args:
        field: a field on a path. Its evaluations are counted as any others; how many they were stands in the result.
        kind: ``full`` asks 2 D rows, ``low_rank`` 6 (rank + 8) + 128, the others at most 128, and all some 100 besides.
        rank: number of directions of ``low_rank``.
        shape: shape of a row, if the field does not tell it.
        level: noise level rho at which it is asked; unless given, thirty of the data's largest deviations, or the largest that
            the path has.
        generator: generator or seed of the random directions.

    Returns:
        The statistics; ``source`` says the level, the calls, and how far from affine the field is there, ``rows`` their rows.

    Raises:
        ArgumentError: for a wrong argument.
        FieldError: if the field is not that of one Gaussian at this level, or has no path.

    >>> import diffode
    >>> estimate_statistics(diffode.exact_field("ring8", "edm"))
    Statistics(full, 2 dimensions, scale 3.55, largest deviation 3.55, estimated at rho = 80 from 9 calls on 100 rows...)
    """
    size = tuple(shape) if shape is not None else field.shape
    if size is None:
        raise ArgumentError("the field does not tell the shape of its rows: give shape=, such as (2,) or (3, 32, 32)")
    if kind not in KINDS:
        raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    dim = math.prod(size)
    if (rank is None) == (kind == "low_rank") or (rank is not None and not (type(rank) is int and 1 <= rank < dim)):
        raise ArgumentError(
            f"rank goes with kind='low_rank', an integer >= 1 and < {dim}; got rank={rank!r} with kind={kind!r}"
        )
    asked = _Asked(field, size)
    source = generator_from(generator)
    at, centre = _level(asked, level, dim, source)
    # Gaussian probes to both sides: the parts of odd order cancel in the mean, and those of second order in its expectation.
    probes = normal((_PROBES // 2, dim), generator=source)
    ahead, behind = asked(torch.cat([centre + at * probes, centre - at * probes]), at).chunk(2)
    mean = (ahead + behind).mean(0) / 2
    bend = _bend(asked, probes[:4], centre, at)
    if bend > LARGEST_BEND:
        raise FieldError(
            f"at the noise level {at:g} the field is not that of one Gaussian: its answers bend by {bend:.0%} of what is "
            "affine; give a higher level=, on a path whose t_max reaches it, or statistics of samples (Statistics.of_samples)"
        )
    basis, response = _responses(asked, kind, rank, size, mean, at, source)
    if not bool((response < 1).all()) or float(response.min()) < -LARGEST_BEND * float(response.max()):
        raise FieldError(
            f"at the noise level {at:g} the field answers to a displacement with {float(response.min()):.3g} to "
            f"{float(response.max()):.3g} times it, where a denoiser's answers lie in [0, 1): it is none of a Gaussian there"
        )
    found = Statistics(mean, at**2 * response.clamp(min=0) / (1 - response), basis)
    same = _is_gaussian(asked, found, source)
    told = f"estimated at rho = {at:.4g} from {asked.calls} calls on {asked.rows} rows, affine up to {bend:.1e}"
    return replace(found, gaussian=same, source=told, rows=asked.rows)


def breadth_beside(field: Field, statistics: Statistics, shape: Sequence[int]) -> float:
    """How widely a field's answers lie at high noise, over how those of the Gaussian with some statistics would: 1 for its own.

    Four calls on 8 rows, of a level at which data with such statistics are nearly one Gaussian, unless a rare mode far away
    makes their scale. Deviations that are too large by a factor k give about 1/k^2 where the path's noise reaches them, and
    those that are too small about k^2, as long as the data are nearly one Gaussian at that level too.

    >>> import diffode
    >>> field, own = diffode.exact_field("moons", "edm"), Statistics.of_target("moons")
    >>> [round(breadth_beside(field, own.scaled(unit), (2,)), 1) for unit in (1, 2, 0.5)]
    [1.0, 0.3, 3.9]
    """
    asked = _Asked(field, tuple(shape))
    first, last = (asked.path.rho(t) for t in (asked.path.t_max, asked.path.t_min))
    level = max(min(_ABOVE * statistics.largest, first), last)
    basis = statistics.basis
    along = normal((_APART, basis.width), generator=generator_from(0))
    offset = along * basis.spread((statistics.variances + level**2).sqrt())
    with field.uncounted():
        found = torch.cat([asked(part + statistics.mean, level) for part in torch.split(basis.back(offset), _AT_ONCE)])
    expected = basis.back(offset * basis.spread(statistics.variances / (statistics.variances + level**2)))
    return float((found - found.mean(0)).norm() / (expected - expected.mean(0)).norm())


def _level(asked: _Asked, level: float | None, dim: int, source: Randomness) -> tuple[float, Tensor]:
    """The noise level at which the field is asked, and the mean as it is answered at the origin there."""
    largest = asked.path.rho(asked.path.t_max)
    if level is not None:
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level <= largest:
            raise ArgumentError(f"level must be a noise level > 0 and <= {largest:g}, the largest of the path, got {level!r}")
        largest = float(level)
    if not math.isfinite(largest):
        raise ArgumentError("alpha is 0 at the path's first time: give level=, a finite noise level rho")
    origin = torch.zeros(1, dim, dtype=torch.float64)
    centre = asked(asked(origin, largest), largest)[0]
    if level is not None:
        return largest, centre
    # Powers of J turn any direction towards the widest.
    direction = normal((1, dim), generator=source)
    for _ in range(3):
        answer = asked.slope(direction / direction.norm(), centre, largest)
        stretch, direction = float(answer.norm()), answer
        if not stretch:
            return largest, centre
    deviation = largest * math.sqrt(stretch / (1 - stretch)) if stretch < 1 else largest
    at = min(largest, _LEVEL * deviation)
    return at, (centre if at == largest else asked(centre[None], at)[0])


def _bend(asked: _Asked, probes: Tensor, centre: Tensor, level: float) -> float:
    """How far the answers over two steps are from affine, relative to the change over one."""
    offsets = torch.cat([k * level * probes for k in (-2, -1, 0, 1, 2)])
    far_behind, behind, middle, ahead, far_ahead = asked(centre + offsets, level).chunk(5)
    change = float((ahead - behind).norm()) / 2
    second = float((ahead + behind - 2 * middle).norm()) / 2
    third = float((far_ahead - far_behind - 2 * (ahead - behind)).norm()) / 4
    return math.hypot(second, third) / change if change else 0.0


def _responses(
    asked: _Asked, kind: str, rank: int | None, shape: tuple[int, ...], mean: Tensor, level: float, source: Randomness
) -> tuple[Basis, Tensor]:
    """The basis and the eigenvalue of J along each of its directions."""
    dim = len(mean)
    if kind == "full":
        slope = asked.slope(torch.eye(dim, dtype=torch.float64), mean, level)
        values, vectors = torch.linalg.eigh((slope + slope.T) / 2)
        return Vectors(vectors.flip(1).contiguous()), values.flip(0)
    if rank is not None:
        block = torch.linalg.qr(normal((dim, min(dim, rank + _BESIDE)), generator=source))[0]
        for _ in range(2):
            block = torch.linalg.qr(asked.slope(block.T, mean, level).T)[0]
        slope = asked.slope(block.T, mean, level) @ block
        values, vectors = torch.linalg.eigh((slope + slope.T) / 2)
        kept = (block @ vectors).flip(1)[:, :rank].contiguous()
        signs = _signs(dim, source)
        across = signs - signs @ kept @ kept.T
        rest = (across * asked.slope(across, mean, level)).sum() / across.square().sum()
        return Vectors(kept), torch.cat([values.flip(0)[:rank], rest.reshape(1)])
    basis = (
        {"cosine": Cosines, "fourier": Fourier}[kind](shape) if kind in ("cosine", "fourier") else Axes(dim, kind == "scale")
    )
    if dim <= _PROBES:
        unit = torch.eye(dim, dtype=torch.float64)
        each = basis.into(asked.slope(basis.back(unit), mean, level)).diagonal()
    else:
        # The mean of u_i (J u)_i over random signs u is J_ii.
        signs = _signs(dim, source)
        each = (signs * basis.into(asked.slope(basis.back(signs), mean, level))).mean(0)
    return basis, each.mean().reshape(1) if kind == "scale" else each


def _signs(dim: int, source: Randomness) -> Tensor:
    """Random signs (rows, D)."""
    return torch.where(normal((_PROBES, dim), generator=source) < 0, -1.0, 1.0).to(torch.float64)


def _is_gaussian(asked: _Asked, found: Statistics, source: Randomness) -> bool:
    """Whether the field is that of the Gaussian at low noise too."""
    lowest = asked.path.rho(asked.path.t_min)
    for share in _LOW_LEVELS:
        level = max(share * found.scale, lowest)
        basis = found.basis
        spread = basis.spread(torch.hypot(found.variances.sqrt(), torch.full_like(found.variances, level)))
        offset = spread * basis.into(normal((4, found.dim), generator=source))
        known = found.mean + basis.back(offset * basis.spread(found.variances / (found.variances + level**2)))
        if float((asked(found.mean + basis.back(offset), level) - known).abs().max()) > _SAME * found.scale:
            return False
    return True
