"""What integrators claim: torchdiffeq, torchdyn, torchode, flow_matching, torchsde, azula; and reference files."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode.fields import Field
from diffode.fields.outward import as_flow_matching
from diffode.solvers import get
from diffode.verify.sampler.subject import Sampler, find_sampler
from verdicts.peers import Peers
from verdicts.row import Claim

#: Paths on which a library's time runs from 0 (noise) to 1 (data).
_FLOW = {"path": "rectified_flow", "grid": "shift:s=1", "to_zero": False, "foreign": True}
_DIFFEQ_DOC = "README: fixed-step methods"


def torchdiffeq() -> Iterator[Claim]:
    """Fixed-step methods of torchdiffeq; the others choose their own steps."""
    orders = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4}
    for method, order in orders.items():
        finding = "torchdiffeq_adams" if "adams" in method else ""
        source = f"{_DIFFEQ_DOC}; Adams of order 4 and more" if finding else _DIFFEQ_DOC
        extra = "" if finding else "torchdiffeq_extra_step"
        yield Claim("torchdiffeq", method, f"torchdiffeq:{method}", {}, order, source, "velocity", extra)
        if finding:
            found = find_sampler(f"torchdiffeq:{method}")
            karras = Sampler(**{**vars(found), "run": _listed(method), "path": "edm", "grid": "karras"})
            yield Claim(
                "torchdiffeq",
                method,
                karras,
                {},
                order,
                source,
                "velocity",
                finding,
                shown="times of Karras' grid, noise 80 to 0.002",
            )
    for method in ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"):
        yield Claim("torchdiffeq", method, None, remark="chooses its own steps")


def _listed(method: str) -> Any:
    """torchdiffeq on the list of times itself, a step between neighbours, as its documentation offers."""

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        odeint = importlib.import_module("torchdiffeq").odeint
        grid = torch.tensor(list(times), dtype=torch.float64)
        end: Tensor = odeint(lambda t, y: field.velocity(y, float(t)), x, grid, method=method)[-1]
        return end

    return run


def torchdyn(peers: Peers) -> Iterator[Claim]:
    """torchcfm's way of integrating: torchdyn's fixed-step methods over a list of times."""
    odeint = peers.load("torchdyn").odeint

    def runs(solver: str) -> Any:
        def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
            model = as_flow_matching(field)
            span = 1 - torch.tensor(list(times), dtype=torch.float64)
            end: Tensor = odeint(lambda t, y, args=None: model(y, t), x, span, solver=solver)[1][-1]
            return end

        return run

    for solver, order in {"euler": 1, "midpoint": 2, "rk4": 4}.items():
        yield Claim(
            "torchdyn", f"odeint {solver}", Sampler(solver, runs(solver), **_FLOW), {}, order, "its docstring", "velocity",
            "torchdyn_rk4" if solver == "rk4" else "",
            "as torchcfm's examples integrate, by NeuralODE(solver=...) over a list of times",
        )  # fmt: skip


def torchode(peers: Peers) -> Iterator[Claim]:
    """Methods of torchode with its FixedStepController, n steps by ``dt0`` = 1/n, in each row's own time."""
    module = peers.load("torchode")

    def runs(method: str) -> Any:
        def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
            model = as_flow_matching(field)
            ends = 1 - torch.tensor([times[0], times[-1]], dtype=torch.float64)
            term = module.ODETerm(lambda t, y: model(y, t[0]))
            problem = module.InitialValueProblem(y0=x, t_eval=ends.expand(len(x), 2))
            step = ((ends[1] - ends[0]) / (len(times) - 1)).expand(len(x))
            solver = module.AutoDiffAdjoint(getattr(module, method)(term=term), module.FixedStepController())
            end: Tensor = solver.solve(problem, dt0=step).ys[:, -1]
            return end

        return run

    for method, order, stages in (("Euler", 1, 1), ("Heun", 2, 2), ("Dopri5", 5, 6), ("Tsit5", 5, 6)):
        # The last stage of Dopri5 and Tsit5 is the first of the next step.
        promised = functools.partial(_stages, stages, int(stages == 6))
        yield Claim(
            "torchode", method, Sampler(method, runs(method), None, promised, **_FLOW), {}, order, "its convergence_order",
            "velocity", "torchode_extra_step", "FixedStepController",
        )  # fmt: skip


def _stages(each: int, first: int, steps: int) -> int:
    return each * steps + first


def torchcfm(peers: Peers) -> Iterator[Claim]:
    """Matchers of torchcfm, which has no sampler."""
    module = peers.load("torchcfm")
    for name in sorted(name for name in vars(module) if name.endswith("Matcher")):
        yield Claim(
            "torchcfm", name, None,
            remark="no sampler: a law of pairs and their conditional flow; its examples integrate with torchdyn or torchdiffeq",
        )  # fmt: skip


def flow_matching() -> Iterator[Claim]:
    """ODESolver and RiemannianODESolver (on Euclidean space) of flow_matching."""
    solver = importlib.import_module("flow_matching.solver")
    euclidean = importlib.import_module("flow_matching.utils.manifolds").Euclidean

    def runs(method: str, curved: bool) -> Any:
        def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
            model = as_flow_matching(field)
            made = solver.RiemannianODESolver(euclidean(), model) if curved else solver.ODESolver(model)
            grid = 1 - torch.tensor(list(times), dtype=torch.float64)
            end: Tensor = made.sample(x_init=x, step_size=None, method=method, time_grid=grid)
            return end

        return run

    for method, order in {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}.items():
        yield Claim(
            "flow_matching", f"ODESolver {method}", Sampler(method, runs(method, False), **_FLOW), {}, order,
            "torchdiffeq's, as its docstring says", "velocity",
        )  # fmt: skip
    for method, order in {"euler": 1, "midpoint": 2, "rk4": 4}.items():
        yield Claim(
            "flow_matching", f"RiemannianODESolver {method}", Sampler(method, runs(method, True), **_FLOW), {}, order,
            "its docstring", "velocity", "riemannian_start" if method == "euler" else "",
        )  # fmt: skip


def torchsde() -> Iterator[Claim]:
    """Methods of torchsde on the reverse SDE: without noise, where they are held to the flow, and with it."""
    for method, order in {"euler": 1, "milstein": 1, "srk": 1}.items():
        for eta in (0, 1):
            found = find_sampler(get(f"torchsde:{method}", eta=float(eta)))
            subject = Sampler(
                **{**vars(found), "path": "vp", "grid": "log_snr", "to_zero": False, "draws": 4000, "law_steps": 100}
            )
            yield Claim(
                "torchsde", method, subject, {"eta": eta}, None if eta else order, "" if eta else "its class: weak order",
                "SDE in time", "torchsde_srk_evaluations" if method == "srk" else "",
                "a step of sdeint for each step of the grid",
            )  # fmt: skip


def azula() -> Iterator[Claim]:
    """Classes of azula.sample."""
    listed: tuple[tuple[str, dict[str, Any], int | None, str, str], ...] = (
        ("EulerSampler", {}, 1, "its docstring: 1st order", "velocity"),
        ("HeunSampler", {}, 2, "its docstring: 2nd order", "velocity"),
        ("DDIMSampler", {}, 1, "DDIM", "noise"),
        ("DDPMSampler", {}, None, "", "law"),
        ("ItoSampler", {}, None, "", "law"),
        ("PCSampler", {}, None, "", "law"),
        *((name, {"order": k}, k, "its argument order", chart)
          for name, chart in (("zABSampler", "noise"), ("vABSampler", "velocity"), ("zEABSampler", "noise"),
                              ("xEABSampler", "data"), ("REABSampler", "data"))
          for k in (1, 2, 3, 4)),
    )  # fmt: skip
    module = importlib.import_module("azula.sample")
    for name, options, order, source, chart in listed:
        if hasattr(module, name):
            yield Claim(
                "azula", name, getattr(module, name), options, order, source, chart, "azula_reab" if name[0] == "R" else ""
            )


def dpm_solver(peers: Peers) -> Iterator[Claim]:
    """DPM_Solver of dpm-solver's file, on the linear VP schedule; torch's default dtype is float64 meanwhile."""
    module = peers.load("dpm-solver")
    for algorithm in ("dpmsolver++", "dpmsolver"):
        for method in ("multistep", "singlestep", "singlestep_fixed"):
            for kind in ("dpmsolver", "taylor"):
                for order in (1, 2, 3):
                    if order == 1 and (kind, method) != ("dpmsolver", "multistep"):
                        continue
                    options = {"order": order, "method": method, "solver_type": kind}
                    run = reference_file(module, "DPM_Solver", {"algorithm_type": algorithm}, options)
                    lowered = order == 3 and method == "multistep"
                    promised = (lambda n, p=order: n // p * p) if method.endswith("fixed") else (lambda n: n)
                    subject = Sampler("DPM_Solver", run, None, promised, "vp", "log_snr", to_zero=False, foreign=True)
                    yield Claim(
                        "dpm-solver", "DPM_Solver", subject,
                        {"algorithm_type": algorithm, **options}, order, "its argument order",
                        "data" if algorithm.endswith("++") else "noise", "third_order_multistep" if lowered else "",
                    )  # fmt: skip


def unipc(peers: Peers) -> Iterator[Claim]:
    """UniPC of UniPC's file, likewise: the corrector makes the order p + 1 of the paper's theorem 3.1."""
    module = peers.load("UniPC")
    for algorithm, chart in (("data_prediction", "data"), ("noise_prediction", "noise")):
        for variant in ("bh1", "bh2", "vary_coeff"):
            for order in (1, 2, 3):
                run = reference_file(
                    module,
                    "UniPC",
                    {"algorithm_type": algorithm, "variant": variant},
                    {"order": order, "lower_order_final": False},
                )
                yield Claim(
                    "UniPC", "UniPC", Sampler("UniPC", run, path="vp", grid="log_snr", to_zero=False, foreign=True),
                    {"algorithm_type": algorithm, "variant": variant, "order": order, "lower_order_final": False}, order + 1,
                    "arXiv 2302.04867, theorem 3.1: p + 1", chart, "unipc_vary_coeff" if variant == "vary_coeff" else "",
                )  # fmt: skip


def reference_file(module: Any, name: str, making: dict[str, Any], sampling: dict[str, Any]) -> Any:
    """Runs of a class of dpm-solver's or UniPC's file."""

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator) -> Tensor:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            schedule = module.NoiseScheduleVP("linear", continuous_beta_0=0.1, continuous_beta_1=20.0)
            shape = (len(x), 1, 1, x.numel() // max(len(x), 1))
            solver = getattr(module, name)(
                lambda y, t: field.noise(y.reshape(x.shape), float(t.reshape(-1)[0])).reshape(shape), schedule, **making
            )
            # Their files print a line in the last step.
            printed, module.print = getattr(module, "print", print), lambda *_: None
            # UniPC's sums are written for pictures, (B, C, H, W).
            end: Tensor = solver.sample(
                x.reshape(shape), steps=len(times) - 1, t_start=times[0], t_end=times[-1], skip_type="logSNR", **sampling
            ).reshape(x.shape)
            module.print = printed
        finally:
            torch.set_default_dtype(usual)
        return end

    return run
