"""Pictures for metrics come from wherever training reads them: lists, shards, folders."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny_words import write_words_data

from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.registry import load_autoencoder
from pixart_jax.encoding.shard_decoder import shard_decoder
from pixart_jax.errors import InputError
from pixart_jax.evaluators.evaluation import Evaluation, Side
from pixart_jax.evaluators.networks import FEATURES, LOGITS
from pixart_jax.evaluators.picture_sets import PictureReader
from pixart_jax.evaluators.picture_sources import open_picture_set
from pixart_jax.evaluators.pixel_network import pixel_network
from pixart_jax.figures.images import to_uint8
from pixart_jax.figures.trade_off import over_setting_png, trade_off_png


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/, shards of four pictures; list.json of two files, one of them missing."""
    folder = tmp_path_factory.mktemp("sources")
    write_words_data(folder / "data")
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    records = [{"path": name, "prompt": "x"} for name in ("a.png", "b.png")]
    (folder / "list.json").write_text(json.dumps(records))
    return folder


def opened(spec, per_unit=3):
    return open_picture_set(str(spec), per_unit, lambda samples: shard_decoder(spec, samples.manifest, None))


def test_shards_are_decoded(place):
    pictures = opened(place / "data")
    shards = ShardReader(place / "data")
    decode = load_autoencoder(place / "data", shards.manifest).decode
    assert len(pictures) == 4 and pictures.name(2).endswith("data#2")
    for i in range(4):
        expected = to_uint8(decode(np.asarray(shards[i].latent_mean, np.float32)[None])[0])
        np.testing.assert_array_equal(pictures.read(i), expected)
    assert pictures.fingerprint == opened(place / "data").fingerprint


def test_a_list_is_read_and_what_is_missing_is_counted(place, tmp_path):
    pictures = opened(place / "list.json")
    np.testing.assert_array_equal(pictures.read(0), np.asarray(Image.open(place / "a.png")))
    network = pixel_network()
    evaluation = Evaluation(tmp_path, {"it": Side(pictures, {"pixels": network}), "too": Side(opened(place), {})})
    evaluation.begin()
    assert evaluation.found() is None
    share = {"process_index": 0, "process_count": 1, "progress": lambda name, total: lambda done: None}
    evaluation.look(batch_size=2, num_threads=2, **share)
    found = evaluation.found()["it"]["pixels"]
    assert found.features.shape == (1, 64 * 64 * 3) and found.read.tolist() == [0]
    assert found.features.min() >= -1 and found.features.max() <= 1
    assert "b.png" in found.skipped[0] and "missing-file" in found.skipped[0]
    assert "it: 1 of 2 could not be read" in evaluation.write_skipped(evaluation.found())[0]
    assert (tmp_path / "skipped.txt").read_text().startswith("it: ")
    other = Evaluation(tmp_path, {"it": Side(opened(place / "data"), {"pixels": network})})
    with pytest.raises(InputError, match="was begun with other it"):
        other.begin()


def test_what_is_no_source_is_refused(place, tmp_path):
    for spec, said in [(tmp_path / "none", "is no folder"), (tmp_path / "none.json", "none.json")]:
        with pytest.raises(InputError, match=said):
            opened(spec)
    manifest = json.loads((place / "data" / "manifest.json").read_text())
    (tmp_path / "data").mkdir()
    for name in ("shard-00000.array_record",):
        (tmp_path / "data" / name).write_bytes((place / "data" / name).read_bytes())
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest | {"autoencoder": "sdxl-vae"}))
    with pytest.raises(InputError, match="name it with --vae"):
        opened(tmp_path / "data")


def test_a_trade_off_has_a_point_for_each_label(tmp_path):
    trade_off_png(tmp_path / "a.png", ("clip_score", [1, 2]), ("fid", [3, 4]), ["1.5", "2"])
    assert Image.open(tmp_path / "a.png").size == (720, 540)
    with pytest.raises(InputError, match="needs n values"):
        trade_off_png(tmp_path / "a.png", ("clip_score", [1, 2]), ("fid", [3]), ["1.5", "2"])


def test_figures_over_a_setting_have_a_panel_each(tmp_path):
    over_setting_png(tmp_path / "a.png", ("guidance scale", [1.5, 2]), {"fid": [3, 4], "clip_score": [1, 2]})
    assert Image.open(tmp_path / "a.png").size == (600, 500)
    for setting, figures in (([1, 2], {"fid": [3]}), ([], {"fid": []}), ([1], {})):
        with pytest.raises(InputError, match="needs n values"):
            over_setting_png(tmp_path / "a.png", ("guidance scale", setting), figures)


def test_no_output_may_be_infinite(place):
    def apply(params, pictures):
        sums = pictures.sum((1, 2))
        return {FEATURES: sums, LOGITS: sums / 0}

    outputs = {FEATURES: 3, LOGITS: 3}
    network = dataclasses.replace(pixel_network(), outputs=outputs, apply=apply)
    pictures = opened(place / "data")
    with pytest.raises(InputError, match="not finite"):
        PictureReader(network, batch_size=2, num_threads=1).look(pictures, range(2))
