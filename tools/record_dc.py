"""Record runs of the authors' DC-Solver for tests/data/dc_solver.json.

``python tools/record_dc.py FOLDER`` with a checkout of https://github.com/wl-zhao/DC-Solver, whose file
stable-diffusion/ldm/models/diffusion/dc_solver/dc_solver.py is run in float64 on the linear VP schedule with an exact field.
Of its scheduler for diffusers the regression of ratios alone is taken, with coefficients that are drawn here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import textwrap
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffode

OUT = Path(__file__).parent.parent / "tests" / "data" / "dc_solver.json"
#: Variant, spacing of times, and the ratios of the steps from the third on.
RUNS = (
    ("bh1", "logSNR", (0.9, 1.1, 0.75)),
    ("bh2", "time_uniform", (1.2, 0.6, 0.95, 0.8, 1.05)),
)


def main(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    module = types.ModuleType("dc_solver")
    source = folder / "stable-diffusion/ldm/models/diffusion/dc_solver/dc_solver.py"
    exec(source.read_text(encoding="utf-8"), vars(module))  # the authors' code, which the caller names
    theirs: Any = module
    field = diffode.exact_field("ring8", "vp")
    x = field.prior(3, generator=0)
    runs = []
    for variant, spacing, ratios in RUNS:
        schedule = theirs.NoiseScheduleVP("linear", continuous_beta_0=0.1, continuous_beta_1=20.0)
        solver = theirs.DCSolver(
            lambda y, t: field.noise(y.reshape(3, 2), float(t[0])).reshape(y.shape), schedule, variant=variant
        )
        with contextlib.redirect_stdout(io.StringIO()):
            end = solver.sample(
                x.reshape(3, 2, 1, 1), steps=len(ratios) + 2, t_start=1.0, t_end=1e-3, order=3, skip_type=spacing,
                method="multistep", dc_ratios=[1.0, 1.0, *ratios],
            )  # fmt: skip
        grid = {"logSNR": "log_snr", "time_uniform": "time_uniform"}[spacing]
        runs.append({"variant": variant, "grid": grid, "ratios": ratios, "end": end.reshape(3, 2).tolist()})
    recorded = {"target": "ring8", "path": "vp", "start": x.tolist(), "runs": runs, "regression": regression(folder)}
    OUT.write_text(json.dumps(recorded, indent=1) + "\n")


def regression(folder: Path) -> dict[str, Any]:
    """Ratios of their regression for coefficients that are drawn: by powers of the step, and falling ones of w and of N."""
    text = (folder / "diffusers/src/diffusers/schedulers/scheduling_dcsolver_multistep.py").read_text(encoding="utf-8")
    name = "def cascade_polynomial_regression("
    own = text[text.rindex("\n", 0, text.index(name)) + 1 : text.index("    def step(", text.index(name))]
    names: dict[str, Any] = {"np": np}
    exec(textwrap.dedent(own), names)
    coefficients = np.random.default_rng(0).normal(size=36).round(6)
    with tempfile.TemporaryDirectory() as place:
        np.save(Path(place) / "coefficients.npy", coefficients)
        cases = [
            {
                "weight": w,
                "nfe": n,
                "ratios": names["cascade_polynomial_regression"](None, w, n, Path(place) / "coefficients.npy"),
            }
            for w, n in ((1.0, 5), (7.5, 8), (4.0, 12))
        ]
    return {"coefficients": coefficients.tolist(), "cases": cases}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkout of DC-Solver")
    main(parser.parse_args().folder)
