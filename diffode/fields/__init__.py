"""Fields, which solvers call: exact fields of targets, trained networks, and wrapped user callables."""

from diffode.fields.estimated import estimate_statistics
from diffode.fields.exact import ExactField, exact_field
from diffode.fields.field import PREDICTIONS, Field, Prediction, columns, conversion
from diffode.fields.guidance import Guidance, GuidedField, guide
from diffode.fields.model_statistics import estimate_model_statistics
from diffode.fields.rotated import RotatedField
from diffode.fields.skip_tuned import skip_factors, skip_tuned
from diffode.fields.trained import TrainedField, load_trained, trained, trained_names

__all__ = [
    "PREDICTIONS", "ExactField", "Field", "Guidance", "GuidedField", "Prediction", "RotatedField", "TrainedField", "columns",
    "conversion", "estimate_model_statistics", "estimate_statistics", "exact_field", "guide", "load_trained", "skip_factors",
    "skip_tuned", "trained", "trained_names",
]  # fmt: skip
