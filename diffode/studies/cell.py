"""One run of a study, and its result."""

from __future__ import annotations

from dataclasses import dataclass

from diffode.metrics import Measurement


@dataclass(frozen=True, order=True)
class Cell:
    """One run to make and measure. These fields, the code and the target's parameters decide its result alone.

    ``target`` and ``metrics`` are names or specs, ``path``, ``grid`` and ``solver`` specs; ``nfe`` is a budget of network
    calls, ``points`` the number of starts, ``tolerance`` that of the reference.
    """

    target: str
    path: str
    seed: int
    grid: str
    solver: str
    nfe: int
    points: int
    dtype: str
    metrics: tuple[str, ...]
    tolerance: float

    @property
    def method(self) -> str:
        """The solver, with its grid unless that is ``karras``."""
        return self.solver if self.grid == "karras" else f"{self.solver} @ {self.grid}"


@dataclass(frozen=True)
class Result:
    """The result of one cell.

    ``key`` is the key of the cell (``cell_keys`` in `versions.py`) when it was computed.
    ``status`` is ``"ok"`` or ``"failed"`` with a ``reason``; ``nfe_counted`` is the field's count of network calls,
    ``seconds`` the wall time of the run, ``scale`` the root mean variance of the target.
    """

    key: str
    cell: Cell
    status: str
    reason: str = ""
    nfe_counted: int | None = None
    steps: int | None = None
    seconds: float | None = None
    scale: float | None = None
    threads: int = 1
    environment: dict[str, str] | None = None
    measurements: tuple[Measurement, ...] = ()

    def value(self, metric: str) -> float | None:
        """The value of a metric, or None if it was not measured."""
        return next((m.value for m in self.measurements if m.name == metric), None)
