"""DINOv2, a whole ViT-B/14 of it, and DINOv3 against transformers: random weights, odd sizes."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from pixart_jax.conversion.dino import load_dino
from pixart_jax.errors import InputError
from pixart_jax.models.dino import bicubic_weights

BASE = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 2}
TINY = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
MODELS = {
    # Its table of positions is 37 by 37, as the published ones' are.
    "dinov2": ("Dinov2", BASE | {"num_hidden_layers": 12, "image_size": 518, "patch_size": 14}, (70, 98)),
    "registers": ("Dinov2WithRegisters", BASE | {"image_size": 518, "patch_size": 14}, (98, 42)),
    "dinov2, its own size, gated": ("Dinov2", TINY | {"use_swiglu_ffn": True}, (56, 56)),
    "dinov3": ("DINOv3ViT", BASE | {"intermediate_size": 3072, "num_register_tokens": 4}, (48, 80)),
    "dinov3, gated": (
        "DINOv3ViT",
        TINY | {"patch_size": 16, "intermediate_size": 80, "use_gated_mlp": True, "hidden_act": "silu"},
        (32, 48),
    ),
}


def make(kind, fields, folder):
    """A model with noise on all of it, saved as it is published."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_as_transformers_computes_it(name, tmp_path):
    kind, fields, size = MODELS[name]
    model = make(kind, fields, tmp_path)
    network, params = load_dino(tmp_path)
    pictures = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    found = jax.jit(network.apply)({"params": params}, pictures)
    patch = network.sizes.patch_size
    assert found.patches.shape == (2, size[0] // patch, size[1] // patch, network.sizes.hidden_size)
    np.testing.assert_allclose(found.whole, wanted[:, 0], rtol=0, atol=1e-4)
    patches = found.patches.reshape(2, -1, network.sizes.hidden_size)
    np.testing.assert_allclose(patches, wanted[:, 1 + network.sizes.registers :], rtol=0, atol=1e-4)


def test_facebooks_names_are_the_same_network(tmp_path):
    make("Dinov2WithRegisters", TINY | {"hidden_size": 128}, tmp_path / "folder")
    network, params = load_dino(tmp_path / "folder")
    arrays, theirs = load_file(tmp_path / "folder" / "model.safetensors"), {}
    for name, array in arrays.items():
        for old, new in (
            *(("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.", "")),
            *(("position_embeddings", "pos_embed"), ("encoder.layer", "blocks"), ("layernorm", "norm")),
            *(("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma")),
            ("attention.output.dense", "attn.proj"),
        ):
            name = name.replace(old, new)
        theirs[name] = array
    for block in range(2):
        for kind in ("weight", "bias"):
            parts = [
                theirs.pop(f"blocks.{block}.attention.attention.{part}.{kind}") for part in ("query", "key", "value")
            ]
            theirs[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate(parts)
    save_file(theirs, tmp_path / "dinov2.safetensors")
    other, again = load_dino(tmp_path / "dinov2.safetensors")
    assert other == network
    jax.tree.map(np.testing.assert_array_equal, again, params)
    theirs["blocks.1.mlp.fc3.weight"] = theirs.pop("blocks.1.mlp.fc2.weight")
    save_file(theirs, tmp_path / "dinov2.safetensors")
    with pytest.raises(InputError, match=r"dinov2.safetensors: .*(?s:.)*blocks.1.mlp.fc3.weight"):
        load_dino(tmp_path / "dinov2.safetensors")
    del theirs["cls_token"]
    save_file(theirs, tmp_path / "dinov2.safetensors")
    with pytest.raises(InputError, match="has no cls_token, so it is no DINOv2 of facebook's"):
        load_dino(tmp_path / "dinov2.safetensors")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("old,new", [(37, 5), (37, 16), (4, 9), (5, 6)])
def test_a_line_is_resized_as_pytorch_resizes_it(old, new, antialias):
    line = np.random.default_rng(0).standard_normal((1, 1, old, old), np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(line), size=(new, old), mode="bicubic", align_corners=False, antialias=antialias
    )
    np.testing.assert_allclose(bicubic_weights(old, new, antialias) @ line[0, 0], wanted[0, 0], rtol=0, atol=1e-5)
