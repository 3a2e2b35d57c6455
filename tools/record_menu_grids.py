"""Write tests/data/menu_grids.json: noise levels of other programs' menus, computed by their own functions.

``python tools/record_menu_grids.py SAMPLERS SIGMAS [MOCHI]``: ComfyUI's comfy/samplers.py, RES4LYF's sigmas.py, and a file
with Genmo's linear_quadratic_schedule (that of the installed diffusers unless given). The functions are taken out of the files
and run in float64, on the levels of Stable Diffusion and on flow-matching models with shift 1 and 3. The recorded file is of
calcuis/comfy 8c07c56, RES4LYF 022c873 and diffusers.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

OUT = Path(__file__).parent.parent / "tests" / "data" / "menu_grids.json"
HEAD = "import math\nfrom math import atan, pi\nimport numpy\nimport scipy.stats\nimport torch\n"
STEPS = (2, 5, 7, 10, 30)


def functions_of(file: Path, names: tuple[str, ...]) -> ModuleType:
    """A module of some functions of a file, in float64, without the rest of the file and its imports."""
    source = file.read_text()
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    text = HEAD + "\n".join(ast.unparse(found[name]) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "taken.py"
        place.write_text(text.replace("torch.FloatTensor", "torch.DoubleTensor"))
        spec = importlib.util.spec_from_file_location("taken", place)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{file} can't be read")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class Discrete:
    """The levels of Stable Diffusion, between which log sigma is linear in the timestep."""

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        kept = torch.cumprod(1 - betas, 0)
        self.sigmas = ((1 - kept) / kept) ** 0.5
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: Any) -> Any:
        return (sigma.log() - self.sigmas.log()).abs().argmin().double()

    def sigma(self, timestep: Any) -> Any:
        low = int(timestep)
        share = float(timestep) - low
        logs = self.sigmas.log()
        return ((1 - share) * logs[low] + share * logs[min(low + 1, 999)]).exp()


class Flow:
    """The levels of flow-matching models, 1/1000 to 1, shifted."""

    def __init__(self, shift: float):
        self.shift = shift
        self.sigmas = self.sigma(torch.arange(1, 1001).double())
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: Any) -> Any:
        return sigma * 1000

    def sigma(self, timestep: Any) -> Any:
        t = timestep / 1000
        return self.shift * t / (1 + (self.shift - 1) * t)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samplers", type=Path)
    parser.add_argument("sigmas", type=Path)
    parser.add_argument("mochi", type=Path, nargs="?")
    chosen = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    if chosen.mochi is None:
        found = importlib.util.find_spec("diffusers")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("install diffusers, or give the file with linear_quadratic_schedule")
        chosen.mochi = Path(found.submodule_search_locations[0]) / "pipelines" / "mochi" / "pipeline_mochi.py"
    names = ("simple_scheduler", "ddim_scheduler", "normal_scheduler", "beta_scheduler")
    comfy = functions_of(chosen.samplers, names)
    res = functions_of(chosen.sigmas, ("get_bong_tangent_sigmas", "bong_tangent_scheduler"))
    mochi = functions_of(chosen.mochi, ("linear_quadratic_schedule",))
    models = {"stable_diffusion": Discrete(), "flow": Flow(1.0), "flow, shift 3": Flow(3.0)}
    recorded = []
    for name, model in models.items():
        for steps in STEPS:
            runs = {
                "simple": comfy.simple_scheduler(model, steps),
                "ddim_uniform": comfy.ddim_scheduler(model, steps),
                "normal": comfy.normal_scheduler(model, steps),
                "sgm_uniform": comfy.normal_scheduler(model, steps, sgm=True),
                "beta": comfy.beta_scheduler(model, steps),
                "beta57": comfy.beta_scheduler(model, steps, alpha=0.5, beta=0.7),
            }
            if name == "flow":
                runs["bong_tangent"] = res.bong_tangent_scheduler(model, steps)
                runs["linear_quadratic"] = torch.tensor([*mochi.linear_quadratic_schedule(steps, 0.025), 0.0])
            kept = {"model": name, "steps": steps}
            recorded += [{**kept, "grid": grid, "sigmas": sigmas.tolist()} for grid, sigmas in runs.items()]
    OUT.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in recorded) + "\n]\n")


if __name__ == "__main__":
    main()
