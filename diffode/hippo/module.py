"""The memory of a signal as a layer of PyTorch: batches, gradients, irregular times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffode.errors import ArgumentError, NumericalError
from diffode.hippo import holds
from diffode.hippo.arguments import equal_steps, number_of, times_of
from diffode.hippo.holds import Hold, Polynomial, Rule, hold_of
from diffode.hippo.measure import Measure
from diffode.hippo.registry import get
from diffode.input_files import shown

#: Largest room of the matrices of all steps, in bytes.
_MOST_BYTES = 2**32
#: Options of measures that are a unit of time.
_UNITS = ("window", "scale")
#: Products of states that are held at once in a derivative.
_AT_ONCE = 2**24


class Hippo(nn.Module):
    """A memory of every channel of a batch of signals: (batch, L, channels) to (batch, L, channels, N).

    Derivatives pass to the signals, and to the window if it is learned. Coefficients are made in float64; states have the
    signals' dtype.

    Args:
        order: N.
        measure: the spec of a measure, or a Measure.
        hold: the rule for steps, as for ``Memory.run``.
        step: time between samples where a call gives no times, from time 0 on.
        learn_window: whether the window of ``legt`` and ``fout``, or the scale of ``lagt``, is a parameter: ``layer.window``.

    Raises:
        ArgumentError: if an argument is wrong, or a window is to be learned that is not there (``legs`` has no unit of time).

    >>> import torch
    >>> layer = Hippo(8, "legt:window=2")
    >>> layer(torch.ones(3, 100, 2)).shape
    torch.Size([3, 100, 2, 8])
    """

    def __init__(
        self,
        order: int,
        measure: str | Measure = "legs",
        hold: str | Hold = "zoh",
        *,
        step: float = 1.0,
        learn_window: bool = False,
    ):
        super().__init__()
        self.memory = get(measure, order)
        from_spec = self.memory.measure
        self.hold = hold_of(hold)
        self.step = number_of(step, "step", 0.0)
        self.window: nn.Parameter | None = None
        if learn_window:
            unit = next((key for key in _UNITS if key in vars(from_spec)), None)
            if unit is None:
                raise ArgumentError(f"learn_window must be False: measure {from_spec.name!r} has no window or scale to learn")
            if not isinstance(self.hold, Polynomial | Rule):
                raise ArgumentError(
                    f"learn_window must be False with hold {self.hold.spec!r}; take zoh, foh, cubic or trapezoid"
                )
            self.window = nn.Parameter(torch.tensor(getattr(from_spec, unit)))
        self._kept: tuple[Any, Tensor, Tensor] | None = None

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        learned = ", learn_window=True" if self.window is not None else ""
        return f"{self.memory.order}, {self.memory.measure.spec!r}, {self.hold.spec!r}{learned}"

    def forward(self, u: Tensor, times: Any = None) -> Tensor:
        """The memories at all times.

        Args:
            u: signals (batch, L, channels), float32 or float64, finite.
            times: times of the samples, (L,), that rise, for all of the batch; by default multiples of ``step``.

        Returns:
            (batch, L, channels, N).
        """
        self._check(u)
        batch, length, channels = u.shape
        held = times.detach().cpu().numpy() if isinstance(times, Tensor) else times
        own = times_of(self.step if held is None else held, length)
        rows = u.transpose(0, 1).reshape(length, batch * channels)
        measure, order = self.memory.measure, self.memory.order
        steps = measure.steps(own)
        if measure.logarithmic and own[0] == 0:
            start = rows[0, :, None] * torch.eye(order, dtype=u.dtype, device=u.device)[0]
        else:
            start = rows.new_zeros(batch * channels, order)
        if length == 1:
            states = start[None]
        else:
            # Steps that are alike but for the rounding of times are one.
            if not measure.logarithmic and equal_steps(steps, float(np.abs(own).max())):
                steps = np.full(1, (own[-1] - own[0]) / len(steps))
            distinct, which = np.unique(steps, return_inverse=True)
            moved, inputs = self._cells(distinct, u)
            index = None if len(distinct) == 1 else torch.from_numpy(which)
            with torch.autocast(u.device.type, enabled=False):
                states = _scan(moved, inputs, self._pieces(rows, own), start, index)
        if not bool(torch.isfinite(states.detach().sum())):
            raise NumericalError(
                f"the memory is not finite: it is too large for {u.dtype}; take a shorter step or another hold"
            )
        return states.reshape(length, batch, channels, order).transpose(0, 1)

    def _check(self, u: Any) -> None:
        if not isinstance(u, Tensor) or u.dtype not in (torch.float32, torch.float64):
            what = f"a tensor of {u.dtype}" if isinstance(u, Tensor) else shown(u)
            raise ArgumentError(f"u must be a float32 or float64 tensor (batch, L, channels), got {what}")
        if u.ndim != 3 or not u.numel():
            raise ArgumentError(f"u must have shape (batch, L, channels), none of them 0, got {tuple(u.shape)}")
        if not bool(torch.isfinite(u).all()):
            raise ArgumentError("u must be finite; fill or leave out what is missing (irregular times are free)")

    def _pieces(self, rows: Tensor, times: Any) -> Tensor:
        """The polynomials of the steps, (L - 1, rows, degree + 1)."""
        degree = self.hold.degree
        if degree == 0:
            return rows[:-1, :, None]
        if degree == 1:
            return torch.stack([rows[:-1], rows.diff(dim=0)], dim=-1)
        index, weights = (torch.from_numpy(part).to(rows.device) for part in holds.weights(times, degree))
        return torch.einsum("lqn,lnr->lrq", weights.to(rows.dtype), rows[index])

    def _cells(self, steps: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """M and G of distinct steps: (steps, N, N) and (steps, N, degree + 1)."""
        order = self.memory.order
        if len(steps) * order**2 * like.element_size() > _MOST_BYTES:
            raise ArgumentError(
                f"the matrices of {len(steps)} steps at order {order} have no room; take equal steps, a lower order or "
                "Memory.states, which holds a few of them at a time"
            )
        if self.window is not None:
            return self._learned_cells(torch.from_numpy(steps).to(like.device), like.dtype)
        key = (steps.tobytes(), like.dtype, like.device)
        if self._kept is None or self._kept[0] != key:
            cells = self.hold.cells(self.memory.measure, order, steps)
            moved, inputs = (torch.from_numpy(part).to(like) for part in cells)
            self._kept = (key, moved, inputs)
        return self._kept[1], self._kept[2]

    def _learned_cells(self, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same as functions of the window: c' = (A c + B u)/w with A and B of window 1."""
        window: Any = self.window
        size = float(window.detach())
        if not 0 < size < math.inf:
            raise ArgumentError(f"window must stay positive and finite, got {size:g}; learn it with a smaller rate")
        measure, order = self.memory.measure, self.memory.order
        unit = next(getattr(measure, key) for key in _UNITS if key in vars(measure))
        a, b = (torch.from_numpy(unit * part).to(steps.device) for part in (self.memory.A, self.memory.B))
        x = steps / window.double()
        if isinstance(self.hold, Rule):
            theta, one = self.hold.theta, torch.eye(order, dtype=torch.float64, device=x.device)
            scaled = x[:, None, None] * a
            sides = torch.cat([one + (1 - theta) * scaled, x[:, None, None] * b[:, None]], dim=-1)
            found = torch.linalg.solve(one - theta * scaled, sides)
            moved, held = found[..., :order], found[..., order:]
            return moved.to(dtype), torch.cat([held, theta * held], dim=-1).to(dtype)
        degree = self.hold.degree
        whole = x.new_zeros(len(x), order + degree + 1, order + degree + 1)
        whole[:, :order, :order] = x[:, None, None] * a
        whole[:, :order, order] = x[:, None] * b
        whole[:, order:, order:] = torch.diag_embed(x.new_ones(degree), offset=1)
        grown = torch.linalg.matrix_exp(whole)
        factorials = x.new_tensor([math.factorial(i) for i in range(degree + 1)])
        return grown[:, :order, :order].to(dtype), (grown[:, :order, order:] * factorials).to(dtype)


def _scan(moved: Tensor, inputs: Tensor, a: Tensor, start: Tensor, index: Tensor | None) -> Tensor:
    """See :class:`_Scan`."""
    states: Tensor = _Scan.apply(moved, inputs, a, start, index)  # type: ignore[no-untyped-call]
    return states


class _Scan(torch.autograd.Function):
    """States c_{k+1} = M c_k + G a_k, (L, rows, N), and their derivatives by the scan backwards with M transposed.

    A loop in place: autograd's graph of a loop takes several times as long, and its memory.
    """

    @staticmethod
    def forward(ctx: Any, moved: Tensor, inputs: Tensor, a: Tensor, start: Tensor, index: Tensor | None) -> Tensor:
        length, rows = len(a), len(start)
        states = start.new_empty(length + 1, *start.shape)
        states[0] = start
        if index is None:
            torch.matmul(a.reshape(length * rows, -1), inputs[0].T, out=states[1:].view(length * rows, -1))
        else:
            torch.bmm(a, inputs.index_select(0, index.to(a.device)).transpose(1, 2), out=states[1:])
        across, which = moved.transpose(1, 2), None if index is None else index.tolist()
        now = states[0]
        for k, after in enumerate(states[1:].unbind(0)):
            now = after.addmm_(now, across[0 if which is None else which[k]])
        ctx.save_for_backward(moved, inputs, a, states, index)
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moved, inputs, a, states, index = ctx.saved_tensors
        length, rows, order = len(a), grad.shape[1], grad.shape[2]
        which = None if index is None else index.tolist()
        late = grad.contiguous().clone()
        each = late.unbind(0)
        for k in range(length - 1, -1, -1):
            each[k].addmm_(each[k + 1], moved[0 if which is None else which[k]])
        adjoint, before = late[1:], states[:-1]
        of_moved = of_inputs = of_a = None
        if index is None:
            flat = adjoint.reshape(length * rows, order)
            if ctx.needs_input_grad[0]:
                of_moved = (flat.T @ before.reshape(length * rows, order))[None]
            if ctx.needs_input_grad[1]:
                of_inputs = (flat.T @ a.reshape(length * rows, -1))[None]
            if ctx.needs_input_grad[2]:
                of_a = adjoint @ inputs[0]
        else:
            place = index.to(a.device)
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                of_moved, of_inputs = torch.zeros_like(moved), torch.zeros_like(inputs)
                many = max(1, _AT_ONCE // order**2)
                for k in range(0, length, many):
                    part = slice(k, k + many)
                    across = adjoint[part].transpose(1, 2)
                    of_moved.index_add_(0, place[part], across @ before[part])
                    of_inputs.index_add_(0, place[part], across @ a[part])
            if ctx.needs_input_grad[2]:
                of_a = torch.bmm(adjoint, inputs.index_select(0, place))
        return of_moved, of_inputs, of_a, late[0], None
