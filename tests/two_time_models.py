"""Exact models of two times of other libraries: of a Gaussian on the straight path, in closed form, with any convention."""

import torch

from diffode.targets import GaussianMixture

#: Mean and variance of the data.
MEAN, VARIANCE = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
GAUSSIAN = GaussianMixture([1.0], MEAN[None], VARIANCE[None])


def columns(t, x):
    return torch.as_tensor(t, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def straight(x, s, t):
    """The exact flow of the Gaussian on the straight path, data at 0."""
    s, t = columns(s, x), columns(t, x)
    size = [((1 - time) ** 2 * VARIANCE + time**2).sqrt() for time in (s, t)]
    return (1 - t) * MEAN + size[1] / size[0] * (x - (1 - s) * MEAN)


def average(x, s, t):
    """Its average velocity, and where t = s the velocity, without cancellation."""
    s, t = columns(s, x), columns(t, x)
    of_s, of_t = (((1 - time) ** 2 * VARIANCE + time**2).sqrt() for time in (s, t))
    slope = ((t + s) * (1 + VARIANCE) - 2 * VARIANCE) / (of_s + of_t) / of_s
    return -MEAN + slope * (x - (1 - s) * MEAN)


def network(form="t,r", data_at=0, sign=1, span=1.0):
    """A network of the average velocity with a convention."""

    def model(x, first, second):
        first, second = first / span, second / span
        here, there = {
            "t,r": (first, second),
            "r,t": (second, first),
            "t,t-r": (first, first - second),
            "t,r-t": (first, first + second),
        }[form]
        if data_at == 1:
            return -sign * average(x, 1 - here, 1 - there)
        return sign * average(x, here, there)

    return model
