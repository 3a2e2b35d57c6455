"""Rules for the size of Langevin steps: one's own, and the ratio of norms, each row for itself."""

import itertools
import math

import pytest
import torch

import diffode
from diffode import solvers
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.randomness import RowNoise

LEVELS = [80.0, 20.0, 4.0, 0.8, 0.1]


def rule(rho):
    return 0.2 if 0.5 < rho < 10 else 0.0


def test_a_rule_of_ones_own_is_the_ratio_at_each_level():
    field = diffode.exact_field("ring8", "edm")
    x = start = field.prior(5, generator=0)
    table = solvers.get("pc", snr=rule).tableau("edm", LEVELS)
    noise = torch.randn(table.draws, 5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draw = iter(noise)
    for s, t in itertools.pairwise(LEVELS):
        if rule(s):
            step = 2 * (rule(s) * s) ** 2
            x = x + step * field.score(x, s) + math.sqrt(2 * step) * next(draw)
        x = x + field.score(x, s) * (s**2 - t**2) + math.sqrt(t**2 * (s**2 - t**2) / s**2) * next(draw)
    for snr in (rule, f"{__file__}:rule"):
        solver = solvers.get("pc", snr=snr)
        run = diffode.solve(field, start, solver=solver, grid=LEVELS, noise=noise)
        torch.testing.assert_close(run.x, x, rtol=1e-11, atol=1e-11)
        assert (run.nfe, len(solver.content())) == (6, 16)
    constant = solvers.get("pc", snr=lambda rho: 0.16).tableau("vp", "karras", 5)
    assert constant.rows == solvers.get("pc").tableau("vp", "karras", 5).rows


@pytest.mark.parametrize("path", ["edm", "vp"])
def test_the_rule_of_norms_is_the_published_loop_for_each_row(path):
    """score_sde's LangevinCorrector, with the norms of a row for their means, and the ancestral predictor."""
    field = diffode.exact_field("digits-gmm10", path)
    start, on = field.prior(4, generator=0), field.path
    times = diffode.grids.get("karras", on, 4).tolist()
    noise = RowNoise(start, 4 * 3, 7)
    x, number = start, 0
    for s, t in itertools.pairwise(times):
        for _ in range(2):
            score, xi = field.score(x, s), noise(number)
            step = 2 * (0.1 * xi.norm(dim=1) / score.norm(dim=1))[:, None] ** 2
            x, number = x + step * score + (2 * step).sqrt() * xi, number + 1
        high, low = on.rho(s) ** 2, on.rho(t) ** 2
        z = x / on.alpha(s) + field.score(x, s) * on.sigma(s) / on.rho(s) * (high - low)
        x, number = on.alpha(t) * (z + math.sqrt(low * (high - low) / high) * noise(number)), number + 1
    run = diffode.solve(field, start, solver="pc_langevin:snr=0.1,corrections=2", grid=times, generator=7)
    torch.testing.assert_close(run.x, x, rtol=1e-10, atol=1e-10)
    assert run.nfe == 12
    each = diffode.solve(field, start[2:], solver="pc_langevin:snr=0.1,corrections=2", grid=times, generator=[5, 9])
    alone = diffode.solve(field, start[3:], solver="pc_langevin:snr=0.1,corrections=2", grid=times, generator=[9])
    torch.testing.assert_close(each.x[1:], alone.x, rtol=1e-12, atol=1e-12)


def test_on_pure_noise_of_many_dimensions_the_rule_of_norms_is_that_of_sigma():
    """The field of a point: |xi|/|s| = sigma |xi|/|xi'|, whose ratio is 1 up to the root of 1/D."""
    field = Field.from_noise(lambda x, t: x / t, "edm", probe=False)
    x = 80 * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (
        diffode.solve(field, x, solver=spec, grid=[80.0, 10.0], generator=3).x for spec in ("pc:snr=0.2", "pc_langevin:snr=0.2")
    )
    assert float((one - other).norm() / one.norm()) < 0.02
    assert float(one.square().mean().sqrt()) == pytest.approx(10, rel=0.1)


def test_without_corrections_or_noise_the_predictor_is_left():
    field = diffode.exact_field("ring8", "edm")
    x = field.prior(3, generator=0)
    found = diffode.solve(field, x, solver="pc_langevin:snr=0,eta=0", grid="karras", steps=6)
    torch.testing.assert_close(found.x, diffode.solve(field, x, solver="ddim", grid="karras", steps=6).x)
    assert found.nfe == 6
    assert not solvers.get("pc_langevin:snr=0,eta=0").stochastic
    last = diffode.solve(field, x, solver="pc_langevin", grid="karras:to_zero=true", steps=6, generator=0)
    assert bool(last.x.isfinite().all())


def test_wrong_rules_are_named():
    for snr, words in (
        (lambda rho: 1.5, "snr must be >= 0 and below 1, it is 1.5 at rho=80"),
        (lambda rho: rho / 0, "snr fails at rho=80: ZeroDivisionError"),
        (f"{__file__}:LEVELS", "is a list, not a function of rho"),
    ):
        with pytest.raises(ArgumentError, match=words):
            solvers.get("pc", snr=snr).tableau("edm", LEVELS)
    for name, snr in (("pc", "often"), ("pc_langevin", rule), ("pc_langevin", 1.0), ("pc", float("nan"))):
        with pytest.raises(ArgumentError, match="snr must be a number >= 0 and below 1"):
            solvers.get(name, snr=snr)
    field = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match="draws noise: pass generator="):
        diffode.solve(field, field.prior(2, generator=0), solver="pc_langevin", grid=LEVELS)
