"""Names of the schedules that published models were trained with: each stands for a path."""

from __future__ import annotations

from dataclasses import dataclass

_STABLE_DIFFUSION = "ddpm:schedule=scaled_linear,beta_start=0.00085,beta_end=0.012"


@dataclass(frozen=True)
class Published:
    """A published schedule.

    Attributes:
        path: spec of its path.
        models: models that were trained with it.
        source: where it stands.
    """

    path: str
    models: str
    source: str


#: The published schedules by name; a name is an alias of its path.
PUBLISHED = {
    "sd15": Published(
        _STABLE_DIFFUSION,
        "Stable Diffusion 1.x",
        "Rombach et al., arXiv 2112.10752; scheduler_config.json: scaled_linear, 0.00085 to 0.012, 1000 levels",
    ),
    # The betas are those of Stable Diffusion 1.5: the two models differ in their data, not in their levels of noise.
    "sdxl": Published(
        _STABLE_DIFFUSION,
        "Stable Diffusion XL (the levels of Stable Diffusion 1.5)",
        "Podell et al., arXiv 2307.01952; scheduler_config.json: scaled_linear, 0.00085 to 0.012, 1000 levels",
    ),
    # A shift moves the times of a run along the path and leaves the path itself as it is.
    "flux": Published(
        "rectified_flow",
        "Flux, Stable Diffusion 3: flow matching, whose times the grid shift:s=3.158 shifts as Flux does at 1024 x 1024",
        "Esser et al., arXiv 2403.03206, equation 23; scheduler_config.json of FLUX.1-dev: max_shift 1.15, s = exp(1.15)",
    ),
}


def spelled(name: str) -> str | None:
    """The path of a published schedule; None for any other name.

    >>> spelled("flux"), spelled("edm")
    ('rectified_flow', None)
    """
    known = PUBLISHED.get(name)
    return None if known is None else known.path
