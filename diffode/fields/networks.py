r"""Small denoisers: a multilayer perceptron for points and a convolutional UNet for small images, with EDM's preconditioning.

:math:`D(x, \sigma) = c_\mathrm{skip} x + c_\mathrm{out} F(c_\mathrm{in} x, \log\sigma)` with the coefficients of Karras et al.
(arXiv 2206.00364, table 1), at the scale of the data, so that F takes and returns numbers of size 1 at every noise level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffode.errors import ArgumentError

#: Number of frequencies in the embedding of log sigma, from one period over the range of log sigma to sixteen.
_FREQUENCIES = 8


class Embedding(nn.Module):
    """log sigma as sines and cosines, mapped to ``width`` numbers."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(2 * _FREQUENCIES + 1, width), nn.SiLU(), nn.Linear(width, width))

    @override
    def forward(self, log_sigma: Tensor) -> Tensor:
        waves = 2 ** torch.linspace(0, 4, _FREQUENCIES, dtype=log_sigma.dtype, device=log_sigma.device)
        phase = log_sigma[:, None] * waves * (2 * math.pi / 12)
        found: Tensor = self.map(torch.cat([log_sigma[:, None] / 4, phase.sin(), phase.cos()], 1))
        return found


class Perceptron(nn.Module):
    """F for points (B, dim): residual layers that the noise level shifts."""

    def __init__(self, dim: int, width: int, depth: int):
        super().__init__()
        self.enter, self.leave, self.level = nn.Linear(dim, width), nn.Linear(width, dim), Embedding(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    @override
    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        level = self.level(log_sigma)
        h = self.enter(x)
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            h = h + layer(torch.nn.functional.silu(h + shift(level)))
        found: Tensor = self.leave(torch.nn.functional.silu(h))
        return found


class Block(nn.Module):
    """Two convolutions with a residual; the noise level scales and shifts between them."""

    def __init__(self, before: int, after: int, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.level, self.norm = nn.Linear(width, 2 * after), nn.GroupNorm(4, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    @override
    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level(level)[:, :, None, None].chunk(2, 1)
        h = self.norm(self.first(torch.nn.functional.silu(x))) * (1 + scale) + shift
        found: Tensor = self.skip(x) + self.second(torch.nn.functional.silu(h))
        return found


class UNet(nn.Module):
    """F for images (B, channels, size, size), size a multiple of 2: halves the images once, with a bridge across."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.level = Embedding(width)
        self.enter, self.leave = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.down, self.middle, self.up = Block(width, width, width), Block(width, width, width), Block(2 * width, width, width)
        #: Factor of the bridge, by which Skip-Tuning (`skip_tuned.py`) weakens or strengthens it.
        self.bridge = 1.0

    @override
    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        level = self.level(log_sigma)
        fine = self.down(self.enter(x), level)
        coarse = self.middle(torch.nn.functional.avg_pool2d(fine, 2), level)
        across = fine if self.bridge == 1 else self.bridge * fine
        joined = torch.cat([across, torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")], 1)
        found: Tensor = self.leave(torch.nn.functional.silu(self.up(joined, level)))
        return found


class PatchUNet(nn.Module):
    """F for images (B, channels, size, size), size a multiple of 4: a UNet on patches of two by two pixels.

    The first and last blocks work at half the size, all others at a quarter, in three times the channels; there every place
    has numbers of its own, which a convolution lacks.
    """

    def __init__(self, channels: int, size: int, width: int, depth: int):
        super().__init__()
        deep = 3 * width
        self.level = Embedding(deep)
        self.enter, self.leave = nn.Conv2d(4 * channels, width, 3, padding=1), nn.Conv2d(width, 4 * channels, 3, padding=1)
        self.down, self.up = Block(width, width, deep), Block(2 * width, width, deep)
        self.place = nn.Parameter(torch.zeros(deep, size // 4, size // 4))
        self.middle = nn.ModuleList(Block(deep if i else width, deep, deep) for i in range(depth))
        self.narrow = nn.Conv2d(deep, width, 1)
        #: Factor of the bridge, as a :class:`UNet` has one.
        self.bridge = 1.0

    @override
    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        level = self.level(log_sigma)
        fine = self.down(self.enter(torch.nn.functional.pixel_unshuffle(x, 2)), level)
        coarse = torch.nn.functional.avg_pool2d(fine, 2)
        for i, block in enumerate(self.middle):
            coarse = block(coarse, level)
            if i == 0:
                coarse = coarse + self.place
        across = fine if self.bridge == 1 else self.bridge * fine
        joined = torch.cat([across, torch.nn.functional.interpolate(self.narrow(coarse), scale_factor=2.0, mode="nearest")], 1)
        left: Tensor = self.leave(torch.nn.functional.silu(self.up(joined, level)))
        return torch.nn.functional.pixel_shuffle(left, 2)


class Denoiser(nn.Module):
    """D(x, sigma) around a network F of a ``kind``: ``perceptron``, ``unet`` or ``patch_unet``; ArgumentError for others.

    ``shape`` is that of a row for F, ``scale`` the root mean variance of the data. A ``patch_unet`` denoises what is left of
    a row when the data's mean is taken off, its buffer ``mean``.

    >>> net = Denoiser("perceptron", (2,), 1.0, width=16, depth=2)
    >>> tuple(net(torch.zeros(3, 2), torch.ones(3)).shape)
    (3, 2)
    """

    def __init__(self, kind: str, shape: tuple[int, ...], scale: float, *, width: int, depth: int = 0):
        super().__init__()
        self.register_buffer("mean", None)
        self.mean: Tensor | None
        if kind == "perceptron":
            self.net: nn.Module = Perceptron(math.prod(shape), width, depth)
        elif kind == "unet":
            self.net = UNet(shape[0], width)
        elif kind == "patch_unet":
            self.net = PatchUNet(shape[0], shape[1], width, depth)
            self.mean = torch.zeros(shape)
        else:
            raise ArgumentError(f"kind must be perceptron, unet or patch_unet, got {kind!r}")
        self.kind, self.shape, self.scale = kind, shape, scale

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised points, shaped as x (B, *shape), at the noise levels sigma (B,)."""
        level = sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))
        size = (level**2 + self.scale**2).sqrt()
        mean = self.mean.reshape(x.shape[1:]) if isinstance(self.mean, Tensor) else None
        x = x if mean is None else x - mean
        inner = (x / size).flatten(1) if self.kind == "perceptron" else (x / size).reshape(-1, *self.shape)
        answer = self.net(inner, (sigma.to(x) / self.scale).log()).reshape(x.shape)
        denoised: Tensor = self.scale**2 / size**2 * x + level * self.scale / size * answer
        return denoised if mean is None else denoised + mean
