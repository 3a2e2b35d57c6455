r"""Exponential Runge-Kutta methods: tableaus whose entries are sums of :math:`\varphi` functions, and their stiff order.

For y' = L y + N(t, y) with z = h L a step is

.. math:: y_i = e^{c_i z} y + h \sum_j a_{ij}(z) N_j, \qquad y_{new} = e^z y + h \sum_j b_j(z) N_j .

At z = 0 a tableau is that of a Runge-Kutta method. How fast errors fall while z stays large is another matter, which the
*stiff* order conditions decide (Hochbruck and Ostermann, SIAM J. Numer. Anal. 43 (2005), table 2; Acta Numerica 19 (2010),
section 2.3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffode.errors import ArgumentError
from diffode.numerics.butcher import Butcher
from diffode.numerics.exponential import phi

#: Largest residual of a condition, whose terms are of size 1, that rounding explains.
_ROUNDING = 1e-12
#: Arguments at which an identity of phi functions is looked at; each operator of a condition takes them by itself.
_ARGUMENTS = (-9.0, -2.3, -0.4, 0.7)
#: Highest order whose stiff conditions are known here.
_HIGHEST = 4

#: Terms (coefficient, k, scale), each coefficient * phi_k(scale * z).
Terms = tuple[tuple[float, int, float], ...]


def evaluated(terms: Terms, z: float) -> float:
    """The sum of terms at z.

    >>> evaluated(((2.0, 1, 0.5), (-1.0, 0, 1.0)), 0.0)
    1.0
    """
    return math.fsum(factor * phi(k, scale * z) for factor, k, scale in terms)


@dataclass(frozen=True)
class ExponentialButcher:
    """An explicit exponential Runge-Kutta method.

    Attributes:
        nodes: c, the place of each stage in the step; the first is 0.
        stages: rows of a, with i entries in row i; the empty row of the first stage is left out.
        weights: b, an entry for each stage.
        order: order of convergence as h goes to 0. The conditions at z = 0 are checked, as in
            :class:`~diffode.numerics.butcher.Butcher`.
        source: publication of the method.

    Raises:
        ArgumentError: if the shape is not that of an explicit method, or the method at z = 0 is not of this order.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[Terms, ...], ...]
    weights: tuple[Terms, ...]
    order: int
    source: str

    def __post_init__(self) -> None:
        limit = self.at_zero()
        if any(abs(a - b) > _ROUNDING for a, b in itertools.zip_longest(self.nodes, limit.nodes, fillvalue=math.inf)):
            raise ArgumentError(f"nodes of {self.source} must be {limit.nodes}, the sums of rows at z = 0, got {self.nodes}")

    def at_zero(self) -> Butcher:
        """The Runge-Kutta method at z = 0; ArgumentError if it is not of the stated order."""
        rows = tuple(tuple(evaluated(entry, 0.0) for entry in row) for row in self.stages)
        return Butcher(rows, tuple(evaluated(entry, 0.0) for entry in self.weights), self.order, self.source)

    def stage(self, number: int, z: float) -> list[float]:
        """Row ``number`` of a at z, counted from 1, the first that is not empty."""
        return [evaluated(entry, z) for entry in self.stages[number - 1]]

    def step(self, z: float) -> list[float]:
        """b at z."""
        return [evaluated(entry, z) for entry in self.weights]

    def defect(self, k: int, z: float) -> float:
        r"""psi_k = \sum_i b_i(z) c_i^(k-1)/(k-1)! - phi_k(z): what integrating t^(k-1) misses in a step."""
        return _moment(self.step(z), self.nodes, k) - float(phi(k, z))

    def stage_defect(self, k: int, number: int, z: float) -> float:
        r"""psi_(k,i) = \sum_j a_ij(z) c_j^(k-1)/(k-1)! - c_i^k phi_k(c_i z); 0 for the first stage, which is number 0."""
        if number == 0:
            return 0.0
        node = self.nodes[number]
        return _moment(self.stage(number, z), self.nodes, k) - node**k * float(phi(k, node * z))

    def misses(self, order: int, weak: bool = False) -> float:
        """The largest residual of the stiff conditions of one order, 1 to 4.

        The operators in a condition do not commute, so that each takes its arguments by itself. In the ``weak`` form b and the
        defect of the step are taken at z = 0, which is enough for the highest order of a method.
        """
        last = [(0.0, self.step(0.0))] if weak else [(z, self.step(z)) for z in _ARGUMENTS]
        # A stage's defects of order k enter the conditions of order k + 1, and those of order k + 2 by way of other stages.
        defects = {
            (k, z): [self.stage_defect(k, i, z) for i in range(len(self.nodes))]
            for k, z in itertools.product(range(1, order), _ARGUMENTS)
        }
        found = [self.defect(order, z) for z, _ in last]
        if order == 2:
            found += [value for z in _ARGUMENTS for value in defects[1, z]]
        if order > 2:
            found += [_dot(b, defects[order - 1, z]) for _, b in last for z in _ARGUMENTS]
        if order > 3:
            for (_, b), z in itertools.product(last, _ARGUMENTS):
                second = defects[2, z]
                found.append(_dot([c * weight for c, weight in zip(self.nodes, b, strict=True)], second))
                for y in _ARGUMENTS:
                    inner = [0.0, *(_dot(self.stage(i, y), second) for i in range(1, len(self.nodes)))]
                    found.append(_dot(b, inner))
        return max(map(abs, found))

    @property
    def stiff_order(self) -> int:
        """The order that errors have while z is large: the largest p for which the conditions below p hold, and those of p
        in their weak form (Hochbruck and Ostermann 2005, theorem 4.7); at most 4.

        >>> get("hochbruck_ostermann_4").stiff_order, get("etd4").stiff_order, get("lawson_4").stiff_order
        (4, 2, 1)
        """
        for order in range(1, _HIGHEST + 1):
            if self.misses(order, weak=True) > _ROUNDING:
                return order - 1
            if self.misses(order) > _ROUNDING:
                return order
        return _HIGHEST


def _moment(weights: Sequence[float], nodes: Sequence[float], k: int) -> float:
    return math.fsum(w * c ** (k - 1) for w, c in zip(weights, nodes, strict=False)) / math.factorial(k - 1)


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=False))


def _scaled(terms: Terms, factor: float) -> Terms:
    return tuple((factor * value, k, scale) for value, k, scale in terms)


def _exact_for_constants(
    nodes: tuple[float, ...], stages: Sequence[Sequence[Terms]], weights: Sequence[Terms], order: int, source: str
) -> ExponentialButcher:
    """The method of all columns but the first, which makes the others exact for constant N."""

    def filled(node: float, row: Sequence[Terms]) -> tuple[Terms, ...]:
        others = (term for entry in row for term in _scaled(entry, -1.0))
        return (((node, 1, node), *others), *row)

    rows = tuple(filled(node, row) for node, row in zip(nodes[1:], stages, strict=True))
    return ExponentialButcher(nodes, rows, filled(1.0, weights), order, source)


_NONE: Terms = ()
_HO = "Hochbruck and Ostermann, SIAM J. Numer. Anal. 43 (2005), 1069-1090"
_CM = "Cox and Matthews, J. Comput. Phys. 176 (2002), 430-455"


def _etd2(c2: float) -> ExponentialButcher:
    return _exact_for_constants((0.0, c2), [()], [((1 / c2, 2, 1.0),)], 2, f"{_HO}, (5.3); at c_2 = 1 {_CM}, (22)")


def _etd3() -> ExponentialButcher:
    weights: list[Terms] = [((4.0, 2, 1.0), (-8.0, 3, 1.0)), ((4.0, 3, 1.0), (-1.0, 2, 1.0))]
    return _exact_for_constants((0.0, 0.5, 1.0), [(), (((2.0, 1, 1.0),),)], weights, 3, f"{_CM}, (23) to (25)")


#: b of the classical method with phi functions: the middle two, and the last.
_MIDDLE: Terms = ((2.0, 2, 1.0), (-4.0, 3, 1.0))
_LAST: Terms = ((4.0, 3, 1.0), (-1.0, 2, 1.0))


def _etd4() -> ExponentialButcher:
    stages: list[tuple[Terms, ...]] = [(), (((0.5, 1, 0.5),),), (_NONE, ((1.0, 1, 0.5),))]
    return _exact_for_constants((0.0, 0.5, 0.5, 1.0), stages, [_MIDDLE, _MIDDLE, _LAST], 4, f"{_CM}, (26) to (29)")


def _krogstad() -> ExponentialButcher:
    stages: list[tuple[Terms, ...]] = [(), (((1.0, 2, 0.5),),), (_NONE, ((2.0, 2, 1.0),))]
    source = "Krogstad, J. Comput. Phys. 203 (2005), 72-88, (51)"
    return _exact_for_constants((0.0, 0.5, 0.5, 1.0), stages, [_MIDDLE, _MIDDLE, _LAST], 4, source)


def _strehmel_weiner() -> ExponentialButcher:
    stages: list[tuple[Terms, ...]] = [(), (((0.5, 2, 0.5),),), (((-2.0, 2, 1.0),), ((4.0, 2, 1.0),))]
    source = f"Strehmel and Weiner, Linear-implizite Runge-Kutta-Methoden, Teubner 1992, example 4.5.5; {_HO}, (5.16)"
    return _exact_for_constants((0.0, 0.5, 0.5, 1.0), stages, [_NONE, _scaled(_MIDDLE, 2.0), _LAST], 4, source)


def _hochbruck_ostermann_3(c2: float, c3: float) -> ExponentialButcher:
    # Gamma solves 2 (gamma c_2 + c_3) = 3 (gamma c_2^2 + c_3^2).
    gamma = res_gamma(c2, c3)
    last = 1 / (gamma * c2 + c3)
    inner: Terms = ((gamma * c2, 2, c2), (c3**2 / c2, 2, c3))
    weights: list[Terms] = [((gamma * last, 2, 1.0),), ((last, 2, 1.0),)]
    return _exact_for_constants((0.0, c2, c3), [(), (inner,)], weights, 3, f"{_HO}, (5.8); Zhang, Song, Chen, arXiv 2308.02157")


def res_gamma(c2: float, c3: float) -> float:
    """The ratio b_2/b_3 with which weights in phi_2 alone are of order 3 for nodes 0, c_2, c_3.

    >>> res_gamma(0.5, 1.0)
    4.0
    """
    return (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))


def _hochbruck_ostermann_4() -> ExponentialButcher:
    # Entries (5, 2) and (5, 3) of the fifth stage.
    inner: Terms = ((0.5, 2, 0.5), (-1.0, 3, 1.0), (0.25, 2, 1.0), (-0.5, 3, 0.5))
    fourth: Terms = ((0.25, 2, 0.5), *_scaled(inner, -1.0))
    whole: Terms = ((1.0, 2, 1.0),)
    stages = [(), (((1.0, 2, 0.5),),), (whole, whole), (inner, inner, fourth)]
    weights = [_NONE, _NONE, _LAST, _scaled(_MIDDLE, 2.0)]
    return _exact_for_constants((0.0, 0.5, 0.5, 1.0, 0.5), stages, weights, 4, f"{_HO}, (5.19)")


def _lawson(method: Butcher) -> ExponentialButcher:
    """A Runge-Kutta method in the variable e^(-tL) y, which is not exact for constant N."""
    nodes = method.nodes

    def carried(row: Sequence[float], node: float) -> tuple[Terms, ...]:
        return tuple(((a, 0, node - c),) if a else _NONE for a, c in zip(row, nodes, strict=False))

    rows = tuple(carried(row, node) for row, node in zip(method.stages, nodes[1:], strict=True))
    source = "Lawson, SIAM J. Numer. Anal. 4 (1967), 372-380"
    return ExponentialButcher(nodes, rows, carried(method.weights, 1.0), method.order, source)


def _lawson_2() -> ExponentialButcher:
    return _lawson(Butcher(((1.0,),), (0.5, 0.5), 2, "Heun"))


def _lawson_4() -> ExponentialButcher:
    return _lawson(Butcher(((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, "Kutta"))


#: The methods by name, each a function of the free nodes, and the usual values of these.
METHODS: dict[str, tuple[Callable[..., ExponentialButcher], tuple[float, ...]]] = {
    "etd2": (_etd2, (1.0,)),
    "etd3": (_etd3, ()),
    "etd4": (_etd4, ()),
    "krogstad": (_krogstad, ()),
    "strehmel_weiner": (_strehmel_weiner, ()),
    "hochbruck_ostermann_3": (_hochbruck_ostermann_3, (0.5, 1.0)),
    "hochbruck_ostermann_4": (_hochbruck_ostermann_4, ()),
    "lawson_2": (_lawson_2, ()),
    "lawson_4": (_lawson_4, ()),
}
_made: dict[tuple[str, tuple[float, ...]], ExponentialButcher] = {}


def get(name: str, nodes: Sequence[float] = ()) -> ExponentialButcher:
    """The method of a name, with its usual free nodes unless others are given.

    ArgumentError for an unknown name, for nodes of a method that has none to choose, or for nodes of which there is no method.

    >>> get("etd2", [0.5]).step(0.0)
    [0.0, 1.0]
    """
    if name not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    make, usual = METHODS[name]
    chosen = tuple(map(float, nodes)) or usual
    if len(chosen) != len(usual) or not all(0 < c <= 1 for c in chosen) or len(set(chosen)) < len(chosen):
        many = f"{len(usual)} different numbers in (0, 1]" if usual else "left out, since the method has none to choose"
        raise ArgumentError(f"nodes of {name} must be {many}, got {list(nodes)}")
    if (name, chosen) not in _made:
        try:
            _made[name, chosen] = make(*chosen)
        except ZeroDivisionError:
            raise ArgumentError(
                f"there is no method {name} with nodes {list(chosen)}: choose others, 2/3 is none for c2"
            ) from None
        except ArgumentError as error:
            raise ArgumentError(f"there is no method {name} with nodes {list(chosen)}: {error}") from None
    return _made[name, chosen]
