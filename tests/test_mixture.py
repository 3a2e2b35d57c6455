"""Gaussian mixtures: kinds of covariance, independent densities, memory, and what wrong arguments say."""

import re
import resource

import numpy as np
import pytest
import torch

import diffode
from diffode import GaussianMixture, LowRank, targets
from diffode.errors import ArgumentError, FileFormatError, UnknownNameError
from diffode.targets import torch_evaluation as evaluation_module


def random_mixture(kind, count=5, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(count))
    means = rng.normal(size=(count, dim)) * 3
    if kind == "isotropic":
        return weights, means, rng.uniform(0.1, 1, count)
    if kind == "common":
        return weights, means, np.full(count, 0.3)
    if kind == "diagonal":
        return weights, means, rng.uniform(0.1, 1, (count, dim))
    if kind == "full":
        roots = rng.normal(size=(count, dim, dim))
        return weights, means, roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(dim)
    return weights, means, LowRank(rng.normal(size=(count, dim, 2)), rng.uniform(0.1, 0.5, count))


KINDS = ("isotropic", "common", "diagonal", "full", "low_rank")


def dense(covariances, dim):
    if isinstance(covariances, LowRank):
        factors = np.asarray(covariances.factors)
        return factors @ factors.transpose(0, 2, 1) + np.asarray(covariances.noise)[:, None, None] * np.eye(dim)
    covariances = np.asarray(covariances)
    if covariances.ndim == 1:
        return covariances[:, None, None] * np.eye(dim)
    return np.stack([np.diag(c) for c in covariances]) if covariances.ndim == 2 else covariances


@pytest.mark.parametrize("dim", [2, 4, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_density_is_that_of_an_independent_implementation(kind, dim):
    """torch.distributions with dense covariances: it factorises alpha^2 C + sigma^2 I anew at each level."""
    weights, means, covariances = random_mixture(kind, dim=dim)
    mixture = GaussianMixture(weights, means, covariances)
    x = torch.randn(50, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4
    matrix = torch.from_numpy(dense(covariances, dim))
    for alpha, sigma in ((1.0, 0.0), (0.7, 0.5), (0.1, 3.0)):
        law = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.from_numpy(weights)),
            torch.distributions.MultivariateNormal(
                alpha * torch.from_numpy(means), alpha**2 * matrix + sigma**2 * torch.eye(dim, dtype=torch.float64)
            ),
        )
        assert torch.allclose(mixture.noised_log_prob(x, alpha, sigma), law.log_prob(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_one_distribution_in_five_representations_has_one_field(kind):
    weights, means, _ = random_mixture("common", dim=6)
    same = {
        "isotropic": np.full(5, 0.3) * np.array([1, 1, 1, 1, 1 + 1e-15]),
        "common": np.full(5, 0.3),
        "diagonal": np.full((5, 6), 0.3),
        "full": np.stack([0.3 * np.eye(6)] * 5),
        "low_rank": LowRank(np.sqrt(0.1) * np.stack([np.eye(6)[:, :2]] * 5), np.full(5, 0.2)),
    }[kind]
    expected = GaussianMixture(weights, means, np.full((5, 6), 0.3) + (kind == "low_rank") * 0)
    if kind == "low_rank":
        expected = GaussianMixture(weights, means, np.tile([0.3, 0.3, 0.2, 0.2, 0.2, 0.2], (5, 1)))
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    for alpha, sigma in ((1.0, 0.1), (0.6, 0.8)):
        for view in ((1.0, 0.0), (0.0, 1.0), (-0.4, 0.9)):
            one = GaussianMixture(weights, means, same).noised_view(x, alpha, sigma, *view)
            assert torch.allclose(one, expected.noised_view(x, alpha, sigma, *view), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_components_far_apart_keep_their_digits(kind):
    """Separation 1e3, widths 1e-3, D = 5: continuity of density and score under a shift of the whole mixture."""
    weights, means, covariances = random_mixture(kind, dim=5)
    shrink = (
        LowRank(np.asarray(covariances.factors) * 1e-3, covariances.noise * 1e-6) if kind == "low_rank" else covariances * 1e-6
    )
    mixture = GaussianMixture(weights, means * 200, shrink)
    x = mixture.sample(40, generator=3)
    point = x.clone().requires_grad_(True)
    log_density = mixture.log_prob(point)
    (gradient,) = torch.autograd.grad(log_density.sum(), point)
    score = mixture.noised_view(x, 1.0, 0.0, 0.0, 1.0)
    # Rounding x itself, by 1e-13, moves a score of slope 1e7 by 1e-6.
    assert (gradient - score).abs().max() < 1e-7 * score.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_exact(kind):
    weights, means, covariances = random_mixture(kind)
    mixture = GaussianMixture(weights, means, covariances)
    mean = weights @ means
    centred = means - mean
    expected = np.einsum("k,kij->ij", weights, dense(covariances, 4) + centred[:, :, None] * centred[:, None])
    assert np.allclose(mixture.mean, mean)
    assert np.allclose(mixture.covariance, expected)
    assert mixture.scale == pytest.approx(np.sqrt(np.trace(expected) / 4))


def test_splitting_a_component_changes_nothing():
    weights, means, covariances = random_mixture("full")
    split = GaussianMixture(
        np.append(weights, weights[0]) * np.append([0.5], np.append(np.ones(4), 0.5)),
        np.concatenate([means, means[:1]]),
        np.concatenate([covariances, covariances[:1]]),
    )
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = GaussianMixture(weights, means, covariances)
    assert torch.allclose(split.noised_view(x, 0.8, 0.6, 0.3, 0.7), whole.noised_view(x, 0.8, 0.6, 0.3, 0.7), rtol=1e-12)


def test_shifting_a_target_shifts_its_denoiser():
    weights, means, covariances = random_mixture("diagonal", dim=3)
    offset = torch.tensor([100.0, -50.0, 7.0], dtype=torch.float64)
    here = GaussianMixture(weights, means, covariances)
    there = GaussianMixture(weights, torch.from_numpy(means) + offset, covariances)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = there.noised_view(x + 0.5 * offset, 0.5, 0.9, 1.0, 0.0)
    assert torch.allclose(moved, here.noised_view(x, 0.5, 0.9, 1.0, 0.0) + offset, rtol=1e-12)


def test_float32_keeps_its_digits_far_from_the_origin():
    """Means offset by 10, width 0.05: the naive product form errs by 6e-2 there."""
    means = np.random.default_rng(0).normal(size=(30, 20)) * 0.2 + 10
    mixture = GaussianMixture(np.full(30, 1 / 30), means, np.full(30, 0.05**2))
    x = mixture.sample(50, generator=1)
    single = mixture.noised_view(x.float(), 1.0, 0.01, 0.0, 1.0).double()
    exact = mixture.noised_view(x.float().double(), 1.0, 0.01, 0.0, 1.0)
    assert ((single - exact).norm(dim=1) / exact.norm(dim=1)).max() < 1e-4


@pytest.mark.parametrize("kind", ["common", "diagonal"])
def test_memory_stays_bounded(kind):
    """K = 10,000, D = 784, B = 256 in float32: a (B, K, D) tensor would be 8 GB, the parameters are 31 or 63 MB."""
    rng = np.random.default_rng(0)
    covariances = np.full(10000, 1.0) if kind == "common" else np.full((10000, 784), 1.0)
    mixture = GaussianMixture(np.full(10000, 1e-4), rng.normal(size=(10000, 784)), covariances)
    x = torch.randn(256, 784, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert torch.isfinite(mixture.noised_view(x, 1.0, 1.0, 0.0, 1.0)).all()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 700


def test_point_masses_have_noised_views_but_no_density():
    points = GaussianMixture.from_points([[0.0, 0.0], [1.0, 1.0]])
    assert points.is_discrete
    near = torch.tensor([[0.1, 0.0]], dtype=torch.float64)
    assert torch.allclose(points.noised_view(near, 1.0, 0.01, 1.0, 0.0), torch.zeros(1, 2, dtype=torch.float64), atol=1e-12)
    with pytest.raises(ArgumentError, match="no density"):
        points.log_prob(near)
    with pytest.raises(ArgumentError, match=r"x must be \(B, 2\)"):
        points.noised_log_prob(near[0], 1.0, 0.1)


GOOD = ([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [1.0, 1.0])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, [0.5, 0.6], "weights must sum to 1, got 1.1"),
        (0, [1.5, -0.5], "weights must be positive, got -0.5 at component 1"),
        (0, [0.5, float("nan")], "weights has non-finite"),
        (0, [1.0], "weights must have one entry per component"),
        (0, [0.25] * 4, "weights must have one entry per component"),
        (0, [[0.5, 0.5]], "weights must have shape"),
        (1, [0.0, 1.0], r"means must have shape \(K, D\)"),
        (1, [[0.0, 0.0], [1.0, float("inf")]], "means has non-finite"),
        (1, [["a", "b"], ["c", "d"]], "means must be an array of real numbers"),
        (1, np.zeros((0, 2)), "empty"),
        (2, [1.0, 0.0], r"covariances\[1\] is not positive definite"),
        (2, [1.0, -1.0], r"covariances\[1\] is not positive definite"),
        (2, [[[1.0, 1.0], [1.0, 1.0]]] * 2, "not positive definite"),
        (2, [[[1.0, 0.5], [0.2, 1.0]]] * 2, "not symmetric"),
        (2, np.ones((2, 3)), "covariances must be"),
        (2, LowRank(np.ones((2, 2, 3)), [1.0, 1.0]), "LowRank needs factors"),
        (2, LowRank(np.ones((2, 2, 1)), [1.0, 0.0]), "not positive definite"),
        (2, [1.0, 1j], "must be"),
    ],
)
def test_bad_parameters_are_named(position, value, message):
    arguments = list(GOOD)
    arguments[position] = value
    with pytest.raises(ArgumentError, match=message):
        GaussianMixture(*arguments)


def test_numpy_torch_and_lists_are_the_same():
    one = GaussianMixture(*GOOD)
    two = GaussianMixture(*(np.array(a, dtype=np.float32) for a in GOOD))
    three = GaussianMixture(*(torch.tensor(a) for a in GOOD))
    assert one.content() == two.content() == three.content()


def test_randomness_must_be_given():
    with pytest.raises(ArgumentError, match="generator must be a"):
        diffode.targets.get("ring8").sample(3, generator=None)


def test_samples_leave_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = targets.get("ring8").sample(5, generator=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, targets.get("ring8").sample(5, generator=torch.Generator().manual_seed(7)))


def test_every_entry_has_a_card_a_licence_and_tags():
    assert len(targets.names()) >= 23
    for name in targets.names():
        card = targets.card(name)
        assert card.text
        assert card.licence
        assert len(card.sha256) == 64
        assert targets.tags(targets.get(name))


def test_tags_follow_their_rules():
    expected = {
        "gauss1d": "gaussian",
        "stiff-pair": "stiff",
        "digits-empirical": "points",
        "tree": "many-modes",
        "line16": "exact-flow",
    }
    for name, tag in expected.items():
        assert tag in targets.tags(targets.get(name))
    assert "exact-flow" not in targets.tags(targets.get("ring8"))


def test_changed_parameters_are_noticed(monkeypatch, tmp_path):
    from diffode.targets import catalogue

    np.savez(tmp_path / "ring8.npz", weights=np.ones(1), means=np.zeros((1, 2)), covariances=np.ones(1))
    monkeypatch.setattr(catalogue, "DATA", tmp_path)
    with pytest.raises(FileFormatError, match="differ from those on its card"):
        catalogue.shipped("ring8")
    with pytest.raises(FileFormatError, match="can't be read"):
        catalogue.shipped("grid25")


def test_an_unknown_target_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'ring8'"):
        targets.get("ring9")


def test_weights_that_float32_takes_for_1_sum_to_1_exactly():
    target = GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float32) * (1 + 3e-7), torch.zeros(4, 1), [1.0] * 4)
    assert float(target.weights.sum()) == pytest.approx(1, abs=1e-15)


def test_point_masses_have_no_field_without_noise():
    field = diffode.exact_field("digits-empirical", "edm")
    with pytest.raises(ArgumentError, match="no field at sigma = 0"):
        field.denoised(torch.zeros(1, 64, dtype=torch.float64), 0.0)


def test_float32_stays_float32_where_that_is_harmless():
    """Many dimensions and one isotropic covariance, at a noise level far above the rounding of the squares; not below."""
    field = diffode.exact_field("digits-empirical", "edm")
    for sigma, single in ((10.0, True), (1e-3, False)):
        x = field.marginal(20, sigma, generator=0).float()
        rounded = field.denoised(x.double(), sigma).float()
        assert torch.equal(field.denoised(x, sigma), rounded) is not single
        torch.testing.assert_close(field.denoised(x, sigma), rounded, rtol=1e-4, atol=1e-4)


def test_low_rank_components_are_shared_only_if_all_of_them_is():
    draw = np.random.default_rng(0)
    factors = draw.normal(size=(2, 3, 1))
    assert not GaussianMixture([0.5, 0.5], np.zeros((2, 3)), LowRank(factors, [0.1, 0.1])).components.shared
    same = np.stack([factors[0], factors[0]])
    assert GaussianMixture([0.5, 0.5], np.zeros((2, 3)), LowRank(same, [0.1, 0.1])).components.shared
    assert not GaussianMixture([0.5, 0.5], np.zeros((2, 3)), LowRank(same, [0.1, 0.2])).components.shared


def test_tags_name_the_dimension():
    found = {name: diffode.targets.tags(diffode.targets.get(name)) for name in ("bimodal1d", "ring8", "line16", "digits-gmm10")}
    assert "1d" in found["bimodal1d"]
    assert "2d" in found["ring8"]
    assert "high-dimensional" not in found["line16"]
    assert "high-dimensional" in found["digits-gmm10"]


def test_the_number_of_samples_is_a_whole_one():
    ring = diffode.targets.get("ring8")
    assert ring.sample(0, generator=torch.Generator()).shape == (0, 2)
    for wrong in (2.5, "3", -1):
        with pytest.raises(ArgumentError, match="n must be"):
            ring.sample(wrong, generator=torch.Generator())


def test_weights_of_points_are_one_row():
    points = [[0.0], [1.0]]
    assert GaussianMixture.from_points(points, [0.25, 0.75]).mean == pytest.approx(0.75)
    with pytest.raises(ArgumentError, match="weights must"):
        GaussianMixture.from_points(points, [[0.25, 0.75]])


@pytest.mark.parametrize("variances", [[0.5, 0.5, 0.2], [0.2, 0.5, 0.5], [0.5, 0.2, 0.5]])
def test_one_variance_among_equal_ones_counts(variances):
    """Components of one common variance have a shorter formula, which must not be taken for those that share it in part."""
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    short = GaussianMixture([0.2, 0.3, 0.5], means, variances)
    long = GaussianMixture([0.2, 0.3, 0.5], means, [[v, v] for v in variances])
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for target, other in (
        (short, long),
        (GaussianMixture([0.2, 0.3, 0.5], means, [0.5] * 3), GaussianMixture([0.2, 0.3, 0.5], means, [[0.5, 0.5]] * 3)),
    ):
        one, two = (diffode.exact_field(t, "edm") for t in (target, other))
        torch.testing.assert_close(one.score(x, 0.7), two.score(x, 0.7), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.log_prob(x, 0.7), two.log_prob(x, 0.7), rtol=1e-12, atol=1e-12)


def test_weights_of_a_mixture_are_a_list():
    with pytest.raises(diffode.errors.ArgumentError, match="weights"):
        diffode.GaussianMixture(1.0, [[0.0]], [1.0])


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: targets.get(targets.get("ring8"), radius=2.0), "options radius go with a spec", id="options beside a target"
        ),
        pytest.param(
            lambda: targets.get("ring8").sample(-1, generator=torch.Generator()),
            "n must be a number of samples",
            id="a negative number of samples",
        ),
        pytest.param(
            lambda: GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.complex128), [1.0]),
            "means must be real",
            id="complex means",
        ),
    ],
)
def test_arguments_that_make_no_mixture_or_sample_are_refused(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("points", [False, True], ids=["components", "point masses"])
def test_views_by_attention_are_those_by_products(points, dtype, monkeypatch):
    """One variance for all, many dimensions: the mean of the means is attention. To the rounding of the exponents."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    mixture = GaussianMixture.from_points(means) if points else GaussianMixture([1 / 40] * 40, means, [0.1] * 40)
    x = torch.randn(70, 12, generator=generator, dtype=torch.float64).to(dtype)
    calls, original = [], torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(evaluation_module, "_ATTENTION_COMPONENTS", 40)
    asked = [(a, s, p, g) for a, s in ((1.0, 2.0), (0.6, 0.8)) for p, g in ((1.0, 0.0), (0.0, -s), (0.3, 0.7))]
    attended = [mixture.noised_view(x, *one) for one in asked]
    assert len(calls) == len(asked)
    monkeypatch.setattr(evaluation_module, "_ATTENTION_COMPONENTS", 41)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-4
    for one, found in zip(asked, attended, strict=True):
        torch.testing.assert_close(found, mixture.noised_view(x, *one), rtol=tolerance, atol=tolerance)
    assert len(calls) == len(asked)
    # Derivatives, a level for every row, and few components are left to products.
    monkeypatch.setattr(evaluation_module, "_ATTENTION_COMPONENTS", 40)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("attention"))
    assert mixture.noised_view(x.clone().requires_grad_(), 1.0, 2.0, 1.0, 0.0).requires_grad
    level = torch.full((70, 1), 0.8, dtype=torch.float64)
    mixture.noised_view(x, level, level, 1.0, 0.0)
    GaussianMixture([0.5, 0.5], means[:2], [0.1, 0.1]).noised_view(x, 1.0, 2.0, 1.0, 0.0)
