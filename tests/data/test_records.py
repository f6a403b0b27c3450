"""The bytes of one record: round trip, and nothing but InputError for whatever is not a whole record; int8 text."""

import collections
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

from pixart_jax.data.shards.records import Sample, Text, decode_sample, encode_sample, quantize
from pixart_jax.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TEXT_DTYPES = [np.float32, np.float16, BFLOAT16, np.int8]


@st.composite
def arrays(draw, shape, dtypes):
    """An array of arbitrary bits: NaN, infinity and denormals included."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@st.composite
def texts(draw, width, dtype):
    length = draw(st.integers(1, 4))
    return Text(
        caption=draw(st.text(max_size=20)),
        features=draw(arrays((length, width), [dtype])),
        scale=draw(arrays((length,), [np.float32])) if dtype == np.int8 else None,
        weight=draw(st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
    )


@st.composite
def samples(draw):
    latent_shape = draw(st.tuples(*[st.integers(1, 3)] * 3))
    sizes = st.tuples(st.integers(1, 2**40), st.integers(1, 2**40))
    latents = arrays(latent_shape, [np.float16, np.float32])
    some_texts = texts(draw(st.integers(1, 3)), np.dtype(draw(st.sampled_from(TEXT_DTYPES))))
    return Sample(
        key=draw(st.text(min_size=1, max_size=8)),
        image_size=draw(sizes),
        bucket=draw(sizes),
        latent_mean=draw(latents),
        latent_std=draw(st.none() | latents),
        texts=tuple(draw(st.lists(some_texts, max_size=3))),
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
    codes, scale = quantize(np.eye(3, 5))
    record = encode_sample(make_sample(0, texts=(Text("odd", codes, scale), Text("even", codes[:2], scale[:2]))))
    sample = decode_sample(record)
    stored = [array for text in sample.texts for array in (text.features, text.scale)]
    for array in [sample.latent_mean, sample.latent_std, *stored]:
        assert not array.flags.owndata and not array.flags.writeable
        assert (array.ctypes.data - np.frombuffer(record, np.uint8).ctypes.data) % 16 == 0


def test_record_layout_is_the_documented_one():
    sample = make_sample(3, bucket=(16, 16), label=7)
    record = encode_sample(sample)
    magic, crc, version, header_size = struct.unpack_from("<4sIII", record)
    assert (magic, crc, version) == (b"PXFS", zlib.crc32(record[8:]), 2)
    header = json.loads(record[16 : 16 + header_size])
    features = {"dtype": "float32", "shape": [4, 6]}
    assert header["texts"] == [{"caption": "caption 3", "weight": 1.0, "features": features}]
    assert header["label"] == 7
    assert record.endswith(sample.texts[0].features.tobytes())


def test_byte_example_of_the_documentation():
    sample = Sample(
        key="a",
        image_size=(9, 8),
        bucket=(16, 16),
        latent_mean=np.arange(4, dtype=np.float16).reshape(1, 1, 4),
        latent_std=None,
        texts=(
            Text("dot", np.array([[1, 2]], np.int8), np.array([0.5], np.float32)),
            Text("spot", np.array([[3, 4]], np.int8), np.array([0.25], np.float32), weight=2.0),
        ),
    )
    page = pathlib.Path(__file__).parents[2] / "docs" / "feature_shards.md"
    dump = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert bytes.fromhex("".join(dump)) == encode_sample(sample)


def with_header(change, sample=None) -> bytes:
    """A record whose checksum is right and whose header is not."""
    record = encode_sample(sample or make_sample(0))
    size = struct.unpack_from("<I", record, 12)[0]
    header, arrays = change(json.loads(record[16 : 16 + size])), record[16 + size + -size % 16 :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = struct.pack("<II", 2, len(text)) + text + bytes(-len(text) % 16) + arrays
    return b"PXFS" + struct.pack("<I", zlib.crc32(body)) + body


def edited(**values):
    return lambda header: header | values


def latents(**values):
    return lambda header: header | {"latents": header["latents"] | values}


def text(**values):
    return lambda header: header | {"texts": [header["texts"][0] | values]}


def features(dtype="float32", **values):
    return text(features={"dtype": dtype, **values})


TEXT = Text("a dot", np.zeros((1, 6), np.float32))
FEATURES = {"dtype": "float32", "shape": [1, 6]}
MALFORMED = {
    "not_json": lambda header: b"{",
    "not_utf8": lambda header: b'"\xff"',
    "not_an_object": lambda header: [1],
    "no_key": lambda header: {k: v for k, v in header.items() if k != "key"},
    "empty_key": edited(key=""),
    "caption_number": text(caption=3),
    "weight_text": text(weight="much"),
    "weight_zero": text(weight=0),
    "weight_nan": text(weight=float("nan")),
    "weight_true": text(weight=True),
    "size_of_three": edited(image_size=[1, 2, 3]),
    "size_zero": edited(bucket=[0, 2]),
    "size_number": edited(bucket=4),
    "label_text": edited(label="cat"),
    "label_negative": edited(label=-1),
    "latents_list": edited(latents=[]),
    "no_latents": edited(latents={}),
    "unknown_latents": latents(other={"dtype": "float32", "shape": [1]}),
    "latents_named_key": latents(key={"dtype": "float16", "shape": [4, 4, 4]}),
    "other_std_shape": latents(latent_std={"dtype": "float16", "shape": [8, 2, 4]}),
    "int8_latents": latents(latent_std={"dtype": "int8", "shape": [4, 4, 4]}),
    "texts_object": edited(texts={}),
    "texts_left_out": edited(texts=[]),
    "texts_of_strings": edited(texts=["a"]),
    "text_without_weight": lambda header: header | {"texts": [{"caption": "a", "features": FEATURES}]},
    "unknown_dtype": features("float64", shape=[1, 6]),
    "int_dtype": features("int32", shape=[1, 6]),
    "no_shape": features(),
    "negative_shape": features(shape=[-1, -6]),
    "float_shape": features(shape=[1.0, 6]),
    "too_long": features(shape=[100, 6]),
    "too_short": features("float16", shape=[1, 6]),
    "no_scale": features("int8", shape=[1, 24]),
    "beyond_memory": features(shape=[10**30, 6]),
    "wrong_rank": features(shape=[6]),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_malformed_header_is_refused(change):
    with pytest.raises(InputError):
        decode_sample(with_header(change))


def test_unchanged_header_is_accepted():
    assert_samples_equal(decode_sample(with_header(lambda header: header)), make_sample(0))


@pytest.mark.parametrize("version", [1, 3])
def test_record_of_another_version_is_refused(version):
    body = struct.pack("<II", version, 2) + b"{}"
    with pytest.raises(InputError, match=f"format version {version}, .* version 2; make the set again"):
        decode_sample(b"PXFS" + struct.pack("<I", zlib.crc32(body)) + body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": ""}, "key must be"),
        ({"image_size": (3, 0)}, "'sample-0': image_size"),
        ({"image_size": [3, 4]}, "'sample-0': image_size"),
        ({"latent_mean": np.zeros((4, 4, 4))}, "latent_mean has dtype float64"),
        ({"latent_mean": [[[0.0]]]}, "latent_mean must be a numpy array"),
        ({"latent_std": np.zeros((4, 2, 4), np.float16)}, "latent_std has shape"),
        ({"texts": [TEXT]}, "'sample-0': texts must be a tuple of Text"),
        ({"texts": ("dot",)}, "'sample-0': texts must be a tuple of Text"),
        (
            {"texts": (TEXT, Text("b", np.zeros((1, 5), np.float32)))},
            "'sample-0': texts must be of one dtype and width",
        ),
        (
            {"texts": (TEXT, Text("b", np.zeros((1, 6), np.float16)))},
            "'sample-0': texts must be of one dtype and width",
        ),
        ({"label": -1}, "'sample-0': label"),
        ({"label": True}, "'sample-0': label"),
    ],
)
def test_a_sample_checks_its_own_fields(changes, message):
    with pytest.raises(InputError, match=message):
        make_sample(0, **changes)


CODES, SCALE = np.zeros((2, 6), np.int8), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((None, TEXT.features), "a text's caption must be a string"),
        (("dot", [[1.0]]), "text 'dot': features must be a numpy array"),
        (("dot", np.zeros((0, 6), np.float32)), r"text 'dot': features must have 2 dimension\(s\), none of them empty"),
        (("dot", np.zeros(6, np.float32)), "text 'dot': features must have 2 dimension"),
        (("dot", np.zeros((1, 6), np.int32)), "text 'dot': features has dtype int32"),
        (("dot", CODES), "text 'dot': scale must be a numpy array"),
        (("dot", CODES, SCALE[:1]), "text 'dot': scale has 1 numbers, features 2 tokens"),
        (("dot", CODES, SCALE[:, None]), "text 'dot': scale must have 1 dimension"),
        (("dot", CODES, SCALE.astype(np.float16)), "text 'dot': scale has dtype float16"),
        (("dot", TEXT.features, SCALE), "text 'dot': scale belongs to int8 features, but these are float32"),
        (("dot", TEXT.features, None, 0.0), "text 'dot': weight must be a finite number above 0"),
        (("dot", TEXT.features, None, float("inf")), "text 'dot': weight must be"),
        (("dot", TEXT.features, None, "1"), "text 'dot': weight must be"),
    ],
)
def test_a_text_checks_its_own_fields(fields, message):
    with pytest.raises(InputError, match=message):
        Text(*fields)


def weighted(*weights):
    return make_sample(0, texts=tuple(Text(str(i), TEXT.features, None, w) for i, w in enumerate(weights)))


def test_the_caption_of_the_largest_weight_speaks_for_the_sample():
    for weights, caption in (((1, 2, 2), "1"), ((3,), "0"), ((), ""), ((1, 1), "0")):
        assert weighted(*weights).caption == caption


def test_texts_are_drawn_by_weight():
    sample, rng = weighted(1, 5.0, 2), np.random.default_rng(0)
    counts = collections.Counter(sample.draw_text(rng).caption for _ in range(8000))
    for caption, expected in (("0", 1000), ("1", 5000), ("2", 2000)):
        assert abs(counts[caption] - expected) < 5 * 45  # five standard deviations of the middle one
    assert {sample.draw_text().caption for _ in range(5)} == {"1"}
    assert weighted(1e308, 1e308).draw_text(rng).caption in "01"  # whose sum is infinite
    assert {weighted(1.0, 5e-324).draw_text(rng).caption for _ in range(9)} == {"0"}


def test_a_single_text_takes_no_random_number():
    rng = np.random.default_rng(0)
    assert weighted(0.5).draw_text(rng).caption == "0"
    assert rng.random() == np.random.default_rng(0).random()


# --- int8


def cosines(features):
    """Of every token with itself after quantization."""
    back = Text("", *quantize(features)).values().astype(np.float64)
    return (features * back).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(back, axis=1)


@pytest.mark.parametrize(("outlier", "bound"), [(1, 1e-4), (10, 5e-3), (30, 1.2e-2)])
def test_cosine_of_quantized_tokens(outlier, bound):
    features = np.random.default_rng(0).standard_normal((200, 4096)).astype(np.float32)
    features[:, 7] *= outlier
    features[:, 1234] *= -outlier
    # Two channels of normal numbers times `outlier`; the worst of the tokens counts.
    assert 0 < 1 - cosines(features).min() < bound


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_value_is_off_by_more_than_half_a_step(data):
    numbers = st.floats(-(2.0**126), 2.0**126, width=32)
    rows = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4))
    features = np.array(rows, np.float32)
    codes, scale = quantize(features)
    assert (codes.dtype, scale.dtype, codes.shape, scale.shape) == (np.int8, np.float32, features.shape, (len(rows),))
    assert codes.min() >= -127
    values = Text("", codes, scale).values()
    assert np.isfinite(values).all()
    # 2^-126 of room: the smallest float32 have no 127th part.
    error = np.abs(values.astype(np.float64) - features)
    assert (error <= scale[:, None].astype(np.float64) * 0.5001 + 2.0**-126).all()


def test_quantize_by_hand():
    with np.errstate(all="raise"):  # no 0 / 0 on the way
        codes, scale = quantize(np.array([[0, 0], [127, -0.5], [-254, 3], [127, 1.5]], np.float16))
    np.testing.assert_array_equal(scale, [0, 1, 2, 1])
    np.testing.assert_array_equal(codes, [[0, 0], [127, 0], [-127, 2], [127, 2]])  # halves go to the even code
    np.testing.assert_array_equal(Text("", codes, scale).values(), [[0, 0], [127, 0], [-254, 4], [127, 2]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_quantize_refuses_what_is_not_finite(bad):
    with pytest.raises(InputError, match="hold NaN or infinity"):
        quantize(np.array([[1, bad]]))


@pytest.mark.parametrize("dtype", TEXT_DTYPES)
@pytest.mark.parametrize("target", [np.float32, BFLOAT16])
def test_features_decode_into_any_float_dtype(dtype, target):
    features = np.array([[1.0, -2.5], [0.0, 3.0]], np.float32)
    text = Text("", *quantize(features)) if dtype == np.int8 else Text("", features.astype(dtype))
    out = np.full((2, 2), 9, target)
    text.decode_into(out)
    np.testing.assert_array_equal(out, text.values().astype(target))
    np.testing.assert_allclose(out.astype(np.float32), features, atol=0.02 if dtype == np.int8 else 0)


def test_samples_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_sample(0).key = "other"
