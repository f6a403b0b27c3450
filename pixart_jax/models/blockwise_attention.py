"""Attention whose memory grows with the sequence and not with its square, in plain JAX.

Source: Dao et al. 2022, "FlashAttention", algorithms 1 and 4, without their tiling for one kind of hardware; the online
softmax is that of Milakov & Gimelshein 2018.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pixart_jax.models.remat import ATTENTION_RESULT

# Most queries, and most keys, whose logits are in memory at once: for one head, 1 MiB of float32.
BLOCK = 512
# What a key that does not exist has for a logit: finite, so that rows of nothing else are not NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def blockwise_attention(q, k, v, key_length=None):
    """Scaled dot-product attention, a block of queries and keys at a time, in the backward pass too.

    Args:
      q: [B, N, heads, head_dim].
      k, v: [B, M, heads, head_dim].
      key_length: i32[B], only the first so many keys of each sample exist; None is all.

    Returns:
      [B, N, heads, head_dim] in q's dtype; logits, softmax and sums are float32. Gradients are by reverse mode only.
    """
    batch, queries, heads, head_dim = q.shape
    if key_length is None:
        key_length = jnp.full(batch, k.shape[1], jnp.int32)
    out = _attend(_blocks(q), _blocks(k), _blocks(v), key_length)
    return out.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, head_dim)[:, :queries]


def _blocks(x):
    """[B, N, heads, head_dim] as [blocks, B, heads, length, head_dim]; zeros fill the last block."""
    batch, length, heads, head_dim = x.shape
    number = math.ceil(length / BLOCK)
    size = math.ceil(length / number)
    x = jnp.pad(x, ((0, 0), (0, number * size - length), (0, 0), (0, 0)))
    return x.reshape(batch, number, size, heads, head_dim).transpose(1, 0, 3, 2, 4)


def _product(equation: str, x, y):
    """Matrix product of two blocks, summed in float32; a float32 one is first rounded as the other is."""
    return jnp.einsum(equation, x.astype(y.dtype), y, preferred_element_type=jnp.float32)


def _logits(q, k, start, key_length):
    """f32[B, heads, queries, keys] of a block whose first key is the sequence's key number `start`."""
    logits = _product("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    exists = start + jnp.arange(k.shape[2]) < key_length[:, None]
    return jnp.where(exists[:, None, None, :], logits, MASKED)


def _starts(k):
    return jnp.arange(k.shape[0]) * k.shape[3]


@jax.custom_vjp
def _attend(q, k, v, key_length):
    return _forward(q, k, v, key_length)[0]


def _forward(q, k, v, key_length):
    """(out [blocks, B, heads, queries, head_dim], log of each row's softmax sum f32[blocks, B, heads, queries])."""

    def query_block(q_block):
        def add_keys(carry, inputs):
            out, peak, total = carry
            k_block, v_block, start = inputs
            logits = _logits(q_block, k_block, start, key_length)
            new_peak = jnp.maximum(peak, logits.max(-1))
            shrink = jnp.exp(peak - new_peak)
            weights = jnp.exp(logits - new_peak[..., None])
            out = out * shrink[..., None] + _product("bhqk,bhkd->bhqd", weights, v_block)
            return (out, new_peak, total * shrink + weights.sum(-1)), None

        rows = q_block.shape[:-1]
        first = jnp.zeros(q_block.shape, jnp.float32), jnp.full(rows, MASKED), jnp.zeros(rows, jnp.float32)
        (out, peak, total), _ = jax.lax.scan(add_keys, first, (k, v, _starts(k)))
        return (out / total[..., None]).astype(q.dtype), peak + jnp.log(total)

    return jax.lax.map(query_block, q)


def _attend_forward(q, k, v, key_length):
    out, log_sum = (checkpoint_name(part, ATTENTION_RESULT) for part in _forward(q, k, v, key_length))
    return out, (q, k, v, key_length, out, log_sum)


def _attend_backward(residuals, d_out):
    q, k, v, key_length, out, log_sum = residuals
    delta = jnp.einsum("nbhqd,nbhqd->nbhq", out, d_out, preferred_element_type=jnp.float32)

    def key_block(dq, inputs):
        k_block, v_block, start = inputs

        def add_queries(carry, inputs):
            dk, dv = carry
            q_block, d_out_block, log_sum_block, delta_block = inputs
            weights = jnp.exp(_logits(q_block, k_block, start, key_length) - log_sum_block[..., None])
            d_weights = _product("bhqd,bhkd->bhqk", d_out_block, v_block)
            d_logits = weights * (d_weights - delta_block[..., None]) / math.sqrt(q.shape[-1])
            dk = dk + _product("bhqk,bhqd->bhkd", d_logits, q_block)
            dv = dv + _product("bhqk,bhqd->bhkd", weights, d_out_block)
            return (dk, dv), _product("bhqk,bhkd->bhqd", d_logits, k_block)

        first = jnp.zeros(k_block.shape, jnp.float32), jnp.zeros(v_block.shape, jnp.float32)
        (dk, dv), dq_part = jax.lax.scan(add_queries, first, (q, d_out, log_sum, delta))
        return dq + dq_part, (dk.astype(k.dtype), dv.astype(v.dtype))

    dq, (dk, dv) = jax.lax.scan(key_block, jnp.zeros(q.shape, jnp.float32), (k, v, _starts(k)))
    return dq.astype(q.dtype), dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)
