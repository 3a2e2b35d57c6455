"""diffode's solvers as sampler functions of ComfyUI: k-diffusion's form, with what ComfyUI passes beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode.adapters.given_levels import check_evaluates, check_scale, laid_between, path_between
from diffode.adapters.samplers import Churn, NoiseSampler, churned, draw_levels, draws_from, with_options
from diffode.errors import ArgumentError, NumericalError
from diffode.fields import conversion
from diffode.solvers import Solver, get, table_solver
from diffode.solvers.ancestral import EDMStochastic
from diffode.solvers.informed import check_told, informed_by
from diffode.solvers.solver import WritesTable
from diffode.solvers.trained.bespoke import TrainedSolver
from diffode.specs import options_of
from diffode.statistics import Statistics
from diffode.tableau import Tableau

#: Share of data at which solvers begin that need some, where the first level has none.
_FIRST_ALPHA = 1e-6
#: Number of wrappers that ComfyUI puts around a model before the object that knows its levels.
_WRAPPERS = 6


def as_comfyui_sampler(
    solver: str | Solver, *, flow: bool | None = None, scale: float = 1.0, statistics: Statistics | None = None
) -> Callable[..., Tensor]:
    """A solver as ``sample(model, x, sigmas, extra_args=None, callback=None, disable=None, ...)``, for ComfyUI's ``KSAMPLER``.

    Args:
        solver: a solver that writes a table, or its spec. One that lays its own levels, such as ``universal``, gets the first
            level and the last that is not 0; its last evaluation then goes on to 0.
        flow: whether the model's sigma is the time of flow matching, x = (1 - sigma) x_0 + sigma eps, rather than the noise
            level of x = x_0 + sigma eps. None reads it from ComfyUI's model: ``model_sampling`` of type ``CONST``.
        scale: root mean variance of the data (latents), for solvers that depend on it.
        statistics: mean and covariance of the data (latents), for solvers that ask for them. One with ``jump=`` goes from the
            first level to the first of the others that is not above its own, without an evaluation.

    Returns:
        The function. ``sigmas`` fall, to 0 or not; where denoise < 1 they begin below the model's highest. ``extra_args`` are
        handed to every call of the model. ``callback`` gets ``x``, ``i``, ``sigma``, ``sigma_hat`` and ``denoised`` once a
        step. Noise is ``noise_sampler(sigma, sigma_next)``; without one each picture has a generator of its own, seeded with
        ``extra_args["seed"]`` + 1 + its place in the batch, so that it does not depend on the others; without a seed it is
        torch's own. ``eta``, ``s_noise``, ``s_churn``, ``s_tmin`` and ``s_tmax`` are k-diffusion's; any other keyword is an
        option of the solver. Exceptions of the model and the callback, by which ComfyUI interrupts, pass as they are.

    Raises:
        ArgumentError: for statistics that the solver lacks, or does not ask for.
        CapabilityError: for a solver that writes no table.

    Source: ComfyUI, comfy/samplers.py, KSAMPLER; comfy/k_diffusion/sampling.py.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> sample = as_comfyui_sampler("dpmpp:order=2")
    >>> sample(diffode.adapters.as_k_diffusion(field), field.prior(3, generator=0), torch.tensor([80.0, 5.0, 0.5, 0.0])).shape
    torch.Size([3, 2])
    """
    recipe = table_solver(solver)
    check_told(recipe, statistics)
    check_scale(scale)

    def sample(
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        eta: float | None = None,
        s_noise: float = 1.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        **options: Any,
    ) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
            raise ArgumentError("x must be a floating-point tensor (B, *shape)")
        levels = _levels(sigmas)
        if len(levels) < 2 or not len(x):
            return x
        straight = is_flow(model) if flow is None else flow
        churn = Churn(s_noise, s_churn, s_tmin, s_tmax)
        own = informed_by(with_options(_with(recipe, options), eta, churn).for_field(scale, x[0].numel()), statistics)
        if not isinstance(own, WritesTable):
            raise ArgumentError(f"solver {own.spec!r} writes no table, so that another program can't run it")
        table = check_evaluates(_table(own, levels, straight, churn))
        factor = 1.0 if isinstance(own, EDMStochastic) else s_noise
        draw = _noise(table, x, extra_args, noise_sampler, factor)
        told = _told(table, len(levels) - 1)
        return _run(table, model, x, levels[0], dict(extra_args or {}), callback, told, draw)

    return sample


def is_flow(model: Any) -> bool:
    """Whether a model, as ComfyUI wraps it for samplers, is one of flow matching: its ``model_sampling`` is a ``CONST``."""
    for _ in range(_WRAPPERS):
        found = getattr(model, "model_sampling", None)
        if found is not None:
            return any(base.__name__ == "CONST" for base in type(found).__mro__)
        model = getattr(model, "inner_model", None)
    return False


def _levels(sigmas: Tensor | Sequence[float]) -> list[float]:
    """Falling levels, each once, since menus repeat some; ArgumentError for others."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    if levels.ndim != 1 or not bool(torch.isfinite(levels).all() and (levels.diff() <= 0).all() and (levels >= 0).all()):
        raise ArgumentError("sigmas must be noise levels that do not rise, finite and at least 0")
    return list(dict.fromkeys(levels.tolist()))


def _with(recipe: WritesTable, options: Mapping[str, Any]) -> WritesTable:
    """The solver with some of its options replaced, checked as in its spec."""
    if not options:
        return recipe
    known = {option.name for option in dataclasses.fields(recipe) if option.init}
    if unknown := sorted(options.keys() - known):
        raise ArgumentError(f"{', '.join(unknown)}: solver {recipe.spec!r} has only the options {', '.join(sorted(known))}")
    return table_solver(get(recipe.name, **{**options_of(recipe), **options}))


def _table(solver: WritesTable, levels: list[float], straight: bool, churn: Churn) -> Tableau:
    """The table for levels of a model, of flow matching or not."""
    own_churn = isinstance(solver, EDMStochastic)
    if straight and levels[0] > 1:
        raise ArgumentError(f"sigmas of a flow-matching model must be at most 1, got {levels[0]:g}: give flow=False")
    if straight and churn.s_churn and not own_churn:
        raise ArgumentError("s_churn raises noise levels of x = x_0 + sigma eps, which a flow-matching model has not")
    if isinstance(solver, TrainedSolver):
        return laid_between(solver, levels, straight)
    if straight and solver.chart_name != "velocity":
        levels = [min(levels[0], 1 - _FIRST_ALPHA), *levels[1:]]
    # Churn raises the first level by at most sqrt 2.
    path = path_between(
        levels[0] * (1.5 if not straight and (churn.s_churn or own_churn) else 1), levels[-1] or levels[-2], straight
    )
    if churn.s_churn and not own_churn:
        return churned(solver, path, levels, churn)
    return solver.tableau(path, levels)


def _noise(
    table: Tableau,
    x: Tensor,
    extra_args: Mapping[str, Any] | None,
    noise_sampler: NoiseSampler | None,
    factor: float,
) -> Callable[[int], Tensor]:
    """The k-th noise of a run, in the dtype in which states are summed."""
    state, ends = _summed(x), draw_levels(table)
    seed = (extra_args or {}).get("seed")
    seeds = [] if seed is None else [(int(seed) + 1 + row) % 2**63 for row in range(len(x))]
    sources = [torch.Generator().manual_seed(one) for one in seeds] or None

    def draw(k: int) -> Tensor:
        if noise_sampler is None:
            return factor * draws_from(sources, state)
        noise = noise_sampler(*(x.new_tensor(level) for level in ends[k]))
        if not isinstance(noise, Tensor) or noise.shape != x.shape:
            raise ArgumentError(f"noise_sampler must give a tensor of x's shape {tuple(x.shape)}")
        return factor * noise.to(state)

    return draw


def _summed(x: Tensor) -> Tensor:
    """x in the dtype in which states are summed: float32 for half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _told(table: Tableau, steps: int) -> dict[int, int]:
    """The evaluated rows of which the callback is told, each with the number of its step: the first of every step."""
    if table.nfe == steps:
        # Among these are predictors, whose evaluations serve the next step.
        return {row: number for number, row in enumerate(table.evaluated)}
    told: dict[int, int] = {}
    for row in table.evaluated:
        step = sum(output <= row for output in table.outputs) - 1
        if step > max(told.values(), default=-1):
            told[row] = step
    return told


def _run(
    table: Tableau,
    model: Callable[..., Any],
    x: Tensor,
    first: float,
    extra: dict[str, Any],
    callback: Callable[[dict[str, Any]], Any] | None,
    told: Mapping[int, int],
    draw: Callable[[int], Tensor],
) -> Tensor:
    """Drive the table with the model; ``told`` are the rows of which the callback is told, with their steps."""
    path = table.path
    if path is None:
        raise ArgumentError("the table of a sampler needs a path")
    run = table.driven(_summed(x), draw)
    row, state = next(run)
    while True:
        t = float(table.rows[row].time)
        # The first level may have been lowered to one with some data, of which the model is not told.
        sigma = first if row == 0 else t
        denoised = model(state.to(x.dtype), x.new_full((len(x),), sigma), **extra)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            raise ArgumentError(f"model must give a tensor of x's shape {tuple(x.shape)}")
        if callback is not None and row in told:
            at = x.new_tensor(sigma)
            callback({"x": state.to(x.dtype), "i": told[row], "sigma": at, "sigma_hat": at, "denoised": denoised})
        of_x, of_denoised = conversion(path, "denoised", table.prediction, t)
        try:
            row, state = run.send(of_x * state + of_denoised * denoised.to(state.dtype))
        except StopIteration as end:
            result: Tensor = end.value
            break
    if not bool(torch.isfinite(result).all()):
        raise NumericalError("the run ends in values that are not finite: look at the model's answers")
    return result.to(x.dtype)
