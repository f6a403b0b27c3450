"""TensorBoard's own reader gives back what a run wrote, without TensorFlow."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from pixart_jax.training.trackers.events import Events


@pytest.fixture(autouse=True)
def no_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }, accumulator


def test_what_is_written_is_read_back(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    events = Events(tmp_path)
    events.write_scalars(3, {"loss": 0.5, "images_per_second": 12345678.0, "count": 2})
    events.write_images(3, {"grid": pictures, "one": pictures[1]})
    events.flush()
    events.write_scalars(6, {"loss": 0.25})
    events.close()
    resumed = Events(tmp_path)
    resumed.write_scalars(9, {"loss": 0.125})
    resumed.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    tags, accumulator = read(tmp_path)
    assert [(step, float(value)) for step, value in tags["loss"]] == [(3, 0.5), (6, 0.25), (9, 0.125)]
    assert tags["count"] == [(3, 2)] and tags.keys() == {"loss", "images_per_second", "count", "grid", "one"}
    for tag, expected in (("grid", pictures), ("one", pictures[1:])):
        ((step, (width, height, *files)),) = tags[tag]
        assert (step, width, height) == (3, b"7", b"5")
        assert np.array_equal([np.asarray(Image.open(io.BytesIO(file))) for file in files], expected)
    # The tabs of TensorBoard that show them.
    plugins = {tag: accumulator.SummaryMetadata(tag).plugin_data.plugin_name for tag in tags}
    assert (plugins["loss"], plugins["grid"]) == ("scalars", "images")


def test_what_cannot_be_written_is_an_error(tmp_path):
    events = Events(tmp_path)
    events.flush()
    events._records._writer.close()
    events.write_scalars(1, {"loss": 1.0})
    with pytest.raises(ValueError, match="closed file"):
        events.flush()
    events.close()
