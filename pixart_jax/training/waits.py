"""What takes long and shows nothing: said before it begins, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from absl import logging

from pixart_jax.training.metrics import format_duration


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Says what is done inside, and then how long it took."""
    logging.info("%s ...", what)
    begin = time.perf_counter()
    yield
    logging.info("%s: done in %s", what, format_duration(time.perf_counter() - begin))
