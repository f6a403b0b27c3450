"""Folders of pictures to features, in units that are whole or absent, so that a killed evaluation goes on.

Unit k is files k·S to (k+1)·S − 1 of the sorted folder. What it holds depends on its files and the network alone,
so that several processes can share the units: process i of P takes every P-th.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import operator
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pixart_jax.data.decoding import BadImage, decode
from pixart_jax.data.picture_formats import is_image
from pixart_jax.data.pictures.base import BadItem, printable, read_file
from pixart_jax.errors import InputError
from pixart_jax.evaluators.networks import FEATURES, FeatureNetwork, OnDevices
from pixart_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class PictureFolder:
    """The picture files of a folder and those below it, sorted by their relative paths.

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
    def num_units(self) -> int:
        return -(-len(self.files) // self.per_unit)

    def unit(self, number: int) -> tuple[str, ...]:
        return self.files[number * self.per_unit : (number + 1) * self.per_unit]


class PictureReader:
    """Looks at picture files with a network.

    Attributes:
      network: on the devices of this process.
    """

    def __init__(self, network: FeatureNetwork, *, batch_size: int, num_threads: int):
        self.network = network
        self._on_devices = OnDevices(network, batch_size)
        self._num_threads = num_threads

    def unit(self, root: pathlib.Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """What the network gives of a unit's files.

        Returns:
          f32[N, width] of each output; which of the files these N are, i64[N]; and "name: reason: message" of what
          could not be read, str[M].

        Raises:
          InputError: features are not finite; says of which picture.
        """
        read: list[int] = []
        waiting: list[np.ndarray] = []
        skipped = []
        found: list[dict[str, np.ndarray]] = []
        with concurrent.futures.ThreadPoolExecutor(self._num_threads) as pool:
            for row, prepared in enumerate(pool.map(lambda name: self._prepare(root, name), names)):
                if isinstance(prepared, str):
                    skipped.append(f"{printable(names[row])}: {prepared}")
                    continue
                read.append(row)
                waiting.append(prepared)
                if len(waiting) == self._on_devices.batch_size:
                    found.append(self._on_devices(waiting))
                    waiting = []
            found.append(self._on_devices(waiting))
        outputs = {name: np.concatenate([part[name] for part in found]) for name in self.network.outputs}
        for row, values in zip(read, outputs[FEATURES], strict=True):
            if not np.isfinite(values).all():
                raise InputError(f"{printable(str(root / names[row]))}: its features are not finite; check the weights")
        return outputs, np.array(read, np.int64), np.array(skipped, np.str_)

    def _prepare(self, root: pathlib.Path, name: str) -> np.ndarray | str:
        try:
            image = decode(read_file(root / name, printable(name)), max_pixels=2**27, min_side=1)
        except (BadImage, BadItem) as error:
            return f"{error.reason}: {error.message}"
        return self.network.prepare(np.asarray(image))


@dataclasses.dataclass(frozen=True)
class SetFeatures:
    """What a network gives of a folder.

    Attributes:
      outputs: f32[N, width] by name, of the pictures that could be read, in the order of the files.
      read: which of the folder's files these N are, i64[N].
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
    folder: PictureFolder,
    reader: PictureReader,
    work: pathlib.Path,
    *,
    process_index: int,
    process_count: int,
    report: Callable[[int], None],
) -> None:
    """Writes this process's units into `work` that are not there yet.

    Args:
      work: a folder, for this folder of pictures and network alone.
      report: called after each unit with the number of files that are done.
    """
    work.mkdir(parents=True, exist_ok=True)
    for number in range(process_index, folder.num_units, process_count):
        if _unit_file(work, number).exists():
            continue
        outputs, read, skipped = reader.unit(folder.root, folder.unit(number))
        buffer = io.BytesIO()
        unit: dict[str, Any] = {**outputs, "read": read + number * folder.per_unit, "skipped": skipped}
        np.savez(buffer, **unit)
        content = buffer.getvalue()
        write_atomically(_unit_file(work, number), operator.methodcaller("write", content))
        report(sum(len(folder.unit(i)) for i in range(folder.num_units) if _unit_file(work, i).exists()))


def load(folder: PictureFolder, network: FeatureNetwork, work: pathlib.Path) -> SetFeatures | None:
    """What `extract` wrote, or None where other processes are still at it.

    Raises:
      InputError: a unit is damaged.
    """
    paths = [_unit_file(work, number) for number in range(folder.num_units)]
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
