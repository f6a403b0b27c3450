"""Ctrl-C that is neither lost nor taken for something else."""

from __future__ import annotations

import atexit
import contextvars
import functools
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar

# As shells have it: 128 and the number of SIGINT.
INTERRUPTED = 130
# Seconds between two looks at what has become of Ctrl-C, and how many find nothing of it before it is raised again.
_LOOK, _LOOKS = 0.5, 2

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# No lock guards it: a signal handler that waits for one may wait for itself.
_asked = False


@contextmanager
def hear_ctrl_c():
    """Inside, Ctrl-C is a KeyboardInterrupt in the main thread that comes again until it comes through to here, and
    `give_way` knows of it.

    Python raises it wherever the main thread is. In a destructor, or in what C++ calls, it would be printed and
    forgotten; some functions of JAX catch everything and try another way; and asyncio, where it finds Python's own
    handler, asks a task to stop, which that may not heed.

    Where Ctrl-C is ignored, as nohup and shells have it, or is another's already, nothing is changed.
    """
    global _asked
    main = threading.main_thread()
    if threading.current_thread() is not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _asked, over, hook = False, threading.Event(), sys.unraisablehook
    watch = threading.Thread(target=_raise_until, args=(over, main.ident), name="Ctrl-C", daemon=True)
    watch.start()
    signal.signal(signal.SIGINT, _raise)
    sys.unraisablehook = lambda lost: None if issubclass(lost.exc_type, KeyboardInterrupt) else hook(lost)
    try:
        yield
    finally:
        # What is over needs no ending: from here on another Ctrl-C is passed over.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        over.set()
        watch.join()
        _asked, sys.unraisablehook = False, hook
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _raise(number: int, frame: types.FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt


def _raise_until(over: threading.Event, main: int) -> None:
    """Once Ctrl-C has come: sees to it that the main thread either deals with it or gets it again."""
    without = 0
    while not over.wait(_LOOK):
        without = 0 if not _asked or _is_dealt_with(main) else without + 1
        if without == _LOOKS:
            without = 0
            signal.pthread_kill(main, signal.SIGINT)


def _is_dealt_with(thread: int) -> bool:
    """Whether a thread is in an `except`, `finally` or `with` that a KeyboardInterrupt has led to."""
    found = sys._current_exceptions().get(thread)
    error: BaseException | None = found[1] if isinstance(found, tuple) else found  # As Python 3.11 and 3.12 have it.
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def give_way() -> None:
    """Raises KeyboardInterrupt if Ctrl-C has come: the error at hand may come of that, whatever it says."""
    if _asked:
        raise KeyboardInterrupt


def beside(call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """What `call` returns or raises, in a thread of its own; Ctrl-C is raised here at once, and not inside of it.

    For reading, by libraries that cannot be broken off: what they began goes on until the process ends, which then
    waits for nothing.
    """
    future: Future[Result] = Future()

    def run(future: Future[Result]) -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
            del future

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run, future), name="reading", daemon=True)
    # Registered last, so called first: before JAX and the libraries take from under the thread what it reads with.
    end = functools.partial(_end_without, thread)
    atexit.register(end)
    thread.start()
    future.exception()
    atexit.unregister(end)
    try:
        return future.result()
    finally:
        del future  # Here and above: an error's frames would hold it, and it the error and all that those hold.


def _end_without(thread: threading.Thread) -> None:
    if not thread.is_alive():
        return
    for process in multiprocessing.active_children():
        process.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)
