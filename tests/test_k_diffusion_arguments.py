"""The arguments that k-diffusion's functions take, held against its loops written out from the papers' formulas."""

import itertools
import math

import pytest
import torch
from torch import nn

import diffode
from diffode import adapters
from diffode.errors import ArgumentError, BudgetError

SIGMAS = [14.0, 6.0, 2.0, 0.7, 0.2, 0.0]
FIELD = diffode.exact_field("spiral", "edm:sigma_min=0.01")
MODEL = adapters.as_k_diffusion(FIELD)


def start(n=6, dtype=torch.float64):
    return 14 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def slope(x, sigma):
    return (x - FIELD.denoised(x, sigma)) / sigma


def ancestral(x, noise, eta, s_noise):
    """Ancestral Euler: sigma_up = min(t, eta t sqrt(s^2 - t^2)/s), a step to sqrt(t^2 - sigma_up^2), then noise."""
    for k, (s, t) in enumerate(itertools.pairwise(SIGMAS)):
        up = min(t, eta * t * math.sqrt(s**2 - t**2) / s)
        x = x + (math.sqrt(t**2 - up**2) - s) * slope(x, s)
        x = x + (s_noise * up * noise[k] if t else 0)
    return x


def churned(x, noise, churn, s_noise, least, most, correct, midpoint=False):
    """EDM's algorithm 2 with an Euler, a Heun, or a midpoint step in log sigma from the raised level."""
    k = 0
    for s, t in itertools.pairwise(SIGMAS):
        gamma = min(churn / (len(SIGMAS) - 1), math.sqrt(2) - 1) if least <= s <= most else 0
        high = s * (1 + gamma)
        if gamma:
            x, k = x + math.sqrt(high**2 - s**2) * s_noise * noise[k], k + 1
        first = slope(x, high)
        if t and midpoint:
            middle = math.sqrt(high * t)
            first = slope(x + (middle - high) * first, middle)
        elif t and correct:
            first = (first + slope(x + (t - high) * first, t)) / 2
        x = x + (t - high) * first
    return x


def test_noise_comes_from_the_noise_sampler_with_the_levels_of_its_step():
    asked, noise = [], [torch.randn(6, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(4)]

    def noise_sampler(sigma, sigma_next):
        asked.append((float(sigma), float(sigma_next)))
        return noise[len(asked) - 1]

    sample = adapters.as_k_diffusion_sampler("euler_a")
    found = sample(MODEL, start(), SIGMAS, noise_sampler=noise_sampler, eta=0.6, s_noise=1.1)
    torch.testing.assert_close(found, ancestral(start(), noise, 0.6, 1.1), rtol=1e-12, atol=1e-12)
    assert asked == list(itertools.pairwise(SIGMAS))[:-1]


def test_a_step_with_two_draws_asks_for_its_two_parts():
    asked = []

    def noise_sampler(sigma, sigma_next):
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros(6, 2, dtype=torch.float64)

    adapters.as_k_diffusion_sampler("dpmpp_sde")(MODEL, start(), [9.0, 1.0, 0.0], noise_sampler=noise_sampler)
    assert asked == [(9.0, pytest.approx(3.0)), (pytest.approx(3.0), 1.0)]
    asked.clear()
    adapters.as_k_diffusion_sampler("dpm_2_ancestral")(MODEL, start(), [9.0, 1.0, 0.0], noise_sampler=noise_sampler)
    assert asked == [(9.0, 1.0)]


@pytest.mark.parametrize("solver", ["dpmpp_sde", "seeds_3", "dpmpp_2m_sde", "euler_a"])
def test_noise_that_several_rows_add_is_drawn_once(solver):
    """The wrapped run is our own run on the same draws."""
    table = diffode.solvers.get(solver).tableau("edm:sigma_max=14", SIGMAS)
    source = torch.Generator().manual_seed(2)
    noise = torch.stack([torch.randn(6, 2, generator=source, dtype=torch.float64) for _ in range(table.draws)])
    found = adapters.as_k_diffusion_sampler(solver)(MODEL, start(), SIGMAS, generator=torch.Generator().manual_seed(2))
    ours = diffode.solve(FIELD, start(), solver=solver, grid=SIGMAS, noise=noise).x
    torch.testing.assert_close(found, ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("solver", "kind"), [("euler", {}), ("heun", {"correct": True}), ("dpm_2", {"midpoint": True})])
def test_churn_raises_the_level_before_a_step(solver, kind):
    noise = [torch.randn(6, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(5)]
    given = iter(noise)
    seen = []
    found = adapters.as_k_diffusion_sampler(solver)(
        MODEL, start(), SIGMAS, s_churn=1.5, s_noise=1.003, s_tmin=0.5, s_tmax=10.0, callback=seen.append,
        noise_sampler=lambda s, t: next(given),
    )  # fmt: skip
    wanted = churned(start(), noise, 1.5, 1.003, 0.5, 10.0, **{"correct": False, **kind})
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    raised = [(float(one["sigma"]), float(one["sigma_hat"])) for one in seen if one["sigma"] != one["sigma_hat"]]
    assert raised == [(s, pytest.approx(1.3 * s)) for s in (6.0, 2.0, 0.7)]


def test_churn_is_edms_own_sampler():
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    options = {"s_churn": 2.0, "s_noise": 1.01, "s_tmin": 0.5, "s_tmax": 20.0}
    mine = adapters.as_k_diffusion_sampler("heun")(MODEL, start(), SIGMAS, generator=generators[0], **options)
    edm = adapters.as_k_diffusion_sampler("edm_stochastic")(MODEL, start(), SIGMAS, generator=generators[1], **options)
    torch.testing.assert_close(mine, edm, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde"])
def test_a_list_of_generators_gives_every_row_its_own_noise(solver):
    sample = adapters.as_k_diffusion_sampler(solver)
    seeds = [5, 6, 7]
    batch = sample(MODEL, start(3), SIGMAS, generator=[torch.Generator().manual_seed(s) for s in seeds])
    for row, seed in enumerate(seeds):
        alone = sample(MODEL, start(3)[row : row + 1], SIGMAS, generator=[seed])
        torch.testing.assert_close(alone[0], batch[row], rtol=1e-9, atol=1e-9)
    again = sample(MODEL, start(3), SIGMAS, generator=7)
    assert torch.equal(again, sample(MODEL, start(3), SIGMAS, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_to_the_model_and_comes_back(dtype):
    seen = set()

    def model(x, sigma):
        seen.update({x.dtype, sigma.dtype})
        return MODEL(x.double(), sigma.double()).to(dtype)

    found = adapters.as_k_diffusion_sampler("dpmpp_2m")(model, start(dtype=dtype), SIGMAS)
    whole = adapters.as_k_diffusion_sampler("dpmpp_2m")(MODEL, start(dtype=dtype).double(), SIGMAS)
    assert found.dtype == dtype
    assert seen == {dtype}
    # The levels, the states and the answers are rounded to 11 or 8 binary digits for each of five evaluations.
    assert float((found.double() - whole).abs().max()) < 40 * torch.finfo(dtype).eps * float(whole.abs().max())


def test_a_network_of_half_precision_is_called_in_its_own():
    network = nn.Linear(2, 2).half()

    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, sigma):
            return self.inner(x) / (1 + sigma[:, None])

    found = adapters.as_k_diffusion_sampler("euler")(Denoiser().eval(), start(dtype=torch.float16), SIGMAS)
    assert found.dtype == torch.float16


@pytest.mark.parametrize(
    ("solver", "arguments", "message"),
    [
        ("euler", {"eta": 0.5}, "has no eta"),
        ("euler_ancestral", {"eta": -1.0}, "eta must be a number >= 0"),
        ("euler_ancestral", {"s_churn": 1.0}, "draws no noise of its own"),
        ("dpmpp:order=2", {"s_churn": 1.0}, "keeps nothing from step to step"),
        ("euler", {"s_churn": math.nan}, "s_churn must be a number >= 0"),
        ("euler_ancestral", {"s_noise": "1"}, "s_noise must be a number >= 0"),
        ("euler_ancestral", {"generator": [1, 2]}, "2 generators for 6 rows"),
        ("euler_ancestral", {"generator": 1, "noise_sampler": lambda s, t: None}, "not both"),
        ("euler_ancestral", {"noise_sampler": lambda s, t: torch.zeros(2)}, "a tensor of x's shape"),
        ("euler_ancestral", {"generator": "seed"}, "generator must be"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(solver, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        adapters.as_k_diffusion_sampler(solver)(MODEL, start(), SIGMAS, **arguments)


def test_solvers_that_lay_their_own_levels_spend_one_call_a_step_and_end_clean():
    asked, x, scale = [], start(), FIELD.scale

    def watched(x, sigma, **extra):
        asked.append(float(sigma[0]))
        return MODEL(x, sigma, **extra)

    sample = adapters.as_k_diffusion_sampler("universal", scale=scale)
    found = sample(watched, x, torch.tensor(SIGMAS, dtype=torch.float64))
    # The lowest level of the training is 0.04 scales.
    last = min(0.2, 0.04 * scale)
    inner = diffode.solvers.get("universal", scale=scale, dim=2).tableau("edm", [14.0, last], 4).run(FIELD, x)
    torch.testing.assert_close(found, FIELD.denoised(inner, last), rtol=1e-11, atol=1e-12)
    assert len(asked) == 5
    for levels, counts in (([14.0, 1.0, 0.0], " that end at 0: give 5, 6,"), ([14.0, 1.0, 0.1], ": give 4, 5,")):
        with pytest.raises(BudgetError, match=f"has no table for 3 noise levels{counts}"):
            sample(MODEL, x, levels)
    with pytest.raises(ArgumentError, match="scale must be a number > 0"):
        adapters.as_k_diffusion_sampler("universal", scale=0)
