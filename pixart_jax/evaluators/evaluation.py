"""One evaluation in its folder: sets of pictures, each looked at by networks, whoever does it and how often it stops.

OUT/recipe.json                          what the rest is of
OUT/features/SIDE/NETWORK/000000.npz     what a network gave of the first unit of a set
OUT/skipped.txt                          what could not be read
"""

from __future__ import annotations

import dataclasses
import json
import operator
import pathlib
from collections.abc import Callable, Mapping

from pixart_jax.errors import InputError
from pixart_jax.evaluators.networks import FeatureNetwork
from pixart_jax.evaluators.picture_sets import PictureReader, PictureSet, SetFeatures, extract, load
from pixart_jax.files import write_atomically
from pixart_jax.files.typed_json import read_fields


@dataclasses.dataclass(frozen=True)
class Side:
    """Pictures of an evaluation, and the networks that look at them by what they are for."""

    pictures: PictureSet
    networks: Mapping[str, FeatureNetwork]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Sides by name, and the folder of what is found of them."""

    out: pathlib.Path
    sides: Mapping[str, Side]

    def begin(self) -> None:
        """Says in the folder what its features are of.

        Raises:
          InputError: it holds those of something else.
        """
        recipe: dict[str, object] = {}
        for name, side in self.sides.items():
            recipe |= {name: side.pictures.fingerprint, "pictures per unit": side.pictures.per_unit}
            for network in side.networks.values():
                recipe[f"weights of {network.name}"] = network.sha256
                recipe[f"preprocessing of {network.name}"] = network.preprocessing
        path, begun = self.out / "recipe.json", {}
        if path.exists():
            begun = dict(read_fields(path, f"remove {self.out}, or name another --out"))
            if changed := sorted(name for name in recipe if begun.get(name, recipe[name]) != recipe[name]):
                raise InputError(
                    f"{self.out} was begun with other {', '.join(changed)}; name another --out, or remove it"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(begun | recipe, indent=2) + "\n")

    def look(
        self,
        *,
        batch_size: int,
        num_threads: int,
        process_index: int,
        process_count: int,
        progress: Callable[[str, int], Callable[[int], None]],
    ) -> None:
        """Writes this process's share of the features.

        Args:
          batch_size: of the networks.
          num_threads: that read and decode.
          progress: of a side's name and number of pictures: what is told how many are done.
        """
        readers: dict[int, PictureReader] = {}
        for name, side in self.sides.items():
            for network in side.networks.values():
                if id(network) not in readers:
                    readers[id(network)] = PictureReader(network, batch_size=batch_size, num_threads=num_threads)
            extract(
                side.pictures,
                {self._work(name, network): readers[id(network)] for network in side.networks.values()},
                process_index=process_index,
                process_count=process_count,
                report=progress(name, len(side.pictures)),
            )

    def found(self) -> dict[str, dict[str, SetFeatures]] | None:
        """The features by side and by what the network is for; None where other processes are still at it.

        Raises:
          InputError: some are damaged.
        """
        found: dict[str, dict[str, SetFeatures]] = {}
        for name, side in self.sides.items():
            found[name] = {}
            for purpose, network in side.networks.items():
                features = load(side.pictures, network, self._work(name, network))
                if features is None:
                    return None
                found[name][purpose] = features
        return found

    def write_skipped(self, found: Mapping[str, Mapping[str, SetFeatures]]) -> list[str]:
        """Lists what could not be read; returns a line on each side of which something could not."""
        rows, said = [], []
        for name, by_purpose in found.items():
            if not by_purpose:
                continue
            features = next(iter(by_purpose.values()))
            rows += [f"{name}: {line}\n" for line in features.skipped]
            if features.skipped:
                total = len(features.skipped) + len(features.read)
                said.append(
                    f"{name}: {len(features.skipped)} of {total} could not be read, see {self.out / 'skipped.txt'}"
                )
        write_text(self.out / "skipped.txt", "".join(rows))
        return said

    def _work(self, side: str, network: FeatureNetwork) -> pathlib.Path:
        return self.out / "features" / side / network.name.replace("/", "-").replace(" ", "-")


def write_text(path: pathlib.Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_atomically(path, operator.methodcaller("write", text.encode()))
