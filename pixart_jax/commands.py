"""How the tools are called here, in a checkout or where the package is installed, what they take, and how they end."""

from __future__ import annotations

import argparse
import errno
import functools
import gc
import hashlib
import importlib.util
import io
import logging
import os
import pathlib
import platform
import re
import select
import shlex
import sys
import types
from collections.abc import Callable
from typing import ParamSpec

from pixart_jax.errors import InputError
from pixart_jax.files import local_path, refuse_url
from pixart_jax.interrupts import INTERRUPTED, give_way, hear_ctrl_c

# The console scripts of pyproject.toml, by the tool that each starts.
_SCRIPTS = {
    "aot": "pixart-aot",
    "app": "pixart-app",
    "average": "pixart-average",
    "bench": "pixart-bench",
    "caption": "pixart-caption",
    "concepts": "pixart-concepts",
    "convert": "pixart-convert",
    "cost": "pixart-cost",
    "evaluate": "pixart-evaluate",
    "extract_features": "pixart-extract",
    "inspect_data": "pixart-inspect",
    "publish": "pixart-publish",
    "sample": "pixart-sample",
    "tune": "pixart-tune",
}

GOES_ON = "goes on where this one stopped"
NOTHING_BEGAN = "can be given again; this one had not begun"
BEGINS_AGAIN = "begins again; nothing half done is left"
# As shells have it, 128 and the number of SIGPIPE: what was to read the output, such as `head`, has ended.
NOBODY_READS = 141
# Of compiled programs, as much as is kept; those that were used least recently go first.
_KEPT_BYTES = 4 * 2**30
# What compiles sooner than this is not worth a file; JAX's own second would leave out most of a small model.
_KEPT_SECONDS = 0.1
# Where Linux says who gets huge pages, and glibc's setting that has malloc ask for them.
_HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ASK_FOR_THEM = "glibc.malloc.hugetlb"
# Set once that is done: where the linker clears glibc's settings, a process would start itself for ever.
_ASKED = "PIXART_JAX_HUGE_PAGES"
# How many objects more there are when garbage is looked for, among the youngest, the older, and all.
SELDOM = (50_000, 20, 10)
# A full disk, a quota that is used up, a file larger than is allowed.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Arguments = ParamSpec("Arguments")


def command(tool: str) -> str:
    """What starts tools/TOOL.py: `python -m tools.TOOL` in a checkout, else its console script if it has one."""
    if not (pathlib.Path(__file__).parent / "tools").is_dir():
        return f"python -m tools.{tool}"
    return _SCRIPTS.get(tool, f"python -m pixart_jax.tools.{tool}")


def training_command(workdir: pathlib.Path) -> str:
    """The command that this process was started with, if it trains; else how a run in that workdir is."""
    program = pathlib.Path(sys.argv[0])
    start = "python -m pixart_jax.main" if command("sample").startswith("python") else "pixart-train"
    if _trains(program):
        return f"{start} {shlex.join(sys.argv[1:])}"
    return f"{start} --config=CONFIG --workdir={shlex.quote(str(workdir))}"


def with_commands(text: str) -> str:
    """A tool's description, with the commands and configs that it names as they are called here."""
    text = re.sub(r"python -m tools\.(\w+)", lambda match: command(match[1]), text)
    return text if command("sample").startswith("python") else re.sub(r"\bconfigs/(\w+)\.py", r"\1", text)


def tool(again: str) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Decorates a tool's `main`, which returns the exit status: an InputError, Ctrl-C and a full disk end it in one
    line, and `| head` in none.

    Args:
      again: what the same command does when it is given again: `GOES_ON` or `BEGINS_AGAIN`.
    """

    def decorate(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @functools.wraps(main)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            collect_from_now_on()
            print_anything()
            keep_compiled_programs()
            try:
                with hear_ctrl_c():
                    status = _status_of(main, *args, **kwargs)
                sys.stdout.flush()
                return status
            except KeyboardInterrupt:
                return interrupted(again)
            except BrokenPipeError:
                if not _reader_is_gone():
                    raise
                return NOBODY_READS
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                where = f"{error.filename}: " if error.filename else ""
                print(f"error: {where}{error.strerror}; make room: the same command {again}", file=sys.stderr)
                return 2

        return run

    return decorate


def _status_of(main: Callable[Arguments, int], *args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
    """What a `main` returns, or 2 once it is printed what is wrong with its input."""
    try:
        return main(*args, **kwargs)
    except Exception as error:
        give_way()
        if not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _reader_is_gone() -> bool:
    """Whether what reads our standard output has ended, as `head` does; then nothing more is written there."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # It is no file.
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    # Else Python would try once more when it ends, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def interrupted(again: str) -> int:
    """Says what Ctrl-C has done; returns the exit status."""
    print(f"interrupted; the same command {again}", file=sys.stderr, flush=True)
    return INTERRUPTED


def print_anything() -> None:
    """From now on, characters that the terminal's encoding lacks are printed as escapes, and raise nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def keep_compiled_programs() -> None:
    """What XLA compiles from now on is kept in the user's cache directory, so that the same command starts sooner.

    Not where the user has settled it: JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    wanted = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() not in ("false", "0", "f", "no", "n", "off")
    if not wanted or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = home / "pixart_jax" / "compiled" / _processor()
        is_new = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Read-only, or no home at all: it compiles as ever.
        return
    settings: dict[str, str | int | float] = {"jax_compilation_cache_dir": str(folder)}
    if importlib.util.find_spec("filelock"):  # By which JAX keeps several processes from removing the same program.
        settings["jax_compilation_cache_max_size"] = _KEPT_BYTES
    if (shortest := "jax_persistent_cache_min_compile_time_secs").upper() not in os.environ:
        settings[shortest] = _KEPT_SECONDS
    # For the processes that this one starts, and for JAX where it is not imported yet.
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    if jax := sys.modules.get("jax"):
        for name, value in settings.items():
            jax.config.update(name, value)
    if is_new:
        print(
            f"compiled programs are kept in {folder}; with JAX_ENABLE_COMPILATION_CACHE=false they are not",
            file=sys.stderr,
        )


def _processor() -> str:
    """A name for what this processor can: a home is shared by machines, and a program of one may crash another."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def start_with_huge_pages() -> None:
    """Where a command is starting, it starts once more, in the same process, with the memory of arrays in pages of
    2 MB, not of 4 KB, if Linux has these for whoever asks.

    On a CPU, XLA takes the memory of each step's intermediate results anew, and gives it back. With small pages a
    third of a small model's step is spent on having them mapped (docs/benchmarks.md). numpy asks for huge ones; XLA
    does not. malloc does for all, but only if told before the process starts.

    Not where the user has settled it: GLIBC_TUNABLES=glibc.malloc.hugetlb=0 asks for none.
    """
    settings = os.environ.get("GLIBC_TUNABLES", "")
    if not _is_starting() or _ASKED in os.environ or _ASK_FOR_THEM in settings or not sys.executable:
        return
    try:
        if "[madvise]" not in _HUGE_PAGES.read_text(encoding="ascii"):  # All get them, or none do.
            return
        asking = {_ASKED: "asked for", "GLIBC_TUNABLES": ":".join(filter(None, (settings, f"{_ASK_FOR_THEM}=1")))}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | asking)
    except OSError:  # There is no such file, or no starting it again: with small pages it works as well.
        return


def _is_starting() -> bool:
    """Whether this process was started as a command, and is loading its modules; else something imports them."""
    program = pathlib.Path(sys.argv[0])
    # So `python -m` is called until it has found the module.
    return sys.argv[0] == "-m" or program.name in _SCRIPTS.values() or _trains(program)


def _trains(program: pathlib.Path) -> bool:
    """Whether that is what training is started by."""
    return program.name == "pixart-train" or program.parts[-2:] == ("pixart_jax", "main.py")


def load_without_collecting() -> None:
    """Where a command is starting, garbage is not collected until its `main` begins: a fifth of the time in which its
    modules load goes into looking for some, and there is none.

    Not where something else imports a tool, which might never call it.
    """
    if _is_starting():
        gc.disable()


def collect_from_now_on() -> None:
    """After `load_without_collecting`; what was loaded stays, and is not looked through again, and the rest seldom:
    tracing a program makes many objects and hardly any garbage."""
    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(*SELDOM)
        gc.enable()


def end_quietly_while_loading() -> None:
    """Lets Ctrl-C end a tool in one line also while its modules are imported, which takes seconds."""
    sys.excepthook = _quiet_hook


def _quiet_hook(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        interrupted(NOTHING_BEGAN)  # Python then ends with SIGINT's status.
    else:
        sys.__excepthook__(kind, error, traceback)


def text_argument(text: str) -> str:
    """The `type` of an argument that is text for people or models; bytes that are no UTF-8 are refused."""
    try:
        # Where the locale knows ASCII alone, UTF-8 comes as escapes of its bytes.
        return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{text!a:.80} holds bytes that are no UTF-8; set a UTF-8 locale") from error


def seed_argument(text: str) -> int:
    """The `type` of an argument that is a seed; see `rng.check_seed`."""
    from pixart_jax.rng import check_seed  # Here, as it imports JAX, and what only reads data needs none.

    try:
        return check_seed(int(text), "the seed")
    except ValueError as error:  # InputError is one.
        cause = error if isinstance(error, InputError) else f"the seed {text!r} is no whole number"
        raise argparse.ArgumentTypeError(str(cause)) from error


def path_argument(text: str) -> pathlib.Path:
    """The `type` of an argument that names a file or a folder; see `files.local_path`."""
    try:
        return local_path(text, "the path")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def name_argument(text: str) -> str:
    """The `type` of an argument that names a file or a folder, or else something by a word, such as the hub's ids."""
    try:
        if "://" in text:  # Not of classes:/folder.
            refuse_url(text, "the path")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def quieten_libraries() -> None:
    """Keeps off the terminal what TensorFlow, absl and Orbax say of themselves; our warnings and their errors stay, but
    for those that we get as well, and tell: of one full disk Orbax prints hundreds of lines, some as the process ends.
    """
    # TensorFlow, which some datasets are read with and which computes nothing here, says at its import how it would.
    for name, value in (("TF_CPP_MIN_LOG_LEVEL", "2"), ("TF_ENABLE_ONEDNN_OPTS", "0")):
        os.environ.setdefault(name, value)
    from absl import logging as absl_logging  # A benchmark runs where it is not installed.

    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_is_no_chatter)
    logging.getLogger("asyncio").addFilter(is_told_by_nobody_else)


def _is_no_chatter(record: logging.LogRecord) -> bool:
    """Orbax warns that a checkpoint opened for reading is opened for reading, and of files that it can do without; what
    it logs with a stack it raises as well."""
    if "orbax" not in pathlib.Path(record.pathname).parts:
        return True
    return record.levelno >= logging.ERROR and not record.exc_info


def is_told_by_nobody_else(record: logging.LogRecord) -> bool:
    """Whether what asyncio logs is not that of many tasks that fail together the error of one alone was asked for."""
    return "never retrieved" not in record.getMessage()
