"""What the scheduler classes of diffusers claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffode.verify.sampler.scheduler_loops import classes
from verdicts.row import Claim

_ORDER = "its option solver_order"
_UNIPC = "its docstring: solver_order + 1 by the corrector"
_PLUS, _FIRST = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
_LAST = {"final_sigmas_type": "sigma_min"}
_NEVER = {**_LAST, "lower_order_final": False}

#: class without Scheduler, options, order claimed, source, chart, page of a finding.
_LISTED: tuple[tuple[str, dict[str, Any], int | None, str, str, str], ...] = (
    ("EulerDiscrete", {}, 1, "its docstring: Euler", "noise", ""),
    ("HeunDiscrete", {}, 2, "arXiv 2206.00364, algorithm 1", "noise", ""),
    ("KDPM2Discrete", {}, 2, "arXiv 2206.00364, algorithm 2", "noise", ""),
    ("LMSDiscrete", {}, 4, "its step's order", "noise", ""),
    ("EDMEuler", {}, 1, "its docstring: Euler", "noise", ""),
    ("FlowMatchEulerDiscrete", {}, 1, "its docstring: Euler", "velocity", ""),
    ("FlowMatchHeunDiscrete", {}, 2, "its docstring: Heun", "velocity", ""),
    ("DDIM", {}, 1, "arXiv 2010.02502", "noise", ""),
    ("IPNDM", {}, 4, "its docstring: fourth-order", "noise", "ipndm_uniform_weights"),
    ("PNDM", {}, 2, "arXiv 2202.09778, section 3.3", "noise", ""),
    *(
        (f"DPMSolver{kind}", {"solver_order": k, **options}, k, _ORDER, chart,
         "third_order_multistep" if kind == "Multistep" and k == 3 else "")
        for kind in ("Multistep", "Singlestep")
        for options, chart in ((_PLUS, "data"), (_FIRST, "noise"))
        for k in (1, 2, 3)
    ),
    ("DPMSolverMultistep", {"solver_order": 2, "solver_type": "heun"}, 2, _ORDER, "data", ""),
    *(
        ("EDMDPMSolverMultistep", {"solver_order": k}, k, _ORDER, "data", "third_order_multistep" if k == 3 else "")
        for k in (1, 2, 3)
    ),
    *(("DEISMultistep", {"solver_order": k}, k, _ORDER, "noise", "") for k in (1, 2, 3)),
    *(("UniPCMultistep", {"solver_order": k, "solver_type": "bh2"}, k + 1, _UNIPC, "data", "") for k in (1, 2, 3)),
    *(
        ("UniPCMultistep", {"solver_order": k, "solver_type": "bh1"}, k + 1, _UNIPC, "data", "unipc_bh1_to_zero")
        for k in (1, 2, 3)
    ),
    *(
        ("UniPCMultistep", {"solver_order": k, "solver_type": kind, **last}, k + 1, _UNIPC, "data", page)
        for kind in ("bh1", "bh2")
        for last, page in ((_LAST, "unipc_lower_order_final"), (_NEVER, ""))
        for k in (1, 2, 3)
    ),
    *(
        ("UniPCMultistep", {"solver_order": k, "predict_x0": False, **_NEVER}, k + 1, _UNIPC, "noise", "")
        for k in (1, 2, 3)
    ),
    *(
        (name, {"solver_order": 2, "prediction_type": kind, **({"use_flow_sigmas": True} if kind[0] == "f" else {})},
         3 if name[0] == "U" else 2, _UNIPC if name[0] == "U" else _ORDER, kind, "")
        for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")
        for kind in ("sample", "v_prediction", "flow_prediction")
    ),
    *(
        (name, {"prediction_type": kind}, order, "as with epsilon", kind, "")
        for name, order in (("EulerDiscrete", 1), ("HeunDiscrete", 2), ("KDPM2Discrete", 2), ("LMSDiscrete", 4), ("DDIM", 1))
        for kind in ("sample", "v_prediction")
        if (name, kind) not in {("EulerDiscrete", "sample"), ("KDPM2Discrete", "sample"), ("HeunDiscrete", "sample")}
    ),
    ("EDMEuler", {"prediction_type": "v_prediction"}, 1, "as with epsilon", "v_prediction", ""),
    ("EDMDPMSolverMultistep", {"prediction_type": "v_prediction"}, 2, _ORDER, "v_prediction", ""),
)  # fmt: skip


def claims() -> Iterator[Claim]:
    """Every class with its default options and no claim, then the option sets that have one."""
    for name in classes():
        yield Claim("diffusers", name, f"diffusers:{name}", chart="its own", remark="default options, between its own levels")
    for part, options, order, source, chart, finding in _LISTED:
        name = f"{part}Scheduler"
        yield Claim("diffusers", name, f"diffusers:{name}", options, order, source, chart, finding)
