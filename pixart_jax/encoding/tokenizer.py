"""T5's tokenizer, kept between processes where compiled programs are: importing transformers takes most of a second."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Sequence

import jax
import tokenizers

from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically

_FILES = ("tokenizer.json", "spiece.model")


class CaptionTokenizer:
    """What transformers' T5Tokenizer computes with.

    Args:
      backend: it pads and cuts nothing.

    Attributes:
      pad_token_id: what fills captions up.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad_token_id: int):
        self._backend, self.pad_token_id = backend, pad_token_id

    def __call__(self, captions: Sequence[str]) -> list[list[int]]:
        """The token ids of each caption, its end token included."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(captions))]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self._backend.decode(token_ids, skip_special_tokens=False)

    def to_bytes(self) -> bytes:
        """What `from_bytes` takes."""
        told = {"pad_token_id": self.pad_token_id, "encode_special_tokens": self._backend.encode_special_tokens}
        return f"{json.dumps(told)}\n{self._backend.to_str()}".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> CaptionTokenizer:
        """Raises anything, where the data are damaged."""
        first, _, rest = data.decode().partition("\n")
        told, backend = json.loads(first), tokenizers.Tokenizer.from_str(rest)
        backend.encode_special_tokens = bool(told["encode_special_tokens"])
        return cls(backend, int(told["pad_token_id"]))


def load_tokenizer(directory: pathlib.Path) -> CaptionTokenizer:
    """T5's, from `tokenizer.json` or `spiece.model`; raises InputError where there is none."""
    if not any((directory / name).is_file() for name in _FILES):
        raise InputError(
            f"{directory} has no tokenizer: neither {' nor '.join(_FILES)}; convert the text encoder again "
            "from a folder that has them, or copy them there"
        )
    kept = _kept_file(directory)
    try:
        if kept is not None:
            return CaptionTokenizer.from_bytes(kept.read_bytes())
    except Exception:  # It is not there; or damaged, of which the library raises a bare Exception.
        pass
    tokenizer = _open(directory)
    if kept is not None:
        try:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(kept, lambda file: file.write(tokenizer.to_bytes()))
        except OSError:  # Read-only, or full: the next start takes as long as this one.
            pass
    return tokenizer


def _open(directory: pathlib.Path) -> CaptionTokenizer:
    # Most of a second, which only those who have captions should wait.
    from transformers import T5Tokenizer

    try:
        found = T5Tokenizer.from_pretrained(directory, local_files_only=True)
        backend = found.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = found.split_special_tokens
        return CaptionTokenizer(backend, found.pad_token_id)
    except Exception as error:  # the library raises everything from ImportError to bare Exception for a malformed file
        raise InputError(f"{directory} is no tokenizer of T5's, or a damaged one: {str(error)[:300]}") from error


def _kept_file(directory: pathlib.Path) -> pathlib.Path | None:
    """Where the tokenizer of a folder is kept, by all that it is made of; None where nothing is."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not (folder and jax.config.values["jax_enable_compilation_cache"]) or "://" in folder:
        return None
    told = hashlib.sha256()
    for name in ("transformers", "tokenizers"):
        told.update(importlib.metadata.version(name).encode())
    try:
        for path in sorted(directory.iterdir()):
            if path.suffix in (".json", ".model") and path.is_file():
                data = path.read_bytes()
                told.update(f"{path.name} {len(data)} ".encode() + data)
    except OSError:  # Whoever opens it says what is wrong.
        return None
    return pathlib.Path(folder) / "tokenizers" / f"{told.hexdigest()}.json"
