"""What every method of training a flow map learns: errors by number of jumps, on two sets of starts, its law, and files.

``python benchmarks/maps.py [--targets ...] [--methods ...] [--seeds 0 1 2] [--steps N] [--device cpu|cuda] [--jobs J]
[--shipped] [--output FOLDER]``. Every training is a process of its own with one thread; ``--shipped`` measures the maps that
ship, whose seed is 0, and trains none. FOLDER gets ``results.jsonl``, a line a training, and, for the first seed, the map as
``TARGET-METHOD.safetensors``. Printed are the tables of ``docs/few_step.md`` and ``docs/flow_maps.md``: the mean and the range
over the seeds of the mean distance to the exact end, in units of the data's scale, on 256 starts and on 4,096 others that no
training has seen. A second table has the law of one jump, on as many exact draws: sliced W1 and W2, the energy distance and the
total variation of the weights of modes, in units of the scale, with what two sets of exact draws have. It is what IMM and SiD
learn, whose distance to the exact end says nothing.
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
#: Number of points whose law is measured, and of directions along which it is.
POINTS, DIRECTIONS = 8192, 128
#: The distances of laws, as the table heads them.
LAWS = {"w1": "sliced W1", "w2": "sliced W2", "energy": "energy distance", "weights": "weights of modes"}
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
        "errors": measured(found.solver, target), **laws(found.solver, target), "seconds": seconds[0], "processor": seconds[1],
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
                "errors": measured(solver, target), **laws(solver, target), "seconds": phi.facts.seconds,
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


def laws(solver: Any, target: str) -> dict[str, Any]:
    """The law of one jump, what two sets of exact draws and the Gaussian flow have, and that flow's coupled error."""
    import diffode
    from diffode.flows import flow_states
    from diffode.maps import AngleClock

    field = diffode.exact_field(target, "edm")
    first, last = field.path.t_max, field.path.t_min
    clock = AngleClock.of(field)
    x = field.path.prior((STARTS["4096"][1], field.dim), generator=STARTS["4096"][0])
    ends = flow_states(field, x, (first, last))[-1]
    still = clock.point(clock.state(x, field.path, first), field.path, last)
    x = field.path.prior((POINTS, field.dim), generator=555)
    made = diffode.solve(field, x, solver=solver, nfe=1).x
    exact, other = (field.marginal(POINTS, last, generator=seed) for seed in (556, 557))
    gaussian = clock.point(clock.state(x, field.path, first), field.path, last)
    return {
        "law": law(field, made, exact), "floor": law(field, other, exact), "gaussian": law(field, gaussian, exact),
        "before": float((still - ends).norm(dim=1).mean()) / field.scale,
    }  # fmt: skip


def law(field: Any, made: Any, exact: Any) -> dict[str, float]:
    """The distances of the law of points (n, D) from that of exact draws, in units of the scale."""
    from diffode.fields.exact import mixture_of
    from diffode.metrics.sampled import pair_sums
    from diffode.numerics.projections import directions, projected_distance, projected_mean

    made, exact = made.double(), exact.double()
    along = directions(made.shape[1], DIRECTIONS if made.shape[1] > 1 else 1)
    ones = made.new_ones(len(made), 1)
    count, sums = (
        len(made),
        [float(pair_sums(a, b, ones, ones, lambda d: d)) for a, b in ((made, made), (exact, exact), (made, exact))],
    )
    energy = 2 * sums[2] / count**2 - (sums[0] + sums[1]) / (count * (count - 1))
    mixture, path = mixture_of(field), field.path
    apart = math.nan
    if mixture is not None and mixture.count > 1:
        own = mixture.responsibilities(made, path.alpha(path.t_min), max(path.sigma(path.t_min), 1e-6)).mean(0)
        apart = float((own - mixture.weights).abs().sum()) / 2
    return {
        "w1": projected_mean(made, exact, along) / field.scale,
        "w2": projected_distance(made, exact, along) * math.sqrt(made.shape[1]) / field.scale,
        "energy": math.sqrt(max(energy, 0.0) / field.scale),
        "weights": apart,
    }


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
        text += law_table(target, [line for line in of if "law" in line])
    return "\n".join(text)


def law_table(target: str, of: list[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table of distances of laws, with those of exact draws and of the Gaussian flow; none for none."""
    if not of:
        return []
    text = [
        f"\n**{target}**, law of one jump\n",
        "| method | " + " | ".join(LAWS.values()) + " |",
        "|---" * (len(LAWS) + 1) + "|",
    ]
    groups = defaultdict(list)
    for line in of:
        groups[_WIDTH.sub("", line["method"])].append(line)
    known = [("exact draws", "floor", of[:1]), ("the Gaussian flow", "gaussian", of[:1])]
    order = sorted(groups, key=lambda name: statistics.fmean(g["law"]["w1"] for g in groups[name]))
    for name, which, group in (*known, *((name, "law", groups[name]) for name in order)):
        cells = [shown([g[which][key] for g in group if not math.isnan(g[which][key])]) for key in LAWS]
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return text


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
