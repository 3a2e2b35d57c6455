"""Train the denoiser of Fashion-MNIST's pictures that ships: ``python tools/train_images.py`` (needs Debian's
``dataset-fashion-mnist``).

EDM's loss on EDM's noise levels (Karras et al., arXiv 2206.00364), as ``tools/train_networks.py`` has it, over the 60,000
pictures of the training set. Weights are float32 and products bfloat16, which a recent processor computes twice as fast; the
network that ships is the average over the last thousand steps or so, in float32, and is measured so. Each step draws from a
seed of its own, so that a training goes on from its checkpoint as if it had not stopped; the rate is constant and falls to 0
over the last steps.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from fashion import SIDE, pictures
from train_networks import FOLDER, HIGH, LEVELS, LOW, noise_levels

from diffode.fields import exact_field
from diffode.fields.networks import Denoiser
from diffode.fields.trained import save_trained
from diffode.randomness import generator_from, normal
from diffode.tensor_files import read_tensors, write_tensors

NAME, LAW = "fashion-unet", "fashion-points"
WIDTH, DEPTH, ROWS = 32, 3, 128
RATE, WARM, KEEP = 2e-3, 500, 0.999
SCHEMA = "diffode-image-training-1"
#: Pictures on which losses and distances are measured.
MEASURED = 1000


def rate(step: int, steps: int, falling: int) -> float:
    """The learning rate of a step."""
    return RATE * min(1.0, (step + 1) / WARM, (steps - step) / falling)


class Training:
    """A network, its average and its optimiser, saved every so often."""

    def __init__(self, data: torch.Tensor, checkpoint: Path):
        mean = data.mean(0)
        self.scale = float((data - mean).double().square().mean().sqrt())
        torch.manual_seed(0)
        self.net = Denoiser("patch_unet", (1, SIDE, SIDE), self.scale, width=WIDTH, depth=DEPTH)
        self.net.mean.copy_(mean.reshape(1, SIDE, SIDE))
        self.average = copy.deepcopy(self.net)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=RATE, weight_decay=0.0)
        self.checkpoint, self.step, self.seconds = checkpoint, 0, 0.0
        if checkpoint.exists():
            self._read()

    def _parts(self) -> dict[str, torch.Tensor]:
        parts = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        parts |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            parts |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
        return {name: value.detach().clone().contiguous() for name, value in parts.items()}

    def save(self) -> None:
        write_tensors(self.checkpoint, self._parts(), {"schema": SCHEMA, "step": self.step, "seconds": self.seconds})

    def _read(self) -> None:
        told, parts = read_tensors(self.checkpoint, SCHEMA)
        self.step, self.seconds = int(told["step"]), float(told["seconds"])
        for name in ("net", "average"):
            getattr(self, name).load_state_dict(
                {k.removeprefix(f"{name}."): v for k, v in parts.items() if k.startswith(f"{name}.")}
            )
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in parts.items():
            if key.startswith("optimiser."):
                _, number, name = key.split(".")
                state.setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})

    def take(self, data: torch.Tensor, lr: float) -> float:
        """One step; returns its loss, 1 for a network that learnt nothing but the Gaussian's scale."""
        source = generator_from(self.step)
        rows = data[torch.randint(len(data), (ROWS,), generator=source)]
        sigma = noise_levels(ROWS, self.scale, source)
        x = (rows + sigma[:, None] * normal(rows.shape, generator=source)).float()
        weight = ((sigma**2 + self.scale**2) / (sigma * self.scale) ** 2).float()
        with torch.autocast("cpu", torch.bfloat16):
            denoised = self.net(x, sigma.float())
        loss = (weight[:, None] * (denoised - rows).square()).mean()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(KEEP, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        return loss.item()


def answers(net: Denoiser, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Denoised points at one noise level, a few at a time, float64."""
    with torch.no_grad():
        return torch.cat([net(part, torch.full((len(part),), sigma)) for part in x.float().split(ROWS)]).double()


def losses(net: Denoiser, data: torch.Tensor) -> list[tuple[float, float]]:
    """The loss with EDM's weight on given pictures by noise level, pairs of sigma over the scale and the loss."""
    found = []
    for k in range(LEVELS):
        sigma = LOW * (HIGH / LOW) ** (k / (LEVELS - 1))
        x = data + sigma * normal(data.shape, generator=generator_from(k))
        gap = answers(net, x, sigma) - data
        weight = (sigma**2 + net.scale**2) / (sigma * net.scale) ** 2
        found.append((sigma / net.scale, weight * float(gap.square().mean())))
    return found


def errors(net: Denoiser) -> list[tuple[float, float]]:
    """Root mean square distance to the exact denoiser of the points a pixel, by noise level, both in units of the scale."""
    exact, found = exact_field(LAW, "edm"), []
    for k in range(LEVELS):
        sigma = LOW * (HIGH / LOW) ** (k / (LEVELS - 1))
        x = exact.marginal(MEASURED, sigma, generator=7)
        gap = answers(net, x, sigma) - exact.denoised(x, sigma)
        found.append((sigma / exact.scale, float(gap.square().mean().sqrt()) / exact.scale))
    return found


def told(pairs: list[tuple[float, float]]) -> str:
    return " ".join(f"{level:.3g}:{value:.3g}" for level, value in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="number of steps, about 5 a second on one core")
    parser.add_argument("--falling", type=int, default=1500, help="steps over which the rate falls to 0")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/fashion-unet.safetensors"), help="where to go on from")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    data = torch.from_numpy(pictures("train")[0]).float()
    test = torch.from_numpy(pictures("t10k")[0][:MEASURED]).float()
    training = Training(data, chosen.checkpoint)
    began, known, mean = time.time(), training.seconds, math.nan
    while training.step < chosen.steps:
        loss = training.take(data, rate(training.step, chosen.steps, chosen.falling))
        mean = loss if math.isnan(mean) else 0.99 * mean + 0.01 * loss
        training.seconds = known + time.time() - began
        if training.step % 500 == 0 or training.step == chosen.steps:
            training.save()
            print(f"{training.step}/{chosen.steps} loss {mean:.4f} {training.seconds:.0f} s", flush=True)
        if training.step % 2000 == 0:
            print("  test", told(losses(training.average, test)), flush=True)
    facts = {
        "target": LAW, "kind": "patch_unet", "shape": [1, SIDE, SIDE], "width": WIDTH, "depth": DEPTH, "scale": training.scale,
        "steps": training.step, "rows": ROWS, "script": "tools/train_images.py", "data": "the training set of Fashion-MNIST",
        "arithmetic": "float32",
        "losses": losses(training.average, test),
        "errors": errors(training.average),
    }  # fmt: skip
    save_trained(training.average, facts, FOLDER / f"{NAME}.safetensors")
    print(f"{NAME}: {training.seconds:.0f} s; test losses", told(facts["losses"]))
    print("distances to the exact denoiser of the points", told(facts["errors"]))


if __name__ == "__main__":
    main()
