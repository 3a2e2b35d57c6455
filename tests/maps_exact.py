"""The exact flow map of one Gaussian in the angle clock, and states of it, for tests of what trains maps."""

import torch

from diffode.learned.maps.sources import Noised, Trajectories
from diffode.maps import AngleMap


def variance(a, lam):
    """cos^2 lam + sin^2: that of y at the angle a, for data of variance lam in units of the clock's scale."""
    return a.cos() ** 2 * lam + a.sin() ** 2


def slope(a, b, lam):
    """K of the exact map y_b = K y_a."""
    return (variance(b, lam) / variance(a, lam)).sqrt()


def exact_map(parametrisation, lam):
    """The exact map, written with the F that a parametrisation needs for it."""

    def answers(y, a, b):
        near = (a - b).abs() < 1e-9
        keep, gain = phi.parametrisation.coefficients(a, torch.where(near, b - 0.1, b))
        apart = (slope(a, torch.where(near, b - 0.1, b), lam) - keep) / gain
        (_, _), (keep_rate, gain_rate) = phi.parametrisation.rates(a, a)
        at_once = (variance_rate(a, lam) / 2 / variance(a, lam) - keep_rate) / gain_rate
        return torch.where(near, at_once, apart)[:, None] * y

    phi = AngleMap(answers, parametrisation)
    return phi


def variance_rate(a, lam):
    return (1 - lam) * (2 * a).sin()


class OnTrajectory(Noised):
    """A state with the means of its data and noise given it, which goes along its trajectory to other angles."""

    def at(self, angle):
        return slope(self.a, angle, self.lam)[:, None] * self.y


class GaussianStates:
    """Sources of states of a Gaussian, in float64: the teacher is exact, and so is everything given the state."""

    def __init__(self, lam, seed=0, angles=(1.5264, 0.00056)):
        self.lam, self.angles, self.dtype, self.device = lam, angles, torch.float64, torch.device("cpu")
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, n):
        return torch.rand(n, generator=self.generator, dtype=torch.float64)

    def noised(self, a):
        y = torch.randn(len(a), 1, generator=self.generator, dtype=torch.float64) * variance(a, self.lam).sqrt()[:, None]
        share = 1 / variance(a, self.lam)[:, None]
        found = OnTrajectory(y, a.cos()[:, None] * self.lam * share * y, a.sin()[:, None] * share * y)
        found.a, found.lam = a, self.lam
        return found

    def normal(self, *size):
        return torch.randn(*size, generator=self.generator, dtype=torch.float64)

    def prior(self, n):
        return variance(torch.tensor(self.angles[0], dtype=torch.float64), self.lam).sqrt() * self.normal(n, 1)

    def denoised(self, y, a):
        return (a.cos() * self.lam / variance(a, self.lam))[:, None] * y

    def velocity(self, y, a):
        return (variance_rate(a, self.lam) / 2 / variance(a, self.lam))[:, None] * y

    def step(self, y, a, r, kind):
        return slope(a, r, self.lam)[:, None] * y

    @property
    def trajectories(self):
        angles = torch.linspace(*self.angles, 9, dtype=torch.float64)
        start = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
        return Trajectories(angles, torch.stack([slope(angles[0], b, self.lam) * start for b in angles]), "closed form")

    def rows(self, n):
        return torch.randint(50, (n,), generator=self.generator)

    def levels(self, n, ends):
        begin = torch.randint(8, (n,), generator=self.generator)
        return begin, begin + 1 + (self.uniform(n) * (8 - begin)).long()


def straight_map(lam, angles):
    """The velocity of the straightened flow of a Gaussian, in ``average``, which does not look at b."""
    first, last = (torch.tensor(angle, dtype=torch.float64) for angle in angles)
    tau = [angle.sin() / (angle.sin() + angle.cos()) for angle in (first, last)]
    ratio = slope(first, last, lam) * (first.cos() + first.sin()) / (last.cos() + last.sin())

    def answers(y, a, b):
        x = y / (a.cos() + a.sin())[:, None]
        share = (a.sin() / (a.sin() + a.cos()) - tau[0]) / (tau[1] - tau[0])
        return ((ratio - 1) / (tau[1] - tau[0]) / (1 + share * (ratio - 1)))[:, None] * x

    return AngleMap(answers, "average")


def angles(n, seed=0):
    """Angles a, and smaller ones b."""
    draw = torch.Generator().manual_seed(seed)
    a = 0.02 + 1.5 * torch.rand(n, generator=draw, dtype=torch.float64)
    return a, a * torch.rand(n, generator=draw, dtype=torch.float64)
