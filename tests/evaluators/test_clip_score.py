"""CLIP score of given features is torchmetrics'; captions of a folder are found, or it is said whose are not."""

import json

import numpy as np
import pytest
from golden_cases import GOLDEN

from pixart_jax.errors import InputError
from pixart_jax.evaluators.captions import CaptionSet, read_captions
from pixart_jax.evaluators.clip_score import clip_score, cosines


@pytest.fixture(scope="module")
def case():
    with np.load(GOLDEN / "extras" / "clip_score.npz") as arrays:
        return dict(arrays)


def test_scores_are_torchmetrics(case):
    found = cosines(case["out/image_features"], case["out/text_features"])
    np.testing.assert_allclose(found, case["out/cosine"], atol=1e-6)
    np.testing.assert_allclose(2.5 * np.maximum(found, 0), case["out/hessel_w25"], atol=1e-6)
    # torchmetrics cut the end off the third caption.
    np.testing.assert_allclose(100 * found[:2], case["out/torchmetrics_scores"][:2], atol=1e-4)
    theirs = case["out/torchmetrics_scores"] / 100
    assert clip_score(theirs) == pytest.approx(float(case["out/torchmetrics_score"]), abs=1e-4)
    assert clip_score(found) == 0 and clip_score(-found) == pytest.approx(-100 * found.mean())


def test_what_has_no_score_is_refused():
    with pytest.raises(InputError, match=r"\[2, 3\] and of captions \[1, 3\]"):
        cosines(np.ones((2, 3)), np.ones((1, 3)))
    with pytest.raises(InputError, match="none could be read"):
        clip_score([])


FILES = ("a.png", "deeper/b.c.jpg")


def test_captions_lie_beside_pictures_or_in_one_file(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeff ein Hündchen\n".encode())
    (tmp_path / "deeper" / "b.c.txt").write_text("a cat", encoding="utf-8")
    assert read_captions(tmp_path, FILES, None) == ["ein Hündchen", "a cat"]
    (tmp_path / "all.json").write_text(json.dumps({"a": "x", "deeper/b.c.jpg": " y ", "more": "z"}), encoding="utf-8")
    assert read_captions(tmp_path, FILES, tmp_path / "all.json") == ["x", "y"]
    (tmp_path / "all.json").rename(tmp_path / "captions.json")
    assert read_captions(tmp_path, FILES, None) == ["x", "y"]


def test_pictures_without_a_caption_are_named(tmp_path):
    (tmp_path / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match=r"2 of 2 pictures have no caption: a\.png, deeper/b\.c\.jpg; a \.txt"):
        read_captions(tmp_path, FILES, None)
    (tmp_path / "all.json").write_text('{"a.png": "x"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"1 of 2 pictures .*: deeper/b\.c\.jpg; .*all\.json should name it"):
        read_captions(tmp_path, FILES, tmp_path / "all.json")
    for text, said in (('{"a.png": 3}', r"a\.png is 3"), ("[]", "JSON object"), ("{", "damaged")):
        (tmp_path / "all.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=said):
            read_captions(tmp_path, FILES, tmp_path / "all.json")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_captions(tmp_path, FILES, None)


def test_each_caption_is_looked_at_once():
    found = CaptionSet.of(["b", "a", "b", "c"], 2)
    assert found.captions == ("b", "a", "c") and found.which == (0, 1, 0, 2) and len(found) == 3
    assert found.fingerprint != CaptionSet.of(["a", "b", "c"], 2).fingerprint
