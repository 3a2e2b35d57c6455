"""Agreement with diffusers' schedulers, run here on a target and a grid of our own.

Their noise levels are float32; where a scheduler computes in the dtype of what it is given, replacing them by float64 ones
gives agreement to 1e-9 of the largest entry (1e-14 or better was seen); those that cast the state to float32 agree to 1e-5.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import pytest
import torch
from scheduler_loop import follow_scheduler

import diffode

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

STEPS = 9
PATH = diffode.paths.get("vp")
RHO = [PATH.rho(t) for t in diffode.grids.get("karras:rho=5", PATH, STEPS).tolist()]
DOUBLE, SINGLE = 1e-9, 1e-5

#: Ours; theirs with its options; tolerance. Theirs keep their order to the end unless they are told not to.
NEVER = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
ALWAYS = {"final_sigmas_type": "sigma_min", "lower_order_final": True}
CASES = {
    "euler": ("ddim", "EulerDiscrete", {}, SINGLE),
    "heun": ("heun:chart=noise", "HeunDiscrete", {}, DOUBLE),
    "dpm2": ("dpm:order=2", "KDPM2Discrete", {}, DOUBLE),
    "lms": ("lms:order=4", "LMSDiscrete", {}, DOUBLE),
    "2m": ("dpmpp:order=2,lower_order_final=never", "DPMSolverMultistep", {"solver_order": 2, **NEVER}, SINGLE),
    "2m-final": ("dpmpp:order=2,lower_order_final=always", "DPMSolverMultistep", {"solver_order": 2, **ALWAYS}, SINGLE),
    "3m": ("dpmpp:order=3,lower_order_final=never", "DPMSolverMultistep", {"solver_order": 3, **NEVER}, SINGLE),
    "noise-2m": ("dpm_m:order=2,lower_order_final=never", "DPMSolverMultistep",
                 {"solver_order": 2, "algorithm_type": "dpmsolver", **NEVER}, SINGLE),
    "unipc-2": ("unipc:order=2,variant=bh2,lower_order_final=never", "UniPCMultistep", {"solver_order": 2, **NEVER}, DOUBLE),
    "unipc-3-bh1": ("unipc:order=3,variant=bh1,lower_order_final=never", "UniPCMultistep",
                    {"solver_order": 3, "solver_type": "bh1", **NEVER}, DOUBLE),
    "unipc-3-final": ("unipc:order=3,variant=bh2,lower_order_final=always", "UniPCMultistep",
                      {"solver_order": 3, **ALWAYS}, DOUBLE),
    "deis-2": ("ab:order=2,chart=noise_log_snr", "DEISMultistep", {"solver_order": 2, "lower_order_final": False}, DOUBLE),
    "deis-3": ("ab:order=3,chart=noise_log_snr", "DEISMultistep", {"solver_order": 3, "lower_order_final": False}, DOUBLE),
    "sa-2": ("sa:tau=0.7,predictor=2,corrector=1", "SASolver",
             {"predictor_order": 2, "corrector_order": 2, "tau_func": lambda t: 0.7, "lower_order_final": False}, DOUBLE),
    "sa-3": ("sa:tau=1,predictor=3,corrector=3,lower_order_final=always", "SASolver",
             {"predictor_order": 3, "corrector_order": 4, "tau_func": lambda t: 1.0, "lower_order_final": True}, DOUBLE),
    "sa-ode": ("sa:tau=0,predictor=3,corrector=2", "SASolver",
               {"predictor_order": 3, "corrector_order": 3, "tau_func": lambda t: 0.0, "lower_order_final": False}, DOUBLE),
    "2m-sde": ("dpmpp_2m_sde:lower_order_final=never", "DPMSolverMultistep",
               {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", **NEVER}, SINGLE),
    "euler-ancestral": ("euler_ancestral", "EulerAncestralDiscrete", {}, SINGLE),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_runs_agree_with_diffusers(case):
    spec, theirs, options, tolerance = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, theirs + "Scheduler")(**options)
    on_x = "Multistep" in theirs or theirs == "SASolver"
    path = PATH if on_x else diffode.paths.get("edm")
    field = diffode.exact_field("spiral", path)
    times = [path.time_from_rho(r) for r in RHO]
    start = path.sigma(times[0]) * torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Both draw from equal generators, one draw a step; this scheduler draws in float32.
    dtype = torch.float32 if theirs == "DPMSolverMultistep" else torch.float64
    source = torch.Generator().manual_seed(1)
    draws = diffode.solvers.get(spec).tableau(path, times).draws
    noise = torch.stack([torch.randn(start.shape, generator=source, dtype=dtype) for _ in range(draws or 1)]).to(start)
    ours = diffode.solve(field, start, solver=spec, grid=times, noise=noise if draws else None)
    generator = torch.Generator().manual_seed(1)
    end = follow_scheduler(scheduler, RHO, lambda x, rho: field.noise(x, path.time_from_rho(rho)), start, generator)
    error = float((end - ours.x).abs().max() / ours.x.abs().max())
    assert error < tolerance
