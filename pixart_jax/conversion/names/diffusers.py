"""The parameter names and the configuration of diffusers' `PixArtTransformer2DModel`. numpy only.

diffusers does not keep the position table, which the model computes, and knows neither key/value compression nor
qk-norm. Its class of today has no null caption, which its pipelines take from the text encoder; the class that the
released PixArt-α folders were written by had one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pixart_jax.conversion.names.pixart import PATCH_KERNEL, Segments, stacks
from pixart_jax.conversion.names.rules import COPY, Rule, convert, fused_linear, linear, revert
from pixart_jax.errors import InputError

if TYPE_CHECKING:
    from pixart_jax.models.pixart import PixArt

BLOCK_RULES: list[Rule] = [
    ("scale_shift_table", "scale_shift_table", COPY),
    *fused_linear([r"attn1\.to_q", r"attn1\.to_k", r"attn1\.to_v"], "attn/qkv"),
    *linear(r"attn1\.to_out\.0", "attn/proj"),
    *linear(r"attn2\.to_q", "cross_attn/q_linear"),
    *fused_linear([r"attn2\.to_k", r"attn2\.to_v"], "cross_attn/kv_linear"),
    *linear(r"attn2\.to_out\.0", "cross_attn/proj"),
    *linear(r"ff\.net\.0\.proj", "mlp/fc1"),
    *linear(r"ff\.net\.2", "mlp/fc2"),
]

# The only parameter of a caption-conditional PixArt that diffusers has no place for now, and its name when it had.
NULL_TEXT, NULL_NAME = "y_embedder/y_embedding", "caption_projection.y_embedding"
_EMBEDDER = r"adaln_single\.emb"

MODEL_RULES: list[Rule] = [
    (r"pos_embed\.proj\.weight", "x_embedder/kernel", PATCH_KERNEL),
    (r"pos_embed\.proj\.bias", "x_embedder/bias", COPY),
    *linear(rf"{_EMBEDDER}\.timestep_embedder\.linear_1", "t_embedder/mlp_0"),
    *linear(rf"{_EMBEDDER}\.timestep_embedder\.linear_2", "t_embedder/mlp_2"),
    *linear(rf"{_EMBEDDER}\.resolution_embedder\.linear_1", "csize_embedder/mlp_0"),
    *linear(rf"{_EMBEDDER}\.resolution_embedder\.linear_2", "csize_embedder/mlp_2"),
    *linear(rf"{_EMBEDDER}\.aspect_ratio_embedder\.linear_1", "ar_embedder/mlp_0"),
    *linear(rf"{_EMBEDDER}\.aspect_ratio_embedder\.linear_2", "ar_embedder/mlp_2"),
    *linear(r"adaln_single\.linear", "t_block"),
    *linear(r"caption_projection\.linear_(1|2)", r"y_embedder/y_proj_fc\1"),
    (NULL_NAME.replace(".", r"\."), NULL_TEXT, COPY),
    ("scale_shift_table", "final_layer/scale_shift_table", COPY),
    *linear("proj_out", "final_layer/linear"),
]

_BLOCK = r"transformer_blocks\.(\d+)\.(.+)"


def convert_diffusers(
    state_dict: Mapping[str, np.ndarray], segments: Segments, expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Our parameters from a state dict of diffusers, with NULL_TEXT if that has NULL_NAME.

    Args, returns and errors as `pixart.convert_pixart`; `expected` may name NULL_TEXT or not.
    """
    if NULL_NAME not in state_dict:
        expected = {path: shape for path, shape in expected.items() if path != NULL_TEXT}
    return convert(state_dict, MODEL_RULES, _BLOCK, BLOCK_RULES, stacks(segments), expected)


def revert_diffusers(
    paths: Iterable[str], read: Callable[[str], np.ndarray], segments: Segments, patch_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of diffusers' state dict from our parameters; NULL_TEXT is left out.

    Args, returns and errors as `pixart.revert_pixart`.
    """
    paths = [path for path in paths if path != NULL_TEXT]
    return revert(paths, read, MODEL_RULES, _BLOCK, BLOCK_RULES, stacks(segments), patch_size=patch_size)


# What diffusers' class can vary and PixArt does not. A missing key means this value.
FIXED_FIELDS: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
}

# The class's own defaults of the fields that PixArts differ in.
DEFAULT_FIELDS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
    "caption_channels": None,
    "cross_attention_dim": 1152,
    "interpolation_scale": None,
    "use_additional_conditions": None,
}


def diffusers_config(model: PixArt, position_base: int, position_scale: float) -> dict[str, object]:
    """The config.json of a model.

    Args:
      position_base, position_scale: as in `tokens.grid_positions`.

    Raises:
      InputError: a setting that diffusers' class does not have.
    """
    if model.mlp_ratio != 4:
        raise InputError(f"diffusers has no mlp_ratio but 4; this model's is {model.mlp_ratio}")
    own = {
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.hidden_size // model.num_heads,
        "num_layers": model.depth,
        "in_channels": model.latent_channels,
        "out_channels": model.latent_channels * (2 if model.learn_sigma else 1),
        "patch_size": model.patch_size,
        "sample_size": position_base * model.patch_size,
        "caption_channels": model.text_dim,
        "cross_attention_dim": model.hidden_size,
        "interpolation_scale": int(position_scale) if position_scale == int(position_scale) else position_scale,
        "use_additional_conditions": model.micro_condition,
    }
    others = {"dropout": 0.0, "norm_num_groups": 32, "num_embeds_ada_norm": 1000, "upcast_attention": False}
    return {"_class_name": "PixArtTransformer2DModel", **FIXED_FIELDS, **DEFAULT_FIELDS, **others, **own}
