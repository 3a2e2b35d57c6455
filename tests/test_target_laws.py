"""The laws of targets: the registry keeps them, and every plug-in that breaks one is caught with the law named."""

import pytest
import torch

from diffode import paths, targets, testing
from diffode.errors import LawError
from diffode.targets import GaussianMixture

#: Targets whose laws are those of others, digits-lowrank and digits-empirical, in many times as many dimensions.
LARGE = ("gauss1024-lowrank", "fashion-points", "fashion-mfa")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in targets.names()])
def test_a_registered_target_keeps_the_laws(name):
    assert testing.check_target(name).passed


@pytest.mark.parametrize("path", paths.names())
def test_the_laws_are_looked_at_on_every_path(path):
    assert testing.check_target("ring8", path=path, seed=1).passed


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", testing.KINDS)
def test_mixtures_of_all_kinds_and_units_keep_the_laws(kind, unit):
    one = testing.mixture(3, 3, 4, kind, 1)
    weights, means = one.weights, unit * one.means
    assert testing.check_target(GaussianMixture(weights, means, (unit**2 * one.components.variances()))).passed


class Mine(GaussianMixture):
    """Two modes; each class below spoils one member."""

    def __init__(self):
        super().__init__([0.3, 0.7], [[-2.0, 0.5], [1.0, -1.0]], [[0.25, 0.5], [0.3, 0.1]])


class WrongScore(Mine):
    def noised_view(self, x, alpha, sigma, denoised_weight, score_weight):
        return super().noised_view(x, alpha, sigma, denoised_weight, 1.001 * score_weight)


class WrongDenoised(Mine):
    def noised_view(self, x, alpha, sigma, denoised_weight, score_weight):
        return super().noised_view(x, alpha, sigma, 1.001 * denoised_weight, score_weight)


class NotNormalised(Mine):
    def noised_log_prob(self, x, alpha, sigma):
        return super().noised_log_prob(x, alpha, sigma) + 0.2


class OtherSamples(Mine):
    def sample(self, n, *, generator, dtype=torch.float64):
        return super().sample(n, generator=generator, dtype=dtype) * 1.2


class Shifted(Mine):
    def sample(self, n, *, generator, dtype=torch.float64):
        return super().sample(n, generator=generator, dtype=dtype) + 0.15


class OtherMean(Mine):
    @property
    def mean(self):
        return super().mean + 0.1


class OtherCovariance(Mine):
    @property
    def covariance(self):
        return super().covariance.diagonal().diag()


class OtherVariance(Mine):
    @property
    def variance(self):
        return super().variance * 1.001


class OtherNoise(Mine):
    def noised_log_prob(self, x, alpha, sigma):
        return super().noised_log_prob(x, alpha, 1.1 * sigma)


class OtherDivergence(Mine):
    def noised_score_divergence(self, x, alpha, sigma):
        return 1.01 * super().noised_score_divergence(x, alpha, sigma)


class OtherData(Mine):
    def log_prob(self, x):
        return super().log_prob(x) + 0.01


class Forgetful(Mine):
    def sample(self, n, *, generator, dtype=torch.float64):
        return super().sample(n, generator=torch.Generator().manual_seed(0), dtype=dtype)


class DrawsByItself(Mine):
    def sample(self, n, *, generator, dtype=torch.float64):
        return super().sample(n, generator=generator, dtype=dtype) + torch.rand(n, 2, dtype=dtype)


class InSingle(Mine):
    def sample(self, n, *, generator, dtype=torch.float64):
        return super().sample(n, generator=generator).float()


class ChangesContent(Mine):
    count_of_calls = 0

    def content(self):
        ChangesContent.count_of_calls += 1
        return str(ChangesContent.count_of_calls)


class ForgetsRows(Mine):
    """Answers every row with the first row's noise level."""

    def noised_view(self, x, alpha, sigma, denoised_weight, score_weight):
        alpha, sigma = (v if isinstance(v, float) else float(v.reshape(-1)[0]) for v in (alpha, sigma))
        return super().noised_view(x, alpha, sigma, denoised_weight, score_weight)


@pytest.mark.parametrize(
    ("cls", "law"),
    [
        (WrongScore, "score = grad log p: residual"), (WrongDenoised, "Tweedie and conversions: residual"),
        (NotNormalised, "mass is 1: residual"), (OtherSamples, "covariance of the samples: residual"),
        (Shifted, "mean of the samples: residual"), (OtherMean, "mean of the samples: residual"),
        (OtherCovariance, "covariance of the samples: residual"),
        (OtherVariance, "scale and variance belong to the covariance: residual 1.0e-03"),
        (OtherNoise, "Fokker-Planck equation: residual"), (OtherDivergence, "Fokker-Planck equation: residual"),
        (OtherData, "log_prob is the law at no noise: residual"), (Forgetful, "samples: seeds 0 and 1 give the same samples"),
        (DrawsByItself, "samples: seed 0 gives other samples the second time"),
        (InSingle, "samples: sample(7) has shape (7, 2) and torch.float32"), (ChangesContent, "content: 1 the first time, 2"),
        (ForgetsRows, "takes a time for every row: residual"),
    ],
)  # fmt: skip
def test_a_broken_target_is_caught_with_the_law_named(cls, law):
    with pytest.raises(LawError) as caught:
        testing.check_target(cls())
    assert law in str(caught.value)


def test_a_density_that_is_not_that_of_the_samples_is_caught_in_many_dimensions():
    class Other(GaussianMixture):
        def sample(self, n, *, generator, dtype=torch.float64):
            # The weights are exchanged: mean and covariance of this mixture are those of the other.
            return -super().sample(n, generator=generator, dtype=dtype)

    means = torch.zeros(2, 12, dtype=torch.float64)
    means[:, 0] = torch.tensor([3.0, -1.0])
    with pytest.raises(LawError, match="noised law is that of the samples: residual") as caught:
        testing.check_target(Other([0.25, 0.75], means, [0.1, 0.1]))
    assert {check.name for check in caught.value.report.failed} == {"noised law is that of the samples"}


def test_the_same_target_without_the_fault_passes():
    report = testing.check_target(Mine())
    assert report.passed
    assert {"score = grad log p", "mass is 1", "takes a time for every row"} <= {check.name for check in report.checks}
    assert report.subject.startswith("target Mine(")
