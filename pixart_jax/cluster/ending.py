"""How an error that one process meets, or its death, becomes the end of all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress

import jax

from pixart_jax.cluster.processes import (
    absent,
    announce,
    client,
    leave,
    meet,
    part,
    process_number,
    show_life,
    signs_of_life,
    this_process,
    wait_for_announcement,
)
from pixart_jax.errors import InputError, SaveFailed
from pixart_jax.interrupts import INTERRUPTED

_ERROR = "error"


@dataclasses.dataclass(frozen=True)
class Waits:
    """Seconds that the processes of a run wait for one another at its end.

    Attributes:
      grace: of a process that ends, for the others, so that all of them have heard why.
      linger: of the first one after that, see `leave`.
      failure: until all have met the same error.
      file: until a network file system shows a new file, see `check_shared`.
      damage: until all have found the same damage to a checkpoint, beside the time that the first one took to find it.
    """

    grace: float = 5
    linger: float = 1
    failure: float = 10
    file: float = 5
    damage: float = 10


class Ending:
    """The end of this process, for one reason. One object, for all its threads that may end it."""

    def __init__(self, waits: Waits = Waits()):
        self.waits = waits
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[..., None], *arguments: object, name: str) -> threading.Thread:
        """Runs in a thread what waits for the other processes, or asks about them; `part` sees to its end."""
        thread = threading.Thread(target=call, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def part(self, patience: float = 60) -> None:
        """Leaves the others, and waits for the threads of `start`; the rest of the process is its own affair.

        Left to itself JAX does it while the interpreter ends. A thread that comes back from JAX then is ended by
        Python, with an exception that C++ lets pass nowhere: the process aborts, with status 134.

        Args:
          patience: seconds for each of those threads, which nothing holds.
        """
        self.claim()  # What others fail of from here on, they fail of because the run is over.
        part()
        for thread in self._threads:
            thread.join(patience)

    def claim(self, timeout: float = -1) -> None:
        """From here on this thread ends the process; others that want to wait here for ever, or for so many seconds."""
        self._lock.acquire(timeout=timeout)

    def leave(self, code: int) -> None:
        """Ends the process; nothing is waited for. To be called after `claim`, or where no thread is left that may."""
        leave(code, self.waits.linger)

    def tell(self, code: int, message: str, error: BaseException | None = None) -> None:
        """Ends the process, and by `hear_of_the_others` all others.

        Args:
          error: shown with its stack.
        """
        self.claim()
        with suppress(RuntimeError):  # Where the coordinator is gone.
            announce(_ERROR, json.dumps([code, message]))
        with suppress(OSError):  # What one cannot print is no reason to stay.
            if error:
                traceback.print_exception(error)
            print(f"error: {message}", file=sys.stderr, flush=True)
        if gone := absent(self.waits.grace):
            who = "another process" if gone == [-1] else f"process {', '.join(map(str, gone))}"
            what = f"{who} gave no answer and may have died"
            cure = "start all processes again: the run goes on from its newest checkpoint"
            with suppress(OSError):
                print(f"error: {this_process()}: {what}; {cure}", file=sys.stderr, flush=True)
        self.leave(code)


@contextmanager
def hear_of_the_others(heartbeat_timeout: float, ending: Ending, *, signs: int = 20):
    """Inside, what ends another process by `end_with_the_others` ends this one too, with the same message.

    Without that it would notice once the other is gone, and not why. One that gives no sign of life for so many seconds
    counts as dead, and ends all as well: what waits for it would wait until JAX aborts.

    At the end waits for the others, and parts from them: all that is left to do is to end the process.

    Args:
      signs: of life that a process gives, and may miss, within the timeout. They are counted, and not seconds: who was
        suspended together is alive.
    """
    if client() is None:
        yield
        return
    over = threading.Event()
    ending.start(_listen, ending, name="errors of others")
    living = ending.start(_live, heartbeat_timeout, ending, signs, over, name="signs of life")
    try:
        yield
    finally:
        with end_with_the_others(ending=ending):
            meet("the end")
        over.set()
        living.join()
        ending.part()


def _listen(ending: Ending) -> None:
    if announced := wait_for_announcement(_ERROR):
        code, message = json.loads(announced)
        ending.tell(code, message)


def _live(timeout: float, ending: Ending, signs: int, over: threading.Event) -> None:
    """Shows that this process lives; the first process also looks whether the others do."""
    interval = timeout / signs
    watched: dict[int, tuple[str, int]] = {}
    for count in itertools.count():
        with suppress(RuntimeError):  # One call that fails is a sign that is missed, and not yet a death.
            show_life(f"{this_process()}: {count}")
            if process_number() == 0 and (silent := _silent(watched, signs)):
                ending.tell(1, f"{', '.join(silent)} gave no sign of life for {timeout:g} s")
        if over.wait(interval):
            return


def _silent(watched: dict[int, tuple[str, int]], signs: int) -> list[str]:
    """Those that have given no new sign of life in the last calls, of that number, in words.

    Args:
      watched: the last sign of each process, and how many calls ago it came; kept from call to call.
    """
    for number, sign in signs_of_life().items():
        last, missed = watched.get(number, ("", 0))
        watched[number] = (sign, missed + 1 if sign == last else 0)
    return [sign.rpartition(":")[0] for sign, missed in watched.values() if missed >= signs]


@contextmanager
def end_with_the_others(*shared: type[BaseException], ending: Ending | None = None):
    """An error inside, but for those that all processes meet at the same step, ends all processes at once.

    An orderly end would wait for them for ever: in a collective operation, or for a checkpoint that they have begun. A
    process that is alone lets errors pass.

    Args:
      shared: what all processes raise.
      ending: of the process; one of its own only where no other thread may end it.
    """
    try:
        yield
    except shared:
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        _give_up(error, ending or Ending())


def _give_up(error: BaseException, ending: Ending) -> None:
    shown: BaseException | None = None
    if isinstance(error, KeyboardInterrupt):
        code, reason = INTERRUPTED, "interrupted; the same command goes on from the last checkpoint, if there is one"
    elif isinstance(error, InputError | SaveFailed):
        code, reason = 2 if isinstance(error, InputError) else 1, str(error)
    else:
        code, reason, shown = 1, f"{type(error).__name__}: {str(error)[:500]}", error
    ending.tell(code, f"{this_process()} stops: {reason}", shown)
