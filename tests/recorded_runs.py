"""Recorded numbers of runs, of tables, and of what they are laid on: paths and grids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from recorded import case
from solver_list import DETERMINISTIC, DIRECT, STOCHASTIC

import diffode
from diffode import grids, paths, solvers
from diffode.errors import DiffodeError
from diffode.tableau.gaussian_stages import GaussianStages
from diffode.tableau.stages import Stages

#: Names before any test has added its own.
PATHS, GRIDS = tuple(paths.names()), tuple(grids.names())
#: Forms of solvers with options off their defaults.
OPTIONS = (
    "ddim:analytic_first_step=true", "ddim:jump=2.0", "ddim:jump=auto", "dpmpp:order=2,jump=0.7", "heun:jump=auto",
    "dpm:order=3,nodes=time_uniform", "dpm:order=2,r=0.4", "dpmpp_s:order=3,nodes=time_quadratic", "dpmpp_s:order=2,r=0.7",
    "dpm_fast:nodes=time_uniform", "dpm_fast:form=taylor", "dpm_fast:step_orders=3+1+2+2,evaluations=8", "dpm_m:order=3",
    "er_sde:order=3,scale=sde", "er_sde:order=2,scale=ode", "er_sde:order=3,points=20",
    "sa:tau=0.3,tau_from=0.5,tau_to=20", "sa:predictor=1,corrector=0", "sa:form=consistent,predictor=2,corrector=2",
    "unipc:order=3,lower_order_final=never", "unipc:order=3,lower_order_final=below_10", "unipc:order=2,chart=noise_log_snr",
    "dc:order=3,variant=vary_coeff", "dpm_v3:order=2,lower_order_final=never", "dpm_v3:order=3,coefficients=noise",
    "restart:low=0.1,high=2,repeats=3,inner=3", "restart:inflation=1.003", "pc:corrections=2,snr=0.1", "pc:eta=0.5",
    "pc_langevin:snr=0.05", "pc_langevin:corrections=2,eta=0.7", "euler_ancestral:eta=0.5", "dpmpp_sde:eta=0.7",
    "dpmpp_2m_sde:eta=0.3", "dpmpp_3m_sde:eta=0.4", "dpm2_ancestral:eta=0.2", "dpmpp_2s_ancestral:eta=0.6",
    "ddpm:variance=small",
    "edm_stochastic:inflation=1.02", "gradient_estimation:gamma=1.5", "exponential_rk:method=etd2,c2=0.4",
    "exponential_rk:method=hochbruck_ostermann_3,c2=0.3", "exponential_rk:method=lawson_2", "exponential_rk:method=lawson_4",
    "seeds_2:eta=0.5", "seeds_3:chart=data", "seeds_2:nodes=time_uniform", "stork:stages=9,taylor=1", "stork:virtual=false",
    "stork:chart=data,form=consistent", "stork_4:taylor=2", "picard:memory=3", "picard:window=3", "picard:tolerance=0.01",
    "picard:sweeps=2", "picard:base=dpmpp:order=2", "parareal:blocks=2", "parareal:sweeps=1", "parareal:tolerance=0.1",
    "implicit_rk:stages=1,rtol=1e-6", "implicit_rk:stages=3,chart=velocity,rtol=1e-6",
    "implicit_rk:method=radau,stages=1,rtol=1e-6",
    "implicit_rk:iteration=fixed_point,max_iterations=3", "rk_adaptive:pair=bosh3", "rk_adaptive:controller=i",
    "rk_adaptive:rtol=1e-2,atol=1e-3,first_step=0.2", "dpm_adaptive:order=2", "dpm_adaptive:controller=pi,rtol=0.02",
    "sde_adaptive:rtol=0.1", "amed:host=ipndm", "amed:host=dpmpp", "universal:dim=3", "universal:scale=2.0",
    "universal:chart=gaussian", "lcm", "ipndm_v:order=4", "ipndm_v:order=2", "deis:order=1", "lms:order=2", "res_m:order=2",
)  # fmt: skip


def answer(ask: Callable[[], Any]) -> Any:
    """An answer, or the words of its refusal."""
    try:
        return ask()
    except DiffodeError as error:
        return f"{type(error).__name__}: {error}"


def facts(run: diffode.Solution) -> dict[str, Any]:
    """All that a run tells of itself."""
    told = {"x": run.x, "nfe": run.nfe, "times": torch.as_tensor(run.times, dtype=torch.float64)}
    for name in ("accepted", "rejected", "sweeps", "latency"):
        value = getattr(run, name)
        told[name] = value.double() if isinstance(value, torch.Tensor) else value
    return told


def run_of(spec: str, target: str, path: str, **options: Any) -> Any:
    def run() -> dict[str, Any]:
        solver = solvers.get(spec)
        some = {"nfe": 7}
        if options or not getattr(solver, "takes_steps", True):
            some = {}
        elif spec.startswith(("implicit_rk", "restart", "stork:virtual=false", "dpm_fast:step_orders")):
            some = {"grid": "karras", "steps": 4}
        field = diffode.exact_field(target, path)
        told = facts(diffode.solve(field, field.prior(3, generator=0), solver=solver, generator=1, **options, **some))
        if spec.startswith("implicit_rk"):
            # The number of its iterations depends on rounding.
            del told["nfe"]
        return told

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return answer(run)


def runs(specs: Iterable[str], target: str, path: str, **options: Any) -> dict[str, Any]:
    return {spec: run_of(spec, target, path, **options) for spec in specs}


@case
def runs_of_solvers_on_edm():
    return runs((*DETERMINISTIC, *STOCHASTIC), "ring8", "edm")


@case
def runs_of_solvers_on_vp():
    return runs((*DETERMINISTIC, *STOCHASTIC), "moons", "vp", grid="log_snr", steps=12)


@case
def runs_of_solvers_between_data_and_noise():
    return runs((*DETERMINISTIC, *STOCHASTIC), "bimodal1d", "rectified_flow", grid="time_uniform", nfe=5)


@case(tolerance=1e-6)
def runs_of_solvers_that_follow_the_field():
    own = [spec for spec in DIRECT if not spec.startswith(("torch", "scipy"))]
    return runs(own, "ring8", "edm") | {f"{spec} on vp": run_of(spec, "bimodal1d", "vp") for spec in own}


@case(tolerance=1e-6)
def runs_with_options():
    return runs(OPTIONS, "moons", "edm") | {f"{spec} on vp": run_of(spec, "gauss2d", "vp") for spec in OPTIONS}


@case
def runs_of_universal_tables():
    return {f"{nfe}": run_of("universal", "spiral", "edm", nfe=nfe) for nfe in range(2, 14)} | {
        f"{nfe} in the chart": run_of("universal:chart=gaussian", "gmm40", "vp", nfe=nfe) for nfe in range(1, 14)
    }


@case
def runs_between_times_and_upwards():
    told = {}
    for spec in ("ddim", "dpmpp:order=2", "heun", "unipc", "euler_ancestral", "rk_adaptive"):
        for path in ("edm", "trigonometric"):
            field = diffode.exact_field("ring8", path)
            middle = [field.path.time_from_log_snr(v) for v in (-1.5, 1.0)]
            x = field.marginal(3, middle[0], generator=2)
            some = {} if spec == "rk_adaptive" else {"nfe": 6}
            for name, more in (("down", {}), ("up", {"upwards": True})):
                start = x if name == "down" else field.marginal(3, middle[1], generator=2)
                told[f"{spec} on {path} {name}"] = answer(
                    lambda f=field, s=start, b=tuple(middle), m={**some, **more}, spec=spec: facts(
                        diffode.solve(f, s, solver=spec, between=b, generator=3, keep="all", **m)
                    )
                )
    return told


@case
def tables_and_their_forms():
    told = {}
    edm = paths.get("edm")
    for spec in (*DETERMINISTIC, *STOCHASTIC):
        table = solvers.get(spec).tableau(edm, "karras", 4)
        rows = [[float(row.time), *(float(v) for part in (row.states, row.evaluations, row.draws) for v in part.values())]
                for row in table.rows]  # fmt: skip
        told[spec] = {"rows": torch.tensor([number for row in rows for number in row], dtype=torch.float64),
                      "outputs": list(table.outputs), "nfe": table.nfe, "spans": str(table.spans)}  # fmt: skip
        mean, variances = torch.tensor([1.0, -2.0, 0.1]).double(), torch.tensor([0.5, 3.0, 0.01]).double()
        told[spec]["law"] = [list(table.propagate(mean, variances, start=start)) for start in ("exact", "prior")]
        stages = answer(lambda table=table: Stages.of(table))
        told[spec]["form"] = stages if isinstance(stages, str) else [stages.scales, stages.weights, stages.levels]
    return told


@case
def tables_in_the_chart_of_a_gaussian():
    told = {}
    for target, kind in (("moons", "full"), ("digits-gmm10", "diagonal"), ("ring8", "scale")):
        known = diffode.Statistics.of_target(target).reduced(kind)
        for spec in ("ab:order=1,chart=gaussian", "ab:order=2,chart=gaussian_angle", "ab:order=3,chart=gaussian_asinh"):
            for jump in ("0.8", "auto"):
                solver = solvers.informed(f"{spec},jump={jump}", known)
                for path in ("edm", "rectified_flow"):
                    table = solver.tableau(path, "karras:rho=3", 3)
                    x = paths.get(path).prior((2, known.dim), generator=1)
                    last = table.run(diffode.exact_field(target, path), x)
                    form = answer(lambda table=table: GaussianStages.of(table))
                    parts = form if isinstance(form, str) else [form.stages.scales, form.stages.weights, form.stages.levels]
                    told[f"{target} {kind} {spec} {jump} {path}"] = [last, parts]
    return told


@case
def paths_at_many_times():
    told = {}
    for name in PATHS:
        path = paths.get(name)
        low, high = path.t_min, path.t_max
        times = [low + (high - low) * share for share in (0.0, 1e-3, 0.02, 0.1, 0.35, 0.5, 0.77, 0.98, 1.0)]
        of_time = ("alpha", "sigma", "rho", "log_snr", "alpha_derivative", "sigma_derivative", "diffusion", "drift",
                   "half_variance_rate")  # fmt: skip
        for what in of_time:
            rows = [answer(lambda w=what, t=t, path=path: float(getattr(path, w)(t))) for t in times]
            told[f"{name} {what}"] = rows
        snr = [path.log_snr(t) for t in times[1:-1]]
        told[f"{name} back"] = [path.time_from_log_snr(v) for v in snr] + [path.time_from_rho(path.rho(t)) for t in times[1:-1]]
        part = path.between(times[-2], times[2])
        told[f"{name} part"] = [part.t_min, part.t_max, part.spec]
    return told


@case
def grids_on_paths():
    told = {}
    for grid in GRIDS:
        for path in ("edm", "vp", "rectified_flow", "ddpm"):
            for steps in (1, 2, 5, 11):
                laid = answer(lambda g=grid, p=path, n=steps: grids.get(g, paths.get(p), n))
                told[f"{grid} {path} {steps}"] = laid if isinstance(laid, str) else torch.as_tensor(laid, dtype=torch.float64)
    for spec in ("karras:rho=3", "karras:rho=1", "shift:s=3.0", "cosine:to_zero=true", "beta:alpha=0.5,beta=0.7",
                 "kl_optimal:to_zero=true", "log_snr:to_zero=true", "polyexponential:rho=0.5",
                 "time_quadratic:to_zero=true"):  # fmt: skip
        laid = answer(lambda g=spec: grids.get(g, paths.get("vp"), 6))
        told[spec] = laid if isinstance(laid, str) else torch.as_tensor(laid, dtype=torch.float64)
    return told
