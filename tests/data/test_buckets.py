"""The bucket tables against diffusers' own, the facts of the reference, and their choice against diffusers'."""

import pytest
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma
from hypothesis import given
from hypothesis import strategies as st

from pixart_jax.data.buckets import RESOLUTIONS, Bucket, nearest_bucket, sampling_buckets, training_buckets
from pixart_jax.errors import InputError

DIFFUSERS = {
    256: pipeline_pixart_alpha.ASPECT_RATIO_256_BIN,
    512: pipeline_pixart_alpha.ASPECT_RATIO_512_BIN,
    1024: pipeline_pixart_alpha.ASPECT_RATIO_1024_BIN,
    2048: pipeline_pixart_sigma.ASPECT_RATIO_2048_BIN,
}

# From the reference: what all sides are multiples of, the least and the greatest side; the least token count (16 px a
# side), the square's, and how many counts there are.
FACTS = {
    256: (16, 128, 512, 231, 256, 14),
    512: (32, 256, 1024, 924, 1024, 14),
    1024: (64, 512, 2048, 3696, 4096, 14),
    2048: (128, 1024, 4096, 14784, 16384, 14),
    2880: (64, 1408, 5760, 28320, 32400, 18),
    4096: (256, 2048, 8192, 59136, 65536, 14),
}


def as_diffusers(buckets):
    return {str(bucket.label): [float(bucket.height), float(bucket.width)] for bucket in buckets}


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_sampling_tables_are_those_of_diffusers(resolution):
    ours = as_diffusers(sampling_buckets(resolution))
    assert list(ours.items()) == list(DIFFUSERS[resolution].items())


def test_the_2048_training_table_is_that_of_diffusers():
    assert list(as_diffusers(training_buckets(2048)).items()) == list(DIFFUSERS[2048].items())


@pytest.mark.parametrize("resolution", [256, 512, 1024, 4096])
def test_one_table_serves_all_but_2880(resolution):
    at_2048 = training_buckets(2048)
    scaled = [(b.label, b.height * resolution // 2048, b.width * resolution // 2048) for b in at_2048]
    assert [(b.label, b.height, b.width) for b in training_buckets(resolution)] == scaled


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("table", [training_buckets, sampling_buckets])
def test_facts_of_the_reference(table, resolution):
    buckets = table(resolution)
    sides = [side for bucket in buckets for side in (bucket.height, bucket.width)]
    tokens = [bucket.height // 16 * (bucket.width // 16) for bucket in buckets]
    multiple, least_side, greatest_side, least_tokens, square_tokens, num_counts = FACTS[resolution]
    assert all(type(side) is int and side % multiple == 0 for side in sides)
    assert any(side % (2 * multiple) for side in sides)
    assert (min(sides), max(sides)) == (least_side, greatest_side)
    assert (min(tokens), max(tokens)) == (least_tokens, square_tokens)
    assert Bucket(1.0, resolution, resolution) in buckets
    assert [b.label for b in buckets] == sorted({b.label for b in buckets})
    whole = table is training_buckets or resolution == 2880
    assert len(buckets) == (40 if whole else 33)
    assert len(set(tokens)) == (num_counts if whole else 13)


def test_labels_left_out_of_sampling():
    def left_out(resolution):
        kept = sampling_buckets(resolution)
        return {b.label for b in training_buckets(resolution) if b not in kept}

    for resolution in (256, 512, 1024):
        assert left_out(resolution) == {0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88}
    for resolution in (2048, 4096):
        assert left_out(resolution) == {0.27, 0.28, 2.89, 3.11, 3.62, 3.75, 3.88}
    assert left_out(2880) == set()


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_size_but_one_has_its_transpose_and_labels_are_near_the_ratio(resolution):
    """A slip of a digit in a table breaks one or the other."""
    buckets = training_buckets(resolution)
    sizes = {(b.height, b.width) for b in buckets}
    (odd_one,) = (b for b in buckets if (b.width, b.height) not in sizes)
    assert len(sizes) == 40 and odd_one.label == (0.51 if resolution == 2880 else 0.52)
    for b in buckets:
        if resolution != 2880:
            assert b.label == round(b.height / b.width, 2)
        # Labels of 2880 are up to 3.1 % off in the reference.
        assert b.label == pytest.approx(b.height / b.width, rel=0.032)


@given(resolution=st.sampled_from(sorted(DIFFUSERS)), height=st.integers(1, 9000), width=st.integers(1, 9000))
def test_the_choice_is_that_of_diffusers(resolution, height, width):
    table = DIFFUSERS[resolution]
    buckets = training_buckets(2048) if resolution == 2048 else sampling_buckets(resolution)
    bucket = nearest_bucket(buckets, height / width)
    assert (bucket.height, bucket.width) == PixArtImageProcessor.classify_height_width_bin(height, width, table)


def test_the_choice_is_by_absolute_difference_and_the_first_wins_ties():
    half, one, two = Bucket(0.5, 8, 16), Bucket(1.0, 8, 8), Bucket(2.0, 16, 8)
    # √2 lies halfway on a logarithmic scale; 1.5 does on ours.
    assert nearest_bucket((half, one, two), 1.45) == one
    assert nearest_bucket((half, one, two), 1.5) == one
    assert nearest_bucket((two, one, half), 1.5) == two
    assert nearest_bucket((half, one, two), 1e9) == two
    assert nearest_bucket((half, one, two), 1e-9) == half


@pytest.mark.parametrize("table", [training_buckets, sampling_buckets])
@pytest.mark.parametrize("resolution", [0, 768, 1023, -1024])
def test_an_unknown_resolution_is_refused_with_the_known_ones(table, resolution):
    with pytest.raises(InputError, match=rf"{resolution}; choose one of 256, 512, 1024, 2048, 2880, 4096"):
        table(resolution)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(InputError, match="positive height/width"):
        nearest_bucket(training_buckets(256), ratio)


def test_no_buckets_are_refused():
    with pytest.raises(InputError, match="0 buckets"):
        nearest_bucket((), 1.0)
