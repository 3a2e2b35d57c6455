"""Which law guidance samples: counterexamples, the predictor-corrector, tilted laws by quadrature, metrics."""

import itertools
import math

import pytest
import torch

import diffode
from diffode import metrics
from diffode.errors import ArgumentError
from diffode.metrics import Outcome, tilted_law
from diffode.tableau import Tableau
from diffode.targets import TiltedLaw
from diffode.verify import guided_law

GM = diffode.GaussianMixture
WIDE = "edm:sigma_min=1e-4,sigma_max=1e4"


def gaussians(path=WIDE, means=(0.0, 0.0), variances=(1.0, 2.0)):
    return [diffode.exact_field(GM([1.0], [[m]], [c]), path) for m, c in zip(means, variances, strict=True)]


def table(solver, path, steps, grid="log_snr") -> Tableau:
    return diffode.solvers.table_solver(solver).tableau(path, grid, steps)


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.0, 7.5])
def test_ddim_and_ddpm_with_guidance_sample_different_laws_and_neither_the_tilted_one(weight):
    """arXiv 2408.09000, section 3, for N(0, 1) given the label and N(0, 2) without it.

    DDIM ends at the variance 2^(1-w), DDPM at (2 - 2^(2-2w))/(2w - 1), and the tilted law has 2/(w + 1).
    """
    one, other = gaussians()
    field = diffode.guide(one, other, weight)
    laws = {"flow": 2 ** (1 - weight), "sde": (2 - 2 ** (2 - 2 * weight)) / (2 * weight - 1), "tilted": 2 / (weight + 1)}
    for solver, kind, order in (("edm_heun", "flow", 2), ("ddim", "flow", 1), ("ddpm", "sde", 1), ("dpmpp_sde", "sde", 1)):
        errors = []
        for steps in (400, 800):
            law = guided_law(table(solver, one.path, steps), field)
            errors.append(abs(float(law.sampled.variance) / laws[kind] - 1))
        assert errors[1] < 0.06 / (order if order == 1 else 20)
        assert errors[1] < 0.62 * errors[0]
    assert float(law.tilted[1]) == pytest.approx(laws["tilted"], rel=1e-7)
    assert float(law.flow[1]) == pytest.approx(laws["flow"], rel=1e-6)
    if weight > 1:
        assert laws["flow"] < laws["sde"] < laws["tilted"]


def test_a_guided_sde_is_a_predictor_corrector_in_the_limit_of_small_steps():
    """arXiv 2408.09000, section 4: DDPM with weight w is DDIM on the conditional law, each step followed by a Langevin step
    for the law tilted with 2w - 1 at that noise level. In q = sigma^2 a step of the first goes by -q' s/2 and one of the
    second by q' s/2 + noise of variance q'; both are scalar recurrences for the variance of a Gaussian.
    """
    weight = 2.5
    one, other = gaussians()
    field = diffode.guide(one, other, weight)
    tilt = 2 * weight - 1
    gaps = []
    for steps in (500, 1000, 2000):
        times = diffode.grids.get("log_snr", one.path, steps).tolist()
        variance = times[0] ** 2
        for begin, end in itertools.pairwise(times):
            before, after = begin**2, end**2
            # DDIM from the conditional law N(0, 1 + q) to N(0, 1 + q'), exactly.
            variance *= (1 + after) / (1 + before)
            slope = tilt / (1 + after) + (1 - tilt) / (2 + after)
            variance = variance * (1 - (before - after) * slope / 2) ** 2 + (before - after)
        found = float(guided_law(table("ddpm", one.path, steps), field).sampled.variance)
        gaps.append(abs(found - variance))
    assert gaps[2] < 8e-3
    assert all(0.4 < later / earlier < 0.6 for earlier, later in itertools.pairwise(gaps))


def test_the_exact_law_of_a_guided_run_is_that_of_its_samples():
    """Propagation through the table against samples of the same table, in a basis that is not the axes."""
    draws = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 2, generator=draws, dtype=torch.float64))[0]
    fields = []
    for mean, spread in (([1.0, -1.0], [0.5, 2.0]), ([0.0, 0.5], [1.5, 3.0])):
        whole = basis @ torch.diag(torch.tensor(spread, dtype=torch.float64)) @ basis.mT
        fields.append(diffode.exact_field(GM([1.0], [mean], ((whole + whole.mT) / 2)[None]), "vp"))
    one, other = fields
    for weight, options in ((3.0, {}), (3.0, {"interval": (0.2, 5.0)}), ({5.0: 1.0, 0.5: 4.0}, {})):
        field = diffode.guide(one, other, weight, **options)
        for solver in ("dpmpp:order=2", "ddpm"):
            made = table(solver, one.path, 12)
            law = guided_law(made, field, start="conditional")
            count = 20_000
            x = one.marginal(count, made.ends[0], generator=1)
            ends = law.shared.into(diffode.solvers.run_tableau(made, field, x, generator=2).x)
            error = (ends.mean(0) - law.sampled.mean) / (law.sampled.variance / count).sqrt()
            assert float(error.abs().max()) < 4
            assert float((ends.var(0) / law.sampled.variance - 1).abs().max()) < 4 * math.sqrt(2 / count)
            if solver != "ddpm":
                # A deterministic run is affine: two points of it say what propagation must say, to rounding.
                start = law.shared.back(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
                origin, moved = law.shared.into(diffode.solvers.run_tableau(made, field, start).x)
                assert float((moved - origin - law.sampled.gain).abs().max()) < 1e-12


def test_the_law_of_fine_steps_is_that_of_the_flow_and_of_cfg_plus_plus_there_is_none():
    one, other = gaussians("vp", (0.5, -1.0))
    field = diffode.guide(one, other, 4.0)
    coarse, fine = (guided_law(table("edm_heun", one.path, steps), field, start="unconditional") for steps in (100, 400))
    assert fine.distance(fine.flow) < 1e-4
    assert coarse.distance(coarse.flow) / fine.distance(fine.flow) == pytest.approx(16, rel=0.1)
    assert fine.distance(fine.tilted) > 0.1
    variances = []
    for steps in (20, 80, 320):
        made = table("ddim", one.path, steps)
        times = made.output_times.tolist()
        law = guided_law(made, diffode.guide(one, other, 0.5, kind="cfg++", grid=times))
        assert (law.flow, law.tilted) == (None, None)
        assert math.isnan(law.distance(law.flow))
        variances.append(float(law.sampled.variance))
    # With twice as fine steps and lambda held the guidance doubles: the variance goes to 0 and has no limit of its own.
    assert variances[0] > 3 * variances[1] > 9 * variances[2]


@pytest.mark.parametrize("weight", [-0.2, 0.0, 0.5, 1.0, 3.0, 15.0])
def test_tilted_gaussians_have_their_moments_in_closed_form(weight):
    conditional, unconditional = GM([1.0], [[1.0, -0.5]], [[0.5, 1.0]]), GM([1.0], [[0.0, 1.0]], [[1.5, 1.2]])
    law = TiltedLaw(conditional, unconditional, weight)
    one, other = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 1.0], [1.5, 1.2]))
    precision = weight / one + (1 - weight) / other
    means = [law.mean for law in (conditional, unconditional)]
    mean = (weight * means[0] / one + (1 - weight) * means[1] / other) / precision
    assert float((law.mean - mean).abs().max()) < 1e-9
    assert float((law.covariance - torch.diag(1 / precision)).abs().max()) < 1e-9
    top = law.log_prob(mean[None])
    assert float(top) == pytest.approx(float(0.5 * precision.log().sum()) - math.log(2 * math.pi), abs=1e-9)
    draws = law.sample(40_000, generator=0)
    assert float(((draws.mean(0) - mean) * (40_000 * precision).sqrt()).abs().max()) < 4
    assert float((draws.var(0) * precision - 1).abs().max()) < 0.04


def test_the_tilted_law_of_a_mixture_is_normalised_and_weighs_its_modes():
    target = GM([0.3, 0.3, 0.4], [[-2.0], [0.0], [1.5]], [0.2, 0.2, 0.2], labels=["a", "a", "b"])
    for weight in (2.0, 7.5):
        law = TiltedLaw(target.given("a"), target, weight)
        x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
        density = law.log_prob(x).exp()
        step = float(x[1] - x[0])
        assert float(density.sum()) * step == pytest.approx(1.0, abs=1e-9)
        assert float((density * x[:, 0]).sum()) * step == pytest.approx(float(law.mean), abs=1e-9)
        shares = target.given("a").responsibilities(x)
        assert float((density @ shares * step - law.mode_weights).abs().max()) < 1e-9
        # The mode that the other label overlaps loses weight.
        assert law.mode_weights[0] > 0.5 > law.mode_weights[1]
    with pytest.raises(ArgumentError, match="can't be normalised"):
        TiltedLaw(GM([1.0], [[0.0]], [2.0]), GM([1.0], [[0.0]], [1.0]), 3.0)
    with pytest.raises(ArgumentError, match="one or two dimensions"):
        TiltedLaw(GM([1.0], [[0.0] * 3], [2.0]), GM([1.0], [[0.0] * 3], [1.0]), 3.0)
    with pytest.raises(ArgumentError, match="no density to tilt"):
        TiltedLaw(GM.from_points([[0.0]]), GM([1.0], [[0.0]], [1.0]), 3.0)


def outcome(field, x, steps=200, solver="unipc:order=3"):
    return Outcome(field, x, diffode.solve(field, x, solver=solver, grid="log_snr", steps=steps))


def test_guided_samples_are_held_against_the_flow_the_conditional_law_and_the_tilted_one():
    """On two Gaussians all three distances are known: sqrt of variances, since means agree."""
    one, other = gaussians("edm")
    weight = 3.0
    run = outcome(diffode.guide(one, other, weight), other.prior(4000, generator=0))
    found = {name: metrics.measure(name, run) for name in ("endpoint", "moments", "tilted:part=moments", "shrinkage")}
    assert found["endpoint"].value < 1e-3
    end = float(run.end.std())
    assert end == pytest.approx(0.5, rel=0.05)
    assert found["moments"].value == pytest.approx(math.hypot(1 - end, float(run.end.mean())), rel=1e-6)
    assert found["tilted:part=moments"].value == pytest.approx(
        math.hypot(math.sqrt(0.5) - end, float(run.end.mean())), rel=1e-4
    )
    assert found["shrinkage"].value == pytest.approx(1 - end**2 / (1 + 0.002**2), rel=1e-9)
    assert metrics.measure("tilted", run).above_floor
    assert metrics.measure("shrinkage", run).above_floor


def test_metrics_of_exact_draws_of_their_law_lie_at_their_floors():
    ring = diffode.targets.get("ring8")
    field = diffode.guide(diffode.exact_field(ring.given("three"), "edm"), diffode.exact_field(ring, "edm"), 7.5)
    run = outcome(field, field.prior(400, generator=0), steps=20, solver="ddim")
    law = tilted_law(field, 0.002)
    for part in ("sliced_w2", "moments", "mode_weights"):
        measured = metrics.measure(f"tilted:part={part}", run)
        assert measured.above_floor
        fair = Outcome(field, run.start, run.solution)
        fair.__dict__["end"] = law.sample(400, generator=5)
        assert metrics.measure(f"tilted:part={part}", fair).value < 3 * measured.floor + 1e-3
    # Guided points crowd into the middle one of three modes, and inside it.
    assert metrics.measure("mode_weights", run).value > 0.3
    assert metrics.measure("shrinkage:within=true", run).value > 0.2
    spread = Outcome(field, run.start, run.solution)
    spread.__dict__["end"] = ring.given("three").sample(400, generator=5)
    assert abs(metrics.measure("shrinkage:within=true", spread).value) < 0.1


def test_wrong_arguments_are_named():
    one, other = gaussians("edm")
    run = outcome(diffode.guide(one, other, 2.0), one.prior(4, generator=0), 4)
    ring = diffode.exact_field("ring8", "edm")
    plain = outcome(ring, ring.prior(4, generator=0), 4)
    for spec, given, message in (
        ("tilted:part=mean", run, "part must be"),
        ("tilted", plain, "needs a field that diffode.guide makes"),
        ("shrinkage:within=3", run, "within must be true or false"),
    ):
        with pytest.raises(ArgumentError, match=message):
            metrics.measure(spec, given)
    made = table("ddim", one.path, 4)
    field = diffode.guide(one, other, 2.0)
    for make, message in (
        (lambda: guided_law(made, ring), "two Gaussians whose covariances commute"),
        (lambda: guided_law(made, diffode.guide(one, other, 2.0, kind="projected")), "two Gaussians"),
        (lambda: guided_law(made, field, start="noise"), "start must be"),
        (lambda: guided_law(table("ddim", "vp", 4), field), "for the path of the field"),
    ):
        with pytest.raises(ArgumentError, match=message):
            make()
