"""What a config measures pictures with."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

from pixart_jax.config import ConfigDict, eval_metrics
from pixart_jax.errors import InputError
from pixart_jax.evaluators.distances import Statistics, statistics_of
from pixart_jax.evaluators.drawings import Drawings
from pixart_jax.evaluators.feature_networks import open_network
from pixart_jax.evaluators.networks import FeatureNetwork, OnDevices
from pixart_jax.evaluators.quality import Distances, Features, look, share_of_process
from pixart_jax.evaluators.references import read_statistics

# Pictures that a network looks at at a time, at most; it changes no result beyond rounding.
_AT_A_TIME = 32


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """What pictures are measured with.

    Attributes:
      metrics: names, see config.eval.metrics.
      network: their feature network.
      reference: statistics of other pictures than the training data's; None without.
    """

    metrics: list[str]
    network: FeatureNetwork
    reference: Statistics | None

    def facts(self) -> dict[str, str]:
        """What must be the same on every process."""
        of = self.reference
        digest = hashlib.sha256(of.mu.tobytes() + of.sigma.tobytes()).hexdigest() if of else "the training data"
        return {f"weights of {self.network.name}": self.network.sha256, "reference of the metrics": digest}

    def distances(self, drawings: Drawings, count: int) -> Distances:
        """The metrics, of which the reference is looked at here, where it is not a file. A collective operation.

        Args:
          drawings: of the training data.
          count: how many of its pictures the reference is, at most.

        Raises:
          InputError: there are fewer than two, or one of them is not finite; says which.
        """
        network = OnDevices(self.network, min(_AT_A_TIME, len(drawings.samples)))
        reference, features = self.reference, None
        if reference is None:
            indices = drawings.spread(count)
            pictures = drawings.stream_real(indices, share_of_process())
            (features,) = look([Features(network)], drawings, indices, pictures)
            reference = statistics_of([features], features.shape[1])
        wants_kernel = "kid" in self.metrics
        return Distances(network, reference, features if wants_kernel else None, "frechet_distance" in self.metrics)


def open_looked_at(config: ConfigDict) -> LookedAt | None:
    """What a config measures pictures with; None without config.eval.metrics.

    Raises:
      InputError: the weights are damaged or another network's, or the reference is; names the file or the config key.
    """
    metrics = eval_metrics(config)
    if not metrics:
        return None
    evaluation, reference = config.eval, None
    try:
        network = open_network(evaluation.network, pathlib.Path(evaluation.network_weights.strip()))
    except InputError as error:
        raise InputError(f"config.eval.network_weights: {error}") from error
    if evaluation.reference.strip():
        try:
            reference = read_statistics(pathlib.Path(evaluation.reference.strip()), network).statistics
        except InputError as error:
            raise InputError(f"config.eval.reference: {error}") from error
    return LookedAt(metrics, network, reference)
