"""Train the members of the universal codebook: ``python tools/train_universal_members.py [NFE ...] [--output FILE]``.

For each number of evaluations ``diffode.learned.universal.codebook`` trains a few dozen tables on thousands of random mixtures
of a wide family, none of them a target of the registry, of which a user takes the one that is best for his field
(``diffode.learned.tune_universal``). Seeds are fixed and one thread computes, so that the same machine writes the same file:
two minutes for 3 evaluations, a quarter of an hour for 12.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from diffode.learned.progress import Step
from diffode.learned.universal.batches import Batch, Setting, batches
from diffode.learned.universal.codebook import Recipe, published, train_codebook, tuned
from diffode.learned.universal.family import wide_mixture
from diffode.solvers.trained.bespoke import shipped_tables
from diffode.solvers.trained.checkpoints import load_codebooks, save_codebooks
from diffode.solvers.trained.ranged import Ranged
from diffode.tableau.stages import count_of

FIRST, LAST, MOST = (2.0, 800.0), (3e-6, 0.04), 256
TRAINING, HELD_OUT = 4000, 150
RECIPE = Recipe()


def levels(rng: np.random.Generator) -> tuple[float, float]:
    """First and last noise level in units of the scale: mostly those of EDM on data of any scale, else of VP, else any."""
    kind = rng.random()
    if kind < 0.75:
        # EDM's 80 and 0.002, or linear VP's 152 and 0.0105.
        first, last, widest = (80.0, 0.002, 25.0) if kind < 0.6 else (152.0, 0.0105, 8.0)
        scale = math.exp(rng.uniform(math.log(0.3), math.log(widest)))
        return first / scale, last / scale
    first, last = (math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in (FIRST, LAST))
    return first, last


def starts(dim: int) -> int:
    """Starts a problem: in many dimensions each says more, and costs more."""
    return 16 if dim <= 8 else 8 if dim <= 32 else 6


def problems(seeds: range, like: Ranged) -> list[Batch]:
    settings = [Setting(wide_mixture(seed), *levels(np.random.default_rng([6, seed])), seed) for seed in seeds]
    return batches(settings, starts, like)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nfe", nargs="*", type=int, default=list(range(3, 13)))
    place = Path(__file__).parent.parent / "diffode" / "solvers" / "trained" / "universal_members.safetensors"
    parser.add_argument("--output", default=str(place))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.time()
    like = Ranged(3, FIRST, LAST, MOST, torch.zeros(9, count_of(3), dtype=torch.float64))
    training, held_out = problems(range(TRAINING), like), problems(range(100_000, 100_000 + HELD_OUT), like)
    print(f"{TRAINING + HELD_OUT} mixtures in {time.time() - began:.0f} s", flush=True)
    facts = {"script": "tools/train_universal_members.py", "mixtures": TRAINING, "floor": RECIPE.floor}
    for nfe in chosen.nfe:
        began = time.time()

        def progress(step: Step, began: float = began) -> None:
            print(f"  {step.number} {step.stage}, mean log error {step.error:.3f}, {time.time() - began:.0f} s", flush=True)

        single = shipped_tables()[nfe]
        origins = [*published(nfe, Ranged(nfe, FIRST, LAST, MOST, single.coefficients)), widened(single)]
        members = train_codebook(training, origins, RECIPE, seed=nfe, progress=progress)
        held = tuned(torch.stack([one.coefficients for one in members]), held_out, RECIPE.floor)
        print(f"nfe {nfe}: held out {float(held.mean()):.3f} after {time.time() - began:.0f} s", flush=True)
        books = load_codebooks(chosen.output) if Path(chosen.output).is_file() else {}
        books[nfe] = tuple(members)
        save_codebooks(dict(sorted(books.items())), facts, chosen.output)


def widened(single: Ranged) -> Ranged:
    """The universal table without its dependence on the dimension, whose range is another one here."""
    coefficients = single.coefficients.clone()
    coefficients[6:] = 0
    return Ranged(single.nfe, FIRST, LAST, MOST, coefficients)


if __name__ == "__main__":
    main()
