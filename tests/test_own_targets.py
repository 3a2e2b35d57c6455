"""A target of one's own says what is known of its law, and gets what mixtures get."""

import math

import pytest
import torch

import diffode
from diffode import GaussianMixture, Target, metrics, targets, testing, verify
from diffode.errors import ArgumentError, LawError
from diffode.fields import exact_field
from diffode.flows import flow_states, reference
from diffode.studies.problem import size_of


class Silent(Target):
    """A mixture under another name, which answers no more than it has to."""

    def __init__(self, mixture):
        self.inner, self.dim = mixture, mixture.dim

    mean = property(lambda self: self.inner.mean)
    covariance = property(lambda self: self.inner.covariance)
    variance = property(lambda self: self.inner.variance)

    def sample(self, n, *, generator, dtype=torch.float64):
        return self.inner.sample(n, generator=generator, dtype=dtype)

    def noised_log_prob(self, x, alpha, sigma):
        return self.inner.noised_log_prob(x, alpha, sigma)

    def noised_view(self, x, alpha, sigma, denoised_weight, score_weight):
        return self.inner.noised_view(x, alpha, sigma, denoised_weight, score_weight)

    def noised_score_divergence(self, x, alpha, sigma):
        return self.inner.noised_score_divergence(x, alpha, sigma)


class Named(Silent):
    def as_mixture(self):
        return self.inner


class Scaled(Silent):
    """N(m, s^2 I), which knows its flow and says nothing of being a mixture."""

    def exact_flow(self, path):
        m, s2 = self.inner.mean, float(self.inner.variance[0])

        def flow(x, start, stop):
            a, b = (diffode.fields.columns(path.alpha(t), x) for t in (start, stop))
            before, after = (diffode.fields.columns(path.alpha(t) ** 2 * s2 + path.sigma(t) ** 2, x) for t in (start, stop))
            return b * m + (after / before) ** 0.5 * (x - a * m), torch.full((len(x),), 1e-14, dtype=torch.float64)

        return flow


GAUSSIAN = GaussianMixture([1.0], [[0.5, -1.0]], [0.3])


class OtherMixture(Silent):
    def as_mixture(self):
        return GaussianMixture(self.inner.weights, self.inner.means * 1.001, self.inner.components.variances())


class WrongWay(Scaled):
    """Its flow ends a ten-thousandth too far out."""

    def exact_flow(self, path):
        known = super().exact_flow(path)
        return lambda x, start, stop: (known(x, start, stop)[0] * 1.0001, known(x, start, stop)[1])


@pytest.mark.parametrize("make", [Silent, Named, Scaled])
def test_right_answers_keep_the_laws_of_targets(make):
    report = testing.check_target(make(GAUSSIAN), path="vp")
    named = {check.name for check in report.checks}
    assert report.passed
    assert ("mixture is the same law" in named, "exact flow is that of the field" in named) == (True, make is Scaled)
    assert report.check("mixture is the same law").passed is (True if make is Named else None)


@pytest.mark.parametrize(
    ("make", "law"), [(OtherMixture, "mixture is the same law"), (WrongWay, "exact flow is that of the field")]
)
def test_a_wrong_answer_breaks_a_law_by_name(make, law):
    with pytest.raises(LawError, match=f"{law}: residual") as caught:
        testing.check_target(make(GAUSSIAN), path="vp")
    assert [check.name for check in caught.value.report.failed] == [law]


@pytest.mark.parametrize("name", ["gauss2d", "bimodal1d", "ring8"])
def test_who_answers_as_a_mixture_has_its_flows_bit_for_bit(name):
    mixture = targets.get(name)
    fields = [exact_field(target, "vp") for target in (mixture, Named(mixture), Silent(mixture))]
    x = fields[0].prior(4, generator=0)
    path = fields[0].path
    own, named, silent = (reference(field, x, path.t_max, path.t_min, 1e-9, use_cache=False) for field in fields)
    assert torch.equal(own.x, named.x)
    assert own.method == named.method == {"gauss2d": "closed-form", "bimodal1d": "quantile", "ring8": "dop853"}[name]
    assert silent.method == "dop853"
    assert float((own.x - silent.x).abs().max()) < 1e-6
    assert torch.equal(*(diffode.flow(field)(x, path.t_max, 0.1) for field in fields[:2]))


def test_what_is_known_of_a_law_follows_from_its_answers():
    ring = targets.get("ring8")
    known = [(t.is_gaussian, t.modes, targets.tags(t)) for t in (Silent(ring), Named(ring), ring, Named(GAUSSIAN))]
    assert known[0] == (False, None, ["2d"])
    assert known[1] == known[2] == (False, 8, targets.tags("ring8"))
    assert known[3][:2] == (True, 1)
    assert "gaussian" in known[3][2]


def test_metrics_and_checks_of_mixtures_take_who_answers_as_one():
    for make, known in ((Named, True), (Silent, False)):
        field = exact_field(make(GAUSSIAN), "vp")
        x = field.prior(64, generator=0)
        run = diffode.solve(field, x, solver="ddim", nfe=20)
        outcome = metrics.Outcome(field, x, run, 0, 1e-9)
        checks = [check.name for check in verify.field.weak.weak(field)]
        assert ("characteristic function" in checks) == known
        if known:
            expected = exact_field(GAUSSIAN, "vp")
            both = [metrics.measure("gaussian_error", metrics.Outcome(f, x, run, 0, 1e-9)).value for f in (field, expected)]
            assert both[0] == both[1]
            assert metrics.measure("lost_modes", outcome).value == 0
        else:
            for metric, message in (("gaussian_error", "one Gaussian"), ("lost_modes", "need a Gaussian mixture")):
                with pytest.raises(ArgumentError, match=message):
                    metrics.measure(metric, outcome)


def test_a_flow_that_a_target_knows_takes_the_place_of_an_integration():
    field, expected = (exact_field(target, "vp") for target in (Scaled(GAUSSIAN), GAUSSIAN))
    x = field.prior(5, generator=0)
    found, true = (reference(f, x, 1.0, 0.0) for f in (field, expected))
    assert found.method == "closed-form"
    assert found.error_estimate == 1e-14
    torch.testing.assert_close(found.x, true.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(flow_states(f, x, [1.0, 0.3, 0.0]) for f in (field, expected)), rtol=1e-12, atol=1e-12)
    times = torch.linspace(0.2, 0.9, 5, dtype=torch.float64).requires_grad_(True)
    rates = [torch.autograd.grad(diffode.flow(f)(x, 1.0, times).sum(), times)[0] for f in (field, expected)]
    torch.testing.assert_close(*rates, rtol=1e-10, atol=1e-10)
    # At the end of the flow the rate is the field's velocity.
    ends = diffode.flow(field)(x, 1.0, times.detach())
    velocity = torch.stack([field.velocity(ends[i : i + 1], t).sum() for i, t in enumerate(times.tolist())])
    torch.testing.assert_close(rates[0], velocity, rtol=1e-9, atol=1e-9)


def test_the_cost_of_an_evaluation_counts_the_modes(monkeypatch):
    assert size_of("ring8") == 8 * 2
    made = {"silent": Silent(targets.get("ring8"))}
    monkeypatch.setattr(targets, "get", made.get)
    assert size_of("silent") == 2
    assert math.isclose(made["silent"].scale, made["silent"].inner.scale)
