"""What k-diffusion's and ComfyUI's functions claim: ``sample_*(model, x, sigmas, ...)``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from diffode.verify.sampler.foreign import k_diffusion
from diffode.verify.sampler.subject import Sampler
from verdicts.exact_law import weak_order
from verdicts.peers import Peers
from verdicts.row import Claim

_EDM = "arXiv 2206.00364, algorithms 1 and 2"
_PLUS = "arXiv 2211.01095, section 3"
_K = "its docstring"
_IPNDM = "arXiv 2202.09778"
_DEIS = "arXiv 2204.13902, table 1"
_SA = "arXiv 2309.05019"
_SEEDS = "arXiv 2305.14267, section 4"

#: Draws for the law of a sampler whose Brownian tree takes most of the time.
_TREE_DRAWS = 4000


def _none(_: Any) -> float:
    return 0.0


def _one(_: Any) -> float:
    return 1.0


def _same(x: Any) -> Any:
    return x


#: name without ``sample_``, options, order claimed, its source, chart, page of a finding.
_FLOW: tuple[tuple[str, dict[str, Any], int | None, str, str, str], ...] = (
    ("euler", {}, 1, _EDM, "noise", ""),
    ("heun", {}, 2, _EDM, "noise", ""),
    ("dpm_2", {}, 2, "arXiv 2206.00927, algorithm 1", "noise", ""),
    *(("lms", {"order": k}, k, "its argument order", "noise", "") for k in (1, 2, 3, 4)),
    ("euler_ancestral", {"eta": 0.0}, 1, "eta = 0 is Euler's method", "noise", ""),
    ("dpm_2_ancestral", {"eta": 0.0}, 2, "eta = 0 is dpm_2", "noise", ""),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2, _PLUS, "data", ""),
    ("dpmpp_sde", {"eta": 0.0}, 2, _PLUS, "data", ""),
    ("dpmpp_2m", {}, 2, _PLUS, "data", ""),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2, _PLUS, "data", ""),
    ("dpmpp_2m_sde_heun", {"eta": 0.0}, 2, _PLUS, "data", ""),
    ("dpmpp_3m_sde", {"eta": 0.0}, 3, "its docstring: DPM-Solver++(3M)", "data", "third_order_multistep"),
    ("heunpp2", {}, None, "", "noise", ""),
    ("gradient_estimation", {}, None, "", "noise", ""),
    ("ipndm", {"max_order": 1}, 1, _IPNDM, "noise", "max_order_one"),
    *(("ipndm", {"max_order": k}, k, _IPNDM, "noise", "ipndm_uniform_weights" if k > 2 else "") for k in (2, 3, 4)),
    ("ipndm_v", {"max_order": 1}, 1, _IPNDM, "noise", "max_order_one"),
    *(("ipndm_v", {"max_order": k}, k, _IPNDM, "noise", "ipndm_v_weights" if k > 3 else "") for k in (2, 3, 4)),
    ("deis", {"max_order": 1}, 1, _DEIS, "noise", "max_order_one"),
    *(("deis", {"max_order": k}, k, _DEIS, "noise", "") for k in (2, 3, 4)),
    *(("deis", {"max_order": k, "deis_mode": "rhoab"}, k, _DEIS, "noise", "deis_rhoab") for k in (2, 3, 4)),
    ("res_multistep", {}, 2, "arXiv 2308.02157", "data", ""),
    ("res_multistep_ancestral", {"eta": 0.0}, 2, "arXiv 2308.02157", "data", ""),
    ("er_sde", {"s_noise": 0.0, "noise_scaler": _same, "max_stage": 1}, 1, "arXiv 2309.06169", "data", ""),
    *(
        ("er_sde", {"s_noise": 0.0, "noise_scaler": _same, "max_stage": k}, k, "arXiv 2309.06169", "data", "er_sde_stages")
        for k in (2, 3)
    ),
    ("seeds_2", {"eta": 0.0}, 2, _SEEDS, "data", ""),
    ("seeds_3", {"eta": 0.0}, 3, _SEEDS, "data", ""),
    *(
        ("sa_solver", {"tau_func": _none, "predictor_order": p, "corrector_order": c}, max(p, c), _SA, "data", "")
        for p, c in ((1, 1), (2, 2), (3, 3), (3, 4))
    ),
)  # fmt: skip

#: Functions that draw noise, with their own options, and whether a Brownian tree makes the noise.
_NOISY = (
    ("euler_ancestral", False), ("dpm_2_ancestral", False), ("dpmpp_2s_ancestral", False), ("dpmpp_sde", True),
    ("dpmpp_2m_sde", True), ("dpmpp_2m_sde_heun", True), ("dpmpp_3m_sde", True), ("ddpm", False),
    ("res_multistep_ancestral", False), ("er_sde", False), ("seeds_2", False), ("seeds_3", False), ("sa_solver", False),
    ("sa_solver_pece", False),
)  # fmt: skip

#: Functions that are not judged, with the reasons.
_LEFT = {
    "lcm": "made for a network that maps straight to the data; with a denoiser it has another law at any number of steps",
    "dpm_adaptive": "chooses its own steps",
    "_gpu": "the function without _gpu with its noise made on the device of x",
    "_cfg_pp": "CFG++: it needs two networks; equal to the function without it where both are one",
    "_RF": "the branch of the function without _RF for models of flow matching, judged there",
}


def claims(library: str, peers: Peers) -> Iterator[Claim]:
    """The claims of k-diffusion's or ComfyUI's functions."""
    module = peers.load(library)
    names = [name.removeprefix("sample_") for name in vars(module) if name.startswith("sample_")]
    for name, options, order, source, chart, finding in _FLOW:
        if name in names:
            label = {key: getattr(value, "__name__", value) if callable(value) else value for key, value in options.items()}
            shown = ", ".join(f"{key}={value}" for key, value in label.items())
            shown = shown.replace("noise_scaler=_same", "noise_scaler=identity").replace("tau_func=_none", "tau_func=0")
            function = getattr(module, f"sample_{name}")
            if name.startswith("sa_solver"):
                function = _one_more(function)
            remark = "a level more is given, see its page" if name.startswith("sa_solver") else ""
            yield Claim(library, f"sample_{name}", function, options, order, source, chart, finding, remark, shown)
    for name, tree in _NOISY:
        if name in names:
            run = k_diffusion(getattr(module, f"sample_{name}"), {})
            subject = Sampler(f"sample_{name}", run, draws=_TREE_DRAWS if tree else 40_000, law_steps=100 if tree else 400)
            finding = "sa_solver_last_step" if name.startswith("sa_solver") else ""
            noisy = _one_more(getattr(module, f"sample_{name}")) if finding else getattr(module, f"sample_{name}")
            extra = {"tau_func": _one} if finding else {}
            yield Claim(
                library, f"sample_{name}", subject, chart="law", finding=finding, weak=partial(weak_order, noisy, **extra)
            )
    for name in names:
        reason = next((text for part, text in _LEFT.items() if name == part or (part[0] == "_" and name.endswith(part))), "")
        if reason:
            yield Claim(library, f"sample_{name}", None, remark=reason)
    if "dpm_fast" in names:
        yield Claim(library, "sample_dpm_fast", _fast(module.sample_dpm_fast), {}, 3, "arXiv 2206.00927, section 3.4", "noise")


def _one_more(function: Any) -> Any:
    """sa_solver with a level more, since it returns the state one level before a last one that is not 0."""

    def sample(model: Any, x: Any, sigmas: Any, **options: Any) -> Any:
        more = sigmas if sigmas[-1] == 0 else torch.cat([sigmas, 0.9 * sigmas[-1:]])
        return function(model, x, more, **{"disable": True, **options})

    return sample


def _fast(function: Any) -> Sampler:
    """dpm_fast, which lays its own steps between two levels."""

    def between(model: Any, x: Any, sigmas: Any, **options: Any) -> Any:
        return function(model, x, float(sigmas[-1]), float(sigmas[0]), len(sigmas) - 1, disable=True, **options)

    return Sampler("sample_dpm_fast", k_diffusion(between, {}), grid="log_snr", to_zero=False)
