"""Lists of prompts in the forms that benchmarks have them in."""

import json

import pytest

from pixart_jax.data.prompt_lists import chosen, prompts_hash, read_prompt_list, seed_of
from pixart_jax.errors import InputError

COCO = {
    "info": {},
    "images": [{"id": 7}, {"id": 3}, {"id": 5}],
    "annotations": [
        {"image_id": 7, "id": 20, "caption": "later"},
        {"image_id": 7, "id": 10, "caption": "a dog\n"},
        {"image_id": 3, "id": 30, "caption": "a cat"},
        {"image_id": 9, "id": 1, "caption": "of no picture"},
    ],
}
MJHQ = {"b2": {"category": "people", "prompt": "a man"}, "a1": {"category": "food", "prompt": "bread"}}


@pytest.mark.parametrize(
    "content,expected",
    [
        (COCO, ["a cat", "a dog"]),
        (MJHQ, ["a man", "bread"]),
        ({"0.png": "one", "1.png": "two"}, ["one", "two"]),
        (["one", " two "], ["one", "two"]),
    ],
)
def test_json(tmp_path, content, expected):
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert read_prompt_list(tmp_path / "list.json") == expected


def test_text(tmp_path):
    (tmp_path / "list.txt").write_text("one\n\n two\n")
    assert read_prompt_list(tmp_path / "list.txt") == ["one", "two"]


@pytest.mark.parametrize(
    "text,said",
    [
        ("{", "is damaged"),
        ("3", "is no list of prompts"),
        ("[]", "holds no prompt"),
        ("{}", "holds no prompt"),
        ('["a", " "]', "entry 1 holds no prompt, but ' '"),
        ('{"a": {"category": "x"}}', "entry 0 holds no prompt, but None"),
        ('{"images": [{"id": 1}], "annotations": [{"caption": "x"}]}', "is no list of prompts"),
        ('{"images": [], "annotations": []}', "holds no prompt"),
        ('{"images": 3, "annotations": []}', "is no list of prompts"),
    ],
)
def test_what_is_no_list(tmp_path, text, said):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_prompt_list(tmp_path / "list.json")


def test_no_file(tmp_path):
    for name in ("list.json", "list.txt"):
        with pytest.raises(InputError, match=name):
            read_prompt_list(tmp_path / name)


def test_fewer_prompts_are_among_those_of_more():
    assert chosen(5, None) == [0, 1, 2, 3, 4]
    ten, thirty = chosen(1000, 10), chosen(1000, 30)
    assert set(ten) < set(thirty) and ten == sorted(ten) and len(thirty) == 30
    # From all of the list, not from its beginning.
    assert min(thirty) < 200 and max(thirty) > 800
    for count, said in ((1, "two or more"), (6, "there are 5 prompts"), (-2, "two or more")):
        with pytest.raises(InputError, match=said):
            chosen(5, count)
    with pytest.raises(InputError, match="two or more"):
        chosen(1, None)


def test_every_picture_has_a_seed_of_its_own():
    seeds = {seed_of(seed, place) for seed in (0, 1, 2**64 - 1) for place in range(1000)}
    assert len(seeds) == 3000 and all(0 <= seed < 2**64 for seed in seeds)
    assert seed_of(0, 1) != seed_of(1, 0)


def test_hashes_tell_prompts_apart():
    assert prompts_hash(["ab", "c"]) != prompts_hash(["a", "bc"])
    assert prompts_hash(["a", "b"]) != prompts_hash(["b", "a"])
