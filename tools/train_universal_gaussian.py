"""Train the universal tables in the Gaussian's chart: ``python tools/train_universal_gaussian.py [--known scale] [NFE ...]``.

One table for each number of evaluations, its numbers polynomials in the last level and in the number of directions that matter
(``diffode.solvers.trained.spectral``), trained by Gauss-Newton on the mean logarithm of the error over random mixtures of three
kinds (``diffode.learned.universal.family``): in one to 64 dimensions, with wide spectra, and with modes that have full
covariances. No target of the registry is used. All numbers c are 1, with which one Gaussian is exact. Each table grows from
that before it by one evaluation, so that the numbers of evaluations are trained in order. With ``--known scale`` the chart is
that of the Gaussian of which the scale alone is known. Seeds are fixed and one thread computes, so that the same machine writes
the same file.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffode import fields, paths, solvers
from diffode.learned.fitting.chart import in_chart
from diffode.learned.fitting.gauss_newton import Problem, fit
from diffode.learned.fitting.parameters import Parameters
from diffode.learned.universal.family import rotated_mixture, spectral_mixture, wide_mixture
from diffode.solvers.trained.spectral import MONOMIALS, Spectral, directions_of, unit_of
from diffode.solvers.trained.spectral_files import load_spectral, save_spectral
from diffode.statistics import Statistics
from diffode.tableau.stages import Stages, noise_function
from diffode.targets import GaussianMixture

FIRST, LAST = (15.0, 400.0), (3e-5, 0.02)
#: Largest number of directions that matter, of the covariance and where the scale alone is known, as all seem to matter then.
MOST = {"full": 32.0, "scale": 64.0}
TRAINING, HELD_OUT, POINTS = 360, 90, 32
#: Number of mixtures on which the place of an evaluation is chosen, and of steps of that trial and of the training.
CHOOSING, TRIAL, STEPS = 60, 2, 20
#: Errors below this, in units of u, count little, so that easy mixtures do not rule.
FLOOR = 2e-4


class SpectralProblem(Problem):
    """A problem whose parameters follow from the number of directions that matter."""

    directions: float

    @property
    def dim(self) -> float:  # type: ignore[override]
        return self.directions


class SpectralParameters(Parameters):
    """The coefficients of a :class:`Spectral` but those of the numbers c and of the start's evaluation, as a vector."""

    def __init__(self, origin: Spectral):
        self.origin = origin
        rows = origin.nfe + 1
        _, columns = torch.tril_indices(rows, rows)
        self.free = torch.cat([torch.zeros(rows, dtype=torch.bool), columns > 0, torch.ones(rows - 1, dtype=torch.bool)])

    @property
    def start(self) -> Tensor:
        return self.origin.coefficients[:, self.free].reshape(-1)

    def spectral(self, values: Tensor) -> Spectral:
        coefficients = self.origin.coefficients.clone()
        coefficients[:, self.free] = values.reshape(MONOMIALS, -1)
        return replace(self.origin, coefficients=coefficients)

    def stages(self, values: Tensor, first: float, last: float, dim: float = 1) -> Stages:
        return self.spectral(values).stages(first, last, dim)

    def jacobian(self, values: Tensor, first: float, last: float, dim: float = 1) -> Tensor:
        own = torch.eye(len(self.free), dtype=torch.float64)[:, self.free]
        return torch.einsum("f,pq->pfq", self.origin.features(last, dim), own).reshape(len(self.free), -1)


def mixture(seed: int) -> GaussianMixture:
    """A mixture of one of the three kinds, in turn."""
    if seed % 3 == 2:
        return rotated_mixture(seed)
    if seed % 3 == 1:
        return GaussianMixture(*spectral_mixture(seed))
    kinds = map(wide_mixture, range(1000 * seed, 1000 * seed + 99))
    return GaussianMixture(*next(one for one in kinds if len(one.weights) > 1 and one.means.shape[1] <= 64))


def problem(seed: int, kind: str) -> SpectralProblem:
    """A mixture of the family, its starts in the chart of its statistics and their exact ends, in units of u."""
    rng = np.random.default_rng([6, seed])
    target = mixture(seed)
    known = Statistics.of_target(target).reduced(kind)
    unit = unit_of(known)
    first, last = (unit * math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in (FIRST, LAST))
    path = paths.EDM(t_min=last, t_max=first)
    field = fields.exact_field(target, path)
    start = path.prior((POINTS, target.dim), generator=seed)
    # 600 evaluations of a fourth-order method: errors near 1e-6, far below those of what is trained.
    exact = solvers.get("rk4:chart=data").tableau(path, "log_snr", 150).run(field, start)
    plain = SpectralProblem(noise_function(field), start, exact, unit, first / unit, last / unit)
    made = in_chart(plain, field, known)
    object.__setattr__(made, "directions", directions_of(known))
    return made  # type: ignore[return-value]


def begun(kind: str) -> Spectral:
    """The table of one evaluation from which all others grow: a step of Euler's method in the angle from half of u."""
    scales, levels = torch.ones(2), torch.tensor([math.log(0.5)])
    vector = torch.cat([scales, torch.tensor([0.0, 0.0, -0.5]), levels]).double()
    coefficients = torch.zeros(MONOMIALS, len(vector), dtype=torch.float64)
    coefficients[0] = vector
    return Spectral(1, LAST, MOST[kind], coefficients)


def grown(spectral: Spectral) -> Iterator[Spectral]:
    """Tables with one evaluation more, before the first and between each two neighbours, that give the same ends."""
    rows = spectral.nfe + 1
    scales, weights, levels = spectral.coefficients.split([rows, rows * (rows + 1) // 2, rows - 1], dim=1)
    i, j = torch.tril_indices(rows, rows)
    square = scales.new_zeros(MONOMIALS, rows, rows)
    square[:, i, j] = weights
    end = scales.new_zeros(MONOMIALS)
    end[0] = math.log(math.sqrt(LAST[0] * LAST[1]))
    levels = torch.cat([levels, end[:, None]], dim=1)
    for k in range(1, rows + 1):
        new = levels[:, 0].clone() if k == 1 else (levels[:, k - 2] + levels[:, k - 1]) / 2
        new[0] += math.log(2.0) if k == 1 else 0.0
        kept = torch.tensor([i if i < k - 1 else i + 1 for i in range(rows)])
        columns = torch.tensor([j if j < k else j + 1 for j in range(rows)])
        c, b = scales.new_zeros(MONOMIALS, rows + 1), scales.new_zeros(MONOMIALS, rows + 1, rows + 1)
        c[:, kept] = scales
        b[:, kept[:, None], columns] = square
        if k == 1:
            c[0, 0] = 1.0
        else:
            angles = [math.atan(math.exp(float(value))) for value in (levels[0, k - 2], new[0], levels[0, k - 1])]
            share = (angles[1] - angles[0]) / (angles[2] - angles[0])
            c[:, k - 1] = torch.lerp(scales[:, k - 2], scales[:, k - 1], share)
            b[:, k - 1, :k] = torch.lerp(square[:, k - 2, :k], square[:, k - 1, :k], share)
        i, j = torch.tril_indices(rows + 1, rows + 1)
        inner = torch.cat([levels[:, : k - 1], new[:, None], levels[:, k - 1 : -1]], dim=1)
        yield Spectral(spectral.nfe + 1, spectral.last, spectral.most, torch.cat([c, b[:, i, j], inner], dim=1))


def train(begin: list[Spectral], problems: list[SpectralProblem], held_out: list[SpectralProblem], steps: int) -> Spectral:
    """The best table after a trial of each, trained to the end."""
    best, some = [], problems[:CHOOSING]
    for one in begin if len(begin) > 1 else []:
        parameters = SpectralParameters(one)
        found = fit(parameters, some, some, loss="log", floor=FLOOR, steps=TRIAL, directions=3)
        best.append((min(found.held_out), len(best), parameters.spectral(found.values)))
    origin = min(best)[2] if best else begin[0]
    parameters = SpectralParameters(origin)
    found = fit(parameters, problems, held_out, loss="log", floor=FLOOR, steps=steps, patience=5, directions=3)
    made = parameters.spectral(found.values)
    levels = [round(math.exp(value), 3) for value in made.coefficients[0, -made.nfe :].tolist()]
    place, steps = min(best)[1] + 1 if best else 1, len(found.training) - 1
    errors = f"{found.held_out[0]:.3f} -> {min(found.held_out):.3f}, in training {found.training[-1]:.3f}"
    print(
        f"nfe {made.nfe}, place {place}: mean log error held out {errors}; {steps} steps, {found.seconds:.0f} s, {levels}",
        flush=True,
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nfe", nargs="*", type=int, default=list(range(1, 13)))
    parser.add_argument("--known", choices=list(MOST), default="full", help="what is known of the data: covariance or scale")
    place = Path(__file__).parent.parent / "diffode" / "solvers" / "trained"
    parser.add_argument("--output", help="by default the file that ships")
    parser.add_argument("--mixtures", type=int, default=TRAINING)
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    output = (
        chosen.output or str(place / ("universal_gaussian" if chosen.known == "full" else "universal_scale")) + ".safetensors"
    )
    torch.set_num_threads(1)
    began = time.time()
    problems = [problem(seed, chosen.known) for seed in range(chosen.mixtures)]
    held_out = [problem(seed, chosen.known) for seed in range(10_000, 10_000 + HELD_OUT)]
    print(f"{len(problems) + len(held_out)} mixtures in {time.time() - began:.0f} s", flush=True)
    facts = {"script": "tools/train_universal_gaussian.py", "mixtures": chosen.mixtures, "points": POINTS, "floor": FLOOR}
    tables = load_spectral(output) if Path(output).is_file() else {}
    for nfe in chosen.nfe:
        begin = list(grown(tables[nfe - 1])) if nfe > 1 else [begun(chosen.known)]
        tables[nfe] = train(begin, problems, held_out, chosen.steps)
        save_spectral(dict(sorted(tables.items())), facts, output)


if __name__ == "__main__":
    main()
