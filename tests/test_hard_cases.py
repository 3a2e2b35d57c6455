"""Cases in which a check could pass what is wrong, or call wrong what is right."""

import itertools
import math

import pytest
import torch

import diffode
from diffode.errors import FieldError
from diffode.verify import check_sampler
from diffode.verify.field import likelihood
from diffode.verify.field.verification import verify_field
from diffode.verify.field.weak import sampled_check
from diffode.verify.report import Check
from diffode.verify.sampler.subject import find_sampler
from diffode.verify.theory import bounds


@pytest.fixture
def exact():
    return diffode.exact_field("bimodal1d", "vp")


def test_a_callable_without_gradients_gives_no_likelihood_and_no_certificate(exact):
    """A view derived from it has a gradient all the same."""
    cut = diffode.Field.from_noise(lambda x, t: exact.noise(x, t).detach(), exact.path)
    x = torch.zeros(2, 1, dtype=torch.float64)
    for probes in (None, 4):
        with pytest.raises(FieldError, match="no_grad"):
            likelihood.log_likelihood(cut, x, **({} if probes is None else {"probes": probes, "generator": 0}))
    with pytest.raises(FieldError, match="lipschitz="):
        bounds.one_sided_lipschitz(cut, x, 0.5)


def test_a_field_of_nan_fails_the_monte_carlo_weak_form(exact):
    nothing = diffode.Field.from_velocity(lambda x, t: x * math.nan, exact.path)
    check: Check = sampled_check(nothing, exact.target.sample(256, generator=0), 0.5, generator=0)
    assert not check.passed


@pytest.mark.parametrize("path", ["edm", "rectified_flow", "trigonometric", "sub_vp"])
def test_a_right_denoiser_is_not_called_wrong(path):
    exact = diffode.exact_field("ring8", path)
    field = diffode.Field.from_denoised(exact.denoised, exact.path, scale=exact.scale)
    report = verify_field(field, truth=exact)
    assert report.passed, [c for c in report.checks if not c.passed]


def test_a_network_in_float32_behind_a_cast_is_not_called_coupled():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
    )

    def velocity(x, t):
        column = torch.as_tensor(t, dtype=torch.float32).expand(len(x))[:, None]
        return net(torch.cat([x.float(), column], 1)).to(x.dtype)

    field = diffode.Field.from_velocity(velocity, diffode.paths.get("rectified_flow"))
    x = field.path.prior((7, 2), generator=0)
    with torch.no_grad():
        assert diffode.solve(field, x, solver="dpmpp:order=2", nfe=5).success
        assert diffode.solve(field, x, solver="rk_adaptive:rtol=1e-3,atol=1e-3").success


@pytest.mark.parametrize("path", ["rectified_flow", "trigonometric", "vp_cosine"])
def test_the_certificate_of_a_shifted_gaussian_is_an_equality_on_every_path(path):
    """The flow's bound is met by a score that is off by a constant shift of the mean, whatever the schedule."""
    right, shifted = (diffode.exact_field(diffode.GaussianMixture([1.0], [[m]], [[0.25]]), path) for m in (0.0, 0.3))
    on = right.path
    found = bounds.certificate(
        right, shifted, lipschitz=lambda t: -1 / (0.25 * on.alpha(t) ** 2 + on.sigma(t) ** 2), coupled=16
    )
    # Starts are the same, and the shift moves all ends alike.
    assert found.flow.integral == pytest.approx(found.coupled, rel=1e-4)


def make(change):
    def sampler(field, x, times):
        for s, t in itertools.pairwise(times):
            x = x + (t - s) * field.velocity(x, s)
        return change(x)

    return sampler


def test_a_leak_that_spares_the_first_row_is_found():
    leaking = make(lambda x: torch.cat([x[:1], x[1:] + 1e-5 * x[:-1]]))
    findings = {f.name: f for f in check_sampler(leaking, order=1).checks}
    assert findings["batches"].passed is False


def test_a_sampler_that_fails_on_its_second_size_of_batch_gets_a_verdict():
    kept = []

    def stale(field, x, times):
        kept.append(x)
        return make(lambda y: y + 0 * kept[0])(field, x, times)

    verdict = check_sampler(stale, order=1)
    assert not verdict.passed


def test_a_generator_is_passed_by_its_name():
    def sampler(field, x, times, eta=0.0, generator=None):
        assert isinstance(generator, torch.Generator)
        return make(lambda y: y + eta)(field, x, times)

    def keyword(field, x, times, *, generator):
        return sampler(field, x, times, generator=generator)

    for one in (sampler, keyword):
        findings = {f.name: f for f in check_sampler(one, order=1).checks}
        assert findings["runs"].passed is not False


# What surviving mutants showed no test to look at.


def test_a_row_that_uses_a_later_row_is_refused():
    from diffode.tableau import Row, Tableau

    rows = (Row(1.0), Row(0.5, {0: 1.0, 2: 1.0}), Row(0.1, {0: 1.0}))
    with pytest.raises(diffode.errors.ArgumentError, match="row 1 uses row 2"):
        Tableau("noise", rows, (0, 2))


@pytest.mark.parametrize("view", ["velocity", "noise", "denoised", "score"])
def test_every_kind_of_own_function_is_taken_as_it_is_named(view, exact):
    from diffode.fields.own import own_field

    made = getattr(diffode.Field, f"from_{view}")(getattr(exact, view), exact.path)
    assert made.scale == 1
    own = own_field(getattr(exact, view), view, exact.path)
    assert own.prediction == made.prediction == view
    x = torch.ones(2, 1, dtype=torch.float64)
    torch.testing.assert_close(own.denoised(x, 0.5), exact.denoised(x, 0.5), rtol=1e-10, atol=1e-10)


def test_adaptive_solvers_end_their_progress_at_all_of_it(exact):
    seen = []
    x = exact.prior(2, generator=0)
    diffode.solve(exact, x, solver="rk_adaptive:rtol=1e-3,atol=1e-3", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]


def test_edms_churn_is_at_most_the_root_of_two():
    """gamma <= sqrt(2) - 1, table 5 of arXiv 2206.00364: a level is raised to sqrt(2) times itself at most."""
    path = diffode.paths.get("edm")
    table = diffode.solvers.get("edm_stochastic:churn=1000,noise_to=500").tableau(path, [10.0, 1.0, 0.1])
    assert float(table.times[1]) == pytest.approx(10 * math.sqrt(2), rel=1e-12)


def test_each_wrong_option_of_the_cosine_path_is_refused_alone():
    for options in ({"s": 1.5}, {"t_max": 1.2}):
        with pytest.raises(diffode.errors.ArgumentError, match="vp_cosine"):
            diffode.paths.VPCosine(**options)


def test_weights_of_a_mixture_are_a_list():
    with pytest.raises(diffode.errors.ArgumentError, match="weights"):
        diffode.GaussianMixture(1.0, [[0.0]], [1.0])


def test_a_grid_that_does_not_exist_is_not_held_against_the_sampler():
    with pytest.raises(diffode.errors.UnknownNameError, match="nogrid"):
        find_sampler("ddim", grid="nogrid")
