"""An interval of times without alpha and sigma, for plain ODEs such as bridges: named grids in t can be laid on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from diffode.errors import ArgumentError
from diffode.paths.path import LARGEST, Path, Time


@dataclass(frozen=True)
class Interval(Path):
    """The times of a field without a noising path, from ``t_max`` down to ``t_min``; it lays grids, and knows nothing else.

    Raises:
        ArgumentError: for times that do not fall, and from whatever asks for alpha, sigma or a noise level.

    >>> import diffode
    >>> diffode.grids.get("time_uniform", Interval(0.0, 1.0), 2).tolist()
    [1.0, 0.5, 0.0]
    """

    t_min: float = 0.0
    t_max: float = 1.0

    name = "interval"

    @property
    def t_end(self) -> float:
        """No time is too late for a grid; the field itself says where it ends."""
        return LARGEST

    def _none(self, what: str) -> NoReturn:
        raise ArgumentError(
            f"this field has no {what}, since it follows no path alpha x_0 + sigma eps: take a solver in the velocity chart "
            "(euler, heun, rk4, ab:order=3, rk_adaptive) and a grid in t (time_uniform, cosine, or a list of times)"
        )

    def alpha(self, t: Time) -> Time:
        """There is none."""
        self._none("alpha")

    def sigma(self, t: Time) -> Time:
        """There is none."""
        self._none("sigma")

    def alpha_derivative(self, t: Time) -> Time:
        """There is none."""
        self._none("alpha")

    def sigma_derivative(self, t: Time) -> Time:
        """There is none."""
        self._none("sigma")

    def time_from_log_snr(self, log_snr: Time) -> Time:
        """There is none."""
        self._none("log-SNR")

    def log_snr(self, t: Time) -> Time:
        """There is none."""
        self._none("log-SNR")
