"""What test_attention.py runs in a process of its own, because the number of simulated devices is fixed at the start.

Prints "as on one device" at the end, unless something is not.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pixart_jax.models import blockwise_attention, splash_attention
from pixart_jax.models.attention import PLAIN, AttentionSpec, attention
from pixart_jax.models.params import init_params
from pixart_jax.models.pixart import PixArt

AXES = ("data", "fsdp", "tensor", "context")
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def make_mesh(**sizes):
    """A mesh with the named axes, in the order of AXES, over the first devices."""
    shape = [sizes[name] for name in AXES if name in sizes]
    devices = np.array(jax.devices()[: np.prod(shape)])
    return Mesh(devices.reshape(shape), [name for name in AXES if name in sizes])


def check_functions():
    """Values and gradients, of self-attention with 256 queries and of cross-attention to 6 keys."""
    q, d_out = normal(4, 256, 4, 8), normal(4, 256, 4, 8)
    whole = normal(4, 256, 4, 8), normal(4, 256, 4, 8), np.int32([256, 131, 5, 255]), True
    compressed = normal(4, 64, 4, 8), normal(4, 64, 4, 8), np.int32([64, 63, 1, 20]), True
    text = normal(4, 6, 4, 8), normal(4, 6, 4, 8), np.int32([1, 6, 3, 2]), False

    # 4 samples over 8 devices: "fsdp" cannot split them and must not multiply their gradients.
    too_many = make_mesh(data=4, fsdp=2)
    no_heads = make_mesh(data=2, fsdp=2, tensor=1, context=2)
    all_axes = make_mesh(data=1, fsdp=2, tensor=2, context=2)
    no_batch = make_mesh(data=1, fsdp=1, tensor=2, context=2)
    long = make_mesh(data=1, fsdp=1, tensor=1, context=4)
    # With the part of the output that one device then has.
    cases = {
        "whole": (whole, [("auto", too_many, (1, 256, 4, 8)), ("plain", long, (4, 64, 4, 8))]),
        "compressed": (compressed, [("blockwise", all_axes, (2, 128, 2, 8)), ("splash", no_batch, (4, 128, 2, 8))]),
        "text": (text, [("plain", no_heads, (1, 128, 4, 8)), ("splash", all_axes, (2, 128, 2, 8))]),
    }

    def run(spec, k, v, lengths, split_keys):
        def outputs(q, k, v):
            out = attention(q, k, v, lengths, spec=spec, split_keys=split_keys)
            return (out * d_out).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(outputs, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    for kind, (inputs, shardings) in cases.items():
        wanted = run(PLAIN, *inputs)
        for name, mesh, part_shape in shardings:
            got = run(AttentionSpec(name, mesh), *inputs)
            assert got[0].sharding.shard_shape(got[0].shape) == part_shape, f"{kind} {name} {mesh}"
            for part, expected in zip(got, wanted, strict=True):
                np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-5, err_msg=f"{kind} {name} {mesh}")


def check_memory():
    """A quarter of the queries, a quarter of the logits."""
    x = jax.ShapeDtypeStruct((1, 2048, 2, 8), jnp.float32)

    def scratch(spec):
        compiled = jax.jit(lambda x: attention(x, x, x, spec=spec, split_keys=True)).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch(AttentionSpec("plain", make_mesh(context=4))) < 0.3 * scratch(PLAIN)


def check_model():
    """A whole PixArt with key/value compression whose tokens lie over "context": loss and gradients."""
    model = PixArt(hidden_size=24, depth=1, num_heads=2, text_dim=16, max_text_tokens=8, kv_compress=(2,))
    fresh = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    # Cross-attention starts at zero.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * normal(*leaf.shape), fresh)
    tokens, text = normal(4, 128, 16), normal(4, 5, 16)
    positions = np.tile(np.stack(np.divmod(np.arange(128), 16), -1).astype(np.float32), (4, 1, 1))
    num_tokens, text_length = np.int32([128, 64, 124, 4]), np.int32([5, 1, 2, 4])
    weights = np.arange(128)[None, :, None] < num_tokens[:, None, None]

    def loss_and_gradients(spec, tokens, positions):
        def loss(params):
            out = model.clone(attention=spec).apply(
                {"params": params},
                tokens,
                np.float32([3, 500, 10, 999]),
                positions=positions,
                num_tokens=num_tokens,
                text=text,
                text_length=text_length,
            )
            return sum((jnp.square(part - 1) * weights).mean() for part in out)

        return jax.jit(jax.value_and_grad(loss))(params)

    wanted = loss_and_gradients(PLAIN, tokens, positions)
    mesh = make_mesh(data=2, fsdp=1, tensor=2, context=2)
    split = jax.device_put((tokens, positions), NamedSharding(mesh, P(("data", "fsdp"), "context")))
    got = loss_and_gradients(AttentionSpec("blockwise", mesh), *split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)


if __name__ == "__main__":
    # Several blocks even of these short sequences.
    blockwise_attention.BLOCK = 48
    splash_attention.MAX_QUERIES = splash_attention.MAX_KEYS = splash_attention.MAX_AT_ONCE = 256
    check_functions()
    check_memory()
    check_model()
    print("as on one device")
