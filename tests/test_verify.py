"""Orders as measured, and exact analysis on Gaussians against Monte Carlo and closed forms."""

import math

import pytest
import torch

import diffode
from diffode import solvers, verify
from diffode.errors import ArgumentError

#: Deterministic solvers with their documented orders (``convergence_order``).
ORDERS = [
    "ddim", "heun:chart=noise", "midpoint:chart=data", "rk4:chart=noise", "ab:order=3,chart=data",
    "dpm:order=2", "dpm:order=3", "dpm_m:order=2,lower_order_final=never", "dpmpp:order=2", "dpmpp:order=3",
    "dpmpp:order=3,form=consistent", "dpmpp_s:order=2", "dpmpp_s:order=3", "ipndm:order=3", "ipndm_v:order=3", "lms:order=3",
    "deis:order=2", "deis:order=3", "unipc:order=2,lower_order_final=never", "unipc:order=3,lower_order_final=never",
    "er_sde:order=2,form=consistent,scale=ode", "er_sde:order=3,form=consistent,scale=ode", "sa:tau=0,predictor=2,corrector=2",
]  # fmt: skip
SDES = ["ddpm", "euler_maruyama", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa",
        "seeds_1", "seeds_2", "er_sde_1", "er_sde_2"]  # fmt: skip
#: Weak orders on Gaussians as documented: measured once on finer grids than here and rounded.
WEAK = {
    "ddpm": 1, "euler_ancestral": 1, "euler_maruyama": 1, "er_sde_1": 1, "dpm2_ancestral": 2, "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2, "dpmpp_2m_sde": 2, "dpmpp_2m_sde:form=heun": 2, "dpmpp_3m_sde": 2, "dpmpp_3m_sde:form=consistent": 2,
    "sa": 2, "sa:predictor=2,corrector=1": 3, "er_sde:order=2,form=consistent": 2,
}  # fmt: skip


@pytest.mark.parametrize("spec", ORDERS)
def test_measured_orders_are_the_documented_ones(spec):
    """On one target and grid here; benchmarks/orders.py measures three targets on two grids."""
    found = verify.order(spec, grid="log_snr", steps=(128, 256, 512, 1024, 2048))
    assert abs(found.slope - solvers.get(spec).convergence_order) < 0.15, found


@pytest.mark.parametrize("spec", SDES)
def test_strong_order_on_one_brownian_path_is_one(spec):
    found = verify.strong_order(spec, steps=(32, 64, 128, 256), points=400)
    assert abs(found.slope - 1) < 0.2, found


@pytest.mark.parametrize(("spec", "expected"), WEAK.items())
def test_weak_order_without_sampling(spec, expected):
    assert abs(verify.weak_order(spec, steps=(256, 512, 1024)).slope - expected) < 0.05


def test_the_rule_drops_round_off_and_the_pre_asymptotic():
    steps = [2**k for k in range(3, 12)]
    errors = [max(n**-2.0, 1e-6) + (0.3 if n < 32 else 0) for n in steps]
    found = verify.fit_order(steps, errors, floor=1e-7)
    assert found.slope == pytest.approx(2, abs=1e-9)
    assert found.used == (32, 64, 128, 256, 512)
    assert found.low <= found.slope <= found.high
    with pytest.raises(ArgumentError, match="only 0 of 3 levels"):
        verify.fit_order([1, 2, 4], [1e-16, 1e-16, 1e-16], floor=1e-16)
    with pytest.raises(ArgumentError, match="steps must increase"):
        verify.fit_order([4, 2], [1.0, 1.0])


def test_order_and_noise_do_not_mix():
    with pytest.raises(ArgumentError, match="draws noise; use weak_order or strong_order"):
        verify.order("ddpm")
    with pytest.raises(ArgumentError, match="draws no noise; use order"):
        verify.strong_order("ddim")


@pytest.mark.parametrize("spec", ["ddim", "dpmpp_2m_sde", "sa"])
def test_gaussian_analysis_agrees_with_a_million_samples(spec):
    """Means within 4 standard errors sqrt(v/n), variances within 4 v sqrt(2/n)."""
    eigenvalues, mean, n = torch.tensor([0.3, 2.0], dtype=torch.float64), 0.5, 1_000_000
    found = verify.gaussian(spec, "vp", "log_snr", eigenvalues, mean=mean, steps=6)
    target = diffode.GaussianMixture([1.0], torch.full((1, 2), mean), eigenvalues[None])
    field = diffode.exact_field(target, "vp")
    start = field.path.prior((n, 2), generator=0)
    x = diffode.solve(field, start, solver=spec, grid="log_snr", steps=6, generator=1).x
    law = found.law
    assert bool(((x.mean(0) - law.mean).abs() < 4 * (law.variance / n).sqrt()).all())
    assert bool(((x.var(0) - law.variance).abs() < 4 * law.variance * math.sqrt(2 / n)).all())


def test_gaussian_analysis_splits_and_vanishes_with_the_step():
    coarse, fine = (verify.gaussian("heun:chart=noise", "vp", "log_snr", [1.0, 0.1], mean=1.0, steps=n) for n in (10, 1000))
    assert fine.split.discretisation < coarse.split.discretisation / 5_000
    assert coarse.split.prior == pytest.approx(fine.split.prior, rel=1e-12)
    assert coarse.w2 <= sum(coarse.split[:3]) + 1e-12
    assert coarse.nfe == 20
    one = verify.gaussian("ddim", "edm", [2.0, 1.0], [0.7])
    # Euler in rho from 2 to 1 on N(0, .7): x (1 - rho/(c + rho^2)), with the prior's variance 4.
    gain = 1 - 2 / (0.7 + 4)
    assert float(one.law.variance) == pytest.approx(4 * gain**2, rel=1e-13)
    assert one.w2 == pytest.approx(abs(2 * gain - math.sqrt(0.7)), rel=1e-12)
    assert one.covariance_error == pytest.approx(abs(4 * gain**2 - 0.7), rel=1e-12)


def test_gaussian_analysis_checks_its_eigenvalues():
    with pytest.raises(ArgumentError, match="eigenvalues must be a vector"):
        verify.gaussian("ddim", "vp", "log_snr", [[1.0]], steps=3)
    with pytest.raises(ArgumentError, match="eigenvalues must be finite and >= 0"):
        verify.gaussian("ddim", "vp", "log_snr", [-1.0], steps=3)
    with pytest.raises(ArgumentError, match="eigenvalues must be numbers"):
        verify.gaussian("ddim", "vp", "log_snr", "one", steps=3)
