"""What of ComfyUI a sampler meets: models in its wrappers, KSAMPLER, its menus, and the modules that custom nodes import.

Written from the calls that comfy/samplers.py and comfy/model_sampling.py make; the networks are exact fields.
"""

import sys
import types

import torch

import diffode


class InterruptProcessingException(Exception):
    """What ComfyUI raises in a callback, or in the model, when the user presses cancel."""


class EPS:
    """x = x_0 + sigma eps."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return noise * (torch.sqrt(1.0 + sigma**2.0) if max_denoise else sigma) + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class CONST:
    """x = (1 - sigma) x_0 + sigma eps."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1.0 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma)


class ModelSamplingDiscrete(EPS):
    def __init__(self):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, 0)
        self.sigmas = ((1 - kept) / kept) ** 0.5
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]


class ModelSamplingDiscreteFlow(CONST):
    def __init__(self):
        self.sigmas = torch.arange(1, 1001, dtype=torch.float64) / 1000
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]


class BaseModel:
    """The network: an exact denoiser, whose calls are written down."""

    def __init__(self, target, flow=False):
        self.model_sampling = ModelSamplingDiscreteFlow() if flow else ModelSamplingDiscrete()
        self.field = diffode.exact_field(target, "rectified_flow:t_max=1" if flow else "edm")
        self.calls, self.interrupt_at = [], None

    def get_model_object(self, name):
        return getattr(self, name)

    def denoised(self, x, sigma):
        self.calls.append((float(sigma[0]), x.dtype))
        if len(self.calls) == self.interrupt_at:
            raise InterruptProcessingException
        assert sigma.shape == (len(x),)
        return self.field.denoised(x.double(), float(sigma[0])).to(x.dtype)


class CFGGuider:
    def __init__(self, model):
        self.inner_model = model

    def __call__(self, x, timestep, model_options, seed=None):
        assert isinstance(model_options, dict)
        return self.inner_model.denoised(x, timestep)


class KSamplerX0Inpaint:
    def __init__(self, model, sigmas):
        self.inner_model, self.sigmas = model, sigmas

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        if denoise_mask is not None:
            at = sigma.reshape(-1, *[1] * (x.ndim - 1))
            kept = self.inner_model.inner_model.model_sampling.noise_scaling(at, self.noise, self.latent_image)
            x = x * denoise_mask + kept * (1 - denoise_mask)
        out = self.inner_model(x, sigma, model_options=model_options or {}, seed=seed)
        return out if denoise_mask is None else out * denoise_mask + self.latent_image * (1 - denoise_mask)


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False):
        extra_args["denoise_mask"] = denoise_mask
        model = KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, bool(sigmas[0] >= sampling.sigma_max * (1 - 1e-5)))
        steps = len(sigmas) - 1
        told = None if callback is None else (lambda said: callback(said["i"], said["denoised"], said["x"], steps))
        options = self.extra_options
        x = self.sampler_function(model, x, sigmas, extra_args=extra_args, callback=told, disable=disable_pbar, **options)
        return sampling.inverse_noise_scaling(sigmas[-1], x)


class KSampler:
    """The object behind the usual node: steps, seed, denoise, and levels whose last ones are taken."""

    def __init__(self, model, steps, levels, denoise=1.0):
        total = steps if denoise > 0.9999 else int(steps / denoise)
        self.model, self.sigmas = model, levels(total)[-(steps + 1) :]

    def sample(self, sampler, noise, latent_image, seed, callback=None, denoise_mask=None):
        extra_args = {"model_options": {"transformer_options": {}}, "seed": seed}
        return sampler.sample(CFGGuider(self.model), self.sigmas, extra_args, callback, noise, latent_image, denoise_mask)


def modules():
    """The modules that custom nodes import, by name."""
    comfy, samplers = types.ModuleType("comfy"), types.ModuleType("comfy.samplers")
    k_diffusion, sampling = types.ModuleType("comfy.k_diffusion"), types.ModuleType("comfy.k_diffusion.sampling")
    samplers.KSAMPLER, samplers.KSampler = KSAMPLER, type("KSampler", (KSampler,), {"SAMPLERS": ["euler", "uni_pc"]})
    samplers.KSAMPLER_NAMES, samplers.SAMPLER_NAMES = ["euler"], ["euler", "uni_pc"]
    comfy.samplers, comfy.k_diffusion, k_diffusion.sampling = samplers, k_diffusion, sampling
    return {module.__name__: module for module in (comfy, samplers, k_diffusion, sampling)}


def installed(monkeypatch):
    """Offer the modules to imports."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
