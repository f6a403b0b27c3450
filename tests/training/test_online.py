"""Training on pictures that are encoded on the way: nothing lost, nothing twice, and exactly resumable."""

import json
import logging
import shutil
import signal
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from resume_runs import finish, last_logged, start, wait_for
from tiny_pipeline import TEXT_DIM
from tiny_run import read_metrics, write_data

from pixart_jax.config import default_config
from pixart_jax.data.examples import make_example
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding import pretrained
from pixart_jax.errors import InputError
from pixart_jax.figures.images import false_colour
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.inputs.opening import open_data
from pixart_jax.training.loop import train_and_evaluate
from tools import convert, extract_features, sample

# Five ratios, and no two pictures of one size: a batch's `image_size` tells which items it holds.
SIZES = [
    (w + 2 * i, h + 2 * i) for i in range(4) for w, h in ((200, 140), (140, 210), (180, 180), (300, 110), (71, 95))
]
BAD = {"03_bad": "not-an-image", "11_bad": "caption-missing"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """20 pictures with captions, and two items that cannot be used."""
    folder = tmp_path_factory.mktemp("photos")
    for i, (width, height) in enumerate(SIZES):
        rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
        pixels = 127 * (rows * np.random.default_rng(i).random(3) + columns)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"A small picture, number {i}")
    (folder / "03_bad.jpg").write_bytes(b"<html>")
    (folder / "03_bad.txt").write_text("a caption")
    shutil.copy(folder / "00.png", folder / "11_bad.png")
    return folder


def online_config(photos, weights):
    config = default_config()
    fields = {"hidden_size": 24, "depth": 1, "num_heads": 2, "text_dim": TEXT_DIM, "max_text_tokens": 32}
    config.model.update(fields)
    config.data.update(
        {
            "online": True,
            "source": str(photos),
            "vae": f"{weights}/vae",
            "text_encoder": f"{weights}/text_encoder",
            "caption_cleaning": "sigma",
            "batch_size": 4,
        }
    )
    config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 3, "grad_clip": 1.0, "eps": 1e-8})
    config.train.update({"num_steps": 6, "log_every": 3, "checkpoint_every": 6, "ema_decay": 0.9})
    config.sample.update({"every": 3, "num_images": 4, "num_steps": 2})
    return config


def opened(config, **processes):
    return open_data(config, batch_spec(config, processes.get("process_count", 1)), **processes)


@pytest.fixture
def batches(photos, weights):
    """Opens the iterator of the config with other settings; closes it at the end."""
    iterators = []

    def start(batch_size=4, process_index=0, process_count=1, **settings):
        config = online_config(photos, weights)
        config.data.batch_size = batch_size
        config.update(settings)
        iterators.append(opened(config, process_index=process_index, process_count=process_count).batches)
        return iterators[-1]

    yield start
    for iterator in iterators:
        iterator.close()


def names(batch):
    """The number of each picture in a batch."""
    return [SIZES.index((int(width), int(height))) for height, width in batch["image_size"]]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_run(photos, weights, tmp_path, compilations, capsys):
    """Trains, draws, and what it leaves behind is sampled from and converted."""
    config = online_config(photos, weights)
    train_and_evaluate(config, str(tmp_path / "run"))
    assert compilations.count("jit(train_step)") == 1, compilations
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [3, 6] and all(np.isfinite(row["loss"]) for row in rows)
    grid = np.asarray(Image.open(tmp_path / "run/samples/step_0000003.png"))
    assert grid.std() > 0 and grid.shape[0] > 256  # decoded, and not latents in false colours
    manifest = json.loads((tmp_path / "run/encoders/manifest.json").read_text())
    assert (manifest["autoencoder"], manifest["text_encoder"], manifest["caption_cleaning"]) == ("vae", "t5", "sigma")
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["online"] is True

    arguments = ["--checkpoint", tmp_path / "run", "--prompt", "a red cat", "--num-steps=2", "--out", tmp_path / "out"]
    given = ["--text-encoder", weights / "text_encoder", "--vae", weights / "vae"]
    assert sample.main([str(part) for part in arguments + given]) == 0
    assert Image.open(tmp_path / "out/000_a-red-cat.png").size == (256, 256)
    # It was told where they are.
    capsys.readouterr()
    assert sample.main([str(part) for part in arguments]) == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert convert.main([str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    stored = json.loads((tmp_path / "model/model.json").read_text())
    assert (stored["caption_cleaning"], stored["latent_scale"]) == ("sigma", 0.13025)

    # The encoders that a run began with are the ones it goes on with.
    config.data.caption_cleaning, config.train.num_steps = "alpha", 7
    with pytest.raises(InputError, match=r"started with caption_cleaning 'sigma'.*config.data.text_encoder"):
        train_and_evaluate(config, str(tmp_path / "run"))


def test_an_epoch_visits_each_item_once_and_bad_ones_never(batches, caplog):
    iterator = batches(batch_size=4)
    with caplog.at_level(logging.WARNING):
        epochs = [[name for _ in range(5) for name in names(next(iterator))] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for key, reason in BAD.items():
        assert caplog.text.count(f"left out: {key}: {reason}: ") == 1


def test_each_visit_draws_anew(batches):
    iterator = batches(batch_size=20)
    first, second = next(iterator), next(iterator)
    i, k = (names(batch).index(7) for batch in (first, second))
    change = np.abs(first["tokens"][i] - second["tokens"][k])
    assert change.max() > 0
    np.testing.assert_array_equal(first["text"][i], second["text"][k])
    drops = [next(iterator)["text_drop"] for _ in range(10)]
    assert 0.02 < np.mean(drops) < 0.25


def test_the_samples_are_those_of_extraction(photos, weights, tmp_path):
    out = tmp_path / "train"
    arguments = ["--source", photos, "--out", out, "--checkpoint", weights, "--resolution", 256, "--batch-size", 4]
    assert extract_features.main([str(part) for part in (*arguments, "--text-dtype", "float32")]) == 0
    reader = ShardReader(out)
    extracted = {item.key: item for item in (reader[i] for i in range(len(reader)))}
    config = online_config(photos, weights)
    config.sample.num_images = 100
    data = opened(config)
    assert sorted(item.key for item in data.samples) == sorted(extracted)
    spec = batch_spec(config)
    for item in data.samples:
        theirs = extracted[item.key]
        assert (item.caption, item.image_size, item.bucket) == (theirs.caption, theirs.image_size, theirs.bucket)
        ours, expected = make_example(item, data.manifest, spec), make_example(theirs, reader.manifest, spec)
        assert_equal(ours, expected)


def test_every_process_takes_its_part_of_one_order(batches):
    whole = batches(batch_size=6)
    parts = [batches(batch_size=6, process_index=i, process_count=2) for i in range(2)]
    for _ in range(8):  # across epochs and bad items
        expected, found = next(whole), [next(part) for part in parts]
        for i, part in enumerate(found):
            rows = slice(3 * i, 3 * i + 3)
            assert names(part) == names(expected)[rows]
            np.testing.assert_array_equal(part["text_drop"], expected["text_drop"][rows])
            np.testing.assert_allclose(part["tokens"], expected["tokens"][rows], rtol=1e-3, atol=1e-4)
    assert whole.get_state() == parts[0].get_state() == parts[1].get_state()


def test_a_state_is_the_position_behind_what_was_given_out(batches):
    iterator = batches(batch_size=3)
    given = [next(iterator) for _ in range(4)]
    state = json.loads(json.dumps(iterator.get_state()))
    rest = [next(iterator) for _ in range(8)]
    for resumed in (iterator, batches(batch_size=3)):
        resumed.set_state(state)
        assert resumed.get_state() == state
        for batch in rest:
            assert_equal(next(resumed), batch)
    iterator.set_state({**state, "next_place": 0})
    assert_equal(next(iterator), given[0])
    for other in ({"seed": 1}, {"fingerprint": "0"}):
        with pytest.raises(InputError, match=next(iter(other))):
            iterator.set_state(state | other)
    assert names(next(batches(batch_size=20, seed=1))) != names(next(batches(batch_size=20)))


def test_the_autoencoder_compiles_once_per_bucket(batches):
    iterator = batches(batch_size=5)
    for _ in range(8):
        next(iterator)
    before = pretrained._encode._cache_size(), pretrained._features._cache_size()
    for _ in range(8):
        next(iterator)
    assert (pretrained._encode._cache_size(), pretrained._features._cache_size()) == before


def test_errors_surface_and_close_ends_the_threads(photos, weights, monkeypatch):
    iterator = opened(online_config(photos, weights)).batches
    next(iterator)

    def fail(*arguments):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(pretrained, "_encode", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the device is gone"):
            for _ in range(4):
                next(iterator)
    assert any(thread.name.startswith("encode") for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name.startswith(("encode", "decode")) for thread in threading.enumerate())


def test_a_source_of_nothing_but_bad_items(weights, tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    for i in range(40):
        (tmp_path / f"photos/{i}.jpg").write_bytes(b"no picture")
        (tmp_path / f"photos/{i}.txt").write_text("a caption")
    config = online_config(tmp_path / "photos", weights)
    iterator = opened(config).batches
    for _ in range(2):
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(InputError, match="not one of 40 items could be used: 40 not-an-image"),
        ):
            next(iterator)
    iterator.close()
    lines = [line for line in caplog.text.splitlines() if "left out" in line]
    assert sum("left out: " in line for line in lines) == 10
    assert sum("left out so far: " in line for line in lines) == 2  # 16, 32
    with pytest.raises(InputError, match="not one of 40"):
        train_and_evaluate(config, str(tmp_path / "run"))


def test_labels_in_place_of_captions(photos, weights, tmp_path):
    for i in range(6):
        path = tmp_path / "classes" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / f"{i:02d}.png", path)
    config = online_config(f"classes:{tmp_path}/classes", weights)
    config.data.update({"text_encoder": "", "caption_cleaning": "none", "batch_size": 6})
    config.model.num_classes = 3
    iterator = opened(config).batches
    batch = next(iterator)
    iterator.close()
    assert "text" not in batch and batch["label"].tolist() == [name % 3 for name in names(batch)]
    config.model.num_classes = 4
    with pytest.raises(InputError, match=r"config.model.num_classes = 4: .* have 3 classes"):
        opened(config)
    config.model.num_classes, config.data.source = 3, str(photos)
    with pytest.raises(InputError, match=r"config.model.num_classes = 3: .* have 0 classes"):
        opened(config)


def test_shards_are_drawn_with_the_autoencoder_that_is_given(photos, weights, tmp_path):
    config = online_config(write_data(tmp_path / "data", autoencoder="vae", latent_scale=0.13025), weights)
    config.data.update({"online": False, "text_encoder": "", "caption_cleaning": "none"})
    config.model.update({"text_dim": 8, "max_text_tokens": 5})
    latents = np.random.default_rng(0).standard_normal((1, 4, 6, 4)).astype(np.float32)
    assert opened(config).decode(latents).shape == (1, 32, 48, 3)
    config.data.source = str(write_data(tmp_path / "scaled", autoencoder="vae"))
    with pytest.raises(InputError, match=r"config.data.vae = .*: its latent scale is 0.13025, that of the data 0.5"):
        opened(config)
    config.data.source = str(write_data(tmp_path / "other"))
    with pytest.raises(InputError, match=r'config.data.vae = .*made with the autoencoder "none"'):
        opened(config)
    config.data.vae = ""
    np.testing.assert_array_equal(opened(config).decode(latents), false_colour(latents))
    config.data.caption_cleaning = "sigma"
    with pytest.raises(InputError, match=r"config.data.caption_cleaning = 'sigma': only config.data.online"):
        opened(config)


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("data.source", "", "name pictures as tools.extract_features"),
        ("data.source", "/nowhere", "'/nowhere' is no source of pictures"),
        ("data.vae", "", "name an autoencoder's directory"),
        ("data.vae", "/nowhere", "/nowhere/config.json"),
        ("data.text_encoder", "", "name a text encoder's directory"),
        ("data.text_encoder", "/nowhere", "/nowhere/config.json"),
        ("data.caption_cleaning", "beta", "must be one of none, alpha, sigma"),
        ("data.group_buckets", True, "is for feature shards"),
        ("data.num_workers", 2, "is for feature shards"),
        ("sample.retrieval_captions", 4, "is for feature shards"),
        ("model.resolution", 320, "has no aspect-ratio buckets; one of 256, 512"),
        ("model.kv_compress_ratio", 2, "the sides of the buckets at 256 px are no multiples of 32 px"),
        ("model.patch_size", 4, "are no multiples of 32 px"),
        (
            "model.latent_channels",
            8,
            r"config.model.latent_channels = 8: .*\(config.data.vae\) has latents of 4 channels",
        ),
        ("model.text_dim", 24, "config.model.text_dim = 24: .* gives features 20 wide"),
        ("model.num_classes", 3, "config.data.text_encoder = .*reads labels, no captions"),
    ],
)
def test_what_is_refused(photos, weights, tmp_path, key, value, message):
    config = online_config(photos, weights)
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Without this module's imports: torch alone would take longer than the steps.
CONFIG_FILE = """
import json
from pixart_jax.config import default_config

def get_config():
    config = default_config()
    config.update(json.loads({values!r}))
    return config
"""


def test_killed_and_resumed_it_has_the_losses_of_a_run_never_killed(photos, weights, tmp_path):
    config = online_config(photos, weights)
    config.train.update({"num_steps": 12, "log_every": 2, "checkpoint_every": 4})
    config.sample.every = 0
    file = tmp_path / "config.py"
    file.write_text(CONFIG_FILE.format(values=json.dumps(config.to_dict())))
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    finish(start(file, clean), clean)
    process = start(file, killed)
    assert wait_for(lambda: last_logged(killed) >= 6, process)
    process.kill()
    finish(process, killed, -signal.SIGKILL)
    output = finish(start(file, killed), killed)
    assert "going on from step" in output and "going on from step 12" not in output
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "clean")
    ours, theirs = (
        ocp.StandardCheckpointer().restore(tmp_path / name / "checkpoints/12/params") for name in ("killed", "clean")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
