"""The list of what was skipped, which anybody may have edited: counted, or refused with its line."""

import os

import pytest
from tiny_words import write_words_data

from pixart_jax.encoding.skipped import skipped_reasons
from pixart_jax.errors import InputError
from tools.extract_features import summary

GOOD = b'{"key": "a", "reason": "too-small", "message": ""}\n'


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b'{"reason": "\xe4"}', b"", b"[]", b"3", b"null", b'{"key": "a"}', b'{"reason": []}', b"[" * 100_000,
     b'{"reason": NaN}', b'{"reason": "a"', b'"\\ud800"'],
)  # fmt: skip
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "skipped.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(InputError, match=r"skipped\.jsonl: line 2 has no .reason.*remove the file") as caught:
        skipped_reasons(path)
    assert len(str(caught.value)) < 1000
    with pytest.raises(InputError, match="line 2"):
        summary(write_words_data(tmp_path / "set").parent)


def test_what_is_no_file_is_named(tmp_path):
    path = tmp_path / "skipped.jsonl"
    with pytest.raises(InputError, match="cannot be read"):
        skipped_reasons(path)
    os.mkfifo(path)
    with pytest.raises(InputError, match="cannot be read"):
        skipped_reasons(path)


def test_reasons_are_counted(tmp_path):
    (tmp_path / "skipped.jsonl").write_bytes(GOOD * 2 + GOOD.replace(b"too-small", "zu groß".encode()))
    write_words_data(tmp_path / "set")
    assert summary(tmp_path).endswith("skipped.jsonl): 2 too-small, 1 zu groß")
