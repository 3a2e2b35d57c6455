"""The proof room: right fields pass, and each planted fault is found by the check that is there for it."""

import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from commandline import diffode as command

import diffode
from diffode import Field, paths, targets
from diffode.errors import ArgumentError
from diffode.verify import verify_field
from diffode.verify.field import equations, likelihood, weak
from diffode.verify.field.contract import contract
from diffode.verify.field.evolution import evolution_checks, evolve, mass_check
from diffode.verify.field.picture import draw_residuals
from diffode.verify.field.weak import sampled_check
from diffode.verify.report import Check

NARROW = ["bimodal1d", "ring8", "gauss2d", "rare"]


def failed(checks):
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *((name, path) for name in ("bimodal1d", "line16") for path in paths.names()),
        *((name, path) for name in ("ring8", "gauss2d", "rare") for path in ("edm", "rectified_flow")),
        *(
            pytest.param(name, path, marks=pytest.mark.slow)
            for name in ("ring8", "gauss2d", "rare", "digits-gmm10")
            for path in paths.names()
            if path not in ("edm", "rectified_flow") or name == "digits-gmm10"
        ),
    ],
)
def test_exact_fields_pass_every_check(name, path):
    report = verify_field(diffode.exact_field(name, path))
    assert report.passed, [c for c in report.checks if not c.passed]
    assert len(report.checks) >= (25 if name in NARROW else 17)


def own(change, path="vp", prediction="noise"):
    """ring8's field with something done to it."""
    exact = diffode.exact_field("ring8", path)
    view = getattr(exact, prediction)
    return exact, Field(lambda x, t: change(view(x, t), x, t), prediction, exact.path, scale=exact.scale)


def test_a_copy_of_an_exact_field_passes_with_a_density_and_without():
    exact, field = own(lambda answer, x, t: answer)
    for options in ({"truth": exact}, {"dim": 2}, {"dim": 2, "density": lambda x, t: exact.log_prob(x, t)}):
        report = verify_field(field, **options)
        assert report.passed, [c for c in report.checks if not c.passed]


def test_a_density_that_takes_no_tensor_t_is_differenced():
    exact, field = own(lambda answer, x, t: answer)

    def density(x, t):
        if isinstance(t, torch.Tensor):
            raise TypeError("a number, please")
        return exact.log_prob(x, t)

    where = equations.typical_points(exact)
    assert 1e-14 < equations.continuity(field, where, density).check("", 1e-6).value < 1e-6


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda answer, x, t: -answer, {"continuity equation", "Fokker-Planck equation", "score = grad log p"}),
        (lambda answer, x, t: 1.001 * answer, {"continuity equation", "score against the exact one"}),
        (lambda answer, x, t: answer + 1e-3 * x, {"continuity equation", "score = grad log p"}),
        (lambda answer, x, t: answer + 1e-3 * x.flip(1) * torch.tensor([1.0, -1.0]), {"score Jacobian symmetric"}),
    ],
)
def test_wrong_fields_are_found(change, found):
    exact, field = own(change)
    assert found <= failed(verify_field(field, truth=exact).checks)


def test_rotation_keeps_the_density_and_only_the_score_tells():
    """v + w with div(w p) = 0 obeys continuity: a rotation of a round Gaussian. Its score is none, and not symmetric."""
    exact = diffode.exact_field(diffode.GaussianMixture([1.0], [[0.0, 0.0]], [1.0]), "edm")
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    field = Field.from_velocity(lambda x, t: exact.velocity(x, t) + x @ turn, exact.path)
    names = failed(verify_field(field, truth=exact).checks)
    assert "continuity equation" not in names
    assert {"score = grad log p", "score Jacobian symmetric"} <= names


CONTRACT = [
    (lambda x, t: x[:1], "answers with the shape and dtype of x"),
    (lambda x, t: x.float(), "answers with the shape and dtype of x"),
    (lambda x, t: x / 0, "finite"),
    (lambda x, t: x.mul_(2), "leaves its x alone"),
    (lambda x, t: x + torch.rand(1), "deterministic"),
    (lambda x, t: x - x.mean(0), "rows independent of their batch"),
    (lambda x, t: x * float(torch.as_tensor(t).reshape(-1)[0]), "takes a time for every row"),
    (lambda x, t: 1 / [][0], "answers with the shape and dtype of x"),
]


@pytest.mark.parametrize(("function", "name"), CONTRACT)
def test_breaches_of_the_contract_are_named(function, name):
    field = Field.from_noise(function, paths.get("edm"))
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    checks = contract(field, x, 1.0)
    assert name in failed(checks)
    assert next(c for c in checks if c.name == name).detail
    assert field.nfe == 0
    assert not verify_field(field, dim=2).passed


@pytest.mark.parametrize("function", [weak.monomial((2, 3), 1.7), weak.wave(torch.tensor([0.3, -0.8], dtype=torch.float64)),
                                      weak.bump(torch.tensor([0.1, 0.2], dtype=torch.float64), 2.0)])  # fmt: skip
def test_derivatives_of_test_functions_are_those_of_autograd(function):
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    jet = function.at(x)
    (gradient,) = torch.autograd.grad(jet.value.sum(), x, create_graph=True)
    second = sum(torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    torch.testing.assert_close(jet.gradient, gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(jet.laplacian, second, rtol=1e-9, atol=1e-10)


class Tampered(diffode.ExactField):
    """An exact field whose velocity, or score, is off."""

    def __init__(self, name, path, wrong):
        super().__init__(targets.get(name), paths.get(path))
        self.wrong = wrong

    def predict(self, prediction, x, t):
        answer = super().predict(prediction, x, t)
        return answer * 1.0001 if prediction == self.wrong else answer


@pytest.mark.parametrize("name", ["bimodal1d", "ring8"])
def test_weak_forms_find_a_field_that_is_off_by_a_ten_thousandth(name):
    by_velocity = failed(weak.weak(Tampered(name, "vp", "velocity")))
    by_score = failed(weak.weak(Tampered(name, "vp", "score")))
    assert {"weak form, flow", "weak form, reverse SDE eta=1", "weak form, compact function, flow"} <= by_velocity
    assert {"weak form, reverse SDE eta=1", "Stein's identity of the score"} <= by_score
    assert "weak form, flow" not in by_score


@pytest.mark.parametrize("wrong", ["drift", "diffusion"])
def test_forward_weak_forms_find_a_wrong_forward_sde(wrong, monkeypatch):
    field = diffode.exact_field("ring8", "vp")
    path = type(field.path)
    right = getattr(path, wrong)
    monkeypatch.setattr(path, wrong, lambda self, t: 1.0001 * right(self, t))
    names = failed(weak.weak(field))
    assert {
        "weak form, polynomials to degree 4",
        "weak form, compact function, forward SDE",
        "characteristic function",
    } <= names


def test_the_flow_converges_in_quadrature_as_theory_says():
    """E[v . grad phi] with the score inside: 10, 20, 40 nodes gain digits, they are not exact."""
    field = diffode.exact_field("bimodal1d", "edm")
    values = [weak.reverse_check(field, 1.5 * field.scale, 0.0, nodes).value for nodes in (10, 20, 40)]
    assert values[0] > 100 * values[1] > 10_000 * values[2] > 0


def test_monte_carlo_says_how_sure_it_is():
    exact, wrong = own(lambda answer, x, t: answer + 0.05 * x)
    data = exact.target.sample(20_000, generator=0)
    for eta in (None, 0.0, 1.0):
        assert weak.sampled_check(exact, data, 0.1, eta=eta).passed
    assert not weak.sampled_check(wrong, data, 0.1).passed


@pytest.mark.parametrize("name", ["bimodal1d", "rare"])
def test_finite_volumes_conserve_mass_and_converge_at_second_order(name):
    field = diffode.exact_field(name, "vp")
    assert not failed([mass_check(field), *evolution_checks(field)])
    errors = [evolve(field, 0.3, 0.5, n).error for n in (32, 64, 128)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([2, 2], abs=0.2)


def test_errors_that_are_no_numbers_have_no_order(monkeypatch):
    field = diffode.exact_field("bimodal1d", "vp")
    found = evolve(field, 0.3, 0.5, 16)
    monkeypatch.setattr("diffode.verify.field.evolution.evolve", lambda *_: replace(found, error=math.nan))
    short = [check for check in evolution_checks(field) if "order" in check.name]
    assert [(check.value, check.passed) for check in short] == [(2.0, False)] * 2


@pytest.mark.parametrize(("dim", "known"), [(64, True), (65, False)])
def test_a_fields_whole_derivative_is_taken_in_at_most_64_dimensions(dim, known):
    normal = diffode.exact_field(diffode.GaussianMixture([1.0], torch.zeros(1, dim), torch.ones(1)), "edm")
    report = verify_field(Field.from_denoised(normal.denoised, "edm", scale=1.0), dim=dim)
    assert (report.facts["residuals"] is not None) is known


def test_finite_volumes_find_a_wrong_velocity_while_mass_stays():
    """Off by a ten-thousandth, the error stops falling at 2e-5, where that of the right field falls fourfold each time."""
    wrong, right = Tampered("bimodal1d", "vp", "velocity"), diffode.exact_field("bimodal1d", "vp")
    stuck, falling = ([evolve(f, 0.3, 0.5, n, "continuity") for n in (800, 1600)] for f in (wrong, right))
    assert stuck[1].error > 0.9 * stuck[0].error
    assert falling[0].error / falling[1].error == pytest.approx(4, abs=0.2)
    assert stuck[1].mass_change < 1e-12


@pytest.mark.parametrize(("name", "path"), [("ring8", "edm"), ("gauss2d", "vp"), ("bimodal1d", "rectified_flow")])
def test_likelihoods_are_the_closed_form(name, path):
    field = diffode.exact_field(name, path)
    x = field.marginal(4, field.path.t_min, generator=1)
    exact = field.log_prob(x, field.path.t_min)
    torch.testing.assert_close(likelihood.log_likelihood(field, x, tolerance=1e-10), exact, rtol=1e-7, atol=1e-7)
    plain = Field.from_noise(field.noise, field.path, scale=field.scale)
    base = likelihood.log_likelihood(plain, x, base=lambda z: field.log_prob(z, field.path.t_max), tolerance=1e-10)
    torch.testing.assert_close(base, exact, rtol=1e-7, atol=1e-7)


def test_hutchinson_is_unbiased_and_its_base_is_the_prior():
    field = diffode.exact_field("ring8", "vp")
    x = field.marginal(1, field.path.t_min, generator=1).expand(400, 2)
    estimates = likelihood.log_likelihood(field, x, divergence="hutchinson", generator=0, tolerance=1e-6)
    error = float(estimates.std()) / 20
    assert error > 0
    assert abs(float(estimates.mean() - field.log_prob(x[:1], field.path.t_min)[0])) < 4 * error
    # On VP the prior and the law at its start are one to 1e-3: without a density of its own the normal prior is the base.
    plain = Field.from_noise(field.noise, field.path, scale=field.scale)
    both = [likelihood.log_likelihood(f, x[:1]) for f in (plain, field)]
    assert 1e-9 < abs(float(both[0] - both[1])) < 0.1
    with pytest.raises(ArgumentError, match="pass generator="):
        likelihood.log_likelihood(field, x, divergence="hutchinson")
    with pytest.raises(ArgumentError, match="divergence must be"):
        likelihood.log_likelihood(field, x, divergence="guess")


def test_points_lie_in_the_bulk_of_a_field_without_draws():
    exact = diffode.exact_field("ring8", "edm")
    found = equations.typical_points(Field.from_noise(exact.noise, exact.path, scale=exact.scale), dim=2)
    assert [len(x) for x in found.points] == [24] * len(found.times)
    radius = found.points[-1].norm(dim=1)
    assert float((radius - targets.get("ring8").means.norm(dim=1)[0]).abs().max()) < 1.5
    with pytest.raises(ArgumentError, match="dim is needed"):
        equations.typical_points(Field.from_noise(exact.noise, exact.path))


def test_a_residual_that_is_not_finite_fails():
    assert not Check("", math.nan, 1.0).passed
    assert not Check("", math.inf, math.inf).passed
    residuals = equations.Residuals(torch.ones(3), torch.zeros(3, 1), torch.tensor([0.0, math.nan, 1.0]))
    assert not residuals.check("", 10.0).passed


@pytest.mark.parametrize("name", ["bimodal1d", "ring8", "line16"])
def test_the_picture_has_its_panels(name):
    field = diffode.exact_field(name, "edm")
    figure = draw_residuals(equations.continuity(field, equations.typical_points(field)), field.path, name, 1e-11)
    assert len(figure.axes) == (1 if name == "line16" else 3)


OWN = """
import diffode
exact = diffode.exact_field("ring8", "vp")
def velocity(x, t):
    return exact.velocity(x, t)
def backwards(x, t):
    return -exact.velocity(x, t)
def broken(x, t):
    raise RuntimeError("no weights")
def field():
    return diffode.Field.from_noise(exact.noise, exact.path, scale=exact.scale)
"""


def test_the_command_verifies_targets_and_users_fields(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    shown = command("verify", "ring8", "--symbolic", cwd=tmp_path).stdout
    assert "40 of 40 checks passed" in shown
    assert (tmp_path / "diffode-verify.png").stat().st_size > 10_000
    vp = ("--kind", "velocity", "--path", "vp", "--target", "ring8")
    assert "FAILED" not in command("verify", "own.py:velocity", *vp, cwd=tmp_path).stdout
    facts = json.loads(command("verify", "own.py:backwards", *vp, "--json", cwd=tmp_path, code=1).stdout)
    assert not facts["passed"]
    assert "continuity equation" in {row["name"] for row in facts["checks"] if not row["passed"]}
    assert (
        "no weights"
        in command("verify", "own.py:broken", "--kind", "noise", "--path", "vp", "--dim", "2", cwd=tmp_path, code=1).stdout
    )
    assert "on vp" in command("verify", "own.py:field", "--dim", "2", cwd=tmp_path).stdout
    for arguments, message in (
        (("own.py:fied", "--dim", "2"), "did you mean 'field'"),
        (("own.py:velocity", "--path", "vp", "--dim", "2"), "kind must say"),
        (("own.py:velocity", "--kind", "velocity", "--dim", "2"), "a plain function needs a path"),
        (("own.py:field",), "shape of a row is unknown"),
        (("own.py:field", "--dim", "2xb"), "dim must be"),
        (("ring8", "--dim", "2"), "go with a field of your own"),
        (("ring9",), "did you mean 'ring8'"),
        (("ring8", "--picture", "x.jpg"), "picture must end in .png"),
    ):
        assert message in command("verify", *arguments, cwd=tmp_path, code=2).stderr
    derived = command("verify", "ring8", "--derivation", cwd=tmp_path).stdout
    assert derived.count("\\[") == 8


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


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        pytest.param(
            lambda: equations.typical_points(diffode.exact_field("ring8", "edm"), levels=[1e5]),
            "lies within path",
            id="noise levels outside a path",
        ),
        pytest.param(
            lambda: evolve(diffode.exact_field("gauss64-powerlaw", "edm"), 0.1, 0.2, 8),
            "one or two dimensions",
            id="evolution in three dimensions",
        ),
        pytest.param(
            lambda: evolve(diffode.exact_field("ring8", "edm"), 0.2, 0.1, 8), "towards noise", id="evolution towards the data"
        ),
        pytest.param(
            lambda: weak.polynomial_check(diffode.exact_field("line16", "edm"), 1.0),
            "at most three dimensions",
            id="quadrature in many dimensions",
        ),
        pytest.param(
            lambda: weak.compact_check(diffode.exact_field("line16", "edm"), 1.0),
            "in one and two dimensions",
            id="compact functions in many dimensions",
        ),
    ],
)
def test_levels_directions_and_dimensions_of_checks_are_refused_by_name(ask, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ask()
