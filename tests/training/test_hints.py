"""At its end a run says how to draw, to evaluate and to export: commands of its own data, whole as far as it knows."""

import shlex
import types

import pytest

from pixart_jax.config import default_config
from pixart_jax.training.hints import next_steps
from tools import convert, sample


def samples_of(*captions):
    return [types.SimpleNamespace(texts=[types.SimpleNamespace(caption=caption)]) for caption in captions]


def hints(tmp_path, captions, encoders=("t5", "vae"), name="run", **settings):
    config = default_config()
    for key, value in settings.items():
        section, _, last = key.partition("__")
        if last:
            config[section][last] = value
        else:
            config[section] = value
    manifest = types.SimpleNamespace(text_encoder=encoders[0], autoencoder=encoders[1])
    return next_steps(tmp_path / name, config, manifest, samples_of(*captions))


def command_of(lines, what):
    (line,) = (line for line in lines if line.startswith(f"{what}: "))
    return shlex.split(line.partition(": ")[2].partition("  (")[0]), line


@pytest.fixture
def pipeline(tmp_path):
    for name in ("vae", "text_encoder"):
        (tmp_path / "weights" / name).mkdir(parents=True)
    return tmp_path / "weights"


def test_encoders_of_the_run_are_taken(tmp_path, pipeline):
    for settings in (
        {"data__vae": f"{pipeline}/vae", "data__text_encoder": f"{pipeline}/text_encoder"},
        {"data__vae": f"{pipeline}/vae/", "init__null_text": f"{pipeline}/text_encoder"},
        {"init_from": str(pipeline)},
    ):
        lines = hints(tmp_path, ["a red barn", "snow"], **settings)
        draw, line = command_of(lines, "draw anything")
        args = sample.parse_arguments(draw[3:])
        assert (args.checkpoint, args.prompt) == (tmp_path / "run", ["snow"])
        assert args.vae.rstrip("/") == f"{pipeline}/vae" and args.text_encoder == f"{pipeline}/text_encoder"
        assert "DIR" not in line and "blue heart" not in line
        export, _ = command_of(lines, "export")
        args = convert.parse_arguments(export[3:])
        assert (args.source, args.to, str(args.encoders)) == (str(tmp_path / "run"), "diffusers", str(pipeline))


@pytest.mark.parametrize(
    ("encoders", "wanted"),
    [
        (("t5", "vae"), ["--text-encoder", "DIR", "--vae", "DIR"]),
        (("words", "vae"), ["--vae", "DIR"]),
        (("words", "linear"), []),
    ],
)
def test_what_the_run_was_not_told_is_said(encoders, wanted, tmp_path):
    draw, line = command_of(hints(tmp_path, ["snow"], encoders), "draw anything")
    assert draw[7:] == wanted
    assert ("that tools.convert wrote" in line) == bool(wanted)


@pytest.mark.parametrize(
    ("captions", "prompt"),
    [
        (["it's 5 o'clock; $HOME"], "it's 5 o'clock; $HOME"),
        (["", "  ", "two\nlines of it"], "two lines of it"),
        (["word " * 400], "word " * 15 + "word"),
        (["", ""], None),
    ],
)
def test_any_caption_can_be_pasted(captions, prompt, tmp_path):
    lines = hints(tmp_path, captions, ("words", "linear"), name="my run")
    if prompt is None:
        assert not [line for line in lines if line.startswith("draw")]
        return
    draw, _ = command_of(lines, "draw anything")
    assert draw[draw.index("--prompt") + 1] == prompt and draw[draw.index("--checkpoint") + 1].endswith("my run")


def test_a_model_of_classes_draws_no_prompts(tmp_path, pipeline):
    lines = hints(tmp_path, ["snow"], model__num_classes=10, init_from=str(pipeline))
    assert [line.partition(":")[0] for line in lines] == ["evaluate", "export"]
    assert "--encoders" not in lines[1]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/x/pixart_jax/main.py", "--config=a b.py", "--workdir=w"], "python -m pixart_jax.main '--config=a b.py'"),
        (["/usr/bin/pixart-train", "--config=quickstart"], "python -m pixart_jax.main --config=quickstart"),
        (["/usr/bin/pytest", "-q"], "python -m pixart_jax.main --config=CONFIG --workdir="),
    ],
)
def test_evaluating_is_the_runs_own_command(argv, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", argv)
    _, line = command_of(hints(tmp_path, ["snow"]), "evaluate")
    assert line.startswith(f"evaluate: {expected}") and "--config.eval.source=DIR" in line
    assert "evaluated on data/held: " in hints(tmp_path, ["snow"], eval__source="data/held")[1]
