"""MiniLM against transformers' BertModel, and what its errors say."""

import numpy as np
import pytest
import safetensors.torch
import tiny_gallery
import torch

from pixart_jax.encoding.minilm import _SCALE, MiniLM
from pixart_jax.errors import InputError


@pytest.fixture(scope="module")
def weights():
    return safetensors.torch.save(tiny_gallery.bert().state_dict())


@pytest.fixture(scope="module")
def tokenizer():
    made = tiny_gallery.tokenizer()
    made.enable_truncation(8)
    return made


@pytest.fixture(scope="module")
def encoder(tokenizer, weights):
    return MiniLM(tokenizer, weights)


def test_features_are_those_of_transformers(encoder, tokenizer):
    captions = [
        "waving hand: light skin tone",
        "Dog face",
        "",
        "rocket",
        "dark dark dark dark dark dark dark dark dark",
    ]
    captions += ["puppy"] * 15  # More than are encoded at once.
    text, length = encoder.encode(captions)
    assert text.shape == (20, 8, 64) and text.dtype == np.float32 and length.dtype == np.int32
    assert length[:5].tolist() == [8, 4, 2, 3, 8]
    bert = tiny_gallery.bert()
    for row, caption in enumerate(captions):
        with torch.no_grad():
            wanted = bert(torch.tensor([tokenizer.encode(caption).ids])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(text[row, : length[row]], wanted * _SCALE, atol=1e-4)
        assert not text[row, length[row] :].any()


def test_what_is_not_read_of_a_long_caption_is_said(encoder, caplog):
    encoder.encode(["rocket", "dog face rocket dog face rocket dog face"])
    (record,) = caplog.records
    assert (
        "10 tokens and the model reads 8; of 'dog face rocket dog face rocket dog face' this is not read: 'dog face'"
        in (record.getMessage())
    )


def test_what_is_saved_encodes_the_same(encoder, tmp_path):
    encoder.save(tmp_path)
    again = MiniLM.load(tmp_path)
    assert (again.dim, again.max_tokens) == (64, 8)
    np.testing.assert_array_equal(again.encode(["dog face"])[0], encoder.encode(["dog face"])[0])


def test_bad_input_is_refused(encoder, tokenizer, weights, tmp_path):
    with pytest.raises(InputError, match="list of captions"):
        encoder.encode("dog face")
    with pytest.raises(InputError, match=r"tokenizer\.json: missing file of the text encoder; make the data set again"):
        MiniLM.load(tmp_path)
    with pytest.raises(InputError, match="not a safetensors file"):
        MiniLM(tokenizer, weights[:-5])
    with pytest.raises(InputError, match="does not say how many"):
        MiniLM(tiny_gallery.tokenizer(), weights)
    encoder.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="not a tokenizer"):
        MiniLM.load(tmp_path)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"encoder.layer.0.output.dense.bias": torch.zeros(3)}, "does not fit .*encoder.layer.0.*output.dense.*bias"),
        ({"encoder.layer.1.more.weight": torch.zeros(3, 3)}, "does not fit .*more"),
        ({"embeddings.word_embeddings.weight": torch.zeros(9, 64)}, "knows 9 tokens"),
        ({"embeddings.word_embeddings.weight": None}, "no weights of a BERT .*word_embeddings.* is missing"),
        ({"encoder.layer.1.attention.self.key.bias": None}, "does not fit .*attention.self.key"),
    ],
)
def test_weights_of_something_else_are_refused(tokenizer, change, message):
    arrays = tiny_gallery.bert().state_dict() | change
    content = safetensors.torch.save({name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=message):
        MiniLM(tokenizer, content)
