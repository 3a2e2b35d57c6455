"""Names that a shell completes, read from files of the package, so that the tab key waits for neither PyTorch nor NumPy."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

_PACKAGE = Path(__file__).parent.parent
#: Schedules that have a name of their own, as ``diffode.paths.PUBLISHED`` and the path of EDM.
SCHEDULES = ("sd15", "sdxl", "flux", "edm")


#: Solvers by name, but for those of other libraries: a shell breaks words at their colons.
SOLVERS = (
    "euler", "midpoint", "heun", "ralston", "kutta3", "rk4", "ab", "ddim", "edm_heun", "dpm", "dpm_m", "dpmpp", "dpmpp_s",
    "dpm_fast", "res_m", "exponential_rk", "heunpp2", "ipndm", "ipndm_v", "lms", "deis", "gradient_estimation", "unipc", "ddpm",
    "euler_maruyama", "euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde",
    "edm_stochastic", "sa", "seeds", "er_sde", "pc", "restart", "lcm", "sde_adaptive", "dpm_adaptive", "rk_adaptive",
    "implicit_rk", "amed", "bespoke", "universal", "map", "shipped_map", "jump", "head", "nodes", "seeds_1", "er_sde_1",
    "seeds_2", "er_sde_2", "seeds_3", "er_sde_3", "amed_learned", "conditioned", "dpm_v3", "dc", "stork", "stork_4",
    "pc_langevin", "picard", "parareal", "dc_regressed",
)  # fmt: skip


def suites(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The suites that ship, and TOML files."""
    shipped = sorted(file.stem for file in (_PACKAGE / "studies" / "suites").glob("*.toml"))
    return _matching(shipped, begun) or _files(begun, ".toml")


def targets(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The targets that ship."""
    return _matching(tomllib.loads((_PACKAGE / "targets" / "cards.toml").read_text(encoding="utf-8")), begun)


def schedules(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Published schedules, and JSON files."""
    return _matching(SCHEDULES, begun) or _files(begun, ".json")


def solvers(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Solvers, and Python files with some."""
    return _matching(SOLVERS, begun) or _files(begun, ".py")


def _matching(names: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _files(begun: str, ending: str) -> list[CompletionItem]:
    folder = Path(begun).parent if begun and not begun.endswith("/") else Path(begun or ".")
    if not folder.is_dir():
        return []
    # Names begin as they were begun: without a "./" that nobody typed.
    found = (file for file in sorted(folder.iterdir()) if file.suffix == ending or file.is_dir())
    named = (f"{file}/" if file.is_dir() else str(file) for file in found if not file.name.startswith("."))
    return [CompletionItem(name) for name in named if name.startswith(begun)]
