"""Requests to stop, heard between two steps."""

from __future__ import annotations

import signal
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

# What asks a run to save and to end: schedulers ahead of a preemption or of a time limit (Slurm's --signal=USR1@300),
# and people.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def stop_requests():
    """Yields a function of the step just done: which of STOP_SIGNALS asks to stop after it, or None. They do not kill.

    But the second SIGINT is a KeyboardInterrupt: Ctrl-C twice ends a run at once. A signal that is ignored, as nohup
    and shells have it, stays ignored.

    With several processes the function is to be asked at every step, and gives SIGTERM on all of them after the same
    step, soon after one of them heard any of the signals.
    """
    several = jax.process_count() > 1
    received: list[signal.Signals] = []

    def receive(number, _) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        received.append(signal.Signals(number))
        if several:
            signal.raise_signal(signal.SIGTERM)

    # With several processes JAX's own handler of SIGTERM tells the others, in the background.
    ours = [number for number in STOP_SIGNALS if not (several and number == signal.SIGTERM)]
    heard = [number for number in ours if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, receive) for number in heard}
    try:
        if several:
            yield lambda step: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        else:
            yield lambda step: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(number: signal.Signals) -> int:
    """128 plus the signal's number, as a shell counts it: 143 for SIGTERM."""
    return 128 + number
