"""Control pictures on their way into feature shards: edges of each picture, or pictures given beside them."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage import data

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.canny import canny
from pixart_jax.data.decoding import fit
from pixart_jax.data.pictures import open_pictures
from pixart_jax.data.pictures.controls import ControlledPictures
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.pretrained import Autoencoder, local_mesh
from tools import extract_features


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two pictures with captions, and a negative of each but for the second, whose is too small."""
    root = tmp_path_factory.mktemp("photos")
    for folder in ("photos", "negatives"):
        (root / folder / "of").mkdir(parents=True)
    for name, pixels in (("cat", data.chelsea()), ("of/cup", data.coffee())):
        image = Image.fromarray(pixels)
        image.save(root / "photos" / f"{name}.jpg", quality=95)
        (root / "photos" / f"{name}.txt").write_text("a red cat")
        negative = ImageOps.invert(image)
        (negative if name == "cat" else negative.resize((200, 133))).save(root / "negatives" / f"{name}.png")
    return root


def extract(photos, weights, out, *options):
    arguments = ["--source", str(photos / "photos"), "--out", str(out), "--resolution", "256", "--batch-size", "2"]
    return extract_features.main([*arguments, "--checkpoint", str(weights), *options])


def expected(weights, make, photo):
    """Latents' mean of what is made of a photograph in its bucket."""
    with Image.open(photo) as image:
        fitted = fit(image.convert("RGB"), Bucket(0.67, 208, 304))
    vae = Autoencoder(weights / "vae", mesh=local_mesh())
    return vae.encode(make(fitted)[None], 2)[0][0]


def test_edges(photos, weights, tmp_path):
    assert extract(photos, weights, tmp_path / "set", "--control", "canny") == 0
    reader = ShardReader(tmp_path / "set")
    assert reader.manifest.control == "canny" and len(reader) == 2
    assert json.loads((tmp_path / "set" / "recipe.json").read_text())["control"] == "canny: canny"
    wanted = expected(
        weights, lambda pixels: np.repeat(canny(pixels)[..., None] * np.uint8(255), 3, 2), photos / "photos/cat.jpg"
    )
    sample = reader[0]
    assert sample.bucket == (208, 304) and sample.control_std.min() >= 0
    np.testing.assert_allclose(sample.control_mean, wanted, rtol=2e-3, atol=2e-3)
    assert np.abs(sample.control_mean - sample.latent_mean).max() > 0.1
    # Without them the set is what it was, and says nothing of them.
    assert extract(photos, weights, tmp_path / "plain") == 0
    plain = ShardReader(tmp_path / "plain")
    np.testing.assert_array_equal(plain[0].latent_mean, sample.latent_mean)
    assert plain[0].control_mean is None and "control" not in (tmp_path / "plain" / "manifest.json").read_text()


def test_given(photos, weights, tmp_path, capsys):
    assert (
        extract(photos, weights, tmp_path / "set", "--control=given", "--control-dir", str(photos / "negatives")) == 0
    )
    reader = ShardReader(tmp_path / "set")
    assert reader.manifest.control == "given" and len(reader) == 1
    skipped = json.loads((tmp_path / "set" / "skipped.jsonl").read_text())
    assert skipped["reason"] == "control-size" and "200×133 pixels, it has 600×400" in skipped["message"]
    wanted = expected(weights, lambda pixels: 255 - pixels, photos / "photos/cat.jpg")
    assert np.corrcoef(reader[0].control_mean.ravel(), wanted.ravel())[0, 1] > 0.99  # But for the JPEG's loss.
    for options, message in (
        (["--control=given"], "--control=given needs the folder of the control pictures (--control-dir)"),
        (["--control=canny", "--control-dir=x"], "--control=canny does not heed --control-dir"),
        (["--control=hed"], "HED's edges need its weights"),
        (["--hed=x"], "--hed is for --control=hed"),
        (["--control=given", "--control-dir=absent"], "absent is no folder"),
    ):
        capsys.readouterr()
        assert extract(photos, weights, tmp_path / "no", *options) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_a_change_of_a_control_picture_is_seen(photos, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"1")
    pictures = open_pictures(str(photos / "photos"))
    before = ControlledPictures(pictures, tmp_path)
    assert before[0].control == b"1" and before[0].data == pictures[0].data
    for method in ("words", "data", "file"):
        assert getattr(before, method)(1) == getattr(pictures, method)(1)
    same = ControlledPictures(pictures, tmp_path).digest(range(2))
    assert same == before.digest(range(2)) != pictures.digest(range(2))
    (tmp_path / "cat.png").write_bytes(b"12")
    after = ControlledPictures(pictures, tmp_path)
    assert after.digest(range(2)) != same and after.fingerprint() != before.fingerprint()
