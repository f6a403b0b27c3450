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
# Seconds until Ctrl-C is raised again.
_AGAIN = 0.02

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_asked = threading.Event()


@contextmanager
def hear_ctrl_c():
    """Inside, Ctrl-C is a KeyboardInterrupt in the main thread until something catches it, and `give_way` knows of it.

    Python raises it wherever the main thread is. In a destructor, or in what C++ calls, it would be printed and
    forgotten; and asyncio, where it finds Python's own handler, asks a task to stop, which that may not heed.

    Where Ctrl-C is ignored, as nohup and shells have it, or is another's already, nothing is changed.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    _asked.clear()
    hook = sys.unraisablehook
    timer: threading.Timer | None = None

    def raise_again(lost: sys.UnraisableHookArgs) -> None:
        nonlocal timer
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)
        elif timer is None or not timer.is_alive():
            # Not from here, where it would be lost as well; and as a signal, which wakes a thread that sleeps.
            main = threading.main_thread().ident
            timer = threading.Timer(_AGAIN, signal.pthread_kill, (main, signal.SIGINT))
            timer.daemon = True
            timer.start()

    signal.signal(signal.SIGINT, _raise)
    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if timer:
            timer.cancel()
            timer.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _raise(number: int, frame: types.FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt


def give_way() -> None:
    """Raises KeyboardInterrupt if Ctrl-C has come: the error at hand may come of that, whatever it says."""
    if _asked.is_set():
        raise KeyboardInterrupt


def beside(call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """What `call` returns or raises, in a thread of its own; Ctrl-C is raised here at once, and not inside of it.

    For reading, by libraries that cannot be broken off: what they began goes on until the process ends, which then
    waits for nothing.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="reading", daemon=True)
    # Registered last, so called first: before JAX and the libraries take from under the thread what it reads with.
    end = functools.partial(_end_without, thread)
    atexit.register(end)
    thread.start()
    future.exception()
    atexit.unregister(end)
    return future.result()


def _end_without(thread: threading.Thread) -> None:
    if not thread.is_alive():
        return
    for process in multiprocessing.active_children():
        process.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)
