r"""The Fréchet distance of pictures: between Gaussians of what a classifier sees in them, as FID has it for photographs.

.. math:: d^2 = |m_1 - m_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

with mean and covariance of 64 features of a small classifier of Fashion-MNIST's classes, which ships with those of the test
set's 10,000 pictures. Source: Heusel et al., arXiv 1706.08500, equation 6, with another classifier, so that only values of this
one compare.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffode.errors import ArgumentError
from diffode.fields import Field
from diffode.input_files import believed
from diffode.metrics.gaussian import gaussian_w2
from diffode.metrics.measurement import Measurement, Outcome, needs
from diffode.tensor_files import finite, float64, read_tensors, write_tensors

#: Schema of a file with a classifier and what it sees in real pictures.
SCHEMA = "diffode-features-1"
#: The classifier that ships.
SHIPPED = FilePath(__file__).parent / "weights" / "fashion.safetensors"
#: Side of a picture, number of features and of classes.
SIDE, FEATURES, CLASSES = 28, 64, 10
#: Most floors in a file, and the largest number of pictures of one.
_MOST_FLOORS, _MOST_PICTURES = 100, 10**9
#: Pictures that the classifier looks at together.
_TOGETHER = 500


class Classifier(nn.Module):
    """The classes of pictures (B, 1, 28, 28) in grey values from -1 to 1: three convolutions, 64 features, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in ((1, 16), (16, 32), (32, 64))
        )
        self.gather, self.decide = nn.Linear(64 * 16, FEATURES), nn.Linear(FEATURES, CLASSES)

    def features(self, pictures: Tensor) -> Tensor:
        """What the last layer decides by, (B, 64)."""
        h = pictures
        for layer in self.convolutions:
            h = torch.nn.functional.silu(layer(h))
        found: Tensor = torch.nn.functional.silu(self.gather(h.flatten(1)))
        return found

    @override
    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of the classes, (B, 10)."""
        found: Tensor = self.decide(self.features(pictures))
        return found


@dataclass(frozen=True)
class Seen:
    """A classifier with what it sees in real pictures.

    Attributes:
        classifier: the network.
        mean, covariance: those of its features over the test set, (64,) and (64, 64) float64.
        floors: pairs (n, the distance that n other real pictures have), in the order of n.
        facts: how it was trained, with its ``accuracy`` on the test set.
    """

    classifier: Classifier
    mean: Tensor
    covariance: Tensor
    floors: tuple[tuple[int, float], ...]
    facts: dict[str, Any]

    def features(self, pictures: Tensor) -> Tensor:
        """Features (n, 64) in float64 of pictures (n, 784) or (n, 1, 28, 28); ArgumentError for another shape."""
        if pictures.ndim < 2:
            raise _no_pictures(())
        check_pictures(tuple(pictures.shape[1:]))
        parts = pictures.detach().cpu().to(torch.float32).reshape(-1, 1, SIDE, SIDE)
        with torch.no_grad():
            found = [self.classifier.features(part) for part in torch.split(parts, _TOGETHER)]
        return torch.cat(found).to(torch.float64)

    def distance(self, pictures: Tensor) -> float:
        """The squared distance of at least two pictures from the test set."""
        return frechet_of(self.features(pictures), self.mean, self.covariance)

    def floor(self, count: int) -> float:
        """The distance of ``count`` real pictures, along 1/count between those that were measured, and as 1/count below."""
        # The excess falls as 1/n: a covariance from n features has errors of that size in its mean and in its root.
        (before, value), *rest = self.floors
        if count <= before:
            return value * before / count
        for after, other in rest:
            if count <= after:
                share = (1 / before - 1 / count) / (1 / before - 1 / after)
                return value + share * (other - value)
            before, value = after, other
        return value


def frechet_of(features: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """The squared Fréchet distance between the Gaussian of features (n, F), n >= 2, and a given one.

    >>> features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> round(frechet_of(features + 2.0, features.mean(0), torch.cov(features.T)), 9)  # three means are off by 2
    12.0
    """
    return gaussian_w2(features.mean(0), torch.cov(features.T).reshape(covariance.shape), mean, covariance) ** 2


def check_pictures(shape: tuple[int, ...]) -> None:
    """Raise ArgumentError unless a row of this shape is a picture of 28 x 28."""
    if math.prod(shape) != SIDE**2:
        raise _no_pictures(shape)


def _no_pictures(shape: tuple[int, ...]) -> ArgumentError:
    return ArgumentError(
        f"frechet looks at pictures with 28 x 28 = 784 grey values from -1 to 1, got rows of shape {shape}: measure runs on "
        "fashion-points, fashion-mfa or trained:fashion-unet"
    )


def gives_pictures(field: Field) -> None:
    """Raise ArgumentError for a field whose rows are known to be no pictures of 28 x 28."""
    if field.shape is not None:
        check_pictures(tuple(field.shape))


@needs(length=False, fits=gives_pictures)
def frechet(outcome: Outcome) -> Measurement:
    """Squared Fréchet distance, in the features of the classifier that ships, from Fashion-MNIST's 10,000 test pictures.

    The floor is that of as many pictures of the training set. ArgumentError for rows that are no pictures of 28 x 28.
    """
    outcome.check_points(2, "frechet")
    seen = shipped()
    return Measurement("frechet", seen.distance(outcome.end), seen.floor(len(outcome.end)))


@functools.cache
def shipped() -> Seen:
    """The classifier that ships, with what it sees in the test set."""
    return load_seen(SHIPPED)


def save_seen(seen: Seen, file: str | FilePath) -> None:
    """Write a classifier with what it sees; weights as float32."""
    tensors = {name: value.detach().to(torch.float32).contiguous() for name, value in seen.classifier.state_dict().items()}
    tensors |= {"mean": seen.mean, "covariance": seen.covariance}
    write_tensors(file, tensors, {**seen.facts, "schema": SCHEMA, "floors": [list(pair) for pair in seen.floors]})


def load_seen(file: str | FilePath) -> Seen:
    """Read what :func:`save_seen` wrote; FileFormatError for any other file, ArgumentError if it can't be read."""
    facts, tensors = read_tensors(file, SCHEMA)
    with believed(file, "a valid classifier", "make it with tools/train_classifier.py"):
        mean, covariance = float64(tensors, "mean", 1), float64(tensors, "covariance", 2)
        if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
            raise ValueError(f"mean and covariance must be those of {FEATURES} features")
        if not torch.equal(covariance, covariance.T) or float(torch.linalg.eigvalsh(covariance)[0]) < 0:
            raise ValueError("covariance must be symmetric without negative eigenvalues")
        classifier = Classifier()
        weights = {name: value for name, value in tensors.items() if name not in ("mean", "covariance")}
        sizes = {name: value.shape for name, value in classifier.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != sizes:
            raise ValueError("its tensors are not those of the classifier")
        for name, value in weights.items():
            if value.dtype != torch.float32 or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite float32")
        if not 0 <= finite(facts, "accuracy") <= 1:
            raise ValueError("accuracy must lie in [0, 1]")
        classifier.load_state_dict(weights)
        return Seen(classifier.requires_grad_(False), mean, covariance, _floors(facts["floors"]), facts)


def _floors(pairs: Sequence[Any]) -> tuple[tuple[int, float], ...]:
    """The floors of a description; ValueError unless they rise in n and are positive."""
    if not isinstance(pairs, list) or not 0 < len(pairs) <= _MOST_FLOORS:
        raise ValueError("floors must be a list of pairs")
    found, last = [], 1
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not int or not last < pair[0] <= _MOST_PICTURES:
            raise ValueError("floors must be pairs of a number of pictures, rising from 2, and a distance")
        last = pair[0]
        value = finite({"floor": pair[1]}, "floor")
        if value <= 0:
            raise ValueError("floors must be positive")
        found.append((last, value))
    return tuple(found)
