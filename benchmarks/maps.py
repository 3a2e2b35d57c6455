"""What every method of training a flow map learns: errors by number of jumps, on two sets of starts, and files of the maps.

``python benchmarks/maps.py [--targets ...] [--methods ...] [--seeds 0 1 2] [--steps N] [--device cpu|cuda] [--jobs J]
[--shipped] [--output FOLDER]``. Every training is a process of its own with one thread; ``--shipped`` measures the maps that
ship, whose seed is 0, and trains none. FOLDER gets ``results.jsonl``, a line a training, and, for the first seed, the map as
``TARGET-METHOD.safetensors``. Printed are the tables of ``docs/few_step.md`` and ``docs/flow_maps.md``: the mean and the range
over the seeds of the mean distance to the exact end, in units of the data's scale, on 256 starts and on 4,096 others that no
training has seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TARGETS = ("bimodal1d", "ring8", "digits-gmm10")
JUMPS = (1, 2, 4, 8)
#: Steps of tools/train_maps.py.
SHIPPED_STEPS = 3000
#: Two sets of starts: seed of the stream, and how many.
STARTS = {"256": (424242, 256), "4096": (777, 4096)}


#: The width of a network in a method's spec, which is that of a target's in a table.
_WIDTH = re.compile(r":width=\d+$|width=\d+,|,width=\d+")


def trained(method: str, target: str, seed: int, steps: int, device: str, file: str) -> dict[str, Any]:
    """Train one map and measure it."""
    import torch

    from diffode.learned import MAP_METHODS, train_map

    torch.set_num_threads(1)
    began, processor = time.perf_counter(), time.process_time()
    fixed = MAP_METHODS[method.partition(":")[0]].defaults["fixed_end"]
    found = train_map(method, target, nfe=1 if fixed else JUMPS, steps=steps, seed=seed, device=device)
    seconds = time.perf_counter() - began, time.process_time() - processor
    if file:
        found.save(file)
    return {
        "method": method, "target": target, "seed": seed, "steps": found.history.steps, "device": device,
        "errors": measured(found.solver, target), "before": found.errors.before, "seconds": seconds[0], "processor": seconds[1],
    }  # fmt: skip


def shipped(targets: Sequence[str]) -> list[dict[str, Any]]:
    """The maps that ship, measured."""
    from diffode.solvers import ShippedMap, shipped_maps

    lines = []
    for target, method in shipped_maps():
        if target in targets:
            solver = ShippedMap(method=method)
            phi = solver.by_target()[target].phi
            lines.append({
                "method": phi.method, "target": target, "seed": phi.facts.seed, "steps": SHIPPED_STEPS, "device": "cpu",
                "errors": measured(solver, target), "before": phi.facts.start_error, "seconds": phi.facts.seconds,
            })  # fmt: skip
    return lines


def measured(solver: Any, target: str) -> dict[str, dict[int, float]]:
    """Mean distances to the exact end in units of the scale, by set of starts and number of jumps."""
    import diffode
    from diffode.flows import flow_states

    field = diffode.exact_field(target, "edm")
    errors: dict[str, dict[int, float]] = {}
    for name, (stream, count) in STARTS.items():
        x = field.path.prior((count, field.dim), generator=stream)
        exact = flow_states(field, x, (field.path.t_max, field.path.t_min))[-1]
        errors[name] = {}
        # Runs that draw noise have no coupled error.
        for jumps in (n for n in JUMPS if not solver.draws_noise(n)):
            run = diffode.solve(field, x, solver=solver, nfe=jumps)
            errors[name][jumps] = float((run.x - exact).norm(dim=1).mean()) / field.scale
    return errors


def shown(values: list[float]) -> str:
    """The mean of some seeds, and their range."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{statistics.fmean(values):.3g} ({min(values):.2g}-{max(values):.2g})"


def tables(lines: list[dict[str, Any]]) -> str:
    """Markdown tables by target: a line a method, errors on the larger set of starts by number of jumps."""
    text = []
    for target in sorted({line["target"] for line in lines}):
        of = [line for line in lines if line["target"] == target]
        before = statistics.fmean(line["before"] for line in of)
        jumps = " | ".join(f"{n} jump{'' if n == 1 else 's'}" for n in JUMPS)
        text.append(f"\n**{target}** (the Gaussian flow: {before:.3g})\n")
        text.append(f"| method | {jumps} | 1 jump, 256 starts | steps | seconds |")
        text.append("|---" * (len(JUMPS) + 4) + "|")
        groups = defaultdict(list)
        for line in of:
            groups[_WIDTH.sub("", line["method"])].append(line)
        order = sorted(groups, key=lambda name: statistics.fmean(g["errors"]["4096"]["1"] for g in groups[name]))
        for name in order:
            group = groups[name]
            cells = [shown([g["errors"]["4096"][str(n)] for g in group if str(n) in g["errors"]["4096"]]) for n in JUMPS]
            cells.append(shown([g["errors"]["256"]["1"] for g in group]))
            cells += [str(group[0]["steps"]), f"{statistics.fmean(g['seconds'] for g in group):.0f}"]
            text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def main() -> None:
    from diffode.learned import MAP_METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--methods", nargs="*", default=list(MAP_METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no training after so many seconds")
    parser.add_argument("--shipped", action="store_true", help="measure the maps that ship, and train none")
    parser.add_argument("--output", default="maps")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(trained(**json.loads(chosen.one))))
        return
    folder, began = Path(chosen.output), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    if chosen.shipped:
        lines = shipped(chosen.targets)
        with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in json.loads(json.dumps(lines)))
        print(tables(json.loads(json.dumps(lines))))
        return
    asked = [
        {"method": m, "target": t, "seed": s, "steps": chosen.steps, "device": chosen.device,
         "file": str(folder / f"{t}-{m.partition(':')[0]}.safetensors") if s == chosen.seeds[0] else ""}
        for s in chosen.seeds for m in chosen.methods for t in chosen.targets
    ]  # fmt: skip

    def one(request: dict[str, Any]) -> None:
        if time.perf_counter() - began > chosen.seconds:
            return
        command = [sys.executable, __file__, "--one", json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{request['method']} on {request['target']} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            return
        line = json.loads(done.stdout.strip().splitlines()[-1])
        lines.append(line)
        with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(one, asked))
    print(tables(lines))
    print(f"\n{len(lines)} trainings in {time.perf_counter() - began:.0f} s, {chosen.jobs} at a time on {chosen.device}")


if __name__ == "__main__":
    main()
