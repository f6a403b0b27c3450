"""Sample grids of prompts in place of training captions."""

import logging

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import TEXT_DIM
from tiny_run import MAX_TEXT_TOKENS, tiny_config, write_data

from pixart_jax.data.captions import CLEANING
from pixart_jax.data.examples import make_example
from pixart_jax.data.prompts import prompt_samples, read_prompts
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.pretrained import T5TextEncoder, local_mesh
from pixart_jax.errors import InputError
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.inputs.opening import open_data
from pixart_jax.training.loop import train_and_evaluate


@pytest.fixture(scope="module")
def words():
    return WordEncoder.train(["a red cat on a blue mat"], dim=8, max_tokens=MAX_TEXT_TOKENS)


@pytest.fixture(scope="module")
def data(tmp_path_factory, words):
    """Features that its own word encoder could have made."""
    directory = write_data(tmp_path_factory.mktemp("prompts") / "data", text_encoder="words", caption_cleaning="sigma")
    words.save(directory)
    return directory


def prompts_of(config):
    opened = open_data(config, batch_spec(config))
    opened.batches.close()
    return opened.prompts


def test_a_run_draws_its_prompts(data, tmp_path, compilations, caplog):
    config = tiny_config(data)
    config.train.update({"num_steps": 4, "checkpoint_every": 4})
    (tmp_path / "prompts.txt").write_text("a red cat\n\n  a blue cat \nblue mat\na red cat\ncat\n")
    config.sample.update({"every": 2, "prompts": str(tmp_path / "prompts.txt")})  # more than config.sample.num_images
    with caplog.at_level(logging.INFO, logger="absl"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert compilations.count("jit(sample)") == 1, compilations
    grids = [np.asarray(Image.open(tmp_path / "run" / name)) for name in ("samples/step_0000002.png", "samples.png")]
    assert all(grid.std() > 0 for grid in grids) and grids[0].shape == grids[1].shape
    # Latents of 4x4 in false colours, enlarged, two entries in a row, and no real picture beside them.
    assert grids[0].shape[1] == 2 * (128 + 2 * 2 + 4) + 4
    assert "samples.png: prompts" in caplog.text


def test_prompts_are_read_as_captions_were(data, words):
    config = tiny_config(data)
    config.sample.prompts = "A Red  cat\n a blue dog on the mat "
    samples = prompts_of(config)()
    assert [sample.caption for sample in samples] == ["A Red  cat", "a blue dog on the mat"]
    text, length = words.encode(["A Red  cat", "a blue dog on the mat"])
    spec = batch_spec(config)
    manifest = open_data(config, spec).manifest
    for i, sample in enumerate(samples):
        example = make_example(sample, manifest, spec)
        np.testing.assert_array_equal(example["text"][: length[i]], text[i, : length[i]])
        assert (example["text_length"], example["num_tokens"]) == (length[i], 4)
        assert example["image_size"].tolist() == [32, 32] and example["aspect_ratio"].tolist() == [1]
    heard = []
    prompt_samples(["A Cat"], lambda captions: heard.extend(captions) or [text[0]], manifest, 32)
    assert heard == [CLEANING["sigma"]("A Cat")]


def test_t5_and_the_autoencoder_that_are_named(weights, tmp_path):
    """Drawn and decoded by the real classes."""
    fields = {"autoencoder": "vae", "text_encoder": "t5", "latent_scale": 0.13025, "text_dim": TEXT_DIM}
    config = tiny_config(write_data(tmp_path / "data", **fields))
    config.model.update({"text_dim": TEXT_DIM, "max_text_tokens": 16})
    config.data.update({"vae": f"{weights}/vae", "text_encoder": f"{weights}/text_encoder"})
    config.train.update({"num_steps": 1, "checkpoint_every": 1})
    config.sample.prompts = "a red cat\na blue dog"
    encoder = T5TextEncoder(f"{weights}/text_encoder", max_tokens=16, mesh=local_mesh())
    expected = encoder.encode_trimmed(["a red cat", "a blue dog"], 4)
    for sample, features in zip(prompts_of(config)(), expected, strict=True):
        np.testing.assert_array_equal(sample.texts[0].features, features)
    train_and_evaluate(config, str(tmp_path / "run"))
    grid = np.asarray(Image.open(tmp_path / "run/samples.png"))
    # Of 32x32, enlarged.
    assert grid.shape[1] == 128 + 2 * 2 + 2 * 4 and grid.std() > 0

    config.data.text_encoder = ""
    with pytest.raises(InputError, match=r'text_encoder "t5".*config.data.text_encoder'):
        prompts_of(config)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"sample.prompts": "/nowhere.txt"}, "config.sample.prompts /nowhere.txt: .*a prompt a line"),
        ({"sample.prompts": " \n "}, "config.sample.prompts = .*: holds no prompt"),
        ({"sample.prompts": "a cat", "model.num_classes": 3}, "config.sample.prompts = 'a cat': a model of 3 classes"),
        ({"sample.prompts": "a cat", "data.text_encoder": "t5"}, 'data.text_encoder = .*"words", which is another'),
        ({"data.text_encoder": "t5"}, "data.text_encoder = 't5': only .*config.sample.prompts heed it"),
    ],
)
def test_bad_settings_are_refused_before_any_work(data, tmp_path, settings, message):
    config = tiny_config(data)
    for key, value in settings.items():
        section, name = key.split(".")
        config[section][name] = value
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffein Bär\nzwei\n".encode())
    assert read_prompts(path, "--prompts") == ["ein Bär", "zwei"]
