"""Write tests/data/comfyui.json: ends of ComfyUI's samplers, run by its own KSAMPLER and CFGGuider on an exact denoiser.

``python tools/record_comfyui.py FOLDER``: FOLDER is a checkout of ComfyUI. Each run is in float64 on ``ring8``, with noise that
is a function of the two levels of its step. Our equivalent runs through the same objects; the largest difference of each is
printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from verdicts.comfyui import Comfy
from verdicts.peers import Peers

import diffode
from diffode.adapters import as_comfyui_sampler

OUT = Path(__file__).parent.parent / "tests" / "data" / "comfyui.json"
#: Levels of a run from its model's levels to 0, of one that ends above, and of one of flow matching.
LEVELS = {
    "to zero": [12.0, 6.5, 3.0, 1.6, 0.8, 0.35, 0.12, 0.0],
    "above zero": [12.0, 6.5, 3.0, 1.6, 0.8, 0.35, 0.12],
    "flow": [0.95, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.0],
    "flow above zero": [0.95, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1],
}
_BOTH = ("to zero", "above zero")
_ABOVE = ("above zero",)
_ALL = ("to zero", "above zero", "flow")
#: Name in ComfyUI's menu, its options, our spec, options of our sampler function, whether it draws noise, and on which levels
#: both are equal. Of the others: ComfyUI's lms, ipndm, ipndm_v and deis take the denoised point in a step to 0, ours keep their
#: order there; its functions for x = x_0 + sigma eps step in sigma on models of flow matching too, ours in the chart of the
#: method. No spec of ours lowers its orders before the end as sa_solver does, and dpmpp_sde draws the noise of a part of a step
#: and of the whole step in another clock than ours.
EQUALS: tuple[tuple[str, dict[str, Any], str, dict[str, Any], bool, tuple[str, ...]], ...] = (
    ("euler", {}, "ddim", {}, False, _ALL),
    ("heun", {}, "edm_heun", {}, False, _BOTH),
    ("heun", {}, "heun", {}, False, ("flow above zero",)),
    ("heunpp2", {}, "heunpp2", {}, False, _BOTH),
    ("dpm_2", {}, "dpm:order=2", {}, False, _BOTH),
    ("lms", {}, "lms:order=4", {}, False, _ABOVE),
    ("lms", {}, "ab:order=4", {}, False, ("flow above zero",)),
    ("dpmpp_2m", {}, "dpmpp:order=2,lower_order_final=never", {}, False, _BOTH),
    ("ipndm", {}, "ipndm:order=4", {}, False, _ABOVE),
    ("ipndm_v", {}, "ipndm_v:order=4", {}, False, _ABOVE),
    ("deis", {}, "deis:order=3", {}, False, _ABOVE),
    ("uni_pc", {}, "unipc:order=3,variant=bh1", {}, False, _ABOVE),
    ("uni_pc_bh2", {}, "unipc:order=3,variant=bh2", {}, False, _ABOVE),
    ("res_multistep", {}, "dpmpp:order=2,form=taylor,lower_order_final=never", {}, False, _BOTH),
    ("gradient_estimation", {}, "gradient_estimation", {}, False, _BOTH),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp_s:order=2", {}, False, _ALL),
    ("dpmpp_sde", {"eta": 0.0}, "dpmpp_sde", {"eta": 0.0}, False, _ALL),
    ("dpmpp_3m_sde", {"eta": 0.0}, "dpmpp_3m_sde", {"eta": 0.0}, False, _ALL),
    ("seeds_2", {"eta": 0.0}, "seeds:order=2,chart=data", {"eta": 0.0}, False, _ALL),
    ("seeds_3", {"eta": 0.0}, "seeds:order=3,chart=data", {"eta": 0.0}, False, _ALL),
    ("euler_ancestral", {}, "euler_ancestral", {}, True, _BOTH),
    ("dpm_2_ancestral", {}, "dpm2_ancestral", {}, True, _BOTH),
    ("dpmpp_2s_ancestral", {}, "dpmpp_2s_ancestral", {}, True, _BOTH),
    ("dpmpp_2m_sde", {}, "dpmpp_2m_sde", {}, True, _ALL),
    ("dpmpp_2m_sde_heun", {}, "dpmpp_2m_sde:form=heun", {}, True, _ALL),
    ("dpmpp_3m_sde", {}, "dpmpp_3m_sde", {}, True, _ALL),
    ("ddpm", {}, "ddpm", {}, True, _BOTH),
    ("lcm", {}, "lcm", {}, True, ("to zero", "flow")),
    ("seeds_2", {}, "seeds:order=2,chart=data", {}, True, _ALL),
    ("seeds_3", {}, "seeds:order=3,chart=data", {}, True, _ALL),
    ("er_sde", {}, "er_sde:points=200", {}, True, _ALL),
)  # fmt: skip
#: Largest difference, where it is not rounding: DEIS integrates on 10,000 points, ER-SDE sums in float32.
LOOSE = {"deis": 1e-3, "er_sde": 1e-7}


def noise_of(x: Tensor) -> Any:
    """A noise sampler whose noise depends on the two levels and the place alone."""
    place = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    return lambda sigma, following: torch.sin(1.3 * place + 3.7 * float(sigma) + 5.1 * float(following)) * 1.4


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    comfy = Comfy(folder)
    noise = torch.sin(torch.arange(6, dtype=torch.float64).reshape(3, 2) * 2.3 + 0.4) * 1.3
    fields = {flow: diffode.exact_field("ring8", "rectified_flow:t_max=1" if flow else "edm") for flow in (False, True)}
    recorded = []
    # UniPC makes its small matrices in the default dtype.
    torch.set_default_dtype(torch.float64)
    for name, options, spec, more, draws, places in EQUALS:
        for levels in places:
            flow = levels.startswith("flow")
            given: dict[str, Any] = {"noise_sampler": noise_of(noise[:, :, None, None])} if draws else {}
            at = torch.tensor(LEVELS[levels], dtype=torch.float64)
            end, calls = comfy.run(name, fields[flow], noise, at, flow=flow, **options, **given)
            ours, own_calls = comfy.run(as_comfyui_sampler(spec), fields[flow], noise, at, flow=flow, **more, **given)
            difference = float((ours - end).abs().max())
            print(f"{name:22s} {spec:52s} {levels:11s} {difference:.1e} calls {calls} and {own_calls}", flush=True)
            recorded.append({
                "name": name, "options": options, "spec": spec, "more": more, "draws": draws, "levels": levels,
                "sigmas": LEVELS[levels], "end": end.tolist(), "calls": calls, "within": LOOSE.get(name, 1e-9),
            })  # fmt: skip
    kept = {"comfyui": Peers(folder.parent).version(folder.name), "start": noise.tolist(), "runs": recorded}
    OUT.write_text(json.dumps(kept, indent=None).replace('{"name"', '\n{"name"') + "\n")


if __name__ == "__main__":
    main()
