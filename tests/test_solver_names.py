"""The names that other people use for solvers lead to the rows of the code that bears them, or say what to write."""

import itertools
import math
import os
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import pytest
import torch
from scheduler_loop import follow_scheduler
from test_conformance import RUNS

import diffode
from diffode import grids, solvers
from diffode.errors import ArgumentError, UnknownNameError
from diffode.solvers.names import ABSENT, ALIASES, GRIDS, advice, ours, spelling
from diffode.solvers.plain_function import samples

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

EDM = diffode.paths.get("edm")

#: Names of k-diffusion and diff-sampler by the names of their recorded runs in tests/data/conformance.npz.
RECORDED = {
    "kd_dpm_2": ("dpm_2", "DPM2", "sample_dpm_2", "dpm2"), "kd_dpmpp_2m": ("dpmpp_2m", "DPM++ 2M", "DPM-Solver++ 2M"),
    "kd_euler_ancestral": ("euler_a", "Euler a", "k_euler_a"), "kd_dpm_2_ancestral": ("dpm_2_ancestral", "DPM2 a", "dpm2_a"),
    "kd_dpmpp_2s": ("dpmpp_2s",), "kd_dpmpp_2s_ancestral": ("DPM++ 2S a", "dpmpp_2s_a"),
    "kd_dpmpp_2m_sde": ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu"), "kd_dpmpp_2m_sde_heun": ("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun"),
    "kd_dpmpp_3m_sde": ("DPM++ 3M SDE", "dpmpp_3m_sde_gpu"), "kd_euler": ("Euler", "sample_euler"), "kd_heun": ("Heun",),
    "kd_lms_4": ("LMS", "sample_lms"), "kd_dpm_fast": ("DPM fast",), "dpmpp_3m": ("dpmpp_3m", "DPM++ 3M"),
    "ipndm_4": ("ipndm",), "ipndm_v_4": ("ipndm_v",), "deis_tab_2": ("deis",),
    "unipc_3_bh1": ("uni_pc",), "unipc_3_bh2": ("uni_pc_bh2", "UniPC"),
}  # fmt: skip


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, names in RECORDED.items() for name in names])
def test_names_of_recorded_codes_run_what_reproduces_the_records(case, name):
    reproducing = {run["solver"] for run in RUNS if run["case"] == case}
    assert solvers.get(name).spec in {solvers.get(spec).spec for spec in reproducing}


@pytest.mark.parametrize("eta", [0.0, 1.0, 0.6])
def test_exp_heun_is_the_exponential_heun_method_written_out(eta):
    """SEEDS-2 with the inner point at the end, in log-SNR with k = h (1 + eta): weights phi_1(-k) - phi_2(-k) and phi_2(-k)."""
    field = diffode.exact_field("bimodal1d", "edm")
    sigmas = [80.0, 9.0, 2.0, 0.6, 0.1, 0.0]
    x = field.prior(5, generator=0)
    table = solvers.get("exp_heun_2_x0_sde", eta=eta).tableau(field.path, sigmas)
    assert (table.nfe, table.draws) == (9, 0 if eta == 0 else 4)
    noise = torch.randn(table.draws, 5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, draws = table.run(field, x, noise=noise), iter(noise)
    if eta == 0:
        torch.testing.assert_close(ours, diffode.solve(field, x, solver="exp_heun_2_x0", grid=sigmas).x, rtol=1e-12, atol=1e-12)
    for s, t in itertools.pairwise(sigmas):
        denoised = field.denoised(x, s)
        if t == 0:
            x = denoised
            continue
        k = math.log(s / t) * (1 + eta)
        phi_1 = -math.expm1(-k) / k
        phi_2 = (1 - phi_1) / k
        spread = t * math.sqrt(-math.expm1(-2 * eta * math.log(s / t)))
        shock = spread * next(draws) if eta else 0.0
        there = math.exp(-k) * x + k * phi_1 * denoised + shock
        x = math.exp(-k) * x + k * ((phi_1 - phi_2) * denoised + phi_2 * field.denoised(there, t)) + shock
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)


def test_res_multistep_is_the_exponential_multistep_rule_with_exact_weights():
    """x' = e^-h x + h (b1 D + b2 D_before) with b2 = -phi_2(-h) h/h_before, b1 = phi_1(-h) - b2, written out in log-SNR."""
    field = diffode.exact_field("bimodal1d", "edm")
    sigmas = [80.0, 9.0, 2.0, 0.6, 0.1, 0.0]
    x = field.prior(5, generator=0)
    ours = diffode.solve(field, x, solver="res_multistep", grid=sigmas).x
    before = None
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        denoised = field.denoised(x, s)
        if t == 0:
            x = denoised
            continue
        h = math.log(s / t)
        phi_1 = -math.expm1(-h) / h
        phi_2 = (1 - phi_1) / h
        ratio = 0.0 if i == 0 else h / math.log(sigmas[i - 1] / s)
        x = math.exp(-h) * x + h * ((phi_1 + phi_2 * ratio) * denoised - phi_2 * ratio * (denoised if i == 0 else before))
        before = denoised
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def test_what_lcm_leads_to_renoises_the_denoised_point():
    spec = "LCM" if "lcm" in solvers.names() else re.findall(r"'(.*)'", advice("LCM"))[0]
    field, sigmas = diffode.exact_field("ring8", "edm"), [80.0, 5.0, 0.7, 0.0]
    x = field.prior(4, generator=0)
    noise = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = diffode.solve(field, x, solver=spec, grid=sigmas, noise=noise).x
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        x = field.denoised(x, s) + (t * noise[k] if t else 0)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


#: Classes of diffusers at nine steps, with the options that end at the last noise level given instead of at 0, and how far
#: they agree: those that cast the state to float32 to 1e-5.
CLASSES = {
    "EulerDiscreteScheduler": {}, "HeunDiscreteScheduler": {}, "KDPM2DiscreteScheduler": {}, "LMSDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"final_sigmas_type": "sigma_min"},
    "UniPCMultistepScheduler": {"final_sigmas_type": "sigma_min"}, "DEISMultistepScheduler": {},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_diffusers_run_as_their_own_code(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, name)(**CLASSES[name])
    path = diffode.paths.get("vp") if "Multistep" in name else EDM
    levels = [diffode.paths.get("vp").rho(t) for t in grids.get("karras:rho=5", diffode.paths.get("vp"), 9).tolist()]
    times = [path.time_from_rho(r) for r in levels]
    field = diffode.exact_field("spiral", path)
    start = path.sigma(times[0]) * torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = solvers.get(name).tableau(path, times).draws
    source = torch.Generator().manual_seed(1)
    noise = torch.stack([torch.randn(start.shape, generator=source, dtype=torch.float64) for _ in range(draws or 1)])
    run = diffode.solve(field, start, solver=name, grid=times, noise=noise if draws else None)
    generator = torch.Generator().manual_seed(1)
    end = follow_scheduler(scheduler, levels, lambda x, rho: field.noise(x, path.time_from_rho(rho)), start, generator)
    assert float((end - run.x).abs().max() / run.x.abs().max()) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_ancestral_midpoint_of_diffusers_is_ours_on_its_own_levels():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = diffusers.KDPM2AncestralDiscreteScheduler()
    scheduler.set_timesteps(6)
    levels = sorted(set(scheduler.sigmas.tolist()), reverse=True)
    field = diffode.exact_field("spiral", "edm")
    x = start = levels[0] * torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source, kept = torch.Generator().manual_seed(1), []
    for number, time in enumerate(scheduler.timesteps):
        second = number % 2 == 1
        level = float(scheduler.sigmas_interpol[number - 1] if second else scheduler.sigmas[number])
        # It draws at every call and adds what it drew at every second one.
        state = source.get_state()
        draw = torch.randn(x.shape, generator=source, dtype=x.dtype)
        kept += [draw] if second else []
        source.set_state(state)
        scheduler.scale_model_input(x, time)
        x = scheduler.step(field.noise(x, level), time, x, generator=source).prev_sample
    draws = solvers.get("dpm2_ancestral").tableau(EDM, levels).draws
    name = "KDPM2AncestralDiscreteScheduler"
    run = diffode.solve(field, start, solver=name, grid=levels, noise=torch.stack(kept)[:draws])
    # Its levels are float32, and cancel in sigma_down.
    torch.testing.assert_close(x, run.x, rtol=1e-4, atol=1e-4)


def test_flow_matching_classes_step_as_euler_and_heun_in_time():
    assert solvers.get("FlowMatchEulerDiscreteScheduler").spec == "euler"
    assert solvers.get("FlowMatchHeunDiscreteScheduler").spec == "heun"


def test_every_alias_names_a_solver_and_is_no_name_of_ours():
    for name, spec in ALIASES.items():
        assert solvers.get(name).spec == solvers.get(spec).spec
        assert name not in solvers.names()


def test_results_hold_our_own_spec_whatever_the_solver_was_called():
    field = diffode.exact_field("ring8", "edm")
    run = diffode.solve(field, field.prior(2, generator=0), solver="DPM++ 2M", nfe=4)
    assert run.tableau.solver == "dpmpp:lower_order_final=never"
    assert solvers.registry.canonical("dpmpp:order=2") == "dpmpp:order=2"


def test_options_go_with_a_name_from_elsewhere_unless_it_says_them_itself():
    assert solvers.get("euler_a:eta=0.5").spec == "euler_ancestral:eta=0.5"
    assert solvers.get("dpmpp_2m:form=taylor").spec == "dpmpp:form=taylor,lower_order_final=never"
    with pytest.raises(ArgumentError, match="stands for 'dpmpp:order=2,lower_order_final=never', which says 'order' already"):
        solvers.get("dpmpp_2m:order=3")


@pytest.mark.parametrize(
    ("name", "solver", "grid"),
    [
        ("dpmpp_2m_karras", "dpmpp:order=2,lower_order_final=never", "karras"),
        ("DPM++ 2M Karras", "dpmpp:order=2,lower_order_final=never", "karras"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde", "log_snr"),
        ("DPM2 a Karras", "dpm2_ancestral", "karras"),
        ("LMS Karras", "lms", "karras"),
    ],
)
def test_a_name_with_a_grid_in_it_is_taken_apart(name, solver, grid):
    with pytest.raises(UnknownNameError) as raised:
        solvers.get(name)
    assert f"take solver {solver!r} and grid {grid!r}" in str(raised.value)
    assert solvers.get(solver)
    assert len(grids.get(grid, EDM, 3)) == 4


@pytest.mark.parametrize(
    "name",
    [
        "res_5s_hochbruck-ostermann",
        "TCDScheduler",
        "PNDMScheduler",
        "sa_solver",
        "dopri5",
        "euler_cfg_pp",
        "rho_ab",
        "t_ab",
        "rho_rk",
        "deis_rk",
        "consistency",
    ],
)
def test_names_without_a_solver_here_say_what_is_nearest(name):
    with pytest.raises(UnknownNameError) as raised:
        solvers.get(name)
    named = re.findall(r"'([^']+)'", str(raised.value).partition("; known")[0].partition(": ")[2])
    assert named
    assert all(solvers.get(spec) for spec in named)


def test_every_name_from_elsewhere_is_kept_as_it_is_looked_up():
    # A key that its own spelling changes is never found.
    assert [name for name in (*ALIASES, *ABSENT, *GRIDS) if spelling(name) != name] == []


def test_a_misspelt_alias_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean 'dpmpp_2m'"):
        solvers.get("dpmpp_2mm")
    assert ours("nothing like it") is None


def test_functions_that_sample_are_told_by_their_arguments_and_by_the_first_line_that_is_said_of_them(monkeypatch):
    def mine(field, x, times):
        """Ends where it began.

        Whatever the field.
        """
        return x

    assert samples(mine)
    assert samples(lambda *arguments: arguments)
    assert not samples(lambda x, *, times: x)
    assert not samples(lambda x, **options: x)
    monkeypatch.setattr(solvers.registry, "_entries", dict(solvers.registry._entries))
    solvers.register("mine_of_the_names", mine)
    assert solvers.registry.entry("mine_of_the_names").summary == "Ends where it began."
