"""Shared set-up: the tests directory is importable, so that test files can share helpers."""

import logging
import pathlib
import re
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture
def compilations():
    """Names of the programs that XLA compiles during a test."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            if match := re.match(r"Finished XLA compilation of (\S+)", record.getMessage()):
                names.append(match[1])

    handler = Handler()
    logger = logging.getLogger("jax._src")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield names
    logger.removeHandler(handler)
