"""Couplings and coefficients by their specs, ``schroedinger:sigma=0.5`` or ``blurring:shape=8x8``."""

from __future__ import annotations

from typing import Any

from diffode.bridges.coupling import Coupling, independent
from diffode.bridges.interpolants import Coefficients, Foellmer, Linear, Trigonometric
from diffode.bridges.processes import Blurring, Langevin
from diffode.bridges.transport import optimal, schroedinger
from diffode.errors import ArgumentError
from diffode.specs import Registry
from diffode.targets import GaussianMixture

couplings: Registry[Coupling] = Registry("coupling", Coupling)
for _name, _make in {"independent": independent, "optimal": optimal, "schroedinger": schroedinger}.items():
    couplings.register(_name, _make)

#: Other spellings of the names of coefficients.
ALIASES = {"trig": "trigonometric", "follmer": "foellmer", "cld": "langevin", "blur": "blurring"}
coefficients: Registry[Coefficients] = Registry("coefficients", Coefficients, spelled=ALIASES.get, aliases=ALIASES)
for _kind in (Linear, Trigonometric, Foellmer, Langevin, Blurring):
    coefficients.register(_kind.name, _kind)


def coupling_of(given: Any, data: GaussianMixture | str | None, source: GaussianMixture | str | None) -> Coupling:
    """A coupling from itself, or from a spec with data and source; ArgumentError for anything else."""
    if isinstance(given, Coupling):
        if data is not None or source is not None:
            raise ArgumentError("data and source go with the spec of a coupling; this coupling has its own already")
        return given
    if not isinstance(given, str):
        raise ArgumentError(f"coupling must be a diffode.bridges.Coupling or the spec of one, got {given!r:.60}")
    if data is None:
        raise ArgumentError(f"coupling {given!r} needs data=, a mixture of Gaussians or its spec, and source=")
    return couplings.make(given, data=data, source=source)


def coefficients_of(given: Any, coupling: Coupling) -> Coefficients:
    """Coefficients from themselves, from a spec, or those that suit a coupling; ArgumentError for anything else."""
    if given is None:
        return Foellmer(coupling.sigma) if coupling.sigma else Linear()
    if isinstance(given, Coefficients):
        return given
    if not isinstance(given, str):
        raise ArgumentError(f"coefficients must be diffode.bridges.Coefficients or a spec, got {given!r:.60}")
    return coefficients.make(given)
