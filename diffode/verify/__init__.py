"""What a solver really does: its order of convergence, and its exact law on Gaussians."""

from diffode.verify.gaussian import GaussianAnalysis, gaussian
from diffode.verify.order import OrderEstimate, fit_order, order, strong_order, weak_order

__all__ = ["GaussianAnalysis", "OrderEstimate", "fit_order", "gaussian", "order", "strong_order", "weak_order"]
