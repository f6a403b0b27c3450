"""Ctrl-C where Python loses it, where asyncio takes it, and while libraries read."""

import asyncio
import gc
import signal
import threading
import time
import weakref
from contextlib import contextmanager, suppress

import pytest
from interrupted import interrupt

from pixart_jax.checkpoints.contents import Damaged, any_error_is_damage
from pixart_jax.commands import GOES_ON, tool
from pixart_jax.errors import InputError
from pixart_jax.interrupts import INTERRUPTED, beside, give_way, hear_ctrl_c


@pytest.fixture(autouse=True)
def listening():
    """Where the tests run in the background, a shell has made them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Destroyed:
    def __del__(self):
        ctrl_c()


def wait():
    time.sleep(60)
    raise AssertionError("Ctrl-C was lost")


def lose_two():
    """What is raised in a destructor is lost, and perhaps again."""
    Destroyed()
    Destroyed()
    wait()


def try_another_way():
    """As jax.nn.dot_product_attention."""
    with suppress(BaseException):
        ctrl_c()
    wait()


async def deaf():
    """Ends as if nothing were, though it was asked to stop."""
    ctrl_c()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0.01)
    return "done"


@pytest.mark.parametrize("lose", [lose_two, try_another_way, lambda: asyncio.run(deaf())])
def test_ctrl_c_is_not_lost(lose, capsys):
    with pytest.raises(KeyboardInterrupt), hear_ctrl_c():
        lose()
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_does_not_break_off_what_ends_because_of_it():
    ended = []

    @contextmanager
    def folder():
        try:
            yield
        finally:
            time.sleep(1.3)
            ended.append("folder")

    with pytest.raises(KeyboardInterrupt), hear_ctrl_c():
        try:
            with folder():
                ctrl_c()
        except BaseException as error:
            time.sleep(1.3)
            ended.append("except")
            try:
                raise ValueError("another") from error
            except ValueError:
                time.sleep(1.3)
                ended.append("another")
            raise
    assert ended == ["folder", "except", "another"]


def test_an_error_that_comes_of_ctrl_c_is_not_about_the_input(capsys):
    @tool(GOES_ON)
    def main(error):
        try:
            ctrl_c()
        except KeyboardInterrupt:  # As a library may.
            raise error from None

    for error in (InputError("x is damaged"), ValueError("cancelled")):
        assert main(error) == INTERRUPTED
        assert capsys.readouterr().err == f"interrupted; the same command {GOES_ON}\n"

    @tool(GOES_ON)
    def damaged():
        with any_error_is_damage("its arrays"):
            raise ValueError("cancelled")

    with pytest.raises(Damaged):  # The next one in this process is not taken for interrupted.
        damaged()

    @tool(GOES_ON)
    def not_damaged():
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
        with any_error_is_damage("its arrays"):
            raise ValueError("cancelled")

    assert not_damaged() == INTERRUPTED


def test_when_a_tool_has_ended_ctrl_c_is_forgotten():
    """Notebooks call tools, and other things after them."""

    @tool(GOES_ON)
    def main():
        ctrl_c()

    assert main() == INTERRUPTED
    give_way()
    with pytest.raises(Damaged), any_error_is_damage("its arrays"):
        raise ValueError("bad bytes")


def test_a_tool_inside_of_another_leaves_it_interrupted():
    @tool(GOES_ON)
    def inner():
        ctrl_c()

    @tool(GOES_ON)
    def outer():
        status = inner()
        with pytest.raises(KeyboardInterrupt):
            give_way()
        return status

    assert outer() == INTERRUPTED


def test_one_who_ignores_ctrl_c_is_left_to_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hear_ctrl_c():
            ctrl_c()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_beside_keeps_nothing_of_an_error():
    """Garbage is looked for seldom, and what was being read may be large."""

    class Large:
        pass

    def fail(large):
        raise ValueError("no")

    def kept():
        large = Large()
        with suppress(ValueError):
            beside(fail, large)
        return weakref.ref(large)

    gc.disable()
    try:
        assert kept()() is None
    finally:
        gc.enable()


def test_beside_gives_what_the_call_does():
    assert beside(lambda a, b: (a, b, threading.current_thread().name), 1, b=2) == (1, 2, "reading")
    for error in (KeyError("x"), TimeoutError("y")):
        with pytest.raises(type(error), match=error.args[0]):
            beside(lambda error=error: (_ for _ in ()).throw(error))


READING = """
import atexit, sys, time
from pixart_jax.commands import GOES_ON, tool
from pixart_jax.interrupts import beside

def read():
    print("waiting", flush=True)
    time.sleep(60)

@tool(GOES_ON)
def main():
    beside(time.sleep, 0)
    atexit.register(time.sleep, 60)  # As libraries that would wait for the reading.
    beside(read)

sys.exit(main())
"""


def test_ctrl_c_waits_for_no_reading():
    assert interrupt(READING) == (INTERRUPTED, "", f"interrupted; the same command {GOES_ON}\n")
