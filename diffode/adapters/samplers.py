"""diffode's solvers as k-diffusion's functions and as azula's samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode import grids, solvers
from diffode.adapters.denoisers import azula_path, from_azula, from_k_diffusion
from diffode.errors import ArgumentError, NumericalError
from diffode.extensions import library
from diffode.fields import Field, conversion
from diffode.paths import EDM
from diffode.solvers import Solver
from diffode.solvers.direct import DirectSolver
from diffode.tableau import Tableau


def as_k_diffusion_sampler(solver: str | Solver) -> Callable[..., Tensor]:
    """A solver as ``sample(model, x, sigmas, extra_args=None, callback=None, disable=None, generator=None)``.

    ``sigmas`` fall, to 0 at the end if wanted, as k-diffusion's schedules have them; x is at ``sigmas[0]``. ``callback`` gets a
    dictionary with ``x``, ``i``, ``sigma``, ``sigma_hat`` and ``denoised`` after every evaluation. Without ``generator`` noise
    comes from torch's own state, as there.

    >>> import diffode
    >>> field = diffode.exact_field("ring8", "edm")
    >>> sample = as_k_diffusion_sampler("dpmpp:order=2")
    >>> x = sample(diffode.adapters.as_k_diffusion(field), field.prior(3, generator=0), torch.tensor([80.0, 5.0, 0.5, 0.0]))
    >>> tuple(x.shape)
    (3, 2)
    """
    recipe = _written(solver)

    def sample(
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
            raise ArgumentError("x must be a tensor (B, *shape) of at least one row")
        levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all() and levels[-1] >= 0):
            raise ArgumentError("sigmas must be at least two falling noise levels, the last at least 0")
        last = float(levels[-1]) or float(levels[-2])
        path = EDM(min(last, float(levels[0]) / 2), float(levels[0]))
        field = from_k_diffusion(model, path, extra=extra_args)
        table = recipe.for_field(field.scale, x[0].numel()).tableau(path, levels.tolist())
        return _run(table, field, x, generator, callback)

    return sample


def _run(
    table: Tableau,
    field: Field,
    x: Tensor,
    generator: torch.Generator | None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
) -> Tensor:
    def draw(_: int) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    run, number, path = table.driven(x, draw), 0, field.require_path("noise levels")
    try:
        row, state = next(run)
        while True:
            sigma = float(table.rows[row].time)
            denoised = field.denoised(state, sigma)
            if callback is not None:
                level = state.new_tensor(sigma)
                callback({"x": state, "i": number, "sigma": level, "sigma_hat": level, "denoised": denoised})
            of_x, of_denoised = conversion(path, "denoised", table.prediction, sigma)
            row, state = run.send(of_x * state + of_denoised * denoised)
            number += 1
    except StopIteration as end:
        result: Tensor = end.value
        if not bool(torch.isfinite(result).all()):
            raise NumericalError("the run ends in values that are not finite: look at the model's answers") from None
        return result


def as_azula_sampler(solver: str | Solver, grid: str | Sequence[float] | None = None) -> type[Any]:
    """A solver as a class of azula's samplers: ``as_azula_sampler("unipc:order=3")(denoiser, steps=20)(x)``.

    Its times are azula's own (``start``, ``stop``, ``steps``) unless a ``grid`` of diffode's is given.
    """
    base = library("azula.sample", "--no-deps azula einops").Sampler
    recipe = _written(solver)

    class DiffodeSampler(base):  # type: ignore[misc, valid-type]
        """A solver of diffode on azula's schedule and times."""

        def __init__(self, denoiser: Any, **options: Any):
            super().__init__(**options)
            self.denoiser = denoiser

        @torch.no_grad()
        def __call__(self, x: Tensor, generator: torch.Generator | None = None, **extra: Any) -> Tensor:
            field = from_azula(self.denoiser, extra=extra)
            path = azula_path(self.denoiser.schedule)
            times = self.timesteps.double().tolist() if grid is None else grid
            steps = self.steps if grids.is_named(times) else None
            own = recipe.for_field(field.scale, x[0].numel())
            table = own.tableau(path, times, steps)
            noise = None
            if table.draws:
                noise = torch.randn((table.draws, *x.shape), generator=generator, dtype=x.dtype, device=x.device)
            return solvers.run_tableau(table, field, x, noise=noise).x

    DiffodeSampler.__name__ = f"Diffode_{recipe.name}"
    return DiffodeSampler


def _written(solver: str | Solver) -> Solver:
    recipe = solvers.get(solver)
    if isinstance(recipe, DirectSolver):
        raise ArgumentError(f"solver {recipe.spec!r} writes no table, so another library can't run it; choose one that does")
    return recipe
