"""What the input pipeline refuses before any work starts, and how it says so."""

import os

import pytest
from shard_cases import SPEC, spec_with, write_set

from pixart_jax.data.pipeline import check_sources, make_iterator
from pixart_jax.data.shards.manifest import read_manifest
from pixart_jax.errors import InputError


def test_good_sources_give_their_manifests(thirteen):
    assert check_sources([(thirteen, 1.0), (str(thirteen), 2.0)], SPEC) == [read_manifest(thirteen)] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, "latent_channels is 4 in the data, 16 in the model"),
        ({"patch_size": 3}, "patch_size is 3 in the model, 2 in the data.*bucket 32x32 has a latent grid of 4x4"),
        ({"text_dim": 8}, "text_dim is 6 in the data.*'toy'.*8 in the model"),
        ({"max_text_tokens": 4}, "max_text_tokens is 5 in the data, only 4 in the model"),
        ({"num_classes": 10}, "num_classes is 0 in the data, 10 in the model"),
        ({"num_tokens": 3}, "num_tokens is 3 in the model, but .*bucket 32x32 has 2x2 = 4 tokens"),
        ({"block_ratio": 4}, r"block_ratio \(key/value compression\) is 4 in the model, but .*32x32 has 2x2 tokens"),
    ],
)
def test_model_and_data_must_agree(thirteen, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        make_iterator([(thirteen, 1.0)], spec_with(**changes), seed=0)
    assert str(thirteen) in str(caught.value)
    assert ";" in str(caught.value)  # the cure


def test_all_disagreements_are_named_at_once(thirteen):
    with pytest.raises(InputError, match=r"(?s)latent_channels.*text_dim.*num_tokens"):
        check_sources([(thirteen, 1.0)], spec_with(latent_channels=8, text_dim=2, num_tokens=1))


def test_second_source_is_checked_too(thirteen, tmp_path):
    other = write_set(tmp_path / "other", 3, max_text_tokens=6)
    with pytest.raises(InputError, match="other: max_text_tokens is 6"):
        check_sources([(thirteen, 1.0), (other, 1.0)], SPEC)


def test_shards_are_checked_before_work_starts(thirteen):
    os.truncate(thirteen / read_manifest(thirteen).shards[3].file, 100)
    with pytest.raises(InputError, match=r"shard-00003\.array_record is truncated"):
        make_iterator([(thirteen, 1.0)], SPEC, seed=0)


def test_missing_source(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        make_iterator([(tmp_path / "nowhere", 1.0)], SPEC, seed=0)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights(thirteen, weight):
    with pytest.raises(InputError, match="weight must be a positive number"):
        make_iterator([(thirteen, weight)], SPEC, seed=0)


def test_no_sources():
    with pytest.raises(InputError, match="no data sources"):
        make_iterator([], SPEC, seed=0)


@pytest.mark.parametrize(
    "options",
    [{"seed": -1}, {"num_workers": -1}, {"process_count": 0}, {"process_index": 2, "process_count": 2}],
)
def test_arguments(thirteen, options):
    with pytest.raises(InputError, match=f"^{next(iter(options))} must"):
        make_iterator([(thirteen, 1.0)], SPEC, **({"seed": 0} | options))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("num_tokens", 0),
        ("position_scale", 0.0),
        ("text_dtype", "float16"),
        ("num_classes", -1),
        ("block_ratio", 0),
        ("text_drop_prob", 1.5),
    ],
)
def test_spec_checks_its_fields(field, value):
    with pytest.raises(InputError, match=f"^{field} must"):
        spec_with(**{field: value})
