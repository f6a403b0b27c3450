"""The ControlNet equals the reference's, starts as the identity, and its padding stays out."""

import functools

import flax
import jax
import numpy as np
import pytest
from golden_cases import (
    build_model,
    load_arrays,
    load_config,
    load_params,
    load_state_dict,
    model_inputs,
    text_conditions,
    to_nchw,
)

from pixart_jax.conversion.names.controlnet import convert_controlnet, split_controlnet
from pixart_jax.errors import InputError
from pixart_jax.models.controlnet import ControlNet, apply_with_control, copy_blocks
from pixart_jax.models.pixart import BlockConditions, PixArt

CASE = "alpha_controlnet"
ARRAYS, CONFIG = load_arrays(CASE), load_config(CASE)
CONTROLNET = ControlNet(build_model(CONFIG), CONFIG["copy_blocks_num"])
BASE_STATE, CONTROL_STATE = split_controlnet(load_state_dict(CASE))


def inputs(pad_to=None):
    """Noisy tokens and the base model's conditions; tokens of the control picture."""
    tokens, conditions = model_inputs(CONFIG, ARRAYS["in/x"], pad_to)
    control, _ = model_inputs(CONFIG, ARRAYS["in/control_latents"], pad_to)
    return tokens, conditions | text_conditions(ARRAYS), control


def base_params():
    return load_params(CONTROLNET.base, BASE_STATE)


def initialized(controlnet):
    size = controlnet.base.hidden_size
    x, t = np.zeros((1, 3, size), np.float32), np.zeros((1, size), np.float32)
    cond = BlockConditions(t, np.zeros((1, 6 * size), np.float32), np.zeros((1, 2, size), np.float32), None, None)
    return controlnet.init(jax.random.key(0), x, x, cond)["params"]


def expected_shapes():
    flat = flax.traverse_util.flatten_dict(jax.eval_shape(lambda: initialized(CONTROLNET)), sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def golden_params():
    flat = convert_controlnet(CONTROL_STATE, CONTROLNET.num_copies, expected_shapes())
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@jax.jit
def controlled(base, params, tokens, conditions, control):
    apply = functools.partial(apply_with_control, CONTROLNET, base)
    return apply({"params": params}, tokens, ARRAYS["in/t"], control=control, **conditions)


@pytest.mark.parametrize("padding", [0, 24])
def test_equals_the_reference(padding):
    """With padding, whose tokens are large numbers in the picture and in the control, none of them leaks."""
    tokens, conditions, control = inputs(pad_to=inputs()[0].shape[1] + padding)
    output = controlled(base_params(), golden_params(), tokens, conditions, control)
    expected = ARRAYS["out/eps_sigma"]
    eps_sigma = np.concatenate([to_nchw(part, CONFIG, expected.shape) for part in output], axis=1)
    np.testing.assert_allclose(eps_sigma, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("start", ["init", "copy_blocks"])
def test_is_the_identity_at_the_start(start):
    base, (tokens, conditions, control) = base_params(), inputs()
    params = initialized(CONTROLNET) if start == "init" else copy_blocks(base, CONTROLNET.num_copies)
    assert jax.tree.map(np.shape, params) == flax.traverse_util.unflatten_dict(expected_shapes(), sep="/")
    plain = CONTROLNET.base.apply({"params": base}, tokens, ARRAYS["in/t"], **conditions)
    with_control = controlled(base, params, tokens, conditions, control)
    # Separately compiled programs: equal but for the order of float32 sums.
    np.testing.assert_allclose(with_control.eps, plain.eps, rtol=0, atol=2e-6)
    np.testing.assert_allclose(with_control.v, plain.v, rtol=0, atol=2e-6)


def test_copies_start_as_the_first_blocks():
    base = base_params()
    copies = copy_blocks(base, CONTROLNET.num_copies)["copies"]
    for index in range(CONTROLNET.num_copies):
        block = jax.tree.map(lambda stack, i=index: stack[i], base["blocks_0"])
        copy = jax.tree.map(lambda stack, i=index: stack[i], copies)
        assert not any(leaf.any() for leaf in jax.tree.leaves(copy.pop("after_proj")))
        jax.tree.map(np.testing.assert_array_equal, copy, block)


def test_every_projection_learns_from_the_start():
    """Zero projections get a gradient, or training would never leave the identity."""
    base, (tokens, conditions, control) = base_params(), inputs()

    def loss(params):
        return (controlled(base, params, tokens, conditions, control).eps ** 2).sum()

    gradient = jax.grad(loss)(copy_blocks(base, CONTROLNET.num_copies))
    per_copy = np.abs(gradient["copies"]["after_proj"]["kernel"]).max(axis=(1, 2))
    assert per_copy.shape == (3,) and (per_copy > 0).all()


def test_parameter_count_of_the_release():
    """294,917,760 trainable parameters in 13 copies of XL/2's blocks, the base model's not among them (spec §7.1)."""
    controlnet = ControlNet(PixArt())
    shapes = jax.eval_shape(lambda: initialized(controlnet))
    assert set(shapes) == {"before_proj", "copies"}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 294_917_760


@pytest.mark.parametrize("num_copies", [0, 5], ids=["none", "all"])
def test_number_of_copies_that_does_not_fit(num_copies):
    controlnet = ControlNet(CONTROLNET.base, num_copies)
    with pytest.raises(ValueError, match=f"num_copies={num_copies}"):
        jax.eval_shape(lambda: initialized(controlnet))


def test_conversion_is_strict():
    extra = CONTROL_STATE | {"3.after_proj.bias": np.zeros(24), "1.before_proj.bias": np.zeros(24)}
    with pytest.raises(InputError, match=r"(?s)no parameter takes: 3\.after_proj.*takes: 1\.before_proj"):
        convert_controlnet(extra, CONTROLNET.num_copies, expected_shapes())
    missing = {name: array for name, array in CONTROL_STATE.items() if name != "1.copied_block.attn.qkv.weight"}
    with pytest.raises(InputError, match=r"copies/attn/qkv/kernel is there only for blocks \[0, 2\]"):
        convert_controlnet(missing, CONTROLNET.num_copies, expected_shapes())
    with pytest.raises(InputError, match=r"pos_embed"):
        split_controlnet({"pos_embed": np.zeros(1)})
