"""Pictures of a class as a source of training: drawn, gone on with, captioned."""

import pytest

from pixart_jax.data.pictures import open_pictures
from tools import class_pictures


def test_they_are_a_source_with_captions(weights, tmp_path, capsys):
    def draw(*more):
        arguments = ["--checkpoint", str(weights), "--prompt", "a photo of a dog", "--out", str(tmp_path / "dogs")]
        return class_pictures.main([*arguments, "--num-images", "3", "--num-steps", "1", "--batch-size", "2", *more])

    assert draw() == 0
    pictures = open_pictures(str(tmp_path / "dogs"))
    assert [pictures[i].captions for i in range(len(pictures))] == 3 * [(("a photo of a dog", 1.0),)]
    assert len({pictures[i].data for i in range(3)}) == 3  # Each has a noise of its own.
    # What is there is left; what is gone comes back the same.
    first = (tmp_path / "dogs" / "00000.png").stat().st_mtime_ns
    (tmp_path / "dogs" / "00002.png").unlink()
    assert draw() == 0
    assert (tmp_path / "dogs" / "00002.png").read_bytes() == pictures[2].data
    assert (tmp_path / "dogs" / "00000.png").stat().st_mtime_ns == first
    assert draw("--num-steps", "2") == 2 and "drawn otherwise" in capsys.readouterr().err


def test_of_several_prompts_each_has_as_many(weights, tmp_path):
    words = [word for prompt in ("a dog", "a cat") for word in ("--prompt", prompt)]
    options = ["--num-images", "2", "--num-steps", "1", "--batch-size", "2", "--out", str(tmp_path / "animals")]
    assert class_pictures.main(["--checkpoint", str(weights), *words, *options]) == 0
    pictures = open_pictures(str(tmp_path / "animals"))
    found = [pictures[i] for i in range(len(pictures))]
    assert [one.captions[0][0] for one in found] == ["a dog", "a dog", "a cat", "a cat"]
    assert len({one.data for one in found}) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-images", "0"], "--num-images 0"),
        (["--seed", str(2**64 - 1), "--num-images", "2"], "--seed"),
        (["--process-count", "0"], "--process-index 0 of --process-count 0"),
        (["--process-index", "2", "--process-count", "2"], "--process-index 2 of --process-count 2"),
        (["--batch-size", "0"], "--batch-size = 0"),
        (["--sampler", "dmd", "--num-steps", "2"], "dmd draws in 1 step"),
    ],
)
def test_what_cannot_be_is_refused_first(weights, tmp_path, capsys, arguments, said):
    given = ["--checkpoint", str(weights), "--prompt", "a dog", "--out", str(tmp_path / "dogs"), *arguments]
    assert class_pictures.main(given) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "dogs").exists()
