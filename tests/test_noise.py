"""The noise of a run: fixed by its generator, the same for a row in any batch, and made when it is needed."""

import subprocess
import sys

import pytest
import torch

import diffode
from diffode.errors import ArgumentError
from diffode.randomness import RowNoise, normal

SDE_SOLVERS = ["euler_ancestral", "ddpm", "dpmpp_2m_sde", "dpmpp_sde", "seeds_3", "sa", "er_sde_3", "edm_stochastic"]
SHAPES = [(5, 2), (3, 1), (4, 3, 7, 7), (2, 600), (7, 40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rows_draws_do_not_change_when_the_batch_grows(shape):
    x = torch.zeros(shape, dtype=torch.float64)
    whole, part = RowNoise(x, 40, 3), RowNoise(x[:2], 40, 3)
    for k in range(40):
        assert torch.equal(whole(k)[:2], part(k))


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_do_not_depend_on_the_order_in_which_they_are_asked_for(shape):
    x = torch.zeros(shape, dtype=torch.float64)
    forward = [RowNoise(x, 37, 5)(k) for k in range(37)]
    backward = RowNoise(x, 37, 5)
    for k in [*reversed(range(37)), 0, 36, 1, 20, 0]:
        assert torch.equal(backward(k), forward[k])


def test_draws_are_standard_normal_and_independent():
    """Over n = 2e5 numbers a mean or a correlation errs by 1/sqrt(n) = 2.2e-3, a fourth moment by sqrt(96/n) = 2.2e-2."""
    noise = RowNoise(torch.zeros(200_000, 1, dtype=torch.float64), 20, 11)
    draws = torch.stack([noise(k)[:, 0] for k in range(20)])
    assert float(draws.mean(1).abs().max()) < 5 * 2.2e-3
    assert float((draws @ draws.T / 200_000 - torch.eye(20)).abs().max()) < 5 * 3.2e-3
    assert float(((draws**4).mean(1) - 3).abs().max()) < 5 * 2.2e-2
    # Rows next to each other, within a draw and from one block of draws to the next.
    assert abs(float((draws[:, 1:] * draws[:, :-1]).mean())) < 5 * 2.2e-3 / 20**0.5
    assert abs(float((draws[15, 1:] * draws[16, :-1]).mean())) < 5 * 2.2e-3


def test_other_seeds_give_other_draws():
    x = torch.zeros(2, 2, dtype=torch.float64)
    assert not torch.equal(RowNoise(x, 3, 0)(0), RowNoise(x, 3, 1)(0))


@pytest.mark.parametrize("solver", SDE_SOLVERS)
def test_a_list_of_generators_gives_each_row_the_noise_it_has_alone(solver):
    field = diffode.exact_field("ring8", "edm")
    seeds = [7, 3, 7]
    x = field.prior(1, generator=0).expand(3, 2)
    run = diffode.solve(field, x, solver=solver, nfe=24, generator=[torch.Generator().manual_seed(s) for s in seeds])
    for row, seed in enumerate(seeds):
        alone = diffode.solve(field, x[row : row + 1], solver=solver, nfe=24, generator=torch.Generator().manual_seed(seed))
        # A matrix product of one row and of three may round otherwise; over a run that grows to some 1e-13.
        torch.testing.assert_close(run.x[row : row + 1], alone.x, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(run.x[0], run.x[1], atol=1e-3)


@pytest.mark.parametrize("solver", SDE_SOLVERS)
def test_a_run_with_a_generator_is_the_run_with_its_draws_given(solver):
    field = diffode.exact_field("ring8", "vp")
    x = field.prior(3, generator=0)
    run = diffode.solve(field, x, solver=solver, grid="log_snr", steps=9, generator=4)
    draws = RowNoise(x, run.tableau.draws, 4)
    given = torch.stack([draws(k) for k in range(run.tableau.draws)])
    assert torch.equal(diffode.solve(field, x, solver=solver, grid="log_snr", steps=9, noise=given).x, run.x)


def test_a_list_of_generators_draws_starts_row_by_row():
    field = diffode.exact_field("ring8", "edm")
    for draw in (lambda n, g: field.path.prior((n, 2), generator=g), lambda n, g: field.prior(n, generator=g)):
        together = draw(3, [1, 2, 1])
        assert torch.equal(together[:1], draw(1, 1))
        assert torch.equal(together[2], together[0])
        assert not torch.equal(together[1], together[0])
    assert normal((0, 2), generator=[]).shape == (0, 2)
    assert field.prior(0, generator=[]).shape == (0, 2)


def test_a_list_of_another_length_than_the_batch_is_refused():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    with pytest.raises(ArgumentError, match="one entry for each of the 3 rows, got a list of 2"):
        diffode.solve(field, x, solver="ddpm", grid="karras", steps=4, generator=[0, 1])
    with pytest.raises(ArgumentError, match="one entry for each of the 3 rows"):
        field.prior(3, generator=[0])
    with pytest.raises(ArgumentError, match="one entry for each of the 3 rows"):
        field.target.sample(3, generator=[0])
    drawn = field.target.sample(3, generator=[5, 6, 5])
    assert torch.equal(drawn[1:2], field.target.sample(1, generator=6))
    assert torch.equal(drawn[0], drawn[2])


def test_draws_of_large_rows_are_all_different():
    """Draws are made in blocks, whose streams would overlap if a block jumped by fewer numbers than it makes."""
    noise = RowNoise(torch.zeros(2, 5, 300, dtype=torch.float64), 40, 0)
    drawn = torch.stack([noise(k) for k in range(40)])
    assert drawn.unique().numel() == drawn.numel()


MEMORY = """
import resource, torch, diffode
field = diffode.Field.from_denoised(lambda x, t: x / (1 + t**2), diffode.paths.get("edm"), probe=False)
x = field.path.prior({shape}, generator=0)
peaks = []
for steps in (20, 20, {steps}):
    diffode.solve(field, x, solver="euler_ancestral", grid="karras", steps=steps, generator=1)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[2] - peaks[1])
"""


# The pictures take longer than the points, of which one set of all draws would be seen as well.
@pytest.mark.parametrize(("shape", "steps"), [pytest.param((8, 3, 64, 64), 400, marks=pytest.mark.slow), ((100_000, 2), 80)])
def test_more_steps_need_no_more_memory(shape, steps):
    """All draws at once would be 300 MB more for the pictures, and 92 MB for the points."""
    program = MEMORY.format(shape=shape, steps=steps)
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 40
