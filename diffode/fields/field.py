r"""Fields, which solvers call. Any one of velocity, noise, denoised or score determines the others on a path.

With :math:`x_t = \alpha x_0 + \sigma\varepsilon`, denoised :math:`D = E[x_0|x_t]`, noise
:math:`\varepsilon = (x - \alpha D)/\sigma`, velocity :math:`v = \alpha' D + \sigma'\varepsilon` and score
:math:`= -\varepsilon/\sigma`, all are linear in x and any one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diffode.errors import ArgumentError, DiffodeError, FieldError
from diffode.fields.counting import Counted
from diffode.paths import Interval, Path
from diffode.paths import get as get_path
from diffode.randomness import Randomness, generator_from, normal
from diffode.statistics import Statistics
from diffode.targets.target import Scalar

if TYPE_CHECKING:
    from diffode.fields.exact import ExactField
    from diffode.sources import Source

Prediction = Literal["velocity", "noise", "denoised", "score"]
Function = Callable[[Tensor, Scalar], Tensor]
#: Largest difference, relative to the largest answer, between answers to one time and to the same time for every row that
#: count as equal. A network turns timesteps of float32 into waves, which keep only about four digits.
SAME_TIMES = 1e-4
#: Least size, relative to x, that differences of answers are held against, so that the rounding of x is none; the velocity of
#: data that noise does not change is nothing but that rounding.
_LEAST_SIZE = 1e-6
#: A row's answers alone and in a batch may differ by the measured rounding of the answers times this factor.
_ROUNDING_FACTOR = 100
#: Relative difference that is always allowed between them; up to it the rounding is not even measured.
_LEAST_DIFFERENCE = 1e-9
#: Largest relative difference ever allowed between them, however coarse the arithmetic of the network.
_LARGEST_DIFFERENCE = 0.05
#: Views that are the same combination of (D, eps) on every path.
_OF_ANY_PATH: dict[Prediction, tuple[float, float]] = {"noise": (0.0, 1.0), "denoised": (1.0, 0.0)}
#: The four views that a field may be given by.
PREDICTIONS: tuple[Prediction, ...] = ("velocity", "noise", "denoised", "score")


def size_of(answers: Tensor, x: Tensor) -> float:
    """The size that differences of answers are held against: that of the largest, or a small part of that of x."""
    largest, around = (float(part.detach().abs().max()) for part in (answers, x))
    return max(largest, _LEAST_SIZE * around, 1e-300)


class Field(Counted):
    """A field known through one callable, with every other view derived from it on a path.

    Make one with :meth:`from_velocity`, :meth:`from_noise`, :meth:`from_denoised` or :meth:`from_score`. ``x`` is
    (B, *shape); ``t`` is a float, or a (B,) tensor with a time for each row; each answer has the shape and dtype of x.

    Attributes:
        dim, shape: number of coordinates of a row and their shape, if known.
        truth: the exact field that this one approximates, if known.
        path: the noising path (given as a path or its spec), or None for a plain ODE, which has a velocity only.
        interval: the times of a plain ODE, on which named grids are laid, if they are known, as those of a bridge.
        prediction: which view the callable gives.
        scale: root mean variance of the data, the unit of errors; 1 unless given. With statistics of the data in its place,
            theirs, and these are the field's ``statistics``.
        statistics: mean and covariance of the data, or None.
        calls: network calls that one evaluation costs; 1 unless given (guidance makes two).
        source: the law of the noise if it is no normal one, else None.
        nfe: network calls since the field was made, of all threads. A run counts its own, see :meth:`counted`.
    """

    def __init__(
        self,
        function: Function,
        prediction: Prediction,
        path: Path | str | None = None,
        *,
        scale: float | Statistics = 1.0,
        calls: int = 1,
        probe: bool = True,
    ):
        if not callable(function):
            raise ArgumentError(f"function must be callable as fn(x, t), got {type(function).__name__}")
        if prediction not in PREDICTIONS:
            raise ArgumentError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        path = get_path(path) if isinstance(path, str) else path
        if path is not None and not isinstance(path, Path):
            raise ArgumentError(f"path must be a diffode path (diffode.paths.get('edm')) or None, got {path!r}")
        if path is None and prediction != "velocity":
            raise ArgumentError(f"a field given by its {prediction} needs path=; only a velocity makes an ODE without one")
        statistics = scale if isinstance(scale, Statistics) else None
        scale = scale.scale if isinstance(scale, Statistics) else scale
        if isinstance(scale, bool | str) or not 0 < float(scale) < math.inf:
            raise ArgumentError(f"scale must be a positive number (root mean variance of the data), got {scale!r}")
        if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
            raise ArgumentError(f"calls must be an integer >= 1 (network calls of a prediction), got {calls!r}")
        self.calls = calls
        self.path = path
        self.prediction: Prediction = prediction
        self.scale = float(scale)
        self.interval: Interval | None = None
        self.dim: int | None = None
        self.shape: tuple[int, ...] | None = None
        self.truth: ExactField | None = None
        self.source: Source | None = None
        self._function = function
        self._statistics = statistics
        self._unprobed = self._untimed = probe

    def __repr__(self) -> str:
        shape = "" if self.shape is None else f", rows of {'x'.join(map(str, self.shape))}"
        return f"{type(self).__name__}({self.prediction} on {self.path.spec if self.path else 'no path'}{shape})"

    @classmethod
    def from_velocity(
        cls, function: Function, path: Path | str | None = None, *, scale: float | Statistics = 1.0, probe: bool = True
    ) -> Field:
        """A field from its velocity dx/dt = fn(x, t); without a path, a plain ODE.

        ``scale`` is the root mean variance of the data. Three small trial calls before the first run check shape, dtype,
        finiteness and that rows do not depend on each other; ``probe=False`` skips them.

        >>> field = Field.from_velocity(lambda x, t: -x)
        >>> field.velocity(torch.ones(1, 2), 0.5)
        tensor([[-1., -1.]])
        """
        return cls(function, "velocity", path, scale=scale, probe=probe)

    @classmethod
    def from_noise(cls, function: Function, path: Path | str, *, scale: float | Statistics = 1.0, probe: bool = True) -> Field:
        """A field from its noise prediction, fn(x, t) = E[eps | x_t = x]."""
        return cls(function, "noise", path, scale=scale, probe=probe)

    @classmethod
    def from_denoised(
        cls, function: Function, path: Path | str, *, scale: float | Statistics = 1.0, probe: bool = True
    ) -> Field:
        """A field from its denoiser, fn(x, t) = E[x_0 | x_t = x]."""
        return cls(function, "denoised", path, scale=scale, probe=probe)

    @classmethod
    def from_score(cls, function: Function, path: Path | str, *, scale: float | Statistics = 1.0, probe: bool = True) -> Field:
        """A field from its score, fn(x, t) = grad log p_t(x)."""
        return cls(function, "score", path, scale=scale, probe=probe)

    def first_noise(self, shape: Sequence[int], *, generator: Randomness) -> Tensor:
        """sigma x_1 at ``path.t_max``, float64, from which runs start in practice; without a source that is ``path.prior``."""
        path = self.require_path("its noise")
        if self.source is None:
            return path.prior(shape, generator=generator)
        noise = self.source.sample(shape[0], math.prod(shape[1:]), generator=generator)
        return path.sigma(path.t_max) * noise.reshape(tuple(shape))

    @property
    def statistics(self) -> Statistics | None:
        """Mean and covariance of the data, if they are known; they can be set, as to what ``estimate_statistics`` found."""
        return self._statistics

    @statistics.setter
    def statistics(self, known: Statistics | None) -> None:
        if known is not None and not isinstance(known, Statistics):
            raise ArgumentError(f"statistics must be diffode.Statistics or None, got {known!r:.60}")
        self._statistics = known

    def velocity(self, x: Tensor, t: Scalar) -> Tensor:
        """dx/dt of the probability-flow ODE."""
        return self.predict("velocity", x, t)

    def noise(self, x: Tensor, t: Scalar) -> Tensor:
        """E[eps | x_t = x]."""
        return self.predict("noise", x, t)

    def denoised(self, x: Tensor, t: Scalar) -> Tensor:
        """E[x_0 | x_t = x]."""
        return self.predict("denoised", x, t)

    def score(self, x: Tensor, t: Scalar) -> Tensor:
        """grad log p_t(x)."""
        return self.predict("score", x, t)

    def predict(self, prediction: Prediction, x: Tensor, t: Scalar) -> Tensor:
        """One of the four views by its name, shaped as x (else FieldError); counts ``calls`` network calls."""
        self.spend(self.calls)
        answer = self._function(x, t)
        # The probe saw two rows once; a shape that changes later and still broadcasts would go unnoticed.
        shape = getattr(answer, "shape", None)
        if shape != x.shape:
            what = f"a {type(answer).__name__}" if shape is None else f"shape {tuple(shape)}"
            raise FieldError(f"the field returned {what} for x of shape {tuple(x.shape)}; they must match")
        if prediction == self.prediction:
            return answer
        path = self.require_path(f"its {prediction}")
        if self.source is not None and "score" in (prediction, self.prediction):
            raise FieldError(
                f"the {prediction} can't be had from the {self.prediction}: with noise from source {self.source.spec!r} the "
                "score is no multiple of the noise; ask for velocity, denoised or noise"
            )
        path.check_times(t)
        of_x, of_native = conversion(path, self.prediction, prediction, t)
        return columns(of_x, x) * x + columns(of_native, x) * answer

    def divergence(self, x: Tensor, t: Scalar) -> Tensor:
        """The divergence of the velocity, shape (B,), by one reverse-mode pass per coordinate: for small dimensions."""
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            velocity = self.predict("velocity", point, t).flatten(1)
            total = x.new_zeros(x.shape[0])
            for i in range(velocity.shape[1]):
                if not velocity.requires_grad:
                    raise FieldError("the field is not differentiable in x: it returned a tensor without a gradient")
                (row,) = torch.autograd.grad(velocity[:, i].sum(), point, retain_graph=True)
                total = total + row.flatten(1)[:, i]
        return total.detach()

    def check_gradient(self, x: Tensor, t: float) -> None:
        """Raise FieldError unless the callable is differentiable in x. Other views always seem so, since x enters them."""
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            answer = self._tried(point, t)
            self._check_tensor(point, answer)
            # A network's weights may want a gradient where x, detached, has none.
            (found,) = torch.autograd.grad(answer.sum(), point, allow_unused=True) if answer.requires_grad else (None,)
        if found is None:
            raise FieldError(
                "the field can't be differentiated: its answer has no gradient in x; remove no_grad, detach and NumPy from it"
            )

    def require_path(self, purpose: str) -> Path:
        """The path, or an error that says how to give one."""
        if self.path is None:
            raise FieldError(f"this field has no path, so {purpose} is unknown; give one: Field.from_velocity(fn, path=...)")
        return self.path

    def pieces(self, start: float, stop: float) -> list[tuple[Field, float, float]]:
        """The way from one time to another in pieces on each of which a field is smooth: the field itself, unless it jumps."""
        return [(self, start, stop)]

    @property
    def laid_on(self) -> Path | None:
        """What named grids are laid on: the path, or the interval of a plain ODE; None if neither is known."""
        return self.interval if self.path is None else self.path

    def check_once(self, x: Tensor, t: float) -> None:
        """Probe the callable before its first run: shape, dtype, finiteness, independence of rows. Not counted."""
        if self._unprobed and x.shape[0]:
            with self.uncounted():
                self._probe(x, t)

    def _probe(self, x: Tensor, t: float) -> None:
        ends = torch.tensor([0, len(x) - 1] if len(x) > 1 else [0], device=x.device)
        pair = x[ends]
        kept = pair.clone()
        with self.rows(ends):
            answer = self._tried(pair, t)
        if not torch.equal(pair, kept):
            raise FieldError("the field writes into its x; work on a copy (x.clone()) or without in-place operations")
        self._check_answer(pair, t, answer)
        if len(pair) == 2 and not torch.equal(pair[0], pair[1]):
            self._check_rows(pair, ends, t, answer)
            # Every check has now been made; a batch of one row can't show whether rows depend on each other.
            self._unprobed = False

    def check_times(self, x: Tensor, t: float, end: float) -> None:
        """Probe the callable before its first run with a time for every row, as adaptive solvers call it. Not counted."""
        if self._untimed and x.shape[0]:
            with self.uncounted():
                self._probe_times(x, t, end)

    def _probe_times(self, x: Tensor, t: float, end: float) -> None:
        # No axis of x is as long as this number of rows, so that times of shape (B,) can't broadcast against coordinates.
        count = next(n for n in range(2, x.ndim + 3) if n not in x.shape[1:])
        rows = x[:1].expand(count, *x.shape[1:]).clone()
        times = torch.lerp(torch.full((), t, dtype=torch.float64), torch.full((), end, dtype=torch.float64),
                           torch.linspace(0, 0.5, count, dtype=torch.float64)).to(x.device)  # fmt: skip
        advice = "make them columns of x's dtype, t.to(x.dtype).reshape(-1, 1), where t is a tensor"
        first = torch.zeros(count, dtype=torch.int64, device=x.device)
        try:
            with self.rows(first):
                answer = self._function(rows, times)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise FieldError(f"the field can't take a time for every row, t of shape (B,): {error}; {advice}") from error
        try:
            self._check_answer(rows, t, answer)
        except FieldError as error:
            raise FieldError(f"asked with a time for every row, t of shape (B,), {error}; {advice}") from error
        with self.rows(first[:1]):
            alone = torch.cat([self._function(rows[i : i + 1], float(times[i])) for i in range(count)])
        size = size_of(alone, rows)
        if float((alone - answer).detach().abs().max()) > SAME_TIMES * size:
            raise FieldError(f"asked with a time for every row, t of shape (B,), the field gives other answers; {advice}")
        self._untimed = False

    def rounding(self, x: Tensor, t: float) -> float:
        """Rounding error of the callable's answers, relative to the largest answer: about 1e-7 for a network in float32.

        It is a second difference over a step too short for a smooth function to bend. Not counted.
        """
        step = 1e-6 * x.norm() / x.numel() ** 0.5
        direction = normal(x.shape, generator=generator_from(0)).to(x)
        with torch.no_grad(), self.uncounted():
            low, middle, high = (self._function(x + k * step * direction, t) for k in (-1, 0, 1))
        return float((high - 2 * middle + low).abs().max() / middle.abs().max().clamp(min=1e-300))

    def same_rows(self, x: Tensor, t: float) -> float:
        """Largest difference between a row's answers alone and in a batch, relative to the largest, that rounding explains."""
        return min(max(_ROUNDING_FACTOR * self.rounding(x, t), _LEAST_DIFFERENCE), _LARGEST_DIFFERENCE)

    @contextmanager
    def rows(self, index: Tensor) -> Iterator[None]:
        """Inside the block, calls are for the rows ``index``, (n,), of a batch: a model takes only these rows' arguments."""
        yield

    def _tried(self, x: Tensor, t: float) -> Tensor:
        try:
            return self._function(x, t)
        except DiffodeError:
            raise
        except Exception as error:  # anyone's function may raise anything
            raise FieldError(
                f"the field can't be called with x of {x.dtype} and shape {tuple(x.shape)} at t={t:g}: "
                f"{type(error).__name__}: {error}; give it rows of its own shape (dim=), and wrap a float32 network as "
                "lambda x, t: net(x.float(), t).to(x.dtype)"
            ) from error

    def _check_tensor(self, x: Tensor, answer: object) -> None:
        if not isinstance(answer, Tensor):
            raise FieldError(f"the field must return a tensor, got {type(answer).__name__}")
        if answer.shape != x.shape:
            raise FieldError(f"the field returned shape {tuple(answer.shape)} for x of shape {tuple(x.shape)}; they must match")

    def _check_answer(self, x: Tensor, t: float, answer: Tensor) -> None:
        self._check_tensor(x, answer)
        if answer.dtype != x.dtype:
            raise FieldError(f"the field returned {answer.dtype} for x of {x.dtype}; cast its answer with .to(x.dtype)")
        if answer.device != x.device:
            raise FieldError(
                f"the field returned a tensor on {answer.device} for x on {x.device}; move its answer with .to(x.device)"
            )
        if not bool(torch.isfinite(answer).all()):
            raise FieldError(f"the field returned non-finite values at t={t:g} for the first rows of x")

    def _check_rows(self, pair: Tensor, ends: Tensor, t: float, answer: Tensor) -> None:
        answers = []
        for i in range(2):
            with self.rows(ends[i : i + 1]):
                answers.append(self._function(pair[i : i + 1], t))
        alone = torch.cat(answers)
        self._check_answer(pair, t, alone)
        size = size_of(answer, pair)
        error = float((alone - answer).detach().abs().max()) / size
        with self.rows(ends):
            allowed = _LEAST_DIFFERENCE if error <= _LEAST_DIFFERENCE else self.same_rows(pair, t)
        if error > allowed:
            raise FieldError(
                f"one row's answer depends on the other rows of the batch (relative change {error:.1e} at t={t:g}); "
                "a network with batch statistics must be in eval mode"
            )


def conversion(path: Path | str, known: Prediction, wanted: Prediction, t: Scalar) -> tuple[Scalar, Scalar]:
    """Coefficients (a, b) such that ``wanted = a x + b known`` at time t.

    x and all views are combinations of (D, eps); a and b solve a 2 x 2 system, whose solution divides by an alpha or sigma
    of zero only where the answer itself is singular, which raises FieldError.
    """
    on = get_path(path)
    alpha, sigma = on.alpha(t), on.sigma(t)
    try:
        (known_d, known_eps), (wanted_d, wanted_eps) = (
            _OF_ANY_PATH.get(view) or _row(on, view, t, sigma) for view in (known, wanted)
        )
        determinant = alpha * known_eps - sigma * known_d
        of_x = (wanted_d * known_eps - wanted_eps * known_d) / determinant
        return of_x, (alpha * wanted_eps - sigma * wanted_d) / determinant
    except ZeroDivisionError:
        raise FieldError(f"the {wanted} can't be had from the {known} at t={t}: alpha={alpha}, sigma={sigma}") from None


def _row(path: Path, view: Prediction, t: Scalar, sigma: Scalar) -> tuple[Scalar, Scalar]:
    """A velocity or score in terms of (D, eps)."""
    return (0.0, -1 / sigma) if view == "score" else (path.alpha_derivative(t), path.sigma_derivative(t))


def columns(value: Scalar, x: Tensor) -> Scalar:
    """A per-row coefficient (B,) shaped and cast to multiply x (B, *shape); a number stays a number."""
    if isinstance(value, Tensor) and value.ndim:
        return value.to(x).reshape((-1,) + (1,) * (x.ndim - 1))
    return value
