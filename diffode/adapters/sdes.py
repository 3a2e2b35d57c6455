"""SDE objects of torchsde: the field behind a reverse SDE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffode.adapters.adapted import AdaptedField, Mistakes, input_mistakes
from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.fields.field import Function
from diffode.fields.model import Model, single_time
from diffode.paths import Path
from diffode.paths import get as get_path
from diffode.randomness import generator_from, normal


def from_torchsde(
    sde: Any,
    path: Path | str,
    *,
    dim: int,
    scale: float | None = None,
    data: Tensor | None = None,
) -> Field:
    r"""The field behind a reverse SDE, a torchsde object with ``f(s, y)``, ``g(s, y)``, ``noise_type`` and ``sde_type``.

    torchsde's time runs forward: s = ``path.t_max`` - t. The score follows from the reverse drift
    :math:`-f_\mathrm{path}\,y + \tfrac{1 + \eta^2}{2} g_\mathrm{path}^2\,\mathrm{score}` and the noise
    :math:`\eta\,g_\mathrm{path}`.

    Args:
        sde: the object; y is (B, dim). Its noise must not depend on y, so that Ito and Stratonovich are the same SDE.
        path: the path whose reverse SDE it is.
        dim: number of coordinates of a row.
        scale, data: as in :func:`diffode.adapters.from_k_diffusion`.

    Raises:
        ArgumentError: if the noise is not the same in every direction, depends on y, or is no multiple of the path's.
    """
    on = get_path(path)
    if type(dim) is not int or dim < 1:
        raise ArgumentError(f"dim must be the number of coordinates of a row, got {dim!r}")
    for name in ("f", "g"):
        if not callable(getattr(sde, name, None)):
            raise ArgumentError(f"sde must have methods f(t, y) and g(t, y), as torchsde's have; {name} is missing")
    for name, known in (("noise_type", ("diagonal", "scalar", "additive", "general")), ("sde_type", ("ito", "stratonovich"))):
        if getattr(sde, name, None) not in known:
            raise ArgumentError(f"sde.{name} must be one of {', '.join(known)}, got {getattr(sde, name, None)!r}")
    eta = _eta(sde, on, dim)
    drift = Model(sde.f, "sde.f")

    def score(sign: float, put: Function = lambda x, t: x) -> Function:
        def one_time(x: Tensor, t: float) -> Tensor:
            when = torch.as_tensor(on.t_max - t, dtype=x.dtype, device=x.device)
            added = sign * drift(x, when, put(x, t).flatten(1)).reshape(x.shape) + on.drift(t) * x
            return added / ((1 + eta**2) / 2 * on.diffusion(t) ** 2)

        return single_time(drift, one_time)

    mistakes: Mistakes = {"the sign of its drift is wrong: torchsde's time s = t_max - t runs forward": ("score", score(-1.0))}
    mistakes |= input_mistakes("score", on, scale, data, lambda put: score(1.0, put))
    return AdaptedField(score(1.0), "score", on, model=drift, name="the reverse SDE", mistakes=mistakes, scale=scale, data=data)


def _eta(sde: Any, path: Path, dim: int) -> float:
    """eta, the ratio of the SDE's noise to the path's; ArgumentError if it differs between times or directions."""
    shares = []
    y = normal((2, dim), generator=generator_from(0))
    for share in (0.1, 0.5, 0.9):
        s = torch.tensor(share * (path.t_max - path.t_min), dtype=torch.float64)
        try:
            noise = [sde.g(s, z).detach().double() for z in (y, 2 * y)]
        except Exception as error:
            raise ArgumentError(f"sde.g can't be called with y of shape {tuple(y.shape)}: {error}") from error
        if sde.noise_type == "diagonal":
            squares = [torch.diag_embed(g**2) for g in noise]
        else:
            squares = [g @ g.transpose(1, 2) for g in noise]
        size = float(squares[0][0, 0, 0])
        same = torch.eye(dim, dtype=torch.float64) * size
        if any(square.shape != (2, dim, dim) or not torch.allclose(square, same.expand(2, -1, -1)) for square in squares):
            raise ArgumentError(
                "sde.g must be the same in every direction and for every y, as a diffusion model's reverse SDE has it; solve "
                "other SDEs with torchsde"
            )
        shares.append(math.sqrt(size) / path.diffusion(path.t_max - float(s)))
    if max(shares) - min(shares) > 1e-4 * max(1.0, max(shares)):
        raise ArgumentError(
            f"the noise of sde is no multiple of that of path {path.spec!r}: their ratios over time are "
            f"{', '.join(f'{v:.4g}' for v in shares)}; is it the reverse SDE of that path, with s = t_max - t?"
        )
    return sum(shares) / len(shares)
