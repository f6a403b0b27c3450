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
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from pixart_jax.conversion.inception import load_inception
from pixart_jax.data.decoding import BadImage, decode
from pixart_jax.data.picture_formats import is_image
from pixart_jax.data.pictures.base import BadItem, printable, read_file
from pixart_jax.devices.sharding import batch_sharding, make_mesh, replicated
from pixart_jax.errors import InputError
from pixart_jax.evaluators.preprocessing import prepare
from pixart_jax.files import write_atomically
from pixart_jax.models.inception import INPUT_SIZE, NUM_CLASSES, NUM_FEATURES, Features, FidInception

# Of the file that the FID of the literature is made with, as its name tells.
PUBLISHED_SHA256 = "6726825d"


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


class FidNetwork:
    """FID-Inception with weights from a file, on all devices of this process.

    Attributes:
      sha256: of the file.
      preprocessing: see `evaluators.preprocessing`.
    """

    def __init__(self, path: pathlib.Path, preprocessing: str, *, batch_size: int, num_threads: int):
        """Raises InputError if the file is damaged or another network's."""
        try:
            with path.open("rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; name the weights of FID-Inception") from error
        self.preprocessing = preprocessing
        self._mesh = make_mesh(devices=jax.local_devices())
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._num_threads = num_threads
        params = load_inception(path)
        self._params = jax.device_put(params, replicated(self._mesh))

        @jax.jit
        def apply(params, pictures):
            found: Features = FidInception().apply({"params": params}, pictures)  # type: ignore[assignment]
            return found.f2048, found.logits_unbiased

        self._apply = apply

    @property
    def is_published(self) -> bool:
        """Whether the weights are the file that FID is defined with."""
        return self.sha256.startswith(PUBLISHED_SHA256)

    def unit(self, root: pathlib.Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of a unit's files.

        Returns:
          Features f32[N, 2048]; logits f32[N, 1008]; and "name: reason: message" of what could not be read, str[M].

        Raises:
          InputError: features are not finite; says of which picture.
        """
        prepared: list[tuple[str, np.ndarray]] = []
        skipped = []
        features, logits = [], []
        with concurrent.futures.ThreadPoolExecutor(self._num_threads) as pool:
            for name, found in zip(names, pool.map(lambda name: self._prepare(root, name), names), strict=True):
                if isinstance(found, str):
                    skipped.append(f"{printable(name)}: {found}")
                else:
                    prepared.append((name, found))
                if len(prepared) == self._batch_size or (name == names[-1] and prepared):
                    pooled, scores = self._run(root, prepared)
                    features.append(pooled)
                    logits.append(scores)
                    prepared = []
        return (
            np.concatenate([np.zeros((0, NUM_FEATURES), np.float32), *features]),
            np.concatenate([np.zeros((0, NUM_CLASSES), np.float32), *logits]),
            np.array(skipped, np.str_),
        )

    def _prepare(self, root: pathlib.Path, name: str) -> np.ndarray | str:
        try:
            image = decode(read_file(root / name, printable(name)), max_pixels=2**27, min_side=1)
        except (BadImage, BadItem) as error:
            return f"{error.reason}: {error.message}"
        return prepare(np.asarray(image), self.preprocessing)

    def _run(self, root: pathlib.Path, prepared: list[tuple[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        batch = np.zeros((self._batch_size, INPUT_SIZE, INPUT_SIZE, 3), np.float32)
        for row, (_, picture) in enumerate(prepared):
            batch[row] = picture
        found = self._apply(self._params, jax.device_put(batch, batch_sharding(self._mesh)))
        pooled, scores = (np.asarray(leaf)[: len(prepared)] for leaf in found)
        for row, (name, _) in enumerate(prepared):
            if not np.isfinite(pooled[row]).all():
                raise InputError(f"{printable(str(root / name))}: its features are not finite; check the weights")
        return pooled, scores


@dataclasses.dataclass(frozen=True)
class SetFeatures:
    """What is measured of a folder.

    Attributes:
      f2048, logits: f32[N, 2048] and f32[N, 1008] of the pictures that could be read, in the order of the files.
      skipped: "name: reason: message" of the others.
    """

    f2048: np.ndarray
    logits: np.ndarray
    skipped: tuple[str, ...]


def extract(
    folder: PictureFolder,
    network: FidNetwork,
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
        features, logits, skipped = network.unit(folder.root, folder.unit(number))
        buffer = io.BytesIO()
        np.savez(buffer, f2048=features, logits=logits, skipped=skipped)
        content = buffer.getvalue()
        write_atomically(_unit_file(work, number), operator.methodcaller("write", content))
        report(sum(len(folder.unit(i)) for i in range(folder.num_units) if _unit_file(work, i).exists()))


def load(folder: PictureFolder, work: pathlib.Path) -> SetFeatures | None:
    """What `extract` wrote, or None where other processes are still at it.

    Raises:
      InputError: a unit is damaged.
    """
    paths = [_unit_file(work, number) for number in range(folder.num_units)]
    if not all(path.exists() for path in paths):
        return None
    parts = list(_units(paths))
    return SetFeatures(
        np.concatenate([part["f2048"] for part in parts]),
        np.concatenate([part["logits"] for part in parts]),
        tuple(str(line) for part in parts for line in part["skipped"]),
    )


def _units(paths: Sequence[pathlib.Path]) -> Iterator[dict[str, np.ndarray]]:
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                yield {name: arrays[name] for name in ("f2048", "logits", "skipped")}
        except Exception as error:  # numpy and zipfile meet damage with some five kinds of exceptions.
            raise InputError(f"{path} is damaged: {error}; remove it, and the same command makes it again") from error


def _unit_file(work: pathlib.Path, number: int) -> pathlib.Path:
    return work / f"{number:06d}.npz"
