"""Canny's edges of a picture. numpy only.

Source: Canny 1986, "A Computational Approach to Edge Detection", with scikit-image's choices (`feature.canny`): a
normalised Gaussian, Sobel's gradient, maxima along the gradient interpolated between the neighbours, and two
thresholds.
"""

from __future__ import annotations

import numpy as np

# Of a grey in [0, 1]: the Gaussian's standard deviation in pixels; edges are where the gradient (a step from 0 to 1 has
# about 4 without the Gaussian) is above the high threshold, and what hangs together with them above the low one.
SIGMA, LOW, HIGH = 1.0, 0.1, 0.2
# ITU-R 601-2's luma.
_GREY = np.array([0.299, 0.587, 0.114])


def canny(picture: np.ndarray, *, sigma: float = SIGMA, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """The edges bool[H, W] of a picture uint8[H, W, 3]; pixels at its border are none."""
    grey = picture.astype(np.float64) @ _GREY / 255.0
    smooth = _blurred(grey, sigma)
    down, right = _sobel(smooth), _sobel(smooth.T).T
    strength = np.hypot(down, right)
    candidates = _maxima(down, right, strength) & (strength >= low)
    candidates[[0, -1]] = candidates[:, [0, -1]] = False
    return _connected(candidates, candidates & (strength >= high))


def _blurred(grey: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of the pixels that are there: what lies beyond the border has no weight."""
    radius = int(4.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()

    def along_rows(array):
        padded = np.pad(array, ((radius, radius), (0, 0)))
        return sum(weight * padded[i : i + len(array)] for i, weight in enumerate(weights))

    return along_rows(along_rows(grey).T).T / along_rows(along_rows(np.ones_like(grey)).T).T


def _sobel(array: np.ndarray) -> np.ndarray:
    """Along the first axis; the border repeats itself."""
    padded = np.pad(array, 1, mode="edge")
    difference = padded[2:] - padded[:-2]
    return difference[:, :-2] + 2 * difference[:, 1:-1] + difference[:, 2:]


def _maxima(down: np.ndarray, right: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Where no point one step along the gradient, or against it, is stronger."""
    padded = np.pad(strength, 1)

    def neighbour(rows: int, columns: int) -> np.ndarray:
        return padded[1 + rows : 1 + rows + len(strength), 1 + columns : 1 + columns + strength.shape[1]]

    steep = np.abs(down) > np.abs(right)
    long = np.maximum(np.abs(down), np.abs(right))
    share = np.divide(np.minimum(np.abs(down), np.abs(right)), long, out=np.zeros_like(long), where=long > 0)
    falling = down * right >= 0  # The gradient points down and right, or up and left.
    found = np.ones(strength.shape, bool)
    for sign in (1, -1):
        straight = np.where(steep, neighbour(sign, 0), neighbour(0, sign))
        slanted = np.where(
            falling, neighbour(sign, sign), np.where(steep, neighbour(sign, -sign), neighbour(-sign, sign))
        )
        found &= share * slanted + (1 - share) * straight <= strength
    return found


def _connected(candidates: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Those candidates that hang together with a seed, by sides or corners."""
    number = np.full(np.array(candidates.shape) + 2, -1)
    inner = number[1:-1, 1:-1]
    count = np.count_nonzero(candidates)
    inner[candidates] = np.arange(count)
    pairs = []
    for rows, columns in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other = number[1 + rows : 1 + rows + len(inner), 1 + columns : 1 + columns + inner.shape[1]]
        both = (inner >= 0) & (other >= 0)
        pairs.append(np.stack([inner[both], other[both]]))
    left, right = np.concatenate(pairs, axis=1)
    # Each points to one of lower number that it hangs together with, in the end to the lowest of all.
    lowest = np.arange(count)
    while (lowest[left] != lowest[right]).any():
        least = np.minimum(lowest[left], lowest[right])
        np.minimum.at(lowest, lowest[left], least)
        np.minimum.at(lowest, lowest[right], least)
        while (lowest != lowest[lowest]).any():
            lowest = lowest[lowest]
    has_seed = np.zeros(count, bool)
    has_seed[lowest[inner[seeds]]] = True
    found = np.zeros(candidates.shape, bool)
    found[candidates] = has_seed[lowest]
    return found
