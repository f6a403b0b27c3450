"""FLOPs of a whole training step and of drawing, counted before compilation, and what recomputation and the shapes of
the matrix units add to them."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np

from pixart_jax.config import ConfigDict, architecture, build_adapter, build_model, build_route, position_base
from pixart_jax.models.layers import keys_per_block
from pixart_jax.training.flops import forward_flops
from pixart_jax.training.program import Program

from .bench.train import synthetic_batch, training_batch


def train_flops(config: ConfigDict) -> float:
    """Of a step over all chips: `pixart_jax.training.flops.gradient_flops`, counted on one picture."""
    one = copy.deepcopy(config)
    one.train.accumulation_steps = 1
    flops = Program(one, None).flops(training_batch(one, batch_size=1))
    return flops * config.data.batch_size


def recomputed_flops(config: ConfigDict, flops: float) -> float:
    """Of a step over all chips: what the backward pass computes again, see `pixart_jax.models.remat`.

    Args:
      config: with a settled policy.
      flops: of the step without that, two thirds of them in the backward pass; but for frozen weights, which have no
        gradients of their own, half.
    """
    forward = flops / (3 if config.adapter.kind == "full" else 2)
    if config.model.remat in ("none", "dots"):
        return 0
    if config.model.remat == "full":
        return forward
    return forward - attention_flops(config)


def attention_flops(config: ConfigDict) -> float:
    """Of a forward pass over all chips: logits and weighted values, a multiply-add each."""
    model = build_model(config)
    text = 0 if model.num_classes else model.max_text_tokens
    ratios = model.kv_compress or (1,) * model.depth
    products = sum(
        tokens * (tokens // ratio**2 * keys_per_block(model.kv_sampling, ratio) + text)
        for tokens, ratio in zip(block_tokens(config), ratios, strict=True)
    )
    return 4 * products * model.hidden_size * config.data.batch_size


def block_tokens(config: ConfigDict) -> list[int]:
    """Of a picture without padding, how many tokens each block sees in training."""
    tokens, depth, route = position_base(config) ** 2, architecture(config)["depth"], build_route(config)
    if route is None:
        return [tokens] * depth
    unit = config.model.kv_compress_ratio**2
    kept = route.kept(tokens // unit) * unit
    return [kept if route.first <= block <= route.last else tokens for block in range(depth)]


def unfilled_flops(config: ConfigDict, rows: int) -> float:
    """What a forward pass over all chips would compute more in its products with weights if it used all of the matrix
    units that they take up: widths that are no multiple of their rows leave some idle."""
    model = build_model(config)
    width, hidden = model.hidden_size, int(model.hidden_size * model.mlp_ratio)
    products = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    products += [] if model.num_classes else [(width, width)] * 2
    more = sum(math.ceil(a / rows) * rows * math.ceil(b / rows) * rows - a * b for a, b in products)
    return 2 * more * sum(block_tokens(config)) * config.data.batch_size


def sampling_flops(config: ConfigDict) -> float:
    """Of drawing one batch over all chips: two forward passes a step, with and without the caption."""
    conditions = synthetic_batch(config, batch_size=1)
    tokens = conditions.pop("tokens")
    adapter_of = functools.partial(build_adapter, config) if config.adapter.kind == "controlnet" else None
    forward = forward_flops(build_model(config), tokens, np.zeros(1, np.float32), conditions, adapter_of)
    return 2 * config.sample.num_steps * forward * config.data.batch_size
