"""Linear layers in eight bits: how near they are, what they hold, and what goes together with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_pixart import TINY, make_inputs, random_params, run

from pixart_jax.adapters.adapter import Parameters, bind
from pixart_jax.adapters.lora import Lora, LoraSpec
from pixart_jax.generation.denoiser import _below_adapters
from pixart_jax.models.params import apply_of
from pixart_jax.shortcuts.eight_bits import MODES, in_eight_bits, quantize, quantize_tree

SIGMA = TINY.clone(kv_compress=(1, 1, 2, 2), qk_norm=True)


def test_a_kernel_is_rounded_to_127_steps_of_its_columns_largest():
    kernel = np.random.default_rng(0).normal(size=(2, 40, 7)).astype(np.float32)
    kernel[0, :, 3] = 0
    small, scale = quantize(jnp.asarray(kernel))
    assert small.dtype == jnp.int8 and scale.shape == (2, 7)
    assert np.abs(small * scale[:, None] - kernel).max() <= scale.max() / 2 + 1e-6
    assert np.abs(small[1]).max(axis=0).tolist() == [127] * 7


@pytest.mark.parametrize("mode", MODES)
def test_predictions_stay_near(mode):
    params, (arguments, conditions) = random_params(SIGMA), make_inputs(SIGMA)
    small = quantize_tree(params)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(small["blocks_2"]["attn"])}
    assert kinds == {"int8", "float32"} and small["x_embedder"]["kernel"].dtype == jnp.float32
    plain = np.asarray(run(SIGMA, params).eps)
    got = np.asarray(jax.jit(in_eight_bits(apply_of(SIGMA), mode))(small, *arguments, **conditions).eps)
    assert 1e-5 < np.abs(got - plain).std() / plain.std() < 0.03


def test_a_lora_adds_to_it():
    params, (arguments, conditions) = random_params(SIGMA), make_inputs(SIGMA)
    key, over = jax.random.key(0), lambda model: bind(Lora(model))
    trained, frozen = Lora(apply_of(SIGMA), LoraSpec(rank=2)).split(params, key)
    trained = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), trained)
    plain = jax.jit(over(apply_of(SIGMA)))(Parameters(trained, frozen), *arguments, **conditions).eps
    small = _below_adapters(Parameters(trained, frozen))
    got = jax.jit(over(in_eight_bits(apply_of(SIGMA), "weights")))(small, *arguments, **conditions).eps
    base = run(SIGMA, params).eps
    assert np.abs(got - plain).std() < 0.05 * np.abs(plain - base).std()
