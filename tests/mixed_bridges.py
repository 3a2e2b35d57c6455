"""Bridges between mixtures with nothing simple about them: joint covariances, matrices that turn and do not commute."""

import math

import torch

import diffode
from diffode import bridges


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(count, dim, seed):
    factor = numbers(count, dim, 2 * dim, seed=seed)
    return factor @ factor.mT / (2 * dim) + 0.05 * torch.eye(dim).double()


def skew(dim, seed):
    matrix = numbers(dim, dim, seed=seed)
    return matrix - matrix.T


def mixture(count, dim, seed):
    weights = 0.2 + torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return diffode.GaussianMixture(
        weights / weights.sum(), 2 * numbers(count, dim, seed=seed + 1), covariances(count, dim, seed + 2)
    )


def coupled(count=6, dim=3, seed=3):
    """A mixture of pairs with joint covariances that nothing makes simple."""
    joint = covariances(count, 2 * dim, seed)
    parts = joint[:, :dim, :dim], joint[:, dim:, dim:], joint[:, :dim, dim:]
    weights = torch.linspace(1, 2, count).double()
    return bridges.explicit(
        weights / weights.sum(), 2 * numbers(count, dim, seed=seed + 1), numbers(count, dim, seed=seed + 2), *parts
    )


def turned(axis, angle):
    """The rotation by an angle, by Rodrigues' formula; torch.matrix_exp has a derivative of eleven digits only."""
    unit = axis / axis.norm() * 2**0.5
    return torch.eye(3).double() + torch.sin(angle) * unit + (1 - torch.cos(angle)) * unit @ unit


def turning(gauge="symmetric", spin=None):
    """A, B and G that turn, stretch and do not commute."""
    p, q, r = skew(3, 11), skew(3, 12), numbers(3, 3, seed=13)
    return bridges.OwnCoefficients(
        lambda t: (1 - t) * turned(p, 2 * t),
        lambda t: t * turned(q, 3 * t) + t * (1 - t) * r / 5,
        lambda t: torch.sin(math.pi * t) * (r + t * p) + 0.2 * torch.eye(3).double(),
        gauge=gauge,
        skew=None if spin is None else lambda t: (1 + t) * spin,
    )


def own_bridge(gauge="symmetric", spin=None):
    return diffode.Bridge(coupled(), turning(gauge, spin))
