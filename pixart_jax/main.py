"""Command line: python -m pixart_jax.main --config=NAME --workdir=DIR [--config.key=value ...]

NAME is that of a file in configs/, or the path of another. The installed package has the command as pixart-train.

Where several processes train together, each runs the same command; see docs/several_hosts.md.
"""

from __future__ import annotations

import logging as python_logging
import sys

from pixart_jax.commands import (
    collect_from_now_on,
    end_quietly_while_loading,
    interrupted,
    keep_compiled_programs,
    load_without_collecting,
    print_anything,
    quieten_libraries,
    start_with_huge_pages,
)

start_with_huge_pages()
load_without_collecting()
end_quietly_while_loading()

from absl import app, flags, logging
from ml_collections import config_flags

from pixart_jax.cluster.ending import Ending, end_with_the_others, hear_of_the_others
from pixart_jax.cluster.processes import all_fail, join
from pixart_jax.config import find_config, flatten, read_config_file, unknown_key_error
from pixart_jax.errors import InputError
from pixart_jax.interrupts import give_way, hear_ctrl_c

_CONFIG = config_flags.DEFINE_config_file("config", None, "One of configs/ by name, or a file with a get_config().")
_WORKDIR = flags.DEFINE_string("workdir", "", "Where checkpoints, metrics and pictures go; resumed if it has any.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where Slurm, Cloud TPU, Open MPI or Kubernetes do not tell it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes train together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0 up.")
_JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds that processes wait for one another at first.", 1)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 100, "Seconds of silence after which a process counts as dead, and the others end.", 1
)


def main(argv: list[str], ending: Ending) -> None:
    if len(argv) > 1:
        raise InputError(f"what is {argv[1]!r}? Settings are changed by --config.key=value")
    workdir = _WORKDIR.value
    assert workdir is not None  # See `parse_flags`.
    log_the_run()
    process = join(
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        join_timeout=_JOIN_TIMEOUT.value,
        heartbeat_timeout=_HEARTBEAT_TIMEOUT.value,
    )
    if process > 0:
        logging.set_verbosity(logging.WARNING)  # The first one speaks for all.
    logging.info("the run in %s: reading its config, data and weights", workdir)
    # Here and not above: bad flags should fail before all that training needs has loaded.
    from pixart_jax.errors import SaveFailed, TrainingDiverged
    from pixart_jax.training.loop import train_and_evaluate

    collect_from_now_on()
    with hear_of_the_others(_HEARTBEAT_TIMEOUT.value, ending):
        try:
            with end_with_the_others(InputError, TrainingDiverged, SystemExit, ending=ending):
                train_and_evaluate(_CONFIG.value, workdir, ending)
        except (InputError, TrainingDiverged, SaveFailed) as error:
            give_way()
            code = _print_error(error)
            if not all_fail(ending.waits.failure):
                ending.leave(code)  # An orderly end would wait for the others, and they for this process.
            sys.exit(code)


def log_the_run() -> None:
    """Shows what a run says of itself; what JAX and Orbax say on the way is not about the run."""
    quieten_libraries()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(lambda record: record.levelno > 20 or "pixart_jax" in record.pathname)
    handler.setFormatter(Lines())


class Lines(python_logging.Formatter):
    """ "11-26 20:05:33 step 10/30 ...": what is no ordinary report says so."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%m-%d %H:%M:%S")

    def formatMessage(self, record: python_logging.LogRecord) -> str:
        record.message = ("" if record.levelno <= python_logging.INFO else f"{record.levelname}: ") + record.message
        return super().formatMessage(record)


def parse_flags(argv: list[str]) -> list[str]:
    """Flags parsed by absl, after a check of our own that says which config key was meant."""
    if any(arg.lstrip("-").startswith("help") for arg in argv[1:]):
        return flags.FLAGS(argv)  # absl prints the help and exits.
    argv = _joined(argv, "config")
    settings = [arg.lstrip("-") for arg in argv[1:] if arg.startswith(("--config.", "-config."))]
    files = [arg.split("=", 1)[1] for arg in argv[1:] if arg.lstrip("-").startswith("config=")]
    if not files:
        raise InputError("--config is missing: name one, e.g. --config=quickstart, or a file")
    path = str(find_config(files[-1]))
    config = read_config_file(path)
    known = flatten(config)
    for setting in settings:
        key = setting.split("=", 1)[0].removeprefix("config.")
        if key not in known:
            raise unknown_key_error(key)
    if not any(arg.lstrip("-").startswith("workdir") for arg in argv[1:]):
        raise InputError("--workdir is missing: name a directory for checkpoints, metrics and pictures")
    others = [arg for arg in argv if not arg.lstrip("-").startswith("config=")]
    try:
        return flags.FLAGS([others[0], f"--config={path}", *others[1:]])
    except flags.Error as error:
        raise InputError(error) from error


def _joined(argv: list[str], option: str) -> list[str]:
    """Arguments with "--option=VALUE" in place of "--option VALUE", which absl takes as well."""
    joined: list[str] = []
    for arg in argv:
        if joined and joined[-1] in (f"--{option}", f"-{option}"):
            joined[-1] = f"{joined[-1]}={arg}"
        else:
            joined.append(arg)
    return joined


def run(ending: Ending | None = None) -> None:
    """Entry point: an InputError becomes one line and exit status 2, Ctrl-C one and 130.

    Args:
      ending: with other waits than the usual ones.
    """
    print_anything()
    keep_compiled_programs()
    ending = ending or Ending()
    try:
        with hear_ctrl_c():
            app.run(lambda argv: main(argv, ending), flags_parser=parse_flags)
    except InputError as error:
        sys.exit(_print_error(error))
    except KeyboardInterrupt:  # Before training, or the second one: the first is a request to save and to stop.
        sys.exit(interrupted("goes on from the last checkpoint, or begins again where there is none"))


def _print_error(error: Exception) -> int:
    """Returns the exit status."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    run()
