"""A UNet of diffusers, trained here on 8 x 8 digits for some seconds, sampled in diffusers' own pipeline by our solvers.

Run it with ``python examples/diffusers_pipeline.py [STEPS]``, 400 training steps by default; it needs
``pip install 'diffode[diffusers]'``.
"""

import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import diffode
from diffode import adapters

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
except ImportError:
    sys.exit("this example needs diffusers: pip install 'diffode[diffusers]'")


def train(steps: int) -> torch.nn.Module:
    """Noise prediction with diffusers' DDPM schedule."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler, target = diffusers.DDPMScheduler(), diffode.targets.get("digits-empirical")
    optimiser, source = torch.optim.Adam(net.parameters(), 2e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        data = target.sample(64, generator=source).float().reshape(-1, 1, 8, 8)
        noise = torch.randn(data.shape, generator=source)
        timesteps = torch.randint(0, 1000, (len(data),), generator=source)
        loss = (net(scheduler.add_noise(data, noise, timesteps), timesteps).sample - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"loss {float(loss.detach()):.3f}")
    return net.eval()


def main(steps: int = 400) -> None:
    net = train(steps)
    for solver in ("ddim", "dpmpp:order=2", "edm_heun"):
        scheduler = adapters.as_diffusers_scheduler(solver, like=diffusers.DDPMScheduler())
        pipeline = diffusers.DDPMPipeline(net, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(4, torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images
        print(f"{solver}: {images.shape[0]} images of {images.shape[1:3]}, {len(scheduler.timesteps)} evaluations")

    # The same network as a field: solved, measured and verified like any other.
    field = adapters.from_diffusers(net, diffusers.DDPMScheduler(), scale=0.54)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    far = diffode.solve(field, x, solver="unipc:order=3", nfe=40, grid="time_uniform").x
    for solver in ("ddim", "dpmpp:order=2", "unipc:order=3", "ipndm:order=3"):
        near = diffode.solve(field, x, solver=solver, nfe=10, grid="time_uniform").x
        print(f"{solver}, NFE 10: {float((near - far).flatten(1).norm(dim=1).mean()):.3f} from 40 evaluations")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
