"""Networks of two times for flow maps: a perceptron for points, a small UNet for images; and the map that they make."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields.networks import Block
from diffode.maps.parametrisations import parametrisation
from diffode.numerics.forward import along

#: Number of frequencies with which each angle enters a network: sines and cosines of its multiples 1 to 4.
_WAVES = 4
#: Number of features of two angles.
FEATURES = 2 * (2 + 2 * _WAVES) + 1
#: Angles nearer than this to 0 and to pi/2 enter the logarithm of their tangent as this.
_LEAST_ANGLE = 1e-7
#: A function (y, a, b) of states (B, D) and angles (B,).
TwoTime = Callable[[Tensor, Tensor, Tensor], Tensor]


def features(a: Tensor, b: Tensor) -> Tensor:
    """Features (B, F) of two angles (B,): themselves, the logarithms of their tangents, sines and cosines, their difference.

    The logarithm resolves low levels, which the angle itself does not; both are smooth, as derivatives by time need them.
    """
    parts = [a - b]
    multiples = torch.arange(1, _WAVES + 1, dtype=a.dtype, device=a.device)
    rows = []
    for angle in (a, b):
        inside = angle.clamp(_LEAST_ANGLE, math.pi / 2 - _LEAST_ANGLE)
        parts += [angle, inside.tan().log() / 4]
        phase = angle[:, None] * multiples * 2
        rows += [phase.sin(), phase.cos()]
    return torch.cat([torch.stack(parts, 1), *rows], 1)


class Perceptron(nn.Module):
    """F for points: residual layers of states and features together. ``depth`` counts the residual layers."""

    def __init__(self, dim: int, width: int, depth: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(dim + FEATURES, width), nn.Linear(width, dim)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        # The map is the Gaussian flow at first.
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @override
    def forward(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        h = self.enter(torch.cat([y, features(a, b)], 1))
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        found: Tensor = self.leave(nn.functional.silu(h))
        return found


class UNet(nn.Module):
    """F for images (channels, size, size) as rows: halves the images once, with a bridge across."""

    def __init__(self, shape: tuple[int, int, int], width: int):
        super().__init__()
        self.shape = shape
        self.level = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.enter, self.leave = nn.Conv2d(shape[0], width, 3, padding=1), nn.Conv2d(width, shape[0], 3, padding=1)
        self.down, self.middle, self.up = Block(width, width, width), Block(width, width, width), Block(2 * width, width, width)
        nn.init.zeros_(self.leave.weight)
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    @override
    def forward(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        level = self.level(features(a, b))
        fine = self.down(self.enter(y.reshape(-1, *self.shape)), level)
        coarse = self.middle(nn.functional.avg_pool2d(fine, 2), level)
        joined = torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")], 1)
        found: Tensor = self.leave(nn.functional.silu(self.up(joined, level)))
        return found.flatten(1)


def network(kind: str, shape: tuple[int, ...], *, width: int, depth: int = 0) -> nn.Module:
    """A network of a ``kind`` for rows of a shape: ``perceptron`` or ``unet``; ArgumentError for others."""
    if kind == "perceptron":
        return Perceptron(math.prod(shape), width, depth)
    if kind == "unet":
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2:
            raise ArgumentError(f"a unet needs rows (channels, size, size) with an even size, got {shape}")
        return UNet((shape[0], shape[1], shape[2]), width)
    raise ArgumentError(f"kind must be perceptron or unet, got {kind!r}")


def multiply_adds(net: nn.Module, dim: int) -> int:
    """Number of products that an answer of a network (y, a, b) costs a row, counted by PyTorch while it makes one."""
    inputs = torch.zeros(1, dim), torch.ones(1), torch.ones(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        net(*inputs)
    # A product and its sum count as two.
    return int(counted.get_total_flops()) // 2


class OneTime(nn.Module):
    """A network that is told where it is and not where it goes, as a velocity is: F(y, a, a) whatever b."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    @override
    def forward(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = self.net(y, a, a)
        return found


class AngleMap(nn.Module):
    """The map of a network in the angle clock: ``(y, a, b) -> y_b`` for states (B, D) and angles (B,).

    ``answers`` is the network, or any function (y, a, b) of the same form.
    """

    def __init__(self, answers: TwoTime, name: str):
        super().__init__()
        self.parametrisation = parametrisation(name)
        self.answers = answers

    @override
    def forward(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        keep, gain = self.parametrisation.coefficients(a, b)
        return keep[:, None] * y + gain[:, None] * self.answers(y, a, b)

    def velocity(self, y: Tensor, a: Tensor) -> Tensor:
        """dy/dtheta (B, D) that the map has on its diagonal, A_b y + B_b F(y, a, a)."""
        _, (keep, gain) = self.parametrisation.rates(a, a)
        return keep[:, None] * y + gain[:, None] * self.answers(y, a, a)

    def at_end(self, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The map and its derivative by b."""
        return self._along(y, a, b, (torch.zeros_like(y), torch.zeros_like(a), torch.ones_like(b)))

    def at_start(self, y: Tensor, a: Tensor, b: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The map and its derivative along a trajectory whose slope dy/da is given: D_a Phi."""
        return self._along(y, a, b, (slope, torch.ones_like(a), torch.zeros_like(b)))

    def network_at_start(self, y: Tensor, a: Tensor, b: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """F and its derivative along a trajectory whose slope is given: D_a F."""
        tangents = (slope, torch.ones_like(a), torch.zeros_like(b))
        return along(self.answers, (y, a, b), tangents)

    def _along(self, y: Tensor, a: Tensor, b: Tensor, tangents: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return along(self.forward, (y, a, b), tangents)
