"""Copies of the zoo's solvers as plain functions, right ones and ones with a defect: what ``diffode check`` has to tell apart.

Each takes (field, x, times) or (field, x, times, generator) on a path with alpha = 1, so that x is z and a time is rho.
"""

import itertools
import math

import torch

HISTORY = []


def euler(field, x, times):
    for s, t in itertools.pairwise(times):
        x = x + (t - s) * field.noise(x, s)
    return x


def heun(field, x, times):
    for s, t in itertools.pairwise(times):
        d = field.noise(x, s)
        x = x + (t - s) / 2 * (d + field.noise(x + (t - s) * d, t))
    return x


def second_order_multistep(field, x, times, swap=False):
    """DPM-Solver++ 2M."""
    old = None
    for i, (s, t) in enumerate(itertools.pairwise(times)):
        denoised = field.denoised(x, s)
        if t == 0:
            return denoised
        h = math.log(s / t)
        if old is None:
            mixed = denoised
        else:
            r = math.log(times[i - 1] / s) / h
            weights = (1 + 1 / (2 * r), -1 / (2 * r))
            mixed = weights[swap] * denoised + weights[not swap] * old
        x = t / s * x + (1 - t / s) * mixed
        old = denoised
    return x


def noisy(field, x, times, generator, noise=1.0, reuse=False):
    """Euler-Maruyama for the reverse SDE with g^2 = 2 rho, its noise exact for a step."""
    z = None
    for s, t in itertools.pairwise(times):
        if z is None or not reuse:
            z = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        x = x + 2 * (t - s) * field.noise(x, s) + noise * math.sqrt(s**2 - t**2) * z
    return x


RIGHT = {"euler": (euler, 1), "heun": (heun, 2), "2m": (second_order_multistep, 2), "noisy": (noisy, None)}


def wrong_sign(field, x, times):
    for s, t in itertools.pairwise(times):
        x = x - (t - s) * field.noise(x, s)
    return x


def swapped_history(field, x, times):
    return second_order_multistep(field, x, times, swap=True)


def off_by_one_time(field, x, times):
    for s, t in itertools.pairwise(times):
        d = field.noise(x, s)
        x = x + (t - s) / 2 * (d + field.noise(x + (t - s) * d, s))
    return x


def dropped_factor(field, x, times):
    for s, t in itertools.pairwise(times):
        d = field.noise(x, s)
        x = x + (t - s) * (d + field.noise(x + (t - s) * d, t))
    return x


def missing_final_step(field, x, times):
    return heun(field, x, times[:-1])


def reused_noise(field, x, times, generator):
    return noisy(field, x, times, generator, reuse=True)


def weak_noise(field, x, times, generator):
    return noisy(field, x, times, generator, noise=0.9)


def batch_leak(field, x, times):
    end = heun(field, x, times)
    return end + 1e-6 * end.mean(0)


def kept_history(field, x, times):
    """The last slope of the run before enters the first step."""
    first = field.noise(x, times[0])
    if HISTORY and HISTORY[0].shape == x.shape:
        x = x + 1e-3 * (HISTORY[0] - first)
    HISTORY[:] = [first]
    return heun(field, x, times)


def global_noise(field, x, times):
    torch.seed()
    return heun(field, x, times) + 1e-9 * torch.randn_like(x)


def evaluated_twice(field, x, times):
    for s, t in itertools.pairwise(times):
        d = (field.noise(x, s) + field.noise(x, s)) / 2
        x = x + (t - s) / 2 * (d + field.noise(x + (t - s) * d, t))
    return x


def unused_evaluation(field, x, times):
    x = heun(field, x, times)
    field.noise(x, times[-1])
    return x


def overwritten_start(field, x, times):
    start, x = x, heun(field, x, times)
    start.copy_(x)
    return x


def single_precision(field, x, times):
    return heun(field, x, times).float()


def first_order_forever(field, x, times):
    """Claims two, never leaves its starting step."""
    return euler(field, x, times)


def doubled_last_step(field, x, times):
    """The last step is made of two halves on every fifth grid, as rounding of a step's size does."""
    if len(times) % 5 == 0:
        times = [*times[:-1], (times[-2] * times[-1]) ** 0.5, times[-1]]
    return heun(field, x, times)


#: Defect, the order claimed, and the topic of the finding that has to name it.
DEFECTS = {
    "wrong sign": (wrong_sign, 1, ("limit", "order")),
    "swapped history": (swapped_history, 2, ("order",)),
    "off-by-one time": (off_by_one_time, 2, ("order",)),
    "dropped factor": (dropped_factor, 2, ("limit", "order")),
    "missing final step": (missing_final_step, 2, ("ends",)),
    "reused noise": (reused_noise, None, ("moments",)),
    "weak noise": (weak_noise, None, ("moments",)),
    "batch leak": (batch_leak, 2, ("batches",)),
    "kept history": (kept_history, 2, ("repeatable",)),
    "global noise": (global_noise, 2, ("repeatable",)),
    "evaluated twice": (evaluated_twice, 2, ("wasted evaluations",)),
    "unused evaluation": (unused_evaluation, 2, ("wasted evaluations",)),
    "overwritten start": (overwritten_start, 2, ("start",)),
    "single precision": (single_precision, 2, ("runs",)),
    "first order forever": (first_order_forever, 2, ("order",)),
    "doubled last step": (doubled_last_step, 2, ("evaluations",)),
}
