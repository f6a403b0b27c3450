"""Pictures in Parquet files: Hugging Face's layout, plain bytes, lists of paths; damage; and how much is held."""

import json
import pickle
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_cases import fill, one, outcomes

from pixart_jax.data.pictures import BadItem, open_pictures, parquet_rows
from pixart_jax.data.pictures.controls import ControlledPictures
from pixart_jax.errors import InputError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, columns, *, rows=2, names=None, **arguments):
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows, **arguments)
    return str(path)


def images(values):
    return pa.array([{"bytes": value, "path": path} for value, path in values], IMAGE)


def test_hugging_faces_layout(tmp_path):
    fill(tmp_path, {"on_disk.png": b"beside"})
    columns = {
        "image": images([(b"0", "x.png"), (b"1", None), (None, "on_disk.png"), (None, "gone.png"), (None, None)]),
        "text": ["null", None, "zwei", "drei", "vier"],
        "label": [1, 0, -1, None, 0],
        "conditioning_image": images([(bytes([65 + i]), None) for i in range(5)]),
        "url": ["u"] * 5,
    }
    source = open_pictures(write(tmp_path / "train.parquet", columns, names=["cat", "dog"]))
    assert outcomes(source) == {
        "train/000000": 1,
        "train/000001": 0,
        "train/000002": one("zwei"),
        "train/000003": "missing-file",
        "train/000004": "image-missing",
    }
    assert source.class_names == ("cat", "dog") and source[2].data == b"beside"
    assert ControlledPictures(source, None)[1].control == b"B"
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0] == source[0] and copy.fingerprint() == source.fingerprint()


def test_a_folder_of_files(tmp_path):
    """Plain bytes, captions of lists, files in their order, in a folder, by a glob and in a range."""
    for number in range(3):
        columns = {
            "jpg": [f"{number}{row}".encode() for row in range(5)],
            "caption": [["a", "b"]] * 5,
            "label": [number] * 5,
        }
        write(tmp_path / f"data/train-0000{number}-of-00003.parquet", columns)
    fill(tmp_path, {"README.md": ""})
    source = open_pictures(str(tmp_path))
    assert [source[i].data for i in (14, 0, 7)] == [b"24", b"00", b"12"]
    assert list(outcomes(source))[5] == "data/train-00001-of-00003/000000"
    assert source[3].captions == (("a", 0.5), ("b", 0.5)) and source.class_names == ("0", "1", "2")
    assert len(open_pictures(str(tmp_path / "data/*.parquet"))) == 15
    assert len(open_pictures(str(tmp_path / "data/train-{00001..00002}-of-00003.parquet"))) == 10
    # What has changed is known by its row groups.
    digests = [source.digest(range(start, start + 5)) for start in (0, 5, 10)]
    write(
        tmp_path / "data/train-00001-of-00003.parquet",
        {"jpg": [b"longer"] * 5, "caption": [["a"]] * 5, "label": [1] * 5},
    )
    changed = open_pictures(str(tmp_path))
    after = [changed.digest(range(start, start + 5)) for start in (0, 5, 10)]
    assert [a == b for a, b in zip(digests, after, strict=True)] == [True, False, True]
    assert changed.fingerprint() != source.fingerprint()
    # A test set beside it must be left out by name.
    write(tmp_path / "data/test-00000-of-00001.parquet", {"jpg": [b""], "caption": [["a"]]})
    with pytest.raises(
        InputError, match=r"several splits: test \(1\), train \(3\); name those of one, as in .*train-\*"
    ):
        open_pictures(str(tmp_path))


def test_columns_are_named_where_their_names_do_not_tell(tmp_path):
    columns = {"before": [b"0"], "after": [b"1"], "edit": ["do"], "n": [1]}
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(InputError, match=r"which column is the picture\? .*--image-column .*one of after, before"):
        open_pictures(path)
    source = open_pictures(path, image_column="after", caption_column="edit")
    assert source[0].data == b"1" and source[0].captions == one("do")
    with pytest.raises(BadItem, match=r"caption-missing: .*none of its columns after, before, edit, n"):
        open_pictures(path, image_column="after")[0]
    with pytest.raises(InputError, match="no caption column 'x'; it has after, before, edit, n"):
        open_pictures(path, image_column="after", caption_column="x")
    with pytest.raises(InputError, match="column 'n' holds no pictures but int64"):
        open_pictures(path, image_column="n")
    with pytest.raises(InputError, match="data_dir is for lists"):
        open_pictures(path, image_column="after", data_dir="x")


def test_a_list_of_paths(tmp_path):
    fill(tmp_path, {"a.png": b"a", "b.png": b"b", "c.png": b"c"})
    columns = {"file_name": ["a.png", "b.png", "a.png"], "text": ["x", None, "z"], "label": [None, 2, None]}
    path = write(tmp_path / "metadata.parquet", columns)
    expected = {"a.png": one("x"), "b.png": 2, "a.png#2": one("z")}
    assert outcomes(open_pictures(path)) == expected
    folder = open_pictures(str(tmp_path))
    assert outcomes(folder) == expected and folder.others == {"picture not named in metadata.parquet": 1}
    with pytest.raises(InputError, match="no column of pictures or their paths"):
        open_pictures(write(tmp_path / "y.parquet", {"url": ["u"]}))


def test_damaged_files(tmp_path):
    rng = random.Random(0)
    path = write(tmp_path / "x.parquet", {"image": [rng.randbytes(2000) for _ in range(6)], "text": ["t"] * 6})
    source = open_pictures(path)
    whole = (tmp_path / "x.parquet").read_bytes()
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    (tmp_path / "x.parquet").write_bytes(whole[:start] + bytes(100) + whole[start + 100 :])
    assert list(outcomes(source).values()) == [one("t")] * 2 + ["unreadable"] * 2 + [one("t")] * 2
    (tmp_path / "x.parquet").unlink()
    assert set(outcomes(pickle.loads(pickle.dumps(source))).values()) == {"unreadable"}
    for content in (whole[:-20], b"", b"PAR1"):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.parquet: is no whole Parquet file .*; copy it again"):
            open_pictures(path)
    with pytest.raises(InputError, match=r"no such file; name a \.parquet, a glob"):
        open_pictures(str(tmp_path / "none.parquet"))


def test_a_large_row_group_is_read_in_blocks(tmp_path, monkeypatch):
    """In any order; each is decoded once where they are read in order, and few are held."""
    monkeypatch.setattr(parquet_rows, "_BLOCK_BYTES", 10_000)
    rng = random.Random(0)
    pictures = [rng.randbytes(1000) for _ in range(400)]
    path = write(tmp_path / "x.parquet", {"image": pictures, "text": ["t"] * 400}, rows=400, data_page_size=2000)
    source = open_pictures(path)
    assert [source[i].data for i in range(400)] == pictures
    reader = source._read_picture
    assert len(reader._blocks) == 4 and all(block.end - block.start <= 10 for block in reader._blocks)
    for index in rng.sample(range(400), 20):
        assert source[index].data == pictures[index]


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"image": [b""]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"x\.parquet: Parquet is read by pyarrow: pip install pyarrow"):
        open_pictures(path)
