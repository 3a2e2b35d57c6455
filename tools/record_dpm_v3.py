"""Record runs of the authors' DPM-Solver-v3 for tests/data/dpm_v3.npz.

``python tools/record_dpm_v3.py FILE`` with their file codebases/edm/samplers/dpm_solver_v3.py, from
https://github.com/thu-ml/DPM-Solver-v3, which is run in float64 on the CPU. Its statistics are functions of the log-SNR, given
on 16,001 levels, since it integrates them by the trapezoidal rule between these.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffode

LEVELS = 16_000
#: Name of a run, the authors' arguments, and ours.
RUNS = {
    "corrected": (3, False, True, False),
    "pseudo": (3, True, True, False),
    "pseudo_corrector": (2, False, True, True),
    "predictor": (3, False, False, False),
}


def coefficients(log_snr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some smooth l, s and b for two coordinates, (n, 2)."""
    at = log_snr[:, None] * np.ones(2) + np.array([0.3, -0.4])
    return 1 / (1 + np.exp(2 * at)), 0.3 * np.sin(at), 0.2 * np.exp(-((at - 1) ** 2)) * np.array([1.0, -0.5])


class Schedule:
    """EDM's noise levels in the form that the authors' code asks for."""

    T, total_N = 80.0, 500

    def marginal_lambda(self, t: Any) -> torch.Tensor:
        return -torch.log(torch.as_tensor(t, dtype=torch.float64))

    def marginal_alpha(self, t: Any) -> torch.Tensor:
        return torch.ones_like(torch.as_tensor(t, dtype=torch.float64))

    def marginal_std(self, t: Any) -> torch.Tensor:
        return torch.as_tensor(t, dtype=torch.float64)

    def inverse_lambda(self, log_snr: Any) -> torch.Tensor:
        return torch.exp(-torch.as_tensor(log_snr, dtype=torch.float64))


def main(file: Path) -> None:
    torch.set_default_dtype(torch.float64)
    text = file.read_text(encoding="utf-8").replace(".cuda()", "").replace("torch.Tensor(", "torch.tensor(")
    text = text.replace("torch.FloatTensor(index_list(", "torch.stack(index_list(")
    theirs: dict[str, Any] = {}
    exec(text, theirs)  # the authors' code, which the caller names
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(4, generator=0)
    recorded: dict[str, np.ndarray] = {"x": x.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        log_snr = np.linspace(-math.log(80), -math.log(0.002), LEVELS + 1)
        l, s, b = (values[:, :, None, None] for values in coefficients(log_snr))
        np.savez(Path(folder) / "l.npz", l=l)
        np.savez(Path(folder) / "sb.npz", s=s, b=b)
        solver = theirs["DPM_Solver_v3"](folder, Schedule(), steps=9, t_start=80.0, t_end=0.002, device="cpu")
        for name, (order, pseudo, corrector, pseudo_corrector) in RUNS.items():
            end = solver.sample(
                lambda z, t: field.noise(z.reshape(-1, 2), float(t[0])).reshape(z.shape),
                x.reshape(-1, 2, 1, 1), order, pseudo, corrector, pseudo_corrector, True,
            )  # fmt: skip
            recorded[name] = end.reshape(-1, 2).numpy()
    recorded["times"] = np.array([80.0, *(float(t) for t in solver.timesteps[1:-1]), 0.002])
    np.savez(Path(__file__).parent.parent / "tests" / "data" / "dpm_v3.npz", **recorded)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the authors' dpm_solver_v3.py")
    main(parser.parse_args().file)
