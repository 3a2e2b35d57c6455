"""The error estimate of an integrated reference lies above its error; flows that leave sigma = 0; units of the data."""

import math

import pytest
import torch

import diffode
from diffode import Field, paths
from diffode.errors import ArgumentError, NumericalError
from diffode.flows import flow_states, integrated
from diffode.flows.integrated import integrated_flow
from diffode.verify.field.likelihood import log_likelihood


# A tolerance between two others.
@pytest.mark.parametrize("tolerance", [1e-6, pytest.param(1e-9, marks=pytest.mark.slow), 1e-12])
@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("name", ["bimodal1d", "stiff-pair", "line16"])
def test_the_estimate_of_an_integration_bounds_its_distance_to_the_quantile_map(name, path, tolerance):
    field = diffode.exact_field(name, path)
    x = field.prior(12, generator=3)
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min)
    assert exact.method == "quantile"
    ends, errors = integrated_flow(field, x, field.path.t_max, field.path.t_min, tolerance, False, x.shape[1:])
    assert bool(((ends - exact.x).norm(dim=1) <= errors + exact.errors).all())


@pytest.mark.parametrize(("name", "path"), [("ring8", "vp"), ("grid25", "rectified_flow"), ("grid25", "vp"), ("gmm40", "edm")])
def test_the_estimate_bounds_the_error_of_rows_whose_two_runs_err_alike(name, path):
    """These hundred rows and single ones are among those whose two runs are up to 71 times nearer than the error."""
    field = diffode.exact_field(name, path)
    x = field.prior(100, generator=7)
    ends = field.path.t_max, field.path.t_min
    true = diffode.reference(field, x, *ends, 1e-13, use_cache=False).x
    for rows in (slice(None), *(slice(i, i + 1) for i in range(2))):
        found = diffode.reference(field, x[rows], *ends, 1e-6, use_cache=False)
        error = (found.x - true[rows]).norm(dim=1)
        assert bool((error <= found.errors).all())
        # Less than three digits are given away: the estimate of a typical row is not that of a bad one.
        assert len(error) == 1 or float((found.errors / error).median()) < 1000


@pytest.mark.parametrize(
    ("path", "tolerance", "starts", "row"),
    [
        ("edm", 1e-6, (60, 11), 0), ("edm", 1e-9, (40, 21), 28), ("edm", 1e-12, (150, 5), 40), ("vp", 1e-6, (40, 21), 33),
        ("vp", 1e-9, (150, 5), 28), ("vp", 1e-12, (150, 5), 143), ("rectified_flow", 1e-6, (150, 5), 28),
        ("rectified_flow", 1e-9, (150, 5), 92), ("rectified_flow", 1e-9, (150, 5), 47), ("rectified_flow", 1e-12, (40, 21), 28),
    ],
)  # fmt: skip
def test_the_estimate_bounds_the_error_of_a_row_that_is_integrated_alone(path, tolerance, starts, row):
    """Of 1,700 such rows these have the largest errors beside their estimates: both runs take the same long step."""
    field = diffode.exact_field("bimodal1d", path)
    x = field.prior(starts[0], generator=starts[1])[row : row + 1]
    exact = diffode.reference(field, x, field.path.t_max, field.path.t_min)
    ends, errors = integrated_flow(field, x, field.path.t_max, field.path.t_min, tolerance, False, x.shape[1:])
    assert bool(((ends - exact.x).norm(dim=1) <= errors).all())


@pytest.mark.parametrize("path", paths.names())
def test_flows_leave_zero_noise_as_they_come_to_it(path):
    """Up from sigma = 0 and back; and the end is that of a start a little above 0."""
    field = diffode.exact_field("ring8", path)
    on = field.path
    zero = on.time_from_rho(0.0)
    assert on.sigma(zero) == 0
    x = on.alpha(zero) * field.target.sample(3, generator=0)
    up = diffode.reference(field, x, zero, on.t_min, 1e-10, use_cache=False)
    assert float((diffode.reference(field, up.x, on.t_min, zero, 1e-10, use_cache=False).x - x).abs().max()) < 1e-9
    # The flow of the component next by is all there is at this level: the other modes are seven deviations off.
    nearest = field.target.means[torch.cdist(x, field.target.means).argmin(1)]
    variance = field.target.components.smallest_variance
    wide = math.sqrt(on.alpha(on.t_min) ** 2 * variance + on.sigma(on.t_min) ** 2) / math.sqrt(variance)
    expected = on.alpha(on.t_min) * nearest + wide * (x - nearest)
    assert float((up.x - expected).abs().max()) < 1e-6


def test_a_flow_that_can_not_leave_zero_noise_says_when_it_can():
    field = diffode.exact_field("digits-empirical", "edm")
    with pytest.raises(ArgumentError, match=r"point masses have no flow to noise: start later.*t_min=0.002"):
        diffode.reference(field, field.target.sample(2, generator=0), 0.0, 1.0)
    ring = diffode.exact_field("ring8", "edm")
    with pytest.raises(ArgumentError, match=r"finite log-SNR, got 0\.0"):
        flow_states(ring, torch.ones(2, 2, dtype=torch.float64), [0.0, 0.1, 1.0])


@pytest.mark.parametrize("unit", [1e-7, 1e5])
def test_references_have_the_units_of_the_data(unit):
    """Data and noise levels times a unit give ends times the unit, and so their errors."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.2], [0.3, 1.0]], dtype=torch.float64)
    widths = torch.tensor([[0.1, 0.1], [0.9, 0.4], [0.2, 0.3]], dtype=torch.float64)
    weights = [0.3, 0.3, 0.4]
    found = []
    for scale in (1.0, unit):
        target = diffode.GaussianMixture(weights, scale * means, scale**2 * widths)
        field = diffode.exact_field(target, paths.get("edm", sigma_min=0.002 * scale, sigma_max=80 * scale))
        own = Field.from_noise(field.noise, field.path, scale=scale * 1.0)
        x = scale * diffode.exact_field(diffode.GaussianMixture(weights, means, widths), "edm").prior(5, generator=0)
        for each in (field, own):
            end = diffode.reference(each, x, 80 * scale, 0.002 * scale, 1e-9, use_cache=False)
            found.append((end.x / scale, end.errors / scale))
    for (x, errors), (y, others) in ((found[0], found[2]), (found[1], found[3])):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-8)
        torch.testing.assert_close(errors, others, rtol=10, atol=1e-10)


@pytest.mark.parametrize(
    "asked",
    [
        lambda field, x: diffode.reference(field, x, 80.0, 0.002, 1e-11),
        lambda field, x: flow_states(field, x, (80.0, 1.0, 0.002), 1e-11),
        lambda field, x: diffode.flow(field, 1e-11)(x, 80.0, 0.002),
        lambda field, x: log_likelihood(field, x / 80, tolerance=1e-11),
    ],
    ids=["reference", "flow_states", "flow", "log_likelihood"],
)
def test_a_field_that_is_rounded_more_coarsely_than_the_tolerance_is_refused_with_what_helps(monkeypatch, asked):
    """Steps shrink until they are as small as rounding in the answers asks for, which takes a million of them here."""
    monkeypatch.setattr(integrated, "MOST_EVALUATIONS", 2000)
    field = Field.from_denoised(lambda x, t: (x / (1 + t**2) + 1e10) - 1e10, paths.get("edm"), scale=1.0)
    field.shape = (2,)
    x = 80 * torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"at a relative tolerance of 1e-11\..*larger tolerance, such as 1e-08"):
        asked(field, x)
    # What it proposes, as often as it says so, ends with an answer.
    monkeypatch.undo()
    wide = diffode.reference(field, x, 80.0, 0.002, 1e-5).x
    exact = x * math.sqrt((1 + 0.002**2) / (1 + 80.0**2))
    assert float((wide - exact).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["ring8", "spiral"])
def test_estimates_are_those_of_the_same_flow_on_another_path(name):
    """Between the same noise levels x/alpha follows the same flow on all paths, and how far it stretches is a fact of that."""
    edm, vp = diffode.exact_field(name, "edm"), diffode.exact_field(name, "vp")
    first, last = vp.path.t_max, vp.path.time_from_rho(edm.path.t_min)
    x = vp.path.rho(first) * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = diffode.reference(edm, x, vp.path.rho(first), edm.path.t_min, 1e-5, use_cache=False)
    other = diffode.reference(vp, vp.path.alpha(first) * x, first, last, 1e-5, use_cache=False)
    torch.testing.assert_close(other.errors / vp.path.alpha(last), one.errors, rtol=1e-3, atol=0.0)
