"""RES4LYF's sampler function by the names of its menu: explicit tables, measured as it runs them and by stiff order conditions.

The tables are those of ``get_rk_methods_beta``, numbers for a step of h in the log-SNR; a step is
x = x_0 + h sum_j b_j (D_j - x_0), which is the usual form where the rows sum up to phi functions.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import diffode
from diffode import grids
from diffode.fields import Field
from diffode.numerics.exponential_butcher import ExponentialButcher
from diffode.numerics.orders import fit_order
from diffode.verify.sampler.subject import Sampler
from verdicts.peers import Peers
from verdicts.row import Claim

#: Path whose steps are short enough for multistep methods, which fall back to others where log sigma falls by 1 or more.
PATH = "edm:sigma_min=0.05,sigma_max=20"
#: Numbers of steps of an order on a page.
STEPS = (16, 32, 64, 128)
#: Largest residual of a condition that rounding explains; tables of eight stages have entries of 10 and more.
_ROUNDING = 1e-9
_NAME, _NOTE = "the method of its name", "its comment"

#: Names by their finding, each with the order claimed. The source is the method of the name, unless a number has a note.
_LISTED: tuple[tuple[str, str, str, tuple[tuple[str, int | None], ...]], ...] = (
    ("multistep", "data", "", (("res_2m", 2), ("dpmpp_2m", 2), ("abnorsett_2m", 2))),
    ("multistep", "data", "res4lyf_order_three", (("res_3m", 3), ("dpmpp_3m", 3))),
    ("multistep", "data", "res4lyf_abnorsett", (("abnorsett_3m", 3), ("abnorsett_4m", 4))),
    ("multistep", "noise", "res4lyf_anchor", (("deis_2m", 2), ("deis_3m", 3), ("deis_4m", 4))),
    ("exponential", "data", "", (
        ("ddim", 1), ("res_2s", 2), ("res_2s_stable", 2), ("res_2s_rkmk2e", 2), ("etdrk2_2s", 2), ("dpmpp_2s", 2),
        ("dpmpp_sde_2s", 2), ("lawson2a_2s", 2), ("lawson2b_2s", 2), ("res_3s", 3), ("res_3s_alt", 3),
        ("res_3s_cox_matthews", 3), ("res_3s_lie", 3), ("res_3s_non-monotonic", None), ("res_3s_sunstar", None),
        ("res_3s_strehmel_weiner", None), ("etdrk3_a_3s", 3), ("etdrk3_b_3s", 3), ("res_4s_krogstad", 4),
        ("res_4s_strehmel_weiner", 4), ("res_4s_cox_matthews", 4), ("res_4s_cfree4", 4), ("lawson4_4s", 4),
        ("lawson41-gen_4s", 4), ("lawson41-gen-mod_4s", 4), ("res_5s", 4), ("res_6s", 4), ("res_8s", 5), ("res_10s", None),
        ("res_15s", None),
    )),
    ("exponential", "data", "res4lyf_order_three", (("dpmpp_3s", 3),)),
    ("exponential", "data", "res4lyf_anchor", (("res_4s_munthe-kaas", 4),)),
    ("exponential", "data", "res4lyf_scaled_phi", (
        ("res_4s_krogstad_alt", 4), ("res_4s_strehmel_weiner_alt", 4), ("res_4s_friedli", 4), ("etdrk4_4s", 4),
        ("res_5s_hochbruck-ostermann", 4),
    )),
    ("exponential", "data", "res4lyf_slips", (("res_4s_minchev", 4), ("etdrk4_4s_alt", 4), ("res_8s_alt", 5), ("res_16s", 6))),
    ("hybrid", "data", "res4lyf_hybrid", (
        ("pec423_2h2s", 4), ("pec433_2h3s", 4), ("abnorsett2_1h2s", 2), ("abnorsett3_2h2s", 3), ("abnorsett4_3h2s", 4),
        ("lawson42-gen-mod_1h4s", 4), ("lawson43-gen-mod_2h4s", 4), ("lawson44-gen-mod_3h4s", 4),
        ("lawson45-gen-mod_4h4s", 4),
    )),
    ("linear", "noise", "", (
        ("euler", 1), ("midpoint_2s", 2), ("heun_2s", 2), ("ralston_2s", 2),
    )),
    ("linear", "noise", "res4lyf_anchor", (
        ("ralston_3s", 3), ("heun_3s", 3), ("houwen-wray_3s", 3), ("kutta_3s", 3), ("ssprk3_3s", 3), ("ssprk4_4s", 3),
        ("bogacki-shampine_4s", 3), ("ralston_4s", 4), ("rk38_4s", 4), ("rk4_4s", 4), ("bogacki-shampine_7s", 5),
        ("dormand-prince_6s", 5), ("tsi_7s", 5), ("rk6_7s", 6), ("dormand-prince_13s", 8),
    )),
    ("linear", "noise", "res4lyf_slips", (("rk5_7s", 5),)),
)  # fmt: skip
#: Orders that a comment beside the table states, where no publication is named.
_NOTED = ("res_5s", "res_6s", "res_8s", "res_8s_alt", "res_16s", "rk5_7s", "rk6_7s", "ssprk4_4s")
#: Linear methods that are judged with their own slopes too.
_UNANCHORED = ("ralston_3s", "kutta_3s", "rk4_4s", "rk38_4s", "dormand-prince_6s", "rk6_7s")
#: Why samplers that draw noise are not judged.
_LEFT = "its noise is made to have mean 0 and deviation 1 over the pixels of a channel, which states of one number can't have"


class Model:
    """What the sampler function asks of ComfyUI's model: an exact denoiser with levels of x = x_0 + sigma eps."""

    device, diffusion_model = torch.device("cpu"), None

    def __init__(self, field: Field, times: Sequence[float]):
        self.field, self.model_sampling = field, importlib.import_module("comfy.model_sampling").EPS()
        last = times[-1] or times[-2]
        ends = torch.tensor([last, times[0]], dtype=torch.float64)
        self.model_sampling.sigma_min, self.model_sampling.sigma_max = ends
        self.inner_model = self.model_patcher = self

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return self.field.denoised(x.reshape(len(x), -1), float(sigma[0])).reshape(x.shape)


def sampler(module: Any, name: str, **options: Any) -> Callable[..., Tensor]:
    """Runs of the sampler function with a name of its menu, without noise, in float64."""
    given = {"eta": 0.0, "eta_substep": 0.0, "BONGMATH": False, **options}
    told = {"extra_options": "\n".join(["work_dtype=float64", given.pop("extra_options", "")])}

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None = None) -> Tensor:
        seed = 0 if generator is None else int(torch.randint(0, 2**31, (1,), generator=generator))
        rows = x.reshape(len(x), -1, 1, 1)
        levels = torch.tensor(list(times), dtype=torch.float64)
        end: Tensor = module.sample_rk_beta(
            Model(field, times), rows, levels, extra_args={"model_options": {"transformer_options": {}}}, disable=True,
            rk_type=name, noise_seed=seed, **given, **told,
        )  # fmt: skip
        return end.reshape(x.shape)

    return run


def order(run: Callable[..., Tensor]) -> float:
    """The order measured of a run over 16 to 128 steps, uniform in log sigma."""
    field = diffode.exact_field("bimodal1d", PATH)
    x, errors = field.prior(24, generator=0), []
    true = diffode.reference(field, x, field.path.t_max, field.path.t_min, 1e-12).x
    for steps in STEPS:
        end = run(field, x, grids.get("log_snr", field.path, steps).tolist())
        errors.append(float((end - true).square().mean().sqrt()))
    return fit_order(STEPS, errors).slope


def load(peers: Peers) -> Any:
    """The module of the sampler function; DEIS makes the weights of all steps anew in each, which are kept here."""
    module = peers.load("RES4LYF")
    tables = importlib.import_module("RES4LYF.beta.rk_coefficients_beta")
    if not hasattr(tables.get_deis_coeff_list, "kept"):
        tables.get_deis_coeff_list = _kept(tables.get_deis_coeff_list)
    return module


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[Any, Any] = {}

    @functools.wraps(function)
    def again(levels: Tensor, order: int, **mode: Any) -> Any:
        key = (tuple(levels.tolist()), order, *mode.values())
        if key not in made:
            made[key] = function(levels, order, **mode)
        return made[key]

    vars(again)["kept"] = made
    return again


class Table(ExponentialButcher):
    """A table of RES4LYF as an exponential Runge-Kutta method, whose entries are numbers for each z = -h."""

    def __init__(self, name: str, tables: Any):
        get = functools.partial(tables.get_rk_methods_beta, name, extra_options="")

        @functools.cache
        def at(z: float) -> tuple[list[list[float]], list[float], list[float]]:
            # phi functions of this table are quotients, in 80 digits.
            h = torch.tensor(-z or 1e-14, dtype=torch.float64)
            levels = torch.exp(torch.tensor([0.0, float(-h)], dtype=torch.float64))
            a, b, _, _, nodes, *_ = get(h, sigmas=levels, sigma=levels[0], sigma_next=levels[1], sigma_down=levels[1])
            rows = [[float(entry) for entry in row] for row in a]
            return rows, [float(entry) for entry in b[0]], [float(node) for node in nodes]

        object.__setattr__(self, "at", at)
        nodes = at(-1.0)[2]
        object.__setattr__(self, "nodes", tuple(nodes[: len(at(-1.0)[1])]))

    at: Callable[[float], tuple[list[list[float]], list[float], list[float]]]

    def stage(self, number: int, z: float) -> list[float]:
        """Row ``number`` of a at z."""
        return self.at(z)[0][number]

    def step(self, z: float) -> list[float]:
        """b at z."""
        return self.at(z)[1]

    @property
    def conditions(self) -> int:
        """The stiff order, at most 4."""
        for order in range(1, 5):
            if self.misses(order, weak=True) > _ROUNDING:
                return order - 1
            if self.misses(order) > _ROUNDING:
                return order
        return 4


def claims(peers: Peers) -> Iterator[Claim]:
    """The explicit samplers of the menu, without noise."""
    module = load(peers)
    tables = importlib.import_module("RES4LYF.beta.rk_coefficients_beta")
    for folder, chart, finding, names in _LISTED:
        for name, order in names:
            source = "" if order is None else _NOTE if name in _NOTED else _NAME
            remark = folder
            # One case is no table but a function, another raises.
            if folder == "exponential" and name not in ("ddim", "res_8s_alt"):
                remark += f", stiff order {Table(name, tables).conditions}"
            yield Claim("RES4LYF", name, _subject(module, name), {"eta": 0}, order, source, chart, finding, remark)
            if name in _UNANCHORED:
                own = _subject(module, name, noise_anchor=0.0)
                options = {"eta": 0, "noise_anchor": 0}
                yield Claim("RES4LYF", name, own, options, order, source, chart, "", remark)
    yield Claim("RES4LYF", "eta > 0", None, remark=_LEFT)


def _subject(module: Any, name: str, **options: Any) -> Sampler:
    run = sampler(module, name, **options)
    return Sampler(name, run, path=PATH, grid="log_snr", to_zero=False, draws=4000, law_steps=100)
