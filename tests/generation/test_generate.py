"""From a trained workdir to pictures, as a library call and on the command line."""

import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.data.shards.manifest import read_manifest
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.registry import copy_encoders
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.samplers import FEW_STEPS
from pixart_jax.samplers.predictions import EPS
from pixart_jax.training.loop import train_and_evaluate
from tools import sample


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a few steps on pictures with a real autoencoder and text encoder."""
    root = tmp_path_factory.mktemp("generate")
    config = tiny_config(write_words_data(root / "data"))
    config.model.update({"kv_compress_ratio": 2, "kv_compress_from": 1})
    config.sample.retrieval_captions = 4
    train_and_evaluate(config, str(root / "run"))
    shutil.rmtree(root / "data")  # A run must be able to draw without the data it learnt from.
    return root / "run"


def levels(pictures):
    return np.asarray(pictures, int)


def test_a_picture_depends_on_its_prompt_seed_and_number_only(workdir):
    pipeline = TextToImage.from_checkpoint(workdir)
    settings = {"seed": 3, "num_steps": 4, "guidance_scale": 2.0}
    together = levels(pipeline(CAPTIONS[:3], num_images=2, **settings))
    assert together.shape == (6, 32, 32, 3)
    by_four = pipeline(CAPTIONS[:3], num_images=2, batch_size=4, **settings)
    assert np.abs(by_four - together).max() <= 1
    alone = levels(pipeline(CAPTIONS[1:2], **settings))
    assert np.abs(alone[0] - together[2]).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 6
    assert np.abs(pipeline(CAPTIONS[:1], **settings | {"seed": 4})[0] - together[0]).max() > 6
    assert np.abs(together[0] - together[2]).max() > 0


@pytest.mark.parametrize("sampler", EPS.samplers())
def test_every_sampler_draws(workdir, sampler):
    pictures = TextToImage.from_checkpoint(workdir)(CAPTIONS, sampler=sampler, num_steps=FEW_STEPS.get(sampler, 5))
    assert pictures.dtype == np.uint8 and pictures.std() > 1


def test_raw_and_averaged_weights_differ(workdir):
    ema, raw = (TextToImage.from_checkpoint(workdir, ema=ema).parts.weights() for ema in (True, False))
    assert not np.array_equal(ema["x_embedder"]["kernel"], raw["x_embedder"]["kernel"])


def test_command_line(workdir, tmp_path, capsys):
    arguments = ["--checkpoint", str(workdir), "--out", str(tmp_path), "--num-steps", "3", "--seed", "9"]
    assert sample.main([*arguments, "--prompt", "Red square!", "--prompt", "", "--num-images", "2"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000_red-square.png", "001_red-square.png", "002_empty.png", "003_empty.png", "sheet.png",
    ]  # fmt: skip
    first = Image.open(tmp_path / "000_red-square.png")
    assert first.text["prompt"] == "Red square!" and first.text["seed"] == "9" and first.text["num_steps"] == "3"
    assert not np.array_equal(np.asarray(first), np.asarray(Image.open(tmp_path / "001_red-square.png")))
    assert "4 picture(s)" in capsys.readouterr().out


def test_errors(workdir, tmp_path, capsys):
    assert sample.main(["--checkpoint", str(tmp_path), "--prompt", "x"]) == 2
    assert "is not the workdir of a run" in capsys.readouterr().err
    assert sample.main(["--checkpoint", str(workdir), "--prompt", "x", "--num-steps", "0"]) == 2
    assert "--num-steps = 0" in capsys.readouterr().err
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    shutil.copytree(workdir / "encoders", tmp_path / "encoders")
    with pytest.raises(InputError, match="no checkpoint yet"):
        TextToImage.from_checkpoint(tmp_path)


def test_data_made_anew_do_not_mix_with_the_run(workdir, tmp_path):
    """Word vectors drawn from another seed fit in every shape, and would teach the model another language."""
    manifest = read_manifest(workdir / "encoders")
    copy_encoders(workdir / "encoders", manifest, tmp_path / "kept")
    copy_encoders(workdir / "encoders", manifest, tmp_path / "kept")
    other = tmp_path / "other"
    shutil.copytree(workdir / "encoders", other)
    WordEncoder.train(CAPTIONS, dim=8, max_tokens=5, seed=1).save(other)
    with pytest.raises(InputError, match=r"is not the one this run started with.*name another workdir"):
        copy_encoders(other, manifest, tmp_path / "kept")
