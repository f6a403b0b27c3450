"""What a run measures, for TensorBoard."""

from __future__ import annotations

import collections
import io
import os
import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter


class Events:
    """Writes `workdir/events.out.tfevents.*`, in the order of the calls.

    A thread of its own encodes and writes. What it fails of, as a rule an OSError, is raised by a later call.

    Args:
      workdir: exists.
    """

    # Not tensorboard's own EventFileWriter: for its file system that imports TensorFlow wherever it is installed, which
    # takes seconds. The records and what they hold are tensorboard's.

    def __init__(self, workdir: pathlib.Path):
        self._thread = ThreadPoolExecutor(1, "events")
        self._pending: collections.deque[Future] = collections.deque()
        # TensorBoard reads the files of a run in the order of their names.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09d}"
        self._records = RecordWriter((workdir / name).open("xb"))
        self._submit(lambda event: event.MergeFrom(Event(file_version="brain.Event:2")))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """A point at `step` of the curve of each name."""

        def fill(event: Event) -> None:
            event.step = step
            for name, value in scalars.items():
                event.summary.MergeFrom(scalar_pb(name, value))

        self._submit(fill)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures uint8[n, H, W, 3], or uint8[H, W, 3], at `step` under each name."""
        stacks = {name: image if image.ndim == 4 else image[None] for name, image in images.items()}

        def fill(event: Event) -> None:
            event.step = step
            for name, stack in stacks.items():
                event.summary.value.append(_pictures(name, stack))

        self._submit(fill)

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Nothing: TensorBoard has no place for them, and run.json lies beside its file."""

    def flush(self) -> None:
        """Waits until all is on disk."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """As `flush`; nothing can be written any more."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            self._records.close()

    def _submit(self, fill: Callable[[Event], None]) -> None:
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(_write, self._records, Event(wall_time=time.time()), fill))


def _write(records: RecordWriter, event: Event, fill: Callable[[Event], None]) -> None:
    fill(event)
    records.write(event.SerializeToString())
    records.flush()


def _pictures(name: str, images: np.ndarray) -> Summary.Value:
    """uint8[n, H, W, 3] as TensorFlow's `tf.summary.image` stores them: width, height and n PNG files, as texts."""
    texts = [str(images.shape[2]).encode(), str(images.shape[1]).encode()]
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        texts.append(file.getvalue())
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(texts))])
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=texts)
    return Summary.Value(tag=name, tensor=tensor, metadata=create_summary_metadata(None, None))
