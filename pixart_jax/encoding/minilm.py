"""MiniLM, the gallery's text encoder: small enough to lie beside the data, and it knows words that no caption has."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import flax
import jax
import numpy as np
import safetensors.numpy
import tokenizers

from pixart_jax.data.cut_captions import CutCaptions
from pixart_jax.errors import InputError
from pixart_jax.models.bert import Bert

# Of an encoder, beside the data that it made: its tokenizer, which says how many tokens are kept, and BertModel's
# weights as published.
FILES = ("tokenizer.json", "minilm.safetensors")

# Features are multiplied by it. The model's caption MLP starts with small weights, made for features as wide as T5's,
# and learns faster from larger ones (see `word_encoder`); MiniLM's have a standard deviation of about 0.5.
_SCALE = 6.0
# What is encoded at once, so that one program serves any number of captions.
_BATCH = 16
# Of published files, but not of the encoder.
_UNUSED = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
_CURE = "make the data set again"


class MiniLM:
    """all-MiniLM-L6-v2 or another BERT of its form: features of every token, in context, of the last layer.

    Attributes:
      dim: width of the features; 384 of MiniLM.
      max_tokens: text positions of every encoded caption, [CLS] and [SEP] among them.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, weights: bytes, where: str = "the weights"):
        """
        Args:
          tokenizer: BERT's, with the truncation that is wanted.
          weights: a safetensors file of transformers' BertModel.
          where: what errors call it.

        Raises:
          InputError: it is no BERT, or another's than the tokenizer; names the arrays that do not fit.
        """
        if tokenizer.truncation is None:
            raise InputError(f"{where}: the tokenizer does not say how many tokens are kept; {_CURE}")
        self.max_tokens: int = tokenizer.truncation["max_length"]
        tokenizer.no_padding()
        self._tokenizer, self._weights, self._cut = tokenizer, weights, CutCaptions()
        try:
            arrays = safetensors.numpy.load(weights)
        except Exception as error:  # the library's errors share no base class
            raise InputError(f"{where}: not a safetensors file ({error}); {_CURE}") from error
        model, self._params = _as_linen(arrays, where)
        self.dim = model.hidden_size
        if tokenizer.get_vocab_size() > model.vocab_size or self.max_tokens > model.max_positions:
            raise InputError(
                f"{where}: knows {model.vocab_size} tokens and {model.max_positions} positions, the tokenizer has "
                f"{tokenizer.get_vocab_size()} and {self.max_tokens}; {_CURE}"
            )
        self._apply = jax.jit(model.apply)

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes B captions; a warning says what is not read of one that is too long.

        Returns:
          text f32[B, max_tokens, dim], zero after each caption's last token, and length i32[B], at least 2.

        Raises:
          InputError: one string in place of a list of them, which would be read letter by letter.
        """
        if isinstance(captions, str):
            raise InputError("MiniLM.encode takes a list of captions, not one string")
        count = len(captions)
        ids = np.zeros((-(-count // _BATCH) * _BATCH, self.max_tokens), np.int32)
        # A filler has a token, so that it attends to something.
        length = np.ones(len(ids), np.int32)
        # Not encode_batch: its threads make every later fork of this process, a data loader's say, print a warning.
        for row, caption in enumerate(captions):
            encoding = self._tokenizer.encode(caption)
            self._cut.warn_of(caption, encoding)
            length[row] = len(encoding.ids)
            ids[row, : length[row]] = encoding.ids
        text = np.zeros((count, self.max_tokens, self.dim), np.float32)
        for start in range(0, count, _BATCH):
            part = slice(start, start + _BATCH)
            text[part] = np.asarray(self._apply(self._params, ids[part], length[part]))[: count - start]
        real = np.arange(self.max_tokens) < length[:count, None]
        return np.where(real[..., None], text * np.float32(_SCALE), np.float32(0)), length[:count]

    def save(self, directory: str | os.PathLike) -> None:
        """Writes FILES into an existing directory."""
        tokenizer, weights = (pathlib.Path(directory) / file for file in FILES)
        self._tokenizer.save(str(tokenizer))
        weights.write_bytes(self._weights)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> MiniLM:
        """Reads what `save` wrote.

        Raises:
          InputError: a file is missing or unreadable, or the two do not belong together.
        """
        tokenizer, weights = (pathlib.Path(directory) / file for file in FILES)
        for file in (tokenizer, weights):
            if not file.is_file():
                raise InputError(f"{file}: missing file of the text encoder; {_CURE}")
        try:
            read = tokenizers.Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise InputError(f"{tokenizer}: not a tokenizer ({error}); {_CURE}") from error
        return cls(read, weights.read_bytes(), str(weights))


def _as_linen(arrays: dict[str, np.ndarray], where: str) -> tuple[Bert, dict[str, Any]]:
    """The model that arrays of transformers' BertModel are of, and its variables."""
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name in arrays.keys() - _UNUSED:
        module, _, leaf = name.rpartition(".")
        array = arrays[name].astype(np.float32)
        if leaf == "weight":
            norm, table = module.endswith("LayerNorm"), module.endswith("_embeddings")
            leaf, array = ("scale", array) if norm else ("embedding", array) if table else ("kernel", array.T)
        layer = re.match(r"(encoder\.layer\.\d+)\.(.+)", module)
        flat[*(layer.groups() if layer else [module]), leaf] = array
    params = flax.traverse_util.unflatten_dict(flat)
    try:
        vocab_size, hidden_size = params["embeddings.word_embeddings"]["embedding"].shape
        model = Bert(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=arrays["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_layers=sum(module.startswith("encoder.layer.") for module in params),
            max_positions=arrays["embeddings.position_embeddings.weight"].shape[0],
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{where}: these are no weights of a BERT ({error} is missing or misshapen); {_CURE}"
        ) from error
    wanted = _shapes(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32), np.ones(1, np.int32)))
    found = _shapes({"params": params})
    if wrong := sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)):
        raise InputError(f"{where}: does not fit a BERT of its sizes: {', '.join(wrong[:5])}; {_CURE}")
    return model, {"params": params}


def _shapes(tree: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
