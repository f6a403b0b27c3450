"""Checkpoints of a run with Orbax: asynchronous, atomic, sharded on restore as the current mesh wants it.

Each checkpoint holds the items `params`, `ema_params`, `opt_state` (so that sampling reads only one of them) and
`progress`, a small JSON with the input pipeline's position.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pixart_jax.errors import InputError
from pixart_jax.train_state import TrainState

_ARRAYS = ("params", "ema_params", "opt_state")


class Checkpoints:
    """The checkpoints of one workdir, in `workdir/checkpoints/STEP`. Call `close` to wait for what is being written."""

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, read_only: bool = False):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                **{name: ocp.StandardCheckpointHandler() for name in _ARRAYS},
                "progress": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                create=not read_only,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def require_step(self) -> int:
        """`latest_step`, where there is one; raises InputError where there is none."""
        if self.latest_step is None:
            raise InputError(f"{self.directory}: no checkpoint yet; train first, or name the right workdir")
        return self.latest_step

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts writing a checkpoint of `state.step`; returns once the arrays are copied off the devices.

        Args:
          progress: JSON-able, the same on every process; comes back from `restore`.
        """
        arrays = {name: ocp.args.StandardSave(getattr(state, name)) for name in _ARRAYS}
        self._manager.save(int(state.step), args=ocp.args.Composite(**arrays, progress=ocp.args.JsonSave(progress)))

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint as a state with `abstract`'s shardings, and the progress saved with it.

        Raises:
          InputError: the checkpoint is of another model; lists the parameters and both shapes.
        """
        step = self.latest_step
        for name in _ARRAYS:
            self.check_shapes(step, name, getattr(abstract, name))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(getattr(abstract, name)) for name in _ARRAYS},
                progress=ocp.args.JsonRestore(),
            ),
        )
        counter = jax.device_put(np.asarray(step, np.int32), abstract.step.sharding)
        arrays = {name: restored[name] for name in _ARRAYS}
        return dataclasses.replace(abstract, step=counter, **arrays), restored["progress"]

    def restore_params(self, abstract, *, ema: bool = True):
        """Only the (EMA) parameters of the newest checkpoint, with the shapes and shardings of `abstract`.

        Raises:
          InputError: there is no checkpoint, or it is of another model.
        """
        step = self.require_step()
        item = "ema_params" if ema else "params"
        self.check_shapes(step, item, abstract)
        return self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))[item]

    def check_shapes(self, step: int, item: str, abstract) -> None:
        """Raises InputError unless the stored item has exactly `abstract`'s paths and shapes."""
        stored = _shapes(self._manager.item_metadata(step)[item])
        wanted = _shapes(abstract)
        if stored == wanted:
            return
        missing = "no such parameter"
        rows = [
            f"{path}: checkpoint {stored.get(path, missing)}, model {wanted.get(path, missing)}"
            for path in sorted(stored.keys() | wanted.keys())
            if stored.get(path) != wanted.get(path)
        ]
        raise InputError(
            f"{self.directory / str(step)} holds another model than the config describes; resume with the config it "
            "was trained with (config.json in the workdir), or name another workdir:\n  " + "\n  ".join(rows)
        )

    def wait(self) -> None:
        """Blocks until what is being written is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager."""
        self._manager.close()


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path): tuple(leaf.shape)
        for path, leaf in leaves
    }
