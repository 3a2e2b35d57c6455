"""The nodes: a sampler, the universal tables, and the levels of a grid."""

from __future__ import annotations

from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import torch

import diffode
from diffode.adapters import as_comfyui_sampler

#: Samplers of the usual menus: the name there, and diffode's spec.
MENU = {
    "diffode_dpmpp_2m": "dpmpp:order=2",
    "diffode_dpmpp_3m": "dpmpp:order=3,form=consistent",
    "diffode_unipc_3": "unipc:order=3",
    "diffode_ipndm_3": "ipndm:order=3",
    "diffode_deis_3": "deis:order=3",
    "diffode_res_2m": "res_2m",
    "diffode_res_3m": "res_m:order=3,form=consistent",
    "diffode_res_3s": "res_3s",
    "diffode_krogstad": "exponential_rk:method=krogstad",
    "diffode_hochbruck_ostermann_4": "exponential_rk:method=hochbruck_ostermann_4",
    "diffode_er_sde_3": "er_sde_3",
    "diffode_sa": "sa",
    "diffode_universal": "universal",
}


def add_to_menus() -> None:
    """Offer the samplers of ``MENU`` by name wherever ComfyUI lists its own."""
    for name, spec in MENU.items():
        setattr(k_diffusion, f"sample_{name}", as_comfyui_sampler(spec))
        for names in (comfy.samplers.KSAMPLER_NAMES, comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS):
            if name not in names:
                names.append(name)


def table_solvers() -> list[str]:
    """Names of the solvers that write a table without a file."""
    names = []
    for name in diffode.solvers.names():
        try:
            diffode.solvers.table_solver(name)
        except diffode.errors.DiffodeError:
            continue
        names.append(name)
    return names


class DiffodeSampler:
    """A solver of diffode as a SAMPLER, with options as in its spec: order=3,form=consistent."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "solver": (table_solvers(), {"default": "dpmpp"}),
                "options": ("STRING", {"default": "", "tooltip": "as in a spec: order=3,form=consistent"}),
                "scale": ("FLOAT", {"default": 1.0, "min": 1e-3, "max": 1e3, "tooltip": "root mean variance of the latents"}),
            }
        }

    def get_sampler(self, solver: str, options: str, scale: float) -> tuple[Any]:
        spec = f"{solver}:{options}" if options.strip() else solver
        return (comfy.samplers.KSAMPLER(as_comfyui_sampler(spec, scale=scale)),)


class DiffodeUniversal:
    """diffode's universal tables as a SAMPLER: 4 to 13 steps, whose last goes to sigma = 0, on levels of their own.

    ``member`` is that of a codebook (``diffode.learned.tune_universal`` finds it for a model), -1 the table for all data.
    """

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "member": ("INT", {"default": -1, "min": -1, "max": 10_000}),
                "scale": ("FLOAT", {"default": 1.0, "min": 1e-3, "max": 1e3, "tooltip": "root mean variance of the latents"}),
            }
        }

    def get_sampler(self, member: int, scale: float) -> tuple[Any]:
        spec = "universal" if member < 0 else f"universal:member={member}"
        return (comfy.samplers.KSAMPLER(as_comfyui_sampler(spec, scale=scale)),)


class DiffodeScheduler:
    """The levels of a grid of diffode between a model's ends, as SIGMAS: karras:rho=5, beta:alpha=0.5, levels 14.6 2 0.5 0."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = "sampling/custom_sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "grid": ("STRING", {"default": "karras:to_zero=true"}),
                "steps": ("INT", {"default": 10, "min": 1, "max": 10_000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(self, model: Any, grid: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        if denoise <= 0:
            return (torch.zeros(0),)
        sampling = model.get_model_object("model_sampling")
        low, high = float(sampling.sigma_min), float(sampling.sigma_max)
        levels = getattr(sampling, "sigmas", None)
        path: diffode.paths.Path
        if any(base.__name__ == "CONST" for base in type(sampling).__mro__):
            path = diffode.paths.RectifiedFlow(low, high)
        elif levels is not None:
            # Menus such as simple choose among the levels of the training, of which sigma^2 = 1/alphas_cumprod - 1.
            path = diffode.paths.Tabulated((1 / (1 + levels.double() ** 2)).tolist())
        else:
            path = diffode.paths.EDM(low, high)
        # As in ComfyUI's own nodes, the last steps of a longer run are taken.
        total = steps if denoise > 0.9999 else int(steps / denoise)
        times = diffode.grids.get(grid, path, total if diffode.grids.is_named(grid) else None).tolist()
        sigmas = [path.sigma(t) if path.name == "rectified_flow" else path.rho(t) for t in times]
        return (torch.tensor(sigmas[-(steps + 1) :], dtype=torch.float32),)


NODE_CLASS_MAPPINGS = {
    "DiffodeSampler": DiffodeSampler,
    "DiffodeUniversal": DiffodeUniversal,
    "DiffodeScheduler": DiffodeScheduler,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DiffodeSampler": "Sampler (diffode)",
    "DiffodeUniversal": "Universal tables (diffode)",
    "DiffodeScheduler": "Scheduler (diffode)",
}
