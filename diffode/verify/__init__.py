"""Proofs and measurements: the equations of a field, likelihoods, bounds, and the orders and laws of solvers.

``field`` verifies fields, ``sampler`` anyone's samplers and ``maps`` anyone's flow maps, whose checks make a report
(`report.py`); ``theory`` holds orders, stability and bounds. `diagnosis.py` and `verdict.py` hold nothing but former names.
"""

from typing import Any

from diffode.numerics.orders import OrderEstimate, fit_order
from diffode.verify.field.contract import contract
from diffode.verify.field.diagnosis import check_field
from diffode.verify.field.equations import Points, Residuals, continuity, fokker_planck, typical_points
from diffode.verify.field.evolution import Evolution, evolve
from diffode.verify.field.likelihood import log_likelihood, sample_with_likelihood
from diffode.verify.field.verification import verify_field
from diffode.verify.maps.verdict import check_map
from diffode.verify.report import Check, Report, former_name
from diffode.verify.sampler.verdict import check_sampler
from diffode.verify.theory.bounds import Bound, Certificate, certificate
from diffode.verify.theory.gaussian_law import GaussianAnalysis, gaussian
from diffode.verify.theory.guided_law import GuidedLaw, guided_law
from diffode.verify.theory.orders import order, strong_order, weak_order
from diffode.verify.theory.stability import growth

__all__ = [
    "Bound",
    "Certificate",
    "Check",
    "Evolution",
    "GaussianAnalysis",
    "GuidedLaw",
    "OrderEstimate",
    "Points",
    "Report",
    "Residuals",
    "certificate",
    "check_field",
    "check_map",
    "check_sampler",
    "continuity",
    "contract",
    "evolve",
    "fit_order",
    "fokker_planck",
    "gaussian",
    "growth",
    "guided_law",
    "log_likelihood",
    "order",
    "sample_with_likelihood",
    "strong_order",
    "typical_points",
    "verify_field",
    "weak_order",
]


def __getattr__(name: str) -> Any:
    if name == "FieldReport":
        former_name("diffode.verify.FieldReport", "diffode.verify.Report")
        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
