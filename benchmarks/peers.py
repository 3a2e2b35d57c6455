"""What diffode's speed is held against: the same formulas as one would write them down, and other libraries if installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor


def textbook(x: Tensor, means: Tensor, log_weights: Tensor, variance: float) -> Tensor:
    """The score of an isotropic mixture as one would write it from the formula, row-major."""
    distance = x.square().sum(1, keepdim=True) - 2 * x @ means.T + means.square().sum(1)
    r = torch.softmax(log_weights - distance / (2 * variance), 1)
    return (r @ means - x) / variance


def jax_score(x: Tensor, means: Tensor, weights: Tensor) -> Callable[[], object]:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    jnp = importlib.import_module("jax.numpy")
    m, lw = jnp.asarray(means.numpy()), jnp.log(jnp.asarray(weights.numpy()))

    @jax.jit
    def score(y: object) -> object:
        distance = (y * y).sum(1, keepdims=True) - 2 * y @ m.T + (m * m).sum(1)
        r = jax.nn.softmax(lw - distance / 1.0, axis=1)
        return (r @ m - y) / 0.5

    points = jnp.asarray(x.numpy())
    return lambda: score(points).block_until_ready()


def diffusers_run(z: Tensor, denoised: Callable[[Tensor, float], Tensor]) -> Callable[[], object]:
    schedulers = importlib.import_module("diffusers")
    scheduler = schedulers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=1.0, final_sigmas_type="sigma_min"
    )

    def run() -> Tensor:
        scheduler.set_timesteps(20)
        x = 80 * z
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            level = float(sigma)
            d = denoised(x, level)
            # The scheduler preconditions; hand it the network output that means this denoised point.
            skip, out = 1 / (level**2 + 1), level / (level**2 + 1) ** 0.5
            x = scheduler.step((d - skip * x) / out, t, x).prev_sample
        return x

    return run


def azula_run(z: Tensor, denoised: Callable[[Tensor, float], Tensor]) -> Callable[[], object]:
    """Its exponential Adams-Bashforth method on denoised points: the same cost as DPM-Solver++ 2M."""
    sample, denoise, noise = (importlib.import_module(f"azula.{name}") for name in ("sample", "denoise", "noise"))

    class Exact(denoise.Denoiser):  # type: ignore[misc, name-defined]
        schedule = noise.VESchedule(sigma_min=0.002, sigma_max=80.0)

        def forward(self, x: Tensor, t: Tensor) -> object:
            return denoise.DiracPosterior(denoised(x, float(self.schedule.sigma(t))))

    sampler = sample.xEABSampler(Exact(), order=2, steps=20, silent=True, dtype=torch.float64)
    return lambda: sampler(80 * z)


def torchsde_run(z: Tensor, denoised: Callable[[Tensor, float], Tensor], grid: Tensor) -> Callable[[], object]:
    torchsde = importlib.import_module("torchsde")

    class Flow(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, x: Tensor) -> Tensor:
            level = 80 - float(t) + 0.002
            return -(x - denoised(x, level)) / level

        def g(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    times = torch.tensor([0.0, 79.0])
    return lambda: torchsde.sdeint(Flow(), 80 * z, times, dt=79 / 20, method="euler")


def installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        print(f"(not installed, left out: {name})")
        return False
    return True
