"""Arrays of parameters on disk as Orbax writes them, each held against its checksum when it is read."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax
import jax
import numpy as np

from pixart_jax.checkpoints import lazy_orbax as ocp
from pixart_jax.checkpoints.checksums import array_checksum, device_checksums
from pixart_jax.checkpoints.contents import any_error_is, without
from pixart_jax.checkpoints.save_errors import alone
from pixart_jax.conversion.checksums import check_array, read_checksums, write_checksums
from pixart_jax.conversion.mapped import mapped_arrays
from pixart_jax.errors import InputError
from pixart_jax.files import check_space, reason, refuse_patterns
from pixart_jax.interrupts import beside
from pixart_jax.shortcuts.eight_bits import quantize_flat


def write_params(path: pathlib.Path, params: Mapping[str, np.ndarray]) -> None:
    """Writes a new Orbax checkpoint, which `ocp.StandardCheckpointer` restores, with checksums in it.

    Uncompressed, which trained weights hardly gain from, each array in a file of its own, which `mapped` opens where it
    lies; and without Orbax's defensive copy: so that no second copy of the model is ever in memory.

    Args:
      params: '/'-joined path to array of each parameter.

    Raises:
      OSError: the disk is full, or cannot be written.
    """
    check_space(path.parent, sum(array.nbytes for array in params.values()))
    types = ocp.type_handlers
    registry = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
        # Orbax warns where it is absent.
        (jax.Array, types.ArrayHandler()),
    )

    class FileForEach(ocp.PyTreeCheckpointHandler):
        """Writes each array as a file."""

        def finalize(self, directory):
            """Nothing: Orbax would look for the parts of processes to merge, and warn that there are none."""

    handler = FileForEach(type_handler_registry=registry, use_compression=False, use_ocdbt=False)
    tree = flax.traverse_util.unflatten_dict(dict(params), sep="/")
    with ocp.Checkpointer(handler) as checkpointer:
        try:
            checkpointer.save(path.absolute(), tree)
        except ValueError as error:  # TensorStore's for a full disk.
            raise OSError(reason(error)) from error
    write_checksums(path, params)


class StoredArrays(Mapping[str, np.ndarray]):
    """Parameters that Orbax has written, '/'-joined path to array, each read when it is asked for.

    Args:
      path: where `write_params` wrote them, or an item of a training run's checkpoint.
      shapes: '/'-joined path to shape of each of them.
      checksums: '/'-joined path to `array_checksum`, where it is known; None takes those of `write_params`.
      leaving: names of networks among them that are not wanted; there need not be any.

    Attributes:
      shapes: as given.
      bfloat16: whether all of them are.

    Raises:
      InputError: they are another model's, or damaged, be it when they are read.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        shapes: Mapping[str, tuple[int, ...]],
        checksums: Mapping[str, int | None] | None = None,
        leaving: Collection[str] = (),
    ):
        self._path = pathlib.Path(path).absolute()
        self._checksums = read_checksums(self._path) if checksums is None else checksums
        self._checkpointer = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=alone()), multiprocessing_options=alone()
        )
        self.shapes = shapes
        check_shapes(self._path, self.shapes, leaving)
        self.bfloat16 = all(leaf.dtype == "bfloat16" for leaf in stored_leaves(self._path).values())

    def __getitem__(self, path: str) -> np.ndarray:
        return self._read([path])[path]

    def read_all(self) -> dict[str, np.ndarray]:
        """All of them at once, which of many small arrays is much faster than one by one."""
        return self._read(list(self.shapes))

    def _read(self, paths: list[str]) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = mapped_arrays(self._path, paths)
        if left := [path for path in paths if path not in arrays]:
            arrays |= self._read_by_orbax(left)
        for name in paths:
            if self._checksums.get(name) is not None:
                check_array(self._path, name, array_checksum(arrays[name]), self._checksums)
        return {path: arrays[path] for path in paths}

    def _read_by_orbax(self, paths: list[str]) -> dict[str, np.ndarray]:
        # A run has saved jax arrays, which would come back as such.
        as_numpy = dict.fromkeys(paths, ocp.RestoreArgs(restore_type=np.ndarray))
        which = f": {paths[0]}" if len(paths) == 1 else ""
        return _read_by_orbax(self._checkpointer, self._path, dict.fromkeys(paths, np.zeros(0)), as_numpy, which)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def restore_tree(path: pathlib.Path, abstract: Any, *, is_eight_bit: Callable[[str], bool] = lambda name: False):
    """A tree of jax arrays like `abstract`, read a few at a time: the host needs little more than one of them.

    Each is held against its checksum as it is stored, and becomes what `abstract` wants after that.

    Args:
      is_eight_bit: of a '/'-joined path, whether the array becomes int8, see `shortcuts.eight_bits`, and its scale
        stands beside it. One after the other: together, before they are, they may not fit the device.

    Raises:
      InputError: they are damaged.
    """
    flat, stored = flax.traverse_util.flatten_dict(abstract, sep="/"), stored_leaves(path)
    recorded = read_checksums(path)
    found: dict[str, jax.Array] = {}
    for names in _groups(flat, stored, recorded, is_eight_bit):
        as_stored = {name: stored[name].dtype if recorded else flat[name].dtype for name in names}
        arrays = _restore_some(path, {name: _with_dtype(flat[name], as_stored[name]) for name in names})
        checked = [name for name in arrays if name in recorded]
        found_checksums = device_checksums([arrays[name] for name in checked])
        for name, checksum in zip(checked, found_checksums, strict=True):
            check_array(path, name, checksum, recorded)
        if is_eight_bit(names[0]):
            found |= quantize_flat(arrays)
        else:
            found |= {name: _converted(array, flat[name]) for name, array in arrays.items()}
    return flax.traverse_util.unflatten_dict(found, sep="/")


def _restore_some(path: pathlib.Path, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
    """By '/'-joined path, as `restore_tree`, but of the dtypes that are stored."""
    mapped = {
        name: array
        for name, array in mapped_arrays(path, abstract).items()
        if (array.shape, array.dtype) == (abstract[name].shape, abstract[name].dtype)
    }
    # Each process sends its own devices what they hold; a CPU takes the mapped pages for its own.
    placed = {name: jax.device_put(array, abstract[name].sharding) for name, array in mapped.items()}
    left = {name: leaf for name, leaf in abstract.items() if name not in placed}
    return placed | (_restore_by_orbax(path, left) if left else {})


def _restore_by_orbax(path: pathlib.Path, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in abstract.values())
    gb = 1 + math.ceil(largest / 1e9)
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=gb, multiprocessing_options=alone())
    placed = ocp.checkpoint_utils.construct_restore_args(dict(abstract))
    with ocp.Checkpointer(handler, multiprocessing_options=alone()) as checkpointer:
        return _read_by_orbax(checkpointer, path, abstract, placed)


def _read_by_orbax(
    checkpointer: ocp.Checkpointer,
    path: pathlib.Path,
    wanted: Mapping[str, Any],
    how: Mapping[str, ocp.RestoreArgs],
    which: str = "",
) -> dict[str, Any]:
    """By '/'-joined path, as `wanted` and `how` are; `which` of them, for an error."""

    def tree(flat):
        return flax.traverse_util.unflatten_dict(dict(flat), sep="/")

    args = ocp.args.PyTreeRestore(tree(wanted), restore_args=tree(how), partial_restore=True)
    with _damage_is(f"{path}{which} is damaged"):
        found = beside(checkpointer.restore, path, args=args)
    return flax.traverse_util.flatten_dict(found, sep="/")


def _damage_is(what: str) -> AbstractContextManager[None]:
    return any_error_is(lambda error: InputError(f"{what}: {reason(error)}"))


def _groups(
    flat: Mapping[str, Any], stored: Mapping[str, Any], recorded: Mapping[str, Any], is_eight_bit: Callable[[str], bool]
) -> list[list[str]]:
    """Paths that are restored together: all that stay as they are; of the others each alone, so that no two of them are
    on the devices in both their dtypes."""
    same = [
        name for name in flat if not is_eight_bit(name) and (not recorded or flat[name].dtype == stored[name].dtype)
    ]
    return ([same] if same else []) + [[name] for name in flat if name not in set(same)]


def _with_dtype(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)


def _converted(array: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if array.dtype == leaf.dtype:
        return array
    return jax.jit(lambda value: value.astype(leaf.dtype), out_shardings=leaf.sharding)(array)


def stored_leaves(path: pathlib.Path) -> dict[str, Any]:
    """'/'-joined path to metadata, with shape and dtype, of each parameter stored at `path`.

    Raises:
      InputError: there is no Orbax checkpoint, or a damaged one.
    """
    refuse_patterns(path, "the arrays of")
    recorded = read_checksums(path)
    mapped = mapped_arrays(path, recorded)
    if recorded and mapped.keys() == recorded.keys():  # All lie there as they are in memory, and Orbax is not needed.
        return dict(mapped)
    what = f"{path} is no Orbax checkpoint, or a damaged one"
    with _damage_is(what), ocp.StandardCheckpointer(multiprocessing_options=alone()) as checkpointer:
        metadata = beside(checkpointer.metadata, path).item_metadata
        leaves = None if metadata is None else flax.traverse_util.flatten_dict(metadata.tree, sep="/")
    if leaves is None or not all(hasattr(leaf, "shape") for leaf in leaves.values()):  # Orbax has logged why.
        raise InputError(f"{what}; convert the weights again")
    return leaves


def check_shapes(path: pathlib.Path, wanted: Mapping[str, tuple[int, ...]], leaving: Collection[str] = ()) -> None:
    """Raises InputError unless the parameters stored at `path`, but for networks that are left out, have exactly these
    paths and shapes."""
    found = {name: tuple(leaf.shape) for name, leaf in without(stored_leaves(path), leaving).items()}
    if rows := [
        f"{name}: stored {found.get(name, 'nothing')}, the model has {wanted.get(name, 'no such parameter')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]:
        raise InputError(
            f"{path} holds another model than its model.json or config.json describes:\n  " + "\n  ".join(rows)
        )
