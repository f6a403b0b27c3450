"""Pictures in folders and lists: what is found, under which key, and what is said of broken items."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_cases import fill, one, outcomes, tar

from pixart_jax.data.pictures import Picture, open_pictures
from pixart_jax.errors import InputError


def test_a_folder(tmp_path):
    root = fill(
        tmp_path,
        {
            "b/2.JPEG": b"two",
            "b/2.txt": " second \n",
            "a.jpg": b"one",
            "a.txt": "\ufefffirst\r\nline",
            "a/1.webp": b"three",
            "a/1.txt": "third",
            "notes.md": "no picture",
            ".hidden.png": b"",
            "b/.cache/3.png": b"",
        },
    )
    source = open_pictures(root)
    assert [source[i] for i in range(3)] == [
        Picture("a", b"one", one("first\r\nline"), None),
        Picture("a/1", b"three", one("third"), None),
        Picture("b/2", b"two", one("second"), None),
    ]
    assert source.class_names == ()
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]


def test_keys_of_a_folder_are_unique(tmp_path):
    names = ["a.jpg", "a.png", "a.jpg.png", "b.gif", "c.tif", "c.tif.tiff"]
    source = open_pictures(fill(tmp_path, dict.fromkeys(names, b"x") | {"a.txt": "a", "b.txt": "b"}))
    assert outcomes(source) == {
        "a.jpg": one("a"),
        "a.jpg.png": "caption-missing",  # a.jpg, but for a.jpg
        "a.png": one("a"),
        "b": one("b"),
        "c": "caption-missing",
        "c.tif": "caption-missing",
    }


def test_broken_items_of_a_folder(tmp_path):
    root = fill(
        tmp_path,
        {f"{i}.png": b"x" for i in range(5)}
        | {"0.txt": "", "1.txt": " \n\u3000", "2.txt": b"caf\xe9", "3.txt": "fine"},
    )
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "circle.txt").write_text("a link to itself")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "gone.txt").write_text("a link to nothing")
    assert outcomes(open_pictures(root)) == {
        "0": "caption-empty",
        "1": "caption-empty",
        "2": "caption-not-utf8",
        "3": one("fine"),
        "4": "caption-missing",
        "circle": "unreadable",
        "gone": "missing-file",
    }


def test_links_to_folders_are_followed_once_around(tmp_path):
    root = fill(tmp_path / "root", {"a/1.png": b"x", "a/1.txt": "one"})
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/b").symlink_to(tmp_path / "root/a")
    assert sorted(outcomes(open_pictures(root))) == ["a/1", "b/1"]


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / name.replace("png", "txt")).write_text("a cafe")
    assert outcomes(open_pictures(str(tmp_path))) == {r"caf\udce9": one("a cafe")}


def test_classes(tmp_path):
    root = fill(
        tmp_path,
        {
            "n02/b.JPEG": b"b",
            "n02/deep/c.jpg": b"c",
            "n01/a.png": b"a",
            "n01/a.txt": "a dog",
            "n03/no.md": "",
            "d.png": b"",
        },
    )
    source = open_pictures(f"classes:{root}")
    assert source.class_names == ("n01", "n02", "n03")
    assert outcomes(source) == {"d": "class-missing", "n01/a": 0, "n02/b": 1, "n02/deep/c": 1}
    assert source[1] == Picture("n01/a", b"a", one("a dog"), 0)


@pytest.mark.parametrize("spec", ["folder", "tar", "list"])
def test_a_fingerprint_is_of_names_and_sizes(tmp_path, spec):
    def fingerprint(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        if spec == "folder":
            return open_pictures(fill(folder, files)).fingerprint()
        if spec == "tar":
            return open_pictures(fill(folder, {"x.tar": tar(files)}) + "/*.tar").fingerprint()
        records = [{"path": name, "prompt": len(content)} for name, content in files.items()]
        return open_pictures(fill(folder, {"l.json": json.dumps(records)}) + "/l.json").fingerprint()

    files = {"a.png": b"1", "b.png": b"2"}
    assert fingerprint(files) == fingerprint(files | {"b.png": b"3"})
    others = [{"a.png": b"1"}, {"a.png": b"1", "b.png": b"22"}, {"a.png": b"1", "c.png": b"2"}]
    assert len({fingerprint(f) for f in [files, *others]}) == 4


def write_list(folder, records, name="list.json"):
    lines = [json.dumps(record) for record in records]
    text = "[" + ",\n".join(lines) + "]" if name.endswith("json") else "\n\n".join(lines)
    return fill(folder, {name: text, "a.png": b"a", "b.png": b"b", "sub/c.png": b"c"}) + f"/{name}"


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_a_list_in_the_references_format(tmp_path, name):
    size = {"height": 3, "width": 4, "ratio": 0.75}
    records = [
        {"path": "sub/c.png", "prompt": "Ünï ", "sharegpt4v": "long"} | size,
        {"path": "a.png", "prompt": "short", "sharegpt4v": ""} | size,
        {"path": str(tmp_path / "b.png"), "prompt": "absolute"},
        {"path": "a.png", "captions": ["x", {"text": "y", "weight": 3}, " "]},
        {"path": "a.png", "label": 4},
    ]
    source = open_pictures(write_list(tmp_path, records, name))
    assert outcomes(source) == {
        "sub/c.png": (("Ünï ", 0.5), ("long", 0.5)),
        "a.png": one("short"),
        str(tmp_path / "b.png"): one("absolute"),
        "a.png#2": (("x", 0.25), ("y", 0.75)),
        "a.png#3": 4,
    }
    assert [source[i].data for i in range(5)] == [b"c", b"a", b"b", b"a", b"a"]
    assert source.class_names == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_a_list_with_a_byte_order_mark_and_a_path_that_is_taken(tmp_path, name):
    records = [{"path": path, "prompt": f"é{i}"} for i, path in enumerate(["a.png", "a.png#2", "a.png", "a.png"])]
    path = write_list(tmp_path, records, name)
    text = (tmp_path / name).read_text().replace("\\u00e9", "é")
    (tmp_path / name).write_text("\ufeff" + text)
    found = outcomes(open_pictures(path))
    assert found == {"a.png": one("é0"), "a.png#2": "missing-file", "a.png#3": one("é2"), "a.png#4": one("é3")}


def test_weights_and_data_dir_of_a_list(tmp_path):
    records = [{"path": "c.png", "prompt": "p", "sharegpt4v": "s"}, {"path": "c.png", "sharegpt4v": "s"}]
    path = write_list(tmp_path, records)
    source = open_pictures(path, caption_weights={"prompt": 3.0}, data_dir=str(tmp_path / "sub"))
    assert outcomes(source) == {"c.png": (("p", 0.75), ("s", 0.25)), "c.png#2": one("s")}
    source = open_pictures(path, caption_weights={"sharegpt4v": 0}, data_dir=str(tmp_path / "sub"))
    assert outcomes(source) == {"c.png": one("p"), "c.png#2": "caption-missing"}


BAD_RECORDS = {
    "null": (None, "bad-record"),
    "an array": ([1], "bad-record"),
    "no path": ({"prompt": "p"}, "bad-record"),
    "an empty path": ({"path": "", "prompt": "p"}, "bad-record"),
    "a path of a number": ({"path": 7, "prompt": "p"}, "bad-record"),
    "a missing file": ({"path": "d.png", "prompt": "p"}, "missing-file"),
    "a file for a folder": ({"path": "a.png/d.png", "prompt": "p"}, "missing-file"),
    "a folder": ({"path": "sub", "prompt": "p"}, "unreadable"),
    "a NUL in the path": ({"path": "a\0.png", "prompt": "p"}, "unreadable"),
    "half a surrogate pair in the path": ({"path": "\ud800", "prompt": "p"}, "unreadable"),
    "half a surrogate pair in the caption": ({"path": "a.png", "prompt": "\ud800"}, "caption-not-utf8"),
    "no caption": ({"path": "a.png"}, "caption-missing"),
    "a caption of null": ({"path": "a.png", "prompt": None}, "caption-missing"),
    "no captions in a list": ({"path": "a.png", "captions": []}, "caption-missing"),
    "an empty caption": ({"path": "a.png", "prompt": " "}, "caption-empty"),
    "empty captions": ({"path": "a.png", "captions": ["", {"text": "\t"}]}, "caption-empty"),
    "a caption of a number": ({"path": "a.png", "prompt": 3}, "bad-record"),
    "captions that are text": ({"path": "a.png", "captions": "p"}, "bad-record"),
    "captions of numbers": ({"path": "a.png", "captions": [3]}, "bad-record"),
    "captions without text": ({"path": "a.png", "captions": [{"weight": 1}]}, "bad-record"),
    "a weight of 0": ({"path": "a.png", "captions": [{"text": "p", "weight": 0}]}, "bad-record"),
    "a weight of NaN": ({"path": "a.png", "captions": [{"text": "p", "weight": float("nan")}]}, "bad-record"),
    "a weight of true": ({"path": "a.png", "captions": [{"text": "p", "weight": True}]}, "bad-record"),
    "a weight too great": ({"path": "a.png", "captions": [{"text": "p", "weight": 10**400}]}, "bad-record"),
    "a negative label": ({"path": "a.png", "label": -1}, "bad-record"),
    "a label of text": ({"path": "a.png", "label": "3"}, "bad-record"),
    "a label of true": ({"path": "a.png", "label": True}, "bad-record"),
    "a label too great": ({"path": "a.png", "label": 10**6}, "bad-record"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records_of_a_list(tmp_path, case):
    record, reason = BAD_RECORDS[case]
    source = open_pictures(write_list(tmp_path, [{"path": "b.png", "prompt": "fine"}, record]))
    assert list(outcomes(source).values()) == [one("fine"), reason]


def test_a_broken_line_is_one_bad_item(tmp_path):
    path = fill(tmp_path, {"a.png": b"a", "l.jsonl": b'{"path": "a.png", "prompt": "p"}\n\n{"path": \n\xff\n[]'})
    assert outcomes(open_pictures(path + "/l.jsonl")) == {"a.png": one("p")} | {
        f"l.jsonl#{number}": "bad-record" for number in (2, 3, 4)
    }


BAD_LISTS = {
    "empty.json": (b"", "line 1: begins with ''"),
    "object.json": (b'\n{"a": 1}', "line 2: begins with"),
    "none.json": (b"[ ]", "has no records"),
    "cut.json": (b'[{"path": "a"},\n {"pa', "line 2: Unterminated string"),
    "open.json": (b'[{"path": "a"}\n', "line 2: expected , or ]"),
    "more.json": (b"[1]\n\n[2]", "line 3: more text behind"),
    "comma.json": (b"[1,\n]", "line 2: Expecting value"),
    "latin1.json": (
        b'[1,\n"caf\xe9"]',
        "line 2 is not UTF-8 (invalid continuation byte); save it as UTF-8, as by iconv -f latin1",
    ),
    "digits.json": (b"[\n" + b"1" * 5000 + b"]", "line 2: Exceeds the limit"),
    "deep.json": (b"[" * 100_000, "line 1: nested too deeply"),
    "empty.jsonl": (b" \n", "has no records"),
    "text.jsonl": (b"\nno json\n", "no line is a JSON record; line 2"),
    "array.jsonl": (b'[\n{"path": "a"},\n]', "no line is a JSON record; line 1"),
    "latin1.jsonl": (b"\xe9", "no line is a JSON record; line 1: not UTF-8 (unexpected end of data); save it as UTF-8"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_lists_that_are_none(tmp_path, name):
    content, message = BAD_LISTS[name]
    with pytest.raises(InputError) as caught:
        open_pictures(fill(tmp_path, {name: content}) + f"/{name}")
    assert name in str(caught.value) and message in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"", b"[", b'[{"path": "a.png", "prompt": ', b'{"path": "a.png"}\n']))
def test_arbitrary_bytes_for_a_list_or_a_caption(tmp_path_factory, data, start):
    folder = tmp_path_factory.getbasetemp() / "arbitrary_list"
    for name in ("list.json", "list.jsonl"):
        try:
            outcomes(open_pictures(fill(folder, {name: start + data}) + f"/{name}"))
        except InputError as error:
            assert name in str(error)
    caption = outcomes(open_pictures(fill(folder, {"a.png": b"a", "a.txt": data})))["a"]
    assert caption in ("caption-empty", "caption-not-utf8") or caption[0][0].strip()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a.png")
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["text", "weight"]), v)
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["path", "prompt", "sharegpt4v", "captions", "label"]), VALUES), min_size=1
    )
)
def test_arbitrary_records(tmp_path_factory, records):
    folder = tmp_path_factory.getbasetemp() / "arbitrary_records"
    source = open_pictures(write_list(folder, records))
    for captions in outcomes(source).values():
        if isinstance(captions, tuple):
            assert sum(weight for _, weight in captions) == pytest.approx(1) and all(w > 0 for _, w in captions)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("", {}, "is no source of pictures"),
        ("nowhere", {}, "is no source of pictures"),
        ("a.png", {}, "is no source of pictures"),
        ("classes:nowhere", {}, "is no folder"),
        ("classes:flat", {}, "no folders in it"),
        ("empty", {}, "no pictures in it or below; name another"),
        ("tars", {}, r"it holds tars: name them, as in tars/\*\.tar"),
        ("lists", {}, "name the list in it, lists/a.json"),
        ("none.json", {}, "cannot read the list none.json"),
        ("flat", {"caption_weights": {"prompt": 1}}, "is for lists, tables, Parquet and tars"),
        ("classes:flat", {"data_dir": "x"}, "data_dir is for lists"),
        ("lists/a.json", {"caption_weights": {"promt": 1}}, "no caption field is called 'promt'; know prompt,"),
        ("lists/a.json", {"caption_weights": {"prompt": -1}}, r"caption_weights\['prompt'\] must be 0, or a number"),
        ("lists/a.json", {"caption_weights": {"prompt": float("inf")}}, "must be 0"),
    ],
)
def test_what_no_source_takes(tmp_path, monkeypatch, spec, arguments, message):
    files = {"a.png": b"", "flat/a.png": b"", "empty/a.md": b"", "tars/a.tar": b"", "lists/a.json": b"[{}]"}
    monkeypatch.chdir(fill(tmp_path, files))
    with pytest.raises(InputError, match=message):
        open_pictures(spec, **arguments)


def test_captions_lie_where_trainers_write_them(tmp_path):
    names = {
        "a.txt": "",
        "a.caption": "kohya's",
        "b.jpg.txt": "after the whole name",
        "c.TXT": "loud",
        "d.txt": b"\xe9",
    }
    root = fill(tmp_path, {f"{name}.jpg": b"x" for name in "abcd"} | names | {"d.caption": " "})
    expected = {"a": one("kohya's"), "b": one("after the whole name"), "c": one("loud"), "d": "caption-not-utf8"}
    assert outcomes(open_pictures(root)) == expected


def test_the_metadata_of_an_imagefolder_is_a_list(tmp_path):
    root = fill(tmp_path, {"0.png": b"x", "metadata.jsonl": '{"file_name": "0.png", "text": "a caption"}\n'})
    assert outcomes(open_pictures(f"{root}/metadata.jsonl")) == {"0.png": one("a caption")}
