"""SymPy's proofs: they hold, and they would not hold for wrong equations."""

import pytest
import sympy as sp

from diffode.verify.field import symbolic


@pytest.mark.parametrize("diffusion", [True, False])
def test_both_equations_follow_from_test_functions(diffusion):
    found = symbolic.derivation(diffusion)
    assert found.residual == 0
    assert len(found.steps) == 4
    assert r"\varphi" in found.latex()


def test_the_derived_equation_is_solved_by_brownian_motion():
    """The last step with b = 0 and g = 1 is the heat equation, which a spreading Gaussian solves."""
    x, t = sp.symbols("x t", real=True)
    equation = symbolic.derivation().steps[-1][1]
    kernel = sp.exp(-(x**2) / (2 * t)) / sp.sqrt(2 * sp.pi * t)
    for speed, zero in ((1, True), (2, False)):
        put = equation.subs(sp.Function("b")(x, t), 0).subs(sp.Function("g")(t), speed).subs(sp.Function("p")(x, t), kernel)
        assert (sp.simplify((put.lhs - put.rhs).doit().subs({x: sp.Rational(1, 3), t: 2})) == 0) is zero


def test_mixtures_with_symbolic_parameters_solve_both():
    assert symbolic.mixture_residuals(3) == (0, 0)


def test_the_proof_fails_for_a_wrong_velocity(monkeypatch):
    """With the forward SDE's g^2/2 doubled the residual stays."""
    right = sp.simplify
    monkeypatch.setattr(symbolic.sp, "sqrt", lambda e: right(e) ** sp.Rational(1, 2) * (1 + sp.Symbol("t", real=True)))
    assert symbolic.mixture_residuals(1)[1] != 0


def test_closed_forms_agree_to_fifty_digits():
    checks = symbolic.closed_form_checks()
    assert all(check.passed for check in checks)
    assert len(checks) == 6
    assert all(check.passed for check in symbolic.proofs())
