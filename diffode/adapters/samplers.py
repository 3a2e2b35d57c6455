"""diffode's solvers as k-diffusion's functions and as azula's samplers."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from diffode import grids, solvers
from diffode.adapters.denoisers import azula_path, from_azula, from_k_diffusion
from diffode.adapters.given_levels import check_evaluates, check_scale, laid_between
from diffode.errors import ArgumentError, NumericalError
from diffode.extensions import library
from diffode.fields import Field, conversion
from diffode.paths import EDM, Path
from diffode.randomness import Randomness, generator_from
from diffode.solvers import Solver, for_run
from diffode.solvers.ancestral import EDMStochastic
from diffode.solvers.informed import check_told
from diffode.solvers.solver import WritesTable
from diffode.solvers.trained.bespoke import TrainedSolver
from diffode.statistics import Statistics
from diffode.tableau import Row, Tableau

#: Source of noise: a generator or a seed for the batch, or one for each row; None is torch's own state.
Source = Randomness | Sequence[Randomness] | None
#: k-diffusion's ``noise_sampler(sigma, sigma_next)``, which gives standard normal noise of x's shape for a step between levels.
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
#: The checks made of azula's denoisers, of which each run has another field; forgotten with the denoiser.
_CHECKED: weakref.WeakKeyDictionary[torch.nn.Module, tuple[bool, bool]] = weakref.WeakKeyDictionary()


def as_k_diffusion_sampler(
    solver: str | Solver, *, scale: float = 1.0, statistics: Statistics | None = None
) -> Callable[..., Tensor]:
    """A solver as ``sample(model, x, sigmas, extra_args=None, callback=None, disable=None, generator=None, ...)``.

    ``sigmas`` fall, to 0 at the end if wanted, as k-diffusion's schedules do; x, (B, *shape), is at ``sigmas[0]`` and of any
    floating dtype. In half precision the model gets half precision, while the states are summed in float32. ``callback`` gets
    a dictionary with ``x``, ``i``, ``sigma``, ``sigma_hat`` and ``denoised`` after every evaluation.

    ``scale`` is the root mean variance of the data, for solvers that depend on it. ``statistics`` are mean and covariance of
    the data for a solver that asks for them. One with ``jump=`` goes from ``sigmas[0]`` to the first of the others that is not
    above its level without an evaluation. A solver that lays its own levels, such as ``universal``, gets the first level and
    the last that is not 0; its last evaluation then goes on to 0.

    ``generator`` is a generator or seed, or a list with one for each row, whose noise then does not depend on the other rows.
    Without it noise comes from torch's own state, as in k-diffusion. Other keyword arguments are k-diffusion's:

    * ``noise_sampler(sigma, sigma_next)`` gives the noise of a step instead; a step with two draws calls it for each part;
    * ``eta`` replaces the solver's own, if it has one;
    * ``s_noise`` multiplies the noise;
    * ``s_churn`` multiplies each level between ``s_tmin`` and ``s_tmax`` by 1 + min(s_churn/steps, sqrt 2 - 1) before its step
      (Karras et al., arXiv 2206.00364, algorithm 2), for solvers that keep nothing from step to step.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> sample = as_k_diffusion_sampler("dpmpp:order=2")
    >>> x = sample(diffode.adapters.as_k_diffusion(field), field.prior(3, generator=0), torch.tensor([80.0, 5.0, 0.5, 0.0]))
    >>> tuple(x.shape)
    (3, 2)
    """
    recipe = _written(solver)
    check_told(recipe, statistics)
    check_scale(scale)

    def sample(
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        generator: Source = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        eta: float | None = None,
        s_noise: float = 1.0,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
    ) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim < 2 or not len(x) or not x.is_floating_point():
            raise ArgumentError("x must be a floating-point tensor (B, *shape) of at least one row")
        levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all() and levels[-1] >= 0):
            raise ArgumentError("sigmas must be at least two falling noise levels, the last at least 0")
        if noise_sampler is not None and generator is not None:
            raise ArgumentError("give noise_sampler= or generator=, not both: one of them would be ignored")
        last = float(levels[-1]) or float(levels[-2])
        # Churn raises the first level by at most sqrt 2.
        path = EDM(min(last, float(levels[0]) / 2), float(levels[0]) * (math.sqrt(2) if s_churn else 1))
        state = x if x.dtype in (torch.float32, torch.float64) else x.float()
        field = from_k_diffusion(_narrowed(model, x.dtype), path, scale=scale, extra=extra_args)
        churn = Churn(s_noise, s_churn, s_tmin, s_tmax)
        own = _written(for_run(with_options(recipe, eta, churn), field, x[0].numel(), statistics))
        raised = s_churn > 0 and not isinstance(own, EDMStochastic)
        table = check_evaluates(churned(own, path, levels.tolist(), churn) if raised else _between(own, path, levels.tolist()))
        factor = 1.0 if isinstance(own, EDMStochastic) else s_noise
        ends = draw_levels(table)

        def draw(k: int) -> Tensor:
            if noise_sampler is None:
                return factor * draws_from(generator, state)
            noise = noise_sampler(*(x.new_tensor(level) for level in ends[k]))
            if not isinstance(noise, Tensor) or noise.shape != x.shape:
                raise ArgumentError(f"noise_sampler must give a tensor of x's shape {tuple(x.shape)}")
            return factor * noise.to(state)

        # A seed starts one stream for the whole run.
        generator = _sources(generator, len(x))
        return _run(table, field, state, draw, callback, x.dtype).to(x.dtype)

    return sample


def _between(solver: WritesTable, path: Path, levels: list[float]) -> Tableau:
    return laid_between(solver, levels, False) if isinstance(solver, TrainedSolver) else solver.tableau(path, levels)


def _run(
    table: Tableau,
    field: Field,
    x: Tensor,
    draw: Callable[[int], Tensor],
    callback: Callable[[dict[str, Any]], Any] | None,
    dtype: torch.dtype,
) -> Tensor:
    run, number, path = table.driven(x, draw), 0, field.require_path("noise levels")
    before = {row: row for row in table.outputs}
    try:
        row, state = next(run)
        while True:
            sigma = float(table.rows[row].time)
            denoised = field.denoised(state, sigma)
            if callback is not None:
                # sigma_hat is the level that churn has raised, sigma the level of the grid before it.
                start = row if row in before else row - 1
                grid = float(table.rows[start].time) if table.rows[row].draws and start in before else sigma
                shown = {"x": state.to(dtype), "denoised": denoised.to(dtype)}
                callback({**shown, "i": number, "sigma": state.new_tensor(grid), "sigma_hat": state.new_tensor(sigma)})
            of_x, of_denoised = conversion(path, "denoised", table.prediction, sigma)
            row, state = run.send(of_x * state + of_denoised * denoised)
            number += 1
    except StopIteration as end:
        result: Tensor = end.value
        if not bool(torch.isfinite(result).all()):
            raise NumericalError("the run ends in values that are not finite: look at the model's answers") from None
        return result


@dataclass(frozen=True)
class Churn:
    """k-diffusion's arguments of the noise that it adds, all numbers >= 0; ArgumentError for others."""

    s_noise: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ArgumentError(f"{name} must be a number >= 0, got {value!r}")


def with_options(solver: WritesTable, eta: float | None, churn: Churn) -> WritesTable:
    """The solver with k-diffusion's arguments as its options; ArgumentError for arguments that it has no options for."""
    if isinstance(solver, EDMStochastic):
        if churn.s_churn:
            solver = replace(
                solver,
                churn=churn.s_churn,
                noise_from=churn.s_tmin,
                noise_to=churn.s_tmax,
                inflation=churn.s_noise,
            )
        elif churn.s_noise != 1:
            solver = replace(solver, inflation=churn.s_noise)
    if eta is None:
        return solver
    if not any(option.name == "eta" for option in fields(solver)):
        raise ArgumentError(f"solver {solver.spec!r} has no eta; give one that draws noise, such as 'euler_ancestral'")
    return replace(solver, eta=eta)  # type: ignore[call-arg]


def churned(solver: WritesTable, path: Path, levels: Sequence[float], churn: Churn) -> Tableau:
    """A solver's table that first raises the level, by added noise, in each step that begins between two levels."""
    if solver.stochastic:
        raise ArgumentError(f"s_churn goes with a solver that draws no noise of its own, not with {solver.spec!r}")
    if solver.jump is not None:
        raise ArgumentError(
            f"s_churn goes with a solver that does not jump, not with {solver.spec!r}: leave one of the two out"
        )
    gamma = min(churn.s_churn / (len(levels) - 1), math.sqrt(2) - 1)
    whole = solver.tableau(path, levels)
    for start, end in itertools.pairwise(whole.outputs):
        used = {j for row in whole.rows[start + 1 : end + 1] for j in (*row.states, *row.evaluations)}
        if min(used) < start:
            raise ArgumentError(f"s_churn goes with a solver that keeps nothing from step to step, not with {solver.spec!r}")
    rows, outputs, draws = [Row(levels[0])], [0], 0
    for s, t in itertools.pairwise(levels):
        x, high = outputs[-1], s
        if gamma > 0 and churn.s_tmin <= s <= churn.s_tmax:
            high = s * (1 + gamma)
            rows.append(Row(high, {x: 1.0}, {}, {draws: s * math.sqrt(gamma * (2 + gamma))}))
            x, draws = len(rows) - 1, draws + 1
        step = solver.tableau(path, [high, t])
        place = [x, *range(len(rows), len(rows) + len(step.rows) - 1)]
        for row in step.rows[1:]:
            states, evaluations = ({place[j]: c for j, c in terms.items()} for terms in (row.states, row.evaluations))
            rows.append(Row(row.time, states, evaluations))
        outputs.append(place[step.outputs[-1]])
    return Tableau(whole.prediction, tuple(rows), tuple(outputs), path, solver.spec)


def draw_levels(table: Tableau) -> list[tuple[float, float]]:
    """The noise levels between which each draw adds noise: from the start of its step, or from the draw before it in the
    step, to the row in which it first appears.
    """
    found: list[tuple[float, float]] = []
    begin = float(table.rows[0].time)
    last = set(table.outputs)
    for number, row in enumerate(table.rows):
        for k in sorted(row.draws):
            if k == len(found):
                found.append((begin, float(row.time)))
                begin = float(row.time)
        if number in last:
            begin = float(row.time)
    return found


def draws_from(source: Source, x: Tensor) -> Tensor:
    """Standard normal noise of x's shape, dtype and device; of a list, each generator gives the noise of one row."""
    if isinstance(source, Sequence):
        rows = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=_device(g, x)) for g in map(generator_from, source)]
        return torch.stack(rows).to(x.device)
    generator = None if source is None else generator_from(source)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=_device(generator, x)).to(x.device)


def _device(generator: torch.Generator | None, x: Tensor) -> torch.device:
    return x.device if generator is None else generator.device


def _sources(source: Source, count: int) -> Source:
    """Generators in place of seeds; ArgumentError for a list that has not one for each of ``count`` rows."""
    if source is None:
        return None
    if not isinstance(source, list | tuple):
        return generator_from(source)  # type: ignore[arg-type]
    if len(source) != count:
        raise ArgumentError(f"generator has {len(source)} generators for {count} rows: give one for every row, or one for all")
    return [generator_from(one) for one in source]


def _narrowed(model: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A function that gets x in half precision, the states' dtype outside; a network is called in its own dtype anyway."""
    whole = dtype in (torch.float32, torch.float64)
    if whole or not callable(model) or isinstance(getattr(model, "__self__", model), torch.nn.Module):
        return model
    return lambda x, sigma, **extra: model(x.to(dtype), sigma.to(dtype), **extra).to(x.dtype)


def as_azula_sampler(
    solver: str | Solver, grid: grids.Times | None = None, *, statistics: Statistics | None = None
) -> type[Any]:
    """A solver as a class of azula's samplers: ``as_azula_sampler("unipc:order=3")(denoiser, steps=20)(x)``.

    Its times are azula's own (``start``, ``stop``, ``steps``) unless a ``grid`` of diffode's is given. ``statistics`` are mean
    and covariance of the data for a solver that asks for them. ``generator`` is one
    generator for the batch, or a list with one for each row. States of half precision are summed in float32. The first run of
    a denoiser, with any sampler, checks it as :func:`from_azula` does, with seven calls more.
    """
    base = library("azula.sample", "--no-deps azula einops").Sampler
    recipe = _written(solver)
    check_told(recipe, statistics)
    if grid is not None:
        grids.check(grid)

    class DiffodeSampler(base):  # type: ignore[misc, valid-type]
        """A solver of diffode on azula's schedule and times."""

        def __init__(self, denoiser: Any, **options: Any):
            super().__init__(**options)
            self.denoiser = denoiser

        @torch.no_grad()
        def __call__(self, x: Tensor, generator: Source = None, **extra: Any) -> Tensor:
            state = x if x.dtype in (torch.float32, torch.float64) else x.float()
            field = from_azula(self.denoiser, extra=extra)
            field.made_checks = _CHECKED.get(self.denoiser, field.made_checks)
            path = azula_path(self.denoiser.schedule)
            times = self.timesteps.double().tolist() if grid is None else grid
            own = _written(for_run(recipe, field, x[0].numel(), statistics))
            if isinstance(own, TrainedSolver) and not grids.is_named(times):
                # azula's times end where its path may have no noise left.
                ends = grids.get(times).tolist()
                times = [min(ends[0], path.t_max), max(ends[-1], path.t_min)]
            steps = self.steps if grids.is_named(times) or isinstance(own, TrainedSolver) else None
            table = check_evaluates(own.tableau(path, times, steps))
            noise = None
            if table.draws:
                source = _sources(generator, len(x))
                if isinstance(source, Sequence):
                    noise = torch.stack([draws_from(source, state) for _ in range(table.draws)])
                else:
                    noise = draws_from(source, state.expand(table.draws, *x.shape))
            found = solvers.run_tableau(table, field, state, noise=noise).x.to(x.dtype)
            _CHECKED[self.denoiser] = field.made_checks
            return found

    DiffodeSampler.__name__ = f"Diffode_{recipe.name}"
    return DiffodeSampler


def _written(solver: str | Solver) -> WritesTable:
    recipe = solvers.get(solver)
    if not isinstance(recipe, WritesTable):
        raise ArgumentError(f"solver {recipe.spec!r} writes no table, so another library can't run it; choose one that does")
    return recipe
