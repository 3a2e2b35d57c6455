"""Maps with one planted defect each, and what the verdict calls it."""

import torch

import diffode
from diffode.maps import AngleClock
from diffode.targets import GaussianMixture


def exact(field):
    return diffode.flow(field)


def ddim(field):
    path = field.path
    return lambda x, s, t: path.alpha(t)[:, None] * field.denoised(x, s) + path.sigma(t)[:, None] * field.noise(x, s)


def euler(field):
    return lambda x, s, t: x + (t - s)[:, None] * field.velocity(x, s)


def gaussian(field):
    clock = AngleClock.of(field)
    return lambda x, s, t: clock.point(clock.state(x, field.path, s), field.path, t)


def swapped(field):
    flow = diffode.flow(field)
    return lambda x, s, t: flow(x, t, s)


def scaled(field):
    flow = diffode.flow(field)
    return lambda x, s, t: 1.01 * flow(x, s, t)


def doubled(field):
    flow = diffode.flow(field)
    return lambda x, s, t: 2 * flow(x, s, t)


def average(field):
    return diffode.flow(field).average_velocity


def displacement(field):
    flow = diffode.flow(field)
    return lambda x, s, t: flow(x, s, t) - x


def identity(field):
    return lambda x, s, t: x.clone()


def denoiser(field):
    return lambda x, s, t: field.denoised(x, s)


def end_only(field):
    flow, end = diffode.flow(field), field.path.t_min
    return lambda x, s, t: flow(x, s, torch.full_like(t, end))


def end_right_only(field):
    """Right to the end, a straight line between start and end elsewhere."""
    flow, last = diffode.flow(field), field.path.t_min

    def phi(x, s, t):
        share = torch.where(s > last, (s - t) / (s - last).clamp(min=1e-12), 0.0)[:, None]
        return x + share.sqrt() * (flow(x, s, torch.full_like(t, last)) - x)

    return phi


def one_jump_only(field):
    """Right from the first time to the last, a DDIM step elsewhere."""
    flow, step, path = diffode.flow(field), ddim(field), field.path

    def phi(x, s, t):
        whole = ((s >= path.t_max) & (t <= path.t_min))[:, None]
        return torch.where(whole, flow(x, s, t), step(x, s, t))

    return phi


def straightened(field):
    """Of a Gaussian on the line: right at its end, over the straight lines between start and end, as after ReFlow."""
    first, last = field.path.t_max, field.path.t_min
    zero, one = diffode.flow(field)(torch.tensor([[0.0], [1.0]], dtype=torch.float64), first, last)

    def phi(x, s, t):
        before, after = (((first - time) / (first - last))[:, None] for time in (s, t))
        start = (x - before * zero) / (1 - before + before * (one - zero))
        return (1 - after) * start + after * (zero + start * (one - zero))

    return phi


def mirrored(field):
    """The flow after the noise is turned over: for data of a symmetric law the law is right, and every coupling wrong."""
    flow, path, mean = diffode.flow(field), field.path, field.target.mean
    return lambda x, s, t: 2 * path.alpha(t)[:, None] * mean - flow(x, s, t)


def other_path(field):
    return diffode.flow(diffode.exact_field(field.target, "trigonometric"))


def leaks(field):
    flow = diffode.flow(field)
    return lambda x, s, t: flow(x, s, t) + 0.01 * x.mean(0)


def noisy(field):
    flow = diffode.flow(field)
    return lambda x, s, t: flow(x, s, t) + 1e-3 * torch.randn_like(x)


def overwrites(field):
    flow = diffode.flow(field)

    def phi(x, s, t):
        end = flow(x, s, t)
        x.mul_(2)
        return end

    return phi


def one_time(field):
    flow = diffode.flow(field)
    return lambda x, s, t: flow(x, s[:1].expand(len(x)), t)


def explodes(field):
    return lambda x, s, t: x / (t - field.path.t_min)[:, None]


def raises(field):
    def phi(x, s, t):
        raise RuntimeError("out of memory, of a kind")

    return phi


#: A law with a mode of weight 1e-3, and the same without it.
RARE = GaussianMixture([0.599, 0.4, 0.001], [[-1.0], [1.0], [4.0]], [[0.04], [0.04], [0.04]])
WITHOUT = GaussianMixture([0.6, 0.4], [[-1.0], [1.0]], [[0.04], [0.04]])
EVEN = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[0.09], [0.09]])


def drops_a_mode(field):
    return diffode.flow(diffode.exact_field(WITHOUT, field.path))
