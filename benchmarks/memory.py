"""Speed of memories against the obvious ways, as ratios within one run: ``OMP_NUM_THREADS=1 python benchmarks/memory.py``.

N = 256 and L = 1,000,000 unless told; processor time. The limits in brackets are those promised for one core. A minute or two.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import scipy
import torch

from diffode import hippo
from diffode.hippo import scan
from diffode.studies.cell_keys import processor_name


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The least processor time of some runs."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def show(title: str, found: float, base: float, what: str, limit: float | None = None) -> None:
    promised = "" if limit is None else f"   [{limit:g} s]"
    print(f"  {title:58s} {found:8.3f} s   {found / base:7.3f} x {what}{promised}", flush=True)


def long_signals(order: int, length: int) -> None:
    draw = np.random.default_rng(0)
    u, c = draw.standard_normal(length), draw.standard_normal(order)
    legt, legs, h = hippo.get("legt", order), hippo.get("legs", order), 1e-4
    moved, inputs = hippo.hold_of("zoh").cell(legt.measure, order, h)
    part = length // 50
    loop = 50 * seconds(lambda: scan.looped(moved, inputs, u[:part, None, None], np.zeros((1, order))), 1)
    print(f"\nlegt, zoh, N = {order}, L = {length:,} (the loop: {loop:.2f} s for every state, a fiftieth of it timed)")
    show("kernel C M^j G, baby and giant steps", seconds(lambda: legt.response(c, h, length)), loop, "loop", 0.3)
    share = length // 10
    cauchy = 10 * seconds(lambda: hippo.cauchy_kernel(legt, c, h, share), 1)
    show("the same by Cauchy sums (a tenth timed)", cauchy, loop, "loop")
    show("readout of every state, Fourier transform", seconds(lambda: legt.readout(u, h, c, "zoh")), loop, "loop", 1)
    show("every state, two-level scan", seconds(lambda: sum(len(p) for p in legt.states(u, h, "zoh")), 1), loop, "loop", 12)
    single = u.astype(np.float32)
    show("every state, float32", seconds(lambda: sum(len(p) for p in legt.states(single, h, "zoh")), 1), loop, "loop")
    show("last state", seconds(lambda: legt.run(u, h, "zoh")), loop, "loop")
    print(f"\nlegs on equal steps of time, N = {order}, L = {length:,}")
    for hold in ("zoh", "foh", "cubic"):
        show(
            f"last state, {hold}",
            seconds(lambda hold=hold: legs.run(u, 1 / length, hold), 1),
            loop,
            "loop",
            5 if hold == "zoh" else None,
        )
    show("1,000 states, zoh", seconds(lambda: legs.run(u, 1 / length, "zoh", max(1, length // 1000)), 1), loop, "loop")


def training(batch: int = 32, length: int = 4096, order: int = 64) -> None:
    torch.set_num_threads(1)
    u = torch.randn(batch, length, 1)

    def trained(run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        run(u.clone().requires_grad_()).square().mean().backward()

    print(f"\nlayer, batch {batch}, L = {length}, N = {order}, float32, against a plain loop of PyTorch")
    for spec in ("legt:window=1000", "legs"):
        layer = hippo.Hippo(order, spec, "zoh")
        steps = layer.memory.measure.steps(np.arange(float(length)))
        distinct = np.unique(steps)
        cells = [torch.from_numpy(part).float() for part in layer.hold.cells(layer.memory.measure, order, distinct)]
        which = np.searchsorted(distinct, steps).tolist()

        def plain(u: torch.Tensor, cells=cells, which=which) -> torch.Tensor:
            moved, inputs = cells
            state = u.new_zeros(batch, order)
            states = [state]
            for k, i in enumerate(which):
                state = state @ moved[i].T + u[:, k] * inputs[i, :, 0]
                states.append(state)
            return torch.stack(states, 1)

        layer(u)
        with torch.no_grad():
            base = seconds(lambda plain=plain: plain(u))
            show(f"{spec}: forward", seconds(lambda layer=layer: layer(u)), base, "plain loop")
        both = seconds(lambda plain=plain: trained(plain))
        show(f"{spec}: forward and backward", seconds(lambda layer=layer: trained(layer)), both, "plain loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", type=int, default=256)
    parser.add_argument("--length", type=int, default=1_000_000)
    asked = parser.parse_args()
    print(f"{processor_name()}, Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, "
          f"PyTorch {torch.__version__}")  # fmt: skip
    long_signals(asked.order, asked.length)
    training()


if __name__ == "__main__":
    main()
