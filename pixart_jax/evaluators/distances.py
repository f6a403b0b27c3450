"""Distances between two sets of pictures, of their features: float64 throughout, whatever made the features.

Each is defined as the library does that is named with it (torch-fidelity 0.4, pytorch-fid 0.3, clean-fid 0.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from pixart_jax.errors import InputError

# As torch-fidelity draws its subsets, so that figures agree to the last digit.
_SEED = 2020


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, all that the Fréchet distance needs of a set.

    Attributes:
      mu: f64[D].
      sigma: f64[D, D], with divisor N − 1.
      count: N; 0 where a file does not say.
    """

    mu: np.ndarray
    sigma: np.ndarray
    count: int


@dataclasses.dataclass
class Moments:
    """Sums over features that arrive bit by bit: what N pictures leave behind is D·D numbers, not N·D.

    Sums of several processes are added; the result depends on their number by no more than float64 rounds.
    """

    dim: int

    def __post_init__(self) -> None:
        self.count = 0
        self.sum = np.zeros(self.dim)
        self.products = np.zeros((self.dim, self.dim))

    def add(self, features: np.ndarray) -> None:
        """Takes features [N, D] in."""
        features = np.asarray(features, np.float64)
        self.count += len(features)
        self.sum += features.sum(0)
        self.products += features.T @ features

    def merge(self, other: Moments) -> None:
        """Takes in what another has taken in."""
        self.count += other.count
        self.sum += other.sum
        self.products += other.products

    def statistics(self) -> Statistics:
        """Raises InputError of fewer than two pictures, which have no covariance."""
        if self.count < 2:
            raise InputError(f"a Fréchet distance needs two pictures or more on each side, and there is {self.count}")
        mu = self.sum / self.count
        sigma = (self.products - self.count * np.outer(mu, mu)) / (self.count - 1)
        return Statistics(mu, sigma, self.count)


def statistics_of(features: Iterable[np.ndarray], dim: int) -> Statistics:
    """Of features [N, D] in batches; errors as `Moments.statistics`."""
    moments = Moments(dim)
    for batch in features:
        moments.add(batch)
    return moments.statistics()


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂): FID, where the features are Inception's (Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the roots of the product's eigenvalues, which are those of the symmetric
    Σ₁^½ Σ₂ Σ₁^½ too: real and not negative but for rounding.

    Raises:
      InputError: the features are of different networks, or not finite.
    """
    if first.mu.shape != second.mu.shape:
        raise InputError(
            f"statistics of {first.mu.size} features do not compare with those of {second.mu.size}: they are of "
            "different networks or layers"
        )
    for side in (first, second):
        if not (np.isfinite(side.mu).all() and np.isfinite(side.sigma).all()):
            raise InputError("statistics that are not finite have no distance; see the features of which pictures")
    values, vectors = np.linalg.eigh(first.sigma)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ second.sigma @ root
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0))
    between = first.mu - second.mu
    return float(between @ between + np.trace(first.sigma) + np.trace(second.sigma) - 2 * roots.sum())


def kernel_distance(
    first: np.ndarray, second: np.ndarray, *, num_subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """KID: the unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)³, over random subsets.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs", §4; the subsets are torch-fidelity's.

    Args:
      first, second: features [N, D] and [M, D].

    Returns:
      (mean, standard deviation) over the subsets.

    Raises:
      InputError: a set is smaller than `subset_size`, or the features are of different networks.
    """
    _check_pair(first, second)
    if min(len(first), len(second)) < subset_size:
        raise InputError(
            f"KID takes subsets of {subset_size} pictures, and there are {len(first)} and {len(second)}; name a "
            "smaller subset, or more pictures"
        )
    random = np.random.RandomState(_SEED)
    found = []
    for _ in range(num_subsets):
        one = first[random.choice(len(first), subset_size, replace=False)].astype(np.float64)
        two = second[random.choice(len(second), subset_size, replace=False)].astype(np.float64)
        found.append(_unbiased_mmd(one, two))
    return float(np.mean(found)), float(np.std(found))


def _unbiased_mmd(first: np.ndarray, second: np.ndarray) -> float:
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return within(first) + within(second) - 2 * kernel(first, second).mean()


def inception_score(logits: np.ndarray, *, num_splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), over parts of the shuffled pictures (Salimans et al. 2016, "Improved Techniques", §4).

    Args:
      logits: [N, classes], the classifier's without its bias.

    Returns:
      (mean, standard deviation) over the parts.

    Raises:
      InputError: there are fewer pictures than parts.
    """
    if len(logits) < num_splits:
        raise InputError(f"an Inception Score over {num_splits} parts needs as many pictures; there are {len(logits)}")
    logits = np.asarray(logits, np.float64)[np.random.RandomState(_SEED).permutation(len(logits))]
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)
    scores = []
    for part in range(num_splits):
        rows = slice(part * len(p) // num_splits, (part + 1) * len(p) // num_splits)
        divergence = (p[rows] * (log_p[rows] - np.log(p[rows].mean(0, keepdims=True)))).sum(1)
        scores.append(math.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_and_recall(generated: np.ndarray, real: np.ndarray, *, neighbours: int = 3) -> tuple[float, float]:
    """How many generated pictures lie among the real ones, and how many real ones among the generated.

    A picture lies among others if it is no farther from one of them than that one's k-th nearest neighbour.
    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric", eq. 1 and 2.

    Args:
      generated, real: features [N, D] and [M, D].

    Raises:
      InputError: a set has no more than `neighbours` pictures, or the features are of different networks.
    """
    _check_pair(generated, real)
    if min(len(generated), len(real)) <= neighbours:
        raise InputError(f"precision and recall need more than {neighbours} pictures on each side")
    return _share_within(generated, real, neighbours), _share_within(real, generated, neighbours)


def _share_within(points: np.ndarray, others: np.ndarray, neighbours: int) -> float:
    others = others.astype(np.float64)
    inside = np.zeros(len(points), bool)
    for rows in _blocks(len(others)):
        # Itself is the nearest of all.
        radius = np.partition(_squared_distances(others[rows], others), neighbours, axis=1)[:, neighbours]
        for columns in _blocks(len(points)):
            within = _squared_distances(points[columns].astype(np.float64), others[rows]) <= radius
            inside[columns] |= within.any(1)
    return float(inside.mean())


def clip_discrepancy(first: np.ndarray, second: np.ndarray, *, sigma: float = 10.0) -> float:
    """CMMD: 1000 times the squared maximum mean discrepancy of unit vectors with a Gaussian kernel, biased.

    Source: Jayasumana et al. 2024, "Rethinking FID", §4, where the vectors are CLIP's of ViT-L/14 at 336 px.

    Args:
      first, second: features [N, D] and [M, D]; they are scaled to length 1 here.
    """
    _check_pair(first, second)
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first.astype(np.float64), second))

    def mean_kernel(x, y):
        total = 0.0
        for rows in _blocks(len(x)):
            total += np.exp(-_squared_distances(x[rows], y.astype(np.float64)) / (2 * sigma**2)).sum()
        return total / (len(x) * len(y))

    return 1000 * float(mean_kernel(first, first) + mean_kernel(second, second) - 2 * mean_kernel(first, second))


def _blocks(count: int, size: int = 1024) -> Iterable[slice]:
    """Rows in parts: all pairs of 30,000 would be 7 GB."""
    return (slice(start, start + size) for start in range(0, count, size))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * (x @ y.T)
    return np.maximum(squared, 0)


def _check_pair(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"features of width {first.shape[1]} do not compare with those of width {second.shape[1]}: they are of "
            "different networks or layers"
        )
