"""What a network's score error costs: loss, bound and true error of a small denoiser of digits, side by side.

A network is trained for a few seconds on the mixture `digits-gmm10` (64 dimensions), whose score is known, so that its loss is
exact up to the draws; the bound of Kwon, Fan and Lee (2022) is computed from it, and the flow is run from the same starts with
the network and with the exact field.

    python examples/score_error.py [SECONDS]
"""

import sys
import time

import torch

import diffode
from diffode import verify


class Denoiser(torch.nn.Module):
    """D = c_skip x + c_out F(c_in x, log sigma), EDM's preconditioning: D is x where there is no noise."""

    def __init__(self, dim: int, scale: float, width: int = 256):
        super().__init__()
        self.scale = scale
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(dim + 1, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(),
            torch.nn.Linear(width, dim),
        ).double()  # fmt: skip

    def forward(self, x, sigma):
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1).expand(len(x), 1)
        total = (level**2 + self.scale**2).sqrt()
        answer = self.inner(torch.cat([x / total, level.log() / 4], dim=1))
        return self.scale**2 / total**2 * x + level * self.scale / total * answer


def train(network, exact, seconds):
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    generator, began, steps = torch.Generator().manual_seed(0), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        data = exact.target.sample(256, generator=generator)
        sigma = torch.exp(1.4 * torch.randn(256, 1, generator=generator, dtype=torch.float64) - 0.5)
        noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
        weight = (sigma**2 + network.scale**2) / (sigma * network.scale) ** 2
        loss = (weight * (network(data + sigma * noise, sigma) - data).square()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return steps


def main(seconds=4.0):
    torch.manual_seed(0)
    path = diffode.paths.get("edm:sigma_min=0.3,sigma_max=20")
    exact = diffode.exact_field("digits-gmm10", path)
    network = Denoiser(exact.dim, exact.scale)
    print("seconds   steps   loss J   bound on W2 (flow)   the same by its loss   distance of the coupled flows")
    for share in (0.25, 0.75):
        steps = train(network, exact, share * seconds)
        learned = diffode.Field.from_denoised(network, path, scale=exact.scale)
        found = verify.certificate(exact, learned, nodes=17, points=64, lipschitz_points=2, coupled=64)
        print(f"{share * seconds:7.1f} {steps:7d} {found.loss:8.3g} {found.flow.integral:20.3g} {found.flow.by_loss:22.3g} "
              f"{found.coupled:31.3g}")  # fmt: skip
    print(f"\nThe score's one-sided Lipschitz constant, up to {float(found.lipschitz.max()):.3g}, was taken at a few draws: "
          "an estimate from below, and so is the bound.")  # fmt: skip


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
