"""Make the parameter files of the target registry: ``python tools/make_targets.py`` (needs the ``fit`` extra, and Debian's
package ``dataset-fashion-mnist`` for the targets of that name).

The files in ``diffode/targets/data`` are the registry: they are never regenerated at run time, since random streams and
fitting libraries differ between versions. This script says how each was made, and prints the hash its card must carry.
Rerun it only to correct an entry, and list the correction in the card's changelog.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fashion
import numpy as np

from diffode.targets.catalogue import DATA, parameter_hash

Parameters = dict[str, np.ndarray]


def spaced_modes(seed: int, count: int, dim: int, half_width: float) -> np.ndarray:
    """Uniform means in a box."""
    return np.random.default_rng(seed).uniform(-half_width, half_width, (count, dim))


def uniform(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


def along_curve(points: np.ndarray, width: float) -> Parameters:
    """Equal narrow isotropic Gaussians centred on given points."""
    return {"weights": uniform(len(points)), "means": points, "covariances": np.full(len(points), width**2)}


def gauss1d() -> Parameters:
    return {"weights": np.ones(1), "means": np.array([[0.5]]), "covariances": np.array([0.64])}


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def gauss2d() -> Parameters:
    turn = rotation(np.pi / 6)
    covariance = turn @ np.diag([4.0, 4e-4]) @ turn.T
    return {
        "weights": np.ones(1),
        "means": np.array([[1.0, -0.5]]),
        "covariances": (covariance + covariance.T)[None] / 2,
    }


def gauss64_powerlaw() -> Parameters:
    return {
        "weights": np.ones(1),
        "means": np.zeros((1, 64)),
        "covariances": np.arange(1.0, 65.0)[None] ** -2,
    }


def gauss1024_lowrank() -> Parameters:
    rng = np.random.default_rng(1024)
    basis = np.linalg.qr(rng.standard_normal((1024, 16)))[0]
    factors = basis * np.sqrt(64.0 / np.arange(1, 17))
    return {
        "weights": np.ones(1),
        "means": np.zeros((1, 1024)),
        "factors": factors[None],
        "noise": np.array([0.01]),
    }


def bimodal1d() -> Parameters:
    return {
        "weights": np.array([0.2, 0.8]),
        "means": np.array([[-2.0], [1.0]]),
        "covariances": np.array([0.3**2, 0.5**2]),
    }


def line16() -> Parameters:
    """Means on one line; one covariance, of which the line is an eigenvector."""
    rng = np.random.default_rng(16)
    basis = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    eigenvalues = np.concatenate([[0.04], np.geomspace(1.0, 0.01, 15)])
    covariance = (basis * eigenvalues) @ basis.T
    positions = np.array([-3.0, -1.0, 0.5, 3.0])
    return {
        "weights": np.array([0.1, 0.4, 0.2, 0.3]),
        "means": positions[:, None] * basis[:, 0],
        "covariances": np.repeat((covariance + covariance.T)[None] / 2, 4, axis=0),
    }


def ring8() -> Parameters:
    angle = 2 * np.pi * np.arange(8) / 8
    means = 5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return {"weights": uniform(8), "means": means, "covariances": np.full(8, 0.1)}


def grid25() -> Parameters:
    axis = np.arange(-2.0, 3.0) * 2
    means = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return {"weights": uniform(25), "means": means, "covariances": np.full(25, 0.05**2 * 4)}


def gmm40() -> Parameters:
    variance = np.full(40, np.log1p(np.exp(1.0)) ** 2)
    return {"weights": uniform(40), "means": spaced_modes(40, 40, 2, 40.0), "covariances": variance}


def gmm40_50d() -> Parameters:
    variance = np.full(40, np.log1p(np.exp(1.0)) ** 2)
    return {"weights": uniform(40), "means": spaced_modes(50, 40, 50, 40.0), "covariances": variance}


def spiral() -> Parameters:
    # Equal steps of arc length along two arms r = angle/(2 pi).
    fine = np.linspace(0.5 * np.pi, 4 * np.pi, 20001)
    curve = (fine / (2 * np.pi))[:, None] * np.stack([np.cos(fine), np.sin(fine)], 1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    at = np.interp(np.linspace(0, length[-1], 60), length, fine)
    arm = (at / (2 * np.pi))[:, None] * np.stack([np.cos(at), np.sin(at)], 1)
    return along_curve(np.concatenate([arm, -arm]), 0.06)


def moons() -> Parameters:
    angle = np.linspace(0, np.pi, 40)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1) - np.array([0.5, 0.25])
    return along_curve(np.concatenate([upper, -upper]), 0.07)


def checkerboard() -> Parameters:
    cells = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    offsets = (np.arange(4) + 0.5) / 4
    points = [(i - 2 + u, j - 2 + v) for i, j in cells for u in offsets for v in offsets]
    return along_curve(np.array(points), 0.11)


def pinwheel() -> Parameters:
    means, covariances = [], []
    for arm in range(5):
        for radius in np.linspace(0.6, 2.4, 10):
            angle = 2 * np.pi * arm / 5 + 0.35 * (radius - 0.6)
            turn = rotation(angle + 0.3)
            covariance = turn @ np.diag([0.14**2, (0.05 + 0.04 * radius) ** 2]) @ turn.T
            means.append(radius * np.array([np.cos(angle), np.sin(angle)]))
            covariances.append((covariance + covariance.T) / 2)
    return {"weights": uniform(50), "means": np.array(means), "covariances": np.array(covariances)}


def tree() -> Parameters:
    """A binary tree of seven generations; a branch is shorter and thinner than its parent; 8 Gaussians a branch."""
    means, variances, weights = [], [], []

    def grow(base: np.ndarray, angle: float, length: float, width: float, weight: float, depth: int) -> None:
        direction = np.array([np.cos(angle), np.sin(angle)])
        for i in range(8):
            means.append(base + direction * length * (i + 0.5) / 8)
            variances.append(width**2)
            weights.append(weight / 8)
        if depth:
            tip = base + direction * length
            for turn in (0.45, -0.6):
                grow(tip, angle + turn, length * 0.72, width * 0.68, weight / 2, depth - 1)

    grow(np.array([0.0, -1.5]), np.pi / 2, 1.0, 0.04, 1 / 7, 6)
    return {
        "weights": np.array(weights) / np.sum(weights),
        "means": np.array(means),
        "covariances": np.array(variances),
    }


def stiff_pair() -> Parameters:
    return {"weights": uniform(2), "means": np.array([[-500.0], [500.0]]), "covariances": np.full(2, 1e-6)}


def scales() -> Parameters:
    return {
        "weights": np.array([0.5, 0.3, 0.2]),
        "means": np.array([[0.0, 0.0], [1.5, 0.5], [-1.0, 1.0]]),
        "covariances": np.array([1.0, 1e-6, 1e-3]),
    }


def rare() -> Parameters:
    return {
        "weights": np.array([0.999, 0.001]),
        "means": np.array([[0.0, 0.0], [6.0, 0.0]]),
        "covariances": np.array([1.0, 0.04]),
    }


def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().data / 8 - 1


def held_out(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(0).permutation(len(data))
    cut = len(data) * 4 // 5
    return data[order[:cut]], data[order[cut:]]


def fit_full(data: np.ndarray, count: int, ridge: float, name: str) -> Parameters:
    from sklearn.mixture import GaussianMixture

    train, test = held_out(data)
    fitted = GaussianMixture(count, reg_covar=ridge, random_state=0, n_init=3, max_iter=500).fit(train)
    eigenvalues = np.linalg.eigvalsh(fitted.covariances_)
    condition = (eigenvalues[:, -1] / eigenvalues[:, 0]).max()
    print(f"  {name}: test log-likelihood {fitted.score(test) / data.shape[1]:.3f}/dim, condition number {condition:.0f}")
    order = np.argsort(-fitted.weights_)
    weights = fitted.weights_[order]
    covariances = fitted.covariances_[order].astype(np.float32)
    covariances = ((covariances + covariances.transpose(0, 2, 1)) / 2).astype(np.float32)
    return {"weights": weights / weights.sum(), "means": fitted.means_[order], "covariances": covariances}


def fit_low_rank(data: np.ndarray, count: int, rank: int, floor: float, name: str, rounds: int = 60) -> Parameters:
    """Mixture of probabilistic principal component analysers by EM (Tipping and Bishop 1999)."""
    from sklearn.cluster import KMeans

    train, test = held_out(data)
    dim = data.shape[1]
    labels = KMeans(count, n_init=4, random_state=0).fit_predict(train)
    r = np.eye(count)[labels]
    for _ in range(rounds):
        weights, means, factors, noise = [], [], [], []
        for k in range(count):
            mass = r[:, k].sum() + 1e-9
            mean = r[:, k] @ train / mass
            centred = train - mean
            values, vectors = np.linalg.eigh((centred * r[:, k : k + 1]).T @ centred / mass)
            across = max(values[: dim - rank].mean(), floor)
            weights.append(mass)
            means.append(mean)
            noise.append(across)
            factors.append(vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:] - across, 1e-8)))
        parameters = {
            "weights": np.array(weights) / np.sum(weights),
            "means": np.array(means),
            "factors": np.array(factors),
            "noise": np.array(noise),
        }
        joint = log_joint_low_rank(train, parameters)
        r = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    score = np.logaddexp.reduce(log_joint_low_rank(test, parameters), axis=1).mean() / dim
    print(f"  {name}: test log-likelihood {score:.3f}/dim")
    return {key: value if key in ("weights", "noise") else value.astype(np.float32) for key, value in parameters.items()}


def log_joint_low_rank(x: np.ndarray, p: Parameters) -> np.ndarray:
    columns = []
    for weight, mean, factor, noise in zip(p["weights"], p["means"], p["factors"], p["noise"], strict=True):
        covariance = factor @ factor.T + noise * np.eye(len(mean))
        lower = np.linalg.cholesky(covariance)
        residual = np.linalg.solve(lower, (x - mean).T)
        log_determinant = 2 * np.log(np.diag(lower)).sum()
        columns.append(np.log(weight) - (len(mean) * np.log(2 * np.pi) + log_determinant + (residual**2).sum(0)) / 2)
    return np.stack(columns, 1)


def patches(side: int, count: int, seed: int) -> np.ndarray:
    """Random square patches of openly licensed photographs and textures, grey, their own mean removed, unit scale."""
    from skimage import data as pictures
    from skimage.color import rgb2gray
    from skimage.transform import rescale

    rng = np.random.default_rng(seed)
    images = [
        pictures.brick(),
        pictures.grass(),
        pictures.gravel(),
        pictures.moon(),
        pictures.coins(),
        rgb2gray(pictures.coffee()) * 255,
        rgb2gray(pictures.rocket()) * 255,
        rgb2gray(pictures.hubble_deep_field()) * 255,
    ]
    result = []
    for image in images:
        half = rescale(image.astype(float) / 255, 0.5, anti_aliasing=True)
        for _ in range(count // len(images)):
            i, j = (rng.integers(0, size - side + 1) for size in half.shape)
            patch = half[i : i + side, j : j + side]
            result.append((patch - patch.mean()).ravel())
    array = np.array(result)
    return array / array.std()


def fashion_points() -> Parameters:
    """The first 200 pictures of each class of the training set, class by class."""
    values, classes = fashion.bytes_of("train")
    chosen = np.concatenate([np.flatnonzero(classes == k)[:200] for k in range(10)])
    return {"points": values[chosen], **grey("points")}


def fashion_mfa() -> Parameters:
    """Five analysers for each class of the training set, each fitted to its class alone, in bytes."""
    values, classes = fashion.pictures("train")
    found = [fit_low_rank(values[classes == k], 5, 11, 1e-3, f"fashion-mfa {fashion.CLASSES[k]}", rounds=12) for k in range(10)]
    weights = np.concatenate([each["weights"] * (classes == k).mean() for k, each in enumerate(found)])
    means, factors, noise = (np.concatenate([each[key] for each in found]) for key in ("means", "factors", "noise"))
    step = np.abs(factors).max(1, keepdims=True).astype(np.float32) / 127
    return {
        "weights": weights / weights.sum(),
        "means": np.rint((means + 1) * 127.5).clip(0, 255).astype(np.uint8),
        **grey("means"),
        "factors": np.rint(factors / step).astype(np.int8),
        "factors_step": step,
        "noise": noise,
    }


def grey(name: str) -> Parameters:
    """What makes bytes into grey values from -1 to 1."""
    return {f"{name}_step": np.array(2 / 255), f"{name}_first": np.array(-1.0)}


MAKERS = {
    "gauss1d": gauss1d,
    "gauss2d": gauss2d,
    "gauss64-powerlaw": gauss64_powerlaw,
    "gauss1024-lowrank": gauss1024_lowrank,
    "bimodal1d": bimodal1d,
    "line16": line16,
    "ring8": ring8,
    "grid25": grid25,
    "gmm40": gmm40,
    "gmm40-50d": gmm40_50d,
    "spiral": spiral,
    "moons": moons,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "tree": tree,
    "stiff-pair": stiff_pair,
    "scales": scales,
    "rare": rare,
    "digits-gmm10": lambda: fit_full(digits(), 10, 1e-2, "digits-gmm10"),
    "digits-lowrank": lambda: fit_low_rank(digits(), 20, 8, 5e-3, "digits-lowrank"),
    "digits-empirical": lambda: {"points": digits().astype(np.float16)},
    "patches-gmm": lambda: fit_full(patches(8, 16000, 8), 12, 1e-3, "patches-gmm"),
    "fashion-points": fashion_points,
    "fashion-mfa": fashion_mfa,
    "images-mfa": lambda: fit_low_rank(patches(24, 6000, 24), 10, 10, 1e-3, "images-mfa"),
}


def main(names: list[str]) -> None:
    DATA.mkdir(exist_ok=True)
    for name in names or MAKERS:
        parameters = MAKERS[name]()
        np.savez_compressed(Path(DATA) / f"{name}.npz", **parameters)
        print(f'{name}: sha256 = "{parameter_hash(parameters)}"')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="targets, all unless given")
    main(parser.parse_args().names)
