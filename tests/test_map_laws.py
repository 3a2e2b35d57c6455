"""Maps that learn the law of the data alone, IMM and SiD: SiD's gradient in closed form, trainings, files and refusals."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from maps_exact import GaussianStates, slope, variance

import diffode
from diffode import learned
from diffode.errors import ArgumentError, FileFormatError
from diffode.learned import train_map
from diffode.learned.maps import identity
from diffode.learned.maps.residuals import Context
from diffode.maps import AngleMap
from diffode.maps.parametrisations import PARAMETRISATIONS
from diffode.numerics.forward import along
from diffode.numerics.projections import directions, projected_mean
from diffode.targets import get as get_target
from diffode.tensor_files import read_tensors, write_tensors
from diffode.verify.theory.score_identity import identity_losses, identity_path

SMALL = "width=32,depth=2,batch=256"
#: A training of each that takes seconds.
QUICK = {"imm": f"imm:{SMALL}", "sid": f"sid:{SMALL},alpha=1.0,rate=8e-3,fake_rate=2e-2,fake_steps=3"}


def draw(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean, lam):
    """E[d|y_a] of N(mean, lam)."""

    def denoised(y, a):
        level, x = (a.tan() ** 2)[:, None], y / a.cos()[:, None]
        return mean + lam / (lam + level) * (x - mean)

    return denoised


def even(count=20_000):
    """Two sets of normal numbers with exact moments of second order."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    both = (draw(count, 2)[None] * signs[:, None]).reshape(-1, 2)
    both = both / both.square().mean(0).sqrt()
    return both[:, :1], both[:, 1:]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
@pytest.mark.parametrize(("b", "s", "sigma"), [(0.5, 0.3, 0.7), (-1.0, 2.5, 1.5), (0.2, 2.0, 0.5)])
def test_the_gradient_of_score_identity_is_the_closed_form(alpha, b, s, sigma):
    """By the mean b and the deviation s of points b + s z, with the fake exact and frozen."""
    z, eps = even()
    ones = torch.ones(len(z), dtype=torch.float64)
    teacher, fake = gaussian(0.3, 0.8), gaussian(b, s**2)
    found = identity.identity_gradient(b + s * z, 0 * ones, math.atan(sigma) * ones, eps, teacher, fake, alpha, norm=False)
    known = identity_losses(0.3, 0.8, b, s, sigma, alpha)
    assert float(found.mean()) == pytest.approx(known.by_mean, rel=1e-9)
    assert float((found * z).mean()) == pytest.approx(known.by_deviation, rel=1e-9)


def test_the_norm_of_a_row_is_a_number_without_a_gradient():
    z, eps = draw(50, 2), draw(50, 2, seed=1)
    a, b = torch.full((50,), 0.8, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    teacher, fake = gaussian(0.3, 0.8), gaussian(0.0, 1.0)
    plain, over = (identity.identity_gradient(z, b, a, eps, teacher, fake, 1.2, norm=norm) for norm in (False, True))
    apart = (z - teacher(identity.noised(z, b, a, eps), a)).abs().mean(1, keepdim=True)
    assert torch.allclose(over * apart, plain, atol=1e-13)


def test_points_with_some_noise_are_noised_and_denoised_to_their_own_level():
    """Generators of paths that end with noise: E[y_b|y_a] of a Gaussian, and the law of y_a."""
    lam = 0.6
    a, b = torch.full((80_000,), 1.1, dtype=torch.float64), torch.full((80_000,), 0.5, dtype=torch.float64)
    z, eps = even()
    points = variance(b, lam).sqrt()[:, None] * z
    y = identity.noised(points, b, a, eps)
    assert float(y.square().mean()) == pytest.approx(float(variance(a[:1], lam)), rel=1e-9)
    taken = identity.taken_to(gaussian(0.0, lam)(y, a), y, a, b)
    best = float((y * points).mean() / y.square().mean())
    assert torch.allclose(taken, best * y, atol=1e-9)
    # At its own level a point is known.
    assert torch.allclose(identity.taken_to(0 * points, points, b, b), points)


@pytest.mark.parametrize("last", [0.0, 0.4])
def test_the_fake_learns_the_score_of_what_is_generated(last):
    """The mean of its residual given y vanishes at the exact velocity of the generator's law, and not at another."""
    lam, s = 0.5, slope(torch.tensor(1.5), torch.tensor(last), torch.tensor(0.5))
    draws = torch.Generator().manual_seed(3)
    sources = SimpleNamespace(
        angles=(1.5, last),
        dtype=torch.float64,
        device="cpu",
        uniform=lambda n: torch.rand(n, generator=draws, dtype=torch.float64),
        normal=lambda *size: torch.randn(*size, generator=draws, dtype=torch.float64),
        prior=lambda n: torch.randn(n, 1, generator=draws, dtype=torch.float64) * variance(torch.tensor(1.5), 0.5).sqrt(),
    )

    def exact(own):
        def answers(y, a, b):
            return ((1 - own) * (2 * a).sin() / 2 / variance(a, own))[:, None] * y

        return AngleMap(answers, "trig")

    for own, right in ((lam, True), (0.9, False)):
        kept = []
        fake = exact(own)
        answers = fake.answers
        fake.answers = lambda y, a, b, answers=answers, kept=kept: kept.append(y) or answers(y, a, b)
        context = Context(lambda y, a, b: s * y, None, sources, {"law": "uniform"}, fake=fake)
        (term,) = identity.fake_score(context, 100_000, identity.generated)
        each = term.weight * term.residual[:, 0] * kept[0][:, 0]
        deviations = float(each.mean()) / (float(each.std()) / len(each) ** 0.5)
        assert (abs(deviations) < 4) == right
        assert float(term.weight.min()) >= 0


def test_sid_compares_laws_at_the_lower_share_of_karras_variable():
    sources = GaussianStates(0.5)
    fake = AngleMap(lambda y, a, b: 0 * y, "trig")
    jump = lambda y, a, b: slope(a, b, torch.tensor(0.5, dtype=torch.float64))[:, None] * y  # noqa: E731
    (term,) = identity.score_identity(Context(jump, None, sources, {"reach": 0.6, "alpha": 1.0}, fake=fake), 4000)
    high, low = (math.tan(angle) ** (1 / 7) for angle in sources.angles)
    share = (term.span[0].tan() ** (1 / 7) - low) / (high - low)
    assert 0 <= float(share.min()) < 0.01
    assert 0.59 < float(share.max()) <= 0.6 + 1e-12
    assert float(share.mean()) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("alpha", [3.0, 10.0])
def test_too_large_an_alpha_runs_away(alpha):
    """From a generator that is too wide: at 1 - k < alpha (q - k) it is widened without end."""
    far = [s for _, s in identity_path((0.0, 3.0), alpha, steps=150, rate=0.05)]
    assert all(after > before for before, after in itertools.pairwise(far))
    near = [s for _, s in identity_path((0.0, 3.0), 1.0, steps=150, rate=0.05)]
    assert all(after < before for before, after in itertools.pairwise(near))


def test_the_g_form_of_ctm_is_its_closed_form():
    """A denoiser at b = a, the consistency function at b = 0: lam (s + t)/((lam + s^2)(s R + t)) on EDM's path."""
    lam = torch.tensor([0.2, 0.49, 3.0], dtype=torch.float64)
    a = torch.tensor([0.3, 0.9, 1.4], dtype=torch.float64)
    for b in (0 * a, 0.4 * a, a - 1e-7):
        keep, gain = PARAMETRISATIONS["ddim"].coefficients(a, b)
        found = (slope(a, b, lam) - keep) / gain * a.cos()
        s, t = a.tan(), b.tan()
        ratio = ((lam + t**2) / (lam + s**2)).sqrt()
        assert torch.allclose(found, lam * (s + t) / ((lam + s**2) * (s * ratio + t)), rtol=1e-6)
    ends = ((slope(a, 0 * a, lam) - 0) / 1) * a.cos()
    assert torch.allclose(ends, (lam / (lam + a.tan() ** 2)).sqrt(), rtol=1e-12)


def test_the_tangent_of_scm_vanishes_in_closed_form():
    """-cos t (F - dx/dt) - sin t (x + D_t F) = 0 with F = (cos t x - f)/sin t, f the exact consistency function."""
    lam, mean = 0.49, 0.3
    t = torch.linspace(0.05, 1.5, 40, dtype=torch.float64)
    x = draw(40)

    def size(t):
        return (t.cos() ** 2 * lam + t.sin() ** 2).sqrt()

    def network(x, t):
        f = mean + lam**0.5 / size(t) * (x - t.cos() * mean)
        return (t.cos() * x - f) / t.sin()

    rate = -t.sin() * mean + (1 - lam) * t.sin() * t.cos() / size(t) ** 2 * (x - t.cos() * mean)
    answer, slope_of = along(network, (x, t), (rate, torch.ones_like(t)))
    tangent = -t.cos() * (answer - rate) - t.sin() * (x + slope_of)
    assert float(tangent.abs().max()) < 1e-13
    # Another velocity than the field's does not keep the function.
    answer, slope_of = along(network, (x, t), (0 * rate, torch.ones_like(t)))
    assert float((-t.cos() * answer - t.sin() * (x + slope_of)).abs().mean()) > 1e-2


def test_the_sliced_distance_of_a_shift_is_its_length():
    x = draw(500, 3)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert projected_mean(x, x + shift, directions(3, 4000)) == pytest.approx(float(shift.norm()), rel=0.02)
    assert projected_mean(x[:, :1], 2 * x[:, :1].flip(0), directions(1, 1)) == pytest.approx(float(x[:, 0].abs().mean()))


@pytest.mark.parametrize(("name", "steps"), [("imm", 400), pytest.param("sid", 400, marks=pytest.mark.slow)])
def test_each_is_nearer_to_the_law_than_the_gaussian_flow_after_some_seconds(name, steps, tmp_path):
    found = train_map(QUICK[name], "bimodal1d", nfe=1, steps=steps, seed=1)
    assert found.errors.after < 0.85 * found.errors.before
    assert found.map.law_only
    # The error is that of the law of other draws: W1, whatever the coupling.
    field = diffode.exact_field("bimodal1d", "edm")
    run = diffode.solve(field, field.path.prior((20_000, 1), generator=7), solver=found.solver, nfe=1)
    exact = field.marginal(20_000, 0.002, generator=8)
    apart = float((run.x.sort(0).values - exact.sort(0).values).abs().mean()) / field.scale
    assert found.errors.after == pytest.approx(apart, abs=0.03)
    assert found.errors.before == pytest.approx(0.37, abs=0.03)
    found.save(tmp_path / "law.safetensors")
    back = learned.load(tmp_path / "law.safetensors")
    assert (back.map.law_only, back.map.one_jump, back.map.fixed_end) == (True, name == "sid", name == "sid")
    assert back.solver.content() == found.solver.content()


@pytest.fixture(scope="module")
def generator():
    return train_map("sid:width=32,depth=2,batch=32", "ring8", nfe=1, steps=2)


def test_a_generator_makes_one_jump_and_says_so(generator, tmp_path):
    generator.save(tmp_path / "sid.safetensors")
    field = diffode.exact_field("ring8", "edm")
    x, solver = field.prior(3, generator=0), f"map:file={tmp_path / 'sid.safetensors'}"
    assert diffode.solve(field, x, solver=solver, nfe=1).nfe == 1
    with pytest.raises(ArgumentError, match="one jump: nfe must be 1, got 2"):
        diffode.solve(field, x, solver=solver, nfe=2)
    with pytest.raises(ArgumentError, match="a grid must have its ends alone"):
        diffode.solve(field, x, solver=solver, grid=[80.0, 1.0, 0.002], generator=0)
    with pytest.raises(ArgumentError, match=r"goes from s=80 to t=0\.002 only"):
        generator.map(x, 1.0, 0.002)
    with pytest.raises(ArgumentError, match="one jump"):
        generator.map.times(2)
    with pytest.raises(ArgumentError, match="trains a generator"):
        train_map("sid", "ring8", nfe=(1, 2))


def test_files_say_whether_a_map_is_a_generator(generator, tmp_path):
    file = tmp_path / "sid.safetensors"
    generator.save(file)
    description, tensors = read_tensors(file, "diffode-map-1")
    for changed in ({"one_jump": 1}, {"law_only": None}, {"fixed_end": False}):
        write_tensors(file, tensors, {**description, **changed})
        with pytest.raises(FileFormatError):
            learned.load(file)
    # Files of before say nothing of that.
    older = {key: value for key, value in description.items() if key not in ("one_jump", "law_only")}
    write_tensors(file, tensors, older)
    assert not learned.load(file).map.one_jump


@pytest.mark.parametrize("name", ["imm", "sid"])
def test_an_interrupted_training_of_a_law_goes_on_to_the_same_numbers(name, tmp_path):
    spec, file, asked = f"{name}:width=8,depth=1,batch=16", tmp_path / "resume.safetensors", []
    whole = train_map(spec, "gauss2d", nfe=1, steps=24)
    train_map(spec, "gauss2d", nfe=1, steps=24, resume_file=file, stop=lambda: len(asked.append(0) or asked) == 13)
    rest = train_map(spec, "gauss2d", nfe=1, steps=24, resume_file=file)
    assert rest.history == whole.history
    assert rest.solver.content() == whole.solver.content()


def test_a_generator_learns_from_a_field_whose_law_is_not_known():
    exact = diffode.exact_field("bimodal1d", "edm")
    field = diffode.Field.from_velocity(lambda x, t: exact.velocity(x, t), path="edm", scale=exact.scale)
    found = train_map("sid:width=8,depth=1,batch=32", field, nfe=1, dim=1, steps=3)
    assert math.isfinite(found.errors.after)
    # The normal law against that of two modes, as where the law is known.
    assert found.errors.before == pytest.approx(0.37, abs=0.03)
    with pytest.raises(ArgumentError, match="such as flow_map"):
        train_map("imm:width=8,depth=1,batch=32", field, nfe=1, dim=1, steps=3)


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ("imm:group=1,pairs=distinct", "group must be 2"),
        ("imm:group=2000", "batch must be a group"),
        ("imm:norm=huber", "norm must be squared"),
        ("imm:pairs=some", "pairs must be one of"),
        ("sid:fake_rate=0", "fake_rate must be positive"),
        ("sid:reach=2", "reach"),
        ("sid:alpha=-1", "alpha"),
    ],
)
def test_wrong_options_are_told(method, word):
    with pytest.raises(ArgumentError, match=word):
        train_map(method, "gauss1d", nfe=1, steps=1)


def test_the_fake_learns_at_its_own_rate():
    slow, fast = (
        train_map(f"sid:width=8,depth=1,batch=16,fake_rate={rate}", "gauss1d", nfe=1, steps=6) for rate in (1e-5, 1e-1)
    )
    assert slow.solver.content() != fast.solver.content()


@pytest.mark.parametrize(("target", "count"), [("gauss1d", 1), ("gauss2d", 32)])
def test_laws_are_compared_along_32_directions_and_on_a_line_along_it(monkeypatch, target, count):
    """Fewer would let a law pass that is wrong across them."""
    asked, errors = [], []

    def counted(dim, projections):
        asked.append((dim, projections))
        return directions(dim, projections)

    def measured(found, wanted, lines):
        errors.append((lines.shape, projected_mean(found, wanted, lines)))
        return errors[-1][1]

    monkeypatch.setattr("diffode.learned.maps.law_run.directions", counted)
    monkeypatch.setattr("diffode.learned.maps.law_run.projected_mean", measured)
    dim = get_target(target).dim
    trained = train_map("imm:width=8,depth=1", target, nfe=1, steps=1)
    assert set(asked) == {(dim, count)}
    assert {shape for shape, _ in errors} == {(dim, count)}
    # The error that is told is such a mean, of points divided by the cosine of the last angle.
    assert any(trained.errors.after == pytest.approx(one, rel=1e-4) for _, one in errors)
