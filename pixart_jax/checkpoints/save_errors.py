"""What goes wrong when a checkpoint is written: found early, and told with its cause and its cure."""

from __future__ import annotations

import gc
import logging
import pathlib
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any

import jax

from pixart_jax.checkpoints import lazy_orbax as ocp
from pixart_jax.commands import is_told_by_nobody_else
from pixart_jax.errors import SaveFailed
from pixart_jax.files import reason

# Seconds for reads that are under way when another has failed.
_SETTLE = 0.1


@contextmanager
def save_errors(directory: pathlib.Path):
    """Turns what says that a checkpoint cannot be written to a run's directory of them into SaveFailed."""
    try:
        yield
    except (ValueError, OSError) as error:
        if _is_of_devices(error):
            raise
        # Orbax's own list lacks those that it would have deleted next.
        kept = max((int(path.name) for path in directory.glob("*") if path.name.isdigit()), default=None)
        last = "there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is untouched"
        raise SaveFailed(
            f"a checkpoint cannot be written to {directory}: {reason(error)}; {last}. Make room or mend the "
            "disk, then give the same command again"
        ) from error


def _is_of_devices(error: Exception) -> bool:
    """Whether devices or the network between them fail, in an operation with which Orbax waits for the other processes.

    JAX raises a ValueError then. TensorStore's errors with such codes name the operating system's.
    """
    return str(error).startswith(("UNKNOWN: ", "INTERNAL: ")) and "os_error_code" not in str(error)


def noting_errors(handler: ocp.PyTreeCheckpointHandler, errors: list[BaseException]) -> ocp.PyTreeCheckpointHandler:
    """The handler, whose saves add to `errors` what they fail of in the background.

    Orbax itself raises it once all processes have written their parts, for which it waits ten minutes.
    """
    save = handler.async_save

    async def async_save(*args, **kwargs):
        return [_Noting(future, errors) for future in await save(*args, **kwargs) or ()]

    # Not a subclass: Orbax knows handlers by their exact type.
    handler.async_save = async_save
    return handler


def noting_barrier(
    errors: list[BaseException], processes: ocp.options.MultiprocessingOptions
) -> ocp.multihost.BarrierSyncFn:
    """The barrier at which Orbax's processes wait for one another; adds to `errors` what has brought one there.

    Where a save fails for another reason than its arrays (a folder that cannot be made or renamed), Orbax waits in a
    `finally` for the others, twenty minutes, before it raises.
    """
    barrier = ocp.multihost.get_barrier_sync_fn(processes=processes.active_processes)

    def wait(*, key: str, timeout_ms: int) -> None:
        error = sys.exc_info()[1]
        if error is not None and threading.current_thread() is not threading.main_thread():
            errors.append(error)
        barrier(key=key, timeout_ms=timeout_ms)

    return wait


class _Noting:
    """A future of Orbax's; adds to `errors` what it raises."""

    def __init__(self, future: ocp.future.Future, errors: list[BaseException]):
        self._future, self._errors = future, errors

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout=timeout)
        except BaseException as error:
            self._errors.append(error)
            raise

    def cancel(self) -> None:
        self._future.cancel()


def alone() -> ocp.options.MultiprocessingOptions:
    """For what each process of a run reads by itself, without waiting for the others, which may have failed to."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


@contextmanager
def quiet_failure():
    """Where one array cannot be read, those that are read beside it fail as well: see `told_once`.

    Yields what to call after a failure: it waits for the others.
    """

    def settle() -> None:
        time.sleep(_SETTLE)
        gc.collect()  # Now, and not when nothing listens any more.

    with told_once():
        yield settle


@contextmanager
def told_once():
    """Inside, what fails in Orbax is told by whoever asked for it, and by none of the tasks on the way; of the log see
    `commands.quieten_libraries`.
    """
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook

    def pass_on(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logger.addFilter(is_told_by_nobody_else)
    sys.unraisablehook = pass_on
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(is_told_by_nobody_else)
