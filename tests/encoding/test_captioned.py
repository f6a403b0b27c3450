"""What is asked about a picture, and what becomes of the answer."""

import json
import os
import tarfile

import pytest
from photographs import crop_photographs
from PIL import Image

from pixart_jax.data.pictures import open_pictures
from pixart_jax.encoding import captioned
from pixart_jax.encoding.captioned import WITHOUT_CAPTION, CaptionedPictures, is_refusal
from pixart_jax.encoding.captioner import Answer
from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import work_through


class Fake:
    """Answers by the caption that it is shown; keeps what it was asked, and the pictures' sizes."""

    def __init__(self, answers):
        self.answers_by_word, self.asked, self.sizes = answers, [], []

    def answers(self, pictures, requests):
        self.asked += requests
        self.sizes += [picture.size for picture in pictures]
        return [
            Answer(*next((said for word, said in self.answers_by_word.items() if word in request), ("?", False)))
            for request in requests
        ]


def caption(source, out, answers=None, **options):
    """(list, odd answers, skipped, what was asked) of captioning."""
    fake = Fake(answers or {})
    options = {"request": None, "old_caption_weight": 0.25, "about": {}, "batch_size": 2} | options
    units = CaptionedPictures(open_pictures(str(source)), fake, out, items_per_unit=3, num_threads=2, **options)
    assert work_through(units, out)
    names = ("captions.jsonl", "odd_answers.jsonl", "skipped.jsonl")
    files = [(out / name).read_text(encoding="utf-8").splitlines() for name in names if (out / name).exists()]
    return *([json.loads(line) for line in lines] for lines in files), fake


def write_list(folder, *records):
    for number, record in enumerate(records):
        Image.new("RGB", (80 + number, 70)).save(folder / f"{number}.png")
        record.setdefault("path", f"{number}.png")
    (folder / "list.json").write_text(json.dumps(records))
    return folder / "list.json"


def test_with_its_caption_and_without(tmp_path):
    source = write_list(
        tmp_path,
        {"prompt": "a cat"},
        {},
        {"captions": [{"text": "rare", "weight": 1}, {"text": "often {caption}", "weight": 3}], "label": 4},
        {"prompt": " "},
    )
    rows, odd, skipped, fake = caption(source, tmp_path / "out", {"": ("A picture.", False)})
    given = 'Given the caption of this image "{}", describe this image and its style in a very detailed manner'
    assert fake.asked == [given.format("a cat"), WITHOUT_CAPTION, given.format("often {caption}"), WITHOUT_CAPTION]
    assert odd == skipped == []
    new = {"text": "A picture.", "weight": 0.75}
    assert rows == [
        {"path": "../0.png", "captions": [new, {"text": "a cat", "weight": 0.25}]},
        {"path": "../1.png", "captions": [new]},
        {
            "path": "../2.png",
            "captions": [new, {"text": "rare", "weight": 0.0625}, {"text": "often {caption}", "weight": 0.1875}],
            "label": 4,
        },
        {"path": "../3.png", "captions": [new]},
    ]
    again = open_pictures(str(tmp_path / "out" / "captions.jsonl"))
    assert again[0].captions == (("A picture.", 0.75), ("a cat", 0.25)) and again[2].label == 4
    assert again[0].data == (tmp_path / "0.png").read_bytes()


def test_a_request_of_ones_own(tmp_path):
    source = write_list(tmp_path, {"prompt": "a " + "long " * 5000}, {})
    rows, _, skipped, fake = caption(source, tmp_path / "out", request="Say more than {caption}!")
    assert fake.asked == ["Say more than " + ("a " + "long " * 5000)[: captioned.MOST_SHOWN] + "!"]
    assert [row["reason"] for row in skipped] == ["caption-missing"]
    assert len(rows[0]["captions"][1]["text"]) > 20_000
    _, _, skipped, fake = caption(source, tmp_path / "plain", request=WITHOUT_CAPTION, old_caption_weight=0.0)
    assert (fake.asked, skipped) == ([WITHOUT_CAPTION] * 2, [])


def test_refusals_empty_and_cut_answers_are_listed(tmp_path):
    answers = {"one": ("I’m sorry, I cannot help.", False), "two": ("", False), "three": ("A long", True)}
    records = [{"prompt": "one"}, {"prompt": "two"}, {"prompt": "three"}, {"prompt": "four"}]
    rows, odd, _, _ = caption(write_list(tmp_path, *records), tmp_path / "out", answers)
    assert [(row["what"], row["answer"], row["kept"]) for row in odd] == [
        ("refused", "I’m sorry, I cannot help.", True), ("empty", "", True), ("cut", "A long", True)
    ]  # fmt: skip
    assert [[entry["text"] for entry in row["captions"]] for row in rows] == [
        ["one"], ["two"], ["A long", "three"], ["?", "four"]
    ]  # fmt: skip
    assert rows[0]["captions"][0]["weight"] == 1
    rows, odd, _, _ = caption(tmp_path / "list.json", tmp_path / "new", answers, old_caption_weight=0.0)
    assert [row["path"] for row in rows] == ["../2.png", "../3.png"]
    assert [row["kept"] for row in odd] == [False, False, True]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("Sorry, I cannot see the image.", True),
        ("“I am unable to describe people.", False),
        ('"I am unable to describe people."', True),
        ("As an AI language model, I", True),
        ("很抱歉，我无法描述", True),
        ("Unfortunately, I do not", True),
        ("A sorry sight: an abandoned house.", False),
        ("In the image I can see a dog that cannot move.", False),
        ("I see a cat.", False),
        ("", False),
    ],
)
def test_what_a_refusal_is(answer, expected):
    assert is_refusal(answer) == expected


def test_nothing_but_refusals(tmp_path):
    source = write_list(tmp_path, {}, {})
    with pytest.raises(InputError, match=r"not one of 2 pictures has a caption.*\{'refused': 2\}"):
        caption(source, tmp_path / "out", {"": ("I cannot", False)})
    assert not (tmp_path / "out").exists()


def test_pictures_that_cannot_be_read_and_large_ones(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    for name, size in {"latin": (80, 80), "long": (500, 100), "tiny": (20, 20), "large": (400, 200)}.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    (folder / "latin.txt").write_bytes("Käse".encode("latin-1"))
    rows, _, skipped, fake = caption(folder, tmp_path / "out", picture_side=100)
    assert {row["key"]: row["reason"] for row in skipped} == {
        "broken": "damaged", "latin": "caption-not-utf8", "long": "too-long", "tiny": "too-small"
    }  # fmt: skip
    assert [row["path"] for row in rows] == ["../photos/large.png"] and fake.sizes == [(100, 50)]


def test_tars_become_tars(tmp_path):
    folder = tmp_path / "photos"
    crop_photographs(folder, 7)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    answers = {"brick": ("", False), "": ("A picture.", False)}
    (odd, skipped, _) = caption(tmp_path / "in.tar", tmp_path / "out", answers, old_caption_weight=0.0)
    assert [row["what"] for row in odd] == ["empty"] and skipped == []
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["000000.tar", "000001.tar", "000002.tar"]
    before, after = open_pictures(str(tmp_path / "in.tar")), open_pictures(str(tmp_path / "out" / "*.tar"))
    kept = [number for number in range(7) if "brick" not in before[number].captions[0][0]]
    assert [item.key for item in map(after.__getitem__, range(len(after)))] == [f"{number:09d}" for number in kept]
    for item, number in zip(map(after.__getitem__, range(len(after))), kept, strict=True):
        assert item.data == before[number].data and item.captions == (("A picture.", 1.0),)


def test_file_names_that_are_no_utf8(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (80, 80)).save(folder / "a.png")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    caption(folder, tmp_path / "out", {"": ("猫", False)})
    assert open_pictures(str(tmp_path / "out" / "captions.jsonl"))[0].captions == (("猫", 1.0),)
