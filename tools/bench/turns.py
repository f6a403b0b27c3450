"""Contenders that take turns, so that whatever else the machine is doing falls on all of them.

PyTorch's contenders have processes of their own: two frameworks in one would share threads and a device's memory pool.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
# (name of a method of the contender in the other process, its arguments) -> what it returns.
Call = Callable[..., Any]
# A turn's figures: "seconds" of one call, and whatever else a contender has to say.
Figures = dict[str, Any]
# How long a process is waited for that has been told to end.
GRACE_SECONDS = 60


class Failed(RuntimeError):
    """A contender in another process cannot go on; says why."""


def take_turns(turns: Mapping[str, Callable[[], T]], rounds: int) -> tuple[dict[str, list[T]], dict[str, str]]:
    """Gives every contender its turn, as often as there are rounds.

    Returns:
      What each of them returned, round by round; and of those that failed, which are in the first no longer, why.
    """
    results: dict[str, list[T]] = {name: [] for name in turns}
    failures: dict[str, str] = {}
    for _ in range(rounds):
        for name, turn in turns.items():
            if name in failures:
                continue
            try:
                results[name].append(turn())
            except Failed as error:
                failures[name] = str(error)
                del results[name]
    return results, failures


@contextlib.contextmanager
def in_process(factory: Callable[..., Any], *arguments) -> Iterator[Call]:
    """A contender in a process of its own, which is there for calls of its methods, one at a time.

    Args:
      factory: a class or function that can be pickled, called there with the arguments. What it makes is closed at the
        end where it has a method `close`.

    Raises:
      Failed: from every call, when the contender could not be made, raised an exception or died.
    """
    # Not forked: the caller has JAX's threads, and PyTorch forks its workers.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, factory, arguments))
    process.start()
    theirs.close()

    def receive() -> Any:
        try:
            answer = ours.recv()
        except (EOFError, OSError):
            process.join(GRACE_SECONDS)
            answer = Failed(f"its process ended with exit code {process.exitcode}")
        return answer

    # Until it is made: nothing is to be timed beside that.
    failure = receive()

    def call(method: str, *arguments) -> Any:
        nonlocal failure
        if failure is None:
            with contextlib.suppress(OSError):  # It has died, which the answer says.
                ours.send((method, arguments))
            answer = receive()
            failure = answer if isinstance(answer, Failed) else None
        if failure is not None:
            raise failure
        return answer

    try:
        yield call
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join(GRACE_SECONDS)
        process.terminate()
        process.join()
        ours.close()


def _serve(calls: Connection, factory: Callable[..., Any], arguments: Sequence[Any]) -> None:
    def attempt(action: Callable[..., Any], *arguments) -> Any:
        try:
            return action(*arguments)
        except Exception as error:
            traceback.print_exc()
            return Failed(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}")

    contender = attempt(factory, *arguments)
    failed = isinstance(contender, Failed)
    calls.send(contender if failed else None)
    with contextlib.suppress(EOFError):  # Whoever asks has died.
        while not failed and (message := calls.recv()):
            method, arguments = message
            calls.send(attempt(getattr(contender, method), *arguments))
    getattr(contender, "close", lambda: None)()


def time_calls(call: Callable[[], T], calls: int, wait: Callable[[T], Any]) -> float:
    """Seconds that one call takes, of so many that are waited for together, as a loop over them would."""
    begin = time.perf_counter()
    for _ in range(calls):
        result = call()
    wait(result)
    return (time.perf_counter() - begin) / calls


def time_warm(call: Callable[[], T], calls: int, wait: Callable[[T], Any], warm_up: int = 1) -> Figures:
    """A turn: `time_calls` after so many calls that do not count, each waited for."""
    for _ in range(warm_up):
        wait(call())
    return {"seconds": time_calls(call, calls, wait)}


def summary(rounds: Sequence[Figures]) -> Figures:
    """Median and extremes of the rounds' seconds, and the last round's other figures."""
    seconds = [figures["seconds"] for figures in rounds]
    spread = {"seconds": statistics.median(seconds), "seconds_min": min(seconds), "seconds_max": max(seconds)}
    return {**rounds[-1], **spread, "rounds": len(rounds)}


def compare(ours: Callable[[], Figures], peers: Mapping[str, Callable[[], Figures]], rounds: int) -> Figures:
    """Figures of ours beside those of its peers, all measured in turns.

    Returns:
      `summary` of ours, with "peer": the `summary` of each, by name, or None; "ratio": how many times as fast as the
      fastest of them ours is, the median of the rounds' quotients, or None; and "peer_failed" where some did.

    Raises:
      Failed: never; what fails is a peer, and is left out.
    """
    results, failures = take_turns({"": ours, **peers}, rounds)
    mine = results.pop("")
    figures = summary(mine) | {"peer": {name: summary(rows) for name, rows in results.items()} or None, "ratio": None}
    if results:
        fastest = min(results, key=lambda name: figures["peer"][name]["seconds"])
        pairs = zip(results[fastest], mine, strict=True)
        figures |= {"fastest_peer": fastest, "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)}
    return figures | ({"peer_failed": failures} if failures else {})
