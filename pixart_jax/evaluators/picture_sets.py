"""Sets of pictures to features, in units that are whole or absent, so that a killed evaluation goes on.

Unit k is pictures k·S to (k+1)·S − 1 of the set. What it holds depends on its pictures and the network alone, so that
several processes can share the units: process i of P takes every P-th.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import operator
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pixart_jax.data.decoding import BadImage, decode
from pixart_jax.data.picture_formats import is_image
from pixart_jax.data.pictures.base import BadItem, printable, read_file
from pixart_jax.errors import InputError
from pixart_jax.evaluators.networks import FEATURES, FeatureNetwork, OnDevices
from pixart_jax.files import write_atomically


class PictureSet(Protocol):
    """Pictures in an order, to be looked at by their places.

    Attributes:
      path: what it is called, for people.
      fingerprint: hex digest that another set would not have.
      per_unit: S.
    """

    @property
    def path(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def per_unit(self) -> int: ...

    def __len__(self) -> int: ...

    def name(self, place: int) -> str:
        """What a picture is called, for people."""

    def read(self, place: int) -> Any:
        """A picture uint8[H, W, 3], as it is meant to be seen, or a caption; called from several threads at once.

        Raises:
          BadItem, BadImage: it cannot be read.
        """

    def ready(self, number: int) -> contextlib.AbstractContextManager[None]:
        """While it is open, the pictures of a unit can be read."""


def num_units(pictures: PictureSet) -> int:
    return -(-len(pictures) // pictures.per_unit)


def unit(pictures: PictureSet, number: int) -> range:
    """The places of a unit's pictures."""
    return range(number * pictures.per_unit, min((number + 1) * pictures.per_unit, len(pictures)))


@dataclasses.dataclass(frozen=True)
class PictureFolder:
    """The picture files of a folder and those below it, sorted by their relative paths: a `PictureSet`.

    Attributes:
      root: the folder.
      files: relative paths.
      fingerprint: hex digest of their names and sizes.
      per_unit: S.
    """

    root: pathlib.Path
    files: tuple[str, ...]
    fingerprint: str
    per_unit: int

    @classmethod
    def open(cls, root: pathlib.Path, per_unit: int) -> PictureFolder:
        """Raises InputError if there is no such folder or no picture in it."""
        if not root.is_dir():
            raise InputError(f"{root} is no folder; name one that holds pictures")
        found = [
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
            if is_image(name) and not name.startswith(".")
        ]
        if not found:
            raise InputError(f"{root}: no pictures in it or below; name another folder")
        digest = hashlib.sha256()
        for name in sorted(found):
            digest.update(os.fsencode(f"{name}\0{(root / name).stat().st_size if (root / name).exists() else -1}\0"))
        return cls(root, tuple(sorted(found)), digest.hexdigest(), per_unit)

    @property
    def path(self) -> str:
        return str(self.root)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, place: int) -> str:
        return printable(str(self.root / self.files[place]))

    def read(self, place: int) -> np.ndarray:
        return pixels(read_file(self.root / self.files[place], printable(self.files[place])))

    def ready(self, number: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def pixels(data: bytes) -> np.ndarray:
    """An encoded picture as uint8[H, W, 3]; raises BadImage."""
    return np.asarray(decode(data, max_pixels=2**27, min_side=1))


class PictureReader:
    """Looks at pictures with a network.

    Attributes:
      network: on the devices of this process.
    """

    def __init__(self, network: FeatureNetwork, *, batch_size: int, num_threads: int):
        self.network = network
        self._on_devices = OnDevices(network, batch_size)
        self._num_threads = num_threads

    def look(self, pictures: PictureSet, places: Sequence[int]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """What the network gives of some pictures of a set.

        Returns:
          f32[N, width] of each output; the places of these N, i64[N]; and "name: reason: message" of what could not be
          read, str[M].

        Raises:
          InputError: features are not finite; says of which picture.
        """
        read: list[int] = []
        waiting: list[np.ndarray] = []
        skipped = []
        found: list[dict[str, np.ndarray]] = []
        with concurrent.futures.ThreadPoolExecutor(self._num_threads) as pool:
            prepared_pictures = pool.map(lambda place: self._prepare(pictures, place), places)
            for place, prepared in zip(places, prepared_pictures, strict=True):
                if isinstance(prepared, str):
                    skipped.append(f"{pictures.name(place)}: {prepared}")
                    continue
                read.append(place)
                waiting.append(prepared)
                if len(waiting) == self._on_devices.batch_size:
                    found.append(self._on_devices(waiting))
                    waiting = []
            found.append(self._on_devices(waiting))
        outputs = {name: np.concatenate([part[name] for part in found]) for name in self.network.outputs}
        for values in outputs.values():
            if broken := np.flatnonzero(~np.isfinite(values).all(1)).tolist():
                raise InputError(f"{pictures.name(read[broken[0]])}: its features are not finite; check the weights")
        return outputs, np.array(read, np.int64), np.array(skipped, np.str_)

    def _prepare(self, pictures: PictureSet, place: int) -> np.ndarray | str:
        try:
            picture = pictures.read(place)
        except (BadImage, BadItem) as error:
            return f"{error.reason}: {error.message}"
        return self.network.prepare(picture)


@dataclasses.dataclass(frozen=True)
class SetFeatures:
    """What a network gives of a set of pictures.

    Attributes:
      outputs: f32[N, width] by name, of the pictures that could be read, in the order of the set.
      read: the places of these N in the set, i64[N].
      skipped: "name: reason: message" of the others.
    """

    outputs: Mapping[str, np.ndarray]
    read: np.ndarray
    skipped: tuple[str, ...]

    @property
    def features(self) -> np.ndarray:
        """f32[N, width]."""
        return self.outputs[FEATURES]


def extract(
    pictures: PictureSet,
    readers: Mapping[pathlib.Path, PictureReader],
    *,
    process_index: int,
    process_count: int,
    report: Callable[[int], None],
) -> None:
    """Writes this process's units that are not there yet.

    Args:
      readers: by the folder that their units are written into, which is for this set and network alone.
      report: called after each unit with the number of pictures that are done.
    """
    for work in readers:
        work.mkdir(parents=True, exist_ok=True)

    def missing(number: int) -> list[pathlib.Path]:
        return [work for work in readers if not _unit_file(work, number).exists()]

    for number in range(process_index, num_units(pictures), process_count):
        if works := missing(number):
            with pictures.ready(number):
                for work in works:
                    _write_unit(_unit_file(work, number), readers[work].look(pictures, unit(pictures, number)))
            report(sum(len(unit(pictures, i)) for i in range(num_units(pictures)) if not missing(i)))


def _write_unit(path: pathlib.Path, looked: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]) -> None:
    outputs, read, skipped = looked
    arrays: dict[str, Any] = {**outputs, "read": read, "skipped": skipped}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, operator.methodcaller("write", buffer.getvalue()))


def load(pictures: PictureSet, network: FeatureNetwork, work: pathlib.Path) -> SetFeatures | None:
    """What `extract` wrote, or None where other processes are still at it.

    Raises:
      InputError: a unit is damaged.
    """
    paths = [_unit_file(work, number) for number in range(num_units(pictures))]
    if not all(path.exists() for path in paths):
        return None
    parts = list(_units(paths, (*network.outputs, "read", "skipped")))
    return SetFeatures(
        {name: np.concatenate([part[name] for part in parts]) for name in network.outputs},
        np.concatenate([part["read"] for part in parts]),
        tuple(str(line) for part in parts for line in part["skipped"]),
    )


def _units(paths: Sequence[pathlib.Path], names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                yield {name: arrays[name] for name in names}
        except Exception as error:  # numpy and zipfile meet damage with some five kinds of exceptions.
            raise InputError(f"{path} is damaged: {error}; remove it, and the same command makes it again") from error


def _unit_file(work: pathlib.Path, number: int) -> pathlib.Path:
    return work / f"{number:06d}.npz"
