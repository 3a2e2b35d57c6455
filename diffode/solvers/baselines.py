"""Integrators of other libraries through the same interface: ``torchdiffeq:*``, ``torchsde:*``, ``scipy:*``.

They call the field in the form that users of these libraries write, in time or in log-SNR; the field counts their evaluations
as it counts all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffode import grids
from diffode.errors import ArgumentError, DiffodeError
from diffode.extensions import library
from diffode.fields import Field
from diffode.fields.outward import as_torchsde
from diffode.solvers.adaptive import RowEquation
from diffode.solvers.direct import DirectSolver, Journey
from diffode.solvers.solver import WithNoise, check_choice
from diffode.specs import format_spec, options_of

Slope = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Baseline(DirectSolver):
    """A ``method`` of another library; ``methods`` lists all with their orders."""

    method: str = ""

    methods: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(self.methods))

    @property
    @override
    def spec(self) -> str:
        options = {key: value for key, value in options_of(self).items() if key != "method"}
        return format_spec(f"{self.name}:{self.method}", options)

    @property
    @override
    def order(self) -> int:
        return self.methods[self.method]


@dataclass(frozen=True, kw_only=True)
class ODEBaseline(Baseline):
    """An ODE integrator of another library; the whole batch is one system.

    It steps in the ``variable`` ``time`` or ``log_snr``; with ``auto`` adaptive methods on a path step in log-SNR, where the
    flow is smooth, and all others in time. ``atol`` is in units of the data's scale, that of the field. A run that needs more
    than ``max_evaluations`` fails, for instance with tolerances below the rounding of the state's dtype.
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    max_evaluations: int = 100_000
    variable: Literal["auto", "time", "log_snr"] = "auto"

    fixed: ClassVar[tuple[str, ...]] = ()
    asks_row_times = True

    @property
    @override
    def takes_steps(self) -> bool:
        return self.method in self.fixed

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variable", self.variable, ("auto", "time", "log_snr"))
        if type(self.max_evaluations) is not int or self.max_evaluations < 1:
            raise ArgumentError(f"max_evaluations must be an integer >= 1, got {self.max_evaluations!r}")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise ArgumentError(f"{name} must be a number in (0, 1), got {value!r}")

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        automatic = self.variable == "auto" and (self.method in self.fixed or field.path is None)
        if self.variable == "time" or automatic:
            return self._journey(lambda y, t: field.predict("velocity", y, t), x, times, field.scale)
        field.require_path("its log-SNR")
        equation = RowEquation(field, x, times[0], times[-1])
        start = equation.start(x, 1.0).z
        places = [equation.variable(t) for t in times]

        def slope(z: Tensor, u: float) -> Tensor:
            return equation.slope(z, torch.full((len(z),), u, dtype=torch.float64, device=z.device))

        found = self._journey(slope, start, places, field.scale)
        times_of = [
            torch.full((len(z),), u, dtype=torch.float64, device=z.device) for z, u in zip(found.states, places, strict=True)
        ]
        return replace(found, states=torch.stack([equation.state(z, u) for z, u in zip(found.states, times_of, strict=True)]))

    def _journey(self, slope: Slope, x: Tensor, places: Sequence[float], unit: float) -> Journey:
        """The run; if the library gives up, for instance on non-finite values, the rows are NaN and its message is kept."""
        if not len(x):
            return Journey(x[None].expand(len(places), *x.shape))
        # Different times may be equal in log-SNR by rounding, and then have the same state.
        distinct = list(dict.fromkeys(places))
        if len(distinct) == 1:
            return Journey(x[None].expand(len(places), *x.shape))
        made = itertools.count(1)
        of_the_field: list[Exception] = []

        def counted(z: Tensor, u: float) -> Tensor:
            if next(made) > self.max_evaluations and not self.takes_steps:
                raise ArithmeticError(f"no end after {self.max_evaluations} evaluations; loosen rtol and atol")
            try:
                return slope(z, u)
            except Exception as error:  # anyone's function may raise anything
                of_the_field.append(error)
                raise

        try:
            states = self.integrate(counted, x, distinct, self.atol * unit)
            return Journey(states if len(distinct) == len(places) else states[[distinct.index(place) for place in places]])
        except DiffodeError:
            raise
        except (ArithmeticError, AssertionError, ValueError) as error:
            # States may leave all bounds on the way, but any other error of a field is not the library's.
            if error in of_the_field and not isinstance(error, ArithmeticError):
                raise
            lost = torch.full((len(places), *x.shape), torch.nan, dtype=x.dtype, device=x.device)
            return Journey(lost, message=f"{self.name}'s {self.method} stopped: {error}")

    def integrate(self, slope: Slope, x: Tensor, places: Sequence[float], atol: float) -> Tensor:
        """States (len(places), *x.shape) at these values of the variable, with ``atol`` in the units of x."""
        raise NotImplementedError


class TorchDiffEq(ODEBaseline):
    """A method of torchdiffeq: fixed steps on the grid, or adaptive with rtol and atol between its times."""

    name = "torchdiffeq"
    reference = "R. Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq"
    methods: ClassVar = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4,
               "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2, "dopri5": 5, "dopri8": 8}  # fmt: skip

    fixed = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
    #: Methods with the weights of equal steps, each with its order on other grids.
    of_equal_steps: ClassVar[dict[str, int]] = {"explicit_adams": 2, "implicit_adams": 2}

    @property
    @override
    def convergence_order(self) -> int:
        return self.of_equal_steps.get(self.method, self.order)

    def order_on(self, grid: grids.Times) -> int:
        """The order on a family of grids: the Adams methods have their own on grids that are even in their variable."""
        even = "log_snr" if self.variable == "log_snr" else "time_uniform"
        named = isinstance(grid, str) and grids.spec_of(grid).partition(":")[0] == even
        return self.order if named else self.convergence_order

    @override
    def integrate(self, slope: Slope, x: Tensor, places: Sequence[float], atol: float) -> Tensor:
        odeint = library("torchdiffeq").odeint
        grid = torch.tensor(list(places), dtype=torch.float64, device=x.device)
        # Without step_t adaptive methods step past the last time, where the path may end.
        options = None if self.method in self.fixed else {"step_t": grid[1:]}
        result: Tensor = odeint(
            lambda t, y: slope(y, float(t)), x, grid, rtol=self.rtol, atol=atol, method=self.method, options=options
        )
        return result


class SciPyIVP(ODEBaseline):
    """A method of scipy.integrate.solve_ivp, adaptive with rtol and atol; in float64, on the processor."""

    name = "scipy"
    reference = "SciPy, scipy.integrate.solve_ivp"
    methods: ClassVar = {"RK45": 5, "RK23": 3, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 5}

    @override
    def integrate(self, slope: Slope, x: Tensor, places: Sequence[float], atol: float) -> Tensor:
        from scipy.integrate import solve_ivp

        if x.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                f"scipy:{self.method} leaves torch, so that no gradient comes back to x, which requires grad: use rk_adaptive "
                "or torchdiffeq:dopri5, which keep the graph, or x.detach()"
            )

        def function(t: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            point = torch.from_numpy(np.array(y)).reshape(x.shape).to(x)
            return slope(point, float(t)).detach().cpu().double().numpy().reshape(-1)

        start = x.detach().cpu().double().numpy().reshape(-1)
        # The status of the rows reports an overflow; NumPy's warnings would repeat it.
        with np.errstate(all="ignore"):
            found = solve_ivp(
                function, (places[0], places[-1]), start, self.method, t_eval=list(places), rtol=self.rtol, atol=atol
            )
        if not found.success:
            raise ArithmeticError(found.message)
        return torch.from_numpy(found.y.T.copy()).reshape(len(places), *x.shape).to(x)


@dataclass(frozen=True, kw_only=True)
class TorchSDE(WithNoise, Baseline):
    """A method of torchsde for the reverse SDE family dx = [v - (eta^2 g^2/2) s] dt + eta g dw, with a step per grid interval.

    It computes in float64. Its noise is torchsde's own, and depends on the size of the batch.
    """

    method: str = "euler"

    needs_path = True
    name = "torchsde"
    reference = "Li et al., arXiv 2001.01328; torchsde, https://github.com/google-research/torchsde"
    methods: ClassVar[dict[str, int]] = {"euler": 1, "milstein": 1, "srk": 1}

    @property
    @override
    def nfe_per_step(self) -> int:
        return 9 if self.method == "srk" else 1

    @override
    def follow(self, field: Field, x: Tensor, times: Sequence[float], generator: torch.Generator | None) -> Journey:
        torchsde = library("torchsde")
        path, eta, shape = field.require_path("a reverse SDE"), self.eta, x.shape
        if path.alpha(times[0]) == 0:
            raise ArgumentError(f"solver {self.spec!r} needs some data at the first time: choose one where alpha is not 0")
        if generator is None and self.stochastic:
            raise ArgumentError("torchsde draws its own noise: pass generator= (a seed or torch.Generator)")
        if self.method == "srk" and path.sigma(times[-1]) == 0:
            raise ArgumentError("torchsde:srk evaluates the score at the end of each step: end the grid before sigma = 0")
        seed = 0 if generator is None else int(torch.randint(2**31, (1,), generator=generator, device=generator.device))

        reverse = as_torchsde(field, eta, start=times[0], stop=times[-1])
        reverse.shape, reverse.dtype = tuple(shape[1:]), x.dtype
        if not len(x):
            return Journey(x[None].expand(len(times), *shape))
        states = [x.flatten(1).to(torch.float64)]
        for number, (start, stop) in enumerate(itertools.pairwise(times)):
            span = torch.tensor([times[0] - start, times[0] - stop], dtype=torch.float64, device=x.device)
            noise = torchsde.BrownianInterval(
                t0=span[0], t1=span[1], size=states[-1].shape, dtype=torch.float64, device=x.device,
                entropy=_entropy(seed, number),
                levy_area_approximation="space-time" if self.method == "srk" else "none",
            )  # fmt: skip
            width = float(span[1] - span[0])
            run = torchsde.sdeint(reverse, states[-1], span, bm=noise, method=self.method, dt=width)
            states.append(run[-1])
        return Journey(torch.stack([s.reshape(shape).to(x.dtype) for s in states]))


def _entropy(seed: int, leg: int) -> int:
    """The seed of a leg's Brownian motion, which no leg of another seed has."""
    return int(np.random.SeedSequence([seed, leg]).generate_state(1)[0] >> 1)
