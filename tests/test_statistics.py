"""Statistics: bases and what they filter, exact ones, those of samples and of a field alone, their files and refusals."""

import math
from dataclasses import replace

import pytest
import torch

import diffode
from diffode import Field, Statistics
from diffode.errors import ArgumentError, FieldError, FileFormatError
from diffode.fields import estimate_statistics
from diffode.statistics import KINDS
from diffode.tensor_files import write_tensors

#: Arguments of each kind for rows of 8 x 8.
ARGUMENTS = {"low_rank": {"rank": 5}, "cosine": {"shape": (1, 8, 8)}, "fourier": {"shape": (8, 8)}}
TARGET = "digits-gmm10"


def of_target(kind, target=TARGET):
    return Statistics.of_target(target, kind, **ARGUMENTS.get(kind, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_the_covariance_are_multiplications_in_its_basis(kind):
    known = of_target(kind)
    x = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    filtered = known.basis.back(known.basis.into(x) * known.basis.spread(known.variances))
    assert torch.allclose(known.basis.back(known.basis.into(x)), x, rtol=0, atol=1e-13)
    assert torch.allclose(filtered, x @ known.covariance, rtol=0, atol=1e-12)
    assert math.isclose(float(known.basis.multiplicity.sum()), 64)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_keeps_the_variance_along_its_directions(kind):
    """So all keep the trace; along a direction q of theirs the variance is q^T C q."""
    exact, known = diffode.targets.get(TARGET), of_target(kind)
    assert math.isclose(known.scale, exact.scale, rel_tol=1e-12)
    assert torch.equal(known.mean, exact.mean)
    if known.basis.count == 64:
        # The rows of the basis' matrix are its directions.
        q = known.basis.back(torch.eye(64, dtype=torch.float64))
        assert torch.allclose(((q @ exact.covariance) * q).sum(1), known.variances, rtol=0, atol=1e-13)


def test_full_statistics_are_the_covariance_and_a_low_rank_is_nearer_with_more():
    exact = diffode.targets.get(TARGET).covariance
    assert float((of_target("full").covariance - exact).abs().max()) < 1e-13
    gaps = [float((Statistics.of_target(TARGET, "low_rank", rank=rank).covariance - exact).norm()) for rank in (2, 8, 32, 63)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-12


def test_covariances_that_shifts_around_the_edges_do_not_change_are_diagonal_in_fourier_waves():
    """C[i, j] = f(i - j mod 6), symmetric, is circulant; its eigenvalues are those of any solver."""
    f = [3.0, 1.0, 0.5, 0.2, 0.5, 1.0]
    circulant = torch.tensor([[f[(i - j) % 6] for j in range(6)] for i in range(6)], dtype=torch.float64)
    known = Statistics.of_covariance(torch.zeros(6), circulant, "fourier", shape=(6,))
    assert torch.allclose(known.covariance, circulant, rtol=0, atol=1e-14)
    both = torch.kron(circulant, circulant)
    known = Statistics.of_covariance(torch.zeros(36), both, "fourier", shape=(1, 6, 6))
    assert torch.allclose(known.covariance, both, rtol=0, atol=1e-13)


def test_the_scale_of_data_of_many_dimensions_needs_no_covariance_matrix():
    """Of 200,000 coordinates the matrix would take 320 GB."""
    known = Statistics.of_covariance(torch.zeros(200_000), torch.linspace(0.1, 3.0, 200_000, dtype=torch.float64))
    assert float(known.reduced("scale").variances) == pytest.approx(1.55)
    spectrum = Statistics.of_covariance(torch.zeros(100), torch.ones(100, dtype=torch.float64).diag())
    low = spectrum.reduced("low_rank", rank=3)
    assert float(low.reduced("scale").variances) == pytest.approx(float(low.covariance.diagonal().mean()))


@pytest.mark.parametrize("kind", KINDS)
def test_those_of_samples_come_near_the_exact_ones_as_one_over_root_n(kind):
    target = diffode.targets.get(TARGET)
    exact = of_target(kind)
    samples = target.sample(20_000, generator=0).reshape(-1, 8, 8)
    found = Statistics.of_samples(samples, kind, **({"rank": 5} if kind == "low_rank" else {}))
    # Standard errors are about sqrt(2/n) = 1e-2 of the covariance, and the lowest of the kept directions are not sharp.
    assert float((found.covariance - exact.covariance).norm() / exact.covariance.norm()) < 0.03
    assert float((found.mean - exact.mean).norm()) < 0.05


def test_variances_of_two_samples_are_over_n_minus_one():
    known = Statistics.of_samples(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), "diagonal")
    assert known.variances.tolist() == pytest.approx([2.0, 0.0])
    assert known.mean.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("path", ["edm", "vp", "rectified_flow"])
@pytest.mark.parametrize("target", ["ring8", "moons", "rare", "digits-gmm10", "patches-gmm"])
def test_a_field_alone_tells_its_statistics(target, path):
    """At thirty deviations the response is off by about kurtosis/30^2; patches-gmm has a kurtosis of some ten."""
    field = diffode.exact_field(target, path)
    plain = Field.from_velocity(field.velocity, path)
    found = estimate_statistics(plain, shape=(field.dim,))
    exact = Statistics.of_target(target)
    assert float((found.covariance - exact.covariance).norm() / exact.covariance.norm()) < 1e-2
    assert float((found.mean - exact.mean).norm()) < 2e-3 * exact.scale
    assert not found.gaussian
    assert f"{found.rows} rows" in found.source


def test_the_error_of_an_estimate_falls_with_the_square_of_the_level():
    """Symmetric data: what is left is the kurtosis, times L/rho^2."""
    field = diffode.exact_field("bimodal1d", "edm")
    exact = Statistics.of_target("bimodal1d").variances
    gaps = [float((estimate_statistics(field, level=level).variances - exact).abs()) for level in (20.0, 40.0, 80.0)]
    ratios = [gaps[0] / gaps[1], gaps[1] / gaps[2]]
    assert all(3.5 < ratio < 4.5 for ratio in ratios), ratios


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_estimated_and_what_it_cost_is_said(kind):
    field = diffode.exact_field(TARGET, "vp")
    field.shape = (8, 8)
    asked = []
    whole = Field.from_denoised(lambda x, t: (asked.append(len(x)), field.denoised(x, t))[1], "vp")
    whole.shape = (8, 8)
    found = estimate_statistics(whole, kind, **({"rank": 5} if kind == "low_rank" else {}))
    exact = of_target(kind)
    assert math.isclose(found.scale, exact.scale, rel_tol=0.01)
    # Two steps of a block iteration leave the fifth and sixth direction mixed.
    within = 0.12 if kind == "low_rank" else 2e-3
    assert float((found.covariance - exact.covariance).norm() / exact.covariance.norm()) < within
    assert found.rows == sum(asked)
    assert whole.nfe == len(asked)
    assert f"{len(asked)} calls on {sum(asked)} rows" in found.source


def test_a_gaussian_is_known_as_one():
    for target in ("gauss1d", "gauss2d", "gauss64-powerlaw"):
        assert Statistics.of_target(target).gaussian
        found = estimate_statistics(diffode.exact_field(target, "vp"))
        assert found.gaussian
        assert torch.allclose(found.covariance, Statistics.of_target(target).covariance, rtol=0, atol=1e-12)
    assert not Statistics.of_target("ring8").gaussian
    # The scale of a Gaussian of two variances does not say all of it.
    assert not Statistics.of_target("gauss2d", "scale").gaussian


def test_a_field_that_is_no_gaussians_at_high_noise_says_so():
    """Two points 1000 apart are told apart at rho = 80."""
    with pytest.raises(FieldError, match=r"noise level 80 the field is not that of one Gaussian: .* higher level="):
        estimate_statistics(diffode.exact_field("stiff-pair", "edm"))
    with pytest.raises(FieldError, match=r"with 1\.5 to 1\.5 times it"):
        estimate_statistics(Field.from_denoised(lambda x, t: 1.5 * x, "edm"), shape=(2,))
    with pytest.raises(FieldError, match="non-finite answers at the noise level 80"):
        estimate_statistics(Field.from_denoised(lambda x, t: x / 0, "edm"), shape=(2,))
    with pytest.raises(FieldError, match="no path"):
        estimate_statistics(Field.from_velocity(lambda x, t: x), shape=(2,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_same_statistics(kind, tmp_path):
    known = of_target(kind)
    known.save(tmp_path / "known.safetensors")
    found = Statistics.load(tmp_path / "known.safetensors")
    assert found.content == known.content
    assert repr(found) == repr(known)
    assert torch.equal(found.covariance, known.covariance)
    assert (found.gaussian, found.rows, found.source) == (known.gaussian, known.rows, known.source)


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    diffode.solvers.get("ddim").tableau("edm", "karras", 2).save(file)
    with pytest.raises(FileFormatError, match="schema"):
        Statistics.load(file)
    good, told = of_target("full").parts()
    for change, tensors in (
        ({"kind": "fool"}, {}),
        ({"gaussian": 1}, {}),
        ({"rows": -1}, {}),
        *(({"shape": shape}, {}) for shape in ([0], [], [1] * 8 + [good["mean"].numel()], [2.0], "2")),
        ({}, {"matrix": 2 * good["matrix"]}),
        ({}, {"variances": -good["variances"]}),
        ({}, {"mean": good["mean"].float()}),
        ({"kind": "low_rank"}, {}),
        ({}, {"more": good["mean"].clone()}),
    ):
        write_tensors(file, good | tensors, {"schema": "diffode-statistics-1", **told, **change})
        with pytest.raises(FileFormatError):
            Statistics.load(file)


def test_two_statistics_have_one_content_only_if_they_are_the_same():
    contents = {of_target(kind).content for kind in KINDS} | {of_target("full", "patches-gmm").content}
    assert len(contents) == len(KINDS) + 1
    assert of_target("full").content == of_target("full").content


def test_statistics_of_the_same_numbers_are_equal():
    one, two = (Statistics.of_target("digits-gmm10") for _ in range(2))
    assert one == two
    assert {one, two} == {one}
    assert one != one.scaled(2.0)
    wide, high = (one.reduced("cosine", shape=shape) for shape in ((4, 16), (16, 4)))
    assert wide != replace(wide, basis=high.basis)
    assert one != 3


@pytest.mark.parametrize("kind", ["scale", "diagonal", "full"])
def test_statistics_are_alike_but_for_rounding_only(kind):
    known = Statistics.of_target("digits-gmm10").reduced(kind)
    # Another machine may turn the directions of a covariance round, and adds in another order.
    turned = replace(known.basis, matrix=-known.basis.matrix) if kind == "full" else known.basis
    again = replace(known, mean=known.mean * (1 + 1e-13), variances=known.variances * (1 - 1e-13), basis=turned)
    assert known.content != again.content
    assert known.alike(again)
    assert not known.alike(replace(known, mean=known.mean + 1e-6 * known.largest))
    assert not known.alike(replace(known, variances=known.variances + 1e-6 * known.largest**2))
    assert not known.alike(Statistics.of_target("ring8").reduced(kind))
    assert not known.alike(None)
    assert not known.alike(Statistics.of_target("digits-gmm10").reduced("cosine", shape=(8, 8)))
    if kind == "full":
        other = replace(known.basis, matrix=known.basis.matrix.flip(1))
        assert not known.alike(replace(known, basis=other)), "other directions have these variances"
    if kind == "scale":
        alike_in_all = replace(Statistics.of_target("digits-gmm10").reduced("diagonal"), variances=known.variances.expand(64))
        assert not known.alike(alike_in_all)


def test_statistics_stand_wherever_a_scale_does():
    known = Statistics.of_target("ring8")
    exact = diffode.exact_field("ring8", "vp")
    field = Field.from_velocity(exact.velocity, "vp", scale=known)
    assert field.scale == known.scale == exact.scale
    assert field.statistics is known
    assert Field.from_velocity(exact.velocity, "vp", scale=2.0).statistics is None
    assert torch.equal(exact.statistics.covariance, known.covariance)
    field.statistics = None
    assert field.statistics is None
    with pytest.raises(ArgumentError, match="statistics must be"):
        exact.statistics = 3.0


EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Statistics.of_covariance([0, 0], [[1, 2], [0, 1]]), "symmetric"),
        (lambda: Statistics.of_covariance([0, 0], [[1, 2], [2, 1]]), r"eigenvalue -1 < 0"),
        (lambda: Statistics.of_covariance([0, 0], [1, -1]), "variances must be >= 0"),
        (lambda: Statistics.of_covariance([0, 0], [1, 1, 1]), r"matrix \(2, 2\), 2 variances or one number"),
        (lambda: Statistics.of_covariance([0, math.nan], EYE), "mean must be finite"),
        (lambda: Statistics.of_covariance([0, 0], math.inf * EYE), "covariance must be finite"),
        (lambda: Statistics.of_covariance("mean", EYE), "mean must be real numbers"),
        (lambda: Statistics.of_covariance([[0]], EYE), r"mean must be \(D,\)"),
        (lambda: Statistics.of_covariance([0, 0], EYE, "half"), "kind must be one of scale, diagonal"),
        (lambda: Statistics.of_covariance([0, 0], EYE, "low_rank"), "needs it; got rank=None"),
        (lambda: Statistics.of_covariance([0, 0], EYE, "low_rank", rank=2), r"rank must be an integer >= 1 and < 2"),
        (lambda: Statistics.of_covariance([0, 0], EYE, "full", rank=1), "rank goes with kind='low_rank'"),
        (lambda: Statistics.of_covariance([0, 0], EYE, "cosine"), "needs shape="),
        (lambda: Statistics.of_covariance([0, 0], EYE, "fourier", shape=(3,)), r"with 2 numbers; got \(3,\)"),
        (lambda: Statistics.of_samples(torch.zeros(1, 2)), "at least two rows"),
        (lambda: Statistics.of_samples(torch.tensor([[0.0], [math.nan]])), "samples must be finite"),
        (lambda: estimate_statistics(Field.from_velocity(lambda x, t: x, "edm")), "give shape="),
        (lambda: estimate_statistics(diffode.exact_field("ring8", "edm"), level=81.0), "<= 80"),
        (lambda: estimate_statistics(diffode.exact_field("ring8", "edm"), "low_rank", rank=2), "< 2"),
        (lambda: Field.from_velocity(lambda x, t: x, scale=0.0), "scale must be a positive number"),
    ],
)  # fmt: skip
def test_what_is_no_mean_or_no_covariance_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
