"""WebDataset tars of every format, broken and cut short anywhere."""

import gzip
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_cases import fill, one, outcomes, tar

from pixart_jax.data.pictures import BadItem, open_pictures
from pixart_jax.errors import InputError


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_webdataset(tmp_path, format):
    long = "/".join(["ein-langer-name"] * (9 if format == tarfile.USTAR_FORMAT else 30))
    files = {
        "./0.jpg": b"zero",
        "./0.txt": "nought",
        "dir/1.json": '{"caption": "uno", "prompt": "eins"}',
        f"{long}.PNG": b"long",
        "dir/1.jpg": b"one",
        f"{long}.caption": "lang",
        "2.webp": b"two",
        "2.cls": "3\n",
        "2.seg.png": b"no picture of this key",
        "dir/._1.jpg": b"of a Mac",
        "ü.gif": b"ue",
        "ü.txt": "\ufeffumlaut",
    }
    path = fill(tmp_path, {"x.tar": tar(files, format)}) + "/x.tar"
    with tarfile.open(path, "a", format=format) as archive:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type, folder.size = tarfile.DIRTYPE, 700  # a size that no data follow
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("last.png"))
    source = open_pictures(path, caption_weights={"caption": 3})
    assert outcomes(source) == {
        "0": one("nought"),
        "dir/1": (("eins", 0.25), ("uno", 0.75)),
        long: one("lang"),
        "2": 3,
        "ü": one("umlaut"),
        "last": "caption-missing",
    }
    assert [source[i].data for i in range(5)] == [b"zero", b"one", b"long", b"two", b"ue"]
    assert source.class_names == ("0", "1", "2", "3")


def test_several_tars(tmp_path):
    shards = {
        f"s/{i:03d}.tar": tar({f"{i % 2}.png": f"{i}", f"{i % 2}.txt": "t", f"u{i}.gif": "", f"u{i}.cls": "0"})
        for i in range(3)
    }
    root = fill(tmp_path, shards)
    source = open_pictures(f"{root}/s/*.tar")
    assert list(outcomes(source)) == ["000/0", "u0", "1", "u1", "002/0", "u2"]
    assert [source[i].data for i in (0, 2, 4)] == [b"0", b"1", b"2"]
    assert list(outcomes(open_pictures(root + "/s/{001..002}.tar"))) == ["1", "u1", "0", "u2"]
    with pytest.raises(InputError, match=r"003\.tar, of .*\{000\.\.999\}\.tar, is not there"):
        open_pictures(root + "/s/{000..999}.tar")
    with pytest.raises(InputError, match="is empty"):
        open_pictures(root + "/s/{2..1}.tar")
    for missing in ("*.tar", "{a,b}.tar", "none.tar"):
        with pytest.raises(InputError, match=r"is not there|no such file"):
            open_pictures(f"{root}/{missing}")


def test_broken_items_of_a_tar(tmp_path):
    files = {"0.txt": "no picture", "2.txt": " ", "3.txt": b"\xff", "4.json": "{", "5.json": "[]"}
    files |= {"6.json": '{"caption": 3}', "7.cls": "-1", "8.cls": "9999999", "9.json": '{"url": ""}'}
    files = {"0.txt": "no picture"} | {f"{i}.png": "x" for i in range(1, 10)} | files
    reasons = ["image-missing", "caption-missing", "caption-empty", "caption-not-utf8"]
    reasons += ["bad-record"] * 5 + ["caption-missing"]
    path = fill(tmp_path, {"x.tar": tar(files)}) + "/x.tar"
    source = open_pictures(path)
    assert list(outcomes(source).values()) == reasons
    os.truncate(path, 0)
    changed = ["image-missing", *["unreadable"] * 6, "bad-record", "bad-record", "unreadable"]
    assert list(outcomes(source).values()) == changed
    os.remove(path)
    gone = [reason.replace("unreadable", "missing-file") for reason in changed]
    assert list(outcomes(source).values()) == gone


def test_a_tar_cut_short_at_any_byte(tmp_path):
    whole = tar({f"{i}.{extension}": f"{i}" * 600 for i in range(3) for extension in ("png", "txt")})
    ends = [(member + 1) * 1536 - 1024 + 600 for member in range(6)]
    for size in sorted({*range(0, 6 * 1536 + 512, 37), *ends, *(end - 1 for end in ends), *range(0, 9217, 512)}):
        path = fill(tmp_path, {"x.tar": whole[:size]}) + "/x.tar"
        members = sum(size >= end for end in ends)
        if members == 0:
            with pytest.raises(InputError, match=r"x\.tar"):
                open_pictures(path)
            continue
        expected = {
            str(i): one(f"{i}" * 600) if members > 2 * i + 1 else "caption-missing" for i in range((members + 1) // 2)
        }
        assert outcomes(open_pictures(path)) == expected | {"x.tar": "truncated-tar"}, size
    assert "x.tar" not in outcomes(open_pictures(fill(tmp_path, {"x.tar": whole[: 6 * 1536 + 512]}) + "/x.tar"))


def test_tars_that_are_none(tmp_path):
    good = tar({"0.png": b"0"})
    for content, message in (
        (gzip.compress(good), "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
        (bytes(10240), "no files in 1"),
        (b"", "ends at byte 0"),
        (b"text" * 300, "no tar file: b'texttext' is no number"),
        (b"\1" + good[1:], "no tar file: its checksum is wrong"),
        (good[:100], "no tar file: only 100 bytes"),
    ):
        path = fill(tmp_path, {"bad.tar": content}) + "/bad.tar"
        with pytest.raises(InputError) as caught:
            open_pictures(path)
        assert "bad.tar" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "patch", "message"),
    [
        (156, b"S", "sparse"),
        (156, b"L", "of 1 bytes"),  # the name of a member that does not come
        (124, b"77777777777", "of 8589934591 bytes, and the tar ends at byte 10240"),
        (124, b"\xff" * 12, "of -1 bytes"),
        (124, b"0000000000x", "is no number"),
        (156, b"x", "a broken PAX header"),
        (148, b"0000001\0", "its checksum is wrong"),
    ],
)
def test_a_damaged_header(tmp_path, offset, patch, message):
    """The second member's is; the first is as good as ever."""
    content = bytearray(tar({"0.png": "0", "0.cls": "5", "1.png": "1"}))
    content[2048 + offset : 2048 + offset + len(patch)] = patch
    if offset != 148:
        _mend_checksum(content, 2048)
    source = open_pictures(fill(tmp_path, {"x.tar": bytes(content)}) + "/x.tar")
    if patch == b"L":
        assert outcomes(source) == {"0": 5}
        return
    assert outcomes(source) == {"0": 5, "x.tar": "truncated-tar"}
    with pytest.raises(BadItem, match=message):
        source[1]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_tar_never_surprises(tmp_path_factory, data):
    """Bytes overwritten anywhere: items, bad items or InputError, and nothing but the damage is lost."""
    files = {"0.png": "0" * 700, "0.txt": "nought", "a" * 120 + "/1.png": "1", "a" * 120 + "/1.cls": "7"}
    content = bytearray(tar(files, data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, 6000) | st.sampled_from([124, 156, 1536 + 124, 1536 + 156, 2560 + 512]))
        patch = data.draw(st.binary(min_size=1, max_size=12) | st.just(b"77777777777"))
        content[position : position + len(patch)] = patch
        if data.draw(st.booleans()):
            block = position // 512 * 512
            _mend_checksum(content, block)
    folder = tmp_path_factory.getbasetemp() / "damaged"
    try:
        found = outcomes(open_pictures(fill(folder, {"x.tar": bytes(content)}) + "/x.tar"))
    except InputError:
        return
    assert len(found) <= 6


def _mend_checksum(content, block):
    header = content[block : block + 512]
    header[148:156] = b" " * 8
    content[block + 148 : block + 156] = b"%06o\0 " % sum(header)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=1200))
def test_arbitrary_bytes_are_no_tar(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "arbitrary_tar"
    with pytest.raises(InputError):
        open_pictures(fill(folder, {"x.tar": data}) + "/x.tar")
