r"""How a network becomes a map: :math:`y_b = A(a, b)\, y_a + B(a, b)\, F(y_a, a, b)` with A = 1 and B = 0 at b = a.

All are written in the angle clock (`clock.py`), a the angle where one is and b the angle where one goes; published ones that
live in other coordinates are rewritten by :math:`x = y/\cos\theta` (EDM) and :math:`x = y/(\cos\theta + \sin\theta)` (rectified
flow). With :math:`\delta = a - b` and :math:`p(\theta) = \cos\theta + \sin\theta`:

============= ================================= =========================== ==========================================
name          A                                 B                           F means
============= ================================= =========================== ==========================================
``angle``     1                                 b - a                       departure from the Gaussian flow, a velocity
``average``   p(b)/p(a)                         - sin(delta)/p(a)           average velocity of rectified flow
``trig``      cos(delta)                        - sin(delta)                the velocity of a DDIM step
``edm``       skip of EDM consistency models    sin(delta)                  their network
``ddim``      sin(b)/sin(a)                     sin(delta)/sin(a)           denoiser at b = a, end at b = 0 (CTM)
``variance``  1                                 sin(delta)/sin(a)           departure from the Gaussian flow, a point
============= ================================= =========================== ==========================================

Sources: MeanFlow, arXiv 2505.13447; TrigFlow, arXiv 2410.11081; EDM consistency, arXiv 2303.01469, equation 5 (with the end's
level in place of epsilon); CTM, arXiv 2310.02279, equation 5 and appendix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import UnknownNameError
from diffode.numerics.forward import along

Coefficients = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Parametrisation:
    """A and B as a function of angles (B,).

    Attributes:
        name: its name.
        coefficients: the function of a and b that gives A and B, each (B,).
        meaning: what F stands for, in words.
    """

    name: str
    coefficients: Callable[[Tensor, Tensor], Coefficients]
    meaning: str

    def rates(self, a: Tensor, b: Tensor) -> tuple[Coefficients, Coefficients]:
        """The derivatives (A_a, B_a) by a and (A_b, B_b) by b, each (B,)."""
        ones, zeros = torch.ones_like(a), torch.zeros_like(a)
        by_a = along(self.coefficients, (a, b), (ones, zeros))[1]
        by_b = along(self.coefficients, (a, b), (zeros, ones))[1]
        return by_a, by_b


def _angle(a: Tensor, b: Tensor) -> Coefficients:
    return torch.ones_like(a), b - a


def _average(a: Tensor, b: Tensor) -> Coefficients:
    before = a.cos() + a.sin()
    return (b.cos() + b.sin()) / before, -(a - b).sin() / before


def _trig(a: Tensor, b: Tensor) -> Coefficients:
    return (a - b).cos(), -(a - b).sin()


def _edm(a: Tensor, b: Tensor) -> Coefficients:
    # c_skip = 1/((tan a - tan b)^2 + 1) in units of the data, times cos(b)/cos(a) for the change of state.
    step, before, after = (a - b).sin(), a.cos(), b.cos()
    return before * after**3 / (step**2 + (before * after) ** 2), step


def _ddim(a: Tensor, b: Tensor) -> Coefficients:
    return b.sin() / a.sin(), (a - b).sin() / a.sin()


def _variance(a: Tensor, b: Tensor) -> Coefficients:
    return torch.ones_like(a), (a - b).sin() / a.sin()


#: The parametrisations by name.
PARAMETRISATIONS = {
    one.name: one
    for one in (
        Parametrisation("angle", _angle, "average velocity in the angle clock: the departure from the Gaussian flow"),
        Parametrisation("average", _average, "average velocity of rectified flow"),
        Parametrisation("trig", _trig, "velocity of a DDIM step (TrigFlow)"),
        Parametrisation("edm", _edm, "network of EDM consistency models"),
        Parametrisation("ddim", _ddim, "denoiser on the diagonal, consistency function at the end (CTM)"),
        Parametrisation("variance", _variance, "departure from the Gaussian flow, as a point (CTM)"),
    )
}


def parametrisation(name: str) -> Parametrisation:
    """A parametrisation by name; UnknownNameError for others.

    >>> import torch
    >>> A, B = parametrisation("trig").coefficients(torch.tensor([1.0]), torch.tensor([1.0]))
    >>> float(A), float(B)
    (1.0, -0.0)
    """
    if not isinstance(name, str) or name not in PARAMETRISATIONS:
        raise UnknownNameError("parametrisation", str(name), PARAMETRISATIONS)
    return PARAMETRISATIONS[name]
