"""Guidance by the dropped path: of a run that has learnt it, of what it is converted to, and of no other model."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_run import tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.conversion.stored import StoredModel, read_stored_model
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.samplers.program import DROPPED_PATH
from pixart_jax.studio.settings import first_settings, guidances_of
from pixart_jax.training.loop import train_and_evaluate
from tools import convert, sample

SETTINGS = {"seed": 3, "num_steps": 3, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two steps that drops the path, and its conversion."""
    folder = tmp_path_factory.mktemp("path")
    config = tiny_config(write_words_data(folder / "data"))
    config.model.route.update({"form": "sprint", "ratio": 0.5, "first": 1, "last": 1})
    config.optimizer.update({"learning_rate": 6e-2, "warmup_steps": 0})
    config.train.update({"num_steps": 2, "log_every": 1, "checkpoint_every": 2})
    config.sample.update({"every": 0, "guidance": DROPPED_PATH})
    train_and_evaluate(config, folder / "run")
    assert convert.main([str(folder / "run"), str(folder / "model")]) == 0
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return TextToImage.from_checkpoint(folder / "run")


def drawn(pipeline, **settings):
    return pipeline(CAPTIONS[:2], **SETTINGS | settings).astype(int)


def test_one_program_draws_all_scales_and_negative_prompts(folder, pipeline, compilations):
    assert (pipeline.parts.path_drop, pipeline.manner(Request("x")).guidance) == ((1, 1), DROPPED_PATH)
    first = drawn(pipeline)
    others = drawn(pipeline, guidance_scale=8.0), drawn(pipeline, negative_prompt="blue square")
    assert compilations.count("jit(sample_step)") == 1
    assert all(np.abs(other - first).max() > 2 for other in (*others, drawn(pipeline, guidance="cfg")))
    # As it is called without what remembers the text.
    again = TextToImage.from_checkpoint(folder / "run", text_once=False)
    assert np.abs(drawn(again) - first).max() <= 1


def test_outside_of_the_interval_nothing_guides(pipeline):
    unguided = drawn(pipeline, guidance="none", guidance_scale=None)
    assert np.abs(drawn(pipeline, guidance_interval=(0, 1)) - unguided).max() <= 1
    assert np.abs(drawn(pipeline, guidance_interval=(0, 1000)) - drawn(pipeline)).max() <= 1


def test_what_it_is_converted_to_says_so(folder, pipeline, capsys):
    said = json.loads((folder / "model/model.json").read_text())
    assert (said["path_drop"], said["guidance"]) == ([1, 1], DROPPED_PATH)
    converted = TextToImage.from_checkpoint(folder / "model")
    assert np.abs(drawn(converted) - drawn(pipeline)).max() <= 1
    assert convert.main([str(folder / "model"), str(folder / "foreign"), "--to=diffusers", "--no-encoders"]) == 0
    assert "warning: the format cannot say that the model was trained to do without its blocks 1 to 1" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("blocks", [[1], [0, 2], [1, 0], [-1, 1], "01", [0, 1.5]], ids=str)
def test_no_model_has_other_blocks(folder, blocks):
    said = json.loads((folder / "model/model.json").read_text()) | {"path_drop": blocks}
    with pytest.raises(InputError, match=r"model\.json: path_drop"):
        StoredModel.from_json(json.dumps(said), "model.json")


def test_older_files_have_no_such_field(folder):
    stored = read_stored_model(folder / "model")
    older = json.loads(dataclasses.replace(stored, path_drop=None, guidance="cfg").to_json())
    assert not {"path_drop", "guidance"} & older.keys()
    assert StoredModel.from_json(json.dumps(older), "model.json").path_drop is None


def test_what_cannot_be_is_refused_with_the_reason(folder, pipeline, capsys):
    def manner(settings, **parts):
        other = TextToImage(dataclasses.replace(pipeline.parts, **parts))
        return other.manner(Request("x", guidance=DROPPED_PATH, **settings))

    with pytest.raises(InputError, match=r"guidance = 'path_drop': .*run was not trained to do without some"):
        manner({}, path_drop=None)
    with pytest.raises(InputError, match="a ControlNet adds to blocks that would be left out"):
        manner({}, needs={"control": "x"})
    with pytest.raises(InputError, match="'path_drop' and reuse do not go together"):
        manner({"reuse": "2", "num_steps": 8})
    arguments = ["--checkpoint", str(folder / "model"), "--prompt=x", "--out", str(folder / "out"), "--reuse=2"]
    assert sample.main([*arguments, "--guidance=path_drop", "--num-steps=8"]) == 2
    assert "do not go together" in capsys.readouterr().err


def test_the_app_offers_what_the_model_can(pipeline):
    parts = pipeline.parts
    assert guidances_of(parts) == ("cfg", DROPPED_PATH) and first_settings(parts).guidance == DROPPED_PATH
    request = first_settings(parts).request({})
    assert (request.guidance, pipeline.manner(request).guidance) == (DROPPED_PATH, DROPPED_PATH)
    assert guidances_of(dataclasses.replace(parts, path_drop=None)) == ("cfg",)
