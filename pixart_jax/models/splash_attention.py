"""JAX's splash attention, the Pallas kernel for TPU, for padded images and texts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)

from pixart_jax.models.remat import ATTENTION_RESULT

# The kernel's blocks are whole numbers of a TPU's 128 lanes.
LANES = 128
# Most queries and keys of a block. A head of 72 fills 128 lanes, so a block of 512 is 128 KiB of bfloat16 and its
# logits are 1 MiB of float32: little beside a TPU's vector memory, and long enough to hide the copies behind the
# matrix products. To be tuned on hardware: no TPU has timed them.
MAX_BLOCK = 512


def splash_attention(q, k, v, key_length=None, *, interpret: bool = False):
    """Scaled dot-product attention by a kernel that keeps no logits.

    Lengths are filled up to multiples of 128. A key that does not exist has another segment id than the queries, which
    all have the same one, so that padded queries see what they see in `plain_attention`.

    Args:
      q: [B, N, heads, head_dim].
      k, v: [B, M, heads, head_dim].
      key_length: i32[B], only the first so many keys of each sample exist; None is all.
      interpret: run on a CPU, slowly.

    Returns:
      [B, N, heads, head_dim] in q's dtype; logits, softmax and sums are float32.
    """
    batch, queries, heads, head_dim = q.shape
    # The kernel does not scale.
    q = (q.astype(jnp.float32) / math.sqrt(head_dim)).astype(q.dtype)
    if key_length is None and k.shape[1] % LANES:
        key_length = jnp.full(batch, k.shape[1], jnp.int32)
    q, k, v = (_heads_first(x) for x in (q, k, v))
    segments = None
    if key_length is not None:
        exists = jnp.arange(k.shape[2]) < key_length[:, None]
        segments = SegmentIds(q=jnp.ones((batch, q.shape[2]), jnp.int32), kv=exists.astype(jnp.int32))

    block_q, block_kv = _block(q.shape[2]), _block(k.shape[2])
    kernel = make_splash_mha(
        MultiHeadMask([FullMask((q.shape[2], k.shape[2]))] * heads),
        block_sizes=BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_RESULT,
        interpret=interpret,
    )
    out = jax.vmap(kernel)(q, k, v, segments)
    return out.transpose(0, 2, 1, 3)[:, :queries]


def _heads_first(x):
    """[B, N, heads, head_dim] as [B, heads, N up to a multiple of 128, head_dim]."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def _block(length: int) -> int:
    """The largest block up to MAX_BLOCK that cuts a multiple of 128 into equal ones."""
    return next(size for size in range(MAX_BLOCK, 0, -LANES) if length % size == 0)
