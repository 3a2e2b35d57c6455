"""Train the classifier whose features measure pictures: ``python tools/train_classifier.py`` (needs Debian's
``dataset-fashion-mnist``; about two minutes).

The classes of Fashion-MNIST's training set are learned from pictures shifted by at most two pixels. Beside the weights the
file holds mean and covariance of the features over the test set, the accuracy there, and floors: the distance that as many
pictures of the training set have from the test set, in the mean over draws without replacement, and that of the test set's
halves.
"""

from __future__ import annotations

import argparse
import time

import torch
from fashion import SIDE, pictures

from diffode.metrics.frechet import SHIPPED, Classifier, Seen, frechet_of, save_seen
from diffode.randomness import generator_from

STEPS, ROWS, RATE, MARGIN = 6000, 128, 3e-3, 2
#: Numbers of pictures whose floors are measured, and draws of each.
COUNTS, DRAWS = (100, 250, 500, 1000, 2000, 5000, 10_000), 5


def shifted(rows: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """Pictures (n, 784) moved by up to two pixels, all of a batch alike, with black beyond their border."""
    wide = torch.nn.functional.pad(rows.reshape(-1, 1, SIDE, SIDE), (MARGIN,) * 4, value=-1.0)
    down, right = torch.randint(2 * MARGIN + 1, (2,), generator=source).tolist()
    return wide[:, :, down : down + SIDE, right : right + SIDE]


def trained(data: torch.Tensor, classes: torch.Tensor) -> Classifier:
    torch.manual_seed(0)
    net = Classifier()
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    source, began = generator_from(0), time.time()
    for step in range(STEPS):
        chosen = torch.randint(len(data), (ROWS,), generator=source)
        loss = torch.nn.functional.cross_entropy(net(shifted(data[chosen], source)), classes[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 1000 == 0:
            print(f"{step + 1}/{STEPS} loss {loss.item():.3f} {time.time() - began:.0f} s", flush=True)
    return net.requires_grad_(False)


def main() -> None:
    torch.set_num_threads(1)
    (data, classes), (test, test_classes) = (
        tuple(torch.from_numpy(part.copy()) for part in pictures(name)) for name in ("train", "t10k")
    )
    net = trained(data.float(), classes.long())
    with torch.no_grad():
        accuracy = float((net(test.float().reshape(-1, 1, SIDE, SIDE)).argmax(1) == test_classes).double().mean())
    bare = Seen(net, torch.zeros(0), torch.zeros(0), (), {})
    real, others = bare.features(test), bare.features(data)
    mean, covariance = real.mean(0), torch.cov(real.T)
    covariance = (covariance + covariance.T) / 2
    source, floors = generator_from(1), []
    for count in COUNTS:
        draws = [others[torch.randperm(len(others), generator=source)[:count]] for _ in range(DRAWS)]
        floors.append((count, sum(frechet_of(draw, mean, covariance) for draw in draws) / DRAWS))
    order = torch.randperm(len(real), generator=source)
    one, two = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    halves = frechet_of(one, two.mean(0), torch.cov(two.T))
    facts = {
        "accuracy": accuracy, "halves": halves, "steps": STEPS, "rows": ROWS, "script": "tools/train_classifier.py",
        "data": "the training set of Fashion-MNIST; mean and covariance of features over its test set",
    }  # fmt: skip
    SHIPPED.parent.mkdir(exist_ok=True)
    save_seen(Seen(net, mean, covariance, tuple(floors), facts), SHIPPED)
    print(f"accuracy {accuracy:.4f}; halves of the test set {halves:.4g}")
    print("floors", *(f"{count}: {floor:.4g}" for count, floor in floors))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
