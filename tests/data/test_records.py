"""The bytes of one record: round trip, and nothing but InputError for whatever is not a whole record."""

import dataclasses
import json
import pathlib
import re
import struct
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_cases import assert_samples_equal, make_sample

from pixart_jax.data.records import Sample, decode_sample, encode_sample
from pixart_jax.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@st.composite
def arrays(draw, shape, dtypes):
    """An array of arbitrary bits: NaN, infinity and denormals included."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@st.composite
def samples(draw):
    latent_shape = draw(st.tuples(*[st.integers(1, 3)] * 3))
    sizes = st.tuples(st.integers(1, 2**40), st.integers(1, 2**40))
    latents = arrays(latent_shape, [np.float16, np.float32])
    return Sample(
        key=draw(st.text(min_size=1, max_size=8)),
        caption=draw(st.text(max_size=20)),
        image_size=draw(sizes),
        bucket=draw(sizes),
        latent_mean=draw(latents),
        latent_std=draw(st.none() | latents),
        text=draw(arrays(draw(st.tuples(st.integers(1, 4), st.integers(1, 3))), [np.float32, np.float16, BFLOAT16])),
        label=draw(st.none() | st.integers(0, 10**6)),
    )


@settings(max_examples=60, deadline=None)
@given(samples())
def test_record_round_trip(sample):
    assert_samples_equal(decode_sample(encode_sample(sample)), sample)


@settings(max_examples=60, deadline=None)
@given(samples(), st.data())
def test_any_truncated_record_is_refused(sample, data):
    record = encode_sample(sample)
    with pytest.raises(InputError):
        decode_sample(record[: data.draw(st.integers(0, len(record) - 1))])


@settings(max_examples=100, deadline=None)
@given(samples(), st.data())
def test_any_flipped_bit_is_found(sample, data):
    record = bytearray(encode_sample(sample))
    bit = data.draw(st.integers(0, 8 * len(record) - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InputError):
        decode_sample(bytes(record))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_bytes_are_refused(data, with_magic):
    with pytest.raises(InputError):
        decode_sample(b"PXFS" + data if with_magic else data)


def test_decoded_arrays_are_aligned_views():
    record = encode_sample(make_sample(0, caption="odd"))
    for field in ("latent_mean", "latent_std", "text"):
        array = getattr(decode_sample(record), field)
        assert not array.flags.owndata and not array.flags.writeable
        assert (array.ctypes.data - np.frombuffer(record, np.uint8).ctypes.data) % 16 == 0


def test_record_layout_is_the_documented_one():
    sample = make_sample(3, bucket=(16, 16), label=7)
    record = encode_sample(sample)
    magic, crc, version, header_size = struct.unpack_from("<4sIII", record)
    assert (magic, crc, version) == (b"PXFS", zlib.crc32(record[8:]), 1)
    header = json.loads(record[16 : 16 + header_size])
    assert header["arrays"]["text"] == {"dtype": "float32", "shape": [4, 6]}
    assert header["label"] == 7
    assert record.endswith(sample.text.tobytes())


def test_byte_example_of_the_documentation():
    sample = Sample(
        key="a",
        caption="dot",
        image_size=(9, 8),
        bucket=(16, 16),
        latent_mean=np.arange(4, dtype=np.float16).reshape(1, 1, 4),
        latent_std=None,
        text=np.array([[1, 2]], np.float16),
    )
    page = pathlib.Path(__file__).parents[2] / "docs" / "feature_shards.md"
    dump = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert bytes.fromhex("".join(dump)) == encode_sample(sample)


def with_header(change) -> bytes:
    """A record whose checksum is right and whose header is not."""
    record = encode_sample(make_sample(0))
    size = struct.unpack_from("<I", record, 12)[0]
    header, arrays = change(json.loads(record[16 : 16 + size])), record[16 + size + -size % 16 :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = struct.pack("<II", 1, len(text)) + text + bytes(-len(text) % 16) + arrays
    return b"PXFS" + struct.pack("<I", zlib.crc32(body)) + body


def edited(**values):
    return lambda header: header | values


def described(**values):
    return lambda header: header | {"arrays": header["arrays"] | values}


MALFORMED = {
    "not_json": lambda header: b"{",
    "not_utf8": lambda header: b'"\xff"',
    "not_an_object": lambda header: [1],
    "no_key": lambda header: {k: v for k, v in header.items() if k != "key"},
    "empty_key": edited(key=""),
    "caption_number": edited(caption=3),
    "size_of_three": edited(image_size=[1, 2, 3]),
    "size_zero": edited(bucket=[0, 2]),
    "size_number": edited(bucket=4),
    "label_text": edited(label="cat"),
    "label_negative": edited(label=-1),
    "arrays_list": edited(arrays=[]),
    "no_arrays": edited(arrays={}),
    "unknown_array": described(other={"dtype": "float32", "shape": [1]}),
    "unknown_dtype": described(text={"dtype": "float64", "shape": [1, 6]}),
    "int_dtype": described(text={"dtype": "int32", "shape": [1, 6]}),
    "no_shape": described(text={"dtype": "float32"}),
    "negative_shape": described(text={"dtype": "float32", "shape": [-1, -6]}),
    "float_shape": described(text={"dtype": "float32", "shape": [1.0, 6]}),
    "too_long": described(text={"dtype": "float32", "shape": [100, 6]}),
    "too_short": described(text={"dtype": "float16", "shape": [1, 6]}),
    "beyond_memory": described(text={"dtype": "float32", "shape": [10**30, 6]}),
    "wrong_rank": described(text={"dtype": "float32", "shape": [6]}),
    "other_std_shape": described(latent_std={"dtype": "float16", "shape": [8, 2, 4]}),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_malformed_header_is_refused(change):
    with pytest.raises(InputError):
        decode_sample(with_header(change))


def test_unchanged_header_is_accepted():
    assert_samples_equal(decode_sample(with_header(lambda header: header)), make_sample(0))


def test_record_of_another_version_is_refused():
    body = struct.pack("<II", 2, 2) + b"{}"
    with pytest.raises(InputError, match="format version 2"):
        decode_sample(b"PXFS" + struct.pack("<I", zlib.crc32(body)) + body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": ""}, "key must be"),
        ({"caption": None}, "'sample-0': caption"),
        ({"image_size": (3, 0)}, "'sample-0': image_size"),
        ({"image_size": [3, 4]}, "'sample-0': image_size"),
        ({"latent_mean": np.zeros((4, 4, 4))}, "latent_mean has dtype float64"),
        ({"latent_mean": [[[0.0]]]}, "latent_mean must be a numpy array"),
        ({"latent_std": np.zeros((4, 2, 4), np.float16)}, "latent_std has shape"),
        ({"text": np.zeros((0, 6), np.float32)}, "text must have 2 dimensions, none of them empty"),
        ({"text": np.zeros(6, np.float32)}, "text must have 2 dimensions"),
        ({"text": np.zeros((1, 6), np.int32)}, "text has dtype int32"),
        ({"label": -1}, "'sample-0': label"),
        ({"label": True}, "'sample-0': label"),
    ],
)
def test_a_sample_checks_its_own_fields(changes, message):
    with pytest.raises(InputError, match=message):
        make_sample(0, **changes)


def test_samples_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_sample(0).key = "other"
