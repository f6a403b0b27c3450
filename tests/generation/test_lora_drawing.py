"""LoRA trains in the real loop, and what it has trained draws, resumes, exports and merges."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from seam_parts import flat
from tiny_run import read_metrics, tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.conversion.formats.lora import FewSteps
from pixart_jax.conversion.runs import load_run
from pixart_jax.conversion.stored import read_stored_model, restore_params
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.errors import InputError
from pixart_jax.generation.denoiser import eight_bit_parts
from pixart_jax.generation.lora import LoraFile
from pixart_jax.generation.picture_lists import read_text
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Manner, Request
from pixart_jax.models.params import abstract_params
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.warm_start.trained_adapter import load_trained_adapter
from tools import convert, sample
from tools.evaluate import command as evaluate

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


def test_dora_takes_no_kernels_in_int8(folder, base, exported):
    with pytest.raises(InputError, match="int8: a DoRA adapter scales the rows of the model's own kernels"):
        TextToImage.from_checkpoint(folder / "run", int8="weights")
    with pytest.raises(InputError, match="int8: a DoRA adapter"):
        TextToImage.from_checkpoint(folder / "base", int8="weights", adapters=[str(exported)])
    with pytest.raises(InputError, match="int8: a DoRA adapter"):
        eight_bit_parts(base.adapted([str(exported)]).parts, "weights")


def test_scales_change_without_compiling(folder, base, exported, compilations):
    style = LoraFile.read(exported)
    pipeline = TextToImage.from_checkpoint(folder / "base", adapters=[style, f"{folder / 'peft'}:0.5"])
    strong = pictures(pipeline)
    style.scale = 0.25
    weak = pictures(pipeline)
    assert np.abs(strong - weak).max() > 0
    assert compilations.count("jit(sample_step)") == 1
    few = LoraFile(dataclasses.replace(style.weights, few_steps=FewSteps("lcm", 2)))
    distilled = TextToImage.from_checkpoint(folder / "base", adapters=[few])
    assert distilled.manner(Request("a")) == Manner("lcm", 2, "none", pipeline.parts.guidance_scale)
    assert distilled.manner(Request("a", num_steps=3, guidance_scale=2.0)) == Manner("lcm", 3, "cfg", 2.0)
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


def test_a_converted_run_draws_by_its_own_encoders(folder, base, tmp_path):
    """Its words and its autoencoder, which are no T5 and none of diffusers."""
    assert convert.main([str(folder / "base"), str(tmp_path / "model")]) == 0
    found = TextToImage.from_checkpoint(tmp_path / "model")
    np.testing.assert_array_equal(
        found.parts.encode_text(CAPTIONS[:1], None)[0], base.parts.encode_text(CAPTIONS[:1], None)[0]
    )
    latents = np.zeros((1, 4, 4, found.parts.model.latent_channels), np.float32)
    np.testing.assert_array_equal(*(next(one.parts.decode_latents(latents)) for one in (found, base)))
    assert convert.main([str(folder / "base"), str(tmp_path / "alone"), "--no-encoders"]) == 0
    with pytest.raises(InputError, match="text_encoder does not exist"):
        TextToImage.from_checkpoint(tmp_path / "alone")


def test_one_that_was_trained_is_trained_further(folder, exported):
    config = adapted_config(folder)
    found = Checkpoints(folder / "run", read_only=True).recorded_checksums(4, "params").keys()
    config.adapter.init_from = str(folder / "run")
    wanted = load_trained_adapter(config)
    assert wanted.keys() == found and np.abs(wanted["blocks_0/attn/qkv/q/lora_b"]).max() > 0
    for path in (folder / "peft", exported):
        config.adapter.init_from = str(path)
        again = load_trained_adapter(config)
        assert again.keys() == found
        for name, array in wanted.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)
    for changed, said in (
        ({"rank": 4}, "attn1.to_q: rank 3, scale 2, DoRA there, rank 4, scale 1.5, DoRA by the config"),
        ({"alpha": 3.0}, "scale 1, DoRA by the config"),
        ({"dora": False}, "rank 3, scale 2 by the config"),
        ({"targets": "to_q"}, "DoRA there, no adapter by the config"),
    ):
        config = adapted_config(folder)
        config.adapter.init_from = str(folder / "peft")
        config.adapter.lora.update(changed)
        with pytest.raises(InputError, match=r"config.adapter.init_from = (.|\n)*" + said):
            load_trained_adapter(config)


def test_an_evaluation_draws_with_it(folder, exported, tmp_path, capsys):
    command = ["--checkpoint", str(folder / "base"), "--prompts-from", str(folder / "data"), "--metrics", "retrieval"]
    command += ["--num-pictures", "2", "--num-steps", "3", "--guidance-scale", "2", "--out", str(tmp_path)]
    assert evaluate.main([*command, "--lora", f"{exported}:0.5"]) == 0
    drawn = tmp_path / "pictures" / "guidance-2"
    assert json.loads((drawn / "recipe.json").read_text())["lora"].startswith("style.safetensors:0.5 (")
    pipeline = TextToImage.from_checkpoint(folder / "base", adapters=[LoraFile.read(exported, scale=0.5)])
    for file, caption in json.loads((drawn / "captions.json").read_text()).items():
        seed = int(read_text(drawn / file)["seed"])
        expected = pipeline(caption, **SETTINGS | {"seed": seed})[0]
        assert np.abs(np.asarray(Image.open(drawn / file)).astype(int) - expected).max() <= 1
    capsys.readouterr()
    assert evaluate.main([*command, "--lora", str(exported)]) == 2
    assert "begun with other" in capsys.readouterr().err


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
