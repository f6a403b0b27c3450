"""LoRA trains in the real loop, and what it has trained draws, resumes, exports and merges."""

import dataclasses
import json

import numpy as np
import pytest
from seam_parts import flat
from tiny_run import read_metrics, tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.conversion.runs import load_run
from pixart_jax.conversion.stored import read_stored_model, restore_params
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.errors import InputError
from pixart_jax.generation.lora import LoraFile
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.models.params import abstract_params
from pixart_jax.training.loop import train_and_evaluate
from tools import convert, sample

SETTINGS = {"seed": 3, "num_steps": 3, "guidance_scale": 2.0}


def words_config(folder, **adapter):
    config = tiny_config(folder / "data")
    config.sample.every = 0
    config.train.num_steps = 4
    config.train.checkpoint_every = 2
    if adapter:
        config.init_from = str(folder / "base")
        config.init.null_text = str(folder / "null.npy")
        # Without warm-up, and fast: so that a few steps are seen in pictures.
        config.optimizer.update({"learning_rate": 6e-2, "warmup_steps": 0})
        config.adapter.kind = "lora"
        config.adapter.lora.update({"rank": 3, "alpha": 6.0} | adapter)
    return config


def adapted_config(folder):
    config = words_config(folder, dora=True, rank_pattern="proj_out=2", dropout=0.25)
    config.dtype = "bfloat16"
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base run, and one that trains DoRA beside its weights, frozen in bfloat16."""
    folder = tmp_path_factory.mktemp("lora")
    write_words_data(folder / "data")
    train_and_evaluate(words_config(folder), folder / "base")
    null_text = load_run(folder / "base", ema=True).read("y_embedder/y_embedding")
    np.save(folder / "null.npy", null_text)
    train_and_evaluate(adapted_config(folder), folder / "run")
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return TextToImage.from_checkpoint(folder / "base")


@pytest.fixture(scope="module")
def exported(folder):
    assert convert.main([str(folder / "run"), str(folder / "peft"), "--to", "peft"]) == 0
    assert convert.main([str(folder / "peft"), str(folder / "style.safetensors"), "--to", "diffusers-lora"]) == 0
    return folder / "style.safetensors"


def pictures(pipeline):
    return pipeline(CAPTIONS[:2], **SETTINGS).astype(int)


def test_only_the_adapter_is_trained_and_saved(folder):
    config = json.loads((folder / "run" / "run.json").read_text())
    assert config["num_trained"] < config["num_parameters"] / 3
    held = Checkpoints(folder / "run", read_only=True).recorded_checksums(4, "params")
    assert held and all(path.rpartition("/")[2] in ("lora_a", "lora_b", "lora_magnitude") for path in held)
    assert "blocks_0/attn/qkv/q/lora_a" in held and "blocks_0/cross_attn/kv_linear/v/lora_b" in held


def test_a_run_draws_by_itself_and_from_its_export(folder, base, exported):
    # The run has kept the null caption: it is in no checkpoint, and an encoder would make it only nearly the same.
    (folder / "null.npy").rename(folder / "elsewhere.npy")
    whole = pictures(TextToImage.from_checkpoint(folder / "run"))
    (folder / "elsewhere.npy").rename(folder / "null.npy")
    assert np.abs(whole - pictures(base)).max() > 20
    drawn = pictures(TextToImage.from_checkpoint(folder / "base", adapters=[str(exported)]))
    # The base is in float32 here, and in bfloat16 beside the run's adapter.
    assert np.abs(drawn - whole).max() <= 12
    merged = folder / "merged"
    assert convert.main([str(folder / "run"), str(merged), "--no-encoders"]) == 0
    stored = json.loads((merged / "model.json").read_text())
    assert stored["provenance"]["weights"].startswith("ema_params of step 4 over ")


def test_scales_change_without_compiling(folder, base, exported):
    style = LoraFile.read(exported)
    pipeline = TextToImage.from_checkpoint(folder / "base", adapters=[style, f"{folder / 'peft'}:0.5"])
    strong = pictures(pipeline)
    style.scale = 0.25
    weak = pictures(pipeline)
    assert np.abs(strong - weak).max() > 0
    program = pipeline._sample_fn(pipeline.parts.sampler, SETTINGS["num_steps"], 1.0, pipeline.parts.guidance)
    assert program._cache_size() == 1
    # Nothing of it is the base again.
    style.scale = 0.0
    alone = TextToImage.from_checkpoint(folder / "base", adapters=[f"{folder / 'peft'}:0.5"])
    assert np.abs(pictures(pipeline) - pictures(alone)).max() > 0  # Of DoRA, which keeps its lengths.


def test_a_run_goes_on_bit_identical_and_not_beside_other_weights(folder, tmp_path):
    config = adapted_config(folder)
    config.train.num_steps = 2
    train_and_evaluate(config, tmp_path / "run")
    config.train.num_steps = 4
    train_and_evaluate(config, tmp_path / "run")
    found = [Checkpoints(where / "run", read_only=True) for where in (tmp_path, folder)]
    for item in ("params", "ema_params", "opt_state"):
        assert found[0].recorded_checksums(4, item) == found[1].recorded_checksums(4, item)
    assert read_metrics(tmp_path / "run")[-1] == read_metrics(folder / "run")[-1]
    # Weights that are gone are to be put back: no checkpoint holds them.
    (folder / "base").rename(folder / "away")
    with pytest.raises(InputError, match=r"no such file or folder(.|\n)*laid over these weights, which no checkpoint"):
        TextToImage.from_checkpoint(tmp_path / "run")
    (folder / "away").rename(folder / "base")
    # Drawn with other weights than it was trained beside, it would draw something else without a word.
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    recorded["init_from"] = str(folder / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(InputError, match=r"config.init_from = .* holds other weights now"):
        TextToImage.from_checkpoint(tmp_path / "run")(CAPTIONS[0], **SETTINGS)


def test_the_command_line_draws_with_several(folder, exported, tmp_path, capsys):
    command = ["--checkpoint", str(folder / "base"), "--prompt", CAPTIONS[0], "--num-steps", "2"]
    command += ["--out", str(tmp_path / "out"), "--lora", f"{exported}:0.5", "--lora", str(folder / "peft")]
    assert sample.main(command) == 0
    assert "1 picture(s)" in capsys.readouterr().out
    assert sample.main(command) == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert sample.main([*command[:-1], f"{folder / 'peft'}:0.9"]) == 0
    assert "1 picture(s)" in capsys.readouterr().out
    for odd, said in ((folder / "data", "holds no adapter"), (folder / "run", "DST --to peft has its adapter")):
        assert sample.main([*command, "--lora", str(odd)]) == 2
        assert said in capsys.readouterr().err


def test_what_is_merged_draws_what_the_adapter_draws(folder, base, exported):
    """Also by way of a PixArt's own checkpoint, with less of it."""
    target = folder / "merged.pth"
    lora = f"{exported}:0.7"
    assert convert.main([str(folder / "base"), str(target), "--to", "pixart", "--lora", lora]) == 0
    model = folder / "merged_model"
    assert convert.main([str(target), str(model), "--family", "alpha", "--num-heads", "2"]) == 0
    merged = flat(restore(model))
    expected = base.parts.weights()
    assert np.abs(merged["t_block/kernel"] - flat(expected)["t_block/kernel"]).max() > 1e-3
    drawn = pictures(TextToImage.from_checkpoint(folder / "base", adapters=[lora]))
    parts = dataclasses.replace(base.parts, weights=lambda: restore(model))
    assert np.abs(pictures(TextToImage(parts)) - drawn).max() <= 2


def restore(model):
    return restore_params(model, abstract_params(read_stored_model(model).model, make_mesh()))


def test_only_an_adapter_becomes_an_adapter(folder, tmp_path, capsys):
    assert convert.main([str(folder / "base"), str(tmp_path / "out"), "--to", "peft"]) == 2
    assert "trains no LoRA" in capsys.readouterr().err
    assert convert.main([str(folder / "peft"), str(tmp_path / "out")]) == 2
    assert "name its base" in capsys.readouterr().err
    assert convert.main([str(folder / "peft"), str(tmp_path / "out"), "--to", "peft", "--alpha", "3"]) == 2
    assert "nothing heeds it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
