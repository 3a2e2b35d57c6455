"""What is proved and measured: the equations of a field, likelihoods, bounds, and what a solver really does."""

from diffode.verify.bounds import Bound, Certificate, certificate
from diffode.verify.check import Check
from diffode.verify.contract import contract
from diffode.verify.equations import Points, Residuals, continuity, fokker_planck, typical_points
from diffode.verify.evolution import Evolution, evolve
from diffode.verify.field import FieldReport, verify_field
from diffode.verify.gaussian import GaussianAnalysis, gaussian
from diffode.verify.likelihood import log_likelihood, sample_with_likelihood
from diffode.verify.order import OrderEstimate, fit_order, order, strong_order, weak_order
from diffode.verify.stability import growth

__all__ = [
    "Bound",
    "Certificate",
    "Check",
    "Evolution",
    "FieldReport",
    "GaussianAnalysis",
    "OrderEstimate",
    "Points",
    "Residuals",
    "certificate",
    "continuity",
    "contract",
    "evolve",
    "fit_order",
    "fokker_planck",
    "gaussian",
    "growth",
    "log_likelihood",
    "order",
    "sample_with_likelihood",
    "strong_order",
    "typical_points",
    "verify_field",
    "weak_order",
]
