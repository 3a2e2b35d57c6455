"""Train the small networks that ship with diffode: ``python tools/train_networks.py [TARGET ...]``.

Denoisers of registry targets, by the denoising score-matching loss with EDM's weights on EDM's noise levels: data and noise are
drawn anew for every step, as for any network, so that its error is what training leaves. How far it is from the exact denoiser
is then measured at twelve levels and stored with the weights. Seeds are fixed and one thread computes.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch

from diffode import fields, targets
from diffode.fields.networks import Denoiser
from diffode.fields.trained import save_trained
from diffode.randomness import generator_from, normal

FOLDER = Path(__file__).parent.parent / "diffode" / "fields" / "weights"
#: Kind, shape of a row, width, depth, steps, rows a step.
PLANS = {
    "ring8": ("perceptron", (2,), 64, 3, 20_000, 512),
    "moons": ("perceptron", (2,), 64, 3, 20_000, 512),
    "spiral": ("perceptron", (2,), 64, 3, 30_000, 512),
    "digits-gmm10": ("unet", (1, 8, 8), 32, 0, 12_000, 128),
}
LOW, HIGH = 0.002, 80.0
LEVELS, MEASURED = 12, 8192


def noise_levels(count: int, scale: float, source: torch.Generator) -> torch.Tensor:
    """Half as EDM draws them around the data's scale, half uniform in the logarithm over the whole range."""
    around = (normal((count // 2,), generator=source) * 1.2 - 0.5).exp() * scale
    uniform = torch.rand(count - count // 2, generator=source, dtype=torch.float64)
    wide = (math.log(LOW) + uniform * math.log(HIGH / LOW)).exp()
    return torch.cat([around.clamp(LOW, HIGH), wide])


def train(name: str) -> None:
    kind, shape, width, depth, steps, rows = PLANS[name]
    target = targets.get(name)
    torch.manual_seed(0)
    net = Denoiser(kind, shape, target.scale, width=width, depth=depth)
    average = copy.deepcopy(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    source = generator_from(1)
    began = time.time()
    for step in range(steps):
        data = target.sample(rows, generator=source)
        sigma = noise_levels(rows, target.scale, source)
        x = data + sigma[:, None] * normal(data.shape, generator=source)
        weight = ((sigma**2 + target.scale**2) / (sigma * target.scale) ** 2).float()
        denoised = net(x.float(), sigma.float())
        loss = (weight[:, None] * (denoised - data.float()).square()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        # An average over the last thousand steps or so.
        keep = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        if (step + 1) % (steps // 10) == 0:
            print(f"{name} {step + 1}/{steps} loss {loss.item():.4f} {time.time() - began:.0f} s", flush=True)
    facts = {
        "target": name, "kind": kind, "shape": list(shape), "width": width, "depth": depth, "scale": target.scale,
        "steps": steps, "rows": rows, "script": "tools/train_networks.py", "errors": errors(average, name),
    }  # fmt: skip
    save_trained(average, facts, FOLDER / f"{name}.safetensors")
    print(
        f"{name}: {time.time() - began:.0f} s", *(f"{level:.3g}: {error:.2e}" for level, error in facts["errors"]), flush=True
    )


def errors(net: Denoiser, name: str) -> list[tuple[float, float]]:
    """Root mean square distance to the exact denoiser a coordinate, in units of the scale, at levels in that unit."""
    exact = fields.exact_field(name, "edm")
    double = copy.deepcopy(net).double()
    found = []
    for k in range(LEVELS):
        sigma = LOW * (HIGH / LOW) ** (k / (LEVELS - 1))
        x = exact.marginal(MEASURED, sigma, generator=7)
        with torch.no_grad():
            gap = double(x, torch.full((len(x),), sigma, dtype=torch.float64)) - exact.denoised(x, sigma)
        found.append((sigma / exact.scale, float(gap.square().mean().sqrt()) / exact.scale))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(PLANS), help="which of them; all unless given")
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args().targets:
        train(name)


if __name__ == "__main__":
    main()
