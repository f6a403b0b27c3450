"""How an error that one process meets, or its death, becomes the end of all."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress

import jax

from pixart_jax.cluster.processes import (
    absent,
    announce,
    client,
    ending,
    leave,
    process_number,
    show_life,
    signs_of_life,
    this_process,
    wait_for_announcement,
)
from pixart_jax.errors import InputError, SaveFailed

_ERROR = "error"
# Seconds that a process which ends waits for the others, so that all of them have heard why.
_GRACE = 5
# Signs of life that a process may miss. They are counted, and not seconds: who was suspended together is alive.
_MISSED = 20


def hear_of_the_others(heartbeat_timeout: float) -> None:
    """From here on what ends another process by `end_with_the_others` ends this one too, with the same message.

    Without that it would notice once the other is gone, and not why. One that gives no sign of life for so many seconds
    counts as dead, and ends all as well: what waits for it would wait until JAX aborts.
    """
    if client() is not None:
        threading.Thread(target=_listen, name="errors of others", daemon=True).start()
        threading.Thread(target=_live, args=[heartbeat_timeout], name="signs of life", daemon=True).start()


def _listen() -> None:
    if announced := wait_for_announcement(_ERROR):
        code, message = json.loads(announced)
        _end(code, message)


def _live(timeout: float) -> None:
    """Shows that this process lives; the first process also looks whether the others do."""
    interval, watched = timeout / _MISSED, {}
    for count in itertools.count():
        if client() is None:  # The run is over.
            return
        with suppress(RuntimeError):  # One call that fails is a sign that is missed, and not yet a death.
            show_life(f"{this_process()}: {count}")
            if process_number() == 0 and (silent := _silent(watched)):
                _end(1, f"{', '.join(silent)} gave no sign of life for {timeout:g} s")
        time.sleep(interval)


def _silent(watched: dict[int, tuple[str, int]]) -> list[str]:
    """Those that have given no new sign of life in the last _MISSED calls, in words.

    Args:
      watched: the last sign of each process, and how many calls ago it came; kept from call to call.
    """
    for number, sign in signs_of_life().items():
        last, missed = watched.get(number, ("", 0))
        watched[number] = (sign, missed + 1 if sign == last else 0)
    return [sign.rpartition(":")[0] for sign, missed in watched.values() if missed >= _MISSED]


@contextmanager
def end_with_the_others(*shared: type[BaseException]):
    """An error inside, but for those that all processes meet at the same step, ends all processes at once.

    An orderly end would wait for them for ever: in a collective operation, or for a checkpoint that they have begun. A
    process that is alone lets errors pass.

    Args:
      shared: what all processes raise.
    """
    try:
        yield
    except shared:
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        _give_up(error)


def _give_up(error: BaseException) -> None:
    expected = isinstance(error, InputError | SaveFailed)
    reason = str(error) if expected else f"{type(error).__name__}: {str(error)[:500]}"
    _end(2 if isinstance(error, InputError) else 1, f"{this_process()} stops: {reason}", None if expected else error)


def _end(code: int, message: str, error: BaseException | None = None) -> None:
    """Ends this process.

    Args:
      error: shown with its stack.
    """
    ending.acquire()
    with suppress(RuntimeError):  # Where the coordinator is gone.
        announce(_ERROR, json.dumps([code, message]))
    with suppress(OSError):  # What one cannot print is no reason to stay.
        if error:
            traceback.print_exception(error)
        print(f"error: {message}", file=sys.stderr, flush=True)
    if gone := absent(_GRACE):
        who = "another process" if gone == [-1] else f"process {', '.join(map(str, gone))}"
        what = f"{who} gave no answer and may have died"
        cure = "start all processes again: the run goes on from its newest checkpoint"
        with suppress(OSError):
            print(f"error: {this_process()}: {what}; {cure}", file=sys.stderr, flush=True)
    leave(code)
