"""Distances between sets of pictures, against what the libraries give for the same features."""

import json
import pathlib

import numpy as np
import pytest

from pixart_jax.errors import InputError
from pixart_jax.evaluators.distances import (
    Moments,
    Statistics,
    clip_discrepancy,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
    statistics_of,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "extras"


@pytest.fixture(scope="module")
def case():
    with np.load(GOLDEN / "fid_metrics.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def values():
    return json.loads((GOLDEN / "fid_metrics.json").read_text(encoding="utf-8"))["values"]


def _statistics(features, batch=7):
    return statistics_of((features[i : i + batch] for i in range(0, len(features), batch)), features.shape[1])


def test_mean_and_covariance(case):
    found = _statistics(case["in/features1"])
    np.testing.assert_allclose(found.mu, case["out/mu1"], rtol=1e-6)
    np.testing.assert_allclose(found.sigma, case["out/sigma1"], rtol=1e-10, atol=1e-12)
    assert found.count == len(case["in/features1"])


@pytest.mark.parametrize("name", ["full", "few", "same"])
def test_frechet_distance(case, values, name):
    first = case["in/features_few" if name == "few" else "in/features1"]
    second = case["in/features1" if name == "same" else "in/features2"]
    found = frechet_distance(_statistics(first), _statistics(second))
    assert found == pytest.approx(values[f"pytorch_fid/{name}"], rel=1e-7, abs=1e-7)
    # torch-fidelity averages in float32.
    assert found == pytest.approx(values[f"torch_fidelity/{name}"], rel=1e-6, abs=1e-7)


def test_parts_that_are_merged_are_the_whole(case):
    features = case["in/features1"] * 100 + 1000
    whole, parts = Moments(24), Moments(24)
    whole.add(features)
    for rows in np.array_split(features, 4):
        part = Moments(24)
        part.add(rows)
        parts.merge(part)
    second = _statistics(case["in/features2"])
    one, four = (frechet_distance(moments.statistics(), second) for moments in (whole, parts))
    assert four == pytest.approx(one, rel=1e-12)


def test_kernel_distance(case, values):
    found = kernel_distance(case["in/features1"], case["in/features2"], num_subsets=7, subset_size=40)
    assert found[0] == pytest.approx(values["torch_fidelity/kid_mean"], rel=1e-6)
    # The library's kernel is float32's, which shows in how much the subsets differ.
    assert found[1] == pytest.approx(values["torch_fidelity/kid_std"], rel=2e-6)


def test_inception_score(case, values):
    mean, std = inception_score(case["in/logits"])
    assert mean == pytest.approx(values["isc_mean"], rel=1e-6)
    assert std == pytest.approx(values["isc_std"], rel=1e-6)
    assert inception_score(case["in/logits"], num_splits=1) == pytest.approx((values["isc_one_split"], 0), rel=1e-6)


def test_precision_and_recall(case, values):
    found = precision_and_recall(case["in/features1"], case["in/features2"])
    assert found == pytest.approx((values["precision"], values["recall"]), rel=1e-6)


def test_clip_discrepancy(case, values):
    found = clip_discrepancy(case["in/features1"], case["in/features2"])
    assert found == pytest.approx(values["cmmd"], rel=1e-5)


def test_what_has_no_distance_is_refused():
    good = Statistics(np.zeros(3), np.eye(3), 5)
    for bad, said in [
        (Statistics(np.zeros(4), np.eye(4), 5), "different networks"),
        (Statistics(np.full(3, np.nan), np.eye(3), 5), "not finite"),
    ]:
        with pytest.raises(InputError, match=said):
            frechet_distance(good, bad)
    for count in (0, 1):
        with pytest.raises(InputError, match="two pictures or more"):
            statistics_of([np.ones((count, 3))], 3)
    few, many = np.ones((3, 2)), np.ones((30, 2))
    with pytest.raises(InputError, match="subsets of 1000"):
        kernel_distance(few, many)
    with pytest.raises(InputError, match="as many pictures"):
        inception_score(few)
    with pytest.raises(InputError, match="more than 3"):
        precision_and_recall(few, many)
    with pytest.raises(InputError, match="different networks"):
        kernel_distance(many, np.ones((30, 3)))
