"""Bridges between two mixtures of Gaussians, x_t = A_t x_0 + B_t x_1 + G_t z, with velocity, score and density in closed form.

A **coupling** says which data x_0 goes with which source x_1, **coefficients** how x_t lies between them. Data are at the
first time, 0, and the source at the last, 1; solvers run from the source down to the data.
"""

from diffode.bridges.bridge import Bridge
from diffode.bridges.catalogue import coefficients, couplings
from diffode.bridges.coupling import Coupling, explicit, independent
from diffode.bridges.interpolants import Coefficients, Foellmer, Linear, Moments, OwnCoefficients, Trigonometric
from diffode.bridges.named import content, get, names, register, registry
from diffode.bridges.processes import Blurring, Langevin, phase_space
from diffode.bridges.simulation import BridgeSDE
from diffode.bridges.transport import optimal, planned, schroedinger

__all__ = [
    "Blurring",
    "Bridge",
    "BridgeSDE",
    "Coefficients",
    "Coupling",
    "Foellmer",
    "Langevin",
    "Linear",
    "Moments",
    "OwnCoefficients",
    "Trigonometric",
    "coefficients",
    "content",
    "couplings",
    "explicit",
    "get",
    "independent",
    "names",
    "optimal",
    "phase_space",
    "planned",
    "register",
    "registry",
    "schroedinger",
]
