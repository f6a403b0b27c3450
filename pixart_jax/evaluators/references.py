"""References that are mean and covariance alone, in files as pytorch-fid and clean-fid write them."""

from __future__ import annotations

import dataclasses
import io
import operator
import pathlib

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.evaluators.distances import Statistics
from pixart_jax.evaluators.networks import FEATURES, FeatureNetwork
from pixart_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Reference:
    """A file of statistics: pytorch-fid's and clean-fid's hold `mu` and `sigma` alone, ours how they came about too.

    Attributes:
      path: of the file.
      statistics: of the reference's features; count 0 where the file does not say.
      fingerprint: of the pictures, "" where the file does not say.
    """

    path: pathlib.Path
    statistics: Statistics
    fingerprint: str


def read_statistics(path: pathlib.Path, network: FeatureNetwork) -> Reference:
    """Raises InputError if it is no such file, or of another network, other weights or another preprocessing."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: np.asarray(arrays[name]) for name in arrays.files if name in _STATISTICS}
    except Exception as error:  # numpy and zipfile meet damage with some five kinds of exceptions.
        raise InputError(f"{path} cannot be read: {error}; name a .npz that holds mu and sigma") from error
    mu, sigma = held.get("mu"), held.get("sigma")
    if (
        mu is None
        or sigma is None
        or mu.ndim != 1
        or sigma.shape != (mu.size, mu.size)
        or {mu.dtype.kind, sigma.dtype.kind} != {"f"}
    ):
        raise InputError(f"{path} should hold mu [D] and sigma [D, D], as pytorch-fid and clean-fid write them")
    width = network.outputs[FEATURES]
    if mu.size != width:
        raise InputError(
            f"{path}: mu has {mu.size} values, where {network.name}'s {width} belong; it is of another network"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InputError(f"{path}: mu or sigma is not finite; make it again")
    # eigh, which the distance is made with, looks at one half alone.
    if not np.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-3 * np.abs(sigma).max()) or (sigma.diagonal() < 0).any():
        raise InputError(f"{path}: sigma is no covariance, which is symmetric with no negative variance; make it again")
    count = held.get("count", np.array(0))
    if count.shape or count.dtype.kind not in "iu" or count < 0:
        raise InputError(f"{path}: count should be the number of pictures, not {count!s:.80}; make it again")
    said = str(held.get("preprocessing", ""))
    if said not in ("", network.preprocessing):
        raise InputError(
            f"{path} was made with --preprocessing {said}, not {network.preprocessing}; the two do not compare"
        )
    if str(held.get("network", "")) not in ("", network.sha256):
        raise InputError(f"{path} was made with other weights of {network.name} than those given; make it again")
    statistics = Statistics(mu.astype(np.float64), sigma.astype(np.float64), int(count))
    return Reference(path, statistics, str(held.get("fingerprint", "")))


_STATISTICS = ("mu", "sigma", "count", "network", "preprocessing", "fingerprint")


def write_statistics(path: pathlib.Path, statistics: Statistics, fingerprint: str, network: FeatureNetwork) -> None:
    """What `read_statistics` reads, and pytorch-fid and clean-fid too."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=statistics.mu,
        sigma=statistics.sigma,
        count=statistics.count,
        network=network.sha256,
        preprocessing=network.preprocessing,
        fingerprint=fingerprint,
    )
    write_atomically(path, operator.methodcaller("write", buffer.getvalue()))
