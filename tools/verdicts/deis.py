"""What th_deis, DEIS by its authors, claims: ``get_sampler(sde, eps_fn, ...)`` on the linear VP schedule, in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode.fields import Field
from diffode.verify.sampler.subject import Sampler
from verdicts.peers import Peers
from verdicts.row import Claim

_PAPER = "arXiv 2204.13902"
#: method, its option, order claimed, source, NFE a step, page of a finding.
_LISTED: tuple[tuple[str, dict[str, Any], int, str, int, str], ...] = (
    *(("t_ab", {"ab_order": k}, k + 1, f"{_PAPER}, section 3.3: r + 1 points", 1, "deis_quadrature" if k > 1 else "")
      for k in (0, 1, 2, 3)),
    *(("rho_ab", {"ab_order": k}, k + 1, f"{_PAPER}, section 3.3: r + 1 points", 1, "deis_quadrature" if k > 1 else "")
      for k in (0, 1, 2, 3)),
    *(("rho_rk", {"rk_method": name}, order, f"{_PAPER}, the method of its name", order, "")
      for name, order in (("1euler", 1), ("2heun", 2), ("3kutta", 3), ("3ral", 3), ("3heun", 3), ("3vdh", 3), ("3ssprk", 3),
                          ("4rk", 4))),
    ("ipndm", {}, 4, "arXiv 2202.09778, in its section 3.4", 1, "ipndm_uniform_weights"),
)  # fmt: skip


def sampler(module: Any, method: str, **options: Any) -> Any:
    """Runs of a method between the ends of a grid; the package lays the times between them, uniform in log rho or in t.

    It makes its weights when a sampler is made, for which jax compiles anew; samplers are kept for runs between the same times.
    """
    if loaded := sys.modules.get("jax"):
        # What was compiled for the samplers before stays in memory otherwise, gigabytes of it.
        loaded.clear_caches()
    made: dict[tuple[float, ...], Callable[[Tensor], Tensor]] = {}
    now: dict[str, Field] = {}

    def run(field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None = None) -> Tensor:
        key, now["field"] = (times[0], times[-1], len(times)), field
        if key not in made:
            sde = module.VPSDE(*module.get_linear_alpha_fns(0.1, 20.0), times[-1], times[0])
            made[key] = module.get_sampler(
                sde, lambda y, t: now["field"].noise(y, float(t)), ts_phase="log", ts_order=2.0, num_step=len(times) - 1,
                method=method, **options,
            )  # fmt: skip
        return made[key](x)

    return run


def claims(peers: Peers) -> Iterator[Claim]:
    """All methods of ``get_sampler``."""
    module = peers.load("deis")
    for method, options, order, source, calls, finding in _LISTED:
        grid = "time_uniform" if method == "ipndm" else "log_snr"
        subject = Sampler(
            method, sampler(module, method, **options), None, calls.__mul__, "vp", grid, to_zero=False, foreign=True,
            law_steps=100,
        )  # fmt: skip
        chart = "noise in t" if method in ("t_ab", "ipndm") else "noise"
        yield Claim("deis", f"get_sampler {method}", subject, options, order, source, chart, finding)
