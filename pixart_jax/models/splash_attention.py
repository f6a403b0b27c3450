"""JAX's splash attention, the Pallas kernel for TPU, for padded images and texts."""

from __future__ import annotations

import functools
import json
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    MultiHeadMask,
    QKVLayout,
    SegmentIds,
    make_splash_mha,
)

from pixart_jax.devices.hardware import HARDWARE
from pixart_jax.models.remat import ATTENTION_RESULT

# The tokens along the lanes, which they fill where heads of 72 would be padded to 128.
LAYOUTS = {f"{name}_layout": QKVLayout.SEQ_MINOR for name in "qkv"}

# The kernel's blocks are whole numbers of a TPU's 128 lanes.
LANES = 128
# Most queries and keys, of bfloat16, that a step of the kernels holds, and most keys that it multiplies at once. The
# backward kernel makes all gradients together, in five products where a kernel for dq and one for dk and dv need seven.
# It writes a part of dq for every block of keys, so that these are as long as the vector memory allows: up to 4,096
# keys there is one part, and nothing to add up. By the compiler's schedule (docs/scale.md); no TPU has timed them.
MAX_QUERIES, MAX_KEYS, MAX_AT_ONCE = 2048, 4096, 1024
# Most queries times keys of a block, in bytes of one of their features, and most logits at once: more does not fit
# beside the rest.
MAX_BLOCK_BYTES, MAX_LOGITS = 2 * 512 * 4096, 1024 * 1024
# Of as many keys a block it multiplies fewer at once; the backward kernel, on chips whose matrix units have no more
# rows, fewer still: 2 to 3 % fewer cycles by the same schedule, and less of the vector memory. With 512, v5e's compiler
# refused the step of a picture of 16,384 tokens on two chips. A v6e's units of 256 rows would take 15 % more, and its
# memory suffices.
AT_ONCE_OF_MOST, AT_ONCE_BACKWARD = 512, 256
# What a block costs beside its tokens, in tokens, about: of queries, of keys (its part of dq), and of keys at once. So
# some padding is worth larger blocks: 1,664 is 13 times 128, which only blocks of 128 divide.
FOR_A_BLOCK, FOR_A_PART, FOR_AT_ONCE = 64, 256, 64

# Blocks that tools.tune has found better: of a chip, by "QUERIESxKEYS".
TABLE_FILE = pathlib.Path(__file__).with_name("splash_blocks.json")


class Blocks(NamedTuple):
    """Queries and keys of a step of the kernels, and how many of the keys are multiplied at once."""

    queries: int
    keys: int
    at_once: int

    def fill(self, queries: int, keys: int) -> tuple[int, int]:
        """Lengths in whole blocks."""
        return filled(queries, self.queries), filled(keys, self.keys)


def splash_attention(
    q, k, v, key_length=None, *, chip: str = "", blocks: Blocks | None = None, interpret: bool = False
):
    """Scaled dot-product attention by a kernel that keeps no logits.

    Lengths are filled up to whole blocks. A key that does not exist has another segment id than the queries, which all
    have the same one, so that padded queries see what they see in `plain_attention`.

    Args:
      q: [B, N, heads, head_dim].
      k, v: [B, M, heads, head_dim].
      key_length: i32[B], only the first so many keys of each sample exist; None is all.
      chip: a key of `hardware.HARDWARE`, whose blocks are in the table if any are.
      blocks: in place of the table's, and of the rule's.
      interpret: run on a CPU, slowly.

    Returns:
      [B, N, heads, head_dim] in q's dtype; logits, softmax and sums are float32.
    """
    (batch, queries, heads, head_dim), keys = q.shape, k.shape[1]
    blocks = blocks or find_blocks(chip, queries, keys, q.dtype.itemsize)
    # The kernel does not scale.
    q = (q.astype(jnp.float32) / math.sqrt(head_dim)).astype(q.dtype)
    if key_length is None and keys % blocks.keys:
        key_length = jnp.full(batch, keys, jnp.int32)
    q = _heads_first(q, blocks.queries)
    k, v = (_heads_first(x, blocks.keys) for x in (k, v))
    segments = None
    if key_length is not None:
        exists = jnp.arange(k.shape[2]) < key_length[:, None]
        segments = SegmentIds(q=jnp.ones((batch, q.shape[2]), jnp.int32), kv=exists.astype(jnp.int32))

    kernel = make_splash_mha(
        MultiHeadMask([FullMask((q.shape[2], k.shape[2]))] * heads),
        block_sizes=_block_sizes(blocks, chip),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_RESULT,
        interpret=interpret,
    )
    out = jax.vmap(kernel)(q, k, v, segments)
    return out.transpose(0, 2, 1, 3)[:, :queries]


def _heads_first(x, block: int):
    """[B, N, heads, head_dim] as [B, heads, N up to whole blocks, head_dim]."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def find_blocks(chip: str, queries: int, keys: int, itemsize: int) -> Blocks:
    """The table's for these lengths as the rule fills them up, which are for bfloat16, or else the rule's."""
    rule = blocks_by_rule(queries, keys, itemsize)
    found = _table().get(chip, {}).get("{}x{}".format(*rule.fill(queries, keys))) if itemsize == 2 else None
    return Blocks(*found) if found else rule


def filled(length: int, block: int) -> int:
    """A length in whole blocks."""
    return math.ceil(length / block) * block


@functools.cache
def _table() -> dict[str, dict[str, list[int]]]:
    return json.loads(TABLE_FILE.read_text(encoding="utf-8"))


def blocks_by_rule(queries: int, keys: int, itemsize: int) -> Blocks:
    """As large as the vector memory holds, unless smaller ones leave less to be filled up.

    Args:
      queries, keys: at least 1.
      itemsize: bytes of a feature.
    """
    smaller = max(itemsize, 2) // 2
    block_kv, at_once = _block_of_keys(keys, MAX_KEYS // smaller, MAX_AT_ONCE // smaller)
    most = min(MAX_QUERIES // smaller, MAX_LOGITS // at_once, MAX_BLOCK_BYTES // (block_kv * itemsize))
    if block_kv == MAX_KEYS:
        at_once = min(at_once, AT_ONCE_OF_MOST)
    return Blocks(_block_of_queries(queries, max(most, LANES)), block_kv, at_once)


def _block_of_keys(keys: int, most: int, most_at_once: int) -> tuple[int, int]:
    """The block, up to `most`, and as many of its keys at once, that cost the least."""
    sizes = [
        (block, at_once)
        for at_once in range(most_at_once, 0, -LANES)
        for block in range(min(most // at_once * at_once, filled(keys, at_once)), 0, -at_once)
    ]

    def cost(size: tuple[int, int]) -> int:
        block, at_once = size
        return math.ceil(keys / block) * (block + FOR_A_PART + block // at_once * FOR_AT_ONCE)

    return min(sizes, key=cost)


def _block_of_queries(queries: int, most: int) -> int:
    """The block, up to `most`, that costs the least."""
    sizes = range(min(most // LANES * LANES, filled(queries, LANES)), 0, -LANES)
    return min(sizes, key=lambda size: math.ceil(queries / size) * (size + FOR_A_BLOCK))


def _block_sizes(blocks: Blocks, chip: str) -> BlockSizes:
    at_once = blocks.at_once
    if blocks.keys == MAX_KEYS and chip in HARDWARE and HARDWARE[chip].matrix_rows < AT_ONCE_BACKWARD:
        at_once = min(at_once, AT_ONCE_BACKWARD)
    return BlockSizes(
        block_q=blocks.queries,
        block_kv=blocks.keys,
        block_kv_compute=blocks.at_once,
        block_q_dkv=blocks.queries,
        block_kv_dkv=blocks.keys,
        block_kv_dkv_compute=at_once,
        use_fused_bwd_kernel=True,
        **LAYOUTS,
    )
