"""BERT's encoder, in the sizes of MiniLM: captions to a feature of each token, which knows the words around it.

Source: Devlin et al. 2019, "BERT", §3; Wang et al. 2020, "MiniLM", for the sizes; Hugging Face transformers' BertModel
for the names.
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

# Features of a head in BERT-small and every MiniLM of 384 features.
HEAD_DIM = 32
# BertConfig.layer_norm_eps of all published ones.
_EPSILON = 1e-12


def _norm(name: str = "LayerNorm") -> nn.LayerNorm:
    # The fast variance loses digits where a mean is large.
    return nn.LayerNorm(_EPSILON, use_fast_variance=False, name=name)


class Layer(nn.Module):
    """One layer: attention and MLP, each added and then normalised. f32[B, L, D] -> f32[B, L, D].

    Attributes:
      intermediate_size: width of the MLP.
    """

    intermediate_size: int

    @nn.compact
    def __call__(self, x, length):
        width = x.shape[-1]
        q, k, v = (
            einops.rearrange(nn.Dense(width, name=f"attention.self.{name}")(x), "b l (h d) -> b l h d", d=HEAD_DIM)
            for name in ("query", "key", "value")
        )
        out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=length)
        out = nn.Dense(width, name="attention.output.dense")(einops.rearrange(out, "b l h d -> b l (h d)"))
        x = _norm("attention.output.LayerNorm")(x + out)
        hidden = nn.gelu(nn.Dense(self.intermediate_size, name="intermediate.dense")(x), approximate=False)
        return _norm("output.LayerNorm")(x + nn.Dense(width, name="output.dense")(hidden))


class Bert(nn.Module):
    """The encoder; weights come from a published file, the initialisers only give shapes.

    Attributes:
      vocab_size, hidden_size, intermediate_size, num_layers, max_positions: as in a config.json.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    max_positions: int

    @nn.compact
    def __call__(self, token_ids, length):
        """Features of tokenised captions.

        Args:
          token_ids: i32[B, L], padded at the end; L is at most `max_positions`.
          length: i32[B], how many of the L are real.

        Returns:
          f32[B, L, hidden_size]; rows past a caption's length mean nothing.
        """
        words = nn.Embed(self.vocab_size, self.hidden_size, name="embeddings.word_embeddings")(token_ids)
        places = jnp.arange(token_ids.shape[1])
        positions = nn.Embed(self.max_positions, self.hidden_size, name="embeddings.position_embeddings")(places)
        # One text, so type 0 everywhere.
        kind = nn.Embed(2, self.hidden_size, name="embeddings.token_type_embeddings")(jnp.zeros((), jnp.int32))
        x = _norm("embeddings.LayerNorm")(words + kind + positions)
        for i in range(self.num_layers):
            x = Layer(self.intermediate_size, name=f"encoder.layer.{i}")(x, length)
        return x
