"""Retrieval against a plain double loop, and against ways in which it could flatter."""

import numpy as np
import pytest

from pixart_jax.errors import InputError
from pixart_jax.evaluators import retrieval
from pixart_jax.evaluators.retrieval import retrieval_at_1, retrieval_ranks


@pytest.fixture
def gallery():
    return np.random.default_rng(0).uniform(-1, 1, (12, 8, 6, 3)).astype(np.float32)


def test_perfect_and_noisy_copies(gallery):
    target = np.array([3, 1, 1, 11])
    noise = np.random.default_rng(1).normal(0, 0.05, (4, 8, 6, 3)).astype(np.float32)
    assert retrieval_at_1(gallery[target], gallery, target) == 1.0
    assert retrieval_at_1(gallery[target] + noise, gallery, target) == 1.0


def test_fraction(gallery):
    assert retrieval_at_1(gallery[[0, 1, 2, 3]], gallery, np.array([0, 1, 2, 4])) == 0.75


def test_ranks_match_a_double_loop(gallery, monkeypatch):
    monkeypatch.setattr(retrieval, "_CHUNK", 5)  # so that 23 queries take several chunks, the last one short
    rng = np.random.default_rng(2)
    generated = rng.uniform(-1, 1, (23, 8, 6, 3)).astype(np.float32)
    target = rng.integers(0, 12, 23)
    expected = []
    for query, own in zip(generated, target, strict=True):
        distances = [np.sum((query.astype(np.float64) - reference) ** 2) for reference in gallery]
        expected.append(sorted(distances).index(distances[own]))
    ranks = retrieval_ranks(generated, gallery, target)
    assert ranks.tolist() == expected
    assert len(set(expected)) > 5


def test_ties_count_against(gallery):
    doubled = np.concatenate([gallery, gallery])
    assert retrieval_ranks(gallery, doubled, np.arange(12)).tolist() == [1] * 12
    same = np.zeros((5, 8, 6, 3), np.float32)
    assert retrieval_ranks(same, same, np.arange(5)).tolist() == [4] * 5


def test_a_gallery_of_one(gallery):
    assert retrieval_at_1(-gallery[:2], gallery[:1], np.array([0, 0])) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_not_finite(gallery, bad):
    broken = gallery.copy()
    broken[4, 2, 2, 0] = bad
    for generated, references in ((broken, gallery), (gallery, broken)):
        with pytest.raises(InputError, match="not finite"):
            retrieval_at_1(generated, references, np.arange(12))


@pytest.mark.parametrize(
    ("generated", "target", "message"),
    [
        (np.zeros((2, 8, 8, 3)), np.array([0, 1]), "one size"),
        (np.zeros((0, 8, 6, 3)), np.array([], int), "one size"),
        (np.zeros((2, 8, 6, 3)), np.array([0]), "one integer target"),
        (np.zeros((2, 8, 6, 3)), np.array([0.0, 1.0]), "one integer target"),
        (np.zeros((2, 8, 6, 3)), np.array([0, 12]), r"\[0, 12\)"),
        (np.zeros((2, 8, 6, 3)), np.array([-1, 0]), r"\[0, 12\)"),
    ],
)
def test_refuses(gallery, generated, target, message):
    with pytest.raises(InputError, match=message):
        retrieval_ranks(generated, gallery, target)
