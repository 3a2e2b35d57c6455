"""Hypothesis strategies for property tests: mixtures, paths, grids, solvers, fields and points.

Every example is a seed and a few structural integers, so that it shrinks to the smallest structure that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffode import grids as named_grids
from diffode import paths as named_paths
from diffode import solvers as named_solvers
from diffode.errors import ArgumentError
from diffode.fields import ExactField
from diffode.paths import Path
from diffode.solvers import Solver
from diffode.targets import GaussianMixture, LowRank

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise ArgumentError("strategies of diffode.testing need hypothesis: pip install hypothesis") from error

#: Kinds of covariance of a mixture.
Kind = Literal["isotropic", "diagonal", "full", "low_rank"]
#: All kinds of covariance.
KINDS: tuple[Kind, ...] = ("isotropic", "diagonal", "full", "low_rank")

#: Deterministic solvers with the options that change their structure.
DETERMINISTIC = (
    "ddim", "euler", "midpoint:chart=noise", "heun:chart=noise", "ralston:chart=data", "rk4:chart=data", "edm_heun",
    "dpm:order=2", "dpm:order=3", "dpm_m:order=2", "dpmpp:order=2", "dpmpp:order=3", "dpmpp_s:order=2", "dpmpp_s:order=3",
    "ipndm:order=2", "ipndm:order=4", "ipndm_v:order=3", "lms:order=3", "deis:order=3", "unipc:order=2", "unipc:order=3",
    "ab:order=2,chart=data", "amed",
)  # fmt: skip
#: Solvers that draw noise.
STOCHASTIC = (
    "ddpm", "ddim:eta=1.0", "euler_maruyama", "euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde",
    "dpmpp_2m_sde", "dpmpp_3m_sde", "edm_stochastic", "sa", "seeds_2", "er_sde_2",
)  # fmt: skip
#: Specs of grids that run over a whole path.
FAMILIES = ("karras:rho=7", "karras:rho=2", "log_snr", "kl_optimal", "polyexponential:rho=0.7", "time_quadratic", "shift:s=3")


def seeds() -> SearchStrategy[int]:
    """Seeds of generators."""
    return st.integers(0, 2**32 - 1)


def mixture(seed: int, dim: int, modes: int, kind: Kind, separation: int) -> GaussianMixture:
    """The mixture of an example, with means spread by 3^separation and widths within a factor of three of 1/2.

    >>> mixture(0, 2, 3, "full", 1).count
    3
    """
    draw = np.random.default_rng([97, seed])
    weights = draw.dirichlet(np.full(modes, 3.0)) * 0.9 + 0.1 / modes
    means = draw.normal(size=(modes, dim)) * 3.0**separation
    widths = np.exp(draw.uniform(-0.5, 0.5, (modes, dim))) / 2
    if kind == "isotropic":
        return GaussianMixture(weights, means, widths[:, 0] ** 2)
    if kind == "diagonal":
        return GaussianMixture(weights, means, widths**2)
    if kind == "low_rank":
        return GaussianMixture(weights, means, LowRank(draw.normal(size=(modes, dim, 1)) / 2, widths[:, 0] ** 2 / 4))
    turns = np.stack([np.linalg.qr(draw.normal(size=(dim, dim)))[0] for _ in range(modes)])
    return GaussianMixture(weights, means, np.einsum("kij,kj,klj->kil", turns, widths**2, turns))


def mixtures(
    *, max_dim: int = 4, max_modes: int = 5, kinds: Sequence[Kind] = KINDS, min_modes: int = 1
) -> SearchStrategy[GaussianMixture]:
    """Gaussian mixtures of all kinds of covariance, from one tight cluster to modes far apart."""
    return st.builds(
        mixture, seeds(), st.integers(1, max_dim), st.integers(min_modes, max_modes), st.sampled_from(tuple(kinds)),
        st.integers(-1, 2),
    )  # fmt: skip


def paths() -> SearchStrategy[Path]:
    """Every registered path with its default ends, and a linear VP path with other rates."""
    return st.sampled_from([*named_paths.names(), "vp:beta_max=12", "edm:sigma_max=20"]).map(named_paths.get)


def fields(
    *, max_dim: int = 4, max_modes: int = 5, kinds: Sequence[Kind] = KINDS, min_modes: int = 1
) -> SearchStrategy[ExactField]:
    """Exact fields of :func:`mixtures` on :func:`paths`."""
    targets = mixtures(max_dim=max_dim, max_modes=max_modes, kinds=kinds, min_modes=min_modes)
    return st.builds(ExactField, targets, paths())


def solvers(*, stochastic: bool | None = False) -> SearchStrategy[Solver]:
    """Registered solvers: deterministic ones (False), those that draw noise (True), or both (None)."""
    specs = DETERMINISTIC if stochastic is False else STOCHASTIC if stochastic else DETERMINISTIC + STOCHASTIC
    return st.sampled_from(specs).map(named_solvers.get)


def grid_specs() -> SearchStrategy[str]:
    """Specs of grids, those of :data:`FAMILIES`."""
    return st.sampled_from(FAMILIES)


def random_times(seed: int, path: Path, steps: int) -> list[float]:
    """Times (steps + 1) of an uneven grid over a path, whose steps in log-SNR differ by up to a factor of three."""
    shares = np.exp(np.random.default_rng([98, seed]).uniform(-0.55, 0.55, steps))
    places = np.cumsum(shares / shares.sum())[:-1]
    first, last = path.log_snr(path.t_max), path.log_snr(path.t_min)
    inner = [path.time_from_log_snr(float(first + (last - first) * place)) for place in places]
    times: list[float] = named_grids.explicit([path.t_max, *inner, path.t_min], path).tolist()
    return times


def levels(field: ExactField, seed: int, count: int = 5) -> tuple[float, Tensor]:
    """A time, whose noise level is log-uniform in the data's range, and exact draws at that time, (count, dim)."""
    path, draw = field.path, np.random.default_rng([99, seed])
    low, high = path.rho(path.t_min), min(path.rho(path.t_max), 80 * max(1.0, field.scale))
    t = path.time_from_rho(float(np.exp(draw.uniform(np.log(low), np.log(high)))))
    t = min(max(t, path.t_min), path.t_max)
    return t, field.marginal(count, t, generator=torch.Generator().manual_seed(seed))
