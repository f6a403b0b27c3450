"""The package where it is installed, outside of any checkout: its commands, its configs by name, its hints."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import ROOT

from pixart_jax import commands

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

TINY = [
    "--config.data.source=synthetic",
    "--config.data.batch_size=2",
    "--config.model.hidden_size=24",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.scan_unroll=1",
    "--config.train.num_steps=2",
    "--config.train.log_every=1",
    "--config.sample.every=0",
    "--config.sample.num_images=1",
    "--config.sample.num_steps=2",
    "--config.sample.retrieval_captions=0",
]

LOOK = """
import importlib.metadata, importlib.util, json, pathlib, sys
import pixart_jax
scripts = importlib.metadata.distribution("pixart_jax").entry_points.select(group="console_scripts")
print(json.dumps({
    "version": pixart_jax.__version__,
    "folder": str(pathlib.Path(pixart_jax.__file__).parent),
    "typed": (pathlib.Path(pixart_jax.__file__).parent / "py.typed").exists(),
    "strange": [name for name in ("tools", "configs") if importlib.util.find_spec(name)],
    "scripts": {script.name: callable(script.load()) for script in scripts},
}))
"""

# As if it were not installed.
NO_TENSORFLOW = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "tensorflow" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


class Installed:
    """The package in a folder, and calls of what it brought from another, where TensorFlow is not to be had."""

    def __init__(self, folder, start):
        self.folder, self._start = folder, start
        (folder / "sitecustomize.py").write_text(NO_TENSORFLOW)

    def run(self, *command, code=0):
        """What a command prints, on both outputs."""
        env = os.environ | {"PYTHONPATH": str(self.folder), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        process = subprocess.run(
            [*map(str, command)],
            cwd=self._start,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert process.returncode == code, process.stdout[-5000:]
        return process.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    root = tmp_path_factory.mktemp("installed")
    # A copy: pip builds in the folder that it installs from.
    for name in ("pixart_jax", "configs", "tools"):
        shutil.copytree(ROOT / name, root / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, root / "site", root / "source"]
    subprocess.run(command, check=True, timeout=300)
    (root / "start").mkdir()
    return Installed(root / "site", root / "start")


def test_train_sample_and_convert(installed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    output = installed.run("pixart-train", "--config=quickstart", f"--workdir={run}", *TINY)
    recorded = json.loads((run / "run.json").read_text())
    assert (recorded["commit"], recorded["version"]) == (None, PROJECT["version"])
    (hint,) = (line for line in output.splitlines() if "draw anything: " in line)
    command = shlex.split(hint.partition("draw anything: ")[2])
    assert command[:3] == ["pixart-sample", "--checkpoint", str(run)] and "blue heart" not in hint
    installed.run(*command)
    assert list((run / "generated").glob("*.png"))
    installed.run("pixart-convert", run, tmp_path / "transformer", "--to", "diffusers")
    assert json.loads((tmp_path / "transformer" / "config.json").read_text())["num_layers"] == 1
    # The events that were written without TensorFlow, read without it.
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    events = EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [1, 2]


def test_nothing_but_the_package_is_installed(installed):
    found = json.loads(installed.run(sys.executable, "-c", LOOK).splitlines()[-1])
    assert found == {
        "version": PROJECT["version"],
        "folder": str(installed.folder / "pixart_jax"),
        "typed": True,
        "strange": [],
        "scripts": dict.fromkeys(PROJECT["scripts"], True),
    }


def test_an_unknown_config_names_the_near_ones(installed, tmp_path):
    output = installed.run("pixart-train", "--config=stage3_1025", f"--workdir={tmp_path}", code=2)
    assert output.startswith("error: --config=stage3_1025: no such file, and no config of this name; did you mean ")
    assert "stage3_1024" in output and "Traceback" not in output


def test_help_names_commands_that_exist(installed):
    output = installed.run("pixart-sample", "--help")
    assert "usage: pixart-sample" in output and "pixart-sample --checkpoint" in output and "python -m" not in output


def test_commands_in_a_checkout():
    assert commands.command("sample") == "python -m tools.sample"
    assert commands.with_commands("python -m tools.cost --config=configs/a.py") == (
        "python -m tools.cost --config=configs/a.py"
    )
    assert set(commands._SCRIPTS.values()) == set(PROJECT["scripts"]) - {"pixart-train"}
