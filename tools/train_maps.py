"""Train the flow maps that ship with diffode: ``python tools/train_maps.py [TARGET ...] [--methods ...] [--output FOLDER]``.

The main methods, each as its preset stands but for the width of its network, on four targets; files that are there already are
left as they are. Seeds are fixed and one thread computes, so that the files come out the same again on the same machine. About
a minute of one core each, 40 minutes in all.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from diffode.learned import MAP_METHODS, train_map

FOLDER = Path(__file__).parent.parent / "diffode" / "solvers" / "trained" / "maps"
#: Target and width of the network.
TARGETS = {"bimodal1d": 64, "ring8": 64, "digits-gmm10": 96, "spiral": 64}
METHODS = ("flow_map", "distillation", "reflow", "shortcut", "psd", "meanflow", "lmd", "cd", "ect", "ctm")
#: A training whose errors grew to fifty times those of the Gaussian flow, and which does not ship.
ASTRAY = ("digits-gmm10", "ctm")
JUMPS = (1, 2, 4, 8)
STEPS = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--output", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for target in chosen.targets:
        for method in chosen.methods:
            file = chosen.output / f"{target}-{method}.safetensors"
            if file.exists() or (target, method) == ASTRAY:
                continue
            began = time.process_time()
            jumps = 1 if MAP_METHODS[method].defaults["fixed_end"] else JUMPS
            found = train_map(f"{method}:width={TARGETS[target]}", target, nfe=jumps, steps=STEPS)
            found.save(file)
            print(f"{file.name}: {found.held_out}, {time.process_time() - began:.0f} s of one core", flush=True)


if __name__ == "__main__":
    main()
