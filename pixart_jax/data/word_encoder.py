"""One random vector per word: the quickstart's offline stand-in for T5."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from pixart_jax.data.cut_captions import CutCaptions
from pixart_jax.errors import InputError
from pixart_jax.files.arrays import read_npz

_TOKENIZER_FILE = "tokenizer.json"
_EMBEDDING_FILE = "word_embeddings.npz"
# Of that file: far more than any has.
_MAX_BYTES = 256 << 20
# Of an encoder, beside the data that it made.
FILES = (_TOKENIZER_FILE, _EMBEDDING_FILE)

_UNKNOWN = "[unk]"
_END = "[end]"
# Of a word vector's components. The model's caption MLP starts with small weights, made for features as wide as T5's:
# with a standard deviation of 1 the quickstart's retrieval@1 after 1,500 steps was 0.19, with 5 it was 0.38.
_EMBEDDING_STD = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class WordEncoder:
    """One fixed random vector per word: an offline stand-in for T5.

    Captions are lower-cased and split at white space and around every punctuation mark; an end token follows the last
    word, so even the empty caption has length 1. Words never seen in training share one unknown token. A word's vector
    is the same wherever it stands and cross-attention has no order, so captions with the same words are the same
    caption here.

    Attributes:
      tokenizer: word-level tokenizer that appends the end token and truncates to `max_tokens`, the end token included.
      embedding: f32[V, dim], each component drawn from N(0, 5²): words are nearly orthogonal and of length
        about 5·sqrt(dim).
      max_tokens: text positions of every encoded caption.
    """

    tokenizer: tokenizers.Tokenizer
    embedding: np.ndarray
    max_tokens: int
    _cut: CutCaptions = dataclasses.field(default_factory=CutCaptions, init=False, repr=False)

    @property
    def dim(self) -> int:
        return self.embedding.shape[1]

    @classmethod
    def train(cls, captions: Sequence[str], dim: int, max_tokens: int, seed: int = 0) -> WordEncoder:
        """Takes every word of `captions` into the vocabulary; the same arguments give the same encoder.

        Raises:
          InputError: no words at all, or no room for one word and the end token.
        """
        if dim < 1 or max_tokens < 2:
            raise InputError(
                f"a word encoder needs dim >= 1 and max_tokens >= 2, got dim={dim}, max_tokens={max_tokens}"
            )
        tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
        )
        special = [_UNKNOWN, _END]
        tokenizer.train_from_iterator(captions, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
        if tokenizer.get_vocab_size() <= len(special):
            raise InputError("no caption holds a word, so there is no vocabulary to train a word encoder on")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {_END}", special_tokens=[(_END, tokenizer.token_to_id(_END))]
        )
        tokenizer.enable_truncation(max_tokens)
        tokenizer.encode_special_tokens = True  # a caption that spells "[end]" means the letters, not the token
        shape = (tokenizer.get_vocab_size(), dim)
        embedding = np.float32(_EMBEDDING_STD) * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return cls(tokenizer, embedding, int(max_tokens))

    def with_words(self, words: Sequence[str], seed: int = 0) -> WordEncoder:
        """An encoder that knows more words, each by a vector of its own; those that it knew keep theirs.

        Raises:
          InputError: one of them is known already, is given twice, or is not one word.
        """
        vocabulary = json.loads(self.tokenizer.to_str())
        known = vocabulary["model"]["vocab"]
        for word in words:
            parts = [part for part, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(word)]
            spelt = self.tokenizer.normalizer.normalize_str(word)
            if parts != [word] or spelt in known:
                raise InputError(f"{word!r} is no new word; choose one that no caption has, without spaces")
            known[spelt] = len(known)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(vocabulary))
        tokenizer.encode_special_tokens = True  # not part of the file
        shape = (len(words), self.dim)
        more = np.float32(_EMBEDDING_STD) * np.random.default_rng([seed, 1]).standard_normal(shape, dtype=np.float32)
        return WordEncoder(tokenizer, np.concatenate([self.embedding, more]), self.max_tokens)

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes B captions; a warning says what is not read of one that is too long.

        Returns:
          text f32[B, max_tokens, dim], zero after each caption's end token, and length i32[B], at least 1.

        Raises:
          InputError: one string in place of a list of them, which would be read letter by letter.
        """
        if isinstance(captions, str):
            raise InputError("WordEncoder.encode takes a list of captions, not one string")
        text = np.zeros((len(captions), self.max_tokens, self.dim), np.float32)
        length = np.zeros(len(captions), np.int32)
        # Not encode_batch: its threads make every later fork of this process, a data loader's say, print a warning.
        for row, caption in enumerate(captions):
            encoding = self.tokenizer.encode(caption)
            self._cut.warn_of(caption, encoding)
            length[row] = len(encoding.ids)
            text[row, : length[row]] = self.embedding[encoding.ids]
        return text, length

    def save(self, directory: str | os.PathLike) -> None:
        """Writes tokenizer.json and word_embeddings.npz into an existing directory."""
        directory = pathlib.Path(directory)
        self.tokenizer.save(str(directory / _TOKENIZER_FILE))
        np.savez(directory / _EMBEDDING_FILE, embedding=self.embedding, max_tokens=self.max_tokens)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> WordEncoder:
        """Reads what `save` wrote.

        Raises:
          InputError: a file is missing or unreadable, or the two do not belong together.
        """
        directory = pathlib.Path(directory)
        for name in (_TOKENIZER_FILE, _EMBEDDING_FILE):
            if not (directory / name).is_file():
                raise InputError(f"{directory / name}: missing file of the word encoder; make the data set again")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(directory / _TOKENIZER_FILE))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise InputError(
                f"{directory / _TOKENIZER_FILE}: not a tokenizer ({error}); make the data set again"
            ) from error
        tokenizer.encode_special_tokens = True  # not part of the file
        file, cure = directory / _EMBEDDING_FILE, "make the data set again"
        values = read_npz(file, ("embedding", "max_tokens"), "word embeddings", cure, _MAX_BYTES)
        embedding, max_tokens = values["embedding"].astype(np.float32), values["max_tokens"]
        if max_tokens.shape or max_tokens.dtype.kind != "i" or max_tokens < 1 or not np.isfinite(embedding).all():
            raise InputError(f"{file}: not word embeddings, or damaged; {cure}")
        if embedding.ndim != 2 or len(embedding) != tokenizer.get_vocab_size():
            raise InputError(
                f"{directory}: {_TOKENIZER_FILE} has {tokenizer.get_vocab_size()} words, {_EMBEDDING_FILE} has shape "
                f"{embedding.shape}: the files are of different encoders; make the data set again"
            )
        return cls(tokenizer, embedding, int(max_tokens))
