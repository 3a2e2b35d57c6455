"""Labels of components: conditional laws, the hash that they leave alone, the classes on cards, and blurred laws."""

import numpy as np
import pytest
import torch

import diffode
from diffode import targets
from diffode.errors import ArgumentError
from diffode.targets.labels import written_out

LABELLED = [name for name in targets.names() if targets.get(name).labels is not None]


def mixture(kind, labels=None):
    draws = torch.Generator().manual_seed(3)
    means = torch.randn(4, 3, generator=draws, dtype=torch.float64)
    weights = [0.1, 0.2, 0.3, 0.4]
    factor = torch.randn(4, 3, 3, generator=draws, dtype=torch.float64)
    covariances = {
        "isotropic": [0.1, 0.2, 0.1, 0.3],
        "diagonal": torch.rand(4, 3, generator=draws, dtype=torch.float64) + 0.1,
        "full": factor @ factor.mT + 0.1 * torch.eye(3).double(),
        "low-rank": diffode.LowRank(factor[:, :, :1], [0.1, 0.2, 0.3, 0.4]),
    }[kind]
    return diffode.GaussianMixture(weights, means, covariances, labels=labels)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full", "low-rank"])
def test_the_law_is_the_mean_of_its_conditional_laws(kind):
    """p(x) = sum over labels of P(label) p(x|label), at every noise level, and the denoiser is the posterior mean of theirs."""
    whole = mixture(kind, ["a", 7, "a", "b"])
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = {"a": 0.4, 7: 0.2, "b": 0.4}
    for alpha, sigma in ((1.0, 0.0), (0.8, 0.6), (1.0, 5.0)):
        joint = torch.stack([whole.given(label).noised_log_prob(x, alpha, sigma) + np.log(p) for label, p in share.items()])
        assert float((joint.logsumexp(0) - whole.noised_log_prob(x, alpha, sigma)).abs().max()) < 1e-12
        posterior = joint.softmax(0)
        denoised = sum(
            posterior[k, :, None] * whole.given(label).noised_view(x, alpha, sigma, 1.0, 0.0) for k, label in enumerate(share)
        )
        assert float((denoised - whole.noised_view(x, alpha, sigma, 1.0, 0.0)).abs().max()) < 1e-12


def test_a_conditional_mixture_is_the_one_made_of_its_components():
    whole = mixture("full", [0, 1, 1, 0])
    found = whole.given(0)
    other = diffode.GaussianMixture([0.2, 0.8], whole.means[[0, 3]], whole.covariances[[0, 3]])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float((found.log_prob(x) - other.log_prob(x)).abs().max()) < 1e-13
    assert torch.equal(found.weights, torch.tensor([0.2, 0.8], dtype=torch.float64))
    assert found.labels == (0, 0)


def test_labels_enter_neither_the_law_nor_its_hash():
    """A stored result of an unguided cell has the key that it would have without labels."""
    plain, labelled = mixture("isotropic"), mixture("isotropic", ["a", "b", "a", "c"])
    assert plain.content() == labelled.content()
    x = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(plain.log_prob(x), labelled.log_prob(x))
    contents = {labelled.given(label).content() for label in "abc"} | {labelled.content()}
    assert len(contents) == 4
    assert labelled.given("a").content() == mixture("isotropic", ["a", "b", "a", "c"]).given("a").content()


def test_the_hashes_of_shipped_targets_are_those_from_before_labels():
    known = {"ring8": "efee87e66de70bfe", "gmm40": "59a95799b140fb8b", "digits-gmm10": "8153fe62a0708337",
             "digits-empirical": "fdaf7b76a597ad5e", "images-mfa": "59797828dc001870", "moons": "cfe225e731afc6b6"}  # fmt: skip
    assert {name: targets.get(name).content() for name in known} == known


@pytest.mark.parametrize("name", LABELLED)
def test_every_class_of_a_card_conditions_its_target(name):
    target = targets.get(name)
    classes = list(dict.fromkeys(target.labels))
    assert len(classes) > 1
    laws = [target.given(label) for label in classes]
    assert sum(law.count for law in laws) == target.count
    weights = [float(target.weights[[k for k, label in enumerate(target.labels) if label == each]].sum()) for each in classes]
    mean = sum(weight * law.mean for weight, law in zip(weights, laws, strict=True))
    assert float((mean - target.mean).abs().max()) < 1e-12 * max(1.0, float(target.mean.abs().max()))


def test_classes_are_where_their_cards_say():
    ring = targets.get("ring8")
    assert [ring.labels.count(label) for label in ("three", "five")] == [3, 5]
    # Neighbours on the circle: every gap of the three is that of an eighth of a turn.
    gaps = (ring.given("three").means.diff(dim=0)).norm(dim=1)
    assert float((gaps - 10 * np.sin(np.pi / 8)).abs().max()) < 1e-12
    quadrants = {"northeast": (1, 1), "northwest": (-1, 1), "southwest": (-1, -1), "southeast": (1, -1)}
    for label, signs in quadrants.items():
        assert bool((targets.get("gmm40").given(label).means * torch.tensor(signs) >= 0).all())
    points = targets.get("digits-empirical")
    # The component that a digit of the data set is likeliest to be from shows that digit in most cases.
    fitted = targets.get("digits-gmm10")
    which = fitted.responsibilities(points.means, 1.0, 0.05).argmax(1).tolist()
    hits = sum(fitted.labels[k] == label for k, label in zip(which, points.labels, strict=True))
    assert hits / points.count == pytest.approx(0.823, abs=5e-4)


def test_a_blurred_law_is_the_law_of_a_noised_point():
    for kind in ("isotropic", "diagonal", "full", "low-rank"):
        law = mixture(kind, [0, 0, 1, 1])
        blurred = law.blurred(0.7)
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        assert float((blurred.log_prob(x) - law.noised_log_prob(x, 1.0, 0.7)).abs().max()) < 1e-12
        assert blurred.labels == law.labels
        assert blurred.content() != law.content()
    cloud = diffode.GaussianMixture.from_points([[0.0], [1.0]], labels=["a", "b"]).blurred(0.5)
    assert not cloud.is_discrete
    assert float(cloud.given("b").variance) == 0.25


def test_wrong_labels_are_named():
    for labels, message in (
        (["a", "b"], "one entry per component"),
        (["a", "b", "c", "d", "e"], r"one entry per component \(4\), got 5"),
        ("abcd", "must be a list"),
        ([1, 2, 3, True], "whole numbers or names"),
        ([1.5, 2, 3, 4], "whole numbers or names"),
        (["", "b", "c", "d"], "whole numbers or names"),
        ([3, "3", 4, 5], "a number and its text"),
    ):
        with pytest.raises(ArgumentError, match=message):
            mixture("isotropic", labels)
    with pytest.raises(ArgumentError, match="did you mean 'three'"):
        targets.get("ring8").given("thre")
    with pytest.raises(ArgumentError, match="has no labels"):
        targets.get("gauss2d").given("a")
    with pytest.raises(ArgumentError, match="width must be a positive number"):
        targets.get("ring8").blurred(0)
    for classes, message in (({"a": "0-1", "b": "1-2"}, "two labels"), ({"a": "0"}, "each once")):
        with pytest.raises(ArgumentError, match=message):
            written_out(classes, 3)


def test_numbers_and_their_texts_name_the_same_label():
    digits = targets.get("digits-gmm10")
    assert digits.given("3").content() == digits.given(3).content()
    as_array = diffode.GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], labels=np.array([4, 5]))
    assert as_array.labels == (4, 5)
