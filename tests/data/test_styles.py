"""Styles are words around a prompt: ours, and those of a file of one's own."""

import json

import pytest

from pixart_jax.data.styles import Style, chosen, read_styles
from pixart_jax.errors import InputError
from tools import sample


def test_words_around_a_prompt():
    assert Style("an oil painting of {prompt}", "photo").of("a {red} cat", None) == (
        "an oil painting of a {red} cat",
        "photo",
    )
    assert Style("{prompt}, inked", "colour").of("x", "blur") == ("x, inked", "blur, colour")
    assert Style("{prompt}, inked").of("x", None) == ("x, inked", None)  # None is the null caption, and stays it.


def test_ours_are_whole():
    styles = read_styles()
    assert len(styles) == 10 and len({style.of("x", None)[0] for style in styles.values()}) == 10
    assert chosen(styles, ["ink", "oil"]) == [styles["ink"], styles["oil"]]
    with pytest.raises(InputError, match="--style inc: is no style; did you mean ink"):
        chosen(styles, ["inc"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "holds no style"),
        ({"a": {"prompt": "no place"}}, "style 'a' should hold {prompt} once"),
        ({"a": {"prompt": "{prompt} {prompt}"}}, "style 'a'"),
        ({"a": {"negative": "x"}}, "a.prompt is missing"),
        ({"a": {"prompt": "{prompt}", "negativ": "x"}}, "unknown 'negativ'"),
        ({"a": "{prompt}"}, "a is"),
        ([], "JSON object"),
    ],
)
def test_what_is_no_file_of_styles(tmp_path, content, said):
    (tmp_path / "own.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_styles(tmp_path / "own.json")


def test_a_sheet_of_one_prompt_in_several_styles(weights, tmp_path, capsys):
    (tmp_path / "own.json").write_text(
        json.dumps({"a": {"prompt": "a {prompt}"}, "b": {"prompt": "{prompt}, b", "negative": "c"}}), encoding="utf-8"
    )
    shared = ["--checkpoint", str(weights), "--prompt", "cat", "--num-steps", "1", "--out", str(tmp_path / "out")]
    own = ["--style-file", str(tmp_path / "own.json")]
    assert sample.main([*shared, *own, "--styles", "--negative-prompt", "blur"]) == 0
    drawn = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert drawn == ["000_a-cat.png", "001_cat-b.png"] and (tmp_path / "out" / "sheet.png").exists()
    from PIL import Image

    texts = [Image.open(tmp_path / "out" / name).text for name in drawn]
    assert [text["negative_prompt"] for text in texts] == ["blur", "blur, c"]
    # Without guidance nothing heeds a style's negative prompt; of one's own that is said.
    without = [*shared, *own, "--styles", "--guidance", "none"]
    assert sample.main(without) == 0
    assert not any("negative_prompt" in Image.open(tmp_path / "out" / name).text for name in drawn)
    assert sample.main([*without, "--negative-prompt", "blur"]) == 2
    assert "negative_prompt: nothing heeds it" in capsys.readouterr().err
    assert sample.main([*shared, *own]) == 2 and "--style-file" in capsys.readouterr().err
    assert sample.main([*shared, "--style", "oils"]) == 2 and "did you mean oil" in capsys.readouterr().err
