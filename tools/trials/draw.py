"""Random choices for trials, from a stream that (seed, kind, number) fix; what is drawn is the text of a Python expression."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from diffode import charts
from diffode.errors import UnknownNameError
from diffode.makers import option_names
from diffode.solvers.euler_maruyama import FORMS
from diffode.specs import Registry

T = TypeVar("T")
Code = str

#: Expressions that no argument of a number, a text or a list was made for, or only at the edge of its range.
ABSURD: tuple[Code, ...] = (
    "None", "-1", "0", "0.0", "1.5", "1e308", "1e-320", "-1e9", "math.nan", "math.inf", "-math.inf", "1" + 30 * "0",
    "9223372036854775808", "1000000000",
    "True", "'x'", "''", "'nan'", "[]", "(1, 2)", "{}", "[1.0, math.nan]", "[[1.0]]", "torch.ones(2)", "object()", "b'x'",
)  # fmt: skip
#: The same for values that are written in a spec.
ABSURD_TEXTS = ("nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "9" * 400, "none", "true", "x", "1+2", "0+0", "é", "=", "")
#: Options whose sensible values are names that their type does not list, or files that trials make.
SENSIBLE: dict[str, tuple[Code, ...]] = {
    "chart": tuple(map(repr, charts.charts)),
    "diffusion": tuple(map(repr, FORMS)),
    # Few solvers are told what a jump has to know, and without it all would be refused.
    "jump": ("None", "None", "None", "None", "'auto'", "2.0"),
    "host": ("None", "'euler'", "'dpm'", "'ipndm'", "'dpmpp'"),
    "schedule": ("'linear'", "'scaled_linear'", "'cosine'"),
    "lower_order_final": ("'always'", "'below_10'", "'never'"),
    "order": ("1", "2", "2", "3", "3", "4"),
    "step_orders": ("(2, 1)", "(3, 3, 2)", "(1, 1, 1)"),
    "member": ("0", "1", "5"),
    "max_steps": ("1", "10", "300"),
    # Finer tolerances cost integrators of low order more than the seconds of a trial.
    "rtol": ("0.05", "1e-2", "1e-3", "1e-4"),
    "atol": ("0.05", "1e-2", "1e-3", "1e-4"),
}
#: The kind of material that a solver reads, by the solver's name.
FILES = {"bespoke": "checkpoint", "conditioned": "conditioned", "amed_learned": "amed"}


class Draw:
    """Choices from one stream."""

    def __init__(self, entropy: Sequence[int]):
        self.rng = np.random.default_rng(np.random.SeedSequence(entropy))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.rng.integers(len(choices)))]

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included; small numbers more often."""
        return low + int((high - low + 1) * self.rng.random() ** 2)

    def real(self, low: float, high: float) -> float:
        return float(f"{self.rng.uniform(low, high):.4g}")

    def log_real(self, low: float, high: float) -> float:
        """Between two positive numbers, log-uniform."""
        return float(f"{np.exp(self.rng.uniform(np.log(low), np.log(high))):.4g}")

    def seed(self) -> int:
        return int(self.rng.integers(2**31))

    def odd(self, code: Code, probability: float = 0.03) -> Code:
        """The expression, or now and then an absurd one in its place."""
        return self.pick(ABSURD) if self.chance(probability) else code


def arguments(given: Mapping[str, Code]) -> Code:
    """Keyword arguments as they are written in a call."""
    return ", ".join(f"{key}={value}" for key, value in given.items())


def made(draw: Draw, registry: Registry[Any], getter: Code, absurd: float = 0.03) -> Code:
    """An object of a registry as an expression: a spec, or ``getter`` with a name and options."""
    name = draw.pick(registry.names())
    options = {key: code for key, code in sensible(draw, registry, name).items() if draw.chance(0.3) or key == "file"}
    options = {key: draw.odd(code, absurd) for key, code in options.items()}
    if draw.chance(0.5):
        return f"{getter}({arguments({'spec': repr(name), **options})})" if options else repr(name)
    pairs = [f"{key}={draw.pick(ABSURD_TEXTS) if draw.chance(absurd) else written(code)}" for key, code in options.items()]
    if draw.chance(absurd / 2):
        pairs.append(draw.pick(("order=2", "unknown=1", "=", "rho", "t_min=")))
    return repr(name + ("," if ":" in name else ":") * bool(pairs) + ",".join(pairs)) if "material" not in str(pairs) else (
        f"{name + ':'!r} + {' + '.join(_in_pieces(pairs))}"
    )  # fmt: skip


def _in_pieces(pairs: Sequence[str]) -> list[Code]:
    """The pairs of a spec as expressions that are added up: a file's name is known only when it is made."""
    pieces = []
    for number, pair in enumerate(pairs):
        key, _, value = pair.partition("=")
        prefix = f"{',' if number else ''}{key}="
        pieces.append(f"{prefix!r} + {value}" if value.startswith("material(") else repr(prefix + value))
    return pieces


def written(code: Code) -> str:
    """An expression as its value is written in a spec."""
    if code.startswith("("):
        return "+".join(part.strip() for part in code.strip("(),").split(","))
    return code.strip("'").lower() if code in ("None", "True", "False") else code.strip("'")


def sensible(draw: Draw, registry: Registry[Any], name: str) -> dict[str, Code]:
    """A value within its type for every option of a registered name."""
    try:
        entry = registry.entry(name)
    except UnknownNameError:
        return {}
    hints, defaults = _hints(entry.make), _defaults(entry.make)
    found = {}
    for option in option_names(entry.make) or ():
        if option in entry.preset or option in ("outcome", "method"):
            continue
        if option == "file":
            found[option] = f"material({FILES.get(name, 'table')!r})"
        else:
            found[option] = _value(draw, option, hints.get(option, Any), defaults.get(option))
    return found


def _value(draw: Draw, option: str, hint: Any, default: Any) -> Code:
    if option in SENSIBLE:
        return draw.pick(SENSIBLE[option])
    if typing.get_origin(hint) is Literal:
        return repr(draw.pick(typing.get_args(hint)))
    if isinstance(default, bool):
        return repr(draw.chance(0.5))
    if isinstance(default, int):
        return repr(max(1, default + draw.integer(0, 2) - 1))
    if option == "t_max" and isinstance(default, float):
        return repr(float(f"{default * draw.real(0.5, 1):.4g}"))
    if isinstance(default, float) and np.isfinite(default):
        return repr(_near(draw, default))
    if isinstance(default, str):
        return repr(default)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = typing.get_args(hint)
        if int in kinds:
            return draw.pick(("None", "1", "2", "5"))
        if float in kinds:
            return draw.pick(("None", "0.5", "1.0", "2.0"))
    return "None"


def _near(draw: Draw, value: float) -> float:
    """A number of the size of another; below 1 if that is, since many such options are shares."""
    if value == 0:
        return draw.real(0, 1)
    factor = float(np.exp(draw.rng.normal() / 2))
    return float(f"{value**factor if 0 < value < 1 else value * factor:.4g}")


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(make)
    except (NameError, TypeError):
        return {}


def _defaults(make: Callable[..., Any]) -> dict[str, Any]:
    import inspect

    return {
        name: parameter.default
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
