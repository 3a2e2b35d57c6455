r"""The two equations derived and proved by SymPy, and the closed forms of the code held against them to 50 digits.

* :func:`derivation` carries out the test-function argument for a general drift and diffusion: the generator of a test function,
  times the density, is the test function times the right-hand side of the equation, plus an exact derivative, whose integral
  is 0. It is checked by SymPy and printed as LaTeX.
* :func:`mixture_residuals` puts in a one-dimensional mixture with symbolic parameters on a symbolic path: both residuals
  simplify to 0.
* :func:`closed_form_checks` compares score, velocity and divergence at random points: SymPy's derivatives of the
  log-density, the closed forms, both to 50 digits, and the code in float64.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import mpmath
import sympy as sp
import torch

from diffode import fields, paths, targets
from diffode.verify.report import Check

#: Number of digits of the symbolic comparison.
_DIGITS = 50
#: Largest relative residual of a closed form against SymPy.
_SYMBOLIC = 1e-45
#: Largest relative residual of the code in float64 against SymPy.
_FLOAT64 = 1e-12


@dataclass(frozen=True)
class Derivation:
    """Steps as SymPy equations with a sentence each, and the residual of the identity behind them, which is 0."""

    steps: tuple[tuple[str, sp.Eq], ...]
    residual: sp.Expr

    def latex(self) -> str:
        """The derivation as LaTeX."""
        return "\n\n".join(f"{text}\n\\[\n  {sp.latex(equation)}\n\\]" for text, equation in self.steps)


def derivation(diffusion: bool = True) -> Derivation:
    """The Fokker-Planck equation of dx = b dt + g dw from test functions; without ``diffusion``, the continuity equation.

    >>> derivation().residual
    0
    """
    x, t = sp.symbols("x t", real=True)
    phi, p, b = sp.Function("varphi")(x), sp.Function("p")(x, t), sp.Function("b")(x, t)
    g = sp.Function("g")(t) if diffusion else sp.Integer(0)
    half = g**2 / 2
    generator = b * phi.diff(x) + half * phi.diff(x, 2)
    right = -sp.diff(b * p, x) + half * p.diff(x, 2)
    boundary = b * phi * p + half * (phi.diff(x) * p - phi * p.diff(x))
    residual = sp.simplify(sp.expand((generator * p - phi * right - sp.diff(boundary, x)).doit()))
    infinite = (x, -sp.oo, sp.oo)
    name = "Fokker-Planck" if diffusion else "continuity"
    steps = (
        (
            "For every smooth compactly supported test function, by Ito's formula" if diffusion else
            "For every smooth compactly supported test function, by the chain rule",
            sp.Eq(sp.Integral(phi * p.diff(t), infinite), sp.Integral(generator * p, infinite), evaluate=False),
        ),
        (
            "The integrand is the test function times an expression in p, plus an exact derivative:",
            sp.Eq(generator * p, phi * right + sp.Derivative(boundary, x), evaluate=False),
        ),
        (
            "The exact derivative integrates to 0, since the test function vanishes at both ends:",
            sp.Eq(sp.Integral(phi * (p.diff(t) - right), infinite), 0, evaluate=False),
        ),
        (f"This holds for every test function: the {name} equation", sp.Eq(p.diff(t), right, evaluate=False)),
    )  # fmt: skip
    return Derivation(steps, residual)


def mixture_residuals(components: int = 2) -> tuple[sp.Expr, sp.Expr]:
    """Residuals of the continuity and the Fokker-Planck equation for a 1-D mixture with symbolic parameters: (0, 0).

    Weights w_k, means m_k, variances c_k and the path's alpha(t), sigma(t) are symbols; the velocity is the closed form of the
    code, the sum of r_k (alpha' m_k + S_k'/(2 S_k) (x - alpha m_k)), and the forward SDE has f = alpha'/alpha and
    g^2 = 2 sigma (sigma' - sigma f).
    """
    x, t = sp.symbols("x t", real=True)
    alpha, sigma = sp.Function("alpha", positive=True)(t), sp.Function("sigma", positive=True)(t)
    f = alpha.diff(t) / alpha
    half = sigma * (sigma.diff(t) - sigma * f)
    continuity, fokker_planck = sp.Integer(0), sp.Integer(0)
    for k in range(1, components + 1):
        weight, variance = sp.symbols(f"w_{k} c_{k}", positive=True)
        mean = sp.Symbol(f"m_{k}", real=True)
        spread = alpha**2 * variance + sigma**2
        own = weight / sp.sqrt(2 * sp.pi * spread) * sp.exp(-((x - alpha * mean) ** 2) / (2 * spread))
        velocity = alpha.diff(t) * mean + spread.diff(t) / (2 * spread) * (x - alpha * mean)
        # Both equations are linear in the density and in density times velocity, which are sums over components k. The
        # exponential of each component is divided out, which leaves a rational function that SymPy can decide.
        rates = own.diff(t) + sp.diff(own * velocity, x), own.diff(t) + sp.diff(f * x * own, x) - half * own.diff(x, 2)
        left = [own * sp.simplify(sp.expand(sp.simplify(rate / own))) for rate in rates]
        continuity, fokker_planck = continuity + left[0], fokker_planck + left[1]
    return continuity, fokker_planck


def proofs() -> list[Check]:
    """Checks that SymPy reduces both equations to 0, in their derivation and on a mixture."""
    left = {
        "Fokker-Planck from test functions": derivation(True).residual,
        "continuity from test functions": derivation(False).residual,
        **dict(zip(("mixture, continuity", "mixture, Fokker-Planck"), mixture_residuals(), strict=True)),
    }
    return [Check(f"SymPy: {name}", 0.0 if r == 0 else 1.0, 0.0, f"residual {r}") for name, r in left.items()]


def closed_form_checks(points: int = 5, seed: int = 0) -> list[Check]:
    """Score, velocity and divergence of a random 1-D mixture on VP at random points and times, three ways."""
    draw = random.Random(seed)
    with mpmath.workdps(_DIGITS + 10):
        count = 3
        raw = [draw.uniform(0.2, 1) for _ in range(count)]
        parameters = [(w / sum(raw), draw.uniform(-2, 2), draw.uniform(0.05, 0.6)) for w in raw]
        target = targets.GaussianMixture(
            [w for w, _, _ in parameters], [[m] for _, m, _ in parameters], [[c] for _, _, c in parameters]
        )
        path = paths.get("vp")
        field = fields.exact_field(target, path)
        # The code normalises its weights, so the normalised ones are compared.
        weights = [mpmath.mpf(w) for w in target.weights.tolist()]
        exact = [(w, mpmath.mpf(m), mpmath.mpf(c)) for w, (_, m, c) in zip(weights, parameters, strict=True)]
        expressions = _symbolic_forms(count)
        worst = {name: [0.0, 0.0] for name in expressions}
        for _ in range(points):
            t, x = draw.uniform(0.05, 0.95), draw.uniform(-3, 3)
            level = [
                mpmath.mpf(v) for v in (path.alpha(t), path.sigma(t), path.alpha_derivative(t), path.half_variance_rate(t))
            ]
            closed = _closed_forms(exact, mpmath.mpf(x), *level)
            values = [mpmath.mpf(x), *level, *(v for parameter in exact for v in parameter)]
            point = torch.tensor([[x]], dtype=torch.float64)
            code = {
                "score": field.score(point, t), "velocity": field.velocity(point, t), "divergence": field.divergence(point, t)
            }  # fmt: skip
            for name, function in expressions.items():
                symbolic = function(*values)
                # The divergence is the difference of f and a multiple of the Laplacian, which may nearly cancel.
                size = abs(symbolic) + abs(level[2] / level[0])
                by_form, by_code = abs(closed[name] - symbolic) / size, abs(float(code[name]) - symbolic) / size
                worst[name] = [max(worst[name][0], float(by_form)), max(worst[name][1], float(by_code))]
        found = []
        for name, (by_form, by_code) in worst.items():
            found.append(Check(f"{name}: closed form against SymPy, {_DIGITS} digits", by_form, _SYMBOLIC, f"{points} points"))
            found.append(Check(f"{name}: float64 code against SymPy", by_code, _FLOAT64, f"{points} points"))
        return found


def _symbolic_forms(count: int) -> dict[str, Any]:
    """Score, velocity and divergence by SymPy's derivatives of the log-density alone, as mpmath functions.

    The velocity is f x - g^2/2 d log p/dx, its divergence the derivative of that.
    """
    x, a, s, da, rate = sp.symbols("x a s da rate", real=True)
    parameters = [sp.symbols(f"w_{k} m_{k} c_{k}", real=True) for k in range(count)]
    density = sum(
        w / sp.sqrt(2 * sp.pi * (a**2 * c + s**2)) * sp.exp(-((x - a * m) ** 2) / (2 * (a**2 * c + s**2)))
        for w, m, c in parameters
    )
    score = sp.diff(sp.log(density), x)
    half = rate - s**2 * da / a
    velocity = da / a * x - half * score
    names = [x, a, s, da, rate, *(symbol for parameter in parameters for symbol in parameter)]
    forms = {"score": score, "velocity": velocity, "divergence": sp.diff(velocity, x)}
    return {name: sp.lambdify(names, form, "mpmath") for name, form in forms.items()}


def _closed_forms(parameters: list[Any], x: Any, a: Any, s: Any, da: Any, rate: Any) -> dict[str, Any]:
    """The closed forms of the code, in the precision that mpmath is set to."""
    spreads = [a**2 * c + s**2 for _, _, c in parameters]
    joint = [
        w * mpmath.exp(-((x - a * m) ** 2) / (2 * S)) / mpmath.sqrt(2 * mpmath.pi * S)
        for (w, m, _), S in zip(parameters, spreads, strict=True)
    ]
    r = [j / sum(joint) for j in joint]
    own = [-(x - a * m) / S for (_, m, _), S in zip(parameters, spreads, strict=True)]
    score = sum(rk * gk for rk, gk in zip(r, own, strict=True))
    laplacian = sum(rk * ((gk - score) ** 2 - 1 / S) for rk, gk, S in zip(r, own, spreads, strict=True))
    velocity = sum(
        rk * (da * m + (a * da * c + rate) / S * (x - a * m)) for rk, (_, m, c), S in zip(r, parameters, spreads, strict=True)
    )
    f = da / a
    return {"score": score, "velocity": velocity, "divergence": f - (rate - s**2 * f) * laplacian}
