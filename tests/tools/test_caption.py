"""tools.caption with a tiny LLaVA: killed, shared, and read by tools.extract_features."""

import json
import os
import signal
import sys

import pytest
import tiny_captioners
from forked import processes
from PIL import Image

from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.captioner import Captioner
from tools import caption, extract_features

CAPTIONS = ["a red square", None, "猫 😀", "green " * 2000, "<image> of a circle", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_captioners.make_llava(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six pictures of one size, with and without captions, and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number, text in enumerate(CAPTIONS):
        Image.linear_gradient("L").rotate(15 * number).convert("RGB").save(folder / f"{number}.png")
        if text is not None:
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a caption")
    return folder


def arguments(photos, model, out, *more):
    base = [photos, "--model", model, "--out", out, "--items-per-unit", 2, "--batch-size", 2, "--max-new-tokens", 12]
    return [str(part) for part in (*base, "--old-caption-weight", 0.25, *more)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def captioned(photos, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("captioned") / "out"
    assert caption.main(arguments(photos, model, out)) == 0
    return out


def test_what_is_written(photos, captioned, capsys):
    rows = [json.loads(line) for line in (captioned / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [os.path.normpath(captioned / row["path"]) for row in rows] == [str(photos / f"{n}.png") for n in range(6)]
    for row, old in zip(rows, CAPTIONS, strict=True):
        weights = [entry["weight"] for entry in row["captions"]]
        assert row["captions"][0]["text"] and weights == ([0.75, 0.25] if old else [0.75])
        assert not old or row["captions"][1]["text"] == old.strip()
    skipped = [json.loads(line) for line in (captioned / "skipped.jsonl").read_text().splitlines()]
    assert [(row["key"], row["reason"]) for row in skipped] == [("broken", "not-an-image")]
    odd = [json.loads(line) for line in (captioned / "odd_answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert odd and {row["what"] for row in odd} == {"cut"} and all(row["kept"] for row in odd)
    summary = caption.summary(captioned)
    assert f"{len(odd)} cut; 0 pictures were left out" in summary and "1 items skipped" in summary
    assert f"--source {captioned / 'captions.jsonl'} --out DIR" in summary


def run_until_killed(*argv):
    """Dies while it captions its second unit."""
    answers, calls = Captioner.answers, []

    def die(self, *args):
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return answers(self, *args)

    Captioner.answers = die
    sys.exit(caption.main(list(argv)))


def test_killed_and_shared_it_is_the_same(photos, model, captioned, tmp_path, monkeypatch):
    process = processes.Process(target=run_until_killed, args=arguments(photos, model, tmp_path / "killed"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / ".killed.incomplete" / "units").glob("0*.json"))) == 2
    answers, calls = Captioner.answers, []
    monkeypatch.setattr(Captioner, "answers", lambda *args: calls.append(args) or answers(*args))
    assert caption.main(arguments(photos, model, tmp_path / "killed")) == 0
    assert len(calls) == 1  # Of four units two were there, and one has no picture.
    share = arguments(photos, model, tmp_path / "shared", "--process-count=2")
    assert caption.main([*share, "--process-index=1"]) == 0 and not (tmp_path / "shared").exists()
    assert caption.main(share) == 0
    expected = {**contents(captioned), "captions.jsonl": None}
    for name in ("killed", "shared"):
        found = contents(tmp_path / name)
        lines = [json.loads(line) for line in found.pop("captions.jsonl").splitlines()]
        assert {**found, "captions.jsonl": None} == expected
        whole = [json.loads(line) for line in (captioned / "captions.jsonl").read_bytes().splitlines()]
        assert [line["captions"] for line in lines] == [line["captions"] for line in whole]
        assert not list(tmp_path.glob(".*"))


def test_what_is_written_is_read_by_extraction(captioned, weights, tmp_path):
    argv = ["--source", captioned / "captions.jsonl", "--out", tmp_path / "train", "--resolution", 256]
    assert extract_features.main([str(part) for part in (*argv, "--checkpoint", weights)]) == 0
    reader = ShardReader(tmp_path / "train")
    assert len(reader) == 6
    texts = reader[0].texts
    assert [text.weight for text in texts] == [0.75, 0.25] and texts[1].caption == "a red square"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model=./nowhere"], "./nowhere: there is no such folder"),
        (["--old-caption-weight=1"], "at least 0 and below 1"),
        (["--without-caption", "--request=Why?"], "--without-caption is for the paper's request"),
        (["--request= "], "--request is empty"),
        (["--batch-size=0"], "--batch-size must be at least 1"),
        (["--process-index=3"], "--process-index 3 of --process-count 1"),
        (["--device", "nonsense"], "--device nonsense: "),
    ],
)
def test_what_is_refused(photos, model, tmp_path, capsys, more, words):
    assert caption.main([*arguments(photos, model, tmp_path / "out"), *more]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_caption_that_nobody_has_is_missed_before_the_model_is_opened(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")
    argv = [
        str(tmp_path / "photos"),
        "--model=./nowhere",
        "--out",
        str(tmp_path / "out"),
        "--request",
        "Is it {caption}?",
    ]
    assert caption.main(argv) == 2
    assert "has a caption; leave {caption} out" in capsys.readouterr().err


def test_other_settings_are_not_mixed(photos, model, tmp_path, capsys):
    argv = arguments(photos, model, tmp_path / "out", "--process-count=2")
    assert caption.main(argv) == 0
    assert caption.main([*argv, "--without-caption"]) == 2
    assert "was begun otherwise" in capsys.readouterr().err
