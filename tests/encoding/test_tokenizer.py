"""A tokenizer that is kept gives what transformers' own gives, and is made again when it changes or is damaged."""

import json
import sys

import jax
import pytest
from tiny_pipeline import WORDS, make_tokenizer
from transformers import T5Tokenizer

from pixart_jax.encoding.tokenizer import load_tokenizer

CAPTIONS = [*WORDS, "", "  a  red\tcat ", "Größe 猫 🐈", "a red</s>cat <pad><unk>", "<extra_id_0> dog", "x" * 300]


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def folder(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("settings", [{}, {"split_special_tokens": True}])
def test_the_same_ids_as_transformers(folder, cache, settings, monkeypatch):
    config = json.loads((folder / "tokenizer_config.json").read_text()) | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = T5Tokenizer.from_pretrained(folder)
    expected = theirs(CAPTIONS)["input_ids"]
    first = load_tokenizer(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)  # It is not imported again.
    for ours in (first, load_tokenizer(folder)):
        assert ours(CAPTIONS) == expected and ours.pad_token_id == theirs.pad_token_id
        assert ours.decode(expected[0]) == theirs.decode(expected[0])
    assert expected[7] != load_tokenizer(folder)(["a red cat"])[0]


def test_another_one_or_a_damaged_file_is_opened_anew(folder, cache):
    load_tokenizer(folder)
    (kept,) = (cache / "tokenizers").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    assert load_tokenizer(folder)(WORDS) and kept.read_bytes() == whole
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "</s>"}))
    assert load_tokenizer(folder).pad_token_id == 1
    assert len([*(cache / "tokenizers").iterdir()]) == 2


def test_where_nothing_can_be_kept_it_is_opened_all_the_same(folder, cache):
    (cache / "tokenizers").write_text("in the way")
    assert load_tokenizer(folder)(WORDS)
    jax.config.update("jax_compilation_cache_dir", None)
    assert load_tokenizer(folder)(WORDS)
