"""A closed-form network in the conventions of diffusers' schedulers, their documented loop around it, and its exact flow.

Nothing here uses the code under test: noise levels are read from the scheduler itself, and what a network sees and answers is
written out from diffusers' documentation.
"""

import math

import numpy as np
import torch

import diffode

FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
TARGETS = {
    "gaussian": diffode.targets.GaussianMixture(
        weights=torch.ones(1), means=torch.tensor([[1.5]]), covariances=torch.tensor([0.25])
    ),
    "three modes": diffode.targets.GaussianMixture(
        weights=torch.tensor([0.2, 0.5, 0.3]),
        means=torch.tensor([[-1.5], [0.2], [1.8]]),
        covariances=torch.tensor([0.04, 0.02, 0.06]),
    ),
}


class Network:
    """The exact denoiser of a target, called as the networks of a scheduler are."""

    def __init__(self, target, scheduler):
        self.field, self.calls = diffode.exact_field(TARGETS[target], "edm:sigma_min=1e-4,sigma_max=1e7"), 0
        config = self.config = scheduler.config
        name = type(scheduler).__name__
        self.flow = name in FLOWS or bool(config.get("use_flow_sigmas"))
        self.edm = hasattr(scheduler, "precondition_noise")
        self.told_level = self.edm or config.get("timestep_type") == "continuous"
        self.prediction = "flow_prediction" if name in FLOWS else config.get("prediction_type", "epsilon")
        if not self.flow and not self.edm:
            table = scheduler.alphas_cumprod.double().clone()
            table[table == 0] = 1e-12
            self.levels = ((1 - table) / table).sqrt().numpy()
        # Noise levels between two timesteps are interpolated as the scheduler does it.
        converted = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
        self.logarithmic = any(config.get(key) for key in converted)

    def level(self, t):
        """sigma/alpha at a timestep."""
        t = float(t)
        if self.told_level:
            return math.exp(4 * t)
        if self.flow:
            time = t / self.config["num_train_timesteps"]
            time = 1 - time if self.config.get("invert_sigmas") else time
            return time / max(1 - time, 1e-9)
        places = np.arange(len(self.levels))
        if self.logarithmic:
            return float(np.exp(np.interp(t, places, np.log(self.levels))))
        return float(np.interp(t, places, self.levels))

    def __call__(self, x, t):
        self.calls += 1
        rho, dtype, x = self.level(t), x.dtype, x.double()
        if self.flow:
            alpha, sigma = 1 / (1 + rho), rho / (1 + rho)
        else:
            alpha = 1 / math.sqrt(1 + rho**2)
            sigma = rho * alpha
        if self.edm:
            unit = self.config["sigma_data"]
            size = math.sqrt(rho**2 + unit**2)
            clean = x * size
            denoised = self.field.denoised(clean, rho)
            answer = (denoised - (unit / size) ** 2 * clean) / (rho * unit / size)
            return (answer if self.prediction == "epsilon" else -answer).to(dtype)
        denoised, noise = self.field.denoised(x / alpha, rho), self.field.noise(x / alpha, rho)
        answers = {
            "epsilon": noise, "sample": denoised, "v_prediction": alpha * noise - sigma * denoised,
            "flow_prediction": noise - denoised,
        }  # fmt: skip
        return (-1 if self.config.get("invert_sigmas") else 1) * answers[self.prediction].to(dtype)


def follow(scheduler, network, noise, **arguments):
    """diffusers' own loop: the start and the end of a run."""
    scheduler.set_timesteps(**arguments)
    start = x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(shown, t), t, x).prev_sample
    return start, x.double()


def levels(scheduler, network):
    """sigma/alpha of the first and the last level of a scheduler of theirs, after ``set_timesteps``."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        return network.level(scheduler.timesteps[0]), math.sqrt((1 - final) / final)
    first, last = float(sigmas[0]), float(sigmas[-1])
    if network.flow:
        if network.config.get("invert_sigmas"):
            first, last = 1 - first, 1 - last
        first, last = first / max(1 - first, 1e-6), last / (1 - last)
    return first, last


def gap_to_exact(made, theirs, target, noise, arguments):
    """Mean distance of a run's end from the exact flow of its own start, in the data's scale.

    Args:
        made: the scheduler that runs: theirs, or ours in its place.
        theirs: the scheduler that says where the levels are.
    """
    network = Network(target, theirs)
    theirs.set_timesteps(**arguments)
    first, last = levels(theirs, network)
    # Schedulers of this kind hold x/alpha.
    exploding = (made is theirs or network.told_level) and float(getattr(theirs, "init_noise_sigma", 1.0)) > 1.001
    start, end = follow(made, network, noise, **arguments)

    def unscaled(x, rho):
        return x.double() * (1.0 if exploding else 1 + rho if network.flow else math.sqrt(1 + rho**2))

    reached = diffode.reference(network.field, unscaled(start, first), first, last).x
    return float((unscaled(end, last) - reached).abs().mean())
