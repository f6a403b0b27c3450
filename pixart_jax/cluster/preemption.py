"""Requests to stop, heard between two steps."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

import jax

from pixart_jax.cluster.agreement import gather
from pixart_jax.cluster.ending import Ending, end_with_the_others
from pixart_jax.cluster.processes import announce, wait_for_announcement

# What asks a run to save and to end: schedulers ahead of a preemption or of a time limit (Slurm's --signal=USR1@300),
# and people.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_STOP = "stop"


@contextmanager
def stop_requests(ending: Ending | None = None):
    """Yields a function to be asked after every step: which of STOP_SIGNALS asks to stop now, or None.

    They do not kill, but the second SIGINT is a KeyboardInterrupt: Ctrl-C twice ends a run at once. A signal that is
    ignored, as nohup and shells have it, stays ignored.

    With several processes it gives the same signal on all of them after the same step, soon after one has heard it.

    Args:
      ending: of the process, for a thread that listens; see `end_with_the_others`.
    """
    received: list[signal.Signals] = []

    def receive(number, _) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, previous[number])
        received.append(signal.Signals(number))

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.getsignal(number) for number in heard}
    try:
        for number in previous:
            signal.signal(number, receive)
        if jax.process_count() > 1:
            yield _StopTogether(received, ending)
        else:
            yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _StopTogether:
    """Finds the step after which all processes stop, once one of them has been asked to.

    None may begin a step that another does not make, and they are a few steps apart. So each says how many it has
    begun and begins no more until all have said so; all stop after one more than the highest.
    """

    # Not `jax.experimental.multihost_utils.reached_preemption_sync_point`: what it compares with the highest number is
    # the step's own, so that a resumed run that is asked before its first step never stops; and Orbax calls it too, at
    # times with a step long past.

    def __init__(self, received: list[signal.Signals], ending: Ending | None):
        self._received, self._announced = received, False
        self._ending = ending or Ending()
        self._signal: signal.Signals | None = None
        self._count, self._last = 0, -1
        self._between_steps = threading.Lock()
        self._ending.start(self._listen, name="requests to stop")

    def __call__(self) -> signal.Signals | None:
        with self._between_steps:
            self._count += 1
            if self._received and not self._announced:
                self._announced = True
                announce(_STOP, self._received[0].name)
            return self._signal if self._count == self._last else None

    def _listen(self) -> None:
        name = wait_for_announcement(_STOP)
        if name is None:
            return
        with self._between_steps, end_with_the_others(ending=self._ending):
            self._signal = signal.Signals[name]
            self._last = max(int(count) for count in gather(_STOP, str(self._count))) + 1


def exit_code(number: signal.Signals) -> int:
    """128 plus the signal's number, as a shell counts it: 143 for SIGTERM."""
    return 128 + number
