"""Measured orders of every deterministic solver: ``make orders`` or ``python benchmarks/orders.py``.

Three nonlinear targets, two grids, by the rule of ``diffode.verify.order``; a measured order further than 0.15 from the
documented one is marked. Multistep methods of order four start on a ramp (see there). About ten minutes on two cores.
``--engine`` says what computes (docs/cluster.md).
"""

from __future__ import annotations

import argparse
from typing import Any

from diffode import engines, solvers, verify
from diffode.errors import ArgumentError

SPECS = (
    "ddim", "heun:chart=noise", "midpoint:chart=noise", "ralston:chart=noise", "rk4:chart=noise", "ab:order=2,chart=noise",
    "ab:order=3,chart=data", "lms:order=4", "deis:order=2", "deis:order=3", "deis:order=4", "dpm:order=2", "dpm:order=3",
    "dpm:order=3,form=taylor", "dpm_fast", "dpm_m:order=2,lower_order_final=never", "dpm_m:order=3,lower_order_final=never",
    "dpm_m:order=3,form=consistent,lower_order_final=never", "dpmpp:order=2", "dpmpp:order=3", "dpmpp:order=3,form=consistent",
    "dpmpp_s:order=2", "dpmpp_s:order=3", "ipndm:order=2", "ipndm:order=3", "ipndm:order=4", "ipndm_v:order=3",
    "ipndm_v:order=4", "ipndm_v:order=4,form=consistent", "unipc:order=1,lower_order_final=never",
    "unipc:order=2,lower_order_final=never", "unipc:order=3,lower_order_final=never",
    "unipc:order=2,variant=vary_coeff,lower_order_final=never", "er_sde:order=2,scale=ode", "er_sde:order=3,scale=ode",
    "er_sde:order=2,form=consistent,scale=ode", "er_sde:order=3,form=consistent,scale=ode",
    "sa:tau=0,predictor=2,corrector=2", "sa:tau=0", "amed", "kutta3:chart=noise", "heunpp2", "gradient_estimation",
    "stork:chart=noise", "stork:chart=noise,stages=4", "stork:chart=noise,taylor=1,form=consistent",
    "stork:chart=noise,virtual=false,stages=4,form=consistent", "stork_4:chart=noise", "stork_4:chart=noise,taylor=3",
    "stork_4:chart=noise,form=consistent", "stork_4:chart=noise,taylor=3,form=consistent",
    "exponential_rk:method=etd2", "exponential_rk:method=etd3", "exponential_rk:method=etd4", "exponential_rk:method=krogstad",
    "exponential_rk:method=strehmel_weiner", "exponential_rk:method=hochbruck_ostermann_3",
    "exponential_rk:method=hochbruck_ostermann_4", "exponential_rk:method=lawson_2", "exponential_rk:method=lawson_4",
    "exponential_rk:method=krogstad,chart=noise_log_snr", "exponential_rk:method=hochbruck_ostermann_4,chart=noise_log_snr",
    "res_m:order=2", "res_m:order=3", "res_m:order=3,form=consistent",
    "dpm_v3:order=2,corrector=false,lower_order_final=never", "dpm_v3:order=3,lower_order_final=never",
    "dpm_v3:order=3,pseudo=true,corrector=false,lower_order_final=never",
    "dpm_v3:order=2,pseudo_corrector=true,lower_order_final=never", "picard:tolerance=1e-10",
    "picard:base=heun:chart=noise,tolerance=1e-12", "picard:base=heun:chart=noise,tolerance=1e-12,memory=3",
    "parareal:base=heun:chart=noise,tolerance=1e-12",
)  # fmt: skip
#: Variable-step methods whose low-order start would rule before rounding does.
RAMPED = (
    "lms:order=4", "deis:order=3", "deis:order=4", "ipndm_v:order=4,form=consistent", "ab:order=3,chart=data",
    "dpmpp:order=3,form=consistent", "res_m:order=3,form=consistent", "dpm_m:order=3,form=consistent,lower_order_final=never",
    "dpm_v3:order=3,lower_order_final=never", "stork_4:chart=noise,form=consistent",
    "stork_4:chart=noise,taylor=3,form=consistent",
)  # fmt: skip
PROBLEMS = [(target, grid) for target in ("bimodal1d", "ring8", "spiral") for grid in ("karras", "log_snr")]


def row(spec: str) -> list[Any]:
    """The line of a solver, and the number of its orders that are far from the documented one."""
    solver = solvers.get(spec)
    # Low orders need, and can have, more levels before rounding.
    steps = (128, 256, 512, 1024, 2048, 4096) + ((8192,) if solver.convergence_order == 1 else ())
    cells, off = [], 0
    for target, grid in PROBLEMS:
        try:
            found = verify.order(spec, target=target, grid=grid, steps=steps, points=16, tolerance=1e-13, ramped=spec in RAMPED)
        except ArgumentError as error:
            cells.append(str(error)[:30])
            continue
        far = abs(found.slope - solver.order_on(grid)) > 0.15
        off += far
        cells.append(f"{found.slope:.2f}" + ("*" if far else ""))
    return [f"| `{spec}` | {solver.order} | {solver.convergence_order} | " + " | ".join(cells) + " |", off]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", help="what computes: local (default), dask, dask://HOST:PORT")
    parser.add_argument("--jobs", type=int, help="worker processes of engines that begin their own")
    chosen = parser.parse_args()
    print("| solver | claimed | documented | " + " | ".join(f"{t}, {g}" for t, g in PROBLEMS) + " |")
    print("|---|---|---|" + "---|" * len(PROBLEMS))
    off, found, shown = 0, dict[int, list[Any]](), 0
    for number, answer in engines.each(row, SPECS, engine=chosen.engine, jobs=chosen.jobs):
        found[number] = answer
        while shown in found:
            line, far = found[shown]
            off, shown = off + far, shown + 1
            print(line, flush=True)
    print(f"\n{off} of {len(SPECS) * len(PROBLEMS)} further than 0.15 from the documented order (*)")


if __name__ == "__main__":
    main()
