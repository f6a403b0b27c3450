"""CSV and TSV lists, columns by name, and imagefolders."""

import json
import pickle

import pytest
from picture_cases import fill, one, outcomes, tar

from pixart_jax.data.pictures import BadItem, open_pictures
from pixart_jax.errors import InputError

PICTURES = {f"{name}.png": name for name in "abcd"}


def table(folder, text, name="list.csv"):
    return fill(folder, PICTURES | {name: text}) + f"/{name}"


@pytest.mark.parametrize(
    ("name", "separator"), [("l.csv", ","), ("l.csv", ";"), ("l.CSV", "\t"), ("l.tsv", "\t"), ("l.csv", "|")]
)
def test_a_table(tmp_path, name, separator):
    rows = [
        ["file_name", "text", "width", "label"],
        ["a.png", "plain", "3", "4"],
        ["b.png", f'"with ""quotes""{separator}\na line break and more"', "", ""],
        ["missing.png", "gone", "", ""],
        ["c.png", "", "9", ""],
        ["a.png", "again; it comes", "", "0"],
    ]
    text = "\ufeff" + "\r\n".join(separator.join(row).replace("; ", " ") for row in rows) + "\r\n\r\n"
    source = open_pictures(table(tmp_path, text, name))
    assert outcomes(source) == {
        "a.png": 4,
        "b.png": one(f'with "quotes"{separator}\na line break and more'),
        "missing.png": "missing-file",
        "c.png": "caption-missing",
        "a.png#2": 0,
    }
    assert source[4].captions == one("again it comes") and source.class_names == ("0", "1", "2", "3", "4")


def test_bad_rows_are_bad_items(tmp_path):
    rows = ["path,caption,label", "a.png,one,two,three", "b.png", "c.png,caf\udce9,", "d.png,fine,x", "a.png,fine,"]
    path = table(tmp_path, "")
    (tmp_path / "list.csv").write_bytes("\n".join(rows).encode("utf-8", "surrogateescape"))
    source = open_pictures(path)
    assert outcomes(source) == {
        "list.csv#1": "bad-record",
        "list.csv#2": "bad-record",
        "c.png": "caption-not-utf8",
        "d.png": "bad-record",
        "a.png": one("fine"),
    }
    with pytest.raises(BadItem, match=r"4 cells, and 3 columns.*in quotes"):
        source[0]
    assert source.digest(range(2)) != source.digest(range(1, 3)) and len(source.fingerprint()) == 64


def test_a_table_in_another_encoding_is_said_to_be(tmp_path):
    """With the line of the byte, in whatever row it is."""
    rows = ["path,caption", "a.png,fine", '"b.png","of two\nlines, caf\u00e9"', "", "c.png,fianc\u00e9e"]
    path = table(tmp_path, "")
    (tmp_path / "list.csv").write_bytes("\n".join(rows).encode("latin-1"))
    source = pickle.loads(pickle.dumps(open_pictures(path)))
    assert source[0].captions == one("fine")
    for index, line in ((1, 4), (2, 6)):
        with pytest.raises(BadItem) as found:
            source.words(index)
        assert found.value.reason == "caption-not-utf8"
        assert f"{tmp_path}/list.csv: line {line} is not UTF-8 (" in found.value.message
        assert "iconv -f latin1 -t utf-8" in found.value.message and "surrogate" not in found.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has no first line"),
        (b"path,caption\n", "has no records"),
        (b"path,text,text\na,b,c\n", "several columns text"),
        (b"url,caption\nx,y\n", "no column of pictures or their paths.*--image-column.*one of caption, url"),
        (b'path,caption\na.png,"never closed\nb.png,x\n', "quotation mark of line 2 is not closed"),
        (b'path,caption\na.png,"' + b"x" * 200_000, "from line 2 on cannot be read"),
        ("path,caption\na,b\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    path = table(tmp_path, "")
    (tmp_path / "list.csv").write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        open_pictures(path)
    assert "list.csv" in str(caught.value)


RECORD = {
    "path": "a.png",
    "prompt": "usual",
    "alt": "other",
    "long": ["one", {"text": "two", "weight": 3}],
    "im": "b.png",
}


def test_columns_by_name(tmp_path):
    lines = json.dumps(RECORD)
    path = fill(tmp_path, PICTURES | {"l.jsonl": lines, "x.tar": tar({"0.png": "x", "0.json": lines, "0.txt": "no"})})
    for spec in (f"{path}/l.jsonl", f"{path}/x.tar"):
        plain = open_pictures(spec)
        source = open_pictures(spec, caption_column="alt")
        assert list(outcomes(source).values()) == [one("other")]
        assert source.fingerprint() != plain.fingerprint()
        source = open_pictures(spec, caption_column="alt, long", caption_weights={"alt": 2})
        assert list(outcomes(source).values()) == [(("other", 2 / 4), ("one", 0.5 / 4), ("two", 1.5 / 4))]
        with pytest.raises(InputError, match="no caption field is called 'prompt'; know alt"):
            open_pictures(spec, caption_column="alt", caption_weights={"prompt": 1})
    assert outcomes(open_pictures(f"{path}/l.jsonl", image_column="im")) == {"b.png": one("usual")}
    with pytest.raises(InputError, match="no caption column 'alr'; it has alt, im, long, path, prompt"):
        open_pictures(f"{path}/l.jsonl", caption_column="alr")
    with pytest.raises(InputError, match="image_column is for lists"):
        open_pictures(f"{path}/x.tar", image_column="im")
    with pytest.raises(InputError, match="caption_column is for lists"):
        open_pictures(path, caption_column="alt")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_imagefolder(tmp_path, name):
    """By the folder's own name; what it holds besides is counted."""
    texts = {
        "metadata.csv": "file_name,text\na.png,first\nsub/e.png,second\n",
        "metadata.jsonl": '{"file_name": "a.png", "text": "first"}\n{"file_name": "sub/e.png", "text": "second"}\n',
    }
    root = fill(tmp_path, PICTURES | {name: texts[name], "sub/e.png": "e", "notes.md": "", "a.txt": "not this"})
    source = open_pictures(root)
    assert outcomes(source) == {"a.png": one("first"), "sub/e.png": one("second")}
    assert source.others == {f"picture not named in {name}": 3, ".md": 1, ".txt": 1}
    with pytest.raises(InputError, match="folder of pictures without a list"):
        open_pictures(root, caption="x")
    fill(tmp_path, texts)
    with pytest.raises(InputError, match=r"has metadata\.csv and metadata\.jsonl; name the one"):
        open_pictures(root)
