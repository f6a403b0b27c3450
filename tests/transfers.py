"""`jax.transfer_guard` on simulated devices as on real ones.

The CPU's arrays are read without a copy, of which the guard does not know, so that a test would not notice a loop that
waits for its devices. What is passed to the devices it sees everywhere.
"""

import jax
from jax._src import array, config

_read = array.ArrayImpl._value


def _guarded_read(self: jax.Array):
    explicit = config.guard_lib.thread_local_state().explicit_device_get
    if config.transfer_guard_device_to_host.value == "disallow" and not explicit:
        raise RuntimeError("Disallowed device-to-host transfer")
    return _read.fget(self)


def guard_reads() -> None:
    """From here on reading an array where the guard is at "disallow" is an error, except by `jax.device_get`.

    But for numpy's functions on an array of a single device, which ask for its buffer.
    """
    array.ArrayImpl._value = property(_guarded_read)


def unguard_reads() -> None:
    array.ArrayImpl._value = _read
