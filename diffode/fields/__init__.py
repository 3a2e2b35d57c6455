"""What a solver calls: exact fields of targets, and wrapped user callables."""

from diffode.fields.exact import ExactField, exact_field
from diffode.fields.field import PREDICTIONS, Field, Prediction, columns, conversion

__all__ = ["PREDICTIONS", "ExactField", "Field", "Prediction", "columns", "conversion", "exact_field"]
