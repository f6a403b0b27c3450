"""Keys and values of the text, computed once: the same predictions, for every kind of model and under a LoRA."""

import jax
import numpy as np
import pytest
from models.test_pixart import TINY, assert_same, make_inputs, random_params, run

from pixart_jax.adapters.adapter import Parameters, bind
from pixart_jax.adapters.lora import Lora, LoraSpec
from pixart_jax.models.params import apply_of
from pixart_jax.shortcuts.text_once import MEMORY, remember_text, with_memory

DROP = {"text_drop": np.array([False, True, False])}
MODELS = {
    "alpha": TINY.clone(micro_condition=True, scan_unroll=4),
    "sigma": TINY.clone(kv_compress=(1, 1, 2, 2), qk_norm=True),
}


def remembered(model, params, conditions, over=lambda apply: apply):
    """What is predicted with the memory, and the memory."""
    arguments, _ = make_inputs(model)
    given = jax.jit(over(remember_text(model)))(params, None, None, **conditions)
    return jax.jit(over(with_memory(model)))(params, *arguments, **given), given[MEMORY]


@pytest.mark.parametrize("name", MODELS)
def test_predictions_stay_the_same(name):
    model = MODELS[name]
    params, conditions = random_params(model), make_inputs(model)[1] | DROP
    output, memory = remembered(model, params, conditions)
    assert_same(output, run(model, params, **DROP))
    # Of each block, in its own stack.
    shapes = [array.shape for stack in memory.values() for array in stack]
    assert shapes == ([(4, 3, 6, 24)] * 2 if name == "alpha" else [(2, 3, 6, 24)] * 4)


def test_what_is_remembered_is_all_that_is_read_of_the_text():
    model = MODELS["sigma"]
    params, conditions = random_params(model), make_inputs(model)[1] | DROP
    other = conditions | {"text": conditions["text"][::-1]}
    given = remember_text(model)(params, None, None, **other)
    assert not {"text", "text_drop"} & given.keys()
    output, _ = remembered(model, params, other)
    assert_same(output, run(model, params, **DROP, text=other["text"]))
    assert np.abs(output.eps - run(model, params, **DROP).eps).max() > 1e-3


def test_a_lora_is_heeded_once():
    model = MODELS["sigma"]
    key = jax.random.key(0)
    adapter = Lora(apply_of(model), LoraSpec(rank=2, targets=("to_k", "to_v", "to_q", "linear_1")))
    trained, frozen = adapter.split(random_params(model), key)
    trained = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), trained)
    params, (arguments, conditions) = Parameters(trained, frozen), make_inputs(model)
    plain = jax.jit(bind(adapter))(params, *arguments, **conditions)
    output, _ = remembered(model, params, conditions, over=lambda apply: bind(Lora(apply)))
    assert_same(output, plain)
    assert np.abs(plain.eps - run(model, random_params(model)).eps).max() > 1e-2
