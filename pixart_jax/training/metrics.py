"""What a run measures between two log steps, fetched from the devices without stalling them."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from contextlib import contextmanager

import jax
import numpy as np

from pixart_jax.devices.hardware import Hardware
from pixart_jax.errors import TrainingDiverged


class MetricsWindow:
    """Scalars of the steps since the last log step.

    `add` keeps device arrays; `fetch` brings them over and checks them. What is fetched but not yet logged is
    `pending`, which a checkpoint must carry so that a resumed run logs the same means.
    """

    # Steps that may be in flight before the host waits: enough to hide dispatch, few enough that batches do not pile
    # up.
    IN_FLIGHT = 3

    def __init__(self, pending: list[dict[str, float]] | None = None):
        self.pending = list(pending or [])
        self._on_device: list[tuple[int, dict[str, jax.Array]]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._on_device.append((step, metrics))
        if len(self._on_device) > self.IN_FLIGHT:
            jax.block_until_ready(self._on_device[-1 - self.IN_FLIGHT])

    def fetch(self) -> None:
        """Raises TrainingDiverged at the first step whose loss or gradient is not finite."""
        steps = [step for step, _ in self._on_device]
        fetched = jax.device_get([metrics for _, metrics in self._on_device])
        self._on_device = []
        for step, metrics in zip(steps, fetched, strict=True):
            # The loss is of the parameters before the step, the gradient is what they become.
            for name in ("loss", "grad_norm"):
                if not np.isfinite(metrics[name]):
                    raise TrainingDiverged(f"the {name} is {metrics[name]} at step {step}")
            self.pending.append({name: float(value) for name, value in metrics.items()})

    def means(self) -> dict[str, float]:
        """Means over the window, which starts anew; of the learning rate, the last value. What only some steps have, as
        where one of a run's parts ends, is the mean over these."""
        rows, self.pending = self.pending, []
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
        if "learning_rate" in means:
            means["learning_rate"] = rows[-1]["learning_rate"]
        return means


class Stopwatch:
    """Rate of the training proper: what happens inside `paused()` does not count."""

    def __init__(self, step: int):
        self._step, self._start = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        """Steps per second since the last call, pauses taken out."""
        now = time.perf_counter()
        rate = (step - self._step) / (now - self._start)
        self._step, self._start = step, now
        return rate

    @contextmanager
    def paused(self):
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a number of steps per second comes to.

    Attributes:
      batch_size: pictures of a step.
      flops: of a step over all devices; None where nobody counted them.
      hardware: a device's; None where its peak is not known.
    """

    batch_size: int
    flops: float | None
    hardware: Hardware | None

    def of(self, steps_per_second: float) -> dict[str, float]:
        """`images_per_second`, and `mfu` where it is known."""
        rates = {"images_per_second": steps_per_second * self.batch_size}
        if self.flops and self.hardware:
            rates["mfu"] = self.hardware.utilisation(self.flops * steps_per_second, jax.device_count())
        return rates


def progress_line(step: int, last: int, scalars: Mapping[str, float], seconds_left: float) -> str:
    """ "step 8010/8060  loss 0.0362  lr 5.2e-8  227 img/s  7s left": the chief ones of a log step's scalars."""
    parts = [f"step {step}/{last}"]
    if "loss" in scalars:
        parts.append(f"loss {scalars['loss']:.4g}")
    if "learning_rate" in scalars:
        parts.append(f"lr {format_rate(scalars['learning_rate'])}")
    speed = scalars["images_per_second"]
    parts.append(f"{speed:.0f} img/s" if speed >= 10 else f"{speed:.2g} img/s")
    if "mfu" in scalars:
        parts.append(f"mfu {scalars['mfu']:.0%}")
    if step < last:
        parts.append(f"{format_duration(seconds_left)} left")
    return "  ".join(parts)


def format_rate(rate: float) -> str:
    """A learning rate in two digits: "5.2e-8", "0.001"."""
    return re.sub(r"e-0*", "e-", f"{rate:.2g}")


def format_duration(seconds: float) -> str:
    """ "1h02m", "3m05s" or "12s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
