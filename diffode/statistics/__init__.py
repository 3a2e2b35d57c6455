"""What is known of the data before a run, their mean and covariance: from a target, from samples, or from a file.

From a field alone they are estimated by ``diffode.fields.estimate_statistics``.
"""

from diffode.statistics.bases import Axes, Basis, Cosines, Fourier, Vectors
from diffode.statistics.known import KINDS, Statistics
from diffode.statistics.of_model import ModelStatistics

__all__ = ["KINDS", "Axes", "Basis", "Cosines", "Fourier", "ModelStatistics", "Statistics", "Vectors"]
