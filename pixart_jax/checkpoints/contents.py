"""What a checkpoint says about its arrays, and what comes back held against it: damage is told from another model."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import jax

from pixart_jax.devices.sharding import path_name
from pixart_jax.interrupts import give_way

Leaf = TypeVar("Leaf")


class Damaged(Exception):
    """A checkpoint does not come back as it was saved; says how."""


@dataclasses.dataclass(frozen=True)
class RecordedArray:
    """What a checkpoint says about one array; the checksum is None in those from before there were any."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int | None


# '/'-joined path to each array of an item.
Recorded = dict[str, RecordedArray]


def write_contents(items: dict[str, Any], checksums: Iterable[int], progress: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself, JSON-able.

    Args:
      items: trees of arrays by the item's name.
      checksums: of all their leaves, in the order of `jax.tree.leaves(items)`.
      progress: JSON-able; comes back from `read_contents`.
    """
    checksums = iter(checksums)
    arrays = {
        name: {path: [leaf.shape, str(leaf.dtype), next(checksums)] for path, leaf in flatten_tree(items[name]).items()}
        for name in sorted(items)
    }
    contents = {"arrays": arrays, "progress": progress}
    return {"crc32": _crc32(contents)} | contents


def read_contents(contents: dict[str, Any]) -> tuple[dict[str, Recorded], dict[str, Any]]:
    """The arrays of each item, and the progress, of what `write_contents` made; raises Damaged if that has changed."""
    if contents.pop("crc32") != _crc32(contents):
        raise Damaged("progress: its text is not what was saved")
    arrays = {
        name: {path: RecordedArray(tuple(shape), *rest) for path, (shape, *rest) in item.items()}
        for name, item in contents["arrays"].items()
    }
    return arrays, contents["progress"]


def _crc32(contents: dict[str, Any]) -> int:
    """Of what JSON makes of it."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(contents)), sort_keys=True).encode())


def recorded_shapes(metadata: Any) -> Recorded:
    """All that is known of an item of a checkpoint from before there were checksums."""
    return {path: RecordedArray(tuple(leaf.shape), "", None) for path, leaf in flatten_tree(metadata).items()}


def shape_differences(recorded: Recorded, abstract: Any) -> list[str]:
    """A line for each array of an item that is not `abstract`'s, or of another shape, or of `abstract` alone."""
    stored = {path: array.shape for path, array in recorded.items()}
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten_tree(abstract).items()}
    missing = "no such parameter"
    return [
        f"{path}: checkpoint {stored.get(path, missing)}, model {wanted.get(path, missing)}"
        for path in sorted(stored.keys() | wanted.keys())
        if stored.get(path) != wanted.get(path)
    ]


def check_structure(restored: Any, abstract: Any) -> None:
    """Raises Damaged unless what came back is a tree of arrays as `abstract`; Orbax goes by its own notes."""
    there, expected = flatten_tree(restored), flatten_tree(abstract)
    for path, wanted in expected.items():
        found = there.get(path)
        if getattr(found, "shape", None) != wanted.shape or getattr(found, "dtype", None) != wanted.dtype:
            raise Damaged(f"{path} has not come back as what was saved")
    if there.keys() != expected.keys():
        raise Damaged("other arrays have come back than were saved")


def verify(item: str, recorded: Recorded, tree: Any, checksums: Iterable[int]) -> None:
    """Raises Damaged unless the leaves have the recorded checksums; takes one from `checksums` for each of them."""
    changed = []
    for (path, leaf), checksum in zip(flatten_tree(tree).items(), checksums, strict=False):
        array = recorded[path]
        if array.checksum not in (None, checksum) and array.dtype == str(leaf.dtype):
            changed.append(path)
    if changed:
        more = f" and {len(changed) - 1} other arrays" if len(changed) > 1 else ""
        raise Damaged(f"{item}: the numbers of {changed[0]}{more} are not those that were saved")


@contextmanager
def any_error_is(damage: Callable[[Exception], Exception]):
    """Turns what Orbax and TensorStore raise into what is made of it: damage makes them raise almost anything.

    But not what says that the devices or the host fail, or have too little memory; nor what comes of Ctrl-C.
    """
    try:
        yield
    except (Damaged, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        give_way()
        raise damage(error) from error


def any_error_is_damage(what: str) -> AbstractContextManager[None]:
    """`any_error_is` Damaged."""
    return any_error_is(
        lambda error: Damaged(f"{what}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}")
    )


def without(leaves: Mapping[str, Leaf], networks: Collection[str]) -> dict[str, Leaf]:
    """What of '/'-joined paths lies below none of the `networks`."""
    return {path: leaf for path, leaf in leaves.items() if path.partition("/")[0] not in networks}


def flatten_tree(tree: Any) -> dict[str, Any]:
    """'/'-joined path to leaf, in the order of the leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}
