"""Words of a prompt with their kinds, and its noun phrases, by spaCy's small English pipeline as in the benchmark."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from pixart_jax.data.nouns import load_spacy


@dataclasses.dataclass(frozen=True)
class Word:
    """text; kind: the universal part of speech, as in "NOUN"; space: what stands between it and the next word."""

    text: str
    kind: str
    space: str = " "


@dataclasses.dataclass(frozen=True)
class Parsed:
    words: tuple[Word, ...]
    noun_phrases: tuple[str, ...]


def text_of(words: Sequence[Word]) -> str:
    """The words as they stood in the prompt."""
    return "".join(word.text + word.space for word in words).removesuffix(words[-1].space) if words else ""


class English:
    """spaCy's pipeline; each prompt is parsed once."""

    def __init__(self) -> None:
        """Raises InputError if spaCy or its pipeline is not installed."""
        self._pipeline = load_spacy(exclude=("ner", "lemmatizer"))
        self.parse = functools.cache(self._parse)

    def _parse(self, prompt: str) -> Parsed:
        document = self._pipeline(prompt)
        words = tuple(Word(token.text, token.pos_, token.whitespace_) for token in document)
        return Parsed(words, tuple(phrase.text for phrase in document.noun_chunks))
