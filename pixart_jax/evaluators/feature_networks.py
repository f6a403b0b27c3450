"""The feature networks by the names that people give, and what the distances of their features are called."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from pixart_jax.conversion.names.efficientnet import RULES as EFFICIENTNETS_NAMES
from pixart_jax.conversion.names.inception import RULES as INCEPTIONS_NAMES
from pixart_jax.conversion.names.rules import Misfit
from pixart_jax.errors import InputError
from pixart_jax.evaluators.efficientnet_network import open_efficientnet
from pixart_jax.evaluators.fid_network import FID_INCEPTION, open_fid_network
from pixart_jax.evaluators.networks import FeatureNetwork

NETWORKS = ("fid-inception", "efficientnet-lite0")
_NAMES = {"fid-inception": INCEPTIONS_NAMES, "efficientnet-lite0": EFFICIENTNETS_NAMES}
# Arrays that do not fit, of which an error names so many: of another network's file it is all of them.
_SHOWN = 5


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
    if preprocessing and name != "fid-inception":
        raise InputError(f"preprocessing {preprocessing!r} is one of fid-inception's; {name} has its own: leave it out")
    try:
        if name == "fid-inception":
            return open_fid_network(path, preprocessing or "clean-fid")
        return open_efficientnet(path)
    except InputError as error:
        if not isinstance(error.__cause__, Misfit):
            raise
        raise InputError(f"{path}: does not fit {name}:{_in_short(name, error.__cause__.problems)}") from error


def _in_short(name: str, problems: Sequence[str]) -> str:
    """The first problems, how many more there are, and whose file it is instead, if another's here."""
    lines = [*problems[:_SHOWN], *([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])]
    keys = [problem.rpartition(" ")[2] for problem in problems if problem.startswith("no parameter takes: ")]
    for other in NETWORKS:
        known = sum(any(re.fullmatch(pattern, key) for pattern, *_ in _NAMES[other]) for key in keys)
        if other != name and known > len(keys) / 2:
            options = f"--network {other} with --weights; in training config.eval.network"
            lines.append(f"its names are those of {other}: name that ({options})")
    return "".join(f"\n  {line}" for line in lines)


def frechet_name(network: FeatureNetwork) -> str:
    """What the Fréchet distance of its features is called: FID is defined by Inception's published weights."""
    return "fid" if network.name == FID_INCEPTION and network.published else "frechet_distance"


def kernel_name(network: FeatureNetwork) -> str:
    """What their kernel distance is called: KID is Inception's."""
    return "kid" if network.name == FID_INCEPTION else "kernel_distance"
