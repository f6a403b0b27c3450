"""Names of the files of DINOv2 and DINOv3, transformers' and facebook's, to ours: strict on both sides. numpy only."""

from __future__ import annotations

from pixart_jax.conversion.names.rules import COPY, Rule, fused_linear, linear, norm
from pixart_jax.conversion.names.vae import CONV_KERNEL

# What only training asks for.
MASK_TOKEN = r"(embeddings\.)?mask_token"


def _first(array):
    return array[0]


def _conv(source: str) -> list[Rule]:
    return [(rf"{source}\.weight", "patch_embed/kernel", CONV_KERNEL), (rf"{source}\.bias", "patch_embed/bias", COPY)]


def _transformers(layer: str) -> list[Rule]:
    """What DINOv2 and DINOv3 have in common."""
    return [
        (r"embeddings\.cls_token", "cls_token", _first),
        (r"embeddings\.register_tokens", "register_tokens", _first),
        *norm(rf"{layer}\.(norm[12])", r"blocks_\1/\2"),
        (rf"{layer}\.layer_scale([12])\.lambda1", r"blocks_\1/ls\2", COPY),
    ]


_V2, _V3 = r"encoder\.layer\.(\d+)", r"layer\.(\d+)"
DINOV2: list[Rule] = [
    *_transformers(_V2),
    *_conv(r"embeddings\.patch_embeddings\.projection"),
    (r"embeddings\.position_embeddings", "pos_embed", _first),
    *fused_linear([rf"{_V2}\.attention\.attention\.{name}" for name in ("query", "key", "value")], r"blocks_\1/qkv"),
    *linear(rf"{_V2}\.attention\.output\.dense", r"blocks_\1/proj"),
    *linear(rf"{_V2}\.mlp\.(fc[12])", r"blocks_\1/\2"),
    *linear(rf"{_V2}\.mlp\.weights_in", r"blocks_\1/fc1"),
    *linear(rf"{_V2}\.mlp\.weights_out", r"blocks_\1/fc2"),
    *norm("layernorm", "norm"),
]
DINOV3: list[Rule] = [
    *_transformers(_V3),
    *_conv(r"embeddings\.patch_embeddings"),
    *fused_linear([rf"{_V3}\.attention\.{name}_proj" for name in "qkv"], r"blocks_\1/qkv"),
    *linear(rf"{_V3}\.attention\.o_proj", r"blocks_\1/proj"),
    *linear(rf"{_V3}\.mlp\.down_proj", r"blocks_\1/fc2"),
    *norm("norm", "norm"),
]
# Of the MLP, a gated one or not: the same name is all of ours or a part.
DINOV3_PLAIN: list[Rule] = [*DINOV3, *linear(rf"{_V3}\.mlp\.up_proj", r"blocks_\1/fc1")]
DINOV3_GATED: list[Rule] = [
    *DINOV3,
    *fused_linear([rf"{_V3}\.mlp\.{name}_proj" for name in ("gate", "up")], r"blocks_\1/fc1"),
]

_BLOCK = r"blocks\.(\d+)"
FACEBOOK: list[Rule] = [
    (r"cls_token", "cls_token", _first),
    (r"(?:register_tokens|reg_token)", "register_tokens", _first),
    (r"pos_embed", "pos_embed", _first),
    *_conv(r"patch_embed\.proj"),
    *norm(rf"{_BLOCK}\.(norm[12])", r"blocks_\1/\2"),
    (rf"{_BLOCK}\.ls([12])\.gamma", r"blocks_\1/ls\2", COPY),
    *linear(rf"{_BLOCK}\.attn\.(qkv|proj)", r"blocks_\1/\2"),
    *linear(rf"{_BLOCK}\.mlp\.(fc[12])", r"blocks_\1/\2"),
    *linear(rf"{_BLOCK}\.mlp\.w12", r"blocks_\1/fc1"),
    *linear(rf"{_BLOCK}\.mlp\.w3", r"blocks_\1/fc2"),
    *norm("norm", "norm"),
]
