"""Command line: python -m pixart_jax.main --config=configs/NAME.py --workdir=DIR [--config.key=value ...]"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # TensorFlow only writes the TensorBoard files.

from absl import app, flags, logging
from ml_collections import config_flags

from pixart_jax.config import flatten, read_config_file, unknown_key_error
from pixart_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with a get_config(), e.g. configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go; resumed if it has any.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"what is {argv[1]!r}? Settings are changed by --config.key=value")
    log_the_run()
    # Here and not above: bad flags should fail before JAX and TensorFlow have loaded.
    from pixart_jax.checkpoints import SaveFailed
    from pixart_jax.metrics import TrainingDiverged
    from pixart_jax.train import train_and_evaluate

    try:
        train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except (TrainingDiverged, SaveFailed) as error:
        sys.exit(f"error: {error}")


def log_the_run() -> None:
    """Shows what a run says of itself; what JAX and Orbax say on the way is not about the run."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno > 20 or "pixart_jax" in record.pathname or "clu" in record.pathname
    )


def parse_flags(argv: list[str]) -> list[str]:
    """Flags parsed by absl, after a check of our own that says which config key was meant."""
    if any(arg.lstrip("-").startswith("help") for arg in argv[1:]):
        return flags.FLAGS(argv)  # absl prints the help and exits.
    settings = [arg.lstrip("-") for arg in argv[1:] if arg.startswith(("--config.", "-config."))]
    files = [arg.split("=", 1)[1] for arg in argv[1:] if arg.lstrip("-").startswith("config=")]
    if not files:
        raise InputError("--config is missing: name a file, e.g. --config=configs/quickstart.py")
    config = read_config_file(files[-1])
    known = flatten(config)
    for setting in settings:
        key = setting.split("=", 1)[0].removeprefix("config.")
        if key not in known:
            raise unknown_key_error(key, config)
    if not any(arg.lstrip("-").startswith("workdir") for arg in argv[1:]):
        raise InputError("--workdir is missing: name a directory for checkpoints, metrics and pictures")
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise InputError(error) from error


def run() -> None:
    """Entry point: an InputError becomes one line and exit status 2."""
    try:
        app.run(main, flags_parser=parse_flags)
    except InputError as error:
        sys.exit(_print_error(error))


def _print_error(error: InputError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run()
