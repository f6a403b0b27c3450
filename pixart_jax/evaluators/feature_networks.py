"""The feature networks by the names that people give, and what the distances of their features are called."""

from __future__ import annotations

import pathlib

from pixart_jax.errors import InputError
from pixart_jax.evaluators.efficientnet_network import open_efficientnet
from pixart_jax.evaluators.fid_network import FID_INCEPTION, open_fid_network
from pixart_jax.evaluators.networks import FeatureNetwork

NETWORKS = ("fid-inception", "efficientnet-lite0")


def open_network(name: str, path: pathlib.Path, preprocessing: str = "") -> FeatureNetwork:
    """A network with weights from a file.

    Args:
      name: one of NETWORKS.
      path: its weights.
      preprocessing: one of `evaluators.preprocessing.PREPROCESSINGS`, of which FID-Inception has several; "" is the
        network's own, for FID-Inception clean-fid's.

    Raises:
      InputError: the file is damaged or another network's, or the network has no such preprocessing.
    """
    if name == "fid-inception":
        return open_fid_network(path, preprocessing or "clean-fid")
    if preprocessing:
        raise InputError(f"preprocessing {preprocessing!r} is one of fid-inception's; {name} has its own: leave it out")
    return open_efficientnet(path)


def frechet_name(network: FeatureNetwork) -> str:
    """What the Fréchet distance of its features is called: FID is defined by Inception's published weights."""
    return "fid" if network.name == FID_INCEPTION and network.published else "frechet_distance"


def kernel_name(network: FeatureNetwork) -> str:
    """What their kernel distance is called: KID is Inception's."""
    return "kid" if network.name == FID_INCEPTION else "kernel_distance"
