"""Models with an argument for every row: each row keeps its own, whichever rows a solver, a probe or an adaptive step asks for.

The model is the exact denoiser of N(c, 1/4) where c is the row's own condition, so that rows differ by their condition alone.
"""

import numpy as np
import pytest
import torch

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, ConventionWarning, FieldError

START = diffode.exact_field("ring8", "edm").prior(5, generator=0)
CONDITIONS = torch.tensor([-2.0, 0.5, 0.5, 3.0, 7.0], dtype=torch.float64)


def denoiser(x, sigma, c):
    c, variance = c.reshape(-1, 1), sigma.reshape(-1, 1) ** 2
    return (x / 4 + variance * c) / (1 / 4 + variance)


def field(c=CONDITIONS, model=denoiser, **options):
    return adapters.from_k_diffusion(model, extra={"c": c}, scale=0.5, **options)


def alone(x, c, **options):
    """Every row run by itself, its condition closed over."""
    ends = []
    for row, own in zip(x, c.expand(len(x)), strict=True):
        one = diffode.Field.from_denoised(
            lambda y, t, own=own: denoiser(y, torch.as_tensor(t, dtype=y.dtype), own), diffode.paths.get("edm"), scale=0.5
        )
        ends.append(diffode.solve(one, row[None], **options).x)
    return torch.cat(ends)


@pytest.mark.parametrize(
    "options", [{"solver": "dpmpp:order=2", "nfe": 6}, {"solver": "heun", "nfe": 10}, {"solver": "rk_adaptive:rtol=1e-4"}],
    ids=["2M", "heun", "adaptive"],
)  # fmt: skip
def test_every_row_has_its_own_condition(options):
    end = diffode.solve(field(), START, **options).x
    assert torch.allclose(end, alone(START, CONDITIONS, **options), rtol=0, atol=1e-9)
    # The flow ends near its own condition: another row's would be off by 2 and more.
    assert ((end - CONDITIONS[:, None]).abs().amax(1) < 2.5).all()


def test_the_exact_flow_follows_each_rows_condition():
    found = field()
    true = diffode.reference(found, START, 80.0, 0.002, 1e-8)
    shrunk = ((1 / 4 + 0.002**2) / (1 / 4 + 80.0**2)) ** 0.5
    c = CONDITIONS[:, None]
    assert torch.allclose(true.x, c + shrunk * (START - c), atol=1e-6)


def test_one_condition_for_all_rows():
    one = CONDITIONS[3:4]
    end = diffode.solve(field(one), START, solver="heun", nfe=10).x
    assert torch.allclose(end, alone(START, one, solver="heun", nfe=10), atol=1e-12)


def test_guided_models_keep_their_conditions():
    null = torch.zeros(5, dtype=torch.float64)
    found = adapters.guided(field(), field(null), np.float32(1.5))
    for options in ({"solver": "ddim", "nfe": 8}, {"solver": "rk_adaptive:rtol=1e-4"}):
        end = diffode.solve(found, START, **options).x
        # Guidance of two Gaussians of equal width is a Gaussian at the extrapolated mean.
        assert torch.allclose(end, alone(START, 1.5 * CONDITIONS, **({**options, "nfe": 4} if "nfe" in options else options)))
    assert found.scale == 0.5


def test_guided_models_are_looked_at_before_the_first_run():
    def wrong(x, sigma, c):
        return -denoiser(x, sigma, c)

    with pytest.warns(ConventionWarning, match="sign is wrong"):
        diffode.solve(adapters.guided(field(), field(model=wrong), 2.0), START, solver="ddim", nfe=4)


def test_conditions_inside_of_dictionaries_and_lists_are_taken_along():
    def nested(x, sigma, added, flag):
        assert flag == "on"
        return denoiser(x, sigma, added["texts"][0])

    extra = {"added": {"texts": [CONDITIONS]}, "flag": "on"}
    found = adapters.from_k_diffusion(nested, extra=extra, scale=0.5)
    end = diffode.solve(found, START, solver="rk_adaptive:rtol=1e-4").x
    assert torch.allclose(end, alone(START, CONDITIONS, solver="rk_adaptive:rtol=1e-4"), atol=1e-9)
    wrong = adapters.from_k_diffusion(nested, extra={"added": {"texts": [CONDITIONS[:3]]}, "flag": "on"})
    with pytest.raises(ArgumentError, match=r"added\['texts'\]\[0\] of model has 3 rows, the batch has 5.*shared"):
        diffode.solve(wrong, START, solver="ddim", nfe=4)


def test_a_shared_argument_goes_to_every_call_whole():
    seen = set()

    def model(x, sigma, places):
        seen.add((tuple(places.shape), places.dtype))
        return denoiser(x, sigma, places[0])

    places = torch.full((3, 1), 2.0)
    found = adapters.from_k_diffusion(model, extra={"places": adapters.shared(places)}, scale=0.5)
    diffode.solve(found, START, solver="ddim", nfe=4)
    diffode.solve(found, START[:2], solver="ddim", nfe=4)
    assert seen == {((3, 1), torch.float64)}


def test_conditions_of_another_batch_are_an_error():
    for count in (2, 4, 6):
        with pytest.raises(ArgumentError, match=f"c of model has {count} rows, the batch has 5"):
            diffode.solve(field(torch.zeros(count, dtype=torch.float64)), START, solver="ddim", nfe=4)


def test_real_coupling_of_conditional_rows_is_still_found():
    def coupled(x, sigma, c):
        return denoiser(x, sigma, c) + 1e-2 * x.mean(0)

    with pytest.raises(FieldError, match="depends on the other rows"):
        diffode.solve(field(model=coupled), START, solver="ddim", nfe=4)


def test_a_bound_method_of_a_network_is_called_in_the_networks_dtype():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    found = adapters.from_k_diffusion(lambda x, sigma: x, scale=0.5)
    assert found.prediction == "denoised"

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop = net, torch.nn.Dropout(0.5)

        def forward(self, x, sigma):
            return self.drop(self.inner(x))

    two = Two()
    with pytest.raises(ArgumentError, match="training mode with Dropout"):
        adapters.from_k_diffusion(two.forward)
    answer = adapters.from_k_diffusion(two.eval().forward).denoised(START, 1.0)
    assert torch.allclose(answer, net(START.float()).double(), atol=1e-6)


class Correction(torch.nn.Module):
    """A noise prediction of x and a tenth of what a network of diffusers answers: untrained, that is no denoiser by itself, and
    looking for what is wrong with its convention costs more than the runs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, sample, timestep, **conditions):
        answer = 0.1 * self.network(sample, timestep, **conditions).sample
        return (torch.cat([answer[:, :1] + sample, answer[:, 1:]], 1),)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["cross attention", "classes"])
def test_diffusers_own_conditional_networks_keep_their_rows(kind):
    """A UNet with cross attention and a transformer with classes, two different conditions in a batch, float32 weights."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if kind == "cross attention":
        network = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=8, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()  # fmt: skip
        extra = {"encoder_hidden_states": torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(2))}
    else:
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=2, num_layers=1, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
        ).eval()  # fmt: skip
        extra = {"class_labels": torch.tensor([1, 2, 7])}
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scheduler = diffusers.DDIMScheduler()

    def field(conditions):
        return adapters.from_diffusers(Correction(network), scheduler, extra=conditions)

    whole, rolled = field(extra), field({key: value.roll(1, 0) for key, value in extra.items()})
    single = [field({key: value[i : i + 1] for key, value in extra.items()}) for i in range(3)]
    for options in ({"solver": "dpmpp:order=2", "nfe": 4}, {"solver": "rk_adaptive:pair=bosh3,rtol=0.05,atol=0.05"}):
        end, other = (diffode.solve(one, x, **options).x for one in (whole, rolled))
        alone = torch.cat([diffode.solve(single[i], x[i : i + 1], **options).x for i in range(3)])
        # In float32 a step may be taken for one row alone and refused in the batch: within what the steps allow.
        size = float(end.abs().max())
        assert float((end - alone).abs().max()) < 1e-3 * size
        assert float((end - other).abs().max()) > 3e-2 * size
