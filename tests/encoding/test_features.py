"""The word encoder, and the factories that pick a data set's encoders by name."""

import json
import types

import numpy as np
import pytest

from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE, load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.models.linear_autoencoder import LinearAutoencoder

CAPTIONS = ["blue heart", "Red Apple", "smiling face with heart-shaped eyes", "dog face"]


@pytest.fixture
def encoder():
    return WordEncoder.train(CAPTIONS, dim=16, max_tokens=10, seed=0)


def vectors(encoder, caption):
    """The real tokens of one caption, [length, dim]."""
    text, length = encoder.encode([caption])
    return text[0, : length[0]]


def test_shapes_padding_and_length(encoder):
    text, length = encoder.encode(["blue heart", "", "smiling face with heart-shaped eyes"])
    assert text.shape == (3, 10, 16) and text.dtype == np.float32
    assert length.dtype == np.int32
    assert length.tolist() == [3, 1, 8]  # heart - shaped are three tokens, and each caption ends in the end token
    for row, count in zip(text, length, strict=True):
        assert np.all(np.any(row[:count] != 0, axis=1)) and not row[count:].any()


def test_no_captions(encoder):
    text, length = encoder.encode([])
    assert text.shape == (0, 10, 16) and length.shape == (0,)


def test_one_vector_per_word(encoder):
    blue, heart, end = vectors(encoder, "blue heart")
    np.testing.assert_array_equal(vectors(encoder, "heart")[0], heart)
    np.testing.assert_array_equal(vectors(encoder, "heart blue"), [heart, blue, end])
    np.testing.assert_array_equal(vectors(encoder, ""), [end])
    assert len(np.unique(encoder.embedding, axis=0)) == len(encoder.embedding)


def test_case_and_punctuation(encoder):
    np.testing.assert_array_equal(vectors(encoder, "BLUE Heart"), vectors(encoder, "blue heart"))
    np.testing.assert_array_equal(vectors(encoder, "heart-shaped"), vectors(encoder, "  heart -  shaped "))
    assert len(vectors(encoder, "blue,heart")) == 4


def test_unknown_words_share_one_token(encoder):
    unknown, end = vectors(encoder, "zebra")
    np.testing.assert_array_equal(vectors(encoder, "unseen zebra"), [unknown, unknown, end])
    known = {encoder.embedding[i].tobytes() for word, i in encoder.tokenizer.get_vocab().items() if word != "[unk]"}
    assert unknown.tobytes() not in known


def test_special_tokens_cannot_be_spelled(encoder):
    end = vectors(encoder, "")[0]
    spelled = vectors(encoder, "[end]")
    assert len(spelled) == 4 and not any(np.array_equal(vector, end) for vector in spelled[:-1])


def test_truncation_keeps_the_end_token(encoder):
    text, length = encoder.encode(["face " * 30])
    assert length.tolist() == [10]
    np.testing.assert_array_equal(text[0, -1], vectors(encoder, "")[0])
    np.testing.assert_array_equal(text[0, -2], vectors(encoder, "face")[0])


def test_what_is_not_read_of_a_long_caption_is_said_once(encoder, caplog):
    read = "Red apple, dog face, blue heart"
    for _ in range(2):
        encoder.encode([read, f"{read} eyes, Smiling face", f"{read} with " + "dog " * 100])
    first, second = [record.getMessage() for record in caplog.records]
    assert first == (
        f"a caption has 13 tokens and the model reads 10; of '{read} eyes, Smiling face' this is not read: "
        "', Smiling face'"
    )
    assert "a caption has 110 tokens" in second and "and 199 more characters" in second


def test_embedding_is_normal_with_standard_deviation_five():
    embedding = WordEncoder.train([f"word{i}" for i in range(200)], dim=128, max_tokens=4).embedding
    assert embedding.shape == (202, 128)
    assert abs(embedding.mean()) < 0.1 and abs(embedding.std() - 5) < 0.1


def test_deterministic(encoder):
    again = WordEncoder.train(CAPTIONS, dim=16, max_tokens=10, seed=0)
    assert again.tokenizer.get_vocab() == encoder.tokenizer.get_vocab()
    np.testing.assert_array_equal(again.embedding, encoder.embedding)
    other = WordEncoder.train(CAPTIONS, dim=16, max_tokens=10, seed=1)
    assert not np.allclose(other.embedding, encoder.embedding)


def test_save_and_load(encoder, tmp_path):
    encoder.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokenizer.json", "word_embeddings.npz"]
    loaded = WordEncoder.load(tmp_path)
    captions = [*CAPTIONS, "", "[end]", "unseen words", "face " * 30]
    for ours, theirs in zip(loaded.encode(captions), encoder.encode(captions), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_more_words_leave_the_others_as_they_are(encoder, tmp_path):
    more = encoder.with_words(["sks", "Zot"])
    more.save(tmp_path)
    loaded = WordEncoder.load(tmp_path)
    for ours, theirs in zip(loaded.encode(CAPTIONS), encoder.encode(CAPTIONS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    sks, zot, unknown = (vectors(loaded, word)[0] for word in ("SKS", "zot", "unseen"))
    assert len({word.tobytes() for word in (sks, zot, unknown)}) == 3
    assert not any(np.array_equal(row, sks) for row in encoder.embedding)
    np.testing.assert_array_equal(vectors(encoder, "sks")[0], unknown)
    for words in (["heart"], ["two words"], ["a-b"], ["sks", "sks"], [""]):
        with pytest.raises(InputError, match="is no new word"):
            encoder.with_words(words)


@pytest.mark.parametrize("name", ["tokenizer.json", "word_embeddings.npz"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_load_names_the_damaged_file(encoder, tmp_path, name, content):
    encoder.save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="make the data set again") as raised:
        WordEncoder.load(tmp_path)
    assert str(tmp_path / name) in str(raised.value)


def test_load_refuses_files_of_two_encoders(encoder, tmp_path):
    encoder.save(tmp_path)
    np.savez(tmp_path / "word_embeddings.npz", embedding=np.zeros((3, 16)), max_tokens=10)
    with pytest.raises(InputError, match="different encoders"):
        WordEncoder.load(tmp_path)


@pytest.mark.parametrize(
    "arguments", [{"dim": 0, "max_tokens": 4}, {"dim": 4, "max_tokens": 1}, {"dim": 4, "max_tokens": 4, "captions": []}]
)
def test_train_refuses(arguments):
    with pytest.raises(InputError):
        WordEncoder.train(**({"captions": CAPTIONS} | arguments))


def test_encode_refuses_a_bare_string(encoder):
    with pytest.raises(InputError, match="list of captions"):
        encoder.encode("blue heart")


def manifest(**changes):
    fields = {
        "autoencoder": "linear",
        "latent_channels": 4,
        "downsample": 8,
        "text_encoder": "words",
        "text_dim": 16,
        "max_text_tokens": 10,
    }
    return types.SimpleNamespace(**(fields | changes))


@pytest.fixture
def data_dir(encoder, tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    LinearAutoencoder.fit(images, channels=4).save(tmp_path / LINEAR_AUTOENCODER_FILE)
    encoder.save(tmp_path)
    return tmp_path


def test_factories_load_what_the_manifest_names(data_dir, encoder):
    assert load_autoencoder(data_dir, manifest()).channels == 4
    np.testing.assert_array_equal(load_text_encoder(data_dir, manifest()).embedding, encoder.embedding)


@pytest.mark.parametrize(
    ("load", "changes", "message"),
    [
        (load_autoencoder, {"autoencoder": "sdxl-vae"}, 'autoencoder "sdxl-vae".*"linear"'),
        (load_text_encoder, {"text_encoder": "t5-v1_1-xxl"}, 'text_encoder "t5-v1_1-xxl".*"words"'),
        (load_autoencoder, {"latent_channels": 5}, "latent_channels 4.*says 5"),
        (load_autoencoder, {"downsample": 16}, "downsample 8.*says 16"),
        (load_text_encoder, {"text_dim": 32}, "text_dim 16.*says 32"),
        (load_text_encoder, {"max_text_tokens": 12}, "max_text_tokens 10.*says 12"),
    ],
)
def test_factories_name_the_field_that_does_not_fit(data_dir, load, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        load(data_dir, manifest(**changes))
    assert str(data_dir) in str(raised.value)


def test_tokenizer_file_is_plain_json(data_dir):
    vocabulary = json.loads((data_dir / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert {"blue", "heart", "-", "shaped", "[unk]", "[end]"} <= set(vocabulary)
