"""Control pictures on their way into feature shards: edges of each picture, or pictures given beside them."""

import json

import numpy as np
import pytest
from picture_cases import fill, tar
from PIL import Image, ImageOps
from skimage import data

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.canny import canny
from pixart_jax.data.decoding import fit
from pixart_jax.data.pictures import BadItem, open_pictures
from pixart_jax.data.pictures.controls import ControlledPictures
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.pretrained import Autoencoder, local_mesh
from pixart_jax.encoding.tar_shards import TarItem, write_tar
from pixart_jax.errors import InputError
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
        (["--control=given"], "names no control pictures: a list does it"),
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


def outcomes(pictures):
    """The control picture of every item, or why there is none."""
    found = {}
    for index in range(len(pictures)):
        try:
            item = pictures[index]
            found[item.key] = item.control
        except BadItem as error:
            found[error.key] = error.reason, error.message
    return found


def test_a_list_names_them(photos, tmp_path):
    records = [
        {"path": "a.jpg", "text": "a", "control": "edges/a.png"},
        {"path": "b.jpg", "text": "b"},
        {"path": "c.jpg", "text": "c", "control": "edges/none.png"},
        {"path": "d.jpg", "text": "d", "control": 3},
        {"path": "e.jpg", "text": "e", "control": "."},
    ]
    files = {f"{name}.jpg": name for name in "abcde"} | {"edges/a.png": "of a"}
    fill(tmp_path, files | {"list.jsonl": "\n".join(map(json.dumps, records))})
    pictures = open_pictures(str(tmp_path / "list.jsonl"))
    found = outcomes(ControlledPictures(pictures, None))
    assert found["a.jpg"] == b"of a"
    assert found["b.jpg"] == ("control-missing", "its source names no control picture of it")
    assert found["c.jpg"][0] == "control-missing" and str(tmp_path / "edges/none.png") in found["c.jpg"][1]
    assert found["d.jpg"] == ("bad-record", "control must name a file, not 3")
    assert found["e.jpg"][0] == "unreadable" and "its control picture" in found["e.jpg"][1]
    # Who wants none is not kept from anything by them.
    assert [pictures[i].data for i in range(5)] == [name.encode() for name in "abcde"]
    with pytest.raises(InputError, match="names no control pictures"):
        ControlledPictures(open_pictures(str(photos / "photos")), None)


def test_a_tar_names_them(tmp_path):
    files = {"a.jpg": "a", "a.txt": "a", "a.control.png": "of a", "b.jpg": "b", "b.txt": "b", "b.seg.png": "s"}
    files |= {"c.v1.jpg": "c1", "c.v2.jpg": "c2", "c.txt": "c", "c.v1.control.webp": "of c1"}
    # Alone it is a picture like any other.
    files |= {"d.control.png": "d", "d.txt": "d"}
    (tmp_path / "with.tar").write_bytes(tar(files))
    without = {name: content for name, content in files.items() if not name.startswith(("a.control", "c.v1.control"))}
    (tmp_path / "without.tar").write_bytes(tar(without))
    pictures = open_pictures(str(tmp_path / "with.tar"))
    found = outcomes(ControlledPictures(pictures, None))
    missing = "control-missing", "its source names no control picture of it"
    assert found == {"a": b"of a", "b": missing, "c.v1": b"of c1", "c.v2": missing, "d.control": missing}
    assert pictures.others == {"another view of a picture": 1} and pictures.num_controls == 2
    assert open_pictures(str(tmp_path / "without.tar")).num_controls == 0
    # What moved within the tar is seen.
    files["a.control.png"] = "of  a"
    (tmp_path / "other.tar").write_bytes(tar(files))
    first, second = (
        ControlledPictures(open_pictures(str(tmp_path / name)), None) for name in ("with.tar", "other.tar")
    )
    assert first.digest(range(1)) != second.digest(range(1))


def test_a_tar_that_captioning_wrote_has_them(photos, tmp_path):
    picture, control = ((photos / path).read_bytes() for path in ("photos/cat.jpg", "negatives/cat.png"))
    write_tar(tmp_path / "a.tar", [TarItem("0", picture, {"text": "a cat"}, control), TarItem("1", picture, {})])
    pictures = ControlledPictures(open_pictures(str(tmp_path / "a.tar")), None)
    assert (pictures[0].data, pictures[0].control) == (picture, control) and len(pictures) == 2
