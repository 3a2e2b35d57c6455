"""Names of solvers in other programs: k-diffusion's functions, ComfyUI's and A1111's menus, diffusers' classes.

A name that means one solver here is an alias, and results hold diffode's own spec. For a name that includes a grid
(``dpmpp_2m_karras``), or that has no single spec here, the error says what to write.
"""

from __future__ import annotations

import re

#: Foreign names, spelt as :func:`spelling` spells them, and the spec here that writes the same rows.
ALIASES = {
    # k-diffusion, ComfyUI, A1111, diff-sampler, DPM-Solver's own code
    "euler_a": "euler_ancestral",
    "dpm_1": "dpm:order=1",
    "dpm_2": "dpm:order=2",
    "dpm2": "dpm:order=2",
    "dpm_3": "dpm:order=3",
    "dpm_2_a": "dpm2_ancestral",
    "dpm2_a": "dpm2_ancestral",
    "dpm_2_ancestral": "dpm2_ancestral",
    "dpmpp_2m": "dpmpp:order=2,lower_order_final=never",
    "dpmpp_3m": "dpmpp:order=3,lower_order_final=never",
    "dpmpp_2s": "dpmpp_s:order=2",
    "dpmpp_3s": "dpmpp_s:order=3",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde:form=heun",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde:form=heun",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "uni_pc": "unipc:order=3,variant=bh1",
    "uni_pc_bh2": "unipc:order=3,variant=bh2",
    "res_multistep": "dpmpp:order=2,form=taylor,lower_order_final=never",
    "exp_heun_2_x0": "dpmpp_s:order=2,form=taylor,r=1",
    "exp_heun_2_x0_sde": "seeds:order=2,chart=data,form=taylor,r=1",
    "rho_2heun": "heun:chart=noise",
    "rho_3kutta": "kutta3:chart=noise",
    "rho_4rk": "rk4:chart=noise",
    "gotta_go_fast": "sde_adaptive",
    # RES4LYF, with its usual nodes
    "res_2m": "dpmpp:order=2,form=taylor,lower_order_final=never",
    "res_3m": "res_m:order=3",
    "res_2s": "dpmpp_s:order=2,form=taylor",
    "res_3s": "exponential_rk:method=hochbruck_ostermann_3",
    "res_4s_cox_matthews": "exponential_rk:method=etd4",
    "res_4s_krogstad": "exponential_rk:method=krogstad",
    "res_4s_strehmel_weiner": "exponential_rk:method=strehmel_weiner",
    "etdrk2_2s": "exponential_rk:method=etd2",
    "lawson2b_2s": "exponential_rk:method=lawson_2",
    "lawson4_4s": "exponential_rk:method=lawson_4",
    "backward_euler": "implicit_rk:method=radau,stages=1",
    "implicit_euler": "implicit_rk:method=radau,stages=1",
    "implicit_midpoint": "implicit_rk:method=gauss,stages=1",
    "gauss_legendre_2s": "implicit_rk:method=gauss,stages=2",
    "gauss_legendre_3s": "implicit_rk:method=gauss,stages=3",
    "radau_iia_2s": "implicit_rk:method=radau,stages=2",
    "radau_iia_3s": "implicit_rk:method=radau,stages=3",
    # samplers that are parallel in time, by the names of their papers
    "paradigms": "picard",
    "parataa": "picard:memory=3",
    "srds": "parareal",
    # diffusers' classes, with their default options
    "euler_discrete": "ddim",
    "edm_euler": "ddim",
    "flow_match_euler_discrete": "euler",
    "flow_match_heun_discrete": "heun",
    "heun_discrete": "edm_heun",
    "euler_ancestral_discrete": "euler_ancestral",
    "kdpm2_discrete": "dpm:order=2",
    "kdpm2_ancestral_discrete": "dpm2_ancestral",
    "lms_discrete": "lms:order=4",
    "dpm_multistep": "dpmpp:order=2",
    "edmdpm_multistep": "dpmpp:order=2",
    "unipc_multistep": "unipc:order=2,variant=bh2",
    "deis_multistep": "ab:order=2,lower_order_final=always,chart=noise_log_snr",
}

#: Foreign names for grids, where they are a part of a sampler's name.
GRIDS = {
    "karras": "karras",
    "k": "karras",
    "exponential": "log_snr",
    "polyexponential": "polyexponential",
    "kl_optimal": "kl_optimal",
    "ays": "ays_sd15",
    "align_your_steps": "ays_sd15",
    "lu": "log_snr",
}

#: Foreign names that no single spec here stands for, each with advice.
ABSENT = {
    "res_5s_hochbruck_ostermann": "its published coefficients are not those of the paper, which "
    "'exponential_rk:method=hochbruck_ostermann_4' has",
    "etdrk4_4s": "its published stages are twice too large; 'exponential_rk:method=etd4' has those of Cox and Matthews",
    "rho_ab": "it is 'lms:order=4', whose order counts the points, ab_order + 1",
    "t_ab": "it is 'deis:order=4', whose order counts the points, ab_order + 1",
    "rho_rk": "it is a family: 'rho_2heun', 'rho_3kutta', 'rho_4rk'",
    "deis_rk": "it is a family: 'rho_2heun', 'rho_3kutta', 'rho_4rk'",
    "consistency": "multistep consistency sampling is 'lcm', and a trained map runs as a solver of its own, map:file=FILE",
    "tcd": "it belongs to a distilled model, and the nearest is 'euler_ancestral' with its eta between 0 and 1",
    "pndm": "it is 'ipndm:order=4', apart from its first steps, which are of Runge-Kutta type",
    "plms": "it is 'ipndm:order=4', apart from the way it starts",
    "sa_solver": "it is 'sa:predictor=3,corrector=3', with its noise tau between tau_from and tau_to",
    "dpm_singlestep": "its orders change from step to step; the nearest is 'dpmpp_s:order=2' with nfe=",
    "dpm_sde": "it is 'dpmpp_sde', whose noise comes from a generator",
    "cosine_dpm_multistep": "it is 'dpmpp_2m_sde' on a grid of its own",
    "euler_cfg_pp": "CFG++ changes the guidance: take 'ddim' on diffode.guide(..., kind=\"cfg++\", grid=times)",
    "euler_ancestral_cfg_pp": "CFG++ changes the guidance, not the solver: take 'euler_ancestral' on a guided field",
    "dopri5": "take 'torchdiffeq:dopri5', or 'rk_adaptive:pair=dopri5', which steps each row by itself",
    "rk45": "take 'scipy:RK45', or 'rk_adaptive:pair=dopri5', which steps each row by itself",
}


def spelling(name: str) -> str:
    """A name in lower case with ``pp`` for ``++`` and ``_`` between its words, without words such as sample or scheduler.

    >>> spelling("DPM++ 2M"), spelling("sample_dpm_2"), spelling("UniPCMultistepScheduler")
    ('dpmpp_2m', 'dpm_2', 'unipc_multistep')
    """
    name = re.sub(r"Scheduler\Z", "", name.strip())
    name = name.replace("++", "pp").replace("UniPC", "Unipc").replace("PlusPlus", "pp")
    if not re.search(r"[\s_-]", name):
        # The words in the name of a class begin with capitals: EulerAncestralDiscrete.
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    words = re.sub(r"[\s-]+", "_", name).lower()
    # DPM++2M is spelt as DPM++ 2M.
    words = re.sub(r"pp(?=\d)", "pp_", words)
    words = re.sub(r"\A(sample|k)_", "", words)
    return re.sub(r"dpm_?solver(pp)?", r"dpm\1", words)


def ours(name: str) -> str | None:
    """The spec here that a foreign name for a solver means, or None.

    >>> ours("DPM++ 2M"), ours("euler_a"), ours("dpmpp_2m_karras")
    ('dpmpp:order=2,lower_order_final=never', 'euler_ancestral', None)
    """
    return _SHIPPED.get(spelling(name)) or ALIASES.get(spelling(name))


def advice(name: str) -> str:
    """Advice on a name that includes a grid, or that has no single spec here; an empty text for other names.

    >>> advice("DPM++ 2M Karras")
    "it names a solver and a grid: take solver 'dpmpp:order=2,lower_order_final=never' and grid 'karras'"
    """
    words = spelling(name)
    for word, grid in GRIDS.items():
        solver = ours(words.removesuffix(f"_{word}")) if words.endswith(f"_{word}") else None
        if solver is not None:
            return f"it names a solver and a grid: take solver {solver!r} and grid {grid!r}"
    return ABSENT.get(words, "")


#: Names that are the same here but for their spelling (Euler, DDIM, LMS, DPM++ 2M SDE ...), with default options.
_SHIPPED = {
    name: name
    for name in (
        "euler", "heun", "ddim", "ddpm", "dpm", "dpmpp", "lms", "ipndm", "ipndm_v", "deis", "unipc", "dpm_fast",
        "dpm_adaptive", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s_ancestral", "euler_ancestral", "er_sde",
        "seeds_2", "seeds_3", "rk4", "midpoint", "lcm", "restart",
        "gradient_estimation", "heunpp2", "kutta3",
    )
}  # fmt: skip
