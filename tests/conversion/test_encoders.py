"""A pipeline's T5, autoencoder and tokenizer go beside the transformer and come back equal to PyTorch's."""

import json
import os
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from conversion.test_diffusers import SIGMA, make_transformer
from diffusers import AutoencoderKL as ReferenceVae
from models.t5_cases import TINY, captions, reference_features, reference_model
from models.vae_cases import config, make_reference, random_images, reference_decode, reference_encode
from transformers import T5Config, T5EncoderModel

from pixart_jax.conversion.encoders import (
    open_encoder,
    restore_text_encoder,
    restore_vae,
    write_encoder,
    write_reference_encoder,
)
from pixart_jax.conversion.stored import StoredParams, read_stored_model
from pixart_jax.devices.sharding import make_mesh, tree_shardings
from pixart_jax.errors import InputError
from tools.convert import main

SMALL = config([4, 4, 8, 8], 1, norm_num_groups=2, sample_size=16)
PARTS = ["model.json", "params", "text_encoder", "vae"]
TOKENIZER = ["spiece.model", "tokenizer_config.json"]


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def make_pipeline(folder):
    """A tiny PixArt-Σ as diffusers and transformers save it, the T5 in several files."""
    make_transformer(**SIGMA).save_pretrained(folder / "transformer")
    make_reference(SMALL).save_pretrained(folder / "vae")
    reference_model(TINY).save_pretrained(folder / "text_encoder", max_shard_size="8KB")
    assert (folder / "text_encoder/model.safetensors.index.json").exists()
    (folder / "tokenizer").mkdir()
    (folder / "vocabulary").write_bytes(b"\x00words")
    # As in Hugging Face's cache.
    (folder / "tokenizer/spiece.model").symlink_to(folder / "vocabulary")
    (folder / "tokenizer/tokenizer_config.json").write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    convert(pipeline, path)
    return path


def check_t5(directory, reference, mesh):
    encoder, params = restore_text_encoder(directory, mesh)
    inputs = captions(TINY.vocab_size, 9, 9, 4, 1)
    expected = reference_features(reference, *inputs)
    features = jax.jit(encoder.apply)({"params": params}, *inputs)
    assert np.abs(features - expected).max() < 2e-5 * np.std(expected)
    return params


def check_vae(directory, reference, mesh):
    vae, params = restore_vae(directory, mesh)
    images = random_images(2, 16, 24, 3)
    mean, std = vae.apply({"params": params}, images, method="encode")
    for found, expected in zip((mean, std), reference_encode(reference, images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    expected = reference_decode(reference, np.asarray(mean))
    found = vae.apply({"params": params}, mean, method="decode")
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    return vae, params


def test_a_pipeline_becomes_one_directory(model):
    assert sorted(os.listdir(model)) == PARTS
    assert sorted(os.listdir(model / "vae")) == ["config.json", "params"]
    assert sorted(os.listdir(model / "text_encoder")) == ["config.json", "params", "tokenizer"]
    stored = read_stored_model(model)
    assert stored.latent_scale == SMALL.get("scaling_factor", 0.18215)
    assert len(StoredParams(model / "params", stored.model)) > 0


def test_the_encoders_equal_pytorchs(pipeline, model):
    mesh = make_mesh()
    params = check_t5(model / "text_encoder", T5EncoderModel.from_pretrained(pipeline / "text_encoder").eval(), mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    vae, vae_params = check_vae(model / "vae", ReferenceVae.from_pretrained(pipeline / "vae").eval(), mesh)
    assert vae.dtype == jnp.float32 and restore_vae(model / "vae", mesh, dtype=jnp.bfloat16)[0].dtype == jnp.bfloat16
    for tree in (params, vae_params):
        jax.tree.map(
            lambda leaf, sharding: leaf.sharding == sharding or pytest.fail(), tree, tree_shardings(tree, mesh)
        )


def test_bfloat16_kernels_for_bfloat16_products_and_the_same_features(model):
    """They would be rounded at every use; what is not multiplied by stays as it is stored."""
    mesh, inputs = make_mesh(), captions(TINY.vocab_size, 9, 9, 4, 1)
    encoder, half = restore_text_encoder(model / "text_encoder", mesh, dtype=jnp.bfloat16)
    leaves = jax.tree_util.tree_leaves_with_path(half)
    dtypes = {(path[-1].key == "kernel", str(leaf.dtype)) for path, leaf in leaves}
    assert dtypes == {(True, "bfloat16"), (False, "float32")}
    _, full = restore_text_encoder(model / "text_encoder", mesh)
    found, expected = (jax.jit(encoder.apply)({"params": params}, *inputs) for params in (half, full))
    np.testing.assert_array_equal(found, expected)


def test_the_tokenizers_files_are_copied(model):
    tokenizer = model / "text_encoder/tokenizer"
    assert sorted(os.listdir(tokenizer)) == TOKENIZER
    assert not (tokenizer / "spiece.model").is_symlink()
    assert (tokenizer / "spiece.model").read_bytes() == b"\x00words"


@pytest.mark.parametrize("where", ["t5", "tokenizer"])
def test_a_tokenizer_goes_with_its_text_encoder(where, tmp_path, capsys):
    """From among the encoder's own files, as in PixArt-α's t5-v1_1-xxl, or from beside them; no other file goes."""
    reference_model(TINY).save_pretrained(tmp_path / "t5")
    convert(tmp_path / "t5", tmp_path / "without")
    assert ", no tokenizer in or beside it\n" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "without")) == ["config.json", "params"]
    (tmp_path / where).mkdir(exist_ok=True)
    for name in (*TOKENIZER, "README.md"):
        (tmp_path / where / name).write_text(name)
    convert(tmp_path / "t5", tmp_path / "ours")
    assert f"tokenizer from {tmp_path / where}\n" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "ours/tokenizer")) == TOKENIZER
    # A text encoder by itself goes back with its tokenizer among its files.
    convert(tmp_path / "ours", tmp_path / "again", "--to=diffusers")
    assert sorted(os.listdir(tmp_path / "again")) == sorted(["config.json", "model.safetensors", *TOKENIZER])


def test_the_transformer_by_itself(pipeline, tmp_path):
    convert(pipeline, tmp_path / "model", "--no-encoders")
    assert sorted(os.listdir(tmp_path / "model")) == ["model.json", "params"]
    convert(pipeline, tmp_path / "transformer", "--to=diffusers", "--no-encoders")
    assert sorted(os.listdir(tmp_path / "transformer")) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_what_a_pipeline_lacks_is_said(tmp_path, capsys):
    make_transformer(**SIGMA).save_pretrained(tmp_path / "x/transformer")
    (tmp_path / "x/model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    convert(tmp_path / "x", tmp_path / "model")
    assert "x: no text_encoder, no tokenizer, no vae in it\n" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "model")) == ["model.json", "params"]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_autoencoder_by_itself(kind, tmp_path):
    reference = make_reference(SMALL, seed=3)
    reference.save_pretrained(tmp_path / "vae", safe_serialization=kind == "safetensors")
    convert(tmp_path / "vae", tmp_path / "ours")
    check_vae(tmp_path / "ours", reference, make_mesh())


@pytest.mark.parametrize("dtype,stored", [("float32",) * 2, ("bfloat16",) * 2, ("float16", "float32")])
def test_a_text_encoder_by_itself(dtype, stored, tmp_path):
    """Keeps the dtype that it has; float16, which overflows in T5, becomes float32. Values stay as they are."""
    reference = reference_model(TINY).to(getattr(torch, dtype))
    reference.save_pretrained(tmp_path / "t5")
    convert(tmp_path / "t5", tmp_path / "ours")
    params = check_t5(tmp_path / "ours", reference.float(), make_mesh())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(stored)}


def test_config_json_names_no_machine(tmp_path):
    reference_model(TINY).save_pretrained(tmp_path / "t5")
    path = tmp_path / "t5/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "/home/somebody/t5"}))
    convert(tmp_path / "t5", tmp_path / "ours")
    assert "somebody" not in (tmp_path / "ours/config.json").read_text()


def test_no_model_is_in_memory_twice(tmp_path):
    """By what numpy allocates."""
    config = T5Config(**(TINY.to_dict() | {"d_model": 512, "d_ff": 1024, "num_layers": 6, "vocab_size": 2000}))
    reference_model(config).to(torch.bfloat16).save_pretrained(tmp_path / "t5", max_shard_size="8MB")
    size = sum(path.stat().st_size for path in (tmp_path / "t5").glob("*.safetensors"))
    tiny = tmp_path / "tiny"
    reference_model(TINY).save_pretrained(tiny)
    write_encoder(tmp_path / "first", open_encoder(tiny, "text_encoder"))  # Whatever jax allocates once.
    tracemalloc.start()
    write_encoder(tmp_path / "target", open_encoder(tmp_path / "t5", "text_encoder"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20e6 and peak < 1.5 * size


def without(part, name):
    def change(folder):
        path = folder / part
        for file in path.glob("*.safetensors"):
            arrays = safetensors.torch.load_file(file)
            if arrays.pop(name, None) is not None:
                safetensors.torch.save_file(arrays, file)

    return change


def configured(part, **changes):
    def change(folder):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def vae_of(channels, **changes):
    return lambda folder: make_reference(config(channels, 1, norm_num_groups=4) | changes).save_pretrained(
        folder / "vae"
    )


def one_file_less(folder):
    min((folder / "text_encoder").glob("model-*.safetensors")).unlink()


def no_weights(folder):
    for path in (folder / "vae").glob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize(
    "change,message",
    [
        (
            without("text_encoder", "encoder.block.1.layer.0.SelfAttention.q.weight"),
            "text_encoder: the checkpoint does not fit the model:\n  incomplete: block/SelfAttention/q/kernel",
        ),
        (
            without("vae", "quant_conv.bias"),
            "vae: the checkpoint does not fit the model:\n  not filled: quant_conv/bias",
        ),
        (configured("text_encoder", feed_forward_proj="relu"), "text_encoder/config.json: not the config of a T5 v1.1"),
        (configured("text_encoder", d_ff=29), "wrong shape: block/DenseReluDense/wi_0/kernel"),
        (
            vae_of([8, 8]),
            "vae/config.json: block_out_channels has 2 entries, so that the autoencoder shrinks pictures by 2",
        ),
        (vae_of([8]), "pictures by 1; every PixArt's shrinks them by 8"),
        (vae_of([8] * 5), "pictures by 16"),
        (vae_of([8] * 4, out_channels=4), "of 3 channels go in and of 4 come out"),
        (configured("vae", shift_factor=1.0), "vae: autoencoder config: shift_factor=1.0"),
        (one_file_less, "model.safetensors.index.json names files that are not there: model-00001"),
        (no_weights, "vae has no weights; one of these should be there: diffusion_pytorch_model.safetensors"),
    ],
)
def test_what_does_not_fit_is_one_error(change, message, tmp_path, capsys):
    make_pipeline(tmp_path / "x")
    change(tmp_path / "x")
    capsys.readouterr()
    assert main([str(tmp_path / "x"), str(tmp_path / "new/target")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1 and message in error, error
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "arguments", [["--to=pixart"], ["--reparameterize=t500"], ["--family=sigma"], ["--seed=0"], ["--encoders=."]]
)
def test_an_encoder_is_no_transformer(arguments, pipeline, tmp_path, capsys):
    assert main([str(pipeline / "vae"), str(tmp_path / "target"), *arguments]) == 2
    assert "vae is no transformer" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_what_cannot_be_restored(model, tmp_path):
    mesh = make_mesh()
    with pytest.raises(InputError, match=r"config\.json is damaged or cannot be read"):
        restore_vae(tmp_path, mesh)
    with pytest.raises(InputError, match=r"not the config of a T5 v1\.1"):
        restore_text_encoder(model / "vae", mesh)
    (tmp_path / "config.json").write_text((model / "text_encoder/config.json").read_text())
    with pytest.raises(InputError, match="params is no Orbax checkpoint"):
        restore_text_encoder(tmp_path, mesh)
    (tmp_path / "params").symlink_to(model / "vae/params")
    with pytest.raises(InputError, match=r"holds another model than its model\.json or config\.json"):
        restore_text_encoder(tmp_path, mesh)


@pytest.mark.parametrize("source", ["ours", "transformers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_encoder_is_in_memory_twice(source, dtype, tmp_path):
    """By what numpy allocates."""
    config = T5Config(**(TINY.to_dict() | {"d_model": 512, "d_ff": 1024, "num_layers": 6, "vocab_size": 2000}))
    reference_model(config).to(dtype).save_pretrained(tmp_path / "t5")
    size = (tmp_path / "t5/model.safetensors").stat().st_size
    make_reference(SMALL).save_pretrained(tmp_path / "vae")
    write_reference_encoder(tmp_path / "first", open_encoder(tmp_path / "vae", "vae"))  # Whatever is allocated once.
    if source == "ours":
        write_encoder(tmp_path / "ours", open_encoder(tmp_path / "t5", "text_encoder"))
    encoder = open_encoder(tmp_path / ("ours" if source == "ours" else "t5"), "text_encoder")
    tracemalloc.start()
    write_reference_encoder(tmp_path / "target", encoder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20e6 and peak < 1.5 * size
