"""The lines that run a method in other programs: what a recommendation ends in."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from diffode import grids, paths, solvers
from diffode.fields import exact_field
from diffode.paths import EDM, Path, RectifiedFlow
from diffode.solvers.direct import LaysTimes
from diffode.solvers.solver import Solver, WritesTable
from diffode.specs import format_spec, parse_spec
from diffode.targets import GaussianMixture

#: Difference of two runs, in units of the data's scale, that is rounding.
_ROUNDING = 1e-6
#: Largest number of levels that a line lists; beyond it a line makes them.
_MOST_LISTED = 32


def method_parts(method: str) -> tuple[str, str]:
    """The specs of solver and grid in a method of a ranking, which leaves out the grid ``karras``.

    >>> method_parts("unipc:order=3 @ log_snr"), method_parts("ddim")
    (('unipc:order=3', 'log_snr'), ('ddim', 'karras'))
    """
    solver, _, grid = method.partition(" @ ")
    return solver, grid or "karras"


def lines_to_paste(
    method: str, nfe: int, path: str | None = None, *, calls: int = 1, guidance: float | None = None
) -> dict[str, list[str]]:
    """Lines that run a method within a budget, as they were measured, by the program that they are for.

    A program is left out where its run would be another one, or cost more than the budget: k-diffusion's functions know levels
    sigma/alpha alone, so that solvers whose steps depend on more than these differ there.

    Args:
        method: solver and grid, as a ranking names them.
        nfe: budget in evaluations.
        path: spec of the path of the measurement; None if there are several, or none that has a name.
        calls: network calls of one evaluation, 2 for a guided model, which diffode counts and other programs do not.
        guidance: weight of guidance, which a pipeline of diffusers is to be called with; its own unless given.

    Returns:
        Lines of Python for ``diffode``, ``diffusers``, ``azula``, ``k-diffusion`` and ``ComfyUI``, in this order. Names that
        they take for given: ``field`` and ``x``; ``pipe``; ``denoiser`` and ``x``; ``model`` and ``noise``.

    Raises:
        ArgumentError: for a method whose solver or grid is unknown.
    """
    spec, grid = method_parts(method)
    recipe = solvers.get(spec)
    noise = ", generator=0" if recipe.stochastic else ""
    known = ["known = field.statistics  # of a model: diffode.Statistics.of_samples(data)"] if recipe.needs_statistics else []
    told = ", statistics=known" if known else ""
    # A flow map lays its own times.
    on_grid = "" if isinstance(recipe, LaysTimes) else f', grid="{grid}"'
    found = {"diffode": [*known, f'diffode.solve(field, x, solver="{spec}"{on_grid}, nfe={nfe * calls}{noise}{told})']}
    # Listed times belong to one path, and another program has another.
    if not isinstance(recipe, WritesTable) or recipe.lays_levels or not grids.is_named(grid):
        return found
    on = paths.get(path or "edm")
    if known:
        # Steps of several evaluations may cost fewer at their ends. Pipelines of flow matching leave no place for a jump.
        if recipe.nfe_per_step == 1 and (recipe.jump is None or not isinstance(on, RectifiedFlow)):
            latents = "known = diffode.Statistics.of_samples(latents)  # of what the network denoises"
            first, *others = _diffusers(spec, grid, nfe, guidance, ", statistics=known")
            found["diffusers"] = ["import diffode", first, latents, *others]
        return found
    # The step to no noise costs a two-stage solver a single evaluation, so that a budget holds more steps there.
    table = recipe.within(on, grid, nfe)
    steps = len(table.outputs) - 1
    if table.rows != recipe.tableau(on, grid, steps).rows:
        # The solver spends a budget by steps of several orders, and programs ask for steps alone.
        return found
    found["diffusers"] = _diffusers(spec, grid, steps, guidance)
    ending = _with_noise(grid)
    remark = "" if ending == grid else "  # azula's schedules end with some noise, and so does this run"
    # A step to some noise costs a two-stage solver all its evaluations, so that as many steps may cost more.
    if ending == grid or recipe.tableau(on, ending, steps).nfe <= nfe:
        found["azula"] = [
            "from diffode.adapters import as_azula_sampler",
            f'x = as_azula_sampler("{spec}", grid="{ending}")(denoiser, steps={steps})(x){remark}',
        ]
    if path is not None and _needs_levels_alone(recipe, on, grid, steps):
        found |= _by_levels(spec, on, grid, steps)
    return found


def _diffusers(spec: str, grid: str, steps: int, guidance: float | None, told: str = "") -> list[str]:
    """Lines for a pipeline of diffusers; ``told`` are further arguments of its scheduler."""
    # Their scale of guidance is our weight: 1 is the conditional network alone.
    scale = "" if guidance is None else f", guidance_scale={guidance:g}"
    return [
        "from diffode.adapters import as_diffusers_scheduler",
        f'pipe.scheduler = as_diffusers_scheduler("{spec}", like=pipe.scheduler, grid="{grid}"{told})',
        f"images = pipe(prompt, num_inference_steps={steps}{scale}).images",
    ]


def _with_noise(grid: str) -> str:
    """The grid without its step to no noise."""
    name, options = parse_spec(grid)
    options.pop("to_zero", None)
    return format_spec(name, {**options, "to_zero": False} if name.startswith("ays_") else options)


def _by_levels(spec: str, path: Path, grid: str, steps: int) -> Mapping[str, list[str]]:
    """Lines for functions of k-diffusion's kind, which take the levels themselves."""
    sampler, times = f'as_k_diffusion_sampler("{spec}")', grids.get(grid, path, steps).tolist()
    if len(times) > _MOST_LISTED:
        made = f'[path.rho(t) for t in diffode.grids.get("{grid}", path, {steps}).tolist()]'
        given = ["import diffode", f'path = diffode.paths.get("{path.spec}")', f"sigmas = torch.tensor({made})"]
    else:
        given = [f"sigmas = torch.tensor([{', '.join(f'{path.rho(t):.6g}' for t in times)}])"]
    imports = ["import torch", "from diffode.adapters import as_k_diffusion_sampler", *given]
    return {
        "k-diffusion": [*imports, f"x = {sampler}(model, noise * sigmas[0], sigmas)"],
        "ComfyUI": [*imports, "import comfy.samplers", f"sampler = comfy.samplers.KSAMPLER({sampler})"],
    }


def _needs_levels_alone(recipe: Solver, path: Path, grid: str, steps: int) -> bool:
    """Whether a solver makes the same run from the levels sigma/alpha alone as on its path, tried on a mixture."""
    # Programs give times of rectified flow in the place of levels, at which the network has states of another size.
    if isinstance(path, RectifiedFlow) or recipe.stochastic:
        return False
    mixture = GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [0.1, 0.2])
    times = grids.get(grid, path, steps)
    levels = [path.rho(t) for t in times.tolist()]
    start = torch.tensor([[-1.5], [-0.4], [0.3], [1.2]], dtype=torch.float64)
    first, last = float(times[0]), float(times[-1])
    own = solvers.solve(exact_field(mixture, path), start * path.sigma(first), solver=recipe, grid=times).x / path.alpha(last)
    plain = exact_field(mixture, EDM(max(levels[-1], levels[-2] / 2), levels[0]))
    other = solvers.solve(plain, start * levels[0], solver=recipe, grid=levels).x
    return bool((own - other).abs().max() < _ROUNDING * mixture.scale)
