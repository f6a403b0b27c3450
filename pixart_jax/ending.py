"""How an error that one process meets becomes the end of all."""

from __future__ import annotations

import json
import sys
import threading
import traceback
from contextlib import contextmanager, suppress

import jax

from pixart_jax.checkpoints import SaveFailed
from pixart_jax.cluster import absent, announce, client, ending, leave, this_process, wait_for_announcement
from pixart_jax.errors import InputError

_ERROR = "error"
# Seconds that a process which ends waits for the others, so that all of them have heard why.
_GRACE = 5


def hear_of_errors() -> None:
    """From here on what ends another process by `end_with_the_others` ends this one too, with the same message.

    Without that it would notice once the other is gone, and not why.
    """
    if client() is not None:
        threading.Thread(target=_listen, name="errors of others", daemon=True).start()


def _listen() -> None:
    if announced := wait_for_announcement(_ERROR):
        code, message = json.loads(announced)
        _end(code, message)


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
