"""A small trained network as the field: how far is it, and how far is the solver, from the exact flow?

Run it with ``python examples/own_field.py``; it trains for a few seconds.
"""

import torch

import diffode


def train(target: diffode.Target, path: diffode.Path, steps: int = 400) -> torch.nn.Module:
    """Flow matching on a two-dimensional target."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
    )
    network.double()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        data = target.sample(256, generator=generator)
        noise = torch.randn(256, 2, generator=generator, dtype=torch.float64)
        t = torch.rand(256, 1, generator=generator, dtype=torch.float64)
        x = path.alpha(t) * data + path.sigma(t) * noise
        wanted = path.alpha_derivative(t) * data + path.sigma_derivative(t) * noise
        loss = (network(torch.cat([x, t], 1)) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def main() -> None:
    target, path = diffode.targets.get("moons"), diffode.paths.get("rectified_flow")
    network = train(target, path)

    @torch.no_grad()
    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        return network(torch.cat([x, torch.full_like(x[:, :1], t)], 1))

    learned = diffode.Field.from_velocity(velocity, path, scale=target.scale)
    exact = diffode.exact_field(target, path)
    x = path.prior((500, 2), generator=1)
    truth = diffode.reference(exact, x, path.t_max, path.t_min, 1e-8).x
    flow = diffode.reference(learned, x, path.t_max, path.t_min, 1e-6).x
    print(f"network against the exact flow: {float((flow - truth).norm(dim=1).mean()):.3f}")
    for solver in ("euler", "heun", "dpmpp:order=2", "unipc:order=3"):
        solution = diffode.solve(learned, x, solver=solver, nfe=10)
        error = float((solution.x - flow).norm(dim=1).mean())
        print(f"{solver:16s} against the network's own flow, NFE {solution.nfe}: {error:.4f}")


if __name__ == "__main__":
    main()
