"""Attention over padded sequences. One function, so that kernels can be swapped in one place."""

from __future__ import annotations

import jax


def attention(q, k, v, kv_length=None, *, implementation: str = "xla"):
    """Scaled dot-product attention in which only the first `kv_length` keys of each sample exist.

    Args:
      q: [B, N, heads, head_dim].
      k, v: [B, M, heads, head_dim].
      kv_length: i32[B], at least 1, or None when every key is real.
      implementation: "xla" anywhere; "cudnn" on a recent NVIDIA GPU with bfloat16 inputs.

    Returns:
      [B, N, heads, head_dim] in q's dtype. Logits and softmax are float32. Rows of padded queries are finite but
      meaningless.
    """
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=kv_length, implementation=implementation)
