"""Requests to stop, heard between two steps."""

from __future__ import annotations

import signal
from contextlib import contextmanager

# What asks a run to save and to end: schedulers ahead of a preemption or of a time limit (Slurm's --signal=USR1@300),
# and people. One process hears them; several would have to agree on the step (Orbax's `reached_preemption`).
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def stop_requests():
    """Yields a function that gives the first of STOP_SIGNALS that has come, or None; meanwhile they do not kill.

    But the second SIGINT is a KeyboardInterrupt: Ctrl-C twice ends a run at once. A signal that is ignored, as nohup
    and shells have it, stays ignored.
    """
    received: list[signal.Signals] = []

    def receive(number, _) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        received.append(signal.Signals(number))

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, receive) for number in heard}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(number: signal.Signals) -> int:
    """128 plus the signal's number, as a shell counts it: 143 for SIGTERM."""
    return 128 + number
