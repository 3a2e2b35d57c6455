"""A model called as its library calls it: in its dtype, on its device, with its prediction taken out of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffode.errors import ArgumentError, FieldError


@dataclass(frozen=True)
class Shared:
    """The wrapper that :func:`shared` puts around a value."""

    value: Any


def shared(value: Any) -> Shared:
    """An extra argument of a model without an axis of rows, such as the positions of patches: every call gets all of it.

    >>> from diffode.adapters import from_k_diffusion
    >>> places = torch.zeros(5, 2)
    >>> field = from_k_diffusion(lambda x, sigma, places: 0 * x, extra={"places": shared(places)})
    """
    return Shared(value)


class Model:
    """A network or function of another library; floating-point arguments are cast to its dtype, the answer back to x's.

    Args:
        model: the network, or any callable.
        name: its name in errors.
        extra: keyword arguments that every call gets (class labels, a prompt's embedding). A tensor, also one inside
            dictionaries and lists, has a row for each row of the batch or one row for all, or is wrapped in :func:`shared`.
        channels: whether the answer may have twice as many channels, whose second half, a learned variance, is dropped.
        narrow_times: whether a model of half precision gets times of half precision; else they stay float32.

    A gradient flows only where x requires one: sampling with a network builds no graph. A network in training mode, or without
    loaded weights, is an ArgumentError, an answer that has not as many numbers as x a FieldError.
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
        if extra is not None and not isinstance(extra, Mapping):
            raise ArgumentError(f"extra must be a dictionary of keyword arguments, got {type(extra).__name__}")
        self.model, self.name, self.extra = model, name, dict(extra or {})
        self._channels, self._narrow_times, self._probing = channels, narrow_times, False
        self._rows: Tensor | None = None
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        # A method of a network has the network's dtype and mode as well.
        owner = getattr(model, "__self__", model)
        if isinstance(owner, nn.Module):
            _check_mode(owner, name)
            for tensor in (*owner.parameters(), *owner.buffers()):
                if tensor.is_floating_point():
                    self.dtype, self.device = tensor.dtype, tensor.device
                    break
            if self.device is not None and self.device.type == "meta":
                raise ArgumentError(f"{name} has no weights: its parameters are on the meta device; load them first")

    def __call__(self, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """The prediction for the rows of x, in x's dtype and on its device; the other arguments are the model's own."""
        put = self._put(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            answer = self.model(*map(put, arguments), **{k: put(v) for k, v in keywords.items()}, **self._extra(len(x), put))
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
        """Inside the block calls are trials, whose rows belong to no batch: all get the extra arguments of the first row."""
        before, self._probing = self._probing, True
        try:
            yield
        finally:
            self._probing = before

    @contextmanager
    def rows(self, index: Tensor) -> Iterator[None]:
        """Inside the block calls are for the rows ``index``, (n,), of a batch and get these rows' extra arguments."""
        before = self._rows
        self._rows = index if before is None else before[index.to(before.device)]
        try:
            yield
        finally:
            self._rows = before

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

    def _extra(self, count: int, put: Callable[[Any], Any]) -> dict[str, Any]:
        """The extra arguments for a call with ``count`` rows."""

        def fitted(key: str, value: Any) -> Any:
            if isinstance(value, Shared):
                return put(value.value)
            if isinstance(value, Mapping):
                return {name: fitted(f"{key}[{name!r}]", item) for name, item in value.items()}
            if isinstance(value, list | tuple):
                return type(value)([fitted(f"{key}[{i}]", item) for i, item in enumerate(value)])
            if not isinstance(value, Tensor) or not value.ndim:
                return put(value)
            if len(value) == 1 or (self._probing and len(value)):
                return put(value[:1].expand(count, *value.shape[1:]))
            needed = count if self._rows is None else int(self._rows.max()) + 1
            if len(value) < needed or (self._rows is None and len(value) != needed):
                raise ArgumentError(
                    f"{key} of {self.name} has {len(value)} rows, the batch has {needed}; give one row, or one for each, or "
                    "adapters.shared(value) if it has no axis of rows"
                )
            return put(value if self._rows is None else value[self._rows.to(value.device)])

        return {key: fitted(key, value) for key, value in self.extra.items()}


def row_times(t: float | Tensor, x: Tensor) -> Tensor:
    """A time for every row of x, (B,), in float64."""
    when = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    return when.expand(len(x)) if when.ndim == 0 else when


def single_time(model: Model, ask: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float | Tensor], Tensor]:
    """A function that takes times per row, from ``ask``, which calls ``model`` with one time: it makes a call for each row."""

    def function(x: Tensor, t: float | Tensor) -> Tensor:
        if not isinstance(t, Tensor) or not t.ndim:
            return ask(x, float(t))
        if not len(t) or bool((t == t[0]).all()):
            return ask(x, float(t[0]) if len(t) else 0.0)
        answers = []
        for i, when in enumerate(t):
            with model.rows(torch.tensor([i])):
                answers.append(ask(x[i : i + 1], float(when)))
        return torch.cat(answers)

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
