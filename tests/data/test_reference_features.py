"""Feature trees as the reference's two extraction tools write them, whole and damaged."""

import io
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixart_jax.data import reference_features
from pixart_jax.data.pictures import BadItem
from pixart_jax.data.reference_features import open_reference_features
from pixart_jax.data.shards.records import Sample, Text
from pixart_jax.errors import InputError

TEXT_DIM = 6


def record(path, number=0, **more):
    return {"path": path, "prompt": f"A photo, {number}", "height": 700, "width": 1000, "ratio": 0.7} | more


def posterior(number, dtype=np.float32, h=4, w=6):
    """What the tools call z: mean and deviation, channels first."""
    rng = np.random.default_rng(number)
    return np.concatenate([rng.normal(size=(4, h, w)), rng.uniform(size=(4, h, w))]).astype(dtype)


def embedding(number, tokens, dtype=np.float32):
    return np.random.default_rng(100 + number).normal(size=(1, tokens, TEXT_DIM)).astype(dtype)


def mask(length, tokens, dtype=np.int64):
    return (np.arange(tokens) < length).astype(dtype)[None]


class Tree:
    """A list, a folder of .npz and one of .npy, filled by either tool."""

    def __init__(self, folder: pathlib.Path):
        self.list = folder / "partition" / "data_info.json"
        self.text, self.latents = folder / "caption_feature_wmask", folder / "img_vae_features_512resolution" / "noflip"
        for path in (self.list.parent, self.text, self.latents):
            path.mkdir(parents=True)

    def write_list(self, records):
        self.list.write_text(json.dumps(records))

    def alpha(self, records, lengths):
        self.write_list(records)
        for number, (item, length) in enumerate(zip(records, lengths, strict=True)):
            name = "_".join(item["path"].rsplit("/", 1))
            text = self.text / name.replace(".png", ".npz")
            text.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(text, caption_feature=embedding(number, 120), attention_mask=mask(length, 120))
            latents = self.latents / name.replace(".png", ".npy")
            latents.parent.mkdir(parents=True, exist_ok=True)
            np.save(latents, posterior(number))

    def sigma(self, records, lengths):
        self.write_list(records)
        for number, (item, length) in enumerate(zip(records, lengths, strict=True)):
            np.savez_compressed(
                self.text / pathlib.Path(item["path"]).stem,
                caption_feature=embedding(number, 300, np.float16),
                attention_mask=mask(length, 300, np.int16),
            )
            name = item["path"].split("/")[-1]
            np.save(self.latents / (name.split(".")[0] + ".npy"), posterior(number, np.float16, 5, 3))

    def open(self, **more):
        return open_reference_features(
            self.list, text_dir=self.text, latents_dir=self.latents, **({"text_dim": TEXT_DIM} | more)
        )


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def reasons(source):
    found = []
    for index in range(len(source)):
        try:
            source[index]
            found.append("")
        except BadItem as error:
            assert error.key and str(error)
            found.append(error.reason)
    return found


def test_features_of_alphas_tool(tree):
    paths = ["0001/a.png", "0001/b.png", "deep/er/a.png"]
    tree.alpha([record(path, number) for number, path in enumerate(paths)], [1, 7, 120])
    source = pickle.loads(pickle.dumps(tree.open()))
    assert len(source) == 3
    for number, (path, length) in enumerate(zip(paths, [1, 7, 120], strict=True)):
        item = source[number]
        assert (item.key, item.caption) == (path, f"A photo, {number}")
        assert (item.image_size, item.bucket) == ((700, 1000), (32, 48))
        z = posterior(number)
        assert item.latent_mean.dtype == np.float32
        np.testing.assert_array_equal(item.latent_mean, np.moveaxis(z[:4], 0, -1))
        np.testing.assert_array_equal(item.latent_std, np.moveaxis(z[4:], 0, -1))
        np.testing.assert_array_equal(item.text, embedding(number, 120)[0, :length])
        text = Text(item.caption, item.text)
        Sample(item.key, item.image_size, item.bucket, item.latent_mean, item.latent_std, (text,))


def test_features_of_sigmas_tool(tree):
    # The latents' name ends at the first dot, the text's at the last.
    paths = ["d1/a.png", "d2/b.v2.webp", "c.JPEG"]
    tree.sigma([record(path, number, sharegpt4v="Long.") for number, path in enumerate(paths)], [3, 300, 12])
    source = tree.open(caption_field="sharegpt4v")
    for number, length in enumerate([3, 300, 12]):
        item = source[number]
        assert (item.caption, item.bucket, item.text.dtype) == ("Long.", (40, 24), np.float16)
        np.testing.assert_array_equal(item.text, embedding(number, 300, np.float16)[0, :length])
        np.testing.assert_array_equal(item.latent_mean, np.moveaxis(posterior(number, np.float16, 5, 3)[:4], 0, -1))
    assert source.fingerprint() == tree.open(caption_field="sharegpt4v").fingerprint() != tree.open().fingerprint()


def test_without_a_mask_all_tokens_count(tree):
    tree.alpha([record("a.png")], [5])
    np.savez_compressed(tree.text / "a.npz", caption_feature=embedding(0, 9))
    assert tree.open()[0].text.shape == (9, TEXT_DIM)


def test_no_picture_gets_the_features_of_another(tree):
    """Σ's tool keeps one file for all pictures of a name; a list may have a picture twice, with two captions."""
    tree.sigma([record(path) for path in ("x/a.png", "y/a.png", "z/b.png")], [3, 3, 3])
    tree.write_list([record(path) for path in ("x/a.png", "y/a.png", "z/b.png", "z/b.png", "x/c.png")])
    source = tree.open()
    assert reasons(source) == ["ambiguous-name", "ambiguous-name", "", "repeated-path", "missing-file"]
    assert "latent" not in source[2].caption and source[2].key == "z/b.png"


def test_a_naming_is_chosen_for_the_whole_folder(tree):
    """By its bare name, the second picture's features would be those of the first."""
    tree.alpha([record("d/a.png", 0), record("f/e.png", 1)], [3, 3])
    tree.write_list([record("d/a.png"), record("e/d_a.png"), record("f/e.png")])
    assert reasons(tree.open()) == ["", "missing-file", ""]


def test_few_features_of_a_long_list_are_found(tree):
    records = [record(f"d/{number}.png") for number in range(450)]
    tree.alpha(records[7:8], [3])
    tree.write_list(records)
    assert tree.open()[7].key == "d/7.png"


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("caption_feature.npy", content)
    return file.getvalue()


def with_(array, index, value):
    array[index] = value
    return array


HUGE = npy(embedding(0, 9)).replace(b"(1, 9, 6), }" + b" " * 12, b"(1, 9999999999999, 6), }")
GOOD_TEXT = npz(caption_feature=embedding(0, 9), attention_mask=mask(4, 9))
BAD_TEXTS = {
    "empty": (b"", "damaged"),
    "cut short": (GOOD_TEXT[:-100], "damaged"),
    "a bit flipped": (bytes(with_(bytearray(GOOD_TEXT), 100, GOOD_TEXT[100] ^ 16)), "damaged"),
    "no zip": (b"PK\x03\x04" + bytes(50), "damaged"),
    "pickled": (npz(caption_feature=np.array([{}], object)), "damaged"),
    "not an array inside": (zipped(b"text"), "damaged"),
    "a shape of 240 TB": (zipped(HUGE), "damaged"),
    "latents": (npy(posterior(0)), "wrong-features"),
    "another key": (npz(arr_0=embedding(0, 9)), "wrong-features"),
    "no leading axis": (npz(caption_feature=embedding(0, 9)[0]), "wrong-features"),
    "two captions": (npz(caption_feature=np.zeros((2, 9, TEXT_DIM), np.float32)), "wrong-features"),
    "no tokens": (npz(caption_feature=embedding(0, 0)), "wrong-features"),
    "another width": (npz(caption_feature=np.zeros((1, 9, 7), np.float32)), "wrong-features"),
    "whole numbers": (npz(caption_feature=np.zeros((1, 9, 6), int)), "wrong-features"),
    "float64": (npz(caption_feature=embedding(0, 9, np.float64)), "wrong-features"),
    "a mask of another length": (npz(caption_feature=embedding(0, 9), attention_mask=mask(4, 8)), "wrong-features"),
    "a mask of another rank": (npz(caption_feature=embedding(0, 9), attention_mask=mask(4, 9)[0]), "wrong-features"),
    "a mask of words": (npz(caption_feature=embedding(0, 2), attention_mask=np.array([["1", "0"]])), "wrong-features"),
    "a mask of nothing": (npz(caption_feature=embedding(0, 9), attention_mask=mask(0, 9)), "wrong-features"),
    "a mask with a hole": (
        npz(caption_feature=embedding(0, 3), attention_mask=np.array([[1, 0, 1]])),
        "wrong-features",
    ),
    "NaN": (npz(caption_feature=with_(embedding(0, 9), (0, 3, 2), np.nan), attention_mask=mask(4, 9)), "not-finite"),
    "infinity": (npz(caption_feature=with_(embedding(0, 9, np.float16), (0, 8, 0), np.inf)), "not-finite"),
    "NaN in the padding": (
        npz(caption_feature=with_(embedding(0, 9), (0, 4, 2), np.nan), attention_mask=mask(4, 9)),
        "",
    ),
}
BAD_LATENTS = {
    "empty": (b"", "damaged"),
    "cut short": (npy(posterior(0))[:-1], "damaged"),
    "pickled": (npy(np.array([{}], object)), "damaged"),
    "a version of the future": (b"\x93NUMPY\x09\x00" + npy(posterior(0))[8:], "damaged"),
    "text": (GOOD_TEXT, "wrong-features"),
    "mean alone": (npy(posterior(0)[:4]), "wrong-features"),
    "a leading axis": (npy(posterior(0)[None]), "wrong-features"),
    "channels last": (npy(np.moveaxis(posterior(0), 0, -1)), "wrong-features"),
    "no cells": (npy(posterior(0)[:, :0]), "wrong-features"),
    "float64": (npy(posterior(0, np.float64)), "wrong-features"),
    "NaN in the mean": (npy(with_(posterior(0), (0, 1, 1), np.nan)), "not-finite"),
    "infinity in the deviation": (npy(with_(posterior(0, np.float16), (7, 1, 1), np.inf)), "not-finite"),
    "a negative deviation": (npy(with_(posterior(0), (4, 1, 1), -1e-3)), "wrong-features"),
    "Fortran order": (npy(np.asfortranarray(posterior(0))), ""),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_text_features(tree, case):
    content, reason = BAD_TEXTS[case]
    tree.alpha([record("a.png"), record("b.png")], [3, 3])
    (tree.text / "a.npz").write_bytes(content)
    assert reasons(tree.open()) == [reason, ""]


@pytest.mark.parametrize("case", BAD_LATENTS)
def test_bad_latents(tree, case):
    content, reason = BAD_LATENTS[case]
    tree.alpha([record("a.png"), record("b.png")], [3, 3])
    (tree.latents / "a.npy").write_bytes(content)
    assert reasons(tree.open()) == [reason, ""]


BAD_RECORDS = {
    "no object": 3,
    "no path": {"height": 3, "width": 4},
    "a path that is a number": record(3),
    "an empty path": record(""),
    "no height": {"path": "a.png", "width": 4},
    "a height of text": record("a.png", height="700"),
    "a height that is true": record("a.png", height=True),
    "no height to speak of": record("a.png", height=0),
    "half a pixel": record("a.png", width=0.5),
    "a caption that is a list": record("a.png", prompt=["a"]),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records(tree, case):
    tree.alpha([record("a.png"), record("b.png")], [3, 3])
    tree.write_list([BAD_RECORDS[case], record("b.png")])
    assert reasons(tree.open()) == ["bad-record", ""]


def test_a_record_without_a_caption_has_none(tree):
    tree.alpha([record("a.png", prompt=None)], [3])
    assert tree.open()[0].caption == ""


def test_what_is_missing_is_named(tree):
    tree.alpha([record("d/a.png")], [3])
    for field, folder in (("text", tree.text), ("latents", tree.latents)):
        with pytest.raises(InputError, match=r"nowhere is no folder; name"):
            open_reference_features(
                tree.list, **{"text_dir": tree.text, "latents_dir": tree.latents, f"{field}_dir": "nowhere"}
            )
        file = next(folder.iterdir())
        file.rename(file.with_name("other" + file.suffix))
        with pytest.raises(InputError, match=rf"{folder.name} has no features of this list.* d_a\.np"):
            tree.open()
        file.with_name("other" + file.suffix).rename(file)
    (tree.latents / "d_a.npy").unlink()
    with pytest.raises(BadItem, match=r"d/a\.png: missing-file: .*d_a\.npy is not there"):
        _one_of_two(tree)
    tree.write_list([3])
    with pytest.raises(InputError, match="no record has a path"):
        tree.open()


def _one_of_two(tree):
    np.save(tree.latents / "d_b.npy", posterior(0))
    tree.write_list([record("d/a.png"), record("d/b.png")])
    return tree.open()[0]


def test_the_width_of_the_real_encoder_is_the_default(tree):
    tree.alpha([record("a.png")], [3])
    with pytest.raises(BadItem, match=r"caption_feature is \(1, 120, 6\), not \(1, tokens, 4096\)"):
        open_reference_features(tree.list, text_dir=tree.text, latents_dir=tree.latents)[0]


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", npy(posterior(0))[:70], GOOD_TEXT[:200]]))
def test_arbitrary_bytes_are_a_bad_item(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(start + data)
    with pytest.raises(BadItem):
        loaded = reference_features._load(str(path), "key")
        raise AssertionError(f"read {loaded!r}")
