"""Attention over padded sequences: one function for every kernel, on one device or on a mesh."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pixart_jax.devices.hardware import chip_name
from pixart_jax.devices.sharding import HEADS, ROWS, TOKENS, dividing_axes
from pixart_jax.errors import InputError
from pixart_jax.models.blockwise_attention import blockwise_attention
from pixart_jax.models.remat import ATTENTION_RESULT

IMPLEMENTATIONS = ("auto", "plain", "blockwise", "cudnn", "splash")

# Queries times keys from which "auto" no longer holds a head's logits at once: 16 heads of them are 256 MiB per image.
# On a CPU blocks, which stay in its cache, are faster long before (docs/benchmarks.md).
BLOCKWISE_FROM, BLOCKWISE_ON_CPU_FROM = 2**22, 2**13
# Queries times keys from which a CPU takes one head after the other, whose blocks its cache holds.
APART_FROM = 2**19
# Fewer queries than one block of splash attention are cheaper in XLA.
SPLASH_FROM = 128
# cuDNN's flash attention takes heads of a multiple of 8 up to this on every GPU that has it.
CUDNN_HEAD_DIM = 128


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """How attention is computed. Says nothing about its result, which differs by rounding alone.

    Attributes:
      implementation: one of IMPLEMENTATIONS.
        "auto": "splash" on TPU and "cudnn" on an NVIDIA GPU where the shapes suit them; otherwise "blockwise" for long
          sequences, "plain" for short ones.
        "plain": all logits at once; the reference.
        "blockwise": a block of logits at a time, on any platform.
        "cudnn": cuDNN's flash attention, in bfloat16 or float16. It has not been run: there was no GPU here, only its
          lowering is tested.
        "splash": the Pallas kernel for TPU. On a CPU it is interpreted, which is for tests alone. It has not been run
          on a TPU: the TPU compiler compiles it, and its interpreter's results are tested.
      mesh: the devices that the model is compiled for, which need not be this machine's. None is one device of JAX's
        default platform. On several devices, attention runs under `shard_map`: samples over the axes "data" and "fsdp",
        heads over "tensor", queries over "context". An axis that the mesh lacks is none, and one that does not divide
        its dimension leaves it whole, which costs the devices along it the same work each. The layers around attention
        lay out their activations accordingly (`pixart_jax.devices.sharding.constrain`).
    """

    implementation: str = "auto"
    mesh: Mesh | None = None


AUTO = AttentionSpec()
PLAIN = AttentionSpec("plain")


def attention(q, k, v, key_length=None, *, spec: AttentionSpec, split_keys: bool = False):
    """Scaled dot-product attention in which only the first `key_length` keys of each sample exist.

    Args:
      q: [B, N, heads, head_dim].
      k, v: [B, M, heads, head_dim].
      key_length: i32[B], at least 1, or None when every key is real.
      split_keys: the keys belong to tokens that lie over the mesh's "context" axis as the queries do. Each device then
        gathers all keys and values of its samples and heads, for one layer at a time: after the projections they are
        all that a ring would pass on too, and 65,536 tokens of width 1152 are 302 MB of bfloat16.

    Returns:
      [B, N, heads, head_dim] in q's dtype. Logits, softmax and sums are float32. Rows of padded queries, and of samples
      without any key, are finite and meaningless.

    Raises:
      InputError: the implementation is unknown, or cannot run on these devices or with these shapes.
    """
    mesh = spec.mesh
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    attend = functools.partial(_attend, implementation=spec.implementation, device=device)
    if mesh is None or mesh.size == 1:
        return attend(q, k, v, key_length)

    batch = dividing_axes(mesh, ROWS, q.shape[0])
    heads = dividing_axes(mesh, HEADS, q.shape[2])
    queries = dividing_axes(mesh, TOKENS, q.shape[1])
    keys = dividing_axes(mesh, TOKENS, k.shape[1]) if split_keys else ()

    def attend_locally(q, k, v, key_length):
        if keys:
            k, v = (jax.lax.all_gather(x, keys, axis=1, tiled=True) for x in (k, v))
        return attend(q, k, v, key_length)

    return jax.shard_map(
        attend_locally,
        mesh=mesh,
        in_specs=(P(batch, queries, heads), P(batch, keys, heads), P(batch, keys, heads), P(batch)),
        out_specs=P(batch, queries, heads),
        check_vma=False,  # Pallas kernels do not say over which axes their results vary.
    )(q, k, v, key_length)


def _attend(q, k, v, key_length, *, implementation: str, device: jax.Device):
    """Attention on one device, which is there to be asked what it is: the compiler may run elsewhere."""
    if implementation == "auto":
        implementation = choose(device, q, k)
    if needs := unmet_needs(implementation, device, q.dtype, q.shape[-1]):
        raise InputError(f"attention = {implementation!r}: {needs}")
    match implementation:
        case "plain":
            return plain_attention(q, k, v, key_length)
        case "blockwise":
            apart = device.platform == "cpu" and q.shape[1] * k.shape[1] >= APART_FROM
            return blockwise_attention(q, k, v, key_length, apart=apart)
        case "cudnn":
            return cudnn_attention(q, k, v, key_length)
        case "splash":
            chip = chip_name(device.device_kind)
            # Here, as Pallas takes a tenth of a second to import.
            from pixart_jax.models.splash_attention import splash_attention

            return splash_attention(q, k, v, key_length, chip=chip, interpret=device.platform == "cpu")


def choose(device: jax.Device, q, k) -> str:
    """What "auto" means for q [B, N, heads, head_dim] and k [B, M, heads, head_dim] on a device."""
    if device.platform == "tpu" and q.shape[1] >= SPLASH_FROM:
        return "splash"
    if unmet_needs("cudnn", device, q.dtype, q.shape[-1]) is None:
        return "cudnn"
    least = BLOCKWISE_ON_CPU_FROM if device.platform == "cpu" else BLOCKWISE_FROM
    return "blockwise" if q.shape[1] * k.shape[1] >= least else "plain"


def unmet_needs(implementation: str, device: jax.Device, dtype, head_dim: int) -> str | None:
    """What an implementation needs and does not have on a device, with the cure; None if it can run there."""
    here = f'here are {jnp.dtype(dtype)} heads of {head_dim} on {device.platform}; "auto" takes what suits'
    if implementation not in IMPLEMENTATIONS:
        return f"must be one of {', '.join(IMPLEMENTATIONS)}"
    if implementation == "splash" and device.platform not in ("tpu", "cpu"):
        return f"needs a TPU; {here}"
    if implementation == "cudnn":
        # "8.0" on NVIDIA, such as "gfx942" on AMD, nothing elsewhere.
        major = str(getattr(device, "compute_capability", "")).partition(".")[0]
        recent = device.platform == "gpu" and major.isdigit() and int(major) >= 8
        if not (recent and dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= CUDNN_HEAD_DIM):
            return (
                "needs an NVIDIA GPU of compute capability 8.0 or more, bfloat16 or float16, and heads of a multiple "
                f"of 8 up to {CUDNN_HEAD_DIM}; {here}"
            )
    return None


def plain_attention(q, k, v, key_length=None):
    """The reference: all logits at once. Arguments and result as of `attention`."""
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=key_length, implementation="xla")
    return checkpoint_name(out, ATTENTION_RESULT)


def cudnn_attention(q, k, v, key_length=None):
    """cuDNN's flash attention. Arguments and result as of `attention`.

    Padded queries are computed too: they are some 4 % of an average batch, and what cuDNN leaves in rows that it skips
    would have to be trusted.
    """
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=key_length, implementation="cudnn")
