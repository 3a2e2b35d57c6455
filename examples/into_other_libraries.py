"""diffode's solvers in other libraries' loops, and its fields as their models: the same numbers.

Run it with ``python examples/into_other_libraries.py``.
"""

import importlib.util

import torch
import torchdiffeq
import torchsde

import diffode
from diffode import adapters


def main() -> None:
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(5, generator=0)

    # A solver as a k-diffusion function: sample(model, x, sigmas, extra_args=, callback=).
    sigmas = torch.cat([diffode.grids.get("karras", field.path, 10), torch.zeros(1)])
    sample = adapters.as_k_diffusion_sampler("dpmpp:order=2")
    theirs = sample(adapters.as_k_diffusion(field), x, sigmas)
    ours = diffode.solve(field, x, solver="dpmpp:order=2", grid=sigmas.tolist()).x
    print(f"k-diffusion function: differs by {float((theirs - ours).abs().max()):.1e}")

    # A field as torchdiffeq's function, and odeint with diffode's solvers.
    flow = diffode.exact_field("ring8", "rectified_flow")
    times = diffode.grids.get("shift:s=3", flow.path, 20)
    y = flow.prior(5, generator=0)
    theirs = torchdiffeq.odeint(adapters.as_torchdiffeq(flow), y, times, method="midpoint")[-1]
    ours = adapters.odeint(adapters.as_torchdiffeq(flow), y, times, method="midpoint")[-1]
    print(f"torchdiffeq's odeint and ours: differ by {float((theirs - ours).abs().max()):.1e}")

    # A solver as a sampler of azula, on its own denoisers and schedules; it needs azula (pip install --no-deps azula einops).
    if importlib.util.find_spec("azula"):
        from azula.denoise import GaussianDenoiser
        from azula.linalg.covariance import DiagonalCovariance
        from azula.noise import VPSchedule
        from azula.sample import DDIMSampler

        mean, variance = torch.zeros(2, dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
        denoiser = GaussianDenoiser(mean, DiagonalCovariance(variance), VPSchedule())
        options = {"steps": 10, "silent": True, "dtype": torch.float64}
        ends = [make(denoiser, **options)(x / 80) for make in (DDIMSampler, adapters.as_azula_sampler("ddim"))]
        print(f"azula's DDIM and ours: differ by {float((ends[0] - ends[1]).abs().max()):.1e}")

    # A field as a velocity model with data at t = 1 (flow_matching, torchcfm), integrated by torchdiffeq as they do.
    model, start = adapters.as_flow_matching(flow), 1 - flow.path.t_max
    span = torch.tensor([start, 1 - flow.path.t_min], dtype=torch.float64)
    end = torchdiffeq.odeint(lambda t, y: model(y, t), y, span, method="rk4", options={"step_size": 1e-3})[-1]
    true = diffode.reference(flow, y, flow.path.t_max, flow.path.t_min, 1e-8).x
    print(f"flow matching by torchdiffeq: {float((end - true).abs().max()):.1e} from the exact flow")

    # A field as a network that diffusers' pipelines call, in a loop of a scheduler of ours.
    images = diffode.exact_field("digits-gmm10", "ddpm")
    unet = adapters.as_diffusers_model(images, (1, 8, 8))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    print(f"diffusers' network: answers {tuple(unet(noise, 999).sample.shape)}, pixels of {unet.config.sample_size} x 8")

    # A field's reverse SDE for torchsde.
    sde = adapters.as_torchsde(diffode.exact_field("ring8", "vp"), eta=1.0)
    torch.manual_seed(0)
    span = torch.tensor([0.0, sde.start - sde.stop], dtype=torch.float64)
    end = torchsde.sdeint(sde, torch.randn(200, 2, dtype=torch.float64), span, method="euler", dt=0.01)[-1]
    print(f"torchsde: mean radius {float(end.norm(dim=1).mean()):.2f} of a ring of radius 5")


if __name__ == "__main__":
    main()
