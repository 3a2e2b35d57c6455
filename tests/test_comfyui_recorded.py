"""Our solvers as ComfyUI's samplers, against ends of its own samplers (tools/record_comfyui.py)."""

import json
from pathlib import Path

import comfy_stand_in as comfy
import pytest
import torch

from diffode.adapters import as_comfyui_sampler

RECORDED = json.loads((Path(__file__).parent / "data" / "comfyui.json").read_text())
RUNS = RECORDED["runs"]
START = torch.tensor(RECORDED["start"], dtype=torch.float64)


def noise(sigma, following):
    """The noise of the recorded runs: a function of the two levels and the place."""
    place = torch.arange(START.numel(), dtype=torch.float64).reshape(START.shape)
    return torch.sin(1.3 * place + 3.7 * float(sigma) + 5.1 * float(following)) * 1.4


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['name']}-{run['spec']}-{run['levels']}")
def test_ends_are_those_of_comfyui(run):
    model = comfy.BaseModel("ring8", run["levels"].startswith("flow"))
    options = {**run["more"], **({"noise_sampler": noise} if run["draws"] else {})}
    sampler = comfy.KSAMPLER(as_comfyui_sampler(run["spec"]), options)
    sigmas = torch.tensor(run["sigmas"], dtype=torch.float64)
    end = sampler.sample(comfy.CFGGuider(model), sigmas, {"model_options": {}, "seed": 0}, None, START, torch.zeros_like(START))
    # What leaves KSAMPLER of a flow-matching model is divided by 1 - sigma.
    last = 1 - run["sigmas"][-1] if run["levels"].startswith("flow") else 1.0
    found, expected = end * last, torch.tensor(run["end"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=run["within"])
    assert len(model.calls) == run["calls"]


def test_the_recorded_runs_cover_the_menu():
    names = {run["name"] for run in RUNS}
    assert {"euler", "heun", "heunpp2", "dpm_2", "lms", "ipndm", "ipndm_v", "deis", "uni_pc", "res_multistep", "ddpm"} <= names
    assert {run["levels"] for run in RUNS} == {"to zero", "above zero", "flow", "flow above zero"}
    assert {run["name"]: run["within"] for run in RUNS if run["within"] > 1e-9} == {"deis": 1e-3, "er_sde": 1e-7}
    assert sum(run["draws"] for run in RUNS) >= 20
