"""Runs, converted models and adapters go to a hub that this test serves, with their cards, and come back from there.

The hub's client reads its settings when it is imported, so what speaks to the hub has a process of its own.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest
from hub_server import PART_BYTES, WritableHub, serving
from lora_cases import LORA
from made_once import made_once
from tiny_run import ROOT
from tiny_words import train_words_run

from pixart_jax.config import load_config
from pixart_jax.config.local_paths import without_folders
from pixart_jax.hub import facts
from pixart_jax.hub.contents import look
from tools import publish

TOKEN = "hf_of_me"
LICENSE = ["--license", "apache-2.0"]
CALL = """
import json, os, sys
from tools import publish
results = {}
for name, (token, *arguments) in json.loads(sys.argv[1]).items():
    os.environ["HF_TOKEN"] = token
    print(f"== {name}", flush=True)
    print(f"== {name}", file=sys.stderr, flush=True)
    results[name] = publish.main(arguments)
print("\\n== codes\\n" + json.dumps(results))
"""
BACK = """
import sys
import numpy as np
from huggingface_hub import ModelCard
from pixart_jax.conversion.formats.lora_reading import read_lora
from pixart_jax.generation.pipeline import TextToImage

def same(name, folder, prompt):
    found, expected = (opened(prompt, seed=3, num_steps=2) for opened in
                       (TextToImage.from_pretrained(name), TextToImage.from_checkpoint(folder)))
    np.testing.assert_array_equal(found, expected)
    assert found.std() > 1

run, weights, lora = sys.argv[1:]
same("me/run", run, "red square")
same("me/pipeline", weights, "a red cat on a mat")
TextToImage.from_pretrained("me/pipeline")  # It was converted before.
assert read_lora("me/style").layers.keys() == read_lora(lora).layers.keys()
card = ModelCard.load("me/run")
print(card.data.to_dict())
"""


def environment(address, home, **settings):
    clean = {name: value for name, value in os.environ.items() if not re.match("HF_|.*PROXY", name.upper())}
    # The protocol that is spoken where the faster one is not to be had, which no test can serve.
    clean |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    return clean | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | settings


def call(env, calls):
    """What publish.main returned for each token and its arguments, and all it printed, by name."""
    process = subprocess.run(
        [sys.executable, "-c", CALL, json.dumps(calls)], env=env, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    printed = dict.fromkeys(calls, "")
    for output in (process.stdout, process.stderr):
        for part in re.split(r"^== ", output, flags=re.MULTILINE)[1:]:
            name, _, text = part.partition("\n")
            printed[name] = printed.get(name, "") + text
    return json.loads(printed.pop("codes")), printed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A copy: what is converted goes into it."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(made_once(tmp_path_factory, "words-run", train_words_run) / "run", folder / "run")
    return folder / "run"


@pytest.fixture
def hub():
    handler = WritableHub.fresh({TOKEN: "me"})
    with serving(handler) as address:
        handler.address = address
        yield handler


def test_published_and_drawn_from(hub, run, weights, tmp_path):
    env = environment(hub.address, tmp_path / "home")
    licensed = [*LICENSE, "--push"]
    # The commit is refused once, and one part of a file: both are tried again.
    hub.failures.update({("POST", "commit"): 1, ("PUT", "part"): 1})
    codes, printed = call(
        env,
        {
            "shown": [TOKEN, str(run), "me/run"],
            "run": [TOKEN, str(run), "me/run", *licensed, "--private", "--note", "My own words."],
            "pipeline": [TOKEN, str(weights.parent / "pipeline"), "me/pipeline", *licensed],
            "style": [TOKEN, str(LORA / "peft_lora"), "me/style", *licensed, "--base-model", "them/base"],
        },
    )
    assert set(codes.values()) == {0}, printed
    # What is shown is what goes up, and showing it sends nothing.
    assert "nothing was uploaded" in printed["shown"] and "--license" in printed["shown"]
    _, (_, message, files) = hub.repos["me/run"]
    assert (message, hub.repos["me/run"][0][1]) == ("a PixArt in the format of pixart_jax", "visibility private")
    listed = re.findall(r"^ +[\d.,]+ [kM]B  (\S.*)$", printed["shown"], re.MULTILINE)
    arrays = [name for name in files if name.startswith("params/")]
    assert sorted(listed) == sorted({*files} - {".gitattributes", *arrays} | {f"params/  {len(arrays)} files"})
    (staged,) = (run / "published").iterdir()
    assert staged.name == "step_1-ema-orbax" and "converted before" in printed["run"]
    for path in filter(pathlib.Path.is_file, staged.rglob("*")):
        assert files[path.relative_to(staged).as_posix()] == path.read_bytes()
    assert any(name.endswith("/.zarray") for name in arrays)
    # The largest went in parts, one of them twice; all others once.
    assert max(map(len, hub.objects.values())) > 2 * PART_BYTES
    again = [oid for oid, data in hub.objects.items() if hub.sent[oid] != len(data)]
    assert len(again) == 1 and "again in 1 s" in printed["run"]
    assert b"My own words." in files["README.md"] and str(run.parent).encode() not in files["README.md"]

    # Once more, with a file less and a card of one's own: what is there is not sent again, what is gone goes.
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\nMine.\n")
    copy = shutil.copytree(staged, tmp_path / "copy")
    (copy / "params/commit_success.txt").unlink()
    sent = dict(hub.sent)
    codes, printed = call(env, {"again": [TOKEN, str(copy), "me/run", "--push", "--card", str(tmp_path / "card.md")]})
    assert codes == {"again": 0}, printed
    files = hub.repos["me/run"][-1][2]
    assert "params/commit_success.txt is of what was there before, and goes" in printed["again"]
    assert "params/commit_success.txt" not in files and files["README.md"].endswith(b"Mine.\n")
    assert hub.sent == sent
    hub.repos["me/run"].pop()

    process = subprocess.run(
        [sys.executable, "-c", BACK, str(staged), str(weights), str(LORA / "peft_lora")],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("converted into") == 1 and "'license': 'apache-2.0'" in process.stdout
    assert "'library_name': 'pixart_jax'" in process.stdout and "'pipeline_tag': 'text-to-image'" in process.stdout


def test_what_a_hub_may_answer(hub, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    source, env = str(LORA / "peft_lora"), environment(hub.address, tmp_path / "home")
    cases = {
        "no token": (["", source, "me/style"], "there is no token: make one that may write on http://127.0.0.1:"),
        "unknown": (["hf_x", source, "me/style"], "the hub does not know the token; make another on http://127"),
        "not mine": ([TOKEN, source, "them/style"], "the token may not write to them/style: "),
        "no card": ([TOKEN, source, "me/style", "--license", "nonsense"], "me/style: the hub refuses the card: "),
    }
    calls = {name: [*arguments[:3], "--push", *(arguments[3:] or LICENSE)] for name, (arguments, _) in cases.items()}
    codes, printed = call(env, calls)
    for name, settings, message in (
        ("offline", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("no network", {"HF_ENDPOINT": closed}, "me/style: the hub cannot be reached: [Errno 111]"),
    ):
        cases[name] = [], message
        code, text = call(env | settings, {name: [TOKEN, source, "me/style", "--push", *LICENSE]})
        codes, printed = codes | code, printed | text
    for name, (_, message) in cases.items():
        lines = [line for line in printed[name].splitlines() if line.startswith("error: ")]
        assert codes[name] == 2 and len(lines) == 1 and lines[0].startswith(f"error: {message}"), printed[name]
    # The card is refused before a byte of a file is sent.
    assert not hub.sent and [len(commits) for commits in hub.repos.values()] == [1]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["RUN", "mine"], "mine: a repository is called owner/name"),
        (["absent", "me/x"], "absent does not exist"),
        (["RUN", "me/x", "--push"], "--license is missing: "),
        (["RUN", "me/x", "--license", "other"], "--license other, and no other, takes a --license-name"),
        (["RUN", "me/x", "--card", "c.md", "--note", "n"], "--card is the whole card"),
        (["RUN", "me/x", "--run", "RUN"], "is a run itself; leave --run out"),
        (["LORA", "me/x", "--to", "peft"], "--to: "),
        (["LORA", "me/x", "--no-ema"], "holds one set of weights"),
        (["LORA", "me/x", "--run", "LORA"], "is not the workdir of a run"),
        (["TESTS", "me/x"], "is nothing that can be published: that is a folder that tools.convert wrote"),
    ],
)
def test_what_is_refused_at_once(arguments, message, run, capsys):
    places = {"RUN": str(run), "LORA": str(LORA / "peft_lora"), "TESTS": str(ROOT / "configs")}
    before = set(run.iterdir())
    assert publish.main([places.get(word, word) for word in arguments]) == 2
    assert message in capsys.readouterr().err
    assert set(run.iterdir()) == before


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", "caf\u00e9".encode("latin-1"), b"a\0b"])
def test_a_card_is_text_in_utf8(content, run, tmp_path, capsys):
    (card := tmp_path / "card.md").write_bytes(content)
    before = set(run.iterdir())
    assert publish.main([str(run), "me/x", "--card", str(card)]) == 2
    said = capsys.readouterr().err
    assert f"--card {card}: is no text" in said and "Markdown in UTF-8" in said
    assert set(run.iterdir()) == before  # Nothing was converted.


def test_a_card_says_what_the_run_recorded(run, tmp_path, capsys):
    """Of a later run as well: its base through the runs between, its figures and pictures up to the step."""
    second = shutil.copytree(run, tmp_path / "second", ignore=shutil.ignore_patterns("published"))
    model = tmp_path / "base"
    assert publish.main([str(run), "me/x", "--out", str(model)]) == 0
    stored = json.loads((model / "model.json").read_text())
    stored["provenance"]["source"] = "them/PixArt@v1/transformer"
    (model / "model.json").write_text(json.dumps(stored))
    for workdir, start in ((second, run), (run_copy := shutil.copytree(second, tmp_path / "first"), model)):
        config = json.loads((workdir / "config.json").read_text())
        config["init_from"] = str(run_copy if start is run else start)
        config["data"]["source"] = f"{tmp_path}/secret/pictures,classes:{tmp_path}/more"
        (workdir / "config.json").write_text(json.dumps(config))
    (second / "quality.jsonl").write_text('{"step": 1, "fid": 12.5, "a|b": 1.0}\n{"step": 9, "fid": 3.0}\n')
    for step in (1, 9):
        (second / "samples").mkdir(exist_ok=True)
        (second / f"samples/step_{step:07d}.png").write_bytes(b"picture %d" % step)
    capsys.readouterr()
    assert publish.main([str(second), "me/second"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "base_model: them/PixArt", "base_model_relation: finetune", "- type: fid", "value: 12.5",
        "source: pictures,classes:more".replace("source: ", "| source | "), "| fid | 12.5 |", "| a\\|b | 1 |",
        "*drawn after step 1*", "| steps | 1 of 1 |", "--config.data.batch_size=8", "| samples | 4 |",
    ):  # fmt: skip
        assert line in printed, line
    assert "secret" not in printed and "value: 3.0" not in printed
    found = facts.read_facts(second, 1)
    assert found.pictures["samples"].path.read_bytes() == b"picture 1"


def test_paths_without_folders(run):
    config = load_config(run)
    config.data.source, config.init_from, config.sample.prompts = "photos/a", "/home/me/weights/x", "~/texts/p.txt"
    found = without_folders(config)
    assert (found["data.source"], found["init_from"], found["sample.prompts"]) == ("photos/a", "x", "p.txt")
    assert found["data.vae"] == "" and found["seed"] == config.seed


def test_of_a_model_nothing_else_goes_up(weights, tmp_path, capsys):
    """Pictures with their prompts, which tools.sample puts there, and notes."""
    model = tmp_path / "model"
    shutil.copytree(weights, model)
    others = ["generated/0.png", "notes.txt", "licensed/x", ".cache/x"]
    for name in ("images/samples.png", "License.md", "LICENSES/MIT", *others):
        path = model / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert publish.main([str(model), "me/model"]) == 0
    assert "left out: generated, licensed, notes.txt\n" in capsys.readouterr().out
    ours = {path.relative_to(weights).as_posix() for path in weights.rglob("*") if path.is_file()}
    assert look(model).files.keys() == ours | {"images/samples.png", "License.md", "LICENSES/MIT"}


def test_what_things_are(weights):
    """A pipeline says its class, a converted model itself, an adapter that it is one."""
    pipeline, model, lora = look(weights.parent / "pipeline"), look(weights), look(LORA / "peft_lora")
    assert (pipeline.class_name, pipeline.kind.library) == ("PixArtSigmaPipeline", "diffusers")
    assert model.stored is not None and model.kind.library == "pixart_jax" and lora.kind.library == "peft"
