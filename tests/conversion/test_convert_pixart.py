"""Conversion from the reference's names is strict: each key used once, each parameter filled once, or all is told."""

import flax
import numpy as np
import pytest
from golden_cases import abstract_params, build_model, load_config, load_params, load_state_dict

from pixart_jax.errors import InputError

CASE = "sigma_kv_compress"


@pytest.fixture
def case():
    """(convert(state_dict), state_dict, shapes): the golden Σ with key/value compression."""
    model = build_model(load_config(CASE))
    shapes = flax.traverse_util.flatten_dict(abstract_params(model), sep="/")
    return lambda state_dict: load_params(model, state_dict), load_state_dict(CASE), shapes


def test_every_parameter_is_filled_with_its_shape(case):
    convert, state_dict, shapes = case
    params = flax.traverse_util.flatten_dict(convert(state_dict), sep="/")
    assert {path: leaf.shape for path, leaf in params.items()} == {path: leaf.shape for path, leaf in shapes.items()}


def test_layouts(case):
    """Dense kernels are transposed; patches go from (channel, row, column) to (row, column, channel)."""
    convert, state_dict, _ = case
    params = convert(state_dict)
    patch = state_dict["x_embedder.proj.weight"]
    assert params["x_embedder"]["kernel"][(1 * 2 + 0) * 4 + 3, 5] == patch[5, 3, 1, 0]
    assert params["blocks_1"]["mlp"]["fc1"]["kernel"][1][2, 7] == state_dict["blocks.2.mlp.fc1.weight"][7, 2]
    assert params["blocks_1"]["attn"]["sr_kernel"][0][2, 9] == state_dict["blocks.1.attn.sr.weight"][9, 0, 1, 0]


@pytest.mark.parametrize(
    "change,messages",
    [
        (lambda s: s.pop("t_block.1.bias"), ["not filled: t_block/bias"]),
        (
            lambda s: s.pop("blocks.2.mlp.fc1.weight"),
            ["incomplete: blocks_1/mlp/fc1/kernel is there only for blocks [1]"],
        ),
        (lambda s: s.update({"mystery.weight": np.zeros(3)}), ["no parameter takes: mystery.weight"]),
        (lambda s: s.update({"blocks.3.mlp.fc1.bias": np.zeros(96)}), ["no parameter takes: blocks.3.mlp.fc1.bias"]),
        (
            lambda s: s.update({"blocks.0.attn.sr.bias": np.zeros(24)}),
            ["no parameter takes: blocks_0/attn/sr_bias (1, 24)"],
        ),
        (
            lambda s: s.update({"t_block.1.bias": np.zeros(7)}),
            ["wrong shape: t_block/bias is (7,), the model has (144,)"],
        ),
        (
            lambda s: s.update({"blocks.2.mlp.fc1.bias": np.zeros(7)}),
            ["wrong shape: blocks_1/mlp/fc1/bias differs between the blocks: {1: (96,), 2: (7,)}"],
        ),
        (lambda s: (s.pop("t_block.1.bias"), s.update(odd=np.zeros(1))), ["t_block/bias", "takes: odd"]),
    ],
)
def test_everything_that_does_not_fit_is_listed(case, change, messages):
    convert, state_dict, _ = case
    change(state_dict)
    with pytest.raises(InputError) as error:
        convert(state_dict)
    assert all(message in str(error.value) for message in messages), error.value
