"""Checkpoints of a run with Orbax: asynchronous, atomic, sharded on restore as the current mesh wants it.

Each checkpoint holds the items `params`, `ema_params`, `opt_state` (so that sampling reads only one of them) and
`progress`, a small JSON with the input pipeline's position and, of each array, shape, dtype and checksum. What comes
back is held against it: a damaged checkpoint is told from one of another model, and gives way to the one before.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from absl import logging

from pixart_jax.checkpoints import lazy_orbax as ocp
from pixart_jax.checkpoints.checksums import tree_checksums
from pixart_jax.checkpoints.contents import (
    Damaged,
    Recorded,
    any_error_is_damage,
    check_structure,
    read_contents,
    recorded_shapes,
    shape_differences,
    verify,
    without,
    write_contents,
)
from pixart_jax.checkpoints.save_errors import alone, noting_barrier, noting_errors, quiet_failure, save_errors
from pixart_jax.checkpoints.state import ARRAYS, TrainState, compile_checksums, items_of
from pixart_jax.cluster.agreement import together
from pixart_jax.cluster.processes import absent, client
from pixart_jax.errors import InputError
from pixart_jax.files import refuse_patterns
from pixart_jax.interrupts import beside

# Looks for a checkpoint that is not deleted while it is read, and seconds between two at a save that is waited for.
_LOOKS, _POLL = 30, 0.01


@dataclasses.dataclass(frozen=True)
class _Saving:
    """A checkpoint on its way to disk.

    Attributes:
      begin: the time.monotonic() at which it set out.
      held: seconds that the loop has waited for it.
    """

    step: int
    begin: float
    held: float


class Checkpoints:
    """The checkpoints of one workdir, in `workdir/checkpoints/STEP`. Call `close` to wait for what is being written.

    Half-written ones, which a killed run has left, are no checkpoints, and are deleted unless `read_only`. All
    processes of a run make the same calls; what is `read_only` each opens for itself.

    Args:
      keep: that many of the newest.
      damage_wait: seconds within which processes find the same damage, beside those that the first one took to find it.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, read_only: bool = False, damage_wait: float = 10):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        refuse_patterns(self.directory, "the checkpoints' folder")
        self._keep, self._read_only, self._damage_wait = keep, read_only, damage_wait
        if not read_only and jax.process_index() == 0:
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path)
        self._errors: list[BaseException] = []
        # When the last save's files were all there: the loop may look for that only much later.
        self._written = 0.0
        self._manager = self._open_manager()
        self._saving: _Saving | None = None
        self._checksums: jax.stages.Compiled | None = None

    def _open_manager(self) -> ocp.CheckpointManager:
        processes = alone() if self._read_only else ocp.options.MultiprocessingOptions()

        def note_time() -> None:
            self._written = time.monotonic()

        # Of several devices with the same part of an array, one writes it. By default each writes its share of the
        # part, which costs it a copy of that in its memory, and the first save a compilation for each device and shape.
        registry = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
        )

        def arrays() -> ocp.PyTreeCheckpointHandler:
            # Uncompressed: trained numbers hardly gain from it, and the step beside may want the processor.
            return ocp.PyTreeCheckpointHandler(
                use_compression=False, type_handler_registry=registry, multiprocessing_options=processes
            )

        return ocp.CheckpointManager(
            self.directory,
            item_handlers={
                **{name: noting_errors(arrays(), self._errors) for name in ARRAYS},
                "progress": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if self._read_only else self._keep,
                create=not self._read_only,
                read_only=self._read_only,
                save_interval_steps=0 if self._read_only else 1,
                # What is said of a checkpoint is read when it is restored, where damage to it does no harm.
                lightweight_initialize=True,
                multiprocessing_options=processes,
                async_options=ocp.AsyncOptions(
                    barrier_sync_fn=noting_barrier(self._errors, processes), post_finalization_callback=note_time
                ),
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, be it still on its way to disk, or None."""
        return self._manager.latest_step()

    def require_step(self) -> int:
        """`latest_step`, where there is one; raises InputError where there is none."""
        if self.latest_step is None:
            raise InputError(f"{self.directory}: no checkpoint yet; train first, or name the right workdir")
        return self.latest_step

    def prepare(self, abstract: TrainState) -> None:
        """Compiles the checksums of such a state, which the first `save` would do otherwise."""
        self._checksums = compile_checksums(abstract)

    def _checksums_of(self, state: TrainState) -> jax.stages.Compiled:
        if self._checksums is None:
            self._checksums = compile_checksums(state)
        return self._checksums

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts writing a checkpoint of `state.step`; returns once the arrays are copied off the devices.

        Each process copies and writes its own shards: nothing is gathered, and the devices hold no second copy. A save
        that is still under way is waited for; see `wait`.

        Args:
          progress: JSON-able, the same on every process; comes back from `restore`.

        Raises:
          SaveFailed: this one, or the one before, could not be written.
        """
        begin = time.monotonic()
        self.wait()
        started = time.monotonic()
        items = items_of(state)
        checksums = np.asarray(self._checksums_of(state)(items)).tolist()
        args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        args["progress"] = ocp.args.JsonSave(write_contents(items, checksums, progress))
        step = int(state.step)
        with save_errors(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**args))
        self._saving = _Saving(step, started, held=time.monotonic() - begin)

    def check(self) -> None:
        """Raises SaveFailed if the last save is known to have failed; never waits."""
        self._raise_errors()
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()

    def _raise_errors(self) -> None:
        if self._errors:
            with save_errors(self.directory):
                raise self._errors[0]

    def wait(self, timeout: float = math.inf) -> float:
        """Blocks until what is being written is complete, but no longer than so many seconds.

        Returns:
          Seconds since the save began, if it is not complete; else 0.

        Raises:
          SaveFailed: it could not be written.
        """
        if self._saving is None:
            return 0.0
        deadline = time.monotonic() + timeout
        while self._manager.is_saving_in_progress():
            self._raise_errors()  # Orbax waits for the others before it does.
            if (now := time.monotonic()) >= deadline:
                return now - self._saving.begin
            time.sleep(_POLL)
        saving, self._saving = self._saving, None
        with save_errors(self.directory):
            self._manager.wait_until_finished()
        logging.info(
            "checkpoint of step %d: held the loop for %.2f s, complete after %.1f s",
            saving.step,
            saving.held,
            self._written - saving.begin,
        )
        return 0.0

    def close(self) -> None:
        """Waits and releases the manager; raises SaveFailed as `wait`, once."""
        with save_errors(self.directory):
            self._manager.close()

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint as a state with `abstract`'s shardings, and the progress saved with it.

        One that is damaged is kept as STEP.damaged, and the one before it restored.

        Raises:
          InputError: the checkpoint is of another model: lists the parameters and both shapes. Or every checkpoint is
            damaged; then all are left as they are.
        """
        self.prepare(abstract)
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, progress = self._restore(step, abstract)
            except Damaged as error:
                logging.error("THE CHECKPOINT OF STEP %d IS DAMAGED: %s", step, error)
                damaged[step] = str(error)
                continue
            if damaged:
                self._set_aside(damaged, step)
            return state, progress
        raise InputError(
            f"{self.directory}: every checkpoint is damaged, so that there is nothing to go on from; put a copy of one "
            "there, or start again in another workdir:"
            + "".join(f"\n  step {step}: {error}" for step, error in damaged.items())
        )

    def restore_params(self, abstract, *, ema: bool = True, leaving: Collection[str] = ()):
        """Only the (EMA) parameters of the newest checkpoint, with the shapes, dtypes and shardings of `abstract`.

        Those that are converted to another dtype on the way are not held against their checksums. Where the run goes on
        meanwhile, and deletes what is being read, the newest that there is then is taken; `latest_step` is that.

        Args:
          leaving: names of whole networks among the parameters that are not wanted; there need not be any.

        Raises:
          InputError: there is no checkpoint, or it is of another model or damaged.
        """
        item = "ema_params" if ema else "params"
        with quiet_failure() as settle:
            for _ in range(_LOOKS):
                step = self.require_step()
                try:
                    return self._restore_item(step, item, abstract, leaving)
                except Damaged as error:
                    if not self.has_moved_on(step):
                        raise self._damage(step, error) from error
                settle()
        raise InputError(
            f"{self.directory}: the run replaced its newest checkpoint {_LOOKS} times while it was read; keep more of "
            "them (config.train.keep_checkpoints), or save less often (config.train.checkpoint_every)"
        )

    def _restore_item(self, step: int, item: str, abstract, leaving: Collection[str]):
        recorded = without(self.read_progress(step)[0][item], leaving)
        self._check_shapes(step, recorded, abstract)
        with any_error_is_damage(item):
            args = ocp.args.Composite(**{item: _restore_args(abstract, partial=bool(leaving))})
            params = beside(self._manager.restore, step, args=args)[item]
            check_structure(params, abstract)
        verify(item, recorded, params, np.asarray(jax.jit(tree_checksums)(params)).tolist())
        if not (self.directory / str(step)).is_dir():
            raise Damaged("it was deleted meanwhile")
        return params

    def has_moved_on(self, step: int) -> bool:
        """Looks at the folder again: whether a run that goes on has saved another checkpoint, or deleted that one."""
        if not self._read_only:
            return False
        self._manager.close()
        self._manager = self._open_manager()
        if moved := self.latest_step != step:
            logging.warning("the checkpoint of step %d was replaced while it was read; looking again", step)
        return moved

    def recorded_checksums(self, step: int, item: str) -> dict[str, int | None]:
        """'/'-joined path to `array_checksum` of each array of an item.

        Raises:
          InputError: the checkpoint is damaged.
        """
        try:
            return {path: array.checksum for path, array in self.read_progress(step)[0][item].items()}
        except Damaged as error:
            raise self._damage(step, error) from error

    def instead_of(self, step: int) -> str:
        """What whoever finds a checkpoint damaged can do about it, in words."""
        others = [str(other) for other in sorted(self._manager.all_steps()) if other != step]
        if not others:
            return "the run has no other checkpoint"
        return (
            f"the run also has that of step {', '.join(others)}: rename {self.directory / str(step)} to {step}.damaged "
            "to use the newest there is then"
        )

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        with self._damage_on_all(step):
            recorded, progress = self.read_progress(step)
        items = items_of(abstract)
        for name in ARRAYS:
            self._check_shapes(step, recorded[name], items[name])
        with self._damage_on_all(step), any_error_is_damage("its arrays"):
            args = {name: _restore_args(tree) for name, tree in items.items()}
            restored = beside(self._manager.restore, step, args=ocp.args.Composite(**args))
            restored = {name: restored[name] for name in ARRAYS}
            check_structure(restored, items)
        checksums = iter(np.asarray(self._checksums_of(abstract)(restored)).tolist())
        for name in sorted(restored):
            verify(name, recorded[name], restored[name], checksums)
        counter = jax.device_put(np.asarray(step, np.int32), abstract.step.sharding)
        return dataclasses.replace(abstract, step=counter, **restored), progress

    def read_progress(self, step: int) -> tuple[dict[str, Recorded], dict[str, Any]]:
        """What a checkpoint says about the arrays of each item, and the progress saved with it."""
        with any_error_is_damage("progress"):
            args = ocp.args.Composite(progress=ocp.args.JsonRestore())
            contents = beside(self._manager.restore, step, args=args)["progress"]
            if not {"crc32", "arrays"} & contents.keys():
                logging.warning("the checkpoint of step %d is from before checksums; damage may go unnoticed", step)
                metadata = self._manager.item_metadata(step)
                return {name: recorded_shapes(metadata[name]) for name in ARRAYS}, contents
            return read_contents(contents)

    @contextmanager
    def _damage_on_all(self, step: int):
        """Damage that all processes meet gives way to the checkpoint before; one that meets it alone stops them all.

        For Orbax lets the others wait for it, in a collective operation.
        """
        begin = time.monotonic()
        try:
            yield
        except Damaged as error:
            patience = self._damage_wait + time.monotonic() - begin
            if client() is not None and absent(patience, f"damage/{step}"):
                raise self._damage(step, error) from error
            raise

    def _damage(self, step: int, error: Damaged) -> InputError:
        return InputError(f"the checkpoint {self.directory / str(step)} is damaged: {error}; {self.instead_of(step)}")

    def _check_shapes(self, step: int, recorded: Recorded, abstract) -> None:
        """Raises InputError unless the stored item has exactly `abstract`'s paths and shapes."""
        rows = shape_differences(recorded, abstract)
        if not rows:
            return
        raise InputError(
            f"{self.directory / str(step)} holds another model than the config describes; resume with the config it "
            "was trained with (config.json in the workdir), or name another workdir:\n  " + "\n  ".join(rows)
        )

    def _set_aside(self, steps: Iterable[int], used: int) -> None:
        """Takes damaged checkpoints out of the run's sight."""
        with together("setting damaged checkpoints aside"):
            for step in steps if jax.process_index() == 0 else ():
                path = self.directory / str(step)
                target, number = path.with_name(f"{step}.damaged"), 1
                while target.exists():
                    number += 1
                    target = path.with_name(f"{step}.damaged{number}")
                path.rename(target)
                logging.error("GOING BACK TO STEP %d; what is left of step %d is kept as %s", used, step, target)
        self._manager.close()
        self._manager = self._open_manager()


def _restore_args(abstract, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """To restore an item, or part of one, with the shapes, dtypes and shardings of `abstract`."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=partial)


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Whether a run in this workdir, which need not exist, would go on from a checkpoint of its own."""
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        return False
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.latest_step
    checkpoints.close()
    return step is not None
