"""SDEs with the laws of a field: any diffusion, with the drift that keeps them, simulated in either direction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from diffode.errors import ArgumentError, NumericalError
from diffode.randomness import Randomness, generator_from, normal
from diffode.targets.target import Scalar

#: A diffusion g: a number, a matrix (D, D), or a function of the time that gives one of these.
Diffusion = float | Tensor | Callable[[float], "float | Tensor"]


class _WithScore(Protocol):
    dim: int | None

    def velocity(self, x: Tensor, t: Scalar) -> Tensor: ...

    def score(self, x: Tensor, t: Scalar) -> Tensor: ...


class BridgeSDE:
    r"""The SDE dx = (v + g g^T score/2) dt + g dw, whose law at every time is that of the field for any g.

    Towards the data, with t falling, it is dx = (v - g g^T score/2) dt + g dw.

    Args:
        field: what gives velocity and score.
        diffusion: g, a number, a matrix (D, D), or a function of t that gives one of these.
    """

    def __init__(self, field: _WithScore, diffusion: Diffusion):
        self.field, self.diffusion = field, diffusion
        if not callable(diffusion):
            factor = _checked(diffusion)
            if isinstance(factor, Tensor) and field.dim not in (None, len(factor)):
                raise ArgumentError(f"diffusion must be ({field.dim}, {field.dim}), got {tuple(factor.shape)}")

    def drift(self, x: Tensor, t: float, *, upwards: bool = True) -> Tensor:
        """The drift v + g g^T score/2 at x (B, D) for rising times, v - g g^T score/2 for falling ones."""
        pushed = self._applied(self._applied(self.field.score(x, t), t, transposed=True), t)
        return self.field.velocity(x, t) + (1 if upwards else -1) * pushed / 2

    def simulate(self, x: Tensor, times: Sequence[float], *, generator: Randomness) -> Tensor:
        """The states at all times, (M, B, D), from x (B, D) at the first, by the Euler-Maruyama scheme.

        Args:
            x: points at the first time.
            times: M >= 2 times that all rise or all fall.
            generator: generator or seed of the noise.

        Raises:
            ArgumentError: for times that do neither.
            NumericalError: if a state is not finite.

        >>> import diffode
        >>> bridge = diffode.Bridge("independent", data="ring8", source="gauss2d")
        >>> bridge.sde(0.5).simulate(bridge.prior(5, generator=0), [1.0, 0.5, 0.0], generator=1).shape
        torch.Size([3, 5, 2])
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
            raise ArgumentError(f"x must be points (B, D), a floating-point tensor, got {type(x).__name__}")
        steps = list(itertools.pairwise(_numbers(times)))
        rising = {b > a if b != a and math.isfinite(b - a) else None for a, b in steps}
        if len(rising) != 1 or None in rising:
            raise ArgumentError(f"times must rise or fall, two of them at least, got {list(times)!r:.80}")
        drawn, states = generator_from(generator), [x]
        for begin, end in steps:
            z = normal(x.shape, generator=drawn).to(x)
            noise = math.sqrt(abs(end - begin)) * self._applied(z, begin)
            states.append(states[-1] + (end - begin) * self.drift(states[-1], begin, upwards=end > begin) + noise)
        found = torch.stack(states)
        if not bool(torch.isfinite(found).all()):
            at = int(torch.nonzero(~torch.isfinite(found).flatten(1).all(1))[0])
            raise NumericalError(f"the simulation is not finite at t={float(times[at]):g}; take smaller steps")
        return found

    def _applied(self, x: Tensor, t: float, *, transposed: bool = False) -> Tensor:
        """g x, or g^T x, for the rows of x."""
        factor = _checked(_asked(self.diffusion, t) if callable(self.diffusion) else self.diffusion)
        if isinstance(factor, float):
            return factor * x
        flat = x.flatten(1)
        if factor.shape != (flat.shape[1], flat.shape[1]):
            raise ArgumentError(f"diffusion must be ({flat.shape[1]}, {flat.shape[1]}), got {tuple(factor.shape)}")
        return (flat @ (factor if transposed else factor.T).to(flat)).reshape(x.shape)


def _numbers(times: object) -> list[float]:
    """Times as numbers; ArgumentError if they are none."""
    try:
        return [float(t) for t in times]  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"times must be a sequence of numbers, got {times!r:.80}") from error


def _asked(diffusion: Callable[[float], float | Tensor], t: float) -> float | Tensor:
    """A diffusion of one's own at a time; ArgumentError if it can't be asked."""
    try:
        return diffusion(t)
    except Exception as error:  # anyone's function may raise anything
        raise ArgumentError(f"diffusion can't be asked at t={t:g}: {type(error).__name__}: {error}") from error


def _checked(diffusion: object) -> float | Tensor:
    if isinstance(diffusion, int | float) and not isinstance(diffusion, bool) and 0 <= diffusion < math.inf:
        return float(diffusion)
    if isinstance(diffusion, Tensor) and diffusion.is_floating_point() and bool(torch.isfinite(diffusion).all()):
        if diffusion.ndim == 0:
            return float(diffusion)
        if diffusion.ndim == 2 and diffusion.shape[0] == diffusion.shape[1]:
            return diffusion
    raise ArgumentError(
        f"diffusion must be a number >= 0, a finite matrix (D, D), or a function of t that gives one, got {diffusion!r:.60}"
    )
