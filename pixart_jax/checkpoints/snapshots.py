"""Snapshots of averages that a run keeps: written now and then, never deleted, whole or not there.

WORKDIR/averages/STEP holds an item for each average, and `progress`, which says of each array shape, dtype and
checksum, and of each item its length.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from pixart_jax.checkpoints import lazy_orbax as ocp
from pixart_jax.checkpoints.checksums import tree_checksums
from pixart_jax.checkpoints.contents import Recorded, any_error_is_damage, read_contents, write_contents
from pixart_jax.checkpoints.save_errors import alone, save_errors
from pixart_jax.cluster.agreement import together
from pixart_jax.devices.offload import to_device
from pixart_jax.devices.sharding import replicated
from pixart_jax.interrupts import beside

FOLDER = "averages"


class Snapshots:
    """Those of one workdir, to be written; all processes of a run make the same calls.

    What a run that was killed has left half-written, or wrote behind the checkpoint that it goes on from, is deleted:
    it comes again.

    Args:
      averages: shapes and shardings by item.
      lengths: σ_rel by item.
      dtype: that they are written in.
      start: the step that the run goes on from.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        averages: Mapping[str, Any],
        lengths: Mapping[str, float],
        *,
        dtype: str,
        start: int,
    ):
        self.directory = workdir.absolute() / FOLDER
        self._lengths, self._dtype = lengths, jnp.dtype(dtype)
        with together("looking at the snapshots of averages"):
            if jax.process_index() == 0:
                for path in self.directory.glob("*"):
                    if not path.name.isdigit() or int(path.name) > start:
                        shutil.rmtree(path)
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                **{name: ocp.PyTreeCheckpointHandler() for name in averages},
                "progress": ocp.JsonCheckpointHandler(),
            },
            # Not in the background: a checkpoint that is complete is then one whose snapshots are.
            options=ocp.CheckpointManagerOptions(max_to_keep=None, create=True, enable_async_checkpointing=False),
        )

        def rounded(averages):
            return jax.tree.map(lambda leaf: leaf.astype(self._dtype), to_device(averages))

        # Ahead of the first step, after which nothing is compiled.
        self._rounded = jax.jit(rounded).lower(dict(averages)).compile()
        everywhere = replicated(jax.tree.leaves(averages)[0].sharding.mesh)
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            self._rounded.out_info,
        )
        self._checksums = jax.jit(tree_checksums, out_shardings=everywhere).lower(shapes).compile()

    def save(self, step: int, averages: Mapping[str, Any]) -> None:
        """Writes one, and returns when it is complete.

        Raises:
          SaveFailed: it could not be written.
        """
        rounded = self._rounded(dict(averages))
        checksums = np.asarray(self._checksums(rounded)).tolist()
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in rounded.items()}
        progress = {"lengths": dict(self._lengths)}
        items["progress"] = ocp.args.JsonSave(write_contents(rounded, checksums, progress))
        with save_errors(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(rounded))
        logging.info("snapshot of %d averages at step %d: %.1f MB", len(rounded), step, size / 1e6)

    def close(self) -> None:
        """Releases the manager."""
        self._manager.close()


def snapshot_steps(workdir: pathlib.Path) -> list[int]:
    """Of the snapshots that are complete, rising."""
    return sorted(int(path.name) for path in (workdir / FOLDER).glob("*") if path.name.isdigit())


def read_snapshot(workdir: pathlib.Path, step: int) -> tuple[dict[str, Recorded], dict[str, float]]:
    """What a snapshot says of the arrays of each item, and the σ_rel of each; raises Damaged."""
    handler = ocp.JsonCheckpointHandler(multiprocessing_options=alone())
    with any_error_is_damage("progress"):
        reader = ocp.Checkpointer(handler, multiprocessing_options=alone())
        contents = beside(reader.restore, workdir.absolute() / FOLDER / str(step) / "progress")
        recorded, progress = read_contents(contents)
        return recorded, progress["lengths"]
