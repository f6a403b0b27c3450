"""tools.concepts over every kind of source: several processes, an interruption, and what the files hold."""

import json

import pytest
from PIL import Image
from tiny_words import write_words_data

from pixart_jax.data.nouns import Tagger
from pixart_jax.errors import InputError
from tools import concepts

CAPTIONS = ["A Cat on a Mat", "A Cat", "no noun", "猫 Cat 🐈", "A Dog " * 5000, " "]


@pytest.fixture(autouse=True)
def capitals(monkeypatch):
    """Words that begin with a capital letter are nouns; returns the captions that were looked at."""
    seen = []

    def nouns(captions):
        for caption in captions:
            seen.append(caption)
            yield [word for word in caption.split() if word[0].isupper() and word != "A"]

    monkeypatch.setattr(concepts, "open_tagger", lambda name: Tagger(f"{name} of the tests", nouns))
    return seen


@pytest.fixture
def photos(tmp_path):
    """Of the pictures one is broken, which nobody notices, and one has no caption."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        (folder / f"{number}.jpg").write_bytes(b"no picture")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    Image.new("RGB", (8, 8)).save(folder / "none.png")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert concepts.main([str(photos), "--out", str(out), "--tagger=spacy"]) == 0
    printed = capsys.readouterr().out
    assert "| LAION (paper) | 210K / 2461K = 8.5% | 72.0M | 6.4 |" in printed
    assert f"| {photos} | 1 / 3 = 33.3% | 5,004 | 1000.8 |" in printed
    result = json.loads((out / "result.json").read_text())
    assert result["skipped"] == {"caption-empty": 1, "caption-missing": 1}
    assert (result["pictures"], result["tagger"]) == (5, "spacy of the tests")
    assert result["pictures_by_nouns"] == {"0": 1, "1": 2, "2": 1, "5000": 1}
    assert (out / "valid.tsv").read_text() == "5000\tDog\n"
    assert (out / "rare.tsv").read_text() == "3\tCat\n1\tMat\n"
    with Image.open(out / "concepts.png") as chart:
        assert chart.size == (1200, 480)


def test_shared_and_interrupted_it_is_the_same(photos, tmp_path, monkeypatch, capitals):
    argv = [str(photos), "--items-per-unit=2", "--out"]
    assert concepts.main([*argv, str(tmp_path / "whole")]) == 0
    share = [*argv, str(tmp_path / "shared"), "--process-count=2"]
    assert concepts.main([*share, "--process-index=1"]) == 0 and not (tmp_path / "shared").exists()
    assert concepts.main(share) == 0
    real = concepts.open_tagger("nltk").nouns

    def stop(captions):
        if len(capitals) > 2:
            raise MemoryError
        return real(captions)

    capitals.clear()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(concepts, "open_tagger", lambda name: Tagger("nltk of the tests", stop))
        concepts.main([*argv, str(tmp_path / "stopped")])
    capitals.clear()
    assert concepts.main([*argv, str(tmp_path / "stopped")]) == 0
    assert len(capitals) < 5  # What was counted before was not counted again.
    assert contents(tmp_path / "whole") == contents(tmp_path / "shared") == contents(tmp_path / "stopped")


def test_a_list_and_its_several_captions(tmp_path, capsys):
    records = [
        {"path": "a.jpg", "captions": [{"text": "Cat Mat", "weight": 3}, {"text": "Dog", "weight": 1}]},
        {"path": "b.jpg", "prompt": "Cat", "sharegpt4v": "Cat Dog Mat"},
    ]
    source = tmp_path / "list.jsonl"
    source.write_text("\n".join(map(json.dumps, records)))

    def rows(*more):
        assert concepts.main([str(source), *more]) == 0
        return capsys.readouterr().out.splitlines()[-1].split(" | ")[1:]

    assert rows() == ["0 / 3 = 0.0%", "4", "1.9 |"]  # 3/4·2 + 1/4·1 and (1 + 3)/2
    assert rows("--caption=1") == ["0 / 2 = 0.0%", "3", "1.5 |"]
    assert rows("--caption-weights=sharegpt4v=0") == ["0 / 3 = 0.0%", "3", "1.4 |"]
    assert rows("--caption=2") == ["0 / 3 = 0.0%", "4", "2.0 |"]
    assert concepts.main([str(source), "--caption=3"]) == 2
    assert "no caption number 3" in capsys.readouterr().err


def test_nouns_in_lower_case(tmp_path, capsys):
    (tmp_path / "list.json").write_text(json.dumps([{"path": "a", "prompt": "Cat CAT"}]))
    assert concepts.main([str(tmp_path / "list.json"), "--lower-case"]) == 0
    assert "| 0 / 1 = 0.0% | 2 | 2.0 |" in capsys.readouterr().out


def test_feature_shards(tmp_path, capsys, capitals):
    assert concepts.main([str(write_words_data(tmp_path / "set"))]) == 0
    assert sorted(capitals) == ["blue square", "green circle", "red square", "small red circle"]
    assert concepts.main([str(tmp_path / "set"), "--caption-weights=prompt=1"]) == 2
    assert "feature shards have their own weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--process-count=2"], "name it by --out"),
        (["--process-index=1"], "--process-index 1 of --process-count 1"),
        (["--caption=0"], "--caption must be at least 1"),
        (["--caption-weights=prompt"], "must be FIELD=NUMBER"),
    ],
)
def test_what_is_refused(photos, more, words, capsys):
    assert concepts.main([str(photos), *more]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_tagger_is_one_line(photos, tmp_path, monkeypatch, capsys):
    def missing(name):
        raise InputError("NLTK is not here")

    monkeypatch.setattr(concepts, "open_tagger", missing)
    assert concepts.main([str(photos), "--out", str(tmp_path / "out")]) == 2
    *told, error = capsys.readouterr().err.splitlines()
    assert error == "error: NLTK is not here" and all("no items" in line for line in told)
    assert not list(tmp_path.glob("*out*"))
