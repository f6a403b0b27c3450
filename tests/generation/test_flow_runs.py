"""A run of rectified flow says so wherever it goes, goes on bit for bit, and is drawn as what it is."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_run import read_metrics, tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.conversion.runs import load_run
from pixart_jax.conversion.transfer import write_pixart, write_transformer
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.generation.starts import inpainting, latents_of
from pixart_jax.training.loop import train_and_evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_words_data(tmp_path_factory.mktemp("data") / "words")


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flow") / "run"
    train_and_evaluate(flow_config(data), str(workdir))
    return workdir


def flow_config(data):
    config = tiny_config(data)
    config.model.learn_sigma = False
    config.diffusion.update({"prediction": "flow", "timesteps": "logit_normal", "shift": 2.0})
    config.train.update({"num_steps": 4, "checkpoint_every": 2, "log_every": 1, "min_snr_gamma": 5.0})
    config.sample.update({"every": 0, "sampler": "flow-euler", "num_steps": 5, "retrieval_captions": 0})
    return config


def test_a_run_that_stopped_goes_on_bit_identical(workdir, data, tmp_path):
    config = flow_config(data)
    config.train.num_steps = 2
    train_and_evaluate(config, str(tmp_path))
    config.train.num_steps = 4
    train_and_evaluate(config, str(tmp_path))
    losses = [[row["loss"] for row in read_metrics(path)] for path in (workdir, tmp_path)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_its_own_samplers_and_the_others_draw_from_it(workdir):
    pipeline = TextToImage.from_checkpoint(workdir)
    assert pipeline.parts.target == ("flow", 2.0, False) and pipeline.manner(Request("x")).sampler == "flow-euler"
    for sampler in ("flow-euler", "flow-dpm-solver", "dpm-solver"):
        assert pipeline(CAPTIONS[:2], sampler=sampler, num_steps=4).std() > 1
    with pytest.raises(InputError, match="'iddpm': needs the learned variance"):
        pipeline(CAPTIONS[:1], sampler="iddpm")


def test_what_is_kept_of_a_picture_is_kept_at_the_flow_s_own_noise(workdir):
    pipeline = TextToImage.from_checkpoint(workdir)
    request = Request(CAPTIONS[0], num_steps=4)
    picture = pipeline.draw(request)[0]
    mask = np.zeros(picture.shape[:2], bool)
    mask[:, picture.shape[1] // 2 :] = True
    start = inpainting(pipeline, request, latents_of(pipeline, request, picture), mask, strength=0.8)
    drawn = pipeline.draw(dataclasses.replace(request, start=start))[0]
    assert np.abs(drawn.astype(int) - picture)[:, : picture.shape[1] // 2].mean() < 8


def test_its_files_say_it_or_are_not_written(workdir, tmp_path):
    weights = load_run(workdir, ema=True)
    assert weights.stored.target == ("flow", 2.0, False)
    told = json.loads(weights.stored.to_json())
    assert (told["prediction"], told["flow_shift"]) == ("flow", 2.0)
    for write in (write_pixart, write_transformer):
        with pytest.raises(InputError, match=r"predicts 'flow', and .* has no place to say so"):
            write(tmp_path / "out", weights)
        assert not (tmp_path / "out").exists()
