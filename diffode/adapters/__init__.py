"""Other libraries in and out: models as fields and maps, our solvers as their samplers, our fields and maps as models.

Each name is imported on first use, so that no other library is needed before.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffode.errors import ArgumentError

_PLACES = {
    "as_azula_sampler": "adapters.samplers",
    "as_comfyui_sampler": "adapters.comfyui",
    "as_diffusers_model": "adapters.diffusers_model",
    "as_flow_matching": "fields.outward",
    "as_k_diffusion": "fields.outward",
    "as_k_diffusion_sampler": "adapters.samplers",
    "as_torchdiffeq": "fields.outward",
    "as_torchsde": "fields.outward",
    "as_two_time_model": "adapters.map_scheduler",
    "azula_path": "adapters.denoisers",
    "from_azula": "adapters.denoisers",
    "from_consistency": "adapters.consistency",
    "from_diffusers": "adapters.diffusers_model",
    "from_edm": "adapters.denoisers",
    "from_flow_map_model": "adapters.two_time",
    "from_flow_matching": "adapters.flows",
    "from_k_diffusion": "adapters.denoisers",
    "from_meanflow": "adapters.two_time",
    "from_score_sde": "adapters.denoisers",
    "from_shortcut": "adapters.two_time",
    "from_torchdiffeq": "adapters.flows",
    "from_torchsde": "adapters.sdes",
    "guided": "adapters.guidance",
    "odeint": "adapters.flows",
    "shared": "fields.model",
}

# Type checkers read names that are written out.
__all__ = [
    "DiffodeScheduler",
    "as_azula_sampler",
    "as_comfyui_sampler",
    "as_diffusers_model",
    "as_diffusers_scheduler",
    "as_flow_matching",
    "as_k_diffusion",
    "as_k_diffusion_sampler",
    "as_torchdiffeq",
    "as_torchsde",
    "as_two_time_model",
    "azula_path",
    "from_azula",
    "from_consistency",
    "from_diffusers",
    "from_edm",
    "from_flow_map_model",
    "from_flow_matching",
    "from_k_diffusion",
    "from_meanflow",
    "from_score_sde",
    "from_shortcut",
    "from_torchdiffeq",
    "from_torchsde",
    "guided",
    "odeint",
    "shared",
]

if TYPE_CHECKING:
    from diffode.adapters.comfyui import as_comfyui_sampler
    from diffode.adapters.consistency import from_consistency
    from diffode.adapters.denoisers import azula_path, from_azula, from_edm, from_k_diffusion, from_score_sde
    from diffode.adapters.diffusers_model import as_diffusers_model, from_diffusers
    from diffode.adapters.diffusers_scheduler import DiffodeScheduler
    from diffode.adapters.flows import from_flow_matching, from_torchdiffeq, odeint
    from diffode.adapters.guidance import guided
    from diffode.adapters.map_scheduler import as_two_time_model
    from diffode.adapters.samplers import as_azula_sampler, as_k_diffusion_sampler
    from diffode.adapters.sdes import from_torchsde
    from diffode.adapters.two_time import from_flow_map_model, from_meanflow, from_shortcut
    from diffode.fields.model import shared
    from diffode.fields.outward import as_flow_matching, as_k_diffusion, as_torchdiffeq, as_torchsde
    from diffode.solvers import Solver


def as_diffusers_scheduler(solver: "str | Solver" = "dpmpp:order=2", like: Any = None, **options: Any) -> Any:
    """A solver as a scheduler of diffusers.

    Args:
        solver: any solver that writes a table, or its spec.
        like: the scheduler that a model came with. The run has its levels, calls the network and reads the answer as it does;
            only the steps between the levels are the solver's.
        options: ``grid``, for other levels than those of ``like``; ``statistics``, for a solver that has to know mean and
            covariance of the data, as one with ``jump=auto``; and other options of
            :class:`diffode.adapters.diffusers_scheduler.DiffodeScheduler`; or new values of keys of ``like``'s configuration.

    Raises:
        ArgumentError: if ``like`` is no scheduler of diffusers, or one whose levels or keys diffode can't take over.

    ``as_diffusers_scheduler("ipndm:order=3", like=pipeline.scheduler, grid="karras")`` is
    ``diffode.solve(field, x, solver="ipndm:order=3", grid="karras", nfe=n)`` for ``num_inference_steps=n``.
    """
    from diffode import grids, solvers

    name = solver.partition(":")[0] if isinstance(solver, str) else getattr(solver, "name", "")
    if name == "map" or not isinstance(solver, str | solvers.Solver):
        given = solver if isinstance(solver, str) else type(solver).__name__
        raise ArgumentError(
            f"solver must be one that writes a table, or its spec; got {given}. "
            "A flow map is a model, not a scheduler: adapters.as_two_time_model(map, scheduler)"
        )
    if (known := getattr(solver, "statistics", None)) is not None:
        # A solver that was told of the data goes on knowing.
        options.setdefault("statistics", known)
    # A configuration is saved as JSON, and so holds the solver's spec.
    solver = solvers.registry.canonical(solver) if isinstance(solver, str) else solver.spec
    if options.get("grid") is not None:
        options["grid"] = grids.spec_of(options["grid"])
    made = __getattr__("DiffodeScheduler")
    if like is None:
        return made(solver=solver, **options)
    if not isinstance(getattr(like, "config", None), Mapping):
        raise ArgumentError(f"like must be a scheduler of diffusers (an object, not a class), got {like!r}")
    return made.like(like, solver, **options)


def __getattr__(name: str) -> Any:
    if name == "DiffodeScheduler":
        from diffode.extensions import library

        library("diffusers", "'diffode[diffusers]'")
        return importlib.import_module("diffode.adapters.diffusers_scheduler").DiffodeScheduler
    if name in _PLACES:
        return getattr(importlib.import_module(f"diffode.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'diffode.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
