"""The reader of small JSON files: nothing but typed, finite values within bounds comes out of it."""

import os
import sys

import pytest

from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import parse, read_bytes, read_fields


def _fields(path, text):
    path.write_text(text, encoding="utf-8")
    return read_fields(path, "copy it again")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe{", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": \xe9}', b"\x00"],
)
def test_what_is_no_json_of_finite_numbers_is_a_value_error(data):
    with pytest.raises(ValueError):
        parse(data)


@pytest.mark.parametrize("part", [b"[", b'{"a":', b"1"])
def test_depth_and_length_are_bounded(part):
    with pytest.raises(ValueError):
        parse(part * 100_000)


def test_a_byte_order_mark_is_no_part_of_json():
    assert parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "", "{", '{"a": NaN}', "[" * 100_000])
def test_a_file_that_holds_no_object_is_named_with_the_cure(tmp_path, text):
    with pytest.raises(InputError, match=r"small\.json is damaged: .*; copy it again"):
        _fields(tmp_path / "small.json", text)


def test_kind_and_size_of_a_file_are_looked_at_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    for name, said in [
        ("pipe", "not a regular file"),
        ("large", "bytes"),
        (".", "directory"),
        ("none", "No such file"),
    ]:
        with pytest.raises(InputError, match=said):
            read_bytes(tmp_path / name, "copy it again")
    with pytest.raises(InputError, match="not a regular file"):
        read_bytes("/dev/zero", "copy it again")


@pytest.mark.parametrize("value", ["2.0", "true", '"2"', "[2]", "{}", "0", "65", "9223372036854775808", "null"])
def test_an_integer_is_one_and_in_its_range(tmp_path, value):
    fields = _fields(tmp_path / "small.json", f'{{"model": {{"depth": {value}}}}}')
    with pytest.raises(InputError, match=r"small\.json: model\.depth is .*an integer from 1 to 64; copy it again"):
        fields.fields("model").integer("depth", 1, 64)


@pytest.mark.parametrize("value", ['"x"', "true", "1e308", "1e-320", "[]", "-1"])
def test_a_number_is_one_and_in_its_range(tmp_path, value):
    fields = _fields(tmp_path / "small.json", f'{{"scale": {value}}}')
    with pytest.raises(InputError, match=r"scale is .*a number from 0\.001 to 1000"):
        fields.number("scale", 1e-3, 1e3)


def test_other_types_are_what_they_are_called(tmp_path):
    fields = _fields(tmp_path / "small.json", '{"s": "a", "b": true, "l": [1, 2], "o": {"n": 1}, "x": 2, "none": null}')
    assert fields.text("s") == "a" and fields.flag("b") is True and fields.sequence("l", int) == [1, 2]
    assert type(fields.number("x", 0, 9)) is float and fields.fields("o").integer("n", 0, 9) == 1
    assert fields.integer("absent", 0, 9, 4) == 4 and fields.number("none", 0, 9, None) is None
    for ask in (
        lambda: fields.text("b"),
        lambda: fields.text("s", choices=("x", "y")),
        lambda: fields.flag("x"),
        lambda: fields.sequence("l", str),
        lambda: fields.sequence("s", str),
        lambda: fields.fields("l"),
        lambda: fields.text("absent"),
    ):
        with pytest.raises(InputError, match="should be"):
            ask()


def test_reading_leaves_the_recursion_limit_alone():
    before = sys.getrecursionlimit()
    with pytest.raises(ValueError):
        parse(b"[" * 10**6)
    assert sys.getrecursionlimit() == before
