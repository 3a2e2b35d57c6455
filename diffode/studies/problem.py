"""What a cell samples: the exact field of a target, a trained network that ships, or a field of the user's own."""

from __future__ import annotations

import functools
import math

import torch

from diffode import cache, fields, paths, targets
from diffode.errors import ArgumentError, DiffodeError, FieldError
from diffode.fields import ExactField, Field, TrainedField
from diffode.fields.own import FieldText
from diffode.paths import Path
from diffode.randomness import generator_from, normal

#: A reference can't be better than this many times what rounding there is in the field.
_ROUNDINGS = 100


@functools.lru_cache(maxsize=64)
def field_of(target: str, path: str | None) -> Field:
    """The field of a cell, by the cell's target and path; without a path, a field's own, EDM's for a target."""
    if FieldText.names(target):
        field = FieldText.read(target).field(path)
        field.require_path("a study")
        return field
    return fields.exact_field(targets.get(target), paths.get(path or "edm"))


def shape_of(field: Field) -> tuple[int, ...]:
    """The shape of a row."""
    if field.shape is None:
        raise ArgumentError("the shape of a row of this field is unknown: give dim=")
    return field.shape


@functools.cache
def content_of(target: str, path: str) -> str:
    """A hash of what is sampled: a target's parameters, a shipped network's weights, or what a user's field answers at some
    points (what it computes with may change under the same name), on one thread.
    """
    if not FieldText.names(target):
        return targets.get(target).content()
    field = field_of(target, path)
    on = field.require_path("a study")
    if isinstance(field, TrainedField):
        weights = [part for name, value in sorted(field.denoiser.state_dict().items()) for part in (name, value)]
        return cache.key_of(target, on.spec, sorted(field.facts.items()), *weights)
    answers, threads = [], torch.get_num_threads()
    # The last bits of a sum depend on how many threads share it.
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), field.uncounted():
            for t in (on.t_max, on.time_from_rho(math.sqrt(on.rho(on.t_min) * on.rho(on.t_max))), on.t_min):
                x = on.sigma(t) * normal((3, *shape_of(field)), generator=generator_from(0))
                # Rounded: the last digits may differ from run to run.
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
    return cache.key_of(target, on.spec, field.scale, *answers)


@functools.cache
def tolerance_of(target: str, path: str, tolerance: float) -> float:
    """The tolerance that a reference of this field can meet: a network in float32 has no more than its digits."""
    field = field_of(target, path)
    if isinstance(field, ExactField):
        return tolerance
    on = field.require_path("a study")
    t = on.time_from_rho(min(max(field.scale, on.rho(on.t_min)), on.rho(on.t_max)))
    x = math.hypot(on.sigma(t), on.alpha(t) * field.scale) * normal((4, *shape_of(field)), generator=generator_from(1))
    return min(1e-3, max(tolerance, _ROUNDINGS * field.rounding(x, t)))


def path_of(target: str, path: str | None) -> Path:
    """The path of a cell."""
    return field_of(target, path).require_path("a study")


def size_of(target: str) -> int:
    """Roughly what an evaluation on one point costs, in arbitrary units."""
    if FieldText.names(target):
        text = FieldText.read(target)
        return 10_000 if text.dim is None else 1000 * math.prod(text.dim)
    known = targets.get(target)
    return int(getattr(known, "count", 1)) * known.dim
