"""Partition rules cover every parameter and spread the state evenly."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from pixart_jax.config import build_model, default_config, optimizer_spec
from pixart_jax.optimizers import build_optimizer
from pixart_jax.sharding import tree_shardings
from pixart_jax.train_state import abstract_state

MESH = AbstractMesh((2, 8), ("data", "fsdp"))


def state_of(optimizer="adamw", **model):
    config = default_config()
    config.optimizer.name = optimizer
    config.model.update(model)
    return abstract_state(build_model(config), build_optimizer(optimizer_spec(config)), MESH)


@pytest.mark.parametrize(
    "copies,settings",
    [
        (4, {"micro_condition": True}),
        (4, {"kv_compress_ratio": 2, "qk_norm": True, "max_text_tokens": 300}),
        (4, {"num_classes": 1000, "adaln": "full"}),
        (3, {"optimizer": "came", "kv_compress_ratio": 2, "qk_norm": True, "max_text_tokens": 300}),
    ],
    ids=str,
)
def test_full_size_state_is_an_eighth_on_each_device(copies, settings):
    """XL/2, nothing allocated. What stays whole (vectors) is less than a hundredth of the whole."""
    leaves = jax.tree.leaves(state_of(**settings))
    total = sum(leaf.size for leaf in leaves)
    per_device = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)
    assert total > copies * 600e6
    assert per_device < total / 8 * 1.07


def test_optimizer_state_and_ema_lie_where_their_parameters_lie():
    state = state_of()
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
    assert specs.params == specs.ema_params
    adam = next(s for s in jax.tree.leaves(specs.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    assert adam.mu == adam.nu == specs.params
    assert specs.params["blocks_0"]["mlp"]["fc1"]["kernel"] == PartitionSpec(None, None, "fsdp")
    assert specs.params["blocks_0"]["mlp"]["fc1"]["bias"] == PartitionSpec()


def test_an_axis_that_does_not_divide_stays_whole():
    shapes = {"kernel": jax.ShapeDtypeStruct((16, 12), np.float32)}
    assert tree_shardings(shapes, MESH)["kernel"].spec == PartitionSpec()


def test_uncovered_parameter_is_an_error():
    shapes = {"blocks_0": {"mystery": jax.ShapeDtypeStruct((16, 16), np.float32)}}
    with pytest.raises(ValueError, match="no partition rule covers blocks_0/mystery"):
        tree_shardings(shapes, MESH)
