"""What a solver really does: its order of convergence, its stability, and its exact law on Gaussians."""

from diffode.verify.gaussian import GaussianAnalysis, gaussian
from diffode.verify.order import OrderEstimate, fit_order, order, strong_order, weak_order
from diffode.verify.stability import growth

__all__ = ["GaussianAnalysis", "OrderEstimate", "fit_order", "gaussian", "growth", "order", "strong_order", "weak_order"]
