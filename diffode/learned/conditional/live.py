"""A table that runs while it is written, so that learned solvers can choose the next row from the states."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffode.errors import ArgumentError
from diffode.fields import Field, Prediction, columns
from diffode.tableau import Coefficients, Number, Writer


class LiveWriter(Writer):
    """A :class:`Writer` that follows a field from x (B, *shape) and computes the state of each row when it is added.

    The states are differentiable in x, the coefficients and the times (floats, or (B,) tensors). With ``analytic`` the
    first evaluation is that of standard normal data, x/(alpha sqrt(1 + rho^2)), and costs nothing; so does ``known``, a first
    evaluation that is given. With ``cut`` no gradient passes from one step to the one before. The list ``ends`` holds the
    states at the grid's times.
    """

    def __init__(
        self,
        field: Field,
        prediction: Prediction,
        x: Tensor,
        start_time: float,
        *,
        analytic: bool = False,
        known: Tensor | None = None,
        cut: bool = False,
    ):
        super().__init__(prediction, start_time)
        if analytic and prediction != "noise":
            raise ArgumentError("an analytic first step is written for the noise prediction")
        self.field = field
        self.states = [x]
        self.ends = [x]
        self._cut = cut
        self._evaluations: dict[int, Tensor] = {} if known is None else {0: known}
        if analytic:
            path = field.require_path("an analytic first step")
            self._evaluations[0] = x / (path.alpha(start_time) * (1 + path.rho(start_time) ** 2) ** 0.5)

    def evaluation(self, row: int) -> Tensor:
        """The field's answer at a row; the field is evaluated once for each row."""
        if row not in self._evaluations:
            self._evaluations[row] = self.field.predict(self.prediction, self.states[row], self.rows[row].time)
        return self._evaluations[row]

    def add(self, time: Number, states: Coefficients, evaluations: Coefficients, draws: Coefficients | None = None) -> int:
        """Append a state and return its row."""
        if draws:
            raise ArgumentError("a learned solver draws no noise")
        row = super().add(time, states, evaluations)
        terms = [_times(a, self.states[j]) for j, a in states.items()]
        terms += [_times(b, self.evaluation(j)) for j, b in evaluations.items()]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        self.states.append(total)
        return row

    def output(self, row: int) -> int:
        """Mark a row as the solution at its time."""
        self.ends.append(self.states[row])
        if self._cut:
            self.states[row] = self.states[row].detach()
            self._evaluations = {j: answer.detach() for j, answer in self._evaluations.items()}
        return super().output(row)


def _times(factor: Any, x: Tensor) -> Tensor:
    product: Tensor = columns(factor, x) * x
    return product
