"""No option that names a file or folder to be read takes a bucket's URL for a path that is just not there."""

import ast
import pathlib

import pytest

from tools import caption, concepts, convert, inspect_data, sample
from tools.app import command as app

ROOT = pathlib.Path(__file__).parents[2]
URL = "gs://bucket/thing"


@pytest.mark.parametrize(
    ("tool", "arguments", "option"),
    [
        (app, ["--checkpoint", URL], "--checkpoint"),
        (app, ["--checkpoint=x", "--vae", URL], "--vae"),
        (sample, ["--checkpoint=x", "--text-encoder", URL], "--text-encoder"),
        (sample, ["--checkpoint=x", "--lora", f"{URL}:0.5"], "--lora"),
        (convert, [URL, "out"], "SRC"),
        (convert, ["x", "out", "--encoders", URL], "--encoders"),
        (caption, ["x", "--out=y", "--model", URL], "--model"),
        (concepts, [URL], "SOURCE"),
        (inspect_data, ["s3://bucket/list.csv"], "DIR"),
    ],
)
def test_the_option_and_the_cure_are_named(tool, arguments, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main(arguments)
    error = capsys.readouterr().err
    assert f"argument {option}: the path " in error and "is a URL; name a local path: copy it, or mount the" in error


def test_every_option_that_names_a_path_says_so():
    """By its type: one without takes any text, and a URL would only not be found."""
    missing = []
    for path in sorted((ROOT / "tools").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
                told = {word.arg: word.value for word in call.keywords}
                words = " ".join(ast.unparse(told[name]).lower() for name in ("metavar", "help") if name in told)
                is_flag = {"choices", "type"} & told.keys() or ("action" in told and "metavar" not in told)
                if not is_flag and any(word in words for word in ("file", "folder", "dir", "path", "converted")):
                    missing.append(f"{path.name}: {ast.unparse(call.args[0])}")
    assert missing == ["command.py: '--title'"]  # Whose default is a folder's name.
