"""Where a run begins: at the time that it was told, and not without a word at another."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.stats
import torch

import diffode
from diffode.errors import ArgumentError, StartWarning
from diffode.solvers.starts import bound_of_least_mean_square, least_mean_square, two_times

PATHS = ["edm", "vp", "rectified_flow", "vp_cosine", "trigonometric", "ddpm"]


def run(field, x, **options):
    return diffode.solve(field, x, solver="dpmpp:order=2", nfe=8, **options)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("target", ["ring8", "digits-gmm10", "gauss1d", "stiff-pair"])
def test_a_right_start_passes_without_a_word_and_one_of_too_little_noise_does_not(path, target):
    field = diffode.exact_field(target, path)
    late = field.path.time_from_rho(0.05 * field.scale + 1.5 * field.path.rho(field.path.t_min))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(field, field.prior(40, generator=0))
        run(field, field.path.prior((40, field.dim), generator=0))
        run(field, field.marginal(40, late, generator=0), between=(late, field.path.t_min))
        diffode.solve(field, field.prior(1, generator=0), solver="rk_adaptive:rtol=1e-2,atol=1e-2")
    if field.path.sigma(field.path.t_max) > 3 * field.scale:
        with pytest.warns(StartWarning, match="less than the noise alone"):
            run(field, field.marginal(40, late, generator=0))


def test_a_start_in_the_units_of_another_path_is_told():
    field = diffode.exact_field("ring8", "vp")
    x = diffode.exact_field("ring8", "edm").prior(10, generator=0)
    with pytest.warns(StartWarning, match="far more than a state"):
        run(field, x)
    edm = diffode.exact_field("ring8", "edm")
    with pytest.warns(StartWarning, match="less than the noise alone"):
        run(edm, field.prior(10, generator=0))
    with pytest.warns(StartWarning):
        diffode.solve(edm, field.prior(10, generator=0), solver="rk_adaptive:rtol=1e-2,atol=1e-2")


def test_data_far_from_zero_are_no_wrong_start():
    far = diffode.GaussianMixture([0.5, 0.5], [[1e6, 0.0], [1e6, 1.0]], [0.1, 0.1])
    field = diffode.exact_field(far, "edm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(field, field.prior(20, generator=0))


@pytest.mark.parametrize("path", PATHS)
def test_between_lays_a_named_grid_from_the_time_of_the_start(path):
    """From a marginal at a later time the exact flow leads to the data, and so must a fine run from there."""
    field = diffode.exact_field("ring8", path)
    late = field.path.time_from_rho(0.7)
    x = field.marginal(16, late, generator=0)
    solution = diffode.solve(field, x, solver="dpmpp:order=2", nfe=200, between=(late, field.path.t_min))
    assert (float(solution.times[0]), float(solution.times[-1])) == (late, field.path.t_min)
    true = diffode.reference(field, x, late, field.path.t_min).x
    assert float((solution.x - true).norm(dim=1).mean()) < 2e-4 * field.scale
    euler = diffode.solve(field, x, solver="torchdiffeq:rk4", grid="time_uniform", steps=400, between=(late, field.path.t_min))
    assert float((euler.x - true).norm(dim=1).mean()) < 1e-2 * field.scale


def test_a_start_from_the_prior_is_called_too_small_once_in_1e12_times():
    """The level under which a sum of n squares of normals falls, by scipy's own quantiles."""
    for n in (1, 2, 64, 3000):
        assert least_mean_square(n) == pytest.approx(scipy.stats.chi2.ppf(1e-12, n) / n, rel=1e-6)


def test_wrong_ends_are_named():
    field = diffode.exact_field("ring8", "edm")
    x = field.marginal(2, 0.7, generator=0)
    for between in (
        (True, 0.1),
        (0.002, 0.7),
        (0.7, 0.7),
        (0.7,),
        "0.7",
        (0.7, -1.0),
        (float("nan"), 0.1),
        (0.7, None),
        (10**400, 0.1),
    ):
        with pytest.raises(ArgumentError):
            run(field, x, between=between)
    assert two_times((np.float32(0.5), torch.tensor(0.25))) == (0.5, 0.25)
    with pytest.raises(ArgumentError, match="the noisier first"):
        two_times((0.25, 0.5))
    with pytest.raises(ArgumentError, match="between goes with a named grid"):
        diffode.solve(field, x, solver="euler", grid=[0.7, 0.1], between=(0.7, 0.1))


def test_a_path_between_times_is_the_same_path_there():
    for spec in PATHS:
        path = diffode.paths.get(spec)
        late = path.time_from_rho(0.7)
        part = path.between(late, path.t_min)
        assert (part.t_max, part.t_min) == (late, path.t_min)
        assert (part.alpha(late), part.sigma(late)) == (path.alpha(late), path.sigma(late))
        assert path.t_max > late
        assert torch.equal(
            diffode.grids.get("log_snr", part, 4)[[0, -1]], torch.tensor([late, path.t_min], dtype=torch.float64)
        )


def test_the_bound_that_spares_scipy_lies_above_what_it_bounds():
    counts = [*range(1, 300), *(int(10 ** (k / 20)) for k in range(50, 200))]
    ratios = [bound_of_least_mean_square(n) / least_mean_square(n) for n in counts]
    assert min(ratios) > 1
    assert bound_of_least_mean_square(1000) < 0.8


def test_a_run_from_a_usual_start_does_not_wait_for_scipys_functions():
    code = """
import sys, diffode
field = diffode.exact_field("ring8", "edm")
diffode.solve(field, field.prior(1000, generator=0), solver="dpmpp:order=2", nfe=5)
print("scipy.special" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
