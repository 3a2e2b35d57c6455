"""A model of another library as a field: one call each, then every solver, metric and check of diffode works on it.

Run it with ``python examples/from_other_libraries.py``. The "networks" here are the exact field of a target in each
library's own form, as if they were perfectly trained, so that the printed errors are the solver's alone.
"""

import torch

import diffode
from diffode import adapters

target = diffode.targets.get("ring8")
data = target.sample(512, generator=0)
edm, vp, flow, ddpm = (diffode.exact_field(target, path) for path in ("edm", "vp", "rectified_flow", "ddpm"))


def flow_model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """flow_matching: model(x, t), data at t = 1."""
    return -flow.velocity(x, 1 - t.double())


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """k-diffusion and EDM: model(x, sigma) gives denoised points."""
    return edm.denoised(x, sigma.double())


def unet(sample: torch.Tensor, timestep: torch.Tensor, **condition: object) -> tuple[torch.Tensor]:
    """diffusers: model(sample, timestep) predicts noise at timesteps 0 to 999."""
    return (ddpm.noise(sample, timestep.double() + 1),)


def score_network(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """score_sde on VP: the score is -network/sigma, with labels 999 t."""
    return vp.noise(x, labels.double() / 999)


class AzulaDenoiser:
    """azula: denoiser(x, t).mean on denoiser.schedule(t) = (alpha, sigma), t from 0 to 1; here its VE schedule."""

    @staticmethod
    def schedule(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(t), 0.002 * (80 / 0.002) ** t

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> "AzulaDenoiser":
        self.mean = edm.denoised(x, float(self.schedule(t)[1]))
        return self


class DiffusersScheduler:
    """What is read of a scheduler of diffusers; pass the real one, scheduler = DDPMScheduler()."""

    config = {"prediction_type": "epsilon", "num_train_timesteps": 1000}  # noqa: RUF012
    alphas_cumprod = diffode.paths.get("ddpm").alpha(torch.arange(1.0, 1001.0, dtype=torch.float64)) ** 2


def main() -> None:
    # With some data each model is checked at once: a wrong sign, view, time or scaling gives a warning that names it.
    fields = {
        "flow_matching": adapters.from_flow_matching(flow_model, data=data),
        "torchcfm": adapters.from_flow_matching(lambda t, x: flow_model(x, t), order="t, x", data=data),
        "torchdiffeq": adapters.from_torchdiffeq(lambda t, y: flow.velocity(y, float(t)), "rectified_flow", data=data),
        "k-diffusion": adapters.from_k_diffusion(denoiser, data=data),
        "EDM": adapters.from_edm(denoiser, data=data),
        "diffusers": adapters.from_diffusers(unet, DiffusersScheduler(), data=data),
        "score_sde": adapters.from_score_sde(score_network, "vp", data=data),
        "azula": adapters.from_azula(AzulaDenoiser(), data=data),
        "torchsde": adapters.from_torchsde(adapters.as_torchsde(vp), "vp", dim=2, data=data),
    }
    for name, field in fields.items():
        path = field.require_path("a grid")
        x = path.prior((200, 2), generator=1)
        run = diffode.solve(field, x, solver="unipc:order=3", nfe=20, grid="log_snr")
        exact = diffode.reference(diffode.exact_field(target, path), x, path.t_max, path.t_min, 1e-7).x
        error = float((run.x - exact).norm(dim=1).mean()) / target.scale
        print(f"{name:14s} on {path.spec[:24]:24s} NFE {run.nfe}: error {error:.1e} of the scale")

    # Two networks make a guided field; both calls count.
    other = diffode.exact_field("moons", "vp")
    guided = adapters.guided(fields["score_sde"], other, 2.0)
    run = diffode.solve(guided, vp.path.prior((200, 2), generator=1), solver="dpmpp:order=2", nfe=20)
    print(f"guided         NFE {run.nfe} in {len(run.times) - 1} steps")


if __name__ == "__main__":
    main()
