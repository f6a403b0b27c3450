"""Every file of a source is used, skipped with its reason, or counted as no picture; none stops a run or is let in."""

import io
import json
import os
import tarfile

import numpy as np
import pillow_heif
import pytest
from picture_cases import fill, one, outcomes, tar
from PIL import Image

from pixart_jax.data import decoding, picture_formats
from pixart_jax.data.npy import load_array
from pixart_jax.data.pictures import BadItem, open_pictures
from pixart_jax.errors import InputError


def encoded(format):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, format)
    return file.getvalue()


FORMATS = {
    "jfif": "JPEG", "jpe": "JPEG", "JIF": "JPEG", "apng": "PNG", "jp2": "JPEG2000", "ppm": "PPM", "tga": "TGA",
    "ico": "ICO", "qoi": "QOI", "pcx": "PCX", "dib": "DIB", "sgi": "SGI", "dds": "DDS", "icns": "ICNS",
}  # fmt: skip


@pytest.mark.parametrize("in_tar", [False, True])
def test_all_that_pillow_opens_is_used(tmp_path, in_tar):
    files = {f"{name}.{name}": encoded(format) for name, format in FORMATS.items()}
    # Without an extension, or with one that is nobody's.
    files |= {"bare": encoded("JPEG"), "upload.tmp": encoded("PNG")}
    captions = {f"{name}.txt": name for name in FORMATS} | {
        "bare.txt": "bare",
        "upload.tmp.txt": "t",
        "upload.txt": "t",
    }
    others = {"notes": "Pictures of mine", "run.py": "P5 = 3", "README.md": "read", ".DS_Store": "x"}
    root = fill(tmp_path, {"x.tar": tar(files | captions)} if in_tar else files | captions | others)
    source = open_pictures(f"{root}/x.tar" if in_tar else root)
    assert len(source) == len(files) and all(isinstance(found, tuple) for found in outcomes(source).values())
    for i in range(len(source)):
        assert decoding.decode(source[i].data, max_pixels=2**20, min_side=1).size[0] > 0
    if not in_tar:
        assert source.others == {".txt": len(captions), "without extension": 1, ".py": 1, ".md": 1, "hidden": 1}
        assert sum(source.others.values()) + len(source) == len(list(tmp_path.iterdir()))


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_pictures_that_are_not_read_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "formats", lambda: ("JPEG", "PNG"))
    monkeypatch.setattr(decoding, "formats_of", lambda data: ("JPEG", "PNG"))
    for name in ("a.heic", "b.HEIF", "c"):
        source = open_pictures(fill(tmp_path / name.replace(".", "-"), {name: HEIC, name.split(".")[0] + ".txt": "t"}))
        with pytest.raises(decoding.BadImage, match=r"unsupported: .*pip install pillow-heif"):
            decoding.decode(source[0].data, max_pixels=100, min_side=1)
    names = ("a.svg", "b.cr2", "c.DNG", "d.jxl")
    files = dict.fromkeys(names, "II*\0") | {f"{name[0]}.txt": "t" for name in names}
    assert set(outcomes(open_pictures(fill(tmp_path / "raws", files))).values()) == {"unsupported"}
    path = fill(tmp_path, {"x.tar": tar(files)}) + "/x.tar"
    assert set(outcomes(open_pictures(path)).values()) == {"unsupported"}
    path = fill(tmp_path, {"l.json": json.dumps([{"path": name, "prompt": "t"} for name in names])}) + "/l.json"
    assert set(outcomes(open_pictures(path)).values()) == {"unsupported"}


def test_avif_without_a_pillow_that_opens_it(monkeypatch):
    monkeypatch.setattr(decoding, "formats", lambda: ("JPEG", "PNG"))
    monkeypatch.setattr(decoding, "formats_of", lambda data: ("JPEG", "PNG"))
    with pytest.raises(decoding.BadImage, match=r"unsupported: an AVIF .*pip install 'pillow>=11\.3'"):
        decoding.decode(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", max_pixels=100, min_side=1)


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_pictures_of_phones(tmp_path, ending):
    """Coded and decoded: the colours stay."""
    if ending == "heic":
        pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 48), (200, 80, 40)).save(tmp_path / f"a.{ending}", quality=90)
    fill(tmp_path, {"a.txt": "rust"})
    picture = open_pictures(str(tmp_path))[0]
    image = decoding.decode(picture.data, max_pixels=10**6, min_side=1)
    assert image.size == (64, 48) and np.abs(np.asarray(image, int) - (200, 80, 40)).max() < 6


def test_heic_is_known_by_its_brand():
    assert picture_formats.is_heif(HEIC) and picture_formats.begins_like_a_picture(HEIC[: picture_formats.HEAD])
    assert not picture_formats.is_heif(b"\0\0\0\x18ftypisom")


EMPTY_HIDES_GOOD = {
    ".txt hides .json": {"0.txt": "", "0.json": '{"caption": "good"}'},
    ".txt of white space": {"0.txt": " \n", "0.caption": "good"},
    ".txt that is no UTF-8": {"0.txt": b"\xff", "0.caption": "good"},
    ".caption hides .json": {"0.caption": "", "0.json": '{"prompt": "good"}'},
    "captions hide prompt": {"0.json": '{"captions": ["", {"text": " "}], "prompt": "good"}'},
    "an empty list": {"0.json": '{"captions": [], "text": "good"}'},
}


@pytest.mark.parametrize("case", EMPTY_HIDES_GOOD)
def test_an_empty_caption_hides_no_good_one(tmp_path, case):
    path = fill(tmp_path, {"x.tar": tar({"0.jpg": "x"} | EMPTY_HIDES_GOOD[case])}) + "/x.tar"
    assert outcomes(open_pictures(path)) == {"0": one("good")}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"img.v1.jpg": "", "img.v1.txt": "one", "img.v2.jpg": "", "img.v2.txt": "two"},
            {"img.v1": one("one"), "img.v2": one("two")},
        ),
        ({"img.v1.jpg": "", "img.v2.jpg": "", "img.txt": "both"}, {"img.v1": one("both"), "img.v2": one("both")}),
        ({"img.jpg": "", "img.txt": "a", "img.v2.jpg": "", "img.v2.txt": "b"}, {"img": one("a"), "img.v2": one("b")}),
        ({"0.jpg": "", "0.txt": "a", "0.seg.png": "", "0.depth.png": ""}, {"0": one("a")}),
        ({"2024.05.01.jpg": "", "2024.05.01.txt": "may", "2024.06.01.jpg": "", "2024.06.01.cls": "3"},
         {"2024.05.01": one("may"), "2024.06.01": 3}),
    ],
)  # fmt: skip
def test_names_with_several_dots_in_a_tar(tmp_path, files, expected):
    source = open_pictures(fill(tmp_path, {"x.tar": tar(files)}) + "/x.tar")
    assert outcomes(source) == expected
    assert source.others.get("another view of a picture", 0) == sum(".png" in name for name in files)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    paths = ["/dev/zero", "/dev/urandom", "fifo.png", ".", "/dev/tty"]
    root = fill(tmp_path, {"l.json": json.dumps([{"path": path, "prompt": "p"} for path in paths])})
    assert set(outcomes(open_pictures(f"{root}/l.json")).values()) == {"unreadable"}
    fill(tmp_path / "f", {"a.png": "x"})
    os.mkfifo(tmp_path / "f/a.txt")
    os.mkfifo(tmp_path / "f/pipe")
    assert outcomes(open_pictures(str(tmp_path / "f"))) == {"a": "unreadable"}
    for name in ("l.tar", "l2.json", "l3.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=r"a device, a pipe or a socket"):
            open_pictures(str(tmp_path / name))


def test_sizes_are_looked_at_first(tmp_path):
    root = fill(tmp_path, {"p/a.png": "x", "p/a.txt": "t", "p/b.png": "x", "p/b.txt": "t"})
    os.truncate(tmp_path / "p/a.png", 2**41)
    os.truncate(tmp_path / "p/b.txt", 2**41)
    assert outcomes(open_pictures(f"{root}/p")) == {"a": "too-large", "b": "too-large"}
    info = tarfile.TarInfo("0.jpg")
    info.size = 2**41
    header = info.tobuf(tarfile.GNU_FORMAT)
    fill(tmp_path, {"x.tar": header})
    os.truncate(tmp_path / "x.tar", 2**41 + 2048)
    assert outcomes(open_pictures(f"{root}/x.tar")) == {"0": "too-large"}
    (tmp_path / "l.json").touch()
    os.truncate(tmp_path / "l.json", 2**41)
    with pytest.raises(InputError, match="at most"):
        open_pictures(f"{root}/l.json")


@pytest.mark.parametrize("field", ["path", "prompt", "captions", "label"])
@pytest.mark.parametrize("depth", [900, 100_000])
def test_json_nested_deep(tmp_path, field, depth):
    nested = "[" * depth + "]" * depth
    deep = f'{{"path": "a.png", "prompt": "p", "label": 1, "{field}": {nested}}}'
    good = '{"path": "a.png", "prompt": "fine"}'
    root = fill(tmp_path, {"a.png": "x", "l.jsonl": f"{good}\n{deep}\n", "x.tar": tar({"0.jpg": "x", "0.json": deep})})
    assert list(outcomes(open_pictures(f"{root}/l.jsonl")).values()) == [one("fine"), "bad-record"]
    if field in ("prompt", "captions"):
        assert outcomes(open_pictures(f"{root}/x.tar")) == {"0": "bad-record"}


@pytest.mark.parametrize(
    "secret", [b"root:secret:0:0", b"P5 secret secret", b"\x89PNG\r\n\x1a\nsecretsecretsecret", b"\xff\xd8secret"]
)
def test_no_message_holds_bytes_of_what_is_no_picture(tmp_path, secret):
    fill(tmp_path, {"data/l.json": json.dumps([{"path": "../secret", "prompt": "p"}]), "secret": secret * 20})
    data = open_pictures(f"{tmp_path}/data/l.json")[0].data
    with pytest.raises(decoding.BadImage) as caught:
        decoding.decode(data, max_pixels=2**20, min_side=1)
    assert "secret" not in str(caught.value) and "root" not in str(caught.value)


def test_npy_headers():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for whole in (array, np.asfortranarray(array), array.astype(np.float16), array[:0]):
        file = io.BytesIO()
        np.save(file, whole)
        data = file.getvalue()
        np.testing.assert_array_equal(load_array(io.BytesIO(data), len(data)), whole)
    for old, new in (
        (b"(2, 3)", b"(2**3)"), (b"(2, 3)", b"(9, 9)"), (b"(2, 3)", b"(2,-3)"), (b"'<f4'", b"'|O8'"), (b"{", b"("),
        (b"NUMPY", b"NUMBY"),
    ):  # fmt: skip
        file = io.BytesIO()
        np.save(file, array)
        data = file.getvalue().replace(old, new)
        with pytest.raises(ValueError, match=r"header|pickled"):
            load_array(io.BytesIO(data), len(data))


def test_a_list_is_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    (tmp_path / "ü.png").write_bytes(b"x")
    path = fill(tmp_path, {"l.json": json.dumps([{"path": "ü.png", "prompt": "p"}])}) + "/l.json"
    monkeypatch.setattr(os, "fsencode", lambda text: text if isinstance(text, bytes) else str(text).encode("latin-1"))
    assert outcomes(open_pictures(path)) == {"ü.png": one("p")}


def test_reading_after_a_file_has_grown_or_gone(tmp_path):
    source = open_pictures(fill(tmp_path, {"a.png": "x", "a.txt": "t"}))
    os.truncate(tmp_path / "a.png", 2**40)
    with pytest.raises(BadItem, match="too-large"):
        source[0]
