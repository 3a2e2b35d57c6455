"""The solvers that common laws are held over: every registered name, in each of the forms that change its table.

A solver that is registered is in all of these lists. A family of several orders or forms says below which of them count.
"""

from diffode import solvers
from diffode.solvers.direct import DirectSolver
from diffode.solvers.trained.bespoke import TrainedSolver

#: Options of families, a form each; the first is what stands for the family where one form is enough.
FORMS = {
    "midpoint": ("", "chart=noise"),
    "rk4": ("", "chart=data", "chart=noise"),
    "ab": ("order=2", "order=1", "order=3", "order=4", "order=3,chart=data", "order=2,chart=noise_log_snr"),
    "ddim": ("", "eta=1", "eta=0.5"),
    "dpm": ("order=3", "order=1", "order=2", "order=2,r=0.3", "order=3,form=taylor"),
    "dpm_m": ("order=2", "order=3,form=consistent"),
    "dpmpp": ("order=2", "order=1", "order=2,form=taylor", "order=3", "order=3,form=consistent"),
    "dpm_v3": (
        "corrector=false", "order=2,corrector=false,coefficients=noise",
        "order=2,pseudo_corrector=true",
        "pseudo=true,corrector=false",
    ),
    "exponential_rk": (
        "method=krogstad", "method=etd2", "method=etd3", "method=etd4", "method=strehmel_weiner",
        "method=hochbruck_ostermann_3", "method=hochbruck_ostermann_4", "method=etd4,chart=noise_log_snr",
    ),
    "picard": ("", "base=heun:chart=noise,window=8,memory=2"),
    "parareal": ("", "base=heun:chart=noise,blocks=3"),
    "implicit_rk": ("", "method=radau,chart=data,iteration=newton_krylov"),
    "stork": ("form=consistent,taylor=1", "stages=3,chart=noise"),
    "stork_4": ("form=consistent,taylor=3", "taylor=3,chart=noise"),
    "res_m": ("order=3", "order=3,form=consistent"),
    "dpmpp_s": ("order=3", "order=2", "order=3,form=taylor"),
    "ipndm": ("order=4", "order=2", "order=3"),
    "lms": ("order=4", "order=3"),
    "deis": ("order=3", "order=2"),
    "unipc": (
        "order=3", "order=2,variant=bh1", "order=4", "order=3,variant=vary_coeff", "order=3,corrector=false",
        "order=2,chart=noise_log_snr",
    ),
    "dc": ("", "order=4,variant=bh1"),
    "euler_maruyama": ("", "eta=0.5"),
    "dpmpp_2m_sde": ("", "form=heun"),
    "dpmpp_3m_sde": ("", "form=consistent"),
    "edm_stochastic": ("", "inflation=1"),
    "sa": ("", "predictor=2,corrector=1,tau=0.5"),
    # Their orders have names of their own.
    "seeds": (),
    "er_sde": ("form=consistent",),
}  # fmt: skip
#: These are made from a file that training wrote; tests of training hold them.
OF_A_FILE = {"bespoke", "amed_learned", "conditioned", "dc_regressed", "head", "jump", "map", "nodes", "shipped_map"}


def _specs(name):
    return [f"{name}:{options}" if options else name for options in FORMS.get(name, ("",))]


_NAMED = {name: _specs(name) for name in solvers.names() if name not in OF_A_FILE}
_MADE = {spec: solvers.get(spec) for specs in _NAMED.values() for spec in specs}
_FIRST = {specs[0] for specs in _NAMED.values() if specs}

#: Solvers that follow the field themselves, those of other libraries among them.
DIRECT = [spec for spec, solver in _MADE.items() if isinstance(solver, DirectSolver)]
_TABLES = [spec for spec, solver in _MADE.items() if not isinstance(solver, DirectSolver | TrainedSolver)]
#: Published tables without noise, and those that draw it.
DETERMINISTIC = [spec for spec in _TABLES if not _MADE[spec].stochastic]
STOCHASTIC = [spec for spec in _TABLES if _MADE[spec].stochastic]
#: One form of each deterministic family.
FAMILIES = [spec for spec in DETERMINISTIC if spec in _FIRST]


def in_noise_levels(spec):
    """Whether it steps in noise levels, in which a run depends on nothing else of its path."""
    return solvers.get(spec).chart_name != "velocity"
