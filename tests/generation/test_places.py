"""Pictures that are drawn are kept: places that cannot be written are found before, and each picture is saved when it
is done."""

import os
import resource
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tiny_words import write_words_data

from pixart_jax.errors import InputError
from pixart_jax.figures.images import save_png
from pixart_jax.files import check_writable
from pixart_jax.generation.pipeline import TextToImage
from tools import inspect_data, make_quickstart_data, make_recipe_data, sample


def in_the_way(folder):
    (folder / "file").write_text("")
    return folder / "file"


def below_a_file(folder):
    return in_the_way(folder) / "a" / "b"


def too_long(folder):
    return folder / "a" / ("x" * 300)


def a_path_too_long(folder):
    return folder.joinpath(*["x" * 250] * 17)


def a_loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop" / "a"


def a_dangling_link(folder):
    (folder / "link").symlink_to(folder / "nothing" / "there")
    return folder / "link"


def not_a_disk(folder):
    return f"/proc/{os.getpid()}/pictures"


PLACES = [in_the_way, below_a_file, too_long, a_path_too_long, a_loop, a_dangling_link, not_a_disk]


@pytest.mark.parametrize("place", PLACES)
def test_where_pictures_cannot_be_written_nothing_is_drawn(weights, tmp_path, place, monkeypatch, capsys):
    monkeypatch.setattr(TextToImage, "draw_each", lambda *arguments: pytest.fail("something is drawn"))
    out = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert sample.main(["--checkpoint", str(weights), "--prompt", "a red cat", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out ") and "name another" in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", PLACES[1:5])
@pytest.mark.parametrize("tool", [inspect_data, make_quickstart_data, make_recipe_data])
def test_other_tools_that_draw(tmp_path, tool, place, monkeypatch, capsys):
    for module, long in ((inspect_data, "survey_set"), (make_quickstart_data, "make"), (make_recipe_data, "make")):
        monkeypatch.setattr(module, long, lambda *arguments: pytest.fail("something is done"))
    data = [str(write_words_data(tmp_path / "data"))] if tool is inspect_data else []
    out = place(tmp_path)
    assert tool.main([*data, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(out)[:100] in error and error.count("\n") == 1


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "a" / "b", "--out")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_a_pictures_place(weights, tmp_path, capsys):
    for name in ("000_a-red-cat.png", "sheet.png"):
        (tmp_path / name).mkdir()
        arguments = ["--checkpoint", str(weights), "--prompt", "a red cat", "--out", str(tmp_path)]
        assert sample.main(arguments) == 2
        assert f"{name} is a folder, where a picture is to be" in capsys.readouterr().err
        (tmp_path / name).rmdir()


def test_a_disk_that_is_full_later_keeps_what_is_drawn(weights, tmp_path, monkeypatch, capsys):
    arguments = ["--checkpoint", str(weights), "--out", str(tmp_path), "--num-steps", "2"]
    arguments += [f"--prompt=picture {number}" for number in range(3)]
    save, done = sample.save_png, []

    def save_until_full(path, image, text=None):
        if len(done) < 2:
            done.append(path)
            return save(path, image, text)
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            return save(path, image, text)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "save_png", save_until_full)
        assert sample.main(arguments) == 2
    error = capsys.readouterr().err
    assert "002_picture-2.png cannot be written" in error and "give the same command again" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000_picture-0.png", "001_picture-1.png"]
    assert sample.main(arguments) == 0
    assert "1 picture(s)" in capsys.readouterr().out
    assert sample.main(arguments) == 0
    assert "nothing to draw: all 3 picture(s) are there already" in capsys.readouterr().out


def test_pictures_are_given_out_one_by_one(weights):
    pipeline = TextToImage.from_checkpoint(weights)
    decoded = []
    decode = pipeline.parts.draw_latents

    def watched(latents):
        for picture in decode(latents):
            decoded.append(picture)
            yield picture

    object.__setattr__(pipeline.parts, "draw_latents", watched)
    from pixart_jax.generation.request import Request

    pictures = pipeline.draw_each(Request(["a", "b", "c"], num_steps=1))
    for number in range(1, 4):
        assert next(pictures).shape == (256, 256, 3) and len(decoded) == number


@pytest.mark.parametrize("place", [in_the_way, below_a_file, too_long])
def test_a_picture_that_cannot_be_written_is_an_input_error(tmp_path, place):
    with pytest.raises(InputError, match="cannot be written"):
        save_png(place(tmp_path) / "a.png", np.zeros((2, 2, 3), np.uint8))


def _of_another_size(path, size=(12_000, 12_000), text=None):
    """A picture of few bytes and many pixels."""
    chunks = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        chunks.add_itxt(name, value)
    Image.new("RGB", size).save(path, pnginfo=chunks)


def _header_of_a_bomb(path):
    """A whole picture whose header says that it has 60,000 pixels along each side."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = [
    _header_of_a_bomb,
    _of_another_size,
    _pipe,
    lambda path: os.truncate(path, 60),
    lambda path: os.truncate(path, 0),
    lambda path: path.write_text("no picture"),
    lambda path: path.unlink(),
    lambda path: path.write_bytes(path.read_bytes()[:-40] + bytes(40)),
    lambda path: Image.new("P", (16, 16)).save(path),
    lambda path: Image.new("RGB", (16, 16)).save(path, "JPEG"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_picture_is_left_out_of_the_sheet_and_named(damage, tmp_path, capsys):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path in paths:
        sample.save_png(path, np.full((16, 16, 3), 200, np.uint8), {"prompt": "a"})
    damage(paths[1])
    tracemalloc.start()
    try:
        sample.write_sheet(tmp_path / "sheet.png", [(path, "a") for path in paths], (16, 16))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    said = capsys.readouterr().err
    assert (
        said.startswith(f"{paths[1]} is no picture of 16 x 16 pixels, or damaged: left out") and said.count("\n") == 1
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()
    assert sample.read_picture(paths[1], (16, 16)) is None
    assert sample.read_picture(paths[2], (16, 16))[1] == {"prompt": "a"}


def test_a_sheet_of_damaged_pictures_alone_is_not_made(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    sample.write_sheet(tmp_path / "sheet.png", [(tmp_path / "a.png", "a")], (16, 16))
    assert not (tmp_path / "sheet.png").exists() and "a.png" in capsys.readouterr().err
