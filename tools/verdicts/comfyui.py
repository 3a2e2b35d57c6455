"""ComfyUI's own KSAMPLER, CFGGuider and ModelPatcher, around a network that is an exact denoiser.

What stands in for parts of ComfyUI: the network (``Exact``, in place of its BaseModel), and ``load_models_gpu``, which has
nothing to load. The rest is ComfyUI's code as it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffode.fields import Field
from diffode.verify.sampler.foreign import k_diffusion
from diffode.verify.sampler.subject import Sampler
from verdicts.peers import Peers, comfyui
from verdicts.row import Claim


class Exact(torch.nn.Module):
    """A network of ComfyUI whose denoised points are those of an exact field, in float64; its states are (B, E, 1, 1)."""

    def __init__(self, field: Field, sampling: Any):
        super().__init__()
        self.field, self.model_sampling, self.calls = field, sampling, 0
        self.latent_format, self.current_patcher, self.device = None, None, torch.device("cpu")

    def apply_model(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
        """The denoised points at noise levels of ComfyUI."""
        self.calls += 1
        rows = x.reshape(len(x), -1)
        return self.field.denoised(rows, float(t[0])).reshape(x.shape)

    def get_dtype(self) -> torch.dtype:
        return torch.float64

    def memory_required(self, *_: Any, **__: Any) -> float:
        return 0.0

    def extra_conds_shapes(self, **_: Any) -> dict[str, Any]:
        return {}

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return latent

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent


class Comfy:
    """ComfyUI with an exact field: runs of its samplers, or of sampler functions of others, through its own objects.

    ``left`` is what left CFGGuider in the last run, in float32 and in the units of the latents.
    """

    def __init__(self, folder: Path):
        self.left = torch.empty(0)
        comfyui(folder)
        self.samplers = importlib.import_module("comfy.samplers")
        self._sampling = importlib.import_module("comfy.model_sampling")
        self._patcher = importlib.import_module("comfy.model_patcher")
        importlib.import_module("comfy.model_management").load_models_gpu = lambda *_, **__: None

    def levels(self, flow: bool) -> Any:
        """An object of ComfyUI's model_sampling classes, in float64."""
        kind = self._sampling
        bases = (kind.ModelSamplingDiscreteFlow, kind.CONST) if flow else (kind.ModelSamplingDiscrete, kind.EPS)
        return type("Levels", bases, {})().double()

    def run(
        self,
        function: str | Callable[..., Tensor],
        field: Field,
        noise: Tensor,
        sigmas: Tensor,
        *,
        flow: bool,
        seed: int = 0,
        **options: Any,
    ) -> tuple[Tensor, int]:
        """The end of a sampler, by its name in the menu or as a function, in float64, and its calls of the network."""
        model = Exact(field, self.levels(flow))
        patcher = self._patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        model.current_patcher = patcher
        sampler = self.samplers.sampler_object(function) if isinstance(function, str) else self.samplers.KSAMPLER(function)
        inner, ends = sampler.sampler_function, []

        def kept(*given: Any, **more: Any) -> Tensor:
            # What leaves CFGGuider is rounded to float32.
            ends.append(inner(*given, **more, **options))
            return ends[-1]

        sampler.sampler_function = kept
        guider = self.samplers.CFGGuider(patcher)
        guider.set_conds([[torch.zeros(1, 1, 1), {}]], [[torch.zeros(1, 1, 1), {}]])
        self.left = guider.sample(
            noise[:, :, None, None],
            torch.zeros_like(noise)[:, :, None, None],
            sampler,
            sigmas.clone(),
            disable_pbar=True,
            seed=seed,
        )
        return ends[0].reshape(noise.shape), model.calls


class FlowModel:
    """A model of flow matching as ComfyUI wraps it for sampler functions: an exact denoiser, with levels of its class CONST."""

    def __init__(self, field: Field, sampling: Any):
        self.field, self.model_sampling = field, sampling
        self.inner_model = self.model_patcher = self

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return self.field.denoised(x, float(sigma[0]))

    def get_model_object(self, name: str) -> Any:
        return self.model_sampling


#: Sampler functions on models of flow matching: options, order claimed, source, chart.
_ON_FLOWS: tuple[tuple[str, dict[str, Any], int | None, str, str], ...] = (
    ("euler", {}, 1, "as on other models", "flow, velocity"),
    ("heun", {}, 2, "as on other models", "flow, velocity"),
    ("dpm_2", {}, 2, "as on other models", "flow, velocity"),
    ("lms", {}, None, "", "flow, velocity"),
    ("dpmpp_2m", {}, 2, "as on other models", "flow, data in log sigma"),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2, "as on other models", "flow, data"),
    ("dpmpp_sde", {"eta": 0.0}, 2, "as on other models", "flow, data"),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2, "as on other models", "flow, data"),
    ("dpmpp_3m_sde", {"eta": 0.0}, 3, "as on other models", "flow, data"),
    ("seeds_2", {"eta": 0.0}, 2, "as on other models", "flow, data"),
    ("seeds_3", {"eta": 0.0}, 3, "as on other models", "flow, data"),
    ("res_multistep", {}, 2, "as on other models", "flow, data in log sigma"),
    ("euler_ancestral", {}, None, "", "flow, law"),
    ("dpm_2_ancestral", {}, None, "", "flow, law"),
    ("dpmpp_2s_ancestral", {}, None, "", "flow, law"),
    ("er_sde", {}, None, "", "flow, law"),
    ("seeds_2", {}, None, "", "flow, law"),
    ("ddpm", {}, None, "", "flow, law"),
)


def claims(peers: Peers) -> Iterator[Claim]:
    """Rows of ComfyUI beside those of its functions on x = x_0 + sigma eps: UniPC, and models of flow matching."""
    comfy = Comfy((peers.folder or Path(".")) / "ComfyUI")
    unipc = importlib.import_module("comfy.extra_samplers.uni_pc")
    for variant in ("bh1", "bh2"):
        run = k_diffusion(_double(unipc.sample_unipc), {"variant": variant})
        yield Claim(
            "ComfyUI", "uni_pc" if variant == "bh1" else "uni_pc_bh2", Sampler("uni_pc", run), {"variant": variant}, 4,
            "arXiv 2302.04867, theorem 3.1, order 3", "data", "comfyui_unipc_levels",
            "lowers its order in the last steps; its menu's two names",
        )  # fmt: skip
    for name, options, order, source, chart in _ON_FLOWS:
        function = getattr(peers.load("ComfyUI"), f"sample_{name}")
        page = {"dpmpp_3m_sde": "third_order_multistep", "ddpm": "comfyui_ddpm_flow"}.get(name, "")
        remark = "starts with steps of lower order, whose error counts on equal steps" if name == "lms" else ""
        subject = Sampler(
            name, _on_flows(comfy, function, options), path="rectified_flow", grid="shift:s=1", to_zero=order is None,
            draws=10_000, law_steps=200,
        )  # fmt: skip
        yield Claim("ComfyUI", f"sample_{name}", subject, options, order, source, chart, page, remark)


def _on_flows(comfy: Comfy, function: Callable[..., Tensor], options: dict[str, Any]) -> Any:
    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        model = FlowModel(field, comfy.levels(flow=True))
        return function(model, x, torch.tensor(list(times), dtype=x.dtype), disable=True, **options)

    return run


def _double(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """UniPC makes its small matrices in the default dtype, and changes the levels that it is given."""

    def sample(model: Any, x: Tensor, sigmas: Tensor, variant: str = "bh1") -> Tensor:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)
        try:
            return function(model, x, sigmas.clone(), {}, disable=True, variant=variant)
        finally:
            torch.set_default_dtype(usual)

    return sample
