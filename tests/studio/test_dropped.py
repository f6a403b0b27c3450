"""Files that visitors bring are data, whatever they hold."""

import dataclasses
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pixart_jax.errors import InputError
from pixart_jax.studio import dropped
from pixart_jax.studio.dropped import picture_in, settings_in
from pixart_jax.studio.settings import CHUNK, Limits, Settings, checked

FIRST = Settings(prompt="", size=512, sampler="dpm-solver", num_steps=20, guidance_scale=4.5)


def png(path, chunks, size=(8, 8)):
    info = PngImagePlugin.PngInfo()
    for name, value in chunks.items():
        info.add_text(name, value, zip=len(value) > 1000)
    Image.new("RGB", size).save(path, pnginfo=info)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_settings_come_back_from_our_own_and_from_tools_sample(tmp_path):
    settings = dataclasses.replace(FIRST, prompt="a <b>café</b> 猫", seed=2**64 - 1, aspect_ratio="16:9", num_images=3)
    assert checked(settings_in(png(tmp_path / "a.png", settings.chunks({}, 1))), FIRST, {}) == settings
    told = {"prompt": "a cat", "seed": "7", "sampler": "lcm", "num_steps": "4", "height": "384", "width": "688"}
    found = checked(settings_in(png(tmp_path / "b.png", told | {"checkpoint": "x", "size": "512"})), FIRST, {})
    expected = {"prompt": "a cat", "seed": 7, "sampler": "lcm", "num_steps": 4, "aspect_ratio": "16:9"}
    assert found == dataclasses.replace(FIRST, **expected)
    guided = settings_in(png(tmp_path / "c.png", {"prompt": "a cat", "guidance": "path_drop"}))
    assert checked(guided, FIRST, {}, limits=Limits(guidances=("cfg", "path_drop"))).guidance == "path_drop"
    with pytest.raises(InputError, match="guidance = 'path_drop': must be one of cfg"):
        checked(guided, FIRST, {})


@pytest.mark.parametrize(
    "chunks, words",
    [
        ({}, "does not say what it was drawn with"),
        ({CHUNK: "[" * 100_000}, "more than 65,536 characters"),
        ({CHUNK: "[" * 60_000}, "damaged"),
        ({CHUNK: "__import__('os')"}, "damaged"),
        ({CHUNK: "[1]"}, "no JSON object"),
        ({"prompt": "x", "num_steps": "nan"}, "damaged"),
        ({"prompt": "x", "width": "1", "height": "0"}, "damaged"),
    ],
)
def test_texts_that_say_nothing_are_told(tmp_path, chunks, words):
    with pytest.raises(InputError, match=words):
        settings_in(png(tmp_path / "a.png", chunks))


def test_files_that_are_no_pictures_or_too_large_are_told(tmp_path, monkeypatch):
    path = tmp_path / "secret" / "x.png"
    path.parent.mkdir()
    for data in (b"", b"<html><script>", pickle.dumps({"a": 1}), b"\x89PNG\r\n\x1a\n" + b"\0" * 30):
        path.write_bytes(data)
        for read in (settings_in, picture_in):
            with pytest.raises(InputError) as caught:
                read(path)
            assert "secret" not in str(caught.value)
    # A bomb: a few bytes that say they are a hundred thousand pixels a side.
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    for read in (settings_in, picture_in):
        with pytest.raises(InputError):
            read(path)
    with open(path, "wb") as file:
        file.truncate(dropped.MAX_BYTES + 1)
    with pytest.raises(InputError, match="the file"):
        picture_in(path)


def test_pictures_of_any_format_are_read(tmp_path):
    Image.fromarray(np.full((16, 24, 3), 200, np.uint8)).save(tmp_path / "a.jpg")
    assert picture_in(tmp_path / "a.jpg").shape == (16, 24, 3)
    Image.new("1", (9, 9)).save(tmp_path / "b.bmp")
    assert picture_in(tmp_path / "b.bmp").shape == (9, 9, 3)
