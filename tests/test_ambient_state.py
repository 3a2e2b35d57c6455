"""Exact fields, paths and metrics give the same numbers whatever torch's settings are."""

import contextlib

import pytest
import torch

import diffode
from diffode import GaussianMixture, Statistics


@contextlib.contextmanager
def precision(name):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "autocast": lambda: torch.autocast("cpu"),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "medium products": lambda: precision("medium"),
    "high products": lambda: precision("high"),
    "default float16": lambda: default_dtype(torch.float16),
    "default float64": lambda: default_dtype(torch.float64),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "another device": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["digits-empirical", "ring8", "digits-lowrank", "patches-gmm", "gauss64-powerlaw"])
def test_exact_fields_do_not_feel_torchs_settings(name, setting):
    """Against float64, to the promised 2e-4: under autocast it was six scales of the data."""
    field = diffode.exact_field(name, "edm")
    x = field.marginal(6, 2.0, generator=0, dtype=torch.float32)
    rows = torch.full((6,), 2.0, dtype=torch.float64)
    views = ("velocity", "noise", "denoised", "score", "divergence", "log_prob")
    expected = [getattr(field, view)(x.double(), 2.0) for view in views]
    with SETTINGS[setting]():
        for t in (2.0, rows):
            for view, exact in zip(views, expected, strict=True):
                found = getattr(field, view)(x, t)
                assert found.dtype == torch.float32
                assert float((found.double() - exact).abs().max()) < 2e-4 * float(exact.abs().max()), view
            doubled = field.denoised(x.double(), t)
            assert torch.equal(doubled, field.denoised(x.double(), t))
            torch.testing.assert_close(doubled, expected[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_made_under_a_setting_is_as_good_as_any(setting):
    """Targets and paths made, and first used, under a setting can be differentiated through outside of it."""
    means = [[0.0, 1.0, 0.5, 2.0], [1.0, 0.0, -1.0, 0.3]]
    with SETTINGS[setting]():
        made = diffode.exact_field(GaussianMixture([0.5, 0.5], means, [0.3, 0.3]), diffode.paths.Tabulated([0.99, 0.5, 0.1]))
        points = diffode.exact_field(GaussianMixture.from_points(means), "vp")
        curve = diffode.paths.FunctionPath(lambda t: 1 - t, lambda t: t)
        assert curve.alpha_derivative(0.5) == -1
        assert curve.time_from_log_snr(curve.log_snr(0.5)) == pytest.approx(0.5, rel=1e-14)
        for field, t in ((made, 2.0), (points, 0.5)):
            field.denoised(torch.zeros(1, 4, dtype=torch.float64, device="cpu"), t)
            assert field.target.covariance.shape == (4, 4)
            assert field.prior(2, generator=0).shape == (2, 4)
    fresh = diffode.exact_field(GaussianMixture([0.5, 0.5], means, [0.3, 0.3]), diffode.paths.Tabulated([0.99, 0.5, 0.1]))
    for t in (2.0, torch.tensor([2.0, 1.5], dtype=torch.float64, requires_grad=True)):
        slopes = []
        for field in (made, fresh):
            x = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
            field.denoised(x, t).square().sum().backward()
            slopes.append(x.grad)
        assert torch.equal(*slopes)
    assert points.target.line is not None


@pytest.mark.parametrize("solver", ["ddim:jump=auto", "universal:chart=gaussian"])
def test_what_a_run_in_inference_mode_keeps_serves_gradients_later(solver):
    """The statistics of the field's own data, and those that were made in that mode of anything else."""
    field = diffode.exact_field("moons", "edm")
    x = field.prior(64, generator=0)
    with torch.inference_mode():
        first = diffode.solve(field, x, solver=solver, nfe=4).x
        known = [
            Statistics.of_target("moons"),
            Statistics.of_samples(diffode.reference(field, x, 80.0, 0.002).x),
            Statistics.of_covariance(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2.0]])),
            Statistics.of_target("moons").reduced("diagonal"),
            diffode.fields.estimate_statistics(field),
        ]
    assert not any(part.is_inference() for one in known for part in (one.mean, one.variances))
    for statistics in (None, *known):
        start = x.clone().requires_grad_(True)
        own = field if statistics is None else diffode.Field.from_denoised(field.denoised, path="edm", scale=statistics)
        again = diffode.solve(own, start, solver=solver, nfe=4).x
        again.sum().backward()
        assert bool(start.grad.isfinite().all())
        assert float(start.grad.abs().max()) > 0
        if statistics is None:
            torch.testing.assert_close(again.detach(), first, rtol=1e-9, atol=1e-9)


def test_mixed_settings_of_precision_are_no_error():
    """torch refuses to say what its older setting is once a newer one was used; float64 is safe then."""
    field = diffode.exact_field("digits-empirical", "edm")
    x = field.marginal(4, 2.0, generator=0, dtype=torch.float32)
    exact = field.noise(x.double(), 2.0)
    products = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(products, "fp32_precision"):
        pytest.skip("this torch has the older setting only")
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        torch.testing.assert_close(field.noise(x, 2.0).double(), exact, rtol=2e-4, atol=2e-4)
    finally:
        products.fp32_precision = before
