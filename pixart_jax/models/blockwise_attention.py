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


def blockwise_attention(q, k, v, key_length=None, *, apart: bool = False):
    """Scaled dot-product attention, a block of queries and keys at a time, in the backward pass too.

    Args:
      q: [B, N, heads, head_dim].
      k, v: [B, M, heads, head_dim].
      key_length: i32[B], only the first so many keys of each sample exist; None is all.
      apart: one head of one sample after the other, whose block of logits a core's cache holds; otherwise all at once.

    Returns:
      [B, N, heads, head_dim] in q's dtype; logits, softmax and sums are float32. Gradients are by reverse mode only.
    """
    batch, queries, heads, head_dim = q.shape
    if key_length is None:
        key_length = jnp.full(batch, k.shape[1], jnp.int32)
    groups = batch * heads if apart else 1
    out = _attend(*(_blocks(x, groups) for x in (q, k, v)), jnp.repeat(key_length, heads).reshape(groups, -1))
    return out.swapaxes(1, 2).reshape(batch, heads, -1, head_dim)[:, :, :queries].swapaxes(1, 2)


def _blocks(x, groups: int):
    """[B, N, heads, head_dim] as [groups, blocks, rows, length, head_dim], a row for each head of each sample; zeros
    fill the last block."""
    batch, length, heads, head_dim = x.shape
    number = math.ceil(length / BLOCK)
    size = math.ceil(length / number)
    x = jnp.pad(x, ((0, 0), (0, number * size - length), (0, 0), (0, 0)))
    return x.swapaxes(1, 2).reshape(groups, batch * heads // groups, number, size, head_dim).swapaxes(1, 2)


def _product(equation: str, x, y):
    """Matrix product of two blocks, summed in float32; a float32 one is first rounded as the other is."""
    return jnp.einsum(equation, x.astype(y.dtype), y, preferred_element_type=jnp.float32)


def _logits(x, y, exists):
    """f32[rows, length of x, length of y] of queries and keys, or of keys and queries; MASKED where there is no key."""
    return jnp.where(exists, _product("rxd,ryd->rxy", x, y) / math.sqrt(x.shape[-1]), MASKED)


def _exist(k, start, key_length):
    """bool[rows, keys] of a block whose first key is the sequence's key number `start`."""
    return start + jnp.arange(k.shape[1]) < key_length[:, None]


def _starts(k):
    return jnp.arange(k.shape[0]) * k.shape[2]


@jax.custom_vjp
def _attend(q, k, v, key_length):
    return _forward(q, k, v, key_length)[0]


def _forward(q, k, v, key_length):
    """(out [groups, blocks, rows, queries, head_dim], log of each softmax's sum f32[groups, blocks, rows, queries])."""
    return jax.lax.map(_forward_group, (q, k, v, key_length))


def _forward_group(group):
    q, k, v, key_length = group

    def query_block(q_block):
        def add_keys(carry, inputs):
            out, peak, total = carry
            k_block, v_block, start = inputs
            logits = _logits(q_block, k_block, _exist(k_block, start, key_length)[:, None, :])
            new_peak = jnp.maximum(peak, logits.max(-1))
            shrink = jnp.exp(peak - new_peak)
            weights = jnp.exp(logits - new_peak[..., None])
            out = out * shrink[..., None] + _product("rqk,rkd->rqd", weights, v_block)
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
    return *jax.lax.map(_backward_group, (*residuals, d_out)), None


def _backward_group(group):
    """Logits have keys before queries here: then no product takes one of these largest blocks transposed, for which a
    CPU would copy it."""
    q, k, v, key_length, out, log_sum, d_out = group
    delta = jnp.einsum("nrqd,nrqd->nrq", out, d_out, preferred_element_type=jnp.float32)

    def key_block(dq, inputs):
        k_block, v_block, start = inputs
        exists = _exist(k_block, start, key_length)[:, :, None]

        def add_queries(carry, inputs):
            dk, dv = carry
            q_block, d_out_block, log_sum_block, delta_block = inputs
            weights = jnp.exp(_logits(k_block, q_block, exists) - log_sum_block[:, None])
            d_weights = _product("rkd,rqd->rkq", v_block, d_out_block)
            d_logits = weights * (d_weights - delta_block[:, None]) / math.sqrt(q.shape[-1])
            dk = dk + _product("rkq,rqd->rkd", d_logits, q_block)
            dv = dv + _product("rkq,rqd->rkd", weights, d_out_block)
            return (dk, dv), _product("rkd,rkq->rdq", k_block, d_logits.astype(k.dtype))

        first = jnp.zeros(k_block.shape, jnp.float32), jnp.zeros(v_block.shape, jnp.float32)
        (dk, dv), dq_part = jax.lax.scan(add_queries, first, (q, d_out, log_sum, delta))
        return dq + dq_part, (dk.astype(k.dtype), dv.astype(v.dtype))

    dq, (dk, dv) = jax.lax.scan(key_block, jnp.zeros(q.swapaxes(2, 3).shape, jnp.float32), (k, v, _starts(k)))
    return dq.swapaxes(2, 3).astype(q.dtype), dk, dv


_attend.defvjp(_attend_forward, _attend_backward)
