"""A model called as its library calls it: in its own dtype, on its own device, its answer taken out of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffode.errors import ArgumentError, FieldError


class Model:
    """A network or function of another library; floating-point arguments are cast to its dtype, the answer back to x's.

    Args:
        model: the network, or any callable.
        name: what to call it in errors.
        extra: keyword arguments that every call gets (class labels, a prompt's embedding); a tensor of one row is repeated for
            every row of the batch.
        channels: whether the answer may have twice as many channels, the first half being the prediction (a learned variance).
        narrow_times: whether times are cast to half precision with a model of that precision; else they stay float32.

    Gradients flow only where x wants one: sampling with a network builds no graph.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        name: str,
        extra: Mapping[str, Any] | None = None,
        *,
        channels: bool = False,
        narrow_times: bool = True,
    ):
        if not callable(model):
            raise ArgumentError(f"{name} must be a network or a function, got {type(model).__name__}")
        self.model, self.name, self.extra = model, name, dict(extra or {})
        self._channels, self._narrow_times, self._probing = channels, narrow_times, False
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        if isinstance(model, nn.Module):
            _check_mode(model, name)
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    self.dtype, self.device = tensor.dtype, tensor.device
                    break
            if self.device is not None and self.device.type == "meta":
                raise ArgumentError(f"{name} has no weights: its parameters are on the meta device; load them first")

    def __call__(self, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """The answer for the rows of x, in x's dtype and on its device; the other arguments are as the model wants them."""
        put = self._put(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            answer = self.model(*map(put, arguments), **{k: put(v) for k, v in {**keywords, **self._extra(x)}.items()})
        found = _tensor(answer, self.name)
        if self._channels and found.ndim == x.ndim and found.shape[1] == 2 * x.shape[1]:
            found = found[:, : x.shape[1]]
        if found.shape != x.shape and found.numel() != x.numel():
            raise FieldError(
                f"{self.name} returned shape {tuple(found.shape)} for x of shape {tuple(x.shape)}; they must match"
            )
        return found.to(device=x.device, dtype=x.dtype)

    @contextmanager
    def probing(self) -> Iterator[None]:
        """While it is probed with other numbers of rows than it is used with, extra arguments are repeated or cut to fit."""
        before, self._probing = self._probing, True
        try:
            yield
        finally:
            self._probing = before

    def _put(self, x: Tensor) -> Callable[[Any], Any]:
        device, dtype = self.device or x.device, self.dtype or x.dtype
        for_times = dtype if self._narrow_times or dtype == torch.float64 else torch.float32

        def put(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if not value.is_floating_point():
                return value.to(device)
            return value.to(device=device, dtype=for_times if value.ndim < 2 else dtype)

        return put

    def _extra(self, x: Tensor) -> dict[str, Any]:
        rows, found = len(x), {}
        for key, value in self.extra.items():
            if isinstance(value, Tensor) and value.ndim and len(value) != rows:
                if len(value) != 1 and not self._probing:
                    raise ArgumentError(
                        f"{key} of {self.name} has {len(value)} rows, the batch has {rows}; give one row, or one for each"
                    )
                value = value[torch.arange(rows, device=value.device) % len(value)]
            found[key] = value
        return found


def row_times(t: float | Tensor, x: Tensor) -> Tensor:
    """A time for every row, (B,), in the dtype that keeps its digits."""
    when = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    return when.expand(len(x)) if when.ndim == 0 else when


def single_time(ask: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float | Tensor], Tensor]:
    """A function of rows and one time for all of them, asked row by row where the times differ."""

    def function(x: Tensor, t: float | Tensor) -> Tensor:
        if not isinstance(t, Tensor) or not t.ndim:
            return ask(x, float(t))
        if not len(t) or bool((t == t[0]).all()):
            return ask(x, float(t[0]) if len(t) else 0.0)
        return torch.cat([ask(row[None], float(when)) for row, when in zip(x, t, strict=True)])

    return function


def _tensor(answer: Any, name: str) -> Tensor:
    """The prediction in what a model returns: a tensor, the first of a tuple, or ``.sample`` or ``.mean`` of an object."""
    found = answer[0] if isinstance(answer, tuple | list) and answer else answer
    for attribute in ("sample", "mean"):
        if not isinstance(found, Tensor):
            found = getattr(found, attribute, found)
    if not isinstance(found, Tensor):
        raise FieldError(f"{name} returned {type(answer).__name__}; expected a tensor, or an object with .sample or .mean")
    return found


def _check_mode(model: nn.Module, name: str) -> None:
    noisy = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.modules.batchnorm._BatchNorm)
    for part in model.modules():
        if part.training and isinstance(part, noisy) and getattr(part, "p", 1.0) > 0:
            raise ArgumentError(f"{name} is in training mode with {type(part).__name__}: call {name}.eval() first")
