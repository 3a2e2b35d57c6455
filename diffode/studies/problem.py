"""The field of a cell: a target's exact field, with a source, guided, or neither, a trained network, or a user's field."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch

from diffode import bridges, cache, paths, sources, targets
from diffode.errors import ArgumentError, DiffodeError, FieldError
from diffode.fields import Field, TrainedField
from diffode.fields.own import FieldText
from diffode.fields.problem_text import field_of_text, guidance_of, parts_of, unguided
from diffode.flows import reachable
from diffode.paths import Path
from diffode.randomness import generator_from, keyed_normal, normal

#: What begins the text of a named bridge, where a target stands otherwise, and its path.
BRIDGE, INTERVAL = "bridge:", "interval"


def bridge_of(target: str) -> str | None:
    """The spec of the bridge that a cell's target names; None for any other target.

    >>> bridge_of("bridge:two_gaussians:coupling=optimal")
    'two_gaussians:coupling=optimal'
    """
    return target.removeprefix(BRIDGE) if target.startswith(BRIDGE) else None


@functools.lru_cache(maxsize=64)
def field_of(target: str, path: str | None) -> Field:
    """The field of a cell's target on its path; without a path, on the field's own, or EDM's for a target.

    A target with a source is a text ``TARGET from SOURCE``, a guided one ``TARGET guided GUIDANCE``, see
    :mod:`diffode.fields.problem_text`.
    """
    data, source = parts_of(target)
    if (guidance := guidance_of(target)) is not None and (FieldText.names(data) or bridge_of(data) is not None):
        raise ArgumentError(
            f"guidance {guidance.text!r} goes with a target that has labels, not with {data!r}: mix fields of your own with "
            "diffode.guide, and name the result as FILE.py:ATTR"
        )
    if (bridge := bridge_of(data)) is not None:
        if source is not None:
            raise ArgumentError(f"a bridge goes between two laws of its own: leave source {source!r} out for {data!r}")
        if path not in (None, INTERVAL):
            raise ArgumentError(f"a bridge follows no path, got path {path!r} for {target!r}: leave it out")
        return bridges.get(bridge)
    if source is not None and FieldText.names(data):
        raise ArgumentError(f"source {source!r} goes with a target, whose field is known; {data!r} names a field of your own")
    if FieldText.names(target):
        field = FieldText.read(target).field(path)
        field.require_path("a study")
        return field
    return field_of_text(target, paths.get(path or "edm"))


def starts(target: str, path: str | None, seed: int, points: int, first: float, key: str = "") -> torch.Tensor:
    """sigma x_1 at the first time, fixed by seed and target, so that every solver starts from the same points.

    ``key`` is that of the draws, and unless given the target's text without its guidance and what is told of its data: all
    weights have the same starts.
    """
    field, own = field_of(target, path), key or unguided(untold(target))
    size, sigma = (points, *shape_of(field)), path_of(target, path).sigma(first)
    if field.source is None:
        return sigma * keyed_normal(size, seed=seed, key=own)
    return sigma * next(field.source.keyed_draws(math.prod(size[1:]), [points], seed=seed, key=own)).reshape(size)


def untold(target: str) -> str:
    """The text of a field without the statistics that solvers are told, which change no flow; that of a target as it is.

    >>> untold("trained:ring8,statistics=scale"), untold("ring8")
    ('trained:ring8', 'ring8')
    """
    if not FieldText.names(target) or bridge_of(target) is not None:
        return target
    return str(replace(FieldText.read(target), statistics=None))


def shape_of(field: Field) -> tuple[int, ...]:
    """The shape of a row; ArgumentError if the field does not know it."""
    if field.shape is None:
        raise ArgumentError("the shape of a row of this field is unknown: give dim=")
    return field.shape


@functools.cache
def content_of(target: str, path: str) -> str:
    """A hash of a field: of a target's parameters, of a shipped network's weights, or of a user's field's answers at some
    points, computed on one thread (its weights, for instance, may change under the same name).
    """
    if (bridge := bridge_of(target)) is not None:
        return bridges.content(bridge)
    if not FieldText.names(target):
        data, source = parts_of(target)
        law, noise, guidance = targets.get(data), sources.get(source), guidance_of(target)
        content = law.content() if noise is None else cache.key_of(law.content(), noise.spec, noise.content())
        # Labels are no part of a law's content, and so the laws that they give enter here.
        return content if guidance is None else cache.key_of(content, *(part.content() for part in guidance.laws(law)))
    field = field_of(target, path)
    on = field.require_path("a study")
    told = _told(field, on)
    if isinstance(field, TrainedField):
        weights = [part for name, value in sorted(field.denoiser.state_dict().items()) for part in (name, value)]
        return cache.key_of(target, on.spec, sorted(field.facts.items()), *weights, *told)
    answers, threads = [], torch.get_num_threads()
    # The last bits of a sum depend on the number of threads.
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), field.uncounted():
            for t in (on.t_max, on.time_from_rho(math.sqrt(on.rho(on.t_min) * on.rho(on.t_max))), on.t_min):
                x = on.sigma(t) * normal((3, *shape_of(field)), generator=generator_from(0))
                # The last digits of an answer, which may differ between runs, are rounded off.
                answers.append((field.denoised(x, t) / field.scale * 1e5).round())
    except DiffodeError:
        raise
    except Exception as error:  # anyone's function may raise anything
        raise FieldError(
            f"the field can't be called with x of torch.float64, shape {tuple(x.shape)}, at t={t:g}: {type(error).__name__}: "
            f"{error}; wrap a float32 network as lambda x, t: net(x.float(), t).to(x.dtype)"
        ) from error
    finally:
        torch.set_num_threads(threads)
    return cache.key_of(target, on.spec, field.scale, *answers, *told)


def _told(field: Field, path: Path) -> list[torch.Tensor]:
    """What solvers are told of the data, as the flow of their Gaussian takes some points, without its last digits."""
    known = field.statistics
    if known is None:
        return []
    x = path.sigma(path.t_max) * normal((3, *shape_of(field)), generator=generator_from(0))
    return [(known.flow(x, path, path.t_max, path.t_min) / known.scale * 1e5).round()]


@functools.cache
def tolerance_of(target: str, path: str, tolerance: float) -> float:
    """The given tolerance, or the smallest one that the field's rounding allows, see :func:`diffode.flows.reachable`."""
    field = field_of(target, path)
    return reachable(field, tolerance, shape_of(field))


def path_of(target: str, path: str | None) -> Path:
    """The path of a cell's field, or the interval of a bridge."""
    field = field_of(target, path)
    return field.laid_on or field.require_path("a study")


def size_of(target: str) -> int:
    """The cost of an evaluation on one point, roughly and in arbitrary units."""
    if (bridge := bridge_of(target)) is not None:
        coupling = bridges.get(bridge).coupling
        return coupling.count * coupling.dim**2
    if FieldText.names(target):
        text = FieldText.read(target)
        if text.place.startswith("trained:"):
            # A network for images of its own arithmetic has thousands of products for each pixel, the others are small.
            field = field_of(untold(target), None)
            large = isinstance(field, TrainedField) and field.arithmetic is not None
            return 1000 * (field.dim or 1) if large else 10_000
        return 10_000 if text.dim is None else 1000 * math.prod(text.dim)
    data, source = parts_of(target)
    known, noise = targets.get(data), sources.get(source)
    modes = known.modes or 1
    if noise is not None:
        # A mixture as the source has its own components, the others some tens of nodes.
        modes *= (noise.of.modes or 1) if isinstance(noise, sources.TargetSource) else 50
    return modes * known.dim * (1 if guidance_of(target) is None else 2)
