"""Counts of nouns: what is valid, what weights do, and that parts add up."""

import json

import pytest

from pixart_jax.data.concepts import PAPER, Concepts, table


def test_valid_is_more_than_ten_times():
    counts = Concepts()
    for number in range(11):
        counts.add([(["cat", "cat"] if number < 5 else ["dog"], 1.0)])
    for _ in range(5):
        counts.add([(["dog", "Dog"], 1.0)])
    row = counts.row("mine")
    # Ten cats, eleven dogs, five Dogs.
    assert row == ("mine", 1, 3, pytest.approx(1 / 3), 26, pytest.approx(26 / 16))
    assert counts.per_picture == {2: 10, 1: 6}


def test_captions_count_by_their_weights():
    counts = Concepts()
    counts.add([(["cat", "mat"], 3.0), (["dog"], 1.0)])
    row = counts.row("mine")
    assert (row.distinct, row.total, row.per_picture) == (3, pytest.approx(1.75), pytest.approx(1.75))
    assert (counts.pictures, counts.captions) == (1, 2)


@pytest.mark.parametrize("parts", [2, 3, 5, 6, 7, 10])
def test_shares_of_ten_are_not_more_than_ten(parts):
    counts = Concepts()
    for _ in range(10):
        counts.add([(["cat"], 1 / parts)] * parts)
    assert counts.row("").valid == 0
    counts.add([(["cat"], 1.0), (["dog"], 1.0)])
    assert counts.row("").valid == 1


def test_parts_add_up_in_any_order():
    pictures = [[(["cat", "dog"], 0.3), (["cat"], 0.7)], [(["猫"], 1.0)], [([], 1.0)]] * 4
    whole, parts = Concepts(), [Concepts(), Concepts()]
    for number, picture in enumerate(pictures):
        whole.add(picture)
        parts[number % 2].add(picture)
    merged = Concepts()
    for part in reversed(parts):
        merged.merge(json.loads(json.dumps(part.as_json())))
    assert merged == whole


def test_the_papers_rows_beside_ones_own():
    counts = Concepts()
    counts.add([(["cat"], 1.0)])
    lines = table([*PAPER, counts.row("a|b")]).splitlines()
    assert lines[2] == "| LAION (paper) | 210K / 2461K = 8.5% | 72.0M | 6.4 |"
    assert lines[4] == "| SAM-LLaVA (paper) | 23K / 124K = 18.6% | 327.9M | 29.3 |"
    assert lines[6] == "| a\\|b | 0 / 1 = 0.0% | 1 | 1.0 |"
