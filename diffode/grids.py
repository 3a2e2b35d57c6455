r"""Time grids: the decreasing times of a solver, from noise to data.

A grid is a float64 tensor of ``steps + 1`` times. Named grids are defined in :math:`\rho = \sigma/\alpha` or in t and run
from ``path.t_max`` to ``path.t_min``; with ``to_zero=true`` the last step goes on to sigma = 0, where it returns the
denoised point. Grids of published levels (``ays_*``) keep their own first level unless ``fit=true`` stretches them, in log
rho, over the path's range.

Grids that follow no rule are lists of falling numbers. In Python a list holds times of the path. As a text, in suites and
on the command line, ``"80,10,1,0.002"`` or ``"times 80 10 1 0.002"`` lists times, and ``"levels 14.6 2 0.5 0"`` lists noise
levels rho = sigma/alpha, which are the same on every path.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from diffode.errors import ArgumentError, BudgetError
from diffode.extensions import is_place, load_attribute
from diffode.grid_files import load_grid
from diffode.grid_menus import MENUS
from diffode.grid_rules import MOST_STEPS, Grid, ends, explicit, in_rho, in_time
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.specs import Entry, Registry, parse_spec

__all__ = [
    "MOST_STEPS",
    "Grid",
    "Times",
    "check",
    "check_registered",
    "content",
    "explicit",
    "get",
    "in_rho",
    "in_time",
    "is_named",
    "is_rule",
    "names",
    "register",
    "registry",
    "spec_of",
]

#: Times in decreasing order, a text that lists them or names a rule, or a rule.
Times = Tensor | Sequence[float] | str | Grid

#: Names of grids in k-diffusion and programs that use it, with the names here.
ALIASES = {
    "exponential": "log_snr",
    "Karras": "karras",
    "lambda": "log_snr",
    "logsnr": "log_snr",
    "beta57": "beta:alpha=0.5,beta=0.7",
}


class _Grids(Registry[Grid]):
    """The registry, which also knows lists of numbers, though no name is registered for them."""

    def entry(self, name: str) -> Entry[Grid]:
        return Entry(name, functools.partial(_list_of, name), {}, "") if name in ("times", "levels") else super().entry(name)


def _list_of(kind: str, at: Sequence[float]) -> Grid:
    """A list of times or levels as a rule, which has its own number of steps only."""
    text = " ".join([kind, *map(repr, at)])
    return Grid(lambda path, steps: get(text, path, steps).tolist())


registry: Registry[Grid] = _Grids("grid", Grid, spelled=ALIASES.get, aliases=ALIASES)


def get(spec: Times, path: Path | str | None = None, steps: int | None = None, **options: Any) -> Tensor:
    """The times of a grid, a named one or a checked list; ArgumentError or UnknownNameError if there is none.

    Args:
        spec: a grid spec such as ``"karras:rho=7"``; times in decreasing order, as a sequence, array or tensor or as a text
            ``"80,10,1"`` or ``"times 80 10 1"``; noise levels as a text ``"levels 80 10 1"``; or a :class:`Grid`.
        path: the path of the times, or its spec; needed for a named grid and for levels.
        steps: number of steps of a named grid; a list has its own.
        options: options of the grid, which override those in the spec.

    Returns:
        float64 tensor of shape (steps + 1,).

    >>> get("karras:rho=7", "edm", steps=2).tolist()
    [80.0, 2.51521..., 0.002]
    >>> get("levels 80 1 0", "vp").tolist()
    [0.9335..., 0.2589..., 0.0]
    """
    on = None if path is None else get_path(path)
    if isinstance(spec, str) and is_place(spec.strip()):
        spec = _placed(spec.strip())
    if not is_named(spec):
        if options:
            raise ArgumentError(f"options {', '.join(options)} go with a named grid, not with a list of times")
        times = explicit(_listed(spec, on) if isinstance(spec, str) else spec, on)
        if steps is not None and steps != len(times) - 1:
            raise ArgumentError(f"steps={steps!r} goes with a named grid; these {len(times)} times make {len(times) - 1} steps")
        return times
    if on is None:
        raise ArgumentError(
            f"grid {spec!r} needs a path, such as 'edm', got path=None; for a plain ODE give times, as [1.0, 0.75, ...]"
        )
    if steps is None:
        raise ArgumentError(f"grid {spec!r} needs steps (or, in diffode.solve, nfe)")
    if isinstance(spec, str):
        return registry.make(spec, **options)(on, steps)
    if options or not isinstance(spec, Grid):
        raise ArgumentError(f"options {', '.join(options)} go with a spec; this grid has its own already")
    return spec(on, steps)


def is_named(grid: object) -> bool:
    """Whether a grid is a rule (a spec or a :class:`Grid`), which takes a number of steps; a list of times has its own."""
    if isinstance(grid, str):
        return not _LIST.match(grid) and not (is_place(grid.strip()) and not isinstance(_placed(grid.strip()), str | Grid))
    return isinstance(grid, Grid)


def is_rule(grid: str) -> bool:
    """Whether a text names a rule of this module, whose times depend on its options, the path and the steps alone."""
    return grid.partition(":")[0] in _RULES


def check(grid: Times) -> None:
    """Raise ArgumentError unless the name and options of a grid are known, or its numbers fall."""
    if not is_named(grid):
        spec_of(grid)
    elif isinstance(grid, str):
        registry.make(grid)


def check_registered(grid: str) -> None:
    """:func:`check` for a text from a foreign file: it imports nothing, and so refuses ``module:attribute``."""
    if _LIST.match(grid):
        spec_of(grid)
    else:
        registry.registered(grid)


#: A text that lists numbers, and begins with one or with the word times or levels.
_LIST = re.compile(r"\s*(times|levels)?[\s,]*[-+.\d]|\s*(times|levels)\b")


def _numbers(text: str) -> tuple[str, list[float]]:
    """The kind of a text's numbers, ``times`` or ``levels``, and the numbers; ArgumentError if it lists none."""
    words = text.replace(",", " ").split()
    kind = words.pop(0) if words and words[0] in ("times", "levels") else "times"
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise ArgumentError(f"grid {text!r} must list numbers, as '80,10,1' or 'levels 14.6 2 0.5 0': {error}") from None
    if kind == "levels" and min(numbers, default=0.0) < 0:
        raise ArgumentError(f"grid {text!r} must list noise levels >= 0, got {min(numbers):g}")
    return kind, numbers


def _listed(text: str, path: Path | None) -> list[float]:
    """The times, on a path, of the times or levels that a text lists."""
    kind, numbers = _numbers(text)
    if kind == "times":
        return numbers
    if path is None:
        raise ArgumentError(f"grid {text!r} lists noise levels, which need a path to become times")
    return [path.time_from_rho(level) for level in explicit(numbers).tolist()]


def _placed(place: str) -> Any:
    """The list of times or rule that ``module:attribute`` names; any other text itself, which the registry then judges."""
    if not registry.is_place(place):
        return place
    found = load_attribute(place)
    return found if isinstance(found, Grid | Tensor | list | tuple | np.ndarray) else place


def spec_of(grid: Times) -> str:
    """The text of a grid in a study or a file: its spec, or its numbers in one form, which :func:`get` reads back.

    >>> spec_of([80, 10, 1]), spec_of("levels 14.6, 2, 0.5")
    ('times 80 10 1', 'levels 14.6 2 0.5')
    """
    if isinstance(grid, Grid):
        raise ArgumentError("a Grid object has no text: give its spec, such as 'karras:rho=5', or the times it makes")
    if isinstance(grid, str) and is_named(grid):
        ours = registry.canonical(grid)
        parse_spec(ours)
        return ours
    if isinstance(grid, str) and is_place(grid.strip()):
        # A list in a file may change, so that its present numbers are written.
        grid = _placed(grid.strip())
    kind, numbers = _numbers(grid) if isinstance(grid, str) else ("times", explicit(grid).tolist())
    return f"{kind} " + " ".join(_shortest(t) for t in explicit(numbers).tolist())


def content(grid: str) -> str:
    """A hash of the levels in the file that a grid is read from; an empty text for all other grids."""
    if not is_named(grid):
        return ""
    name, options = parse_spec(registry.canonical(grid))
    return load_grid(str(options.get("file"))).content() if name == "trained" else ""


def own_times(grid: Times, path: Path, steps: int | None = None) -> Tensor | None:
    """The times on a path that a grid has by itself: those of a list, whose ``steps`` are checked, or of a trained grid.

    None for any other rule.
    """
    if not is_named(grid):
        return get(grid, path, steps)
    name, options = parse_spec(registry.canonical(grid)) if isinstance(grid, str) else ("", {})
    return explicit(load_grid(str(options.get("file"))).times_on(path), path) if name == "trained" else None


def _shortest(number: float) -> str:
    """The shortest text that reads back as the same number."""
    return repr(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def names() -> list[str]:
    """All registered grid names."""
    return registry.names()


register = registry.register


def _power(u: float, a: float, b: float, exponent: float) -> float:
    """The value between a and b whose power 1/exponent is linear in u."""
    root = 1 / exponent
    return float((a**root + u * (b**root - a**root)) ** exponent)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(f"{name} must be positive and finite, got {value!r}")


def karras(rho: float = 7.0, to_zero: bool = False) -> Grid:
    """rho^(1/7) falls linearly (Karras et al., arXiv 2206.00364, equation 5); the option ``rho`` is the exponent 7."""
    _positive("rho", rho)
    return Grid(in_rho(lambda u, high, low: _power(u, high, low, rho)), to_zero)


def log_snr(to_zero: bool = False) -> Grid:
    """The log-SNR rises linearly (Lu et al., arXiv 2206.00927)."""
    return Grid(in_rho(lambda u, high, low: high ** (1 - u) * low**u), to_zero)


def polyexponential(rho: float = 1.0, to_zero: bool = False) -> Grid:
    """log(sigma/alpha) is linear in (1 - u)^rho (k-diffusion); rho = 1 is ``log_snr``."""
    _positive("rho", rho)
    return Grid(in_rho(lambda u, high, low: low * (high / low) ** ((1 - u) ** rho)), to_zero)


def kl_optimal(to_zero: bool = False) -> Grid:
    """atan(rho) falls linearly (Sabour et al., arXiv 2404.14507, theorem 3.1)."""
    return Grid(in_rho(lambda u, high, low: math.tan(u * math.atan(low) + (1 - u) * math.atan(high))), to_zero)


def time_uniform(to_zero: bool = False) -> Grid:
    """t falls linearly."""
    return Grid(in_time(lambda u, a, b: a + u * (b - a)), to_zero)


def time_quadratic(to_zero: bool = False) -> Grid:
    """The square root of t falls linearly (Song et al., arXiv 2010.02502)."""
    return Grid(in_time(lambda u, a, b: _power(u, a, b, 2.0)), to_zero)


def cosine(to_zero: bool = False) -> Grid:
    """t = t_min + (t_max - t_min) cos(pi u/2): the first steps, where noise is largest, are small (arXiv 2202.04200)."""
    return Grid(in_time(lambda u, a, b: b + (a - b) * math.cos(math.pi / 2 * u)), to_zero)


def shift(s: float = 3.0, to_zero: bool = False) -> Grid:
    """Flow-matching times shifted to noise, tau = s u/(1 + (s - 1) u), rho = tau/(1 - tau) (arXiv 2403.03206, equation 23)."""
    _positive("s", s)

    def place(path: Path, steps: int) -> list[float]:
        high, low = ends(path)
        first, last = high / (1 + high), low / (1 + low)
        # The ends are shifted back, u runs uniformly between them, and is shifted again.
        start, stop = (tau / (s - (s - 1) * tau) for tau in (first, last))
        times = []
        for i in range(1, steps):
            u = start + i / steps * (stop - start)
            tau = s * u / (1 + (s - 1) * u)
            times.append(path.time_from_rho(tau / (1 - tau)))
        return [path.t_max, *times, path.t_min]

    return Grid(place, to_zero)


#: Published noise levels of "Align Your Steps" for ten steps (arXiv 2404.14507, appendix), without the last, 0.
_AYS = {
    "ays_sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def _table(levels: tuple[float, ...], fit: bool) -> Callable[[Path, int], list[float]]:
    """Times of published levels for any number of steps, by log-linear interpolation (the authors' rule)."""

    def place(path: Path, steps: int) -> list[float]:
        wanted = np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(levels)), np.log(levels))
        if fit:
            high, low = ends(path)
            share = (wanted - wanted[-1]) / (wanted[0] - wanted[-1])
            wanted = math.log(low) + share * (math.log(high) - math.log(low))
        times = [path.time_from_rho(math.exp(v)) for v in wanted]
        # Published levels have five digits: the first is that of the path's end, and may lie beyond it by rounding.
        first = path.t_max if fit or 0 < levels[0] / path.rho(path.t_max) - 1 < 1e-4 else times[0]
        return [first, *times[1:-1], path.t_min if fit else times[-1]]

    return place


def _ays(name: str) -> Callable[..., Grid]:
    def make(fit: bool = False, to_zero: bool = True) -> Grid:
        return Grid(_table(_AYS[name], fit), to_zero and not fit)

    make.__doc__ = (
        f"Published levels {name[4:].upper()} of Align Your Steps (arXiv 2404.14507); ``fit`` stretches them over the path."
    )
    return make


def trained(file: str = "") -> Grid:
    """A grid that was trained for a field and its number of steps, from the ``file`` that ``diffode train`` writes."""
    if not isinstance(file, str) or not file:
        raise ArgumentError(f"trained needs file=, a grid that `diffode train` wrote, got {file!r}")
    stored = load_grid(file)

    def place(path: Path, steps: int) -> list[float]:
        if steps != stored.steps:
            raise BudgetError(f"grid 'trained:file={file}' was trained for {stored.steps} steps, not for {steps}")
        return stored.times_on(path)

    return Grid(place)


_MAKERS = (karras, log_snr, time_uniform, time_quadratic, kl_optimal, polyexponential, cosine, shift)
_RULES = {make.__name__: make for make in _MAKERS} | {name: _ays(name) for name in _AYS}
_RULES.update(MENUS)
for _name, _make in {**_RULES, "trained": trained}.items():
    registry.register(_name, _make)
