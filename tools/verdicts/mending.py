"""A library's module with some of its lines mended, and what that changes in few steps."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import diffode
from diffode import grids
from diffode.fields import Field
from diffode.numerics.orders import fit_order
from diffode.verify import check_sampler
from diffode.verify.sampler.foreign import k_diffusion
from diffode.verify.sampler.scheduler_loops import Scheduler
from diffode.verify.sampler.subject import Sampler

#: Runs a sampler: the field, the start, the times of a grid.
Run = Callable[[Field, Tensor, Sequence[float]], Tensor]

TARGETS = ("ring8", "digits-gmm10")
STEPS = (5, 10, 20)
#: Number of starts.
_STARTS = 256


def mended(module: Any, *changes: tuple[str, str]) -> Any:
    """A copy of a module whose source has other texts in place of some.

    Raises:
        LookupError: if the source has a text no longer: the finding is then a matter of the past.
    """
    source = inspect.getsource(module)
    for old, new in changes:
        if old not in source:
            raise LookupError(f"{module.__name__} has no {old!r}")
        source = source.replace(old, new)
    copy = types.ModuleType(f"{module.__name__}_mended")
    copy.__package__ = module.__package__
    exec(compile(source, f"{module.__name__} (mended)", "exec"), copy.__dict__)
    return copy


def sigmas(function: Callable[..., Any], **options: Any) -> Run:
    """The run of a function ``(model, x, sigmas, ...)``."""
    run = k_diffusion(function, options)
    return lambda field, x, times: run(field, x, times, torch.Generator().manual_seed(0))


def scheduler(cls: Any, **options: Any) -> Run:
    """The run of a scheduler of diffusers, in x/alpha, between the levels of a grid that ends at 0."""

    def run(field: Field, x: Tensor, times: Sequence[float]) -> Tensor:
        own = Scheduler(cls.__name__, cls(**options), (times[0], times[-1] or times[-2])).at(len(times) - 1)
        return own.follow(field, x * own.into(0), torch.Generator().manual_seed(0)) / own.into(-1)

    return run


def order(run: Run, path: str = "edm", grid: str = "karras") -> float:
    """The order measured of a run."""
    made = Sampler("mended", lambda field, x, times, _: run(field, x, times), path=path, grid=grid, to_zero=False)
    found = check_sampler(made).facts["order"]
    return float("nan") if found is None else float(found.slope)


def few_steps(runs: Mapping[str, Run], path: str = "edm", grid: str = "karras", to_zero: bool = False) -> str:
    """A table of errors in few steps: root mean square against the exact flow, in units of the data's scale."""
    head = ["steps", *(f"`{target}`, {name}" for target in TARGETS for name in runs)]
    lines = [head, ["---"] * len(head)]
    for steps in STEPS:
        line = [str(steps)]
        for target in TARGETS:
            field = diffode.exact_field(target, path)
            x = field.prior(_STARTS, generator=0)
            times = grids.get(grid + (":to_zero=true" if to_zero else ""), field.path, steps).tolist()
            true = diffode.reference(field, x, times[0], times[-1] or times[-2], 1e-9).x
            if to_zero:
                true = field.denoised(true, times[-2])
            for run in runs.values():
                line.append(f"{float((run(field, x, times) - true).square().sum(1).mean().sqrt()) / field.scale:.2g}")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def given_order(run: Run, to_zero: bool = True) -> float:
    """The order measured of a run between levels 20 and 0.05; one to 0 is held to the flow's point one level before."""
    field = diffode.exact_field("bimodal1d", "edm:sigma_min=0.05,sigma_max=20")
    x, counts, errors = field.prior(24, generator=0), (16, 32, 64, 128, 256), []
    for steps in counts:
        times = grids.get("karras" + (":to_zero=true" if to_zero else ""), field.path, steps).tolist()
        true = diffode.reference(field, x, times[0], times[-2] if to_zero else times[-1], 1e-12).x
        true = field.denoised(true, times[-2]) if to_zero else true
        errors.append(float((run(field, x, times) - true).square().mean().sqrt()))
    return fit_order(counts, errors).slope
