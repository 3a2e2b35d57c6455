"""``guide``: a field made of a conditional and an unconditional one, which solvers call like any other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from diffode.errors import ArgumentError, FieldError, UnknownNameError
from diffode.fields.exact import ExactField, mixture_of
from diffode.fields.field import Field, Prediction, columns, conversion
from diffode.fields.guidance.rules import Linear, Projected, Rescaled, Rule
from diffode.fields.guidance.weights import Given, GridWeight, Weight, number
from diffode.randomness import Randomness
from diffode.targets.target import Scalar

Kind = Literal["cfg", "rescaled", "projected", "auto", "cfg++"]
#: The blur of autoguidance, in units of the data's scale, unless it or a weaker field is given.
BLUR = 0.5
#: The kinds of guidance: their rule, and the options that they take beside the interval.
KINDS: dict[str, tuple[type[Rule], tuple[str, ...]]] = {
    "cfg": (Linear, ()),
    "rescaled": (Rescaled, ("phi", "view")),
    "projected": (Projected, ("eta", "norm")),
    "auto": (Linear, ("blur",)),
    "cfg++": (Linear, ("grid",)),
}


def guide(
    conditional: Field,
    unconditional: Field | None = None,
    weight: Given = 1.0,
    *,
    kind: Kind = "cfg",
    interval: tuple[float, float] | None = None,
    phi: float | None = None,
    view: Prediction | None = None,
    eta: float | None = None,
    norm: float | None = None,
    blur: float | None = None,
    grid: Sequence[float] | Tensor | None = None,
) -> GuidedField:
    """A guided field. Weight 0 is the unconditional field, weight 1 the conditional one: D = D_u + weight (D_c - D_u).

    Libraries call this weight the guidance scale; in Ho and Salimans (arXiv 2207.12598) it is w + 1.

    Args:
        conditional: the field of p(x|c).
        unconditional: the field of p(x); that of another label for a negative one; a weaker field for autoguidance.
        weight: a number; a function of the noise level rho = sigma/alpha; or a table ``{level: weight}``, linear in the
            logarithm of the level.
        kind: ``"cfg"``; ``"rescaled"`` with ``phi`` and ``view`` (:class:`Rescaled`); ``"projected"`` with ``eta`` and ``norm``
            (:class:`Projected`); ``"auto"``, guidance by a weaker field: one that is given, or else the exact field of
            the conditional data blurred by ``blur`` times their scale (0.5 unless given); ``"cfg++"`` with ``grid``, the times
            of the run that is made (:class:`GridWeight`).
        interval: two noise levels, between which guidance is in force; outside the weight is 1 (arXiv 2404.07724).

    Returns:
        A :class:`GuidedField`. An evaluation counts the calls of the networks that it makes: both, or only one where the weight
        is 0 or 1 (in all rows, if each has its own time). A budget of a run takes every evaluation for both, unless the weight
        is 0 or 1 throughout.

    Raises:
        ArgumentError: for fields on different paths, with different sources or dimensions, options of another kind, and
            numbers out of range.

    >>> import diffode
    >>> ring = diffode.targets.get("ring8")
    >>> one, all_of_them = (diffode.exact_field(law, "edm") for law in (ring.given("three"), ring))
    >>> field = guide(one, all_of_them, 7.5)
    >>> diffode.solve(field, field.prior(3, generator=0), solver="dpmpp:order=2", nfe=16).nfe
    16
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of guidance", str(kind), list(KINDS))
    rule, allowed = KINDS[kind]
    options = {"phi": phi, "view": view, "eta": eta, "norm": norm, "blur": blur, "grid": grid}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in allowed:
            owner = next(other for other, (_, names) in KINDS.items() if name in names)
            raise ArgumentError(f"{name} goes with kind={owner!r}, not with kind={kind!r}: leave it out")
    if not isinstance(conditional, Field):
        raise ArgumentError(f"conditional must be a diffode field, got {type(conditional).__name__}")
    if kind == "auto" and unconditional is None:
        given.setdefault("blur", BLUR)
    if "blur" in given:
        if unconditional is not None:
            raise ArgumentError("give an unconditional field or blur=, not both: blur makes the weaker field itself")
        unconditional = blurred(conditional, given.pop("blur"))
    if not isinstance(unconditional, Field):
        raise ArgumentError(f"unconditional must be a diffode field, got {type(unconditional).__name__}")
    _check_pair(conditional, unconditional)
    if kind == "cfg++":
        return GuidedField(conditional, unconditional, Linear(), _grid_weight(conditional, weight, interval, grid))
    low, high = (0.0, float("inf")) if interval is None else _ends(interval)
    return GuidedField(conditional, unconditional, rule(**given), Weight(weight, low, high))


def blurred(field: Field, blur: float) -> ExactField:
    """The exact field of a field's data plus normal noise of ``blur`` times their scale; ArgumentError unless it is exact."""
    width = number(blur, "blur", 1e-6, 1e6)
    mixture = mixture_of(field)
    if not isinstance(field, ExactField) or mixture is None:
        raise ArgumentError("blur needs the exact field of a mixture with normal noise; give a weaker field as unconditional")
    return ExactField(mixture.blurred(width * field.scale), field.path)


def _ends(interval: Any) -> tuple[float, float]:
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise ArgumentError(f"interval must be two noise levels (low, high), got {interval!r:.60}")
    return interval[0], interval[1]


def _grid_weight(field: Field, factor: Any, interval: Any, grid: Sequence[float] | Tensor | None) -> GridWeight:
    path = field.require_path("cfg++")
    if interval is not None:
        raise ArgumentError("kind='cfg++' takes no interval: its weights are those of the steps of its grid")
    if grid is None:
        raise ArgumentError("kind='cfg++' needs grid=, the times of the run, since its weights depend on the steps")
    try:
        times = torch.as_tensor(grid, dtype=torch.float64).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"grid of cfg++ must be the times of the run, such as diffode.grids.get('karras', path, steps), got {grid!r:.60}"
        ) from error
    for time in times:
        path.check_times(time, "grid")
    return GridWeight.on([path.rho(time) for time in times], number(factor, "weight (lambda) of cfg++", 0.0, 1.0))


def _check_pair(conditional: Field, unconditional: Field) -> None:
    if (conditional.path and conditional.path.spec) != (unconditional.path and unconditional.path.spec):
        raise ArgumentError("both fields must be on the same path: guidance mixes their predictions at the same x and t")
    if conditional.dim is not None and unconditional.dim is not None and conditional.dim != unconditional.dim:
        raise ArgumentError(f"both fields must have as many coordinates, got {conditional.dim} and {unconditional.dim}")
    noises = [None if field.source is None else field.source.content() for field in (conditional, unconditional)]
    if noises[0] != noises[1]:
        raise ArgumentError("both fields must have the same source: their noise is that of one start")


def _answer(field: Field, view: Prediction, x: Tensor, t: Scalar) -> tuple[Tensor, int]:
    """A field's view, and the network calls that it took, which are not always the same where it is guided itself."""
    if not isinstance(field, GuidedField):
        return field.predict(view, x, t), field.calls
    answer, calls = field._mixed(view, x, t)
    field.spend(calls)
    return answer, calls


class GuidedField(Field):
    """The field that :func:`guide` makes: all views, and evaluations counted as calls of the networks.

    Attributes:
        conditional, unconditional: the fields that are mixed; both are checked before the first run.
        rule, weight: how they are mixed.
        truth: the conditional exact field, if it is known: the law that metrics of samples compare with.
    """

    def __init__(self, conditional: Field, unconditional: Field, rule: Rule, weight: Weight | GridWeight):
        self.conditional, self.unconditional, self.rule, self.weight = conditional, unconditional, rule, weight
        path, members = conditional.path, (conditional, unconditional)
        if path is None and (weight.constant is None or rule.within is not None):
            raise ArgumentError("fields without a path have no noise level: only kind='cfg' with one weight guides them")
        alone = None if weight.constant is None else self._alone(weight.constant)
        exact = all(isinstance(member, ExactField) for member in members)
        super().__init__(
            self._asked, conditional.prediction, path, scale=conditional.scale,
            calls=sum(member.calls for member in members) if alone is None else alone.calls, probe=not exact,
        )  # fmt: skip
        self.dim, self.shape, self.source = conditional.dim, conditional.shape, conditional.source
        self.truth = conditional if isinstance(conditional, ExactField) else conditional.truth
        self.interval = conditional.interval
        rule.check(self.dim)

    @property
    def members(self) -> tuple[Field, Field]:
        """Both fields."""
        return self.conditional, self.unconditional

    def weighing(self, weight: Given) -> GuidedField:
        """The same guidance with another weight, in force between the same noise levels; ArgumentError with kind ``cfg++``.

        >>> import diffode
        >>> ring = diffode.targets.get("ring8")
        >>> pair = (diffode.exact_field(law, "edm") for law in (ring.given("three"), ring))
        >>> guide(*pair, 7.5, interval=(0.3, 5.0)).weighing(2.0).weight
        Weight(value=2.0, low=0.3, high=5.0)
        """
        if not isinstance(self.weight, Weight):
            raise ArgumentError(
                "weight of kind 'cfg++' belongs to the steps of one grid: make another field with diffode.guide"
            )
        return GuidedField(*self.members, self.rule, Weight(weight, self.weight.low, self.weight.high))

    @override
    def predict(self, prediction: Prediction, x: Tensor, t: Scalar) -> Tensor:
        answer, calls = self._mixed(prediction, x, t)
        self.spend(calls)
        if getattr(answer, "shape", None) != x.shape:
            raise FieldError(f"the guided field returned shape {tuple(answer.shape)} for x of shape {tuple(x.shape)}")
        return answer

    def _asked(self, x: Tensor, t: Scalar) -> Tensor:
        return self._mixed(self.prediction, x, t)[0]

    def _mixed(self, prediction: Prediction, x: Tensor, t: Scalar) -> tuple[Tensor, int]:
        """A view, and the network calls that it took."""
        one, other = self.members
        weight = self._weight(t)
        if (alone := self._alone(weight)) is not None:
            return _answer(alone, prediction, x, t)
        view = self.rule.within or prediction
        (base, calls), (wanted, more) = _answer(other, view, x, t), _answer(one, view, x, t)
        found, calls = self.rule.mixed(wanted, base, columns(weight, x)), calls + more
        if view == prediction:
            return found, calls
        path = self.require_path(f"its {prediction}")
        path.check_times(t)
        of_x, of_view = conversion(path, view, prediction, t)
        return columns(of_x, x) * x + columns(of_view, x) * found, calls

    def _weight(self, t: Scalar) -> Scalar:
        constant = self.weight.constant
        if constant is not None:
            return constant
        path = self.require_path("its weight")
        path.check_times(t)
        if isinstance(t, Tensor) and not t.ndim:
            t = float(t)
        return self.weight.at(path.rho(t.to(torch.float64) if isinstance(t, Tensor) else float(t)))

    def _alone(self, weight: Scalar) -> Field | None:
        """The one field that is asked at a weight, or at the weights of all rows; None where both are."""
        for value, member in ((1.0, self.conditional), (0.0, self.unconditional)):
            here = bool((weight == value).all()) if isinstance(weight, Tensor) else weight == value
            if here and (value == 1.0 or self.rule.linear):
                return member
        return None

    def prior(self, n: int, *, generator: Randomness, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw n points of the conditional law at ``path.t_max``, shape (n, dim), as in :meth:`ExactField.prior`."""
        if not isinstance(self.conditional, ExactField):
            raise ArgumentError("the conditional law is not known: start from field.first_noise(shape, generator=...)")
        return self.conditional.prior(n, generator=generator, dtype=dtype)

    @override
    def pieces(self, start: float, stop: float) -> list[tuple[Field, float, float]]:
        if isinstance(self.weight, GridWeight):
            raise ArgumentError(
                "kind='cfg++' has no exact flow: its weights grow without bound as the steps of a run shrink, so compare its "
                "samples with a law"
            )
        path = self.path
        if path is None or not self.weight.levels:
            return [(self, start, stop)]
        inner = [t for level in self.weight.levels if min(start, stop) < (t := path.time_from_rho(level)) < max(start, stop)]
        times = [start, *sorted(inner, reverse=stop < start), stop]
        found: list[tuple[Field, float, float]] = []
        for begin, end in itertools.pairwise(times):
            levels = sorted((path.rho(begin), path.rho(end)))
            weight = self.weight.between(levels[1], levels[0])
            part = self.conditional if weight is None else GuidedField(*self.members, self.rule, weight)
            found.append((part, begin, end))
        return found

    @override
    def check_once(self, x: Tensor, t: float) -> None:
        for member in self.members:
            member.check_once(x, t)
        super().check_once(x, t)

    @contextmanager
    @override
    def uncounted(self) -> Iterator[None]:
        """Calls inside the block count neither for this field nor for its members."""
        with ExitStack() as stack:
            stack.enter_context(super().uncounted())
            for member in self.members:
                stack.enter_context(member.uncounted())
            yield

    @contextmanager
    @override
    def rows(self, index: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.rows(index))
            yield
