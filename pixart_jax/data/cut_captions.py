"""Says which captions a text encoder does not read to their end."""

from __future__ import annotations

from collections.abc import Callable

import tokenizers
from absl import logging

# Characters of what is cut off that the warning shows.
_SHOWN = 200


class CutCaptions:
    """Warns of each caption that is too long once, not in every epoch."""

    def __init__(self) -> None:
        self._warned_of: set[str] = set()

    def warn(self, caption: str, tokens: int, max_tokens: int, unread: Callable[[], str]) -> None:
        """Does nothing where all of its `tokens` are read; `unread` is asked for the text that is cut off."""
        if tokens <= max_tokens or caption in self._warned_of:
            return
        self._warned_of.add(caption)
        text = unread()
        logging.warning(
            "a caption has %d tokens and the model reads %d; of %r this is not read: %r%s",
            tokens,
            max_tokens,
            caption[:60],
            text[:_SHOWN],
            f" and {len(text) - _SHOWN:,} more characters" if len(text) > _SHOWN else "",
        )

    def warn_of(self, caption: str, encoding: tokenizers.Encoding) -> None:
        """The same of a tokenizer that has cut the caption itself."""
        cut = [
            offset
            for part in encoding.overflowing
            for offset, special in zip(part.offsets, part.special_tokens_mask, strict=True)
            if not special
        ]
        if cut:
            read = len(encoding.ids)
            self.warn(caption, read + len(cut), read, lambda: caption[cut[0][0] : cut[-1][1]])
