"""What a config measures pictures with."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

from pixart_jax.config import ConfigDict, eval_metrics
from pixart_jax.errors import InputError
from pixart_jax.evaluators.clip_measure import ClipScores
from pixart_jax.evaluators.clip_network import ClipNetwork
from pixart_jax.evaluators.distances import Statistics, statistics_of
from pixart_jax.evaluators.drawings import Drawings
from pixart_jax.evaluators.feature_networks import open_network
from pixart_jax.evaluators.networks import FeatureNetwork, OnDevices
from pixart_jax.evaluators.quality import Distances, Features, Measure, look, share_of_process
from pixart_jax.evaluators.references import read_statistics

# Pictures that a network looks at at a time, at most; it changes no result beyond rounding.
_AT_A_TIME = 32


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """What pictures are measured with.

    Attributes:
      metrics: names, see config.eval.metrics.
      network: whose features distances are between; None where there is no distance.
      reference: statistics of other pictures than the training data's; None without.
      clip: of the CLIP score; None without.
    """

    metrics: list[str]
    network: FeatureNetwork | None
    reference: Statistics | None
    clip: ClipNetwork | None

    def facts(self) -> dict[str, str]:
        """What must be the same on every process."""
        facts, of = {}, self.reference
        if self.network:
            facts[f"weights of {self.network.name}"] = self.network.sha256
        if of:
            facts["reference of the metrics"] = hashlib.sha256(of.mu.tobytes() + of.sigma.tobytes()).hexdigest()
        if self.clip:
            towers = ("vision_model", "text_model")
            facts["weights of CLIP"] = " ".join(self.clip.clip.digest(tower) for tower in towers)
        return facts

    def measures(self, drawings: Drawings, count: int) -> list[Measure]:
        """The metrics, of which the reference is looked at here, where it is not a file. A collective operation.

        Args:
          drawings: of the training data.
          count: how many of its pictures the reference is, at most.

        Raises:
          InputError: one of the reference's pictures is not finite; says which.
        """
        found: list[Measure] = [self._distances(self.network, drawings, count)] if self.network else []
        return [*found, ClipScores(self.clip)] if self.clip else found

    def _distances(self, looking: FeatureNetwork, drawings: Drawings, count: int) -> Distances:
        network = OnDevices(looking, min(_AT_A_TIME, count, len(drawings.samples)))
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
      InputError: weights are damaged or another network's, or the reference is; names the file and the config key.
    """
    metrics, evaluation = eval_metrics(config), config.eval
    if not metrics:
        return None
    network = reference = clip = None
    if {*metrics} != {"clip_score"}:
        with _blamed("eval.network_weights"):
            network = open_network(evaluation.network, pathlib.Path(evaluation.network_weights.strip()))
        if evaluation.reference.strip():
            with _blamed("eval.reference"):
                reference = read_statistics(pathlib.Path(evaluation.reference.strip()), network).statistics
    if "clip_score" in metrics:
        with _blamed("eval.clip"):
            clip = ClipNetwork(pathlib.Path(evaluation.clip.strip()), batch_size=_AT_A_TIME)
            clip.text_features([""])  # A CLIP of one tower, or without its tokenizer, is refused here.
            clip.image_features([])
    return LookedAt(metrics, network, reference, clip)


@contextmanager
def _blamed(key: str) -> Iterator[None]:
    """An InputError inside says which key named what is wrong."""
    try:
        yield
    except InputError as error:
        raise InputError(f"config.{key}: {error}") from error
