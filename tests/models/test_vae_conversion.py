"""The autoencoder's parameters and configuration, from diffusers' to ours."""

import jax.numpy as jnp
import numpy as np
import pytest
from models.vae_cases import SD, SDXL, SMALL, config, expected_shapes, make_reference, numpy_state

from pixart_jax.conversion.names.vae import convert_vae
from pixart_jax.errors import InputError
from pixart_jax.models.vae import AutoencoderKL


@pytest.fixture(scope="module")
def small():
    """(state dict, expected shapes) of the small model."""
    return numpy_state(make_reference(SMALL)), expected_shapes(AutoencoderKL.from_config(SMALL))


def test_layouts(small):
    """Convolution kernels are [rows, columns, in, out], the attention's [in, out]."""
    state_dict, expected = small
    params = convert_vae(state_dict, expected)
    kernel = params["encoder/down_blocks_0/downsamplers_0/kernel"]
    assert kernel[0, 2, 3, 5] == state_dict["encoder.down_blocks.0.downsamplers.0.conv.weight"][5, 3, 0, 2]
    projection = params["decoder/mid_block/attentions_0/to_k/kernel"]
    assert projection[3, 5] == state_dict["decoder.mid_block.attentions.0.to_k.weight"][5, 3]
    assert {path: array.shape for path, array in params.items()} == expected
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("trailing", [(), (1,), (1, 1)], ids=["linear", "1-d convolution", "convolution"])
def test_old_attention_names(small, trailing):
    state_dict, expected = small
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, array in state_dict.items():
        for new_part, old_part in old_names.items():
            if f".{new_part}." in name:
                name = name.replace(f".{new_part}.", f".{old_part}.")
                array = array.reshape(array.shape + trailing) if array.ndim == 2 else array
        old[name] = array
    assert len(old.keys() - state_dict.keys()) == 16
    ours, theirs = convert_vae(old, expected), convert_vae(state_dict, expected)
    assert ours.keys() == theirs.keys()
    for path in theirs:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


ATTENTION = "encoder.mid_block.attentions.0"


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s.pop("quant_conv.bias"), "not filled: quant_conv/bias (8,)"),
        (lambda s: s.update({"mystery.weight": np.zeros(3)}), "no parameter takes: mystery.weight"),
        (
            lambda s: s.update({"encoder.down_blocks.0.resnets.1.conv1.bias": np.zeros(8)}),
            "no parameter takes: encoder/down_blocks_0/resnets_1/conv1/bias (8,)",
        ),
        (
            lambda s: s.update({f"{ATTENTION}.query.bias": np.zeros(16)}),
            f"{ATTENTION}.query.bias, because {ATTENTION}.to_q.bias has filled it",
        ),
        (
            lambda s: s.update({f"{ATTENTION}.to_q.weight": np.zeros((16, 16, 3, 3))}),
            "wrong shape: encoder/mid_block/attentions_0/to_q/kernel is (144, 16)",
        ),
        (
            lambda s: s.update({"quant_conv.weight": np.zeros((8, 8))}),
            "wrong shape: quant_conv/kernel is (8, 8), the model has (1, 1, 8, 8)",
        ),
    ],
)
def test_everything_that_does_not_fit_is_listed(small, change, message):
    state_dict, expected = small
    state_dict = dict(state_dict)
    change(state_dict)
    with pytest.raises(InputError) as error:
        convert_vae(state_dict, expected)
    assert message in str(error.value)


# Configuration.


def test_from_config_reads_every_field():
    fields = config([8, 12], 3, norm_num_groups=4, latent_channels=5, in_channels=1, out_channels=2) | {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "scaling_factor": 0.5,
        "shift_factor": None,
    }
    model = AutoencoderKL.from_config(fields, jnp.bfloat16)
    read = {name: getattr(model, name) for name in AutoencoderKL.__dataclass_fields__ if name in fields}
    assert read == {name: fields[name] for name in read} | {"block_out_channels": (8, 12)} and len(read) == 10
    assert model.dtype == jnp.bfloat16 and model.downsample == 2


def test_scaling_factors_of_the_releases():
    assert AutoencoderKL.from_config(SD).scaling_factor == 0.18215
    assert AutoencoderKL.from_config(SDXL).scaling_factor == 0.13025
    assert AutoencoderKL.from_config(SDXL).downsample == 8


@pytest.mark.parametrize(
    "name,value",
    [
        ("_class_name", "AsymmetricAutoencoderKL"),
        ("act_fn", "gelu"),
        ("block_out_channels", []),
        ("block_out_channels", [8, 18]),
        ("block_out_channels", 8),
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        ("down_block_types", ["DownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D"] * 3),
        ("in_channels", 0),
        ("latent_channels", 4.0),
        ("layers_per_block", True),
        ("norm_num_groups", -4),
        ("use_quant_conv", "yes"),
        ("shift_factor", 0.1159),
        ("latents_mean", [0.0, 0.1]),
        ("latents_std", [0.0]),
        ("scaling_factor", 0.0),
        ("scaling_factor", float("nan")),
        ("scaling_factor", None),
        ("temporal_compression", 4),
    ],
)
def test_from_config_names_what_is_wrong(name, value):
    with pytest.raises(InputError, match=f"autoencoder config: {name}="):
        AutoencoderKL.from_config(SMALL | {name: value})


@pytest.mark.parametrize(
    "name,value",
    [("shift_factor", 0.0), ("shift_factor", 0), ("latents_mean", [0.0] * 4), ("latents_std", [1.0] * 4)],
)
def test_what_changes_nothing_is_none(name, value):
    assert AutoencoderKL.from_config(SMALL | {name: value}) == AutoencoderKL.from_config(SMALL | {name: None})


@pytest.mark.parametrize("name", ["block_out_channels", "layers_per_block", "latent_channels"])
def test_from_config_names_what_is_missing(name):
    with pytest.raises(InputError, match=f"{name}=None is missing"):
        AutoencoderKL.from_config({key: value for key, value in SMALL.items() if key != name})


def test_float16_only_for_weights_that_stand_it():
    assert AutoencoderKL.from_config(SMALL | {"force_upcast": False}, jnp.float16).dtype == jnp.float16
    for fields in (SMALL, SDXL):
        with pytest.raises(InputError, match="force_upcast"):
            AutoencoderKL.from_config(fields, jnp.float16)


# Tiles.
