"""Pictures are looked at as they lie, in every layout: what is read, what is not and why."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tools.inspect_data import main

CAPTIONS = ["a red square", "a blue square on a green ground", "a red square"]


def picture(height=80, width=96, colour=(200, 30, 30)):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


PICTURES = {"a.png": picture(), "b.png": picture(64, 64, (30, 30, 200)), "c.png": picture(300, 300)}
# What each layout must be told to lack.
BAD = {"broken.png": picture()[:60], "tiny.png": picture(8, 8), "long.png": picture(64, 400)}


def write_files(folder):
    folder.mkdir()
    for name, data in (PICTURES | BAD).items():
        (folder / name).write_bytes(data)


def plain(folder):
    write_files(folder)
    for name, caption in zip((PICTURES | BAD), CAPTIONS + ["x"] * 3, strict=True):
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


def table(path, columns=("file_name", "text")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *zip((PICTURES | BAD), CAPTIONS + ["x"] * 3, strict=True)])


def imagefolder(folder):
    write_files(folder)
    table(folder / "metadata.csv")
    return folder


def listed(folder):
    write_files(folder)
    table(folder / "list.csv", ("path", "words"))
    return folder / "list.csv"


def parquet(folder):
    folder.mkdir()
    columns = {"image": [*(PICTURES | BAD).values()], "text": CAPTIONS + ["x"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train-00000-of-00001.parquet")
    return folder


def tars(folder):
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for (name, data), caption in zip((PICTURES | BAD).items(), CAPTIONS + ["x"] * 3, strict=True):
            for member, content in ((name, data), (name.replace(".png", ".txt"), caption.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder / "0.tar"


@pytest.mark.parametrize("layout", [plain, imagefolder, listed, parquet, tars])
def test_every_layout(layout, tmp_path, capsys):
    source, out = layout(tmp_path / "data"), tmp_path / "out"
    options = ["--caption-column=words"] if layout is listed else []
    assert main([str(source), f"--out={out}", *options]) == 1
    told = capsys.readouterr().out
    assert f"{source}: 6 items, 3 of which can be used" in told
    for reason in ("damaged", "too-small", "too-long"):
        assert f"         1  {reason}\n" in told
    assert "8×8 pixels, at least 64 a side are wanted" in told
    lines = {line.split("  ")[0]: line.split()[-3:] for line in told.splitlines()}
    assert lines["height, px"] == ["64", "80", "300"] and lines["width, px"] == ["64", "96", "300"]
    assert lines["words of a caption"] == ["3", "3", "7"]
    assert "captions per picture: 3 with 1\ncaptions that are not unique: 66.7%" in told
    assert "enlarged for --resolution 256: 66.7%" in told
    with Image.open(out / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet).reshape(-1, 3)
    assert (pixels == (200, 30, 30)).all(-1).any() and (pixels == (30, 30, 200)).all(-1).any()


def test_a_source_that_can_all_be_used(tmp_path, capsys):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "1.png").write_bytes(picture())
    assert main([f"classes:{tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]) == 0
    told = capsys.readouterr().out
    assert "classes: 1" in told and "would be skipped" not in told and "captions per picture: 1 with 0" in told


def test_pictures_without_captions_are_seen(tmp_path, capsys):
    """As before tools.caption."""
    write_files(tmp_path / "data")
    assert main([str(tmp_path / "data"), f"--out={tmp_path / 'out'}"]) == 1
    told = capsys.readouterr().out
    assert "6 items, 0 of which can be used" in told and "         6  caption-missing" in told
    assert "height, px                    64        80       300" in told and "captions per picture" not in told
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_nothing_to_look_at(tmp_path, capsys):
    write_files(tmp_path / "data")
    for name in PICTURES:
        (tmp_path / "data" / name).unlink()
    assert main([str(tmp_path / "data"), f"--out={tmp_path / 'out'}"]) == 2
    assert "none of its 3 items can be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "list.json").write_text(json.dumps([]))
    assert main([str(tmp_path / "list.json")]) == 2
    assert main([str(tmp_path / "data"), "--vae=x"]) == 2
    assert "is not encoded yet; leave --vae out" in capsys.readouterr().err
