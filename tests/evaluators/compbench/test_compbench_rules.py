"""T2I-CompBench's rules against its own functions (tests/golden/README.md), and on prompts of its files."""

import json

import numpy as np
import pytest
from golden_cases import GOLDEN

from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.depth import depth_score, score_picture_in_depth
from pixart_jax.evaluators.compbench.detections import Detection
from pixart_jax.evaluators.compbench.language import English, Word, text_of
from pixart_jax.evaluators.compbench.numeracy import counts_of, is_same, labels_of, numeracy_score, read_things
from pixart_jax.evaluators.compbench.questions import attribute_score, clean_question, questions_of
from pixart_jax.evaluators.compbench.spatial import (
    complex_pair_of,
    locality_of,
    pair_of,
    position_score,
    score_picture,
    spatial_score,
)
from pixart_jax.evaluators.compbench.three_in_one import three_in_one

RULES = json.loads((GOLDEN / "extras" / "compbench_rules.json").read_text())
THREE = json.loads((GOLDEN / "extras" / "compbench_3in1.json").read_text())


@pytest.fixture(scope="module")
def english():
    return English()


def found(label, box=(0, 0, 10, 10), score=0.9):
    return Detection(label, score, box)


@pytest.mark.parametrize("case", RULES["spatial"])
def test_spatial_scores_agree(case):
    assert position_score(case["locality"], case["box1"], case["box2"]) == pytest.approx(case["position"], abs=1e-12)
    pair = (found("a", case["box1"], case["confidence1"]), found("b", case["box2"], case["confidence2"]))
    assert spatial_score(case["locality"], *pair) == pytest.approx(case["score"], abs=1e-12)
    assert is_same(case["box1"], case["box2"]) == bool(case["same_object_numeracy"])


@pytest.mark.parametrize("case", RULES["pre_question"])
def test_questions_are_cleaned_alike(case):
    assert clean_question(case["i"]) == case["o"]


def test_three_in_one_agrees():
    scores = three_in_one(
        THREE["prompts"],
        spatial_prompts=THREE["spatial_prompts"],
        action_prompts=THREE["action_prompts"],
        **{name: np.array(values) for name, values in THREE["inputs"].items()},
    )
    np.testing.assert_allclose(scores, THREE["scores"], rtol=1e-12)
    assert scores.mean() == pytest.approx(THREE["average"], rel=1e-12)


def test_positions():
    left, right, low = (0, 0, 10, 10), (400, 20, 420, 40), (0, 400, 10, 410)
    assert position_score("on the left of", left, right) == 1 == position_score("on the right of", right, left)
    assert position_score("on the right of", left, right) == 0 == position_score("on top of", left, low)
    assert position_score("on the top of", left, low) == 1 == position_score("on the bottom of", low, left)
    assert position_score("near", left, right) == 1  # Their heights differ by less than 150.
    assert position_score("near", left, (205, 305, 215, 315)) == pytest.approx(150 / 305)
    # They overlap by a half.
    assert position_score("on the left of", (0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(0.1 / 0.5)
    assert position_score("on the left of", (0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_what_is_found_less_surely_than_half_counts_nothing():
    cat, sofa = found("cat"), found("sofa", (400, 0, 410, 10))
    assert score_picture("a cat on the left of a sofa", ("cat", "sofa"), [cat, sofa]) == pytest.approx(0.95)
    assert score_picture("a cat on the left of a sofa", ("cat", "sofa"), [cat]) == 0
    assert score_picture("a cat on the right of a sofa", ("cat", "sofa"), [cat, sofa]) == 0
    assert score_picture("clouds", None, [cat]) == 0
    # The first of a name counts, not the surest.
    first = [found("cat", (500, 0, 510, 10), 0.6), cat, sofa]
    assert score_picture("a cat on the left of a sofa", ("cat", "sofa"), first) == 0
    assert locality_of("a cat on the top of a sofa") == "on the top of" and locality_of("a cat and a sofa") is None
    assert locality_of("a cat next to a lamp near a sofa") == "next to"


def test_things_of_prompts(english):
    def pair(prompt):
        return pair_of(english.parse(prompt).words)

    def complex_pair(prompt):
        return complex_pair_of(english.parse(prompt).words)

    assert pair("a girl on the top of a frog") == ("person", "frog")
    assert pair("a bee on the right of a refrigerator") == ("bee", "refrigerator")
    assert pair("") is None
    assert complex_pair("The red hat was on top of the brown coat rack.") == ("hat", "coat")
    assert complex_pair("The fluffy cat is on the left of the soft pillow.") == ("cat", "pillow")
    assert complex_pair("The black phone was resting on the brown charger.") is None
    assert complex_pair("The cup is next to the book and near the lamp.") is None  # Four things.
    # A preposition that ends the prompt has nothing after it.
    assert complex_pair("The cup was near") is None


def test_proper_nouns_stand_in_for_nouns():
    def words(*pairs):
        return [Word(text, kind) for text, kind in pairs]

    before = words(("Big", "PROPN"), ("Ben", "PROPN"), ("is", "AUX"), ("next", "ADV"), ("to", "ADP"))
    assert complex_pair_of([*before, *words(("Tower", "PROPN"), ("Bridge", "PROPN"), (".", "PUNCT"))]) == (
        "Ben",
        "Bridge",
    )
    assert complex_pair_of([*before, *words(("Tower", "PROPN"), ("Bridge", "PROPN"))]) is None
    assert complex_pair_of([*before, *words(("Paris", "PROPN"), (",", "PUNCT"), ("town", "NOUN"))]) == ("Ben", "town")


def test_noun_phrases_become_questions(english):
    parsed = english.parse("a green bench and a blue bowl")
    assert questions_of(parsed.noun_phrases) == ("a green bench?", "a blue bowl?")
    assert text_of(parsed.words) == "a green bench and a blue bowl" and text_of(parsed.words[1:3]) == "green bench"
    assert questions_of(["The Cat", "top", "the left", "the right", "the side", "a top"]) == ("the cat?", "a top?")
    assert len(questions_of([f"thing {i}" for i in range(12)])) == 8


def test_attribute_scores_are_products_of_rounded_numbers():
    assert attribute_score([0.5, 0.12345]) == 0.0617  # 0.5 · 0.1235 is 0.06175 in decimal, and less in binary.
    assert attribute_score([]) == 1 and attribute_score([0.00004]) == 0


@pytest.fixture
def things(tmp_path):
    path = tmp_path / "new_objects.txt"
    path.write_text("mouse - mice\nman - men\nsheep - sheep\nwine glass - wine glasses\nship - ships\n")
    return read_things(path)


def test_numbers_of_things(things, tmp_path):
    assert counts_of(["three", "mice", "and", "a", "man"], things) == [("mouse", 3), ("man", 1)]
    assert counts_of(["two", "wine", "glasses", "near", "eight", "sheep", "and", "one"], things) == [
        ("wine glass", 2),
        ("sheep", 8),
    ]
    assert counts_of(["mice", "and", "nine", "ships"], things) == []
    (tmp_path / "new_objects.txt").write_text("mouse\n")
    with pytest.raises(InputError, match="line 1: 'mouse' is not as in"):
        read_things(tmp_path / "new_objects.txt")


def test_numeracy_counts_each_thing_once():
    mice = [found("mouse", (100 * i, 0, 100 * i + 50, 50)) for i in range(3)]
    within = found("mouse", (2, 2, 40, 40))  # A part of the first.
    assert labels_of([*mice, within, found("cat", (0, 0, 50, 50))]) == ["mouse"] * 3 + ["cat"]
    assert is_same((0, 0, 10, 10), (0, 1, 10, 11))  # Their pixels count, not the lines between: 110 of 121.
    assert is_same((0, 0, 50, 50), (0, 0, 50, 47)) and not is_same((0, 0, 50, 50), (40, 0, 90, 50))
    assert numeracy_score([("mouse", 3)], [*mice, within]) == 1
    assert numeracy_score([("mouse", 2)], mice) == 0.5
    assert numeracy_score([("mouse", 3), ("ship", 1)], [*mice, found("boat")]) == 1
    assert numeracy_score([("mouse", 3), ("man", 1)], mice) == 0.5
    assert numeracy_score([("glass", 1)], [found("wine glass")]) == 1
    assert numeracy_score([], mice) == 0


def test_depths():
    depths = np.zeros((479, 479), np.float32)
    depths[:100, :100] = 1  # Nearer.
    near, far, apart = (0, 0, 100, 100), (40, 40, 140, 140), (200, 200, 300, 300)
    part = 3600 / (20000 - 3600) / 0.5
    assert depth_score("in front of", near, far, depths) == pytest.approx(part)
    assert depth_score("behind", far, near, depths) == depth_score("hidden", far, near, depths) == pytest.approx(part)
    assert depth_score("behind", near, far, depths) == 0 == depth_score("in front of", far, near, depths)
    assert depth_score("in front of", near, apart, depths) == 0 == depth_score(None, near, far, depths)
    assert depth_score("in front of", near, (5, 5, 105, 105), depths) == 1
    assert depth_score("in front of", near, (0, 0, 100, 200), depths) == 0  # Exactly a half.
    # Rows and columns are taken for each other.
    depths = np.zeros((479, 479), np.float32)
    depths[:100, 200:300] = 1
    assert depth_score("in front of", (0, 200, 100, 300), (0, 140, 100, 240), depths) > 0
    empty = (9, 9, 9, 9)
    assert depth_score("in front of", empty, near, depths) == 0 == depth_score("behind", empty, near, depths)


def test_things_in_depth_are_found_in_longer_names_and_count_below_a_half():
    depths = np.zeros((479, 479), np.float32)
    depths[:100, :100] = 1
    cup, other = found("coffee cup", (0, 0, 100, 100), 0.8), found("cup", score=0.5)
    cat = found("cat", (5, 5, 105, 105), 0.6)
    prompt, pair = "a cup in front of a cat", ("cup", "cat")
    assert score_picture_in_depth(prompt, pair, [other, cup, cat], depths) == pytest.approx(0.25 * 1.4 + 0.5)
    assert score_picture_in_depth(prompt, pair, [cup, other], depths) == pytest.approx(0.25 * 0.8)
    assert score_picture_in_depth(prompt, pair, [], depths) == 0 == score_picture_in_depth(prompt, None, [cup], depths)
