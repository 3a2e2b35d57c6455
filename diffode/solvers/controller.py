r"""Controllers of adaptive steps: the next step from the error ratios of the last attempts.

With error ratios E = error/tolerance of this attempt and of the accepted ones before it, and k the power of the step with which
an error ratio grows, the next step is this one times :math:`s\,E_n^{-b_1/k} E_{n-1}^{-b_2/k} E_{n-2}^{-b_3/k}`, within limits;
s is the ``safety``. One coefficient makes an integral (I) controller, two a PI and three a PID controller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from diffode.errors import ArgumentError

#: Coefficients by name; those of PID are Kennedy and Carpenter's, of PI Gustafsson's as Hairer, Norsett and Wanner have them.
NAMED = {"i": (1.0,), "pi": (0.7, -0.4), "pid": (0.58, -0.21, 0.1)}
#: Least error ratio that a step is chosen by, against divisions by 0.
_LEAST_RATIO = 1e-10
#: Least error ratio that is remembered: a step much better than asked for says little of the next.
_LEAST_PAST = 1e-4


@dataclass(frozen=True)
class Controller:
    """A rule for the next step.

    Where the error ratio is c h^k with a constant c, steps settle at the error ratio :meth:`resting`. Coefficients with which
    they would not are refused.

    Attributes:
        coefficients: b_1, and perhaps b_2 and b_3.
        safety: the factor s, at most 1.
        least, most: limits of the ratio of a step to that before it.
        again: largest ratio of the step of a new attempt to that of a rejected one.

    Source: Hairer, Norsett, Wanner, II.4; Gustafsson 1991; Soderlind 2003; Kennedy and Carpenter 2003, section 3.

    >>> Controller((0.7, -0.4)).text, Controller((0.9,), most=5.0).text
    ('pi', '0.9/most=5.0')
    """

    coefficients: tuple[float, ...]
    safety: float = 0.9
    least: float = 0.2
    most: float = 10.0
    again: float = 0.9

    def __post_init__(self) -> None:
        values = [*self.coefficients, self.safety, self.least, self.most, self.again]
        if not all(_number(value) for value in values) or not 1 <= len(self.coefficients) <= 3:
            raise ArgumentError(f"a controller must have one to three coefficients and limits that are numbers, got {self!r}")
        if not (0 < self.safety <= 1 and 0 < self.least < 1 < self.most and 0 < self.again < 1):
            raise ArgumentError(
                "a controller must have 0 < safety <= 1, 0 < least < 1 < most and 0 < again < 1, got "
                f"safety={self.safety!r}, least={self.least!r}, most={self.most!r}, again={self.again!r}"
            )
        if not self.damping < 1:
            raise ArgumentError(
                f"coefficients {'/'.join(map(str, self.coefficients))} of a controller must let steps settle: a deviation "
                f"grows by {self.damping:.3g} a step; one that is alone must lie in (0, 2)"
            )

    @property
    def text(self) -> str:
        """Its text in a spec: a name or coefficients, and what else is not as by default."""
        name = next((name for name, known in NAMED.items() if known == self.coefficients), None)
        parts = [name] if name else [repr(float(value)) for value in self.coefficients]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            parts += [f"{field.name}={float(value)!r}"] if value != field.default else []
        return "/".join(parts)

    @property
    def damping(self) -> float:
        """The factor by which a deviation from the resting step shrinks with each step in the end, where E = c h^k.

        The logarithms x of the steps obey x_(n+1) = x_n - b_1 x_n - b_2 x_(n-1) - b_3 x_(n-2) + constant: the spectral radius.
        """
        first, *others = self.coefficients
        return float(np.abs(np.roots([1.0, first - 1.0, *others])).max())

    def resting(self, power: int) -> float:
        """The error ratio E of steps that stay as they are: s^(k/sum b), where E = c h^k."""
        return float(self.safety ** (power / sum(self.coefficients)))

    def fresh(self, count: int, device: torch.device) -> Tensor:
        """What is remembered of rows (count, ...) before their first step: error ratios of 1, float64."""
        return torch.ones(count, len(self.coefficients) - 1, dtype=torch.float64, device=device)

    def factor(self, ratio: Tensor, past: Tensor, power: int) -> Tensor:
        """The ratio of the next step to this one, (n,), for error ratios (n,) and what is remembered (n, ...)."""
        first, *others = self.coefficients
        change = self.safety * ratio.clamp(min=_LEAST_RATIO) ** -(first / power)
        for coefficient, earlier in zip(others, past.unbind(1), strict=True):
            change = change * earlier ** -(coefficient / power)
        change = change.clamp(self.least, self.most)
        return torch.where(ratio <= 1, change, change.clamp(max=self.again))

    def remembered(self, ratio: Tensor, past: Tensor) -> Tensor:
        """What is remembered after an attempt: the error ratios of accepted steps, the latest first."""
        accepted = torch.cat([ratio.clamp(_LEAST_PAST, 1.0)[:, None], past], 1)[:, : past.shape[1]]
        return torch.where((ratio <= 1)[:, None], accepted, past)


def controller_of(value: object) -> Controller:
    """The controller of a text in a spec, of one number, or the controller itself.

    >>> controller_of("pid/safety=0.8").coefficients, controller_of("0.6/-0.2").coefficients
    ((0.58, -0.21, 0.1), (0.6, -0.2))
    """
    if isinstance(value, Controller):
        if type(value) is not Controller:
            # A solver keeps the text of its controller, which would lose what a class derived from it does otherwise.
            raise ArgumentError(
                f"controller must be a Controller itself, not a {type(value).__name__}, which has no text in a spec: give "
                "coefficients, or write a solver of your own"
            )
        return value
    if _number(value):
        return Controller((float(value),))  # type: ignore[arg-type]
    options = {field.name for field in fields(Controller)[1:]}
    if isinstance(value, str):
        first, *others = value.split("/")
        parts = [*map(repr, NAMED[first]), *others] if first in NAMED else value.split("/")
        numbers = [part for part in parts if "=" not in part]
        given = dict(part.split("=", 1) for part in parts if "=" in part)
        try:
            if given.keys() <= options and len(numbers) + len(given) == len(parts):
                return Controller(tuple(map(float, numbers)), **{key: float(text) for key, text in given.items()})
        except ValueError as error:
            if isinstance(error, ArgumentError):
                raise
    raise ArgumentError(
        f"controller must be one of {', '.join(NAMED)}, or coefficients such as 0.7/-0.4, perhaps with "
        f"{', '.join(f'/{name}=' for name in sorted(options))}, got {value!r}"
    )


def _number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
