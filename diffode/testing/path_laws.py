"""The laws of a path, which say that its functions fit each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from diffode import paths
from diffode.paths import Path
from diffode.specs import parse_spec
from diffode.testing.laws import Largest, Law, kept, tried
from diffode.verify import Check, Report

#: Number of places in the range, in time and in its logarithm, at which laws are tried; they avoid the knots of tables.
_TIMES = 24
#: Steps of differences, relative to the time; the step with the smallest residual counts.
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
#: Largest relative residual of a derivative against a difference, beyond the rounding of the difference.
_DIFFERENCE = 1e-6
#: Largest relative residual of a relation between functions, or of an inverse.
_INVERSE = 1e-9
#: Largest relative difference of a function between floats, arrays and tensors.
_SAME = 1e-10
#: Relative rounding of a function's value in a difference.
_ROUNDING = 8 * 2.0**-52


def check_path(path: Path | str) -> Report:
    """Hold a path to the laws that every path keeps; see docs/verification.md for the list.

    Args:
        path: a path or its spec.

    Returns:
        The report of all checks.

    Raises:
        LawError: if a law is broken; the message names it, the numbers and the time.

    >>> check_path("vp").passed
    True
    """
    on = paths.get(path)
    times = list(_times(on))
    laws: dict[str, Law] = {
        "spec and repr": lambda: _spec(on),
        "alpha and sigma in range": lambda: _range(on, times),
        "alpha_derivative": lambda: _derivative("alpha_derivative", on.alpha, on.alpha_derivative, on, times),
        "sigma_derivative": lambda: _derivative("sigma_derivative", on.sigma, on.sigma_derivative, on, times),
        "log_snr = log(alpha/sigma)": lambda: _log_snr(on, times),
        "rho = sigma/alpha": lambda: _rho(on, times),
        "log_snr falls": lambda: _falls(on, times),
        "time_from_log_snr inverts log_snr": lambda: _inverse(on, times),
        "sigma = 0 is where log_snr is infinite": lambda: _zero(on),
        "drift and diffusion make alpha and sigma": lambda: _forward(on, times),
        "floats, arrays and tensors agree": lambda: _kinds(on, times),
        "a part of the path is the path": lambda: _part(on, times),
    }
    return kept(f"path {on.spec}", [tried(name, law) for name, law in laws.items()])


def _times(path: Path) -> Iterator[float]:
    low, high = path.t_min, path.t_max
    for k in range(_TIMES):
        # Multiples of the golden ratio, modulo 1, fill the range without repetition.
        share = (k * 0.6180339887498949 + 0.1) % 1 * 0.998 + 0.001
        yield low + (high - low) * share
        if low > 0:
            yield low * (high / low) ** share


def _spec(path: Path) -> Check:
    name, text = "spec and repr", path.spec
    if "\n" in repr(path):
        return Check.found(name, False, f"repr has several lines: {path!r}")
    word, options = parse_spec(text)
    known = word in paths.names()
    if not known and type(path).spec is not Path.spec:
        return Check.found(name, None, f"{text!r} is no spec of a registry")
    make: Callable[..., Path] = type(path)
    again = paths.get(text) if known else make(**options)
    return Check.found(name, again == path, f"{text!r} makes {'it again' if again == path else f'{again!r}, not {path!r}'}")


def _range(path: Path, times: list[float]) -> Check:
    for t in (path.t_min, path.t_max, *times):
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        if not (0 <= alpha < math.inf and 0 <= sigma < math.inf and alpha + sigma > 0):
            return Check.found("alpha and sigma in range", False, f"alpha={alpha:g}, sigma={sigma:g} at t={t:.6g}")
    return Check.found("alpha and sigma in range", True, f"finite and not negative at {len(times) + 2} times")


def _derivative(
    name: str, value: Callable[[float], float], slope: Callable[[float], float], path: Path, times: list[float]
) -> Check:
    """The derivative against central differences, minus the rounding that each step allows."""
    worst = Largest()
    for t in times:
        told, best = float(slope(t)), (math.inf, 0.0)
        for relative in _STEPS:
            h = min(relative * t, path.t_end - t)
            found = (float(value(t + h)) - float(value(t - h))) / (2 * h)
            excess = max(0.0, abs(found - told) - _ROUNDING * (abs(float(value(t))) + abs(told) * t) / h)
            error = excess / max(abs(told), abs(found)) if excess else 0.0
            best = min(best, (error, found)) if math.isfinite(error) else best
        worst.see(best[0], f"at t={t:.6g}: {told:.9g} is given, differences say {best[1]:.9g}")
    return worst.check(name, _DIFFERENCE)


def _log_snr(path: Path, times: list[float]) -> Check:
    worst = Largest()
    for t in times:
        given, by_definition = float(path.log_snr(t)), math.log(path.alpha(t)) - math.log(path.sigma(t))
        worst.see(abs(given - by_definition), f"at t={t:.6g}: {given:.9g}, not {by_definition:.9g}")
    return worst.check("log_snr = log(alpha/sigma)", _INVERSE)


def _rho(path: Path, times: list[float]) -> Check:
    worst = Largest()
    for t in times:
        given, by_definition = float(path.rho(t)), path.sigma(t) / path.alpha(t)
        worst.see(abs(given / by_definition - 1), f"at t={t:.6g}: {given:.9g}, not {by_definition:.9g}")
        again = float(path.time_from_rho(given))
        worst.see(abs(again / t - 1), f"time_from_rho gives {again:.9g} for rho({t:.9g})")
    return worst.check("rho = sigma/alpha", _INVERSE)


def _falls(path: Path, times: list[float]) -> Check:
    ordered = sorted({path.t_min, path.t_max, *times})
    values = [float(path.log_snr(t)) for t in ordered]
    for k in range(len(ordered) - 1):
        if not values[k + 1] < values[k]:
            places = f"{values[k]:.9g} at t={ordered[k]:.6g}, {values[k + 1]:.9g} at t={ordered[k + 1]:.6g}"
            return Check.found("log_snr falls", False, f"it does not from data to noise: {places}")
    return Check.found("log_snr falls", True, f"from {values[0]:.4g} to {values[-1]:.4g}")


def _inverse(path: Path, times: list[float]) -> Check:
    worst = Largest()
    for t in times:
        level = float(path.log_snr(t))
        again = float(path.time_from_log_snr(level))
        worst.see(abs(again / t - 1), f"log_snr({t:.9g}) = {level:.9g}, whose time is {again:.9g}")
        worst.see(
            abs(float(path.log_snr(again)) - level), f"log_snr of the time of {level:.9g} is {float(path.log_snr(again)):.9g}"
        )
    return worst.check("time_from_log_snr inverts log_snr", _INVERSE)


def _zero(path: Path) -> Check:
    t = float(path.time_from_log_snr(math.inf))
    sigma = float(path.sigma(t))
    # Formulas may miss 0 by the rounding of their largest sigma.
    return Check(
        "sigma = 0 is where log_snr is infinite", sigma, 1e-12 * float(path.sigma(path.t_max)), f"sigma({t:.6g}) = {sigma:g}"
    )


def _forward(path: Path, times: list[float]) -> Check:
    """d alpha = f alpha dt and d sigma^2 = (2 f sigma^2 + g^2) dt."""
    worst = Largest()
    for t in times:
        f, g, half = float(path.drift(t)), float(path.diffusion(t)), float(path.half_variance_rate(t))
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        slope = float(path.alpha_derivative(t))
        worst.see(
            abs(f * alpha - slope) / max(abs(slope), 1e-300), f"f alpha = {f * alpha:.9g}, alpha' = {slope:.9g} at t={t:.6g}"
        )
        told, made = 2 * half, 2 * f * sigma**2 + g**2
        size = abs(2 * f * sigma**2) + g**2
        worst.see(abs(told - made) / size, f"2 f sigma^2 + g^2 = {made:.9g}, (sigma^2)' = {told:.9g} at t={t:.6g}")
        product = sigma * float(path.sigma_derivative(t))
        worst.see(abs(half - product) / size, f"half_variance_rate = {half:.9g}, sigma sigma' = {product:.9g} at t={t:.6g}")
    return worst.check("drift and diffusion make alpha and sigma", _INVERSE)


#: Functions of a path that take floats, arrays and tensors.
_FUNCTIONS = (
    "alpha", "sigma", "alpha_derivative", "sigma_derivative", "log_snr", "rho", "drift", "diffusion", "half_variance_rate",
)  # fmt: skip


def _kinds(path: Path, times: list[float]) -> Check:
    worst = Largest()
    array = np.array(times)
    tensor = torch.tensor(times, dtype=torch.float64)
    for name in _FUNCTIONS:
        function: Callable[[Any], Any] = getattr(path, name)
        single = np.array([float(function(t)) for t in times])
        size = np.abs(single).max() or 1.0
        for kind, found in (("a tensor", function(tensor)), ("an array", function(array))):
            if tuple(found.shape) != single.shape or "float64" not in str(found.dtype):
                detail = f"{name} of {kind} of {len(times)} times has shape {tuple(found.shape)} and {found.dtype}"
                return Check.found("floats, arrays and tensors agree", False, detail)
            error = np.abs(np.asarray(found) - single) / size
            worst.see(
                float(error.max()), f"{name} of {kind} differs from that of a float at t={times[int(error.argmax())]:.6g}"
            )
    return worst.check("floats, arrays and tensors agree", _SAME)


def _part(path: Path, times: list[float]) -> Check:
    worst, part = Largest(), path.between(max(times), min(times))
    for t in times:
        for name in ("alpha", "sigma"):
            one, other = float(getattr(path, name)(t)), float(getattr(part, name)(t))
            worst.see(abs(one - other), f"{name}({t:.6g}) is {one:.9g}, of a part of the path {other:.9g}")
    return worst.check("a part of the path is the path", 0.0)
